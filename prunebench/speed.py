"""What a model costs: measured latency and memory, counted parameters and multiply-accumulates."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.record import Percentiles


@torch.inference_mode()
def interleaved_latency(
    models: Mapping[str, nn.Module], x: Tensor, *, repeats: int = 15, warmup: int = 3
) -> dict[str, Percentiles]:
    """Milliseconds of a forward pass of x `[B, C, H, W]` for each model, timed in turns.

    Turns (model A, model B, A, B, ...) let drift of the machine hit all alike; compare only within one call.
    """
    wait = torch.cuda.synchronize if x.device.type == "cuda" else _nothing
    samples: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.eval()
    for turn in range(warmup + repeats):
        for name, model in models.items():
            wait()
            start = time.perf_counter()
            model(x)
            wait()
            if turn >= warmup:
                samples[name].append((time.perf_counter() - start) * 1e3)
    marks = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return {
        name: Percentiles(*torch.quantile(torch.tensor(values, dtype=torch.float64), marks).tolist())
        for name, values in samples.items()
    }


def _nothing() -> None:
    """A CPU needs no synchronisation."""


@torch.inference_mode()
def count_macs(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one image through convolutions and linear layers: all, and of non-zero weights.

    x: one image `[1, C, H, W]`.
    """
    totals = [0, 0]

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output.shape[2:].numel() if isinstance(module, nn.Conv2d) else 1
        totals[0] += positions * module.weight.numel()
        totals[1] += positions * int(torch.count_nonzero(module.weight))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model.eval()
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return totals[0], totals[1]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are not zero (pruned weights are; BatchNorm and biases count as they are)."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    zeros = sum(layer.weight.numel() - int(torch.count_nonzero(layer.weight)) for layer in layers)
    total = sum(values.numel() for values in model.parameters())
    return total, total - zeros


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_mb`, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since the reset, in 10^6 bytes: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
