"""Ray's launcher: one run a task, and what runs share through Ray's object store; no shared file system.

Ray places the tasks; here is decided what is handed to it, and when again. A run's dense model is an argument of its
task, so it waits for it; a draw of the data is put into the object store once. Tasks return the folder of a run as
bytes, and this process alone writes the results, under the lock of each run: a run is recorded once, however often a
node was lost under it. A driver that is killed takes its tasks with it, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prunebench.errors import PruneBenchError, UsageError
from prunebench.results.artifacts import Manifest, Stored, add_to_manifest
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.execute import begin_record, record_failure, shortened
from prunebench.runner.local import BUSY_PAUSE_SECONDS, SHARED_GPU, Event, RunQueue
from prunebench.runner.plan import Draw, PlannedRun, RunContext, is_done
from prunebench.runner.remote import (
    Files,
    RemoteRequest,
    execute_here,
    keep_run,
    pack_draw,
    pack_method,
    pack_run,
    read_run,
)
from prunebench.tasks import resolve_task

ATTEMPTS = 4
"""Times that a run is tried whose node or process was lost."""
BACK_OFF_SECONDS = 1.0
"""Before the second try; twice as long before each further one."""
POLL_SECONDS = 0.5
REPORT_SECONDS = 1.0
"""Between two reports of the same run's progress."""
NODES_SECONDS = 5.0
"""Between two looks at which nodes are alive: tasks of a node that is cut off fail only after Ray's seven minutes."""
FEWEST_HANDED, MOST_HANDED = 16, 512
"""Tasks that Ray holds at a time: four a core, within these."""
GIB = 1 << 30
BASE_BYTES = GIB
"""Memory that a run is taken to need besides twice its data: torch and a small network."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster by its address, or `auto` for the one that this machine belongs to; and what a run gets of it.

    `cells_per_gpu` runs share a GPU (latencies are then left out). `memory_gib` is what a run needs; by default it is
    estimated from its data. With `artifacts`, any address of fsspec, nodes bring logits and weights there.
    """

    address: str = "auto"
    cells_per_gpu: int = 1
    memory_gib: float | None = None
    artifacts: str | None = None

    def connect(self) -> Any:
        """Ray's module, connected. Raises UsageError where there is no Ray or no cluster."""
        try:
            import ray
        except ImportError as error:
            raise UsageError("--cluster needs Ray: `pip install prunebench[ray]`, on every node") from error
        if not ray.is_initialized():
            try:
                ray.init(
                    self.address, namespace="prunebench", log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UsageError(
                    f"no Ray cluster at {self.address!r} ({_first_line(error)}): start one with `ray start --head`, "
                    "and `ray start --address HOST:6379` on each further machine"
                ) from error
        return ray

    def choose_device(self, device: str) -> str:
        """Where runs run: `auto` is the cluster's GPUs, if it has any. Raises UsageError for what no node has."""
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device {device!r} is not supported: use auto, cpu or cuda")
        gpus = self.connect().cluster_resources().get("GPU", 0)
        if device == "cuda" and not gpus:
            raise UsageError("no node of the cluster has a GPU; use --device cpu")
        return ("cuda" if gpus else "cpu") if device == "auto" else device


class RayLauncher:
    """Executes runs as tasks of a Ray cluster; `workers` of them fit at a time as it stands."""

    def __init__(self, cluster: Cluster, device: str) -> None:
        self.cluster, self.device = cluster, device
        found = cluster.connect().cluster_resources()
        fit = found.get("CPU", 0)
        if device == "cuda":
            fit = min(fit, found.get("GPU", 0) * cluster.cells_per_gpu)
        self.workers = max(1, int(fit))

    def map(self, runs: Sequence[PlannedRun], context: RunContext) -> Iterator[Event]:
        """As `LocalLauncher.map`; an event `again` says that a run whose node was lost is tried once more."""
        ray = self.cluster.connect()
        if self.device == "cuda" and self.cluster.cells_per_gpu > 1:
            context = replace(context, latency_skipped=SHARED_GPU)
        most = min(max(FEWEST_HANDED, 4 * self.workers), MOST_HANDED)
        sweep = _Sweep(ray, self.cluster, runs, context, most)
        try:
            yield from sweep.events()
        finally:
            sweep.close()


class ProgressInbox:
    """What tasks report while they run, until the driver takes it: an actor."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str]] = []

    def put(self, run_id: str, message: str) -> None:
        self._messages.append((run_id, message))

    def take(self) -> list[tuple[str, str]]:
        """All messages since the last call."""
        taken, self._messages = self._messages, []
        return taken


def execute_task(
    request: str, inbox: Any, dense: Files | None, arrays: Any, method: Files, checkpoint: Any
) -> tuple[str, Files]:
    """The body of a task: run, report, give back the message as JSON and the run's files."""
    import ray

    asked = RemoteRequest(**json.loads(request))
    run_id, said = PlannedRun.from_dict(asked.run).spec.run_id, -REPORT_SECONDS
    node = ray.get_runtime_context().get_node_id()

    def emit(message: dict[str, Any]) -> None:
        nonlocal said
        if message["kind"] != "progress" or time.monotonic() - said >= REPORT_SECONDS:
            said = time.monotonic()
            inbox.put.remote(run_id, json.dumps(message | {"node": node}))

    message, files = execute_here(
        asked, dense=dense, arrays=arrays, method=method, checkpoint=checkpoint, emit=emit, place=node[:12]
    )
    return json.dumps(message), files


@dataclass
class _Handed:
    """A run that Ray has: its task's two results, and the lock on its record."""

    run: PlannedRun
    message: Any
    files: Any
    lock: contextlib.ExitStack
    worker: int | None = None
    node: str | None = None
    environment: dict[str, Any] | None = None


class _Sweep:
    """One call of `map`: what waits, what Ray has, and what it was given to share."""

    def __init__(
        self, ray: Any, cluster: Cluster, runs: Sequence[PlannedRun], context: RunContext, most: int
    ) -> None:
        self._ray, self._cluster, self._context, self._most = ray, cluster, context, most
        self._store = Store(context.out)
        self._waiting = RunQueue(runs)
        self._tries: Counter[str] = Counter()
        self._users = Counter(run.draw for run in runs)
        self._dense_users = Counter(run.dense_id for run in runs)
        self._handed: dict[str, _Handed] = {}
        self._draws: dict[Draw, tuple[Any, int]] = {}
        self._dense: dict[str, Any] = {}
        self._methods: dict[str, Any] = {}
        self._checkpoint = None if context.dense is None else ray.put(context.dense.read_bytes())
        self._inbox = self._start_inbox()
        self._polled = 0.0
        self._nodes: set[str] = set()
        self._looked = -NODES_SECONDS

    # The loop

    def events(self) -> Iterator[Event]:
        while self._waiting or self._handed:
            yield from self._hand_out()
            ended = {run_id: self._last_word(self._handed[run_id]) for run_id in self._finished()}
            if ended:
                yield from self._reports()
            self._name_objects(ended)
            for run_id, message in ended.items():
                yield from self._take_back(self._handed.pop(run_id), message)
            if time.monotonic() - self._polled >= POLL_SECONDS:
                yield from self._reports()
            if time.monotonic() - self._looked >= NODES_SECONDS:
                yield from self._leave_dead_nodes()

    def close(self) -> None:
        """Take back what Ray still has."""
        for handed in self._handed.values():
            self._cancel(handed)
            handed.lock.close()

    def _cancel(self, handed: _Handed) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone
            self._ray.cancel(handed.message, force=True)

    def _finished(self) -> list[str]:
        """Runs whose task has ended; waits a little for one."""
        if not self._handed:
            time.sleep(0.05)
            return []
        by_ref = {handed.message: run_id for run_id, handed in self._handed.items()}
        ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=POLL_SECONDS)
        if ready:
            ready, _ = self._ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        return [by_ref[ref] for ref in ready]

    # There

    def _hand_out(self) -> Iterator[Event]:
        """Give Ray what is ready, in the plan's order, up to the most that it holds."""
        while len(self._handed) < self._most and (run := self._waiting.take(self._handed)) is not None:
            with contextlib.ExitStack() as lock:
                if not lock.enter_context(self._store.lock(run.spec.run_id, wait=False)):
                    self._waiting.put_back(run, BUSY_PAUSE_SECONDS)
                elif is_done(run, self._store):
                    yield from self._end(run, self._store.read(run.spec.run_id), None)
                else:
                    try:
                        self._handed[run.spec.run_id] = self._submit(run, lock)
                    except PruneBenchError as error:  # its data cannot be read, say: the others go on
                        record = record_failure(run, replace(self._context, device="cpu"), error)
                        yield from self._end(run, record, None)

    def _submit(self, run: PlannedRun, lock: contextlib.ExitStack) -> _Handed:
        """Give a run to Ray; its lock is held until it is taken back."""
        draw, size = self._draw(run)
        memory = self._cluster.memory_gib
        options: dict[str, Any] = {
            "num_cpus": 1,
            "memory": int(memory * GIB) if memory is not None else BASE_BYTES + 2 * size,
            "num_returns": 2,
            "max_retries": 0,  # lost runs are handed out again here, with a pause that grows
            "name": run.spec.label,
        }
        if self._context.device == "cuda":
            options["num_gpus"] = 1 / self._cluster.cells_per_gpu
        job = self._ray.get_runtime_context().get_job_id()
        request = RemoteRequest.of(run, self._context, job, self._cluster.artifacts)
        message, files = self._ray.remote(execute_task).options(**options).remote(
            json.dumps(asdict(request)), self._inbox, self._dense_files(run), draw, self._method(run), self._checkpoint
        )  # fmt: skip
        return _Handed(run, message, files, lock.pop_all())

    def _dense_files(self, run: PlannedRun) -> Any:
        """The files of its dense model: of the task that makes them, or as they are recorded."""
        if run.is_dense:
            return None
        if run.dense_id in self._handed:
            return self._handed[run.dense_id].files
        if run.dense_id not in self._dense:
            self._dense[run.dense_id] = self._ray.put(pack_run(self._store, run.dense_id))
        return self._dense[run.dense_id]

    def _draw(self, run: PlannedRun) -> tuple[Any, int]:
        """The draw of a run in the object store, and its bytes; None where nodes read it from their own files."""
        key = run.draw
        if key not in self._draws:
            arrays = pack_draw(
                resolve_task(run.task, self._context.data_root), self._context.data_root, run.spec.seed
            )
            size = sum(values.nbytes for values in arrays.values()) if arrays else 0
            self._draws[key] = (self._ray.put(arrays) if arrays else None, size)
        return self._draws[key]

    def _method(self, run: PlannedRun) -> Any:
        if run.method not in self._methods:
            self._methods[run.method] = self._ray.put(pack_method(run.method))
        return self._methods[run.method]

    # Back

    def _last_word(self, handed: _Handed) -> dict[str, Any] | Exception:
        """What a task said at its end, or why it said nothing."""
        try:
            return dict(json.loads(self._ray.get(handed.message)))
        except Exception as error:
            return error

    def _name_objects(self, ended: Mapping[str, dict[str, Any] | Exception]) -> None:
        """Name at the address what was brought there: before the runs are recorded, as those are not run again."""
        sent: Manifest = {
            run_id: {kind: Stored(**values) for kind, values in message["objects"].items()}
            for run_id, message in ended.items()
            if isinstance(message, dict) and message.get("objects")
        }
        if sent and self._cluster.artifacts is not None:
            add_to_manifest(self._cluster.artifacts, sent)

    def _take_back(self, handed: _Handed, message: dict[str, Any] | Exception) -> Iterator[Event]:
        """Record what a task gave back, or hand its run out again."""
        run = handed.run
        with handed.lock:
            try:
                if isinstance(message, Exception):
                    raise message
                if message["kind"] == "done":
                    files = self._ray.get(handed.files)
                    record = read_run(run.spec.run_id, files)
            except Exception as error:
                yield from self._lost(handed, error)
                return
            if message["kind"] == "busy":  # a task of this run that was given up is still at it
                self._waiting.put_back(run, BUSY_PAUSE_SECONDS)
            elif message["kind"] == "fatal":
                yield Event("fatal", run, handed.worker or 0, {"reason": message["reason"]})
            else:
                keep_run(self._store, run.spec.run_id, files)
                yield from self._end(run, record, handed)

    def _lost(self, handed: _Handed, error: Exception) -> Iterator[Event]:
        """A task without a result: tried again after a pause; after the last try its run has failed."""
        run = handed.run
        if not run.is_dense and self._waiting.lacks_dense(run):  # it went with its dense model, which decides
            self._waiting.put_back(run, 0.0, first=True)
            return
        self._tries[run.spec.run_id] += 1
        cause = getattr(error, "cause", None) or error  # of an error raised in the task, that one
        tries, reason = self._tries[run.spec.run_id], f"{type(cause).__name__}: {_first_line(cause)}"
        if tries < ATTEMPTS:
            self._waiting.put_back(run, BACK_OFF_SECONDS * 2 ** (tries - 1), first=True)
            self._dense.pop(run.dense_id, None)
            yield Event("again", run, handed.worker or 0, {"reason": reason, "attempt": tries + 1})
            return
        record = begin_record(run, replace(self._context, device="cpu"))
        failed = replace(
            record,
            reason=shortened(f"lost {tries} times on the cluster, the last time: {reason}"),
            environment=handed.environment or {},
        )
        yield from self._end(run, self._store.write(failed), handed)

    def _leave_dead_nodes(self) -> Iterator[Event]:
        """Take back what a dead node had, and what has not begun, as it may have been on its way there."""
        self._looked = time.monotonic()
        try:
            alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        except self._ray.exceptions.RayError:
            return  # the head does not answer
        dead, self._nodes = self._nodes - alive, alive
        if not dead:
            return
        lost = [each for each in self._handed.values() if each.node is None or each.node in dead]
        for handed in reversed(lost):  # each goes before all others that wait
            del self._handed[handed.run.spec.run_id]
            self._cancel(handed)
            with handed.lock:
                if handed.node is None:
                    self._waiting.put_back(handed.run, 0.0, first=True)
                else:
                    yield from self._lost(handed, ConnectionError(f"node {handed.node[:12]} is gone"))

    def _end(self, run: PlannedRun, record: RunRecord, handed: _Handed | None) -> Iterator[Event]:
        """A run that is recorded: its event, and nothing kept for it any more."""
        self._waiting.finish(run)
        key = run.draw
        self._users[key] -= 1
        if not self._users[key]:
            self._draws.pop(key, None)
        self._dense_users[run.dense_id] -= 1
        if not self._dense_users[run.dense_id]:
            self._dense.pop(run.dense_id, None)
        if handed is None or handed.worker is None:
            worker = self._free_worker()
            yield Event("started", run, worker)
        else:
            worker = handed.worker
        values = {"status": record.status, "reason": record.reason, "metrics": record.metrics}
        yield Event("done", run, worker, values)

    # Progress

    def _start_inbox(self) -> Any:
        beside = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = beside(self._ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        return self._ray.remote(ProgressInbox).options(**options).remote()

    def _reports(self) -> Iterator[Event]:
        """What tasks have reported since; nothing where the inbox does not answer, as runs do not hang on it."""
        self._polled = time.monotonic()
        try:
            messages = self._ray.get(self._inbox.take.remote(), timeout=POLL_SECONDS)
        except self._ray.exceptions.RayError:
            return
        for run_id, text in messages:
            handed = self._handed.get(run_id)
            if handed is None:
                continue
            message = json.loads(text)
            handed.node = message.pop("node")
            if message["kind"] == "started":
                handed.environment = message.pop("environment")
            if handed.worker is None:
                handed.worker = self._free_worker()
                yield Event("started", handed.run, handed.worker)
            if message["kind"] == "progress":
                yield Event(message.pop("kind"), handed.run, handed.worker, message)

    def _free_worker(self) -> int:
        """The lowest number that no run at work has."""
        taken = {handed.worker for handed in self._handed.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0][:200] if lines else type(error).__name__
