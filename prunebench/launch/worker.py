"""The worker process: a cell in, events out, until standard input closes or the parent dies."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from prunebench.cells import Cell, Workplace, is_done
from prunebench.errors import StoreError
from prunebench.execute import execute, record_failure
from prunebench.launch.local import cell_from_dict, place_from_dict
from prunebench.measure import TaskData
from prunebench.store import Store
from prunebench.tasks import resolve_task

DRAWS_KEPT = 4
"""Data draws kept in memory: switching between seeds should not load again."""


class CellRunner:
    """Runs cells one by one and keeps the latest data draws."""

    def __init__(self, emit: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._emit = emit
        self._draws: OrderedDict[tuple[str, int], TaskData] = OrderedDict()

    def run(self, cell: Cell, place: Workplace) -> dict[str, Any]:
        """Run a cell under its lock: `busy`, `done` with status, reason and metrics, or `fatal`."""
        store = Store(place.out)
        try:
            with store.lock(cell.spec.run_id, wait=False) as mine:
                if not mine:
                    return {"kind": "busy"}
                record = store.read(cell.spec.run_id) if is_done(cell, store) else self._execute(cell, place)
        except StoreError as error:
            return {"kind": "fatal", "reason": str(error)}
        return {"kind": "done", "status": record.status, "reason": record.reason, "metrics": record.metrics}

    def _execute(self, cell: Cell, place: Workplace) -> Any:
        try:
            data = self._draw(cell, place)
        except Exception as error:
            return record_failure(cell, place, error)
        record = execute(cell, place, data, self._progress if self._emit else None)
        if not data.intact:  # the next run of this draw loads it anew
            del self._draws[cell.task, cell.spec.seed]
        return record

    def _progress(self, phase: str, step: int, steps: int, loss: float) -> None:
        assert self._emit is not None
        self._emit({"kind": "progress", "phase": phase, "step": step, "steps": steps, "loss": loss})

    def _draw(self, cell: Cell, place: Workplace) -> TaskData:
        key = (cell.task, cell.spec.seed)
        if key not in self._draws:
            while len(self._draws) >= DRAWS_KEPT:
                self._draws.popitem(last=False)
            task = resolve_task(cell.task, place.data_root)
            self._draws[key] = TaskData(task, place.data_root, cell.spec.seed, torch.device(place.device))
        self._draws.move_to_end(key)
        return self._draws[key]


def follow_parent() -> None:
    """End this process when its parent has died (a `kill -9` leaves no other sign)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve cells from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):  # what a method prints may be in any script
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    place = place_from_dict(json.loads(sys.argv[1]))

    def emit(message: dict[str, Any]) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
            channel.flush()
        except BrokenPipeError:  # the parent has died: the cell in progress did not fail, it never ended
            os._exit(1)

    runner = CellRunner(emit)
    for line in sys.stdin:
        emit(runner.run(cell_from_dict(json.loads(line)), place))


if __name__ == "__main__":
    main()
