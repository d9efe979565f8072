"""Measured latency and memory of a model in use, sparse where that was measured to be faster."""

from __future__ import annotations

import contextlib
import functools
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from prunebench.results.record import PLAIN_PATH, Percentiles
from prunebench.results.speed import MOST_OFF, MOST_SPREAD, spread_of

SPARSE_PATH = "sparsify: auto"
PARITY = {"cpu": 1e-4, "cuda": 1e-2}
"""How far the packed network's outputs may lie from the plain one's, in shares of the largest output.

On a GPU the library rounds float32 inputs of convolutions to TF32, ten bits, and the kernels do not.
"""
AGAIN = "dense again"
"""The dense network timed as a third: against itself it should be 1, and is the noise floor."""
CPU_TIME, FINE, WALL = "thread CPU time", 1e-6, "wall clock"
"""The clock of one thread, the seconds that it must tell apart to be used, and the clock of all others."""
MOST_TRIES = 3
"""So often a disturbed measurement is tried: each takes some dozens of passes."""
SETTLING, LONGEST_SETTLING = 4, 0.02
"""Calls of an engine before one is timed, and the seconds after which there are no more.

Another engine leaves spinning threads and its own data in the caches: behind others a ConvNet of one image took 0.59 ms
in eager torch and 0.15 ms in ONNX Runtime, behind one call of its own 0.22 and 0.027 ms, behind four 0.23 and 0.023 ms.
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
    return distance_of(model(x), other(x))


def distance_of(values: Tensor, wanted: Tensor) -> float:
    """Largest difference of outputs from those wanted, as a share of the largest wanted; nan if one is."""
    return float((values - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of networks timed in turns: by which clock, and the largest p80 / p20 by the clock on the wall.

    The clock is `thread CPU time` where one thread of a CPU does all the work: other processes that take the core in
    between do not count. Measured on two cores beside four spinning processes, a network against itself read 0.50x to
    1.50x by the wall clock and 0.87x to 1.14x by CPU time (40 times each); all ten wall ratios beyond 10 % had a
    p80 / p20 above 1.3.
    """

    times: dict[str, Percentiles]
    clock: str
    wall_spread: float

    @property
    def disturbance(self) -> float:
        """How disturbed the measurement was: the larger of spread and noise floor, each over what is allowed."""
        worst = max(self.wall_spread, *(spread_of(times) for times in self.times.values()))
        first, again = (self.times.get(name) for name in ("dense", AGAIN))
        off = abs(math.log(first.p50 / again.p50)) if first and again else 0.0
        return max(math.log(worst) / math.log(MOST_SPREAD), off / math.log1p(MOST_OFF))


def interleaved_latency(
    models: Mapping[str, nn.Module], x: Tensor, *, repeats: int = 15, warmup: int = 3
) -> dict[str, Percentiles]:
    """Milliseconds of a forward pass of x `[B, C, H, W]` for each model, timed in turns (see `time_models`)."""
    return time_models(models, x, repeats=repeats, warmup=warmup).times


def quietest_latency(dense: nn.Module, pruned: nn.Module, x: Tensor) -> Latencies:
    """Both networks and the dense one `again` (the noise floor), timed in turns: the least disturbed of a few times."""
    models = {"dense": dense, "pruned": pruned, AGAIN: dense}
    return quietest(lambda: time_models(models, x))


def quietest(measure: Callable[[], Latencies]) -> Latencies:
    """The least disturbed of a few measurements; one is enough where it was not disturbed.

    The choice looks at spread and noise floor alone, never at the speed-up.
    """
    tries: list[Latencies] = []
    for _ in range(MOST_TRIES):
        tries.append(measure())
        if tries[-1].disturbance <= 1:
            break
    return min(tries, key=lambda entry: entry.disturbance)


def time_models(
    models: Mapping[str, nn.Module], x: Tensor, *, repeats: int = 15, warmup: int = 3
) -> Latencies:
    """Latency of a forward pass of x `[B, C, H, W]` for each model, timed in turns (see `time_calls`)."""
    for model in models.values():
        model.eval()
    calls = {name: functools.partial(model, x) for name, model in models.items()}
    return time_calls(calls, repeats=repeats, warmup=warmup, on_gpu=x.device.type == "cuda")


@torch.inference_mode()
def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 15,
    warmup: int = 3,
    on_gpu: bool = False,
    engines: bool = False,
) -> Latencies:
    """Latency of each call, timed in turns.

    Turns (model A, model B, A, B, ...) let drift of the machine hit all alike; compare only within one call.
    On a GPU the passes are replayed as CUDA graphs, as when layouts are chosen: launching small kernels one by one
    from Python takes longer than they run. Of `engines` each timed call follows some of its own that are not
    (`SETTLING`), and the clock is the one on the wall: they may compute in threads of their own.
    """
    from prunebench_kernels.measured import Timing, time_in_turns

    for _ in range(warmup):
        for call in calls.values():
            call()
    if on_gpu:
        wall, clock = time_in_turns(calls, repeats), "CUDA events"
        shown = wall
    else:
        wall, busy = _time_by_two_clocks(calls, repeats, settled=engines)
        alone = torch.get_num_threads() == 1 and time.get_clock_info("thread_time").resolution < FINE
        shown, clock = (busy, CPU_TIME) if alone and not engines else (wall, WALL)
    by_wall, times = (
        {name: Percentiles(**asdict(Timing.of(values))) for name, values in samples.items()}
        for samples in (wall, shown)
    )
    return Latencies(times, clock, max(map(spread_of, by_wall.values())))


def _time_by_two_clocks(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, settled: bool
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of each call in turns, once more before it is timed if `settled`: on the wall, and of CPU time."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if settled:
                _settle(call)
            begun, spent = time.perf_counter(), time.thread_time()
            call()
            busy[name].append((time.thread_time() - spent) * 1e3)
            wall[name].append((time.perf_counter() - begun) * 1e3)
    return wall, busy


def _settle(call: Callable[[], object]) -> None:
    """Run a call until what another engine left is gone: after a few times, or once if it is long."""
    begun = time.perf_counter()
    for _ in range(SETTLING):
        call()
        if time.perf_counter() - begun > LONGEST_SETTLING:
            break


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
