"""The profile from start to end: ceilings, then for each pattern and sparsity the networks and the layers."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch
from prunebench_kernels.dispatch import requested
from torch import Tensor

from prunebench.profile import results
from prunebench.profile.contenders import Compiled, make_inputs, one_line, race
from prunebench.profile.layers import ConvLayer, conv_layers, load_network, make_mask
from prunebench.profile.measure import Stopwatch, cache_bytes
from prunebench.profile.network import Choice, Networks
from prunebench.profile.results import LayerResult, LayerRoof, Machine, NetworkResult, Profile
from prunebench.profile.roofline import (
    CeilingMeter,
    block_density,
    bound,
    ceiling,
    memory_bound_below,
    work_of,
)
from prunebench.profile.settings import ProfileSettings
from prunebench.runner.environment import describe_code, describe_environment

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE = "whole network"
Tell = Callable[[str], None]


class Profiler:
    """Measures what the settings ask for until the time box is full; what was measured can be had at any time."""

    def __init__(self, settings: ProfileSettings, tell: Tell = lambda _: None) -> None:
        self.settings = settings.resolved()
        self.tell = tell
        self.device, self.dtype = torch.device(self.settings.device), DTYPES[self.settings.precision]
        self.layers: list[LayerResult] = []
        self.networks: list[NetworkResult] = []
        self.left_out: list[str] = []
        self.interrupted = False
        self._seconds: dict[str, float] = {}
        self._meter: CeilingMeter | None = None
        self._choices: dict[tuple[str, float | None], dict[str, Choice]] = {}
        self._masks: dict[int, tuple[ConvLayer, float, float]] = {}
        self._begun, self._started = time.monotonic(), datetime.now(UTC)
        self._end = self._begun + 60 * (self.settings.minutes or 0)
        self._load = machine_load()
        self._stopwatch = Stopwatch(self.device)
        self._compiled = Compiled() if self.settings.compiled else None

    def run(self) -> Profile:
        """Measure everything that fits. Ctrl-C ends it and keeps what there is."""
        try:
            self._measure()
        except KeyboardInterrupt:
            self.interrupted = True
        return self.profile()

    def _measure(self) -> None:
        settings = self.settings
        assert settings.image is not None
        model = load_network(settings)
        convolutions = conv_layers(model, settings.image, settings.layers)
        model = model.to(self.device, self.dtype)
        self.tell("measuring the ceilings: copy and matmul")
        self._meter = CeilingMeter(self.device, self.dtype)
        networks = Networks(
            model,
            self._example(),
            self._stopwatch,
            backend=settings.backend,
            compiled=bool(settings.compiled),
        )
        for pattern, sparsity in settings.points():
            if self._fits(0.0):
                self._meter.try_again()
            self._measure_layers(convolutions, pattern, sparsity)
            self._measure_networks(networks, pattern, sparsity)

    def _measure_layers(self, convolutions: list[ConvLayer], pattern: str, sparsity: float | None) -> None:
        """Each layer that should fit by the time that it took last."""
        for layer in convolutions:
            label = f"{point_words(pattern, sparsity)}: {layer.name}"
            if not self._fits(self._seconds.get(layer.name, 0.0)):
                self.left_out.append(label)
                continue
            self.tell(label)
            begun = time.monotonic()
            self.layers.append(self._measure_layer(layer, pattern, sparsity))
            self._seconds[layer.name] = time.monotonic() - begun

    def _measure_networks(self, networks: Networks, pattern: str, sparsity: float | None) -> None:
        """The networks, if they should fit by the time that they took last, at first by that of the layers."""
        label = f"{point_words(pattern, sparsity)}: {WHOLE}"
        if not self._fits(self._seconds.get(WHOLE, sum(self._seconds.values()))):
            self.left_out.append(label)
            return
        self.tell(label)
        begun, compiling = time.monotonic(), networks.compile_seconds
        measured, self._choices[pattern, sparsity] = networks.measure(
            pattern, sparsity, self.settings.repeats or 1, self._end
        )
        self.networks += measured
        compiling = networks.compile_seconds - compiling
        self._seconds[WHOLE] = time.monotonic() - begun - compiling

    def _measure_layer(self, layer: ConvLayer, pattern: str, sparsity: float | None) -> LayerResult:
        settings = self.settings
        assert settings.batch is not None
        entry = LayerResult(layer.name, layer.names, layer.shape.words, pattern, sparsity, None)
        mask = make_mask(layer.weight, pattern, sparsity)
        if isinstance(mask, str):
            return dataclasses.replace(entry, not_measured=mask)
        self._masks[len(self.layers)] = layer, block_density(mask), float(mask.double().mean())
        entry = dataclasses.replace(entry, achieved=1 - float(mask.double().mean()))
        try:
            inputs = make_inputs(layer, mask, settings.batch, self.device, self.dtype)
            timings = race(
                inputs, self._compiled, self._stopwatch,
                backend=settings.backend, repeats=settings.repeats or 1, until=self._end,
            )  # fmt: skip
        except (RuntimeError, MemoryError) as error:  # e.g. out of memory: the other layers go on
            return dataclasses.replace(entry, not_measured=one_line(error))
        return dataclasses.replace(entry, timings=timings)

    def _roof(self, layer: ConvLayer, blocks: float, free: float) -> LayerRoof:
        """Bounds beneath the best ceilings seen so far, dense and at two densities."""
        assert self._meter is not None
        assert self.settings.batch is not None
        ceilings = self._meter.ceilings
        work = work_of(layer.shape, self.settings.batch, self.dtype.itemsize)
        dense = bound(work, ceilings)
        return LayerRoof(
            gflop=work.flop / 1e9,
            megabytes=(work.activation_bytes + work.weight_bytes) / 1e6,
            flop_per_byte=work.intensity,
            bound_by=dense.by,
            dense_ms=dense.ms,
            memory_bound_below_density=memory_bound_below(work, ceilings),
            block_density=blocks,
            block_ms=bound(work, ceilings, blocks).ms,
            block_ceiling=ceiling(work, ceilings, blocks),
            free_ms=bound(work, ceilings, free).ms,
            free_ceiling=ceiling(work, ceilings, free),
        )

    def _completed(self) -> list[LayerResult]:
        """The layers with their roofs and what `auto` takes in the whole network."""
        return [
            self._complete(entry, *self._masks[index]) if index in self._masks else entry
            for index, entry in enumerate(self.layers)
        ]

    def _complete(self, entry: LayerResult, layer: ConvLayer, blocks: float, free: float) -> LayerResult:
        choice = self._choices.get((entry.pattern, entry.sparsity), {}).get(entry.layer)
        auto, reason = (
            (choice.layout, choice.reason) if choice else (None, "the whole network was not measured")
        )
        if auto == results.SHRUNK and entry.timing(results.SHRUNK) is None and free > 0:
            auto = "dense"  # only a neighbour's channels died
        return dataclasses.replace(entry, roof=self._roof(layer, blocks, free), auto=auto, auto_reason=reason)

    def _place(self, result: LayerResult | NetworkResult) -> tuple[int, float]:
        """Order of the tables: pattern, sparsity; layers stay in the order of the network."""
        return self.settings.patterns.index(result.pattern or ""), result.sparsity or 0.0

    def _example(self) -> Tensor:
        size = self.settings.image or 1
        x = torch.randn(
            self.settings.batch or 1,
            3,
            size,
            size,
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def _fits(self, seconds: float) -> bool:
        """Whether something that takes so long still fits into the time box."""
        return time.monotonic() + seconds < self._end

    def profile(self) -> Profile:
        """What was measured so far, with machine, versions and settings."""
        settings = dataclasses.asdict(self.settings)
        command = settings.pop("command")
        machine = None
        if self._meter is not None and self._meter.ceilings.copy_bytes_per_s:
            machine = Machine(
                copy_gb_per_s=self._meter.ceilings.copy_bytes_per_s / 1e9,
                matmul_gflop_per_s=self._meter.ceilings.matmul_flop_per_s / 1e9,
                convolution_gflop_per_s=self._meter.ceilings.convolution_flop_per_s / 1e9,
                cache_mb=cache_bytes(self.device) / 1e6,
                flushed_mb=self._stopwatch.flushed_bytes / 1e6,
            )
        return Profile(
            schema_version=results.SCHEMA_VERSION,
            started_utc=self._started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(time.monotonic() - self._begun, 1),
            command=command,
            settings={
                key: str(value) if key in ("out", "results") else value for key, value in settings.items()
            },
            environment=self._environment(),
            code=describe_code(),
            machine=machine,
            layers=tuple(sorted(self._completed(), key=self._place)),
            networks=tuple(sorted(self.networks, key=self._place)),
            left_out=tuple(self.left_out),
            interrupted=self.interrupted,
            note=results.CPU_LINE if self.device.type != "cuda" else None,
        )

    def _environment(self) -> dict[str, Any]:
        """Machine and versions, the load before, and the kernels' backend as it was asked for here."""
        asked = None if self.settings.backend == "auto" else self.settings.backend
        facts = describe_environment(self.device.type, self.settings.precision)
        return {**facts, "kernels": requested(asked), **self._load}


def machine_load() -> dict[str, float | int | None]:
    """How busy the machine was before: processes that ran or waited, over the last minute, and its cores."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load_average": None if load is None else round(load, 2), "cores": os.cpu_count()}


def point_words(pattern: str, sparsity: float | None) -> str:
    """`block 0.9`; `2:4` and `stored` have no sparsity to tell."""
    return pattern if sparsity is None or pattern == "2:4" else f"{pattern} {sparsity:g}"
