"""Latencies measured again from stored models: what changes in a record, and what must not."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import run_inline, tiny_suite
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.cli.timing import print_disturbed, wait_for_quiet
from prunebench.errors import StoreError
from prunebench.inference import busy
from prunebench.inference.busy import MachineLoad
from prunebench.leaderboard.aggregate import machine_of
from prunebench.results.record import Percentiles, RunRecord
from prunebench.results.store import Store
from prunebench.runner.retime import retime


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("timing") / "out"
    run_inline(tiny_suite("magnitude"), out)
    return out


@pytest.fixture
def results(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "out"))


@pytest.mark.slow
def test_only_the_latencies_change(results: Path) -> None:
    before = {record.run_id: record for record in Store(results).records()[0]}
    assert all(record.cost and record.cost.timed_on == {} for record in before.values())
    timed = list(retime(results, None, "cpu"))
    assert [entry.problem for entry in timed] == [None, None]
    assert [(entry.done, entry.total) for entry in timed] == [(1, 2), (2, 2)]
    after = {record.run_id: record for record in Store(results).records()[0]}
    assert after.keys() == before.keys()
    for run_id, record in after.items():
        old = before[run_id]
        assert record.cost is not None
        assert replace(record, cost=None) == replace(old, cost=None)
        facts = record.cost.timed_on
        assert facts["device"] == "cpu"
        assert facts["threads"] == 1
        assert str(facts["utc"]) >= old.started_utc
        mine, theirs = asdict(record.cost), asdict(old.cost)
        changing = {"latency_dense_ms", "latency_pruned_ms", "timed_on", "latency_layouts"}
        changing |= {"latency_again_ms", "latency_clock", "latency_wall_spread"}
        assert {k: v for k, v in mine.items() if k not in changing} == {
            k: v for k, v in theirs.items() if k not in changing
        }
        assert mine["latency_pruned_ms"] != theirs["latency_pruned_ms"]


def test_the_board_groups_by_the_machine_that_timed(results: Path) -> None:
    list(retime(results, None, "cpu"))
    record = Store(results).records()[0][0]
    assert record.cost is not None
    moved = replace(
        record, cost=replace(record.cost, timed_on={"device": "cpu", "cpu": "Other", "threads": 4})
    )
    assert machine_of(moved).name == "Other, 4 threads"
    assert machine_of(record).processor == record.environment["cpu"]


def test_what_cannot_be_timed_is_left_and_named(results: Path) -> None:
    records = Store(results).records()[0]
    for record in records:
        if record.spec["method"] == "magnitude":
            (results / "runs" / record.run_id / "model.safetensors").unlink()
    done = CliRunner().invoke(app, ["time", "--results", str(results), "--device", "cpu"])
    assert done.exit_code == 1
    assert "left as it was: its model is not stored" in done.output
    assert done.output.count("dense / pruned") == 1
    assert [r for r in Store(results).records()[0] if r.cost and not r.cost.timed_on]


def test_what_was_disturbed_is_said_and_timed_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(results)
    for record in store.records()[0]:
        spread = 2.5 if record.spec["method"] == "magnitude" else 1.0
        times = Percentiles(1.0, 1.0, 1.0)
        cost = replace(record.cost, latency_dense_ms=times, latency_pruned_ms=times, latency_again_ms=times)  # type: ignore[type-var]
        store.write(replace(record, cost=replace(cost, latency_wall_spread=spread)))
    monkeypatch.setattr(busy, "MachineLoad", lambda *_: MachineLoad(9.0, 2))
    done = CliRunner().invoke(app, ["retime", "--results", str(results), "--device", "cpu", "--disturbed"])
    assert done.exit_code == 0
    assert "busy machine: load average 9 on 2 cores" in done.output
    assert done.output.index("busy machine") < done.output.index("[1/1]"), "before anything is timed"
    assert re.search(
        r"\[1/1\] .*magnitude.* / .* ms, \d\.\d\dx \(dense against itself \d\.\d\dx\)", done.output
    )
    untouched = [r.spec["method"] for r in store.records()[0] if r.cost and not r.cost.timed_on]
    assert untouched == ["dense"]


def test_nothing_disturbed_is_nothing_to_time(results: Path) -> None:
    store, times = Store(results), Percentiles(1.0, 1.0, 1.0)
    for record in store.records()[0]:
        assert record.cost is not None
        cost = replace(record.cost, latency_dense_ms=times, latency_pruned_ms=times, latency_again_ms=times)
        store.write(replace(record, cost=replace(cost, latency_wall_spread=1.0)))
    assert list(retime(results, None, "cpu", disturbed=True)) == []
    done = CliRunner().invoke(app, ["retime", "--results", str(results), "--disturbed"])
    assert (done.exit_code, "nothing to time again" in done.output) == (0, True)


def test_disturbed_speeds_come_with_the_command_that_mends_them(
    make_record: Callable[..., RunRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    record = make_record()
    assert record.cost is not None
    even = Percentiles(1.0, 1.0, 1.0)
    quiet = replace(record, cost=replace(record.cost, latency_dense_ms=even, latency_pruned_ms=even))
    print_disturbed([quiet], Path("results/here"))
    assert capsys.readouterr().err == ""
    print_disturbed([quiet, record], Path("results/here"))
    said = capsys.readouterr().err
    assert "1 of 2 speeds were disturbed" in said
    assert "prunebench retime --results results/here --disturbed" in said


def loads(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """A machine of two cores with these load averages, one a look, the last for good; sleeping takes no time."""
    now, given = [0.0], [*values]
    monkeypatch.setattr(
        busy, "machine_load", lambda: MachineLoad(given.pop(0) if len(given) > 1 else given[0], 2)
    )
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def test_waiting_says_what_for_and_ends_when_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads(monkeypatch, 3.2, 2.0, 1.5)
    assert wait_for_quiet(600)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "waiting until the load average is at most 1.5: it is 3.2 on 2 cores. Giving up in 10"
    )
    assert last == "quiet after 10 s: load average 1.5 on 2 cores"
    loads(monkeypatch, 1.5)
    assert wait_for_quiet(0)
    assert capsys.readouterr().err == "", "nothing to wait for is nothing to say"


def test_waiting_reminds_and_gives_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads(monkeypatch, 9.0)
    assert not wait_for_quiet(601)
    said = capsys.readouterr().err
    assert said.count("waiting until") == 3, "at once, after five minutes and after ten"
    assert "still busy after 10 min 1 s: load average 9 on 2 cores, where 1.5 is quiet" in said


def test_on_a_machine_that_stays_busy_nothing_is_timed_and_the_status_says_so(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Store(results).records()[0]
    loads(monkeypatch, 9.0)
    done = CliRunner().invoke(app, ["retime", "--results", str(results), "--wait", "0.5"])
    assert (done.exit_code, "Nothing was timed" in done.output) == (75, True)
    assert Store(results).records()[0] == before
    wrong = CliRunner().invoke(app, ["retime", "--results", str(tmp_path / "none"), "--wait", "0.5"])
    assert isinstance(wrong.exception, StoreError)
    assert "waiting" not in wrong.output, "a wrong folder is told at once"
    loads(monkeypatch, 9.0, 1.0)
    done = CliRunner().invoke(app, ["retime", "--results", str(results), "--device", "cpu", "--wait", "1"])
    assert (done.exit_code, done.output.count("dense / pruned")) == (0, 2)


def test_metrics_scored_meanwhile_are_kept(results: Path) -> None:
    store = Store(results)
    timing = retime(results, None, "cpu")
    next(timing)
    for record in store.records()[0]:
        store.write(replace(record, metrics={**record.metrics, "plain": 0.125}))
    last = list(timing)[-1].record
    assert (last.metrics["plain"], store.read(last.run_id)) == (0.125, last)


def test_a_run_made_again_meanwhile_keeps_its_own_cost(results: Path) -> None:
    store = Store(results)
    timing = retime(results, None, "cpu")
    next(timing)
    renewed = [store.write(replace(record, outputs_sha256="0" * 64)) for record in store.records()[0]]
    assert [entry.problem for entry in timing] == ["it was run again meanwhile"] * (len(renewed) - 1)
    assert store.records()[0] == renewed


def test_another_model_in_the_folder_is_refused(results: Path) -> None:
    dense, pruned = sorted(Store(results).records()[0], key=lambda r: r.spec["method"])
    folder = results / "runs"
    shutil.copy(folder / dense.run_id / "model.safetensors", folder / pruned.run_id / "model.safetensors")
    problems = {t.record.spec["method"]: t.problem for t in retime(results, None, "cpu")}
    assert problems["dense"] is None
    assert "another number of non-zero weights" in str(problems["magnitude"])


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no results here"):
        list(retime(tmp_path, None, "cpu"))
