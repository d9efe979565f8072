"""Ray's launcher: its decisions with a stand-in for Ray, and whole sweeps on real Ray nodes that are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import namespaces
import pytest
import torch
from helpers import RECIPE, TASK, run_inline, tiny_suite

from prunebench.api import make_plan
from prunebench.errors import DataError, UsageError
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner import local
from prunebench.runner import ray as launcher
from prunebench.runner.local import SHARED_GPU, Event, LocalLauncher
from prunebench.runner.plan import PlannedRun, RunContext
from prunebench.runner.ray import ATTEMPTS, Cluster, RayLauncher, execute_task
from prunebench.runner.remote import pack_draw, pack_run

ROOT = Path(__file__).parents[2]
HAS_RAY = importlib.util.find_spec("ray") is not None
Outcome = Callable[[PlannedRun, RunContext, Any], Any]


class LostError(Exception):
    """What the stand-in raises for a task whose node is gone."""


@dataclasses.dataclass(eq=False)
class Ref:
    """An object of the stand-in: a value, or one of the two results of a task that runs when it is waited for."""

    value: Any = None
    task: Callable[[], tuple[Any, Any]] | None = None
    part: int = 0


class StandIn:
    """As much of Ray as the launcher uses; tasks run one by one in this process, as `outcome` says."""

    exceptions = SimpleNamespace(RayError=LostError)
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self, outcome: Outcome, **resources: float) -> None:
        self._outcome, self._resources = outcome, resources
        self.handed: list[tuple[str, dict[str, Any]]] = []
        self.puts: list[Any] = []
        self.said: list[tuple[str, str]] = []
        self.cancelled: list[Ref] = []

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "Alive": True}]

    def cluster_resources(self) -> dict[str, float]:
        return self._resources

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "node", get_job_id=lambda: "job")

    def put(self, value: Any) -> Ref:
        self.puts.append(value)
        return Ref(value)

    def get(self, ref: Ref, timeout: float | None = None) -> Any:
        if ref.task is None:
            return ref.value
        return ref.task()[ref.part]

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return refs[:1], refs[1:]

    def cancel(self, ref: Ref, force: bool) -> None:
        self.cancelled.append(ref)

    def remote(self, what: Any) -> Any:
        if what is not execute_task:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: self._actor()))
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._task(options)))

    def _actor(self) -> Any:
        def take() -> Ref:
            taken, self.said = self.said, []
            return Ref(taken)

        return SimpleNamespace(take=SimpleNamespace(remote=take))

    def _task(self, options: dict[str, Any]) -> Callable[..., tuple[Ref, Ref]]:
        def submit(request: str, inbox: Any, dense: Ref | None, *_: Any) -> tuple[Ref, Ref]:
            asked = json.loads(request)
            run, context = PlannedRun.from_dict(asked["run"]), RunContext.from_dict(asked["context"])
            self.handed.append((run.spec.run_id, options))

            @functools.cache
            def result() -> Any:
                try:
                    given = None if dense is None else self.get(dense)  # lost with what it needs
                    return self._outcome(run, context, given)
                except LostError as error:
                    return error

            def carry_out() -> tuple[Any, Any]:
                if isinstance(result(), LostError):
                    raise result()
                return result()

            return Ref(task=carry_out, part=0), Ref(task=carry_out, part=1)

        return submit


@pytest.fixture
def finished(tmp_path: Path, make_record: Callable[..., RunRecord]) -> Outcome:
    """A task that gives back a made-up record that is ok, with weights of a dense model."""

    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> tuple[str, dict[str, bytes]]:
        there = Store(tmp_path / "there")
        record = make_record(run.spec)
        there.write(
            record, {"test_logits": torch.zeros(2, 10)}, model={"w": torch.ones(1)} if run.is_dense else None
        )
        message = {"kind": "done", "status": "ok", "reason": "", "metrics": {}}
        return json.dumps(message), pack_run(there, run.spec.run_id)

    return outcome


def sweep(
    ray: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **settings: Any
) -> tuple[list[PlannedRun], list[Event], dict[str, RunRecord]]:
    """The tiny suite by the launcher; gives its runs, the events and the records."""
    monkeypatch.setattr(Cluster, "connect", lambda self: ray)
    monkeypatch.setattr(launcher, "BACK_OFF_SECONDS", 0.001)
    plan = make_plan(tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1)), out=out)
    Store(out).prepare()
    context = dataclasses.replace(plan.context, device=device)
    events = list(RayLauncher(Cluster(**settings), device).map(plan.todo, context))
    records, damaged = Store(out).records()
    assert not damaged
    return plan.todo, events, {record.run_id: record for record in records}


def test_every_run_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    ray = StandIn(finished, CPU=2)
    runs, events, records = sweep(ray, tmp_path / "out", monkeypatch)
    assert set(records) == {run.spec.run_id for run in runs}
    done = [event.run.spec.run_id for event in events if event.kind == "done"]
    assert sorted(done) == sorted(records)
    assert [run_id for run_id, _ in ray.handed] == [run.spec.run_id for run in runs]  # dense models first
    draws = [value for value in ray.puts if isinstance(value, dict) and "train.x" in value]
    assert len(draws) == 2  # one a seed, not one a run
    assert not ray.cancelled
    assert all(options["max_retries"] == 0 and "num_gpus" not in options for _, options in ray.handed)
    assert all(options["memory"] > 1 << 30 for _, options in ray.handed)


def test_a_lost_run_is_tried_again_and_what_it_took_along_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    """The first task of the first dense model is lost, and with it all that waited for its result."""
    lost: list[PlannedRun] = []

    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> Any:
        if run.is_dense and run.spec.seed == 0 and len(lost) < 2:
            lost.append(run)
            raise LostError("node is gone")
        return finished(run, context, dense)

    runs, events, records = sweep(StandIn(outcome, CPU=2), tmp_path / "out", monkeypatch)
    assert {record.status for record in records.values()} == {"ok"}
    assert len(records) == len(runs)
    again = [event for event in events if event.kind == "again"]
    assert [(event.run.is_dense, event.values["reason"]) for event in again] == [
        (True, "LostError: node is gone")
    ] * 2
    assert sum(event.kind == "done" for event in events) == len(runs)


def test_a_run_that_is_lost_every_time_fails_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> Any:
        if run.spec.sparsity == 0.9 and run.spec.seed == 1:
            raise LostError("out of memory")
        return finished(run, context, dense)

    runs, _, records = sweep(StandIn(outcome, CPU=2), tmp_path / "out", monkeypatch)
    failed = [record for record in records.values() if record.status == "failed"]
    assert [record.reason for record in failed] == [
        f"lost {ATTEMPTS} times on the cluster, the last time: LostError: out of memory"
    ]
    assert failed[0].environment == {}  # nothing is known of the machine: not this one's
    assert len(records) == len(runs)


class CutOff(StandIn):
    """Two nodes; the first task goes to the far one, which is cut off: neither it nor what needs it ever ends."""

    def __init__(self, outcome: Outcome, **resources: float) -> None:
        super().__init__(outcome, **resources)
        self.stuck: list[Ref] = []
        self.looks = 0

    def nodes(self) -> list[dict[str, Any]]:
        self.looks += 1
        return [{"NodeID": "far", "Alive": self.looks < 5}, {"NodeID": "near", "Alive": True}]

    def _task(self, options: dict[str, Any]) -> Callable[..., tuple[Ref, Ref]]:
        def submit(request: str, inbox: Any, dense: Ref | None, *rest: Any) -> tuple[Ref, Ref]:
            refs = super(CutOff, self)._task(options)(request, inbox, dense, *rest)
            if len(self.handed) == 1:
                run_id = self.handed[0][0]
                self.said.append((run_id, json.dumps({"kind": "started", "environment": {}, "node": "far"})))
            if len(self.handed) == 1 or dense in self.stuck:
                self.stuck.extend(refs)
            return refs

        return submit

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if ref not in self.stuck][:1]
        return ready, [ref for ref in refs if ref not in ready]


def test_what_a_node_had_that_is_cut_off_runs_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    """Ray says that the node is dead long before its tasks fail; runs that wait for one of them had no try yet."""
    monkeypatch.setattr(launcher, "NODES_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.0)
    ray = CutOff(finished, CPU=2)
    runs, events, records = sweep(ray, tmp_path / "out", monkeypatch)
    assert {run_id: record.status for run_id, record in records.items()} == {
        run.spec.run_id: "ok" for run in runs
    }
    assert sum(event.kind == "done" for event in events) == len(runs)
    again = [(event.run, event.values["reason"]) for event in events if event.kind == "again"]
    assert again == [(runs[0], "ConnectionError: node far is gone")]
    assert set(ray.cancelled) == set(ray.stuck[::2])  # of two results, the first names the task


def test_logits_at_an_address_are_named_before_their_run_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    """A command that is killed, and with it all that it knew, leaves no run whose logits nobody finds again."""
    named: list[str] = []

    def name(address: str, objects: Any) -> None:
        assert address == "there"
        assert [Store(tmp_path / "out").status(run_id) for run_id in objects] == [None] * len(objects)
        named.extend(objects)

    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> Any:
        message, files = finished(run, context, dense)
        objects = {"outputs": {"sha256": "0" * 64, "bytes": 1}}
        return json.dumps({**json.loads(message), "objects": objects}), files

    monkeypatch.setattr(launcher, "add_to_manifest", name)
    runs, _, _ = sweep(StandIn(outcome, CPU=2), tmp_path / "out", monkeypatch, artifacts="there")
    assert sorted(named) == sorted(run.spec.run_id for run in runs)


def test_runs_whose_data_cannot_be_read_fail_and_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    def pack(task: Any, data_root: Path | None, seed: int) -> dict[str, Any]:
        if seed == 1:
            raise DataError("images.npy is damaged")
        return pack_draw(task, data_root, seed)

    monkeypatch.setattr(launcher, "pack_draw", pack)
    runs, events, records = sweep(StandIn(finished, CPU=2), tmp_path / "out", monkeypatch)
    damaged = {run_id for run_id, record in records.items() if record.reason == "images.npy is damaged"}
    assert damaged == {run.spec.run_id for run in runs if run.spec.seed == 1}
    assert {records[run_id].status for run_id in records.keys() - damaged} == {"ok"}
    assert sum(event.kind == "done" for event in events) == len(runs)


def test_runs_that_came_back_damaged_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    seen: set[str] = set()

    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> Any:
        message, files = finished(run, context, dense)
        if run.spec.run_id not in seen:
            seen.add(run.spec.run_id)
            files["outputs.safetensors"] = files["outputs.safetensors"][:-1]
        return message, files

    runs, _, records = sweep(StandIn(outcome, CPU=2), tmp_path / "out", monkeypatch)
    assert len(records) == len(runs)
    for run_id in records:
        assert Store(tmp_path / "out").read_tensors(run_id, "outputs")["test_logits"].shape == (2, 10)


def test_a_run_that_another_process_has_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    monkeypatch.setattr(launcher, "BUSY_PAUSE_SECONDS", 0.01)
    ray, held = StandIn(finished, CPU=2), contextlib.ExitStack()
    plan = make_plan(
        tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1)), out=tmp_path / "out"
    )
    store = Store(tmp_path / "out")
    store.prepare()
    last = plan.todo[-1].spec.run_id
    assert held.enter_context(store.lock(last, wait=False))
    ready = StandIn.wait

    def wait(self: StandIn, refs: list[Ref], num_returns: int, timeout: float) -> Any:
        if len(list(store.root.glob("runs/*/record.json"))) == len(plan.todo) - 2:
            held.close()  # the other process ends without having finished it
        return ready(self, refs, num_returns, timeout)

    monkeypatch.setattr(StandIn, "wait", wait)
    runs, _, records = sweep(ray, tmp_path / "out", monkeypatch)
    assert len(records) == len(runs)
    assert [run_id for run_id, _ in ray.handed][-1] == last


def test_runs_share_a_gpu_when_asked_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome
) -> None:
    contexts: list[RunContext] = []

    def outcome(run: PlannedRun, context: RunContext, dense: Any) -> Any:
        contexts.append(context)
        return finished(run, dataclasses.replace(context, device="cpu"), dense)

    ray = StandIn(outcome, CPU=16, GPU=2)
    monkeypatch.setattr(Cluster, "connect", lambda self: ray)
    assert Cluster().choose_device("auto") == "cuda"
    assert RayLauncher(Cluster(cells_per_gpu=4), "cuda").workers == 8
    sweep(ray, tmp_path / "out", monkeypatch, device="cuda", cells_per_gpu=4)
    assert {options["num_gpus"] for _, options in ray.handed} == {0.25}
    assert {context.latency_skipped for context in contexts} == {SHARED_GPU}


def test_on_one_machine_too_latencies_are_left_out_where_runs_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two stand-in GPUs: who runs where, what its worker is told, and its share of the cores."""
    started: list[tuple[str, str | None, str]] = []

    class NoProcess(Exception):
        pass

    def popen(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        told = json.loads(command[3])
        started.append((env["CUDA_VISIBLE_DEVICES"], told["latency_skipped"], env["OMP_NUM_THREADS"]))
        raise NoProcess

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(local, "count_cores", lambda: 6)
    plan = make_plan(tiny_suite("dense"), out=tmp_path / "out")
    for workers, reason, threads in ((2, None, "3"), (4, SHARED_GPU, "1"), (8, SHARED_GPU, "1")):
        with pytest.raises(NoProcess):
            list(LocalLauncher(workers, gpus=2).map(plan.todo, plan.context))
        assert started[-1] == ("0", reason, threads)


def test_without_a_gpu_or_a_cluster_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "connect", lambda self: StandIn(lambda *_: None, CPU=2))
    assert Cluster().choose_device("auto") == "cpu"
    with pytest.raises(UsageError, match="use --device cpu"):
        Cluster().choose_device("cuda")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install prunebench\[ray\]"):
        Cluster().connect()


# Real Ray


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny suite as a file, beside its local results."""
    folder = tmp_path_factory.mktemp("swept")
    recipe = "\n".join(f"{name} = {json.dumps(value)}" for name, value in RECIPE.items())
    path = folder / "tiny.toml"
    path.write_text(
        f'description = "tiny"\ntasks = ["{TASK}"]\nmethods = ["dense", "magnitude", "random-layerwise"]\n'
        f"sparsities = [0.5, 0.9]\nseeds = [0, 1]\n\n[recipe]\n{recipe}\n"
    )
    suite = tiny_suite("dense", "magnitude", "random-layerwise", sparsities=(0.5, 0.9), seeds=(0, 1))
    run_inline(suite, folder / "local")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray")
@pytest.mark.parametrize(
    ("how", "disturbances"),
    [([], ["node", "driver", "head"]), (["--apart"], ["network"])],
    ids=["together", "apart"],
)
def test_disturbed_sweeps_on_three_nodes_equal_the_local_one(
    suite_file: Path, how: list[str], disturbances: list[str], tmp_path: Path
) -> None:
    if how and (missing := namespaces.what_is_missing()):
        pytest.skip(f"--apart {missing}")
    (tmp_path / "local").symlink_to(suite_file.parent / "local")
    command = [sys.executable, str(ROOT / "bench" / "cluster.py"), str(suite_file), *how]
    done = subprocess.run(
        [*command, "--disturb", *disturbances, "--out", str(tmp_path), "--seconds", "300"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:] + logs
    sweeps = json.loads(done.stdout[done.stdout.index("{") :])["sweeps"]
    assert [tally["disturbed"] for tally in sweeps] == disturbances
    for tally in sweeps:
        assert tally["runs"] == tally["recorded"] == tally["equal_outputs"] == tally["equal_model"] == 10
        assert 1 <= tally["recorded_before"] < 10  # it was disturbed in the middle
