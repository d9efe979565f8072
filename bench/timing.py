"""Timing for the benchmarks: candidates in turns, a GPU synchronised, L2 hot or flushed, medians and percentiles.

A GPU is timed with events. Calls of microseconds are captured in a CUDA graph where they can be, because the host
cannot launch them as fast as they run; `method` says what was done. Compare times of one call only.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from prunebench_kernels.measured import capture

Call = Callable[[], object]
Clock = Callable[[], float]

FLUSH_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}
"""Far more than the 50 MB of an H100's or H200's L2; about the last-level cache that a few processor cores share."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 500
GRAPH_SPAN_MS = 0.5
"""A hot graph repeats its call until it takes about this long, so that one launch is under 1 % of it."""


@dataclass(frozen=True)
class CallTiming:
    """Milliseconds of one call over `rounds` rounds. `method`: `cuda-graph`, `cuda-events` or `host-clock`."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    rounds: int
    method: str
    l2: str

    @classmethod
    def of(cls, samples: Sequence[float], method: str, l2: str) -> CallTiming:
        """Percentiles of the samples, in milliseconds."""
        marks = (quantile(samples, share) for share in (0.2, 0.5, 0.8))
        return cls(*marks, len(samples), method, l2)

    def to_dict(self) -> dict[str, float | int | str]:
        return asdict(self)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0-1) of the values lie, interpolated; nan of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def synchronise(device: torch.device) -> None:
    """Wait for a GPU; a CPU needs no waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synchronised(call: Call, device: torch.device) -> Call:
    """The call, returning when its work is done: what a host-clock benchmark must time."""

    def waiting() -> object:
        result = call()
        synchronise(device)
        return result

    return waiting


def flusher(device: torch.device, size: int | None = None) -> Call:
    """A call that overwrites `size` bytes, so that nothing of the inputs stays in the cache.

    It inverts bits: that kernel's name tells it from everything that is timed.
    """
    buffer = torch.zeros((size or FLUSH_BYTES[device.type]) // 4, dtype=torch.int32, device=device)
    return buffer.bitwise_not_


@dataclass(frozen=True)
class _Prepared:
    """What one sample runs: `run` makes `repeats` calls."""

    run: Call
    repeats: int
    method: str


def _host_sample(prepared: _Prepared, flush: Call | None, clock: Clock) -> float:
    if flush is not None:
        flush()
    start = clock()
    prepared.run()
    return (clock() - start) * 1e3 / prepared.repeats


def _event_sample(prepared: _Prepared, flush: Call | None) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if flush is not None:
        flush()
    begin.record()
    prepared.run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / prepared.repeats


def _prepare(call: Call, device: torch.device, *, graph: bool, cold: bool) -> _Prepared:
    if device.type != "cuda":
        return _Prepared(call, 1, "host-clock")
    events = _Prepared(call, 1, "cuda-events")
    if not graph or capture(call) is None:
        return events
    repeats = 1 if cold else max(1, min(200, round(GRAPH_SPAN_MS / max(_event_sample(events, None), 1e-3))))
    captured = capture(call, repeats)
    return events if captured is None else _Prepared(captured.replay, repeats, "cuda-graph")


def time_calls(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    seconds: float = 1.0,
    cold: bool = False,
    graph: bool = True,
    rounds: int | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, CallTiming]:
    """Time every call in turns for about `seconds` in all, or for `rounds` rounds.

    Each is called twice first (Triton and torch.compile compile then). `cold` overwrites the cache before each
    sample; `graph` lets short GPU work replay from a CUDA graph, without it the host's launches count too.
    """
    for call in calls.values():
        call()
        call()
    synchronise(device)
    prepared = {name: _prepare(call, device, graph=graph, cold=cold) for name, call in calls.items()}
    flush = flusher(device) if cold else None

    def sample(one: _Prepared) -> float:
        return _host_sample(one, flush, clock) if device.type != "cuda" else _event_sample(one, flush)

    samples: dict[str, list[float]] = {name: [] for name in prepared}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        while rounds is None or len(next(iter(samples.values()))) < rounds:
            for name, one in prepared.items():
                samples[name].append(sample(one))
            done = len(samples[name])
            if rounds is None and (
                done >= MOST_ROUNDS or (done >= LEAST_ROUNDS and clock() - start >= seconds)
            ):
                break
    finally:
        if collecting:
            gc.enable()
    l2 = "cold" if cold else "hot"
    return {name: CallTiming.of(values, prepared[name].method, l2) for name, values in samples.items()}


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark that prints medians side by side: threads, rounds, and which clock."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time: for a busy machine"
    )
    return parser


def chosen_clock(options: argparse.Namespace) -> tuple[str, Clock]:
    """What `--cpu-time` says: `processor` or `wall`, and that clock."""
    return ("processor", time.process_time) if options.cpu_time else ("wall", time.perf_counter)


FLUSH_KERNEL = "bitwise_not"


def kernel_sums(events: Sequence[tuple[float, float, str]]) -> list[float]:
    """Milliseconds of GPU work between flushes, from (start, duration, name) in microseconds; each call's own.

    Work before the first flush belongs to no call.
    """
    sums: list[float] = []
    for _, duration, name in sorted(events):
        if FLUSH_KERNEL in name:
            sums.append(0.0)
        elif sums:
            sums[-1] += duration / 1e3
    return sums


def time_kernels(call: Call, device: torch.device, *, rounds: int = 20) -> CallTiming | None:
    """The time that the GPU works on a call, with a cold L2, without launches and waiting; None if it is not told.

    The sum of its kernels' and copies' durations, from torch's profiler.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    flush = flusher(device)
    call()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            flush()
            call()
        synchronise(device)
    events = [
        (float(event.time_range.start), float(event.time_range.elapsed_us()), str(event.name))
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    values = kernel_sums(events)
    if len(values) != rounds or not all(values):
        return None
    return CallTiming.of(values, "kernels", "cold")


def compiled(function: Callable[..., object], *, mode: str | None = None) -> Callable[..., object]:
    """torch.compile of the function for its exact shapes: the baseline a kernel must beat, not a straw man.

    By default torch gives up after eight shapes of one function and runs it uncompiled, with no more than a log
    line: a baseline over many layers would be eager from the ninth on.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    return torch.compile(function, dynamic=False, mode=mode)
