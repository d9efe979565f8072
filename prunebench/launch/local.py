"""Worker processes that speak JSON lines: no pickle, no fork of a threaded parent, no main-module guard.

A worker is `python -m prunebench.launch.worker`. It reads a cell a line on standard input and writes events
on standard output; everything that a method prints goes to standard error. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunebench.cells import Cell, Workplace, is_done
from prunebench.errors import StoreError
from prunebench.execute import record_failure
from prunebench.spec import RunSpec
from prunebench.store import Store

BUSY_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell.

    `kind`: `started`, `progress`, `done` (ok, failed or skipped: see `values["status"]`), `busy` (another
    process has it) or `fatal` (the results cannot be written).
    """

    kind: str
    cell: Cell
    worker: int
    values: dict[str, Any] = field(default_factory=dict)


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """A cell as plain JSON values."""
    values = {name: getattr(cell, name) for name in ("task", "method", "dense_id")}
    return {**values, "spec": cell.spec.to_dict(), "facts": dict(cell.facts)}


def cell_from_dict(values: dict[str, Any]) -> Cell:
    """The inverse of `cell_to_dict`."""
    spec, facts = RunSpec.from_dict(values["spec"]), tuple(values["facts"].items())
    return Cell(spec, values["task"], values["method"], values["dense_id"], facts)


def place_to_dict(place: Workplace) -> dict[str, Any]:
    """A workplace as plain JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(place).items()}


def place_from_dict(values: dict[str, Any]) -> Workplace:
    """The inverse of `place_to_dict`."""
    root = values["data_root"]
    return Workplace(
        **values | {"out": Path(values["out"]), "data_root": None if root is None else Path(root)}
    )


class LocalLauncher:
    """Runs cells in `workers` processes; on a GPU machine worker i takes GPU i modulo their number."""

    def __init__(self, workers: int, *, gpus: int = 0) -> None:
        self.workers = workers
        self.gpus = gpus

    def map(self, cells: Sequence[Cell], place: Workplace) -> Iterator[Event]:
        """Run all cells, dense models before what needs them; yields events as they come."""
        waiting = _Queue(cells)
        running: dict[int, Cell] = {}
        inbox: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        crew: dict[int, _Worker] = {}
        try:
            while waiting or running:
                for number in range(self.workers):
                    if number in running or (cell := waiting.take()) is None:
                        continue
                    if number not in crew:
                        crew[number] = _Worker(number, self.gpus, place, inbox)
                    crew[number].send(cell)
                    running[number] = cell
                    yield Event("started", cell, number)
                try:
                    number, message = inbox.get(timeout=0.5)
                except queue.Empty:
                    continue
                cell = running[number]
                if message is None:
                    gone = crew.pop(number)
                    message = {"kind": "died", "reason": gone.epitaph()}
                    gone.stop()
                if message["kind"] != "progress":
                    del running[number]
                if message["kind"] == "busy":
                    waiting.put_back(cell)
                elif message["kind"] == "done":
                    waiting.finish(cell)
                elif message["kind"] == "died":
                    waiting.finish(cell)
                    message = {"kind": "done", **_record_death(cell, place, message["reason"])}
                yield Event(message.pop("kind"), cell, number, message)
        finally:
            for worker in crew.values():
                worker.stop()


class InlineLauncher:
    """Runs cells one after another in this process (for tests and debuggers)."""

    workers = 1

    def map(self, cells: Sequence[Cell], place: Workplace) -> Iterator[Event]:
        """As `LocalLauncher.map`."""
        from prunebench.launch.worker import CellRunner

        runner, waiting = CellRunner(), _Queue(cells)
        while waiting:
            cell = waiting.take()
            if cell is None:
                time.sleep(0.1)
                continue
            yield Event("started", cell, 0)
            message = runner.run(cell, place)
            if message["kind"] == "busy":
                waiting.put_back(cell)
            else:
                waiting.finish(cell)
            yield Event(message.pop("kind"), cell, 0, message)


class _Queue:
    """Cells in order; those whose dense model is still to come, or that another process has, wait."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = list(cells)
        self._not_before: dict[str, float] = {}
        self._open_dense = {cell.dense_id for cell in cells if cell.is_dense}

    def __bool__(self) -> bool:
        return bool(self._cells)

    def take(self) -> Cell | None:
        now = time.monotonic()
        for position, cell in enumerate(self._cells):
            ready = cell.is_dense or cell.dense_id not in self._open_dense
            if ready and self._not_before.get(cell.spec.run_id, 0.0) <= now:
                return self._cells.pop(position)
        return None

    def put_back(self, cell: Cell) -> None:
        self._not_before[cell.spec.run_id] = time.monotonic() + BUSY_PAUSE_SECONDS
        self._cells.append(cell)

    def finish(self, cell: Cell) -> None:
        if cell.is_dense:
            self._open_dense.discard(cell.dense_id)


class _Worker:
    """One worker process and the thread that reads its events."""

    def __init__(
        self, number: int, gpus: int, place: Workplace, inbox: queue.Queue[tuple[int, dict[str, Any] | None]]
    ) -> None:
        environment = dict(os.environ)
        if gpus:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
        else:
            environment.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prunebench.launch.worker", json.dumps(place_to_dict(place))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        self._garbled: str | None = None
        self._reader = threading.Thread(target=self._listen, args=(number, inbox), daemon=True)
        self._reader.start()

    def send(self, cell: Cell) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(cell_to_dict(cell)) + "\n")
            self._process.stdin.flush()

    def _listen(self, number: int, inbox: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = _read_message(line)
            if message is None:
                self._garbled = line
                self._process.kill()
                break
            inbox.put((number, message))
        inbox.put((number, None))

    def epitaph(self) -> str:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if self._garbled is not None:
            return f"the worker process wrote {self._garbled[:80]!a} where events are read; print to standard output"
        hint = " (out of memory? try fewer --workers)" if code == -9 else ""
        hint = " (the method ended it? raise an error to fail a run)" if 0 <= code <= 2 else hint
        return f"the worker process ended with {how}{hint}"

    def stop(self) -> None:
        """End the process: politely if idle, at once if not; within two seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=1.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1.5)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _read_message(line: str) -> dict[str, Any] | None:
    """An event as a worker writes it; None for a line that is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def _record_death(cell: Cell, place: Workplace, reason: str) -> dict[str, Any]:
    """Record a cell whose worker died, unless another process has it or has finished it."""
    store = Store(place.out)
    try:
        with store.lock(cell.spec.run_id, wait=False) as mine:
            if mine and not is_done(cell, store):
                record_failure(cell, place, reason)
    except StoreError as error:
        reason = f"{reason}; {error}"
    return {"status": "failed", "reason": reason, "metrics": {}}
