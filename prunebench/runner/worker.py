"""The worker process: a run in, events out, until standard input closes or the parent dies."""

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

from prunebench.errors import StoreError
from prunebench.results.store import Store
from prunebench.runner.apart import fork_server
from prunebench.runner.evaluate import TaskData
from prunebench.runner.execute import execute, record_failure
from prunebench.runner.plan import Draw, PlannedRun, RunContext, is_done
from prunebench.tasks import resolve_task

DRAWS_KEPT = 4
"""Data draws kept in memory: switching between seeds should not load again."""


def load_draw(run: PlannedRun, context: RunContext) -> TaskData:
    """The data draw of a run, from the files of this machine. Raises DataError where they are missing."""
    task = resolve_task(run.task, context.data_root)
    return TaskData(task, context.data_root, run.spec.seed, torch.device(context.device))


class RunExecutor:
    """Executes runs one by one and keeps the latest data draws, in `draws` if given; `load` brings a new one."""

    def __init__(
        self,
        emit: Callable[[dict[str, Any]], None] | None = None,
        *,
        load: Callable[[PlannedRun, RunContext], TaskData] = load_draw,
        draws: OrderedDict[Draw, TaskData] | None = None,
    ) -> None:
        self._emit, self._load = emit, load
        self._draws = OrderedDict() if draws is None else draws

    def execute(self, run: PlannedRun, context: RunContext) -> dict[str, Any]:
        """Execute a run under its lock: `busy`, `done` with status, reason and metrics, or `fatal`."""
        store = Store(context.out)
        try:
            with store.lock(run.spec.run_id, wait=False) as mine:
                if not mine:
                    return {"kind": "busy"}
                record = store.read(run.spec.run_id) if is_done(run, store) else self._execute(run, context)
        except StoreError as error:
            return {"kind": "fatal", "reason": str(error)}
        return {"kind": "done", "status": record.status, "reason": record.reason, "metrics": record.metrics}

    def _execute(self, run: PlannedRun, context: RunContext) -> Any:
        try:
            data = self._draw(run, context)
        except Exception as error:
            return record_failure(run, context, error)
        record = execute(run, context, data, self._progress if self._emit else None)
        if not data.intact:  # the next run of this draw loads it anew
            del self._draws[run.draw]
        return record

    def _progress(self, phase: str, step: int, steps: int, loss: float) -> None:
        assert self._emit is not None
        self._emit({"kind": "progress", "phase": phase, "step": step, "steps": steps, "loss": loss})

    def _draw(self, run: PlannedRun, context: RunContext) -> TaskData:
        key = run.draw
        if key not in self._draws:
            while len(self._draws) >= DRAWS_KEPT:
                self._draws.popitem(last=False)
            self._draws[key] = self._load(run, context)
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
    """Serve runs from standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):  # what a method prints may be in any script
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    context = RunContext.from_dict(json.loads(sys.argv[1]))
    if "--apart" in sys.argv:
        fork_server(int(sys.argv[sys.argv.index("--apart") + 1]))

    def emit(message: dict[str, Any]) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
            channel.flush()
        except BrokenPipeError:  # the parent has died: the run in progress did not fail, it never ended
            os._exit(1)

    runner = RunExecutor(emit)
    for line in sys.stdin:
        emit(runner.execute(PlannedRun.from_dict(json.loads(line)), context))


if __name__ == "__main__":
    main()
