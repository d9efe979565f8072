"""Choice by measurement: candidates are timed in turns, the first one (dense) wins unless another clearly beats it.

A choice is remembered by what decides it (device, operation, shapes, dtype, mask fingerprint, versions), in one
JSON file per device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.fx

from prunebench_kernels import graphs
from prunebench_kernels.errors import ArgumentError

Calls = Mapping[str, Callable[[], object]]
Samples = dict[str, list[float]]

GAIN = 0.97
"""A candidate must need less than this share of dense's median time, and its p80 must lie below that median.

Medians of equal work, timed in turns on two shared cores, differed by up to 2 %. Wrongly taking a layout costs
time at every call; wrongly refusing one loses at most these 3 %.
"""
HOPELESS = 3.0
"""A candidate whose first timed call takes this many times the fastest's is timed no further."""


class Timer(Protocol):
    def __call__(self, calls: Calls, repeats: int) -> Samples:
        """Milliseconds of `repeats` runs of each call, taken in turns."""


@dataclass(frozen=True)
class Effort:
    """Timed runs of each candidate when all are compared (`screen`), and of dense and the best one (`confirm`)."""

    screen: int = 5
    confirm: int = 15


QUICK = Effort(screen=2, confirm=5)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    p20: float
    p50: float
    p80: float

    @staticmethod
    def of(samples: list[float]) -> Timing:
        """Percentiles, linear between order statistics."""
        marks = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        return Timing(*torch.tensor(samples, dtype=torch.float64).quantile(marks).tolist())


@dataclass(frozen=True)
class Decision:
    """The name of the chosen candidate, why, and what was measured or refused (candidate to reason)."""

    winner: str
    reason: str
    timings: Mapping[str, Timing] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    cached: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"cached": False}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Decision:
        """Read a stored decision. Raises ValueError, TypeError, KeyError or AttributeError if it is none."""
        timings = {str(name): Timing(**marks) for name, marks in values["timings"].items()}
        numbers = [mark for timing in timings.values() for mark in asdict(timing).values()]
        winner, reason = values["winner"], values["reason"]
        if not (isinstance(winner, str) and isinstance(reason, str) and all(map(_is_number, numbers))):
            raise ValueError("not a decision")
        refused = {str(name): str(why) for name, why in values["refused"].items()}
        return Decision(winner, reason, timings, refused, cached=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def choose(calls: Calls, *, timer: Timer | None = None, effort: Effort | None = None) -> Decision:
    """Time the candidates and decide. The first call is dense, the guard: it must run; others may fail.

    All are timed in turns; then the fastest and dense are timed anew, so that the best of many lucky samples
    does not decide. Raises ArgumentError without candidates, and whatever dense raises.
    """
    if not calls:
        raise ArgumentError("calls: want at least one candidate")
    guard = next(iter(calls))
    timer, effort = timer or time_in_turns, effort or Effort()
    alive, refused = _that_run(calls)
    if len(alive) == 1:
        return Decision(guard, "no other candidate runs" if refused else "the only candidate", {}, refused)
    first = {name: values[-1] for name, values in timer(alive, 1).items()}
    limit = HOPELESS * min(first.values())
    timings = {name: Timing.of([value]) for name, value in first.items()}
    contenders = {name: call for name, call in alive.items() if name == guard or first[name] <= limit}
    if len(contenders) > 1:
        timings |= {name: Timing.of(values) for name, values in timer(contenders, effort.screen).items()}
    best = min(contenders, key=lambda name: timings[name].p50)
    if best == guard:
        return Decision(guard, f"{guard} was the fastest", timings, refused)
    final = timer({guard: calls[guard], best: calls[best]}, effort.confirm)
    timings |= {name: Timing.of(values) for name, values in final.items()}
    winner, reason = _verdict(guard, best, timings)
    return Decision(winner, reason, timings, refused)


def _that_run(calls: Calls) -> tuple[Calls, dict[str, str]]:
    """Run every candidate once (compilation and first-touch happen here); those that raise are refused."""
    alive, refused = {}, {}
    for position, (name, call) in enumerate(calls.items()):
        try:
            call()
            alive[name] = call
        except Exception as error:  # a candidate that cannot run must not stop the others
            if position == 0:
                raise
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return alive, refused


def _verdict(guard: str, best: str, timings: Mapping[str, Timing]) -> tuple[str, str]:
    dense, other = timings[guard], timings[best]
    ratio = dense.p50 / other.p50
    if other.p50 < GAIN * dense.p50 and other.p80 < dense.p50:
        return best, f"{ratio:.2f}x as fast as {guard}"
    if ratio > 1:
        return guard, f"{best} was {ratio:.2f}x as fast, within the noise of {guard}"
    return guard, f"{best} came closest, {ratio:.2f}x as fast as {guard}"


def time_in_turns(calls: Calls, repeats: int) -> Samples:
    """The timer of this machine: CUDA graphs between events if the first call runs on a GPU, a clock otherwise."""
    if torch.cuda.is_available() and _runs_on_gpu(next(iter(calls.values()))):
        return _time_on_gpu(calls, repeats)
    samples: Samples = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def _runs_on_gpu(call: Callable[[], object]) -> bool:
    result: Any = call()
    outputs: list[Any] = []
    torch.fx.node.map_aggregate(result, outputs.append)
    return any(getattr(output, "is_cuda", False) for output in outputs)


RUNS_PER_GRAPH = 10


def _time_on_gpu(calls: Calls, repeats: int) -> Samples:
    """Milliseconds per call. A graph of ten calls hides launch overhead, which would rank kernels of microseconds.

    What cannot be captured runs eagerly, ten calls between two events, like the others.
    """
    replays = {name: _captured(call) for name, call in calls.items()}
    samples: Samples = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, replay in replays.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            if turn:
                samples[name].append(start.elapsed_time(end) / RUNS_PER_GRAPH)
    return samples


def _captured(call: Callable[[], object]) -> Callable[[], None]:
    graph = graphs.capture(call, RUNS_PER_GRAPH)
    if graph is not None:
        return graph.replay

    def eager() -> None:
        for _ in range(RUNS_PER_GRAPH):
            call()

    return eager


def key_of(**facts: Any) -> str:
    """A choice's key: canonical JSON of what decides it, readable in the cache file."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)
