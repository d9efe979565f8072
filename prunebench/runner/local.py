"""Worker processes that speak JSON lines: no pickle, no fork of a threaded parent, no main-module guard.

A worker is `python -m prunebench.runner.worker`. It reads a run a line on standard input and writes events
on standard output; everything that a method prints goes to standard error. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Container, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from prunebench.errors import StoreError
from prunebench.inference.busy import count_cores
from prunebench.results.store import Store
from prunebench.runner.apart import fork_server
from prunebench.runner.exchange import parse_message
from prunebench.runner.execute import record_failure
from prunebench.runner.fitted import run_apart
from prunebench.runner.plan import Draw, PlannedRun, RunContext, is_done
from prunebench.runner.worker import DRAWS_KEPT, RunExecutor

BUSY_PAUSE_SECONDS = 1.0
SHARED_GPU = "several runs share a GPU"
"""Why latencies are left out where more than one run is at work on a GPU."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    `kind`: `started`, `progress`, `done` (ok, failed or skipped: see `values["status"]`), `busy` (another
    process has it), `again` (its node was lost, and it is tried once more) or `fatal` (the results cannot be written).
    """

    kind: str
    run: PlannedRun
    worker: int
    values: dict[str, Any] = field(default_factory=dict)


class LocalLauncher:
    """Executes runs in `workers` processes; on a GPU machine worker i takes GPU i modulo their number.

    With more workers than GPUs latencies are left out. At `until`, a time of the monotonic clock, what is at work is
    ended.
    """

    def __init__(self, workers: int, *, gpus: int = 0, until: float = math.inf) -> None:
        self.workers = workers
        self.gpus = gpus
        self.until = until

    @property
    def _threads(self) -> int:
        """Of one worker on the CPU: one, or beside a GPU its share of the cores."""
        return max(count_cores() // self.workers, 1) if self.gpus else 1

    def map(self, runs: Sequence[PlannedRun], context: RunContext) -> Generator[Event, None, None]:
        """Run all runs, dense models before what needs them; yields events as they come."""
        if 0 < self.gpus < self.workers:
            context = replace(context, latency_skipped=SHARED_GPU)
        waiting, apart = RunQueue(runs), any(map(run_apart, {run.method: run for run in runs}.values()))
        running: dict[int, PlannedRun] = {}
        inbox: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        workers: dict[int, _Worker] = {}
        kept: dict[int, deque[Draw]] = defaultdict(partial(deque, maxlen=DRAWS_KEPT))
        try:
            while (waiting or running) and time.monotonic() < self.until:
                for number in range(self.workers):
                    if number in running or (run := waiting.take(draws=kept[number])) is None:
                        continue
                    _use(kept[number], run.draw)
                    if number not in workers:
                        workers[number] = _Worker(
                            number, self.gpus, context, inbox, apart=apart, threads=self._threads
                        )
                    workers[number].send(run)
                    running[number] = run
                    yield Event("started", run, number)
                try:
                    number, message = inbox.get(timeout=0.5)
                except queue.Empty:
                    continue
                run = running[number]
                if message is None:
                    gone, _ = workers.pop(number), kept.pop(number)
                    message = {"kind": "died", "reason": gone.exit_reason()}
                    gone.stop()
                if message["kind"] != "progress":
                    del running[number]
                if message["kind"] == "busy":
                    waiting.put_back(run, BUSY_PAUSE_SECONDS)
                elif message["kind"] == "done":
                    waiting.finish(run)
                elif message["kind"] == "died":
                    waiting.finish(run)
                    message = {"kind": "done", **_record_death(run, context, message["reason"])}
                yield Event(message.pop("kind"), run, number, message)
        finally:
            # All are told first: one after another, many would take seconds to let go of a GPU.
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.stop()


class InlineLauncher:
    """Executes runs one after another in this process (for tests and debuggers)."""

    workers = 1

    def map(self, runs: Sequence[PlannedRun], context: RunContext) -> Iterator[Event]:
        """As `LocalLauncher.map`."""
        runner, waiting, kept = RunExecutor(), RunQueue(runs), deque[Draw](maxlen=DRAWS_KEPT)
        while waiting:
            run = waiting.take(draws=kept)
            if run is None:
                time.sleep(0.1)
                continue
            _use(kept, run.draw)
            yield Event("started", run, 0)
            message = runner.execute(run, context)
            if message["kind"] == "busy":
                waiting.put_back(run, BUSY_PAUSE_SECONDS)
            else:
                waiting.finish(run)
            yield Event(message.pop("kind"), run, 0, message)


class RunQueue:
    """Runs in order; those whose dense model is still to come, or that were put back for a while, wait."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._waiting = list(runs)
        self._not_before: dict[str, float] = {}
        self._nothing_until = -math.inf
        self._open_dense = {run.dense_id for run in runs if run.is_dense}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, at_work: Container[str] = (), draws: Container[Draw] = ()) -> PlannedRun | None:
        """The next run that is ready: its dense model is done, or one of those `at_work`, by id.

        Only what this queue gave out is at work. So where nothing is ready, nothing will be until a dense model is
        done, a run is put back or a pause is over.
        Of the seeds of one method at one sparsity, one whose data are among the `draws` goes before the others.
        """
        chosen: int | None = None
        now = time.monotonic()
        if now < self._nothing_until:  # as was found before; nothing has changed since
            return None
        for position, run in enumerate(self._waiting):
            if chosen is not None and run.row != self._waiting[chosen].row:
                break
            ready = run.is_dense or not self.lacks_dense(run) or run.dense_id in at_work
            if ready and self._not_before.get(run.spec.run_id, 0.0) <= now:
                chosen = position if chosen is None else chosen
                if run.draw in draws:
                    chosen = position
                    break
        if chosen is None:
            self._nothing_until = min((at for at in self._not_before.values() if at > now), default=math.inf)
            return None
        self._nothing_until = -math.inf
        return self._waiting.pop(chosen)

    def lacks_dense(self, run: PlannedRun) -> bool:
        """Whether its dense model is still to come."""
        return run.dense_id in self._open_dense

    def put_back(self, run: PlannedRun, pause: float, *, first: bool = False) -> None:
        """To be taken after a pause of so many seconds: behind all others, or `first`."""
        self._nothing_until = -math.inf
        self._not_before[run.spec.run_id] = time.monotonic() + pause
        self._waiting.insert(0 if first else len(self._waiting), run)

    def finish(self, run: PlannedRun) -> None:
        if run.is_dense:
            self._nothing_until = -math.inf
            self._open_dense.discard(run.dense_id)


def _use(kept: deque[Draw], draw: Draw) -> None:
    """Note that a draw is the latest used of those that a worker keeps."""
    if draw in kept:
        kept.remove(draw)
    kept.append(draw)


class _Worker:
    """One worker process and the thread that reads its events."""

    def __init__(
        self,
        number: int,
        gpus: int,
        context: RunContext,
        inbox: queue.Queue[tuple[int, dict[str, Any] | None]],
        *,
        apart: bool = False,
        threads: int = 1,
    ) -> None:
        environment = dict(os.environ)
        if gpus:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus]
        environment.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
        command = [sys.executable, "-m", "prunebench.runner.worker", json.dumps(context.to_dict())]
        link = fork_server().link() if apart else None
        if link is not None:
            command += ["--apart", str(link.fileno())]
        self._process = subprocess.Popen(
            command,
            pass_fds=[] if link is None else [link.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        if link is not None:
            link.close()
        self._garbled: str | None = None
        self._reader = threading.Thread(target=self._listen, args=(number, inbox), daemon=True)
        self._reader.start()

    def send(self, run: PlannedRun) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(run.to_dict()) + "\n")
            self._process.stdin.flush()

    def _listen(self, number: int, inbox: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = parse_message(line)
            if message is None:
                self._garbled = line
                self._process.kill()
                break
            inbox.put((number, message))
        inbox.put((number, None))

    def exit_reason(self) -> str:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if self._garbled is not None:
            return f"the worker process wrote {self._garbled[:80]!a} where events are read; print to standard output"
        hint = " (out of memory? try fewer --workers)" if code == -9 else ""
        hint = " (the method ended it? raise an error to fail a run)" if 0 <= code <= 2 else hint
        return f"the worker process ended with {how}{hint}"

    def terminate(self) -> None:
        """Tell the process to end: politely if idle, at once if not."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()

    def stop(self) -> None:
        """End the process, within two seconds."""
        self.terminate()
        try:
            self._process.wait(timeout=1.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=1.5)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def _record_death(run: PlannedRun, context: RunContext, reason: str) -> dict[str, Any]:
    """Record a run whose worker died, unless another process has it or has finished it."""
    store = Store(context.out)
    try:
        with store.lock(run.spec.run_id, wait=False) as mine:
            if mine and not is_done(run, store):
                record_failure(run, context, reason)
    except StoreError as error:
        reason = f"{reason}; {error}"
    return {"status": "failed", "reason": reason, "metrics": {}}
