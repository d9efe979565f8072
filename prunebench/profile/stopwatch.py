"""Stopwatch for calls on a CPU or GPU: in turns, with a hot and with a cold cache."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from prunebench_kernels.measured import Timing

from prunebench.profile.results import LatencyPercentiles

Call = Callable[[], object]
SPIN_CYCLES, CYCLES_PER_SECOND, SPIN_SHARE, LONGEST_SPIN = 400_000, 2e9, 1.5, 0.05
"""GPU clock cycles (at least 0.2 ms) that the GPU waits before a timed call, and how many at most in a second; the
wait is this share of the time that the host needs to launch the call, so that launches are not timed, and ends after
so many seconds."""
LEAST_REPEATS, PATIENCE = 3, 0.25
FALLBACK_CACHE = 32 << 20
"""Bytes taken for the last-level cache where the system does not tell."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def cache_bytes(device: torch.device, caches: Path = CACHES) -> int:
    """Size of the last-level cache: L2 of a GPU, the highest level that the system lists for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for path in sorted(caches.glob("index*")):
        try:
            level, size = (path / "level").read_text(), (path / "size").read_text().strip()
            sizes.append((int(level), int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]))
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return max(sizes)[1] if sizes else FALLBACK_CACHE


class Stopwatch:
    """Times calls on a device; `flush` empties the cache by writing twice its size."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed_bytes = 2 * cache_bytes(device)
        self._buffer: torch.Tensor | None = None

    def flush(self) -> None:
        if self._buffer is None:
            self._buffer = torch.empty(self.flushed_bytes, dtype=torch.uint8, device=self.device)
        self._buffer.fill_(1)

    def time(self, call: Call, *, cold: bool, launches: bool = False) -> float:
        """Milliseconds of one call after the cache was flushed, or after the same call (hot).

        On a GPU without the host's launches, unless they are asked for; a CPU has none.
        """
        if self.device.type == "cuda":
            return self._time_gpu(call, cold, launches)
        return self._time_cpu(call, cold)

    def _time_cpu(self, call: Call, cold: bool) -> float:
        self.flush() if cold else call()
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def _time_gpu(self, call: Call, cold: bool, launches: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun = time.perf_counter()
        call()
        cycles = spin_cycles(time.perf_counter() - begun)
        if cold:
            self.flush()
        torch.cuda.synchronize() if launches else torch.cuda._sleep(cycles)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def spin_cycles(launching: float) -> int:
    """How long a GPU must wait for a host that needs so many seconds to launch the next call, in clock cycles."""
    return max(SPIN_CYCLES, round(min(SPIN_SHARE * launching, LONGEST_SPIN) * CYCLES_PER_SECOND))


@torch.inference_mode()
def interleaved(
    calls: Mapping[str, Call],
    stopwatch: Stopwatch,
    *,
    repeats: int,
    cold: bool,
    launches: bool = False,
    until: float = math.inf,
) -> dict[str, LatencyPercentiles]:
    """Milliseconds of each call, timed in turns (A, B, A, B, ...); each must have run before.

    A call that has taken PATIENCE seconds is timed no further, but at least LEAST_REPEATS times. At the monotonic
    time `until` all end, and those without any time are left out; the first has one at least.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if len(samples[name]) >= LEAST_REPEATS and sum(samples[name]) > PATIENCE * 1e3:
                continue
            if time.monotonic() >= until and any(samples.values()):
                break
            samples[name].append(stopwatch.time(call, cold=cold, launches=launches))
    return {name: percentiles(values) for name, values in samples.items() if values}


def percentiles(values: Sequence[float]) -> LatencyPercentiles:
    """The 20th, 50th and 80th percentile, between values linearly."""
    timing = Timing.of(list(values))
    return LatencyPercentiles(timing.p20, timing.p50, timing.p80, len(values))


def fastest(call: Call, stopwatch: Stopwatch, trials: int, patience: float = 0.5) -> float:
    """The least seconds of a few calls: what the machine can do when nothing else runs.

    There are fewer trials where they have taken `patience` seconds, but always one.
    """
    begun, best = time.monotonic(), math.inf
    for _ in range(trials):
        best = min(best, stopwatch.time(call, cold=False) / 1e3)
        if time.monotonic() - begun > patience:
            break
    return best
