"""Stages of `bench/gpu.py`: named items with results on disk, run until the deadline, taken up where they stopped.

A stage is one JSON file, written again after every item (a temporary file, then a rename):

    schema_version, stage, fingerprint (what results depend on), complete, session (that wrote it),
    running (the item under way, or null), pending (names not reached),
    items: name -> {status, reason, seconds, session, result}

`status` is `ok`, `failed` (reason: the traceback; tried again by the next session) or `not measured` (reason:
what is missing). A file whose fingerprint differs is begun anew: its numbers are of another machine or source.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SCHEMA_VERSION = 1
NO_CUDA = "not measured: no CUDA device"
BROKEN_DEVICE = 75
"""Exit code of a stage whose GPU context an error destroyed: it goes on in a new process (EX_TEMPFAIL)."""

Result = dict[str, Any]


class Deadline:
    """The end of the session, by a clock that counts seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.end = clock() + seconds

    def remaining(self) -> float:
        return self.end - self.clock()


@dataclass
class Context:
    """What every item may use. Without CUDA shapes are reduced: `sizes(large, small)` picks."""

    device: torch.device
    out: Path
    deadline: Deadline
    session: str
    fingerprint: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    compiles: bool = True
    """Whether torch.compile's baselines run."""
    only_item: str | None = None
    """The one item that this process runs, if it was started for one."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def sizes(self, large: Any, small: Any) -> Any:
        """The full size on a GPU, the reduced one on a CPU."""
        return large if self.cuda else small

    def generator(self) -> torch.Generator:
        """A generator on the device, seeded the same for every item."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def log(self, line: str) -> None:
        """Append to log.txt and print."""
        stamped = f"[{self.deadline.remaining():6.0f} s left] {line}"
        print(stamped, flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(stamped + "\n")


@dataclass(frozen=True)
class Item:
    """One measurement: `run` returns its result. `seconds` is what it is expected to take on the GPU."""

    name: str
    run: Callable[[Context], Result]
    seconds: float = 5.0
    needs_cuda: bool = False


@dataclass(frozen=True)
class Stage:
    """Items that share a file, most valuable first. A stage that is not `kept` is made anew every time."""

    name: str
    items: Callable[[Context], Sequence[Item]]
    kept: bool = True

    def path(self, out: Path) -> Path:
        return out / f"{self.name}.json"


def read_stage(stage: Stage, context: Context) -> dict[str, Any]:
    """The stage's results so far; empty ones if there are none, or only of another machine or source."""
    empty: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "stage": stage.name,
        "fingerprint": context.fingerprint,
        "complete": False,
        "session": context.session,
        "running": None,
        "pending": [],
        "items": {},
    }
    path = stage.path(context.out)
    if not stage.kept or not path.exists():
        return empty
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        context.log(f"{path.name}: cannot be read; begun anew")
        return empty
    if stored.get("schema_version") != SCHEMA_VERSION or stored.get("fingerprint") != context.fingerprint:
        context.log(f"{path.name}: of another machine or source; begun anew")
        return empty
    return stored


def write_json(path: Path, values: object) -> None:
    """Write whole or not at all: a temporary file, then a rename."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(values, indent=1, allow_nan=False, default=str) + "\n")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """The value with nan and infinities as None, for JSON."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def is_done(stored: dict[str, Any] | None, context: Context) -> bool:
    """Whether an item needs no run: it is ok, cannot be measured here, or failed in this very session."""
    if stored is None:
        return False
    if stored["status"] == "not measured":
        return not context.cuda
    return bool(stored["status"] == "ok" or stored["session"] == context.session)


def run_stage(stage: Stage, context: Context) -> dict[str, Any]:
    """Run what is not done and fits into the remaining time. Returns the stage's results."""
    results = read_stage(stage, context)
    path = stage.path(context.out)
    items = [item for item in stage.items(context) if context.only_item in (None, item.name)]
    if results["running"] is not None:
        items = after_interruption(items, results, context)
    results["session"] = context.session
    for item in items:
        if is_done(results["items"].get(item.name), context):
            continue
        if item.needs_cuda and not context.cuda:
            record(results, item.name, "not measured", NO_CUDA, context, 0.0)
            continue
        if context.deadline.remaining() < item.seconds:
            continue
        results["running"] = item.name
        write_json(path, results)
        run_item(item, results, context)
        write_json(path, results)
        if device_is_broken(context):
            context.log(f"{stage.name}: the GPU context is destroyed; going on in a new process")
            raise SystemExit(BROKEN_DEVICE)
    names = [item.name for item in items]
    results["pending"] = [name for name in names if name not in results["items"]]
    results["complete"] = not results["pending"] and all(
        results["items"][name]["status"] != "failed" for name in names
    )
    write_json(path, results)
    if results["pending"]:
        context.log(f"{stage.name}: {len(results['pending'])} of {len(names)} items left for the next call")
    return results


def after_interruption(items: list[Item], results: dict[str, Any], context: Context) -> list[Item]:
    """The items in the order for a process that finds another one ended inside an item.

    Within a session that item crashed: it has failed. Of an earlier session, which was killed, it runs again, but
    last: it may be what took all the time.
    """
    name = results["running"]
    if results.get("session") == context.session:
        record(results, name, "failed", "the process ended while it ran", context, 0.0)
        return items
    results["running"] = None
    return sorted(items, key=lambda item: item.name == name)


def run_item(item: Item, results: dict[str, Any], context: Context) -> None:
    """Run one item and record how it ended."""
    start = context.deadline.clock()
    try:
        result, status, reason = finite(item.run(context)), "ok", None
        if result.get("passed") is False:
            status, reason = "failed", "wrong results:\n" + "\n".join(result["wrong"])
    except Exception as error:  # one broken item must not stop the others; its traceback is its record
        result, status = None, "failed"
        reason = "".join(traceback.format_exception(error, limit=-6))
    seconds = context.deadline.clock() - start
    record(results, item.name, status, reason, context, seconds, result)
    line = f"{results['stage']}: {item.name}: {status} in {seconds:.1f} s"
    context.log(line if reason is None else f"{line}: {reason.strip().splitlines()[-1]}")


def record(
    results: dict[str, Any],
    name: str,
    status: str,
    reason: str | None,
    context: Context,
    seconds: float,
    result: Result | None = None,
) -> None:
    """Put an item's record into the results."""
    results["running"] = None
    results["items"][name] = {
        "status": status,
        "reason": reason,
        "seconds": round(seconds, 3),
        "session": context.session,
        "result": result,
    }


def device_is_broken(context: Context) -> bool:
    """Whether an earlier error left the GPU context unusable (illegal address and the like)."""
    if not context.cuda:
        return False
    try:
        torch.cuda.synchronize(context.device)
        torch.ones(1, device=context.device).add_(1)
        torch.cuda.synchronize(context.device)
    except RuntimeError:
        return True
    return False
