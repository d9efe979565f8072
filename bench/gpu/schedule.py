"""The order of a trip: items with the seconds that they are expected to take, begun while those are left."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.archive import LOG, Archive

Result = dict[str, Any]
TARGET, CHECK, LAYER, TUNING = "target", "check", "layer", "tuning"
SLOWEST, FASTEST = 3.0, 0.5
"""Bounds of the pace: what items took so far over what was expected of them."""


@dataclass
class Context:
    """What an item may use. Without a GPU shapes are reduced: `sizes(large, small)` picks."""

    device: Any
    is_full: bool
    backend: str | None = "triton"
    compiles: bool = True
    """Whether the baselines of torch.compile run."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What several items use, built once: see `once`."""

    @property
    def on_gpu(self) -> bool:
        return bool(self.device.type == "cuda")

    def sizes(self, large: Any, small: Any) -> Any:
        return large if self.is_full else small

    def once(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self.shared:
            self.shared[name] = build()
        return self.shared[name]


Call = Callable[[], object]


@dataclass(frozen=True)
class Item:
    """One measurement. `seconds`: what it is expected to take on an H100; `part`: what it belongs to.

    `kernels` gives the calls of our kernels that it makes, for a Triton cache made without a GPU. A result with
    `failed` says why the item failed though it came to its end.
    """

    name: str
    run: Callable[[Context], Result]
    seconds: float
    part: str = TARGET
    kernels: Callable[[Context], Iterable[Call]] | None = None
    needs_gpu: bool = False

    @property
    def limit(self) -> float:
        """Seconds after which its process is ended."""
        return max(3 * self.seconds, self.seconds + 45)


class Deadline:
    """The end of the trip, by a clock that counts seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self.end - self.clock()


class Log:
    """Lines to the screen and to log.txt, each with the seconds that are left; without a folder, to nowhere."""

    def __init__(self, folder: Path | None, deadline: Deadline) -> None:
        self.path, self.deadline = folder and folder / LOG, deadline

    def __call__(self, line: str) -> None:
        if self.path is None:
            return
        stamped = f"[{self.deadline.left:5.0f} s left] {line}"
        print(stamped, flush=True)
        with self.path.open("a") as file:
            file.write(stamped + "\n")


def run_items(
    items: Sequence[Item],
    context: Context,
    archive: Archive,
    log: Log,
    *,
    run_id: str,
    before: Callable[[Item], None] = lambda item: None,
    after: Callable[[Item], bool] = lambda item: True,
) -> list[str]:
    """Run what is not done and fits into the time left, in order; the names of what ran.

    Expectations are corrected by the pace so far. The archive is written before and after each item; `after(item)`
    then follows, and False ends the loop (a GPU that no longer answers).
    """
    ran: list[str] = []
    deadline = log.deadline
    expected = spent = 30.0  # a start as if one item had gone as expected: one quick item says little
    for item in items:
        known = archive.item(item.name)
        if known.get("status") == "ok" or known.get("run") == run_id:
            continue
        if item.needs_gpu and not context.on_gpu:
            continue
        pace = min(SLOWEST, max(FASTEST, spent / expected))
        if item.seconds * pace > deadline.left:
            log(f"{item.name}: left out, it would take about {item.seconds * pace:.0f} s")
            continue
        before(item)
        archive.put(item.name, {"status": "running", "run": run_id, "part": item.part})
        start = deadline.clock()
        record = _record(item, context)
        seconds = deadline.clock() - start
        expected, spent = expected + item.seconds, spent + seconds
        archive.put(item.name, {**record, "seconds": round(seconds, 2), "run": run_id, "part": item.part})
        reason = f": {record['reason'].splitlines()[-1]}" if record["reason"] else ""
        log(f"{item.name}: {record['status']} in {seconds:.1f} s (expected {item.seconds:g}){reason}")
        ran.append(item.name)
        if not after(item):
            break
    return ran


def _record(item: Item, context: Context) -> dict[str, Any]:
    try:
        result = item.run(context)
    except Exception:  # one item must not end the trip
        return {"status": "failed", "reason": traceback.format_exc(limit=-8).strip(), "result": None}
    failed = result.pop("failed", "")
    return {"status": "failed" if failed else "ok", "reason": failed, "result": result}


@contextlib.contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds: torch.compile must not eat the trip."""

    def ring(signum: int, frame: object) -> None:
        raise TimeoutError(f"ended after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class FakeClock:
    """Seconds that pass only when told: a schedule is rehearsed with it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


START_SECONDS = 22.0
"""Imports, a CUDA context, the unpacked cache and the ceilings, before the first item."""
