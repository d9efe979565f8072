"""Measured latency and memory of a model in use, sparse where that was measured to be faster."""

from __future__ import annotations

import contextlib
import functools
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.results.record import PLAIN_PATH, Percentiles

SPARSE_PATH = "sparsify: auto"
PARITY = {"cpu": 1e-4, "cuda": 1e-2}
"""How far the packed network's outputs may lie from the plain one's, in shares of the largest output.

On a GPU the library rounds float32 inputs of convolutions to TF32, ten bits, and the kernels do not.
"""


@dataclass(frozen=True)
class Inference:
    """What is timed: the dense and the pruned network as one would run them, and how (see CostReport)."""

    dense: nn.Module
    pruned: nn.Module
    path: str
    layouts: dict[str, int] = field(default_factory=dict)
    removed_channels: float | None = None


def ready_for_inference(dense: nn.Module, pruned: nn.Module, x: Tensor) -> Inference:
    """Both networks with BatchNorm folded and epilogues fused, the pruned one with the layouts fastest for x.

    The layouts are chosen anew for every network, none is kept on disk. Where the pruned network cannot be traced,
    or its outputs for x are not the plain network's, both are timed plain, and the path says why.
    """
    from prunebench_kernels.measured import QUICK, Choices, Measuring
    from prunebench_kernels.sparsify import fold_dense, sparsify

    pruned.eval()
    try:
        network = sparsify(pruned, example=x, measuring=Measuring(QUICK, Choices.in_memory()))
        reference = fold_dense(dense, x)
        apart = distance(network, pruned, x)
    except Exception as error:  # whatever a user's network does; the run's accuracies do not depend on it
        return Inference(dense, pruned, f"{PLAIN_PATH} ({_first_line(error)})")
    limit = PARITY["cuda" if x.device.type == "cuda" else "cpu"]
    if not apart <= limit:
        return Inference(dense, pruned, f"{PLAIN_PATH} (sparsify: outputs differ by {apart:.1e})")
    report = network.report
    return Inference(reference, network, SPARSE_PATH, report.layouts, report.removed_channels)


@torch.inference_mode()
def distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of two networks' outputs for x, as a share of the other's largest output; nan if one is."""
    values, wanted = model(x), other(x)
    return float((values - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@torch.inference_mode()
def interleaved_latency(
    models: Mapping[str, nn.Module], x: Tensor, *, repeats: int = 15, warmup: int = 3
) -> dict[str, Percentiles]:
    """Milliseconds of a forward pass of x `[B, C, H, W]` for each model, timed in turns.

    Turns (model A, model B, A, B, ...) let drift of the machine hit all alike; compare only within one call.
    On a GPU the passes are replayed as CUDA graphs, as when layouts are chosen: launching small kernels one by one
    from Python takes longer than they run.
    """
    from prunebench_kernels.measured import Timing, time_in_turns

    for model in models.values():
        model.eval()
    calls = {name: functools.partial(model, x) for name, model in models.items()}
    for _ in range(warmup):
        for call in calls.values():
            call()
    return {
        name: Percentiles(**asdict(Timing.of(values)))
        for name, values in time_in_turns(calls, repeats).items()
    }


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
