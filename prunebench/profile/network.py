"""Whole networks, plain, folded, compiled and sparse: latency in turns, bytes of weights and peak of activations."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.profile.layers import (
    Call,
    checked_call,
    compiled_call,
    label,
    make_mask,
    one_line,
    short_name,
)
from prunebench.profile.results import (
    AUTO,
    COMPILED_NETWORK,
    EAGER,
    FOLDED,
    NO_TIME,
    NOT_COMPILED,
    SHRUNK,
    NetworkResult,
)
from prunebench.profile.stopwatch import Stopwatch, interleaved

TOLERANCE = {torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest deviation of a network's outputs from the plain one's, over the largest; roundings add up over layers."""


@dataclass(frozen=True)
class LayoutChoice:
    """What `auto` takes for a layer, and why."""

    layout: str
    reason: str


class NetworkBenchmark:
    """The dense network and what becomes of it at each pattern and sparsity."""

    def __init__(
        self, model: nn.Module, example: Tensor, stopwatch: Stopwatch, *, backend: str, compiled: bool
    ) -> None:
        self.model, self.example, self.stopwatch = model, example, stopwatch
        self.backend, self._wants_compiled = backend, compiled
        self.compile_seconds = 0.0
        self._folded = model
        self._compiled: Any = None
        peak_activations(lambda: example, example.device)  # the profiler's first start takes seconds

    def measure(
        self, pattern: str, sparsity: float | None, repeats: int, until: float = math.inf
    ) -> tuple[list[NetworkResult], dict[str, LayoutChoice]]:
        """All variants at this pattern and sparsity, timed in turns, and the choice of `auto` by layer name.

        What has not begun at the monotonic time `until` is not measured, but for the first.
        """
        masked = copy.deepcopy(self.model)
        masks = convolution_masks(masked, pattern, sparsity)
        with torch.no_grad():
            for name, mask in masks.items():
                masked.get_parameter(name).mul_(mask)
        zeros = share_of_zeros(masked)
        with torch.inference_mode():
            want = masked(self.example)
        choices: dict[str, LayoutChoice] = {}
        results: list[NetworkResult] = []
        calls: dict[str, Call] = {}
        for name, build in self._variants(masked, choices).items():
            entry = NetworkResult(name, pattern, sparsity, achieved=zeros)
            if results and time.monotonic() >= until:
                results.append(replace(entry, not_measured=NO_TIME))
                continue
            try:
                entry, call = self._prepare(entry, build(), want)
            except Exception as error:  # one variant that cannot be built must not hide the others
                entry, call = replace(entry, not_measured=one_line(error)), None
            if call is not None:
                calls[name] = call
                layouts = {key: choice.layout for key, choice in choices.items()} if name == AUTO else {}
                entry = replace(entry, layouts=layouts)
            results.append(entry)
        timed = interleaved(calls, self.stopwatch, repeats=repeats, cold=False, launches=True, until=until)
        return [
            replace(
                entry,
                latency_ms=timed.get(entry.name),
                not_measured=entry.not_measured or (None if entry.name in timed else NO_TIME),
            )
            for entry in results
        ], choices

    def _prepare(self, entry: NetworkResult, module: Any, want: Tensor) -> tuple[NetworkResult, Call | None]:
        """The entry with error and memory, and what to time; or with the reason why there is nothing to time."""
        if isinstance(module, str):
            return replace(entry, not_measured=module), None
        call = partial(module, self.example)
        off, reason = checked_call(call, want, TOLERANCE[want.dtype])
        if reason is not None:
            return replace(entry, error=off, not_measured=reason), None
        peak = peak_activations(call, self.example.device) / 1e6
        return replace(
            entry, error=off, weights_mb=weight_bytes(module) / 1e6, peak_activations_mb=peak
        ), call

    def _variants(self, masked: nn.Module, choices: dict[str, LayoutChoice]) -> dict[str, Callable[[], Any]]:
        from prunebench_kernels.sparsify import fold_dense

        return {
            EAGER: lambda: masked,
            FOLDED: lambda: fold_dense(masked, self.example),
            COMPILED_NETWORK: lambda: self._compile(masked),
            AUTO: lambda: self._sparsify(masked, choices),
        }

    @torch.no_grad()
    def _compile(self, masked: nn.Module) -> Any:
        """The folded network compiled once; later its weights are replaced in place."""
        from prunebench_kernels.sparsify import fold_dense

        if not self._wants_compiled:
            return NOT_COMPILED
        folded = fold_dense(masked, self.example, fuse=False)  # plain layers: the compiler may fuse
        if self._compiled is None:
            begun = time.monotonic()
            self._folded, self._compiled = folded, compiled_call(folded, self.example)
            self.compile_seconds = time.monotonic() - begun
        if not isinstance(self._compiled, str):
            self._folded.load_state_dict(folded.state_dict())
        return self._compiled

    def _sparsify(self, masked: nn.Module, choices: dict[str, LayoutChoice]) -> nn.Module:
        from prunebench_kernels.sparsify import sparsify

        backend = None if self.backend == "auto" else self.backend
        network = sparsify(masked, example=self.example, layout="auto", backend=backend)
        convolutions = network.convolutions
        for row in network.report:
            remembered = "remembered: " if convolutions[row.name].decision.cached else ""
            channels = row.channels
            cut = (channels.out_after, channels.in_after) != (channels.out_before, channels.in_before)
            shrunk = cut and row.layout == "dense"
            choices[short_name(row.name)] = LayoutChoice(
                SHRUNK if shrunk else label(row.layout, dict(row.settings)),
                f"{remembered}{row.reason}"
                + (f"; {channels.out_after} of {channels.out_before} outputs left" if cut else ""),
            )
        return network


def share_of_zeros(model: nn.Module) -> float:
    """The share of zeros among the weights of all convolutions."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def convolution_masks(model: nn.Module, pattern: str, sparsity: float | None) -> dict[str, Tensor]:
    """Masks of every convolution that can have the pattern, by the weight's name; the others stay dense."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            mask = make_mask(module.weight.detach(), pattern, sparsity)
            if isinstance(mask, Tensor):
                masks[f"{name}.weight"] = mask
    return masks


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, each storage once."""
    storages = {}
    for value in (*model.parameters(), *model.buffers()):
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@torch.inference_mode()
def peak_activations(call: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes that a pass allocates on top of weights and input, at its peak (the second pass is measured).

    Workspaces of the libraries count: a convolution that reorders its weight allocates as much again.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports a missing GPU as an error
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        profile_memory=True,
        acc_events=True,  # torch 2.11 warns without it
    ) as recorded:
        call()
    assert recorded.profiler is not None
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
