"""Runs on another machine, with a stand-in for what carries the bytes: equal results, and what arrives is verified."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CRITERION_FILE, TASK, run_inline, tiny_suite

from prunebench.api import SuitePlan, make_plan
from prunebench.errors import StoreError
from prunebench.results.artifacts import add_to_manifest, pull
from prunebench.results.store import Store
from prunebench.runner.described import find_method
from prunebench.runner.evaluate import TaskData
from prunebench.runner.plan import PlannedRun, RunContext
from prunebench.runner.remote import (
    Files,
    RemoteRequest,
    execute_here,
    job_folder,
    keep_run,
    pack_draw,
    pack_method,
    pack_run,
    read_run,
    unpack_draw,
    unpack_method,
)
from prunebench.tasks import resolve_task


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine's folder for temporary files."""
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there"))


def send(run: PlannedRun, context: RunContext, dense: Files | None, **given: object) -> tuple[dict, Files]:
    """One run as a launcher sends it: through JSON, with the files of its method."""
    request = replace(RemoteRequest.of(run, context, "job"), **given)
    values = json.loads(json.dumps(asdict(request)))
    arrays = pack_draw(resolve_task(run.task, None), None, run.spec.seed)
    return execute_here(RemoteRequest(**values), dense=dense, arrays=arrays, method=pack_method(run.method))


def run_remotely(plan: SuitePlan, **given: object) -> Store:
    """The runs of a plan, one after another, dense models first; what comes back is kept."""
    store, dense = Store(plan.context.out), {}
    store.prepare()
    for run in plan.todo:
        message, files = send(run, plan.context, dense.get(run.dense_id), **given)
        assert (message["kind"], message["status"]) == ("done", "ok"), message
        read_run(run.spec.run_id, files)
        keep_run(store, run.spec.run_id, files)
        if run.is_dense:
            dense[run.dense_id] = files
    return store


def test_results_equal_those_made_here(tmp_path: Path) -> None:
    """Also of a user's method, whose file the other machine does not have."""
    mine = tmp_path / "mine" / "relative.py"
    mine.parent.mkdir()
    mine.write_text(CRITERION_FILE)
    suite = tiny_suite("dense", "magnitude", str(mine))
    _, here = run_inline(suite, tmp_path / "here")
    store = run_remotely(make_plan(suite, out=tmp_path / "back"))
    records = {record.run_id: record for record in store.records()[0]}
    assert {record.run_id: record.outputs_sha256 for record in here.values()} == {
        run_id: record.outputs_sha256 for run_id, record in records.items()
    }
    for record in here.values():
        back = records[record.run_id]
        assert (back.metrics, back.splits_hash, back.sparsity) == (
            record.metrics,
            record.splits_hash,
            record.sparsity,
        )
        assert store.find_tensors(back, "outputs") is not None
    assert make_plan(suite, out=tmp_path / "back").todo == []  # the same command has nothing left to do


def test_a_method_of_a_package_is_found_where_the_package_is_not(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "several"
    mine.mkdir(parents=True)
    (mine / "__init__.py").write_text("from .one import channel_relative\nfrom .two import other\n")
    (mine / "one.py").write_text(CRITERION_FILE)
    other = CRITERION_FILE.replace("channel-relative", "other").replace("channel_relative", "other")
    (mine / "two.py").write_text(other)
    plan = make_plan(tiny_suite("dense", str(mine)), out=tmp_path / "back")
    asked = [RemoteRequest.of(run, plan.context, "job") for run in plan.todo]
    files = [pack_method(run.method) for run in plan.todo]
    mine.rename(tmp_path / "gone")
    versions = [
        find_method(unpack_method(each.run["method"], given, tmp_path / "there")).version
        for each, given in zip(asked, files, strict=True)
    ]
    assert versions == [run.spec.method_version for run in plan.todo]
    assert len(versions) == 3


def test_logits_go_to_an_address_and_are_pulled_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    plan = make_plan(tiny_suite("dense", "magnitude"), out=tmp_path / "back")
    dense, pruned = plan.todo
    address = str(tmp_path / "address")
    _, files = send(dense, plan.context, None, address=address)
    message, back = send(pruned, plan.context, files, address=address)
    assert set(back) == {"record.json"}
    assert set(files) == {
        "record.json",
        "outputs.safetensors",
        "model.safetensors",
    }  # dense weights serve the next run
    from prunebench.results.artifacts import Stored

    sent = {kind: Stored(**values) for kind, values in message["objects"].items()}
    add_to_manifest(address, {pruned.spec.run_id: sent})
    store = Store(tmp_path / "back")
    keep_run(store, pruned.spec.run_id, back)
    assert [transfer.problem for transfer in pull(store.root, address)] == [None, None]
    logits = store.read_tensors(pruned.spec.run_id, "outputs")["test_logits"]
    assert logits.shape[1] == 10


def test_a_failed_dense_model_is_a_reason_there_too(tmp_path: Path) -> None:
    plan = make_plan(tiny_suite("dense", "magnitude"), out=tmp_path / "back")
    dense, pruned = plan.todo
    _, files = send(dense, plan.context, None)
    record = read_run(dense.spec.run_id, files)
    failed = replace(record, status="failed", reason="made up", outputs_sha256=None, model_sha256=None)
    Store(tmp_path / "lost").write(failed)
    message, _ = send(pruned, plan.context, pack_run(Store(tmp_path / "lost"), dense.spec.run_id))
    assert message["status"] == "skipped"
    assert "its dense model" in message["reason"]


def test_what_came_back_damaged_or_wrong_is_refused(tmp_path: Path) -> None:
    plan = make_plan(tiny_suite("dense"), out=tmp_path / "back")
    (run,) = plan.todo
    _, files = send(run, plan.context, None)
    run_id = run.spec.run_id
    assert read_run(run_id, files).status == "ok"
    with pytest.raises(StoreError, match="outputs came back damaged"):
        read_run(run_id, {**files, "outputs.safetensors": files["outputs.safetensors"][:-1]})
    with pytest.raises(StoreError, match="without its record"):
        read_run(run_id, {})
    with pytest.raises(StoreError, match="came back"):
        read_run("0" * len(run_id), files)


def test_another_version_there_is_named(tmp_path: Path) -> None:
    plan = make_plan(tiny_suite("dense"), out=tmp_path / "back")
    message, files = send(plan.todo[0], plan.context, None, version="0.0.0")
    assert message["kind"] == "fatal"
    assert "install the same" in message["reason"]
    assert files == {}


def test_a_draw_that_came_is_the_draw(tmp_path: Path) -> None:
    """Also balanced validation; and what came is copied, as it may be memory that others read."""
    task = resolve_task(TASK, None)
    arrays = pack_draw(task, None, 3)
    assert arrays is not None
    for values in arrays.values():
        values.setflags(write=False)
    came, own = unpack_draw(arrays), task.splits(None, 3)
    data = TaskData(task, None, 3, torch.device("cpu"), splits=came)
    assert data.labels.splits_hash == TaskData(task, None, 3, torch.device("cpu")).labels.splits_hash
    assert torch.equal(came.val_balanced().x, own.val_balanced().x)
    came.train.x.zero_()
    assert np.any(arrays["train.x"])


def test_the_folder_of_an_old_job_is_removed(tmp_path: Path) -> None:
    import os

    old = job_folder("old")
    os.utime(old, (0, 0))
    job_folder("new")
    assert not old.exists()


def test_what_goes_meanwhile_from_beside_a_job_s_folder_stops_no_run() -> None:
    home = job_folder("old").parent
    (home / "gone").symlink_to(home / "never")
    assert job_folder("new").is_dir()
