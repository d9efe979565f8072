"""Times of calls in turns, with a hot and with a cold cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from prunebench.record import Percentiles

Call = Callable[[], object]
SPIN_CYCLES = 400_000
"""GPU clock cycles (about 0.2 ms) that the GPU waits before a timed call, so that launches are not timed."""
LEAST_REPEATS, PATIENCE = 3, 0.5
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

    def time(self, call: Call, *, cold: bool) -> float:
        """Milliseconds of one call after the cache was flushed, or after the same call (hot)."""
        return self._time_gpu(call, cold) if self.device.type == "cuda" else self._time_cpu(call, cold)

    def _time_cpu(self, call: Call, cold: bool) -> float:
        self.flush() if cold else call()
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    def _time_gpu(self, call: Call, cold: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush() if cold else call()
        torch.cuda._sleep(SPIN_CYCLES)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


@torch.inference_mode()
def interleaved(
    calls: Mapping[str, Call], stopwatch: Stopwatch, *, repeats: int, cold: bool
) -> dict[str, Percentiles]:
    """Milliseconds of each call, timed in turns (A, B, A, B, ...) after one turn of warming up.

    A call that has taken PATIENCE seconds is timed no further, but at least LEAST_REPEATS times.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            if len(samples[name]) >= LEAST_REPEATS and sum(samples[name]) > PATIENCE * 1e3:
                continue
            samples[name].append(stopwatch.time(call, cold=cold))
    return {name: percentiles(values) for name, values in samples.items()}


def percentiles(values: Sequence[float]) -> Percentiles:
    """The 20th, 50th and 80th percentile, between values linearly."""
    marks = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return Percentiles(*torch.quantile(torch.tensor(values, dtype=torch.float64), marks).tolist())


def fastest(call: Call, stopwatch: Stopwatch, trials: int) -> float:
    """The least seconds of a few calls: what the machine can do when nothing else runs."""
    call()
    return min(stopwatch.time(call, cold=False) for _ in range(trials)) / 1e3
