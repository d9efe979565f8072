"""Measured choices: candidates timed in turns, and one cache a machine of what was chosen.

The first candidate (dense, torch) stays unless another clearly beats it. A choice is remembered by what decides it
(operation, shapes, dtype, versions), in one JSON file a device in the user's cache folder: the only place where
anything that was measured decides what runs.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.fx

from prunebench_kernels.dispatch import ArgumentError

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
OPERATION = Effort(screen=3, confirm=7)


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


_replays: ContextVar[dict[Callable[[], object], Callable[[], None]] | None] = ContextVar(
    "replays", default=None
)
"""Each call's replay, while a choice is made: a capture waits for the GPU and empties its allocator, so that it is not
repeated in each round."""


@contextlib.contextmanager
def _capturing_once() -> Iterator[None]:
    before = _replays.set({})
    try:
        yield
    finally:
        _replays.reset(before)


@_capturing_once()
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


def time_as_called(calls: Calls, repeats: int) -> Samples:
    """Milliseconds from Python's call to the end of the GPU's work: what a user waits for who calls it alone.

    The host's time counts wherever it is the longer one; up to ten calls, of 2 ms in all, follow each other between
    two waits.
    """
    samples: Samples = {name: [] for name in calls}
    runs: dict[str, int] = {}

    def sample(call: Callable[[], object], count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / count

    for _ in range(repeats):
        for name, call in calls.items():
            if name not in runs:
                runs[name] = max(1, min(RUNS_PER_GRAPH, int(2.0 / max(sample(call, 1), 1e-3))))
            samples[name].append(sample(call, runs[name]))
    return samples


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
    known = _replays.get()
    if known is not None and call in known:
        return known[call]
    graph = capture(call, RUNS_PER_GRAPH)

    def eager() -> None:
        for _ in range(RUNS_PER_GRAPH):
            call()

    replay = eager if graph is None else graph.replay
    if known is not None:
        known[call] = replay
    return replay


def key_of(**facts: Any) -> str:
    """A choice's key: canonical JSON of what decides it, readable in the cache file."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


# --- CUDA graphs ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch's operations on the CPU, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def capture(call: Callable[[], object], repeats: int = 1) -> torch.cuda.CUDAGraph | None:
    """A CUDA graph of `repeats` calls, or None if the call cannot be captured: it waits for the GPU, say.

    The call must have run before: what it compiles or tunes at first may wait.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    usable = generator.clone_state()
    try:
        with torch.cuda.stream(stream), waiting_raises():
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        # The state that a broken capture holds takes no more numbers ("Offset increment outside graph capture").
        generator.graphsafe_set_state(usable)
        return None
    return graph


@contextlib.contextmanager
def waiting_raises() -> Iterator[None]:
    """What waits for the GPU raises RuntimeError here, before it could break a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # Once a process, torch warns that this mode is a prototype.
        warnings.filterwarnings("ignore", "Synchronization debug mode", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


# --- the cache -----------------------------------------------------------------------------------------------

VARIABLE = "PRUNEBENCH_CACHE"
FORMAT = 1
MAX_ENTRIES = 2000
"""The oldest choices are forgotten beyond this; an entry takes about half a kilobyte."""


class CacheWarning(UserWarning):
    """The file of choices could not be read or written; choices are measured anew."""


class Choices:
    """Decisions by key, in memory, and in `path` unless it is None.

    Safe for concurrent writers: a file is replaced as a whole, after merging what others wrote; at worst a choice
    is lost and measured again. A damaged file is ignored with a CacheWarning and rewritten.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, Decision] = {}
        self._stamp: tuple[int, int] | None = None

    @staticmethod
    def in_memory() -> Choices:
        return Choices(None)

    def get(self, key: str) -> Decision | None:
        """The decision remembered for the key, `cached`, or None."""
        if key not in self._known and self.path is not None and self._stamp_of_file() != self._stamp:
            self._known = {**self._read(), **self._known}
        return self._known.get(key)

    def put(self, key: str, decision: Decision) -> None:
        """Remember a decision, here and on disk."""
        entry = Decision.from_json(decision.to_json())
        self._known.pop(key, None)
        self._known[key] = entry
        if self.path is None:
            return
        # What this process knows is written anew: another writer may have replaced the file without it.
        merged = {**self._read(), **self._known}
        merged[key] = merged.pop(key)
        self._known = merged
        newest = list(merged.items())[-MAX_ENTRIES:]
        content = {"format": FORMAT, "choices": {name: value.to_json() for name, value in newest}}
        try:
            _replace(self.path, json.dumps(content, indent=0))
            self._stamp = self._stamp_of_file()
        except OSError as error:
            self._warn(f"cannot write {self.path}: {error}")

    def _read(self) -> dict[str, Decision]:
        assert self.path is not None
        self._stamp = self._stamp_of_file()
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                return {}
            return {key: Decision.from_json(value) for key, value in content["choices"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._warn(f"{self.path} is damaged ({type(error).__name__}: {error}); it will be rewritten")
            return {}

    def _stamp_of_file(self) -> tuple[int, int] | None:
        assert self.path is not None
        with contextlib.suppress(OSError):
            facts = self.path.stat()
            return facts.st_mtime_ns, facts.st_ino
        return None

    def _warn(self, message: str) -> None:
        warnings.warn(message, CacheWarning, stacklevel=4)


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole: readers see the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """PRUNEBENCH_CACHE, or `prunebench` in the platform's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "prunebench"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunebench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "prunebench" / "cache"
    return Path.home() / ".cache" / "prunebench"


@functools.cache
def _choices_in(path: Path) -> Choices:
    return Choices(path)


def choices_of(device: torch.device) -> Choices:
    """The choices of this device on disk."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", device_name(device)).strip("-").lower()
    return _choices_in(cache_folder() / f"choices-{slug}.json")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with torch's number of threads: timings hold for these."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown processor"


@functools.cache
def versions() -> dict[str, str]:
    """What a timing depends on besides the device: torch, Triton, CUDA, and this package down to its source."""
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "source": _source_hash()}
    for package in ("triton", "prunebench"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def precision() -> tuple[str, str, bool]:
    """What torch is allowed in float32 products and convolutions, and whether it searches for algorithms."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]


def _source_hash() -> str:
    """Of this package's source: a kernel that changed is measured anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


# --- deciding ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measuring:
    """How `auto` measures: how long, with which timer, and where choices are kept (None: this device's file)."""

    effort: Effort = field(default_factory=Effort)
    choices: Choices | None = None
    timer: Timer | None = None

    def choices_on(self, device: torch.device) -> Choices:
        return self.choices if self.choices is not None else choices_of(device)

    def decide(self, key: str, calls: Calls, device: torch.device) -> Decision:
        """The remembered decision, if it names one of the calls, or a measured one, which is remembered."""
        choices = self.choices_on(device)
        known = choices.get(key)
        if known is not None and known.winner in calls:
            return known
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            decision = choose(calls, timer=self.timer, effort=self.effort)
        choices.put(key, decision)
        return decision


def decide_operation(
    operation: str, shape_class: tuple[Any, ...], calls: Callable[[], Calls] | None, device: torch.device,
    choices: Choices | None = None,
) -> Decision | None:  # fmt: skip
    """The decision for an operation's shape class on this device: remembered, or measured now, as called.

    `calls` gives the candidates, torch first; None: nothing can be measured here, and None is returned where nothing
    is remembered.
    """
    measuring = Measuring(OPERATION, choices, time_as_called)
    key = key_of(
        operation=operation,
        device=device_name(device),
        shape=shape_class,
        precision=precision(),
        versions=versions(),
    )
    known = measuring.choices_on(device).get(key)
    if known is not None or calls is None:
        return known
    with torch.no_grad():
        return measuring.decide(key, calls(), device)
