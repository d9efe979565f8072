"""A submission on its road: packed, verified, merged; and what is refused on the way, with the reason."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prunebench.cli.submission import submission_app
from prunebench.errors import PruneBenchError, StoreError, UsageError
from prunebench.leaderboard import build_board
from prunebench.leaderboard.build import board_files, methods_markdown
from prunebench.results.artifacts import push
from prunebench.results.committed import safe_name
from prunebench.results.convert import export_results
from prunebench.results.objects import sha256_of
from prunebench.results.record import Percentiles, RunRecord, to_json
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.standing import read_standing
from prunebench.results.store import Store, open_results, read_tensors, write_tensors
from prunebench.results.tracks import REFERENCE, SeedPlan
from prunebench.runner.plan import RunContext
from prunebench.submission.card import parse_card, read_card
from prunebench.submission.consistency import out_of_bounds
from prunebench.submission.folder import read_submission
from prunebench.submission.merge import merge, withdraw
from prunebench.submission.pack import pack, pack_predictions
from prunebench.submission.records import Finding
from prunebench.submission.reevaluation import REEVALUATED, Again, drawn_afresh
from prunebench.submission.report import Stage, VerificationReport, code, comment, write_report
from prunebench.submission.retraining import RETRAINED, _plan, draw_runs, retrain
from prunebench.submission.secret import Secret, take_secret
from prunebench.submission.verify import Depth, verify

pytestmark = pytest.mark.slow

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
CARD = {
    "title": "Channel-relative magnitude",
    "authors": ["A. Example"],
    "paper": "https://example.org/paper",
    "code": "none",
    "supervision": "none",
    "data": "the task's training images alone",
    "tuned_on": "nothing",
    "tuning": "no setting was searched",
    "hardware": "two cores",
    "licence": "MIT",
}
SEEDS = (0, 1)
FILE, NAME = "relative.py", "relative"
SOURCE = helpers.CRITERION_FILE.replace('"channel-relative"', f'"{NAME}"')


def write_card(path: Path, **changes: Any) -> Path:
    values = {**CARD, **changes}
    path.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8"
    )
    return path


@dataclasses.dataclass(frozen=True)
class Made:
    """A folder with a method's file, its results, a card, a board and the submission packed from them."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def board(self) -> Path:
        return self.root / "board"

    @property
    def entry(self) -> Path:
        return self.root / "entry"

    @property
    def file(self) -> Path:
        return self.root / FILE

    def pack(self, name: str = "entry", **card: Any) -> Path:
        write_card(self.root / "card.toml", **card)
        return pack(self.results, str(self.file), self.root / name, self.root / "card.toml").root

    def verify(self, **depth: Any) -> VerificationReport:
        return verify(self.entry, self.board, Depth(**depth))[0]


@pytest.fixture(autouse=True)
def planned_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board's suites plan the seeds that are trained here."""
    plan = SeedPlan(helpers.TASK, SEEDS)
    monkeypatch.setattr("prunebench.submission.consistency.board_plans", lambda: (plan,))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A board with dense and magnitude, and a submission of another method: tiny runs on real digits."""
    made = Made(tmp_path_factory.mktemp("submission"))
    made.file.write_text(SOURCE, encoding="utf-8")
    suite = helpers.tiny_suite("magnitude", str(made.file), seeds=SEEDS)
    _, records = helpers.run_inline(suite, made.results)
    assert {record.status for record in records.values()} == {"ok"}
    export_results(made.results, made.board, methods=["dense", "magnitude"])
    made.pack()
    return made


@pytest.fixture
def made(original: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A copy of the submission, to do mischief with; a cache that no other test has pulled into."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    shutil.copytree(original.root, tmp_path / "copy")
    return Made(tmp_path / "copy")


def failures(report: VerificationReport) -> str:
    return "\n".join(f"{f.what}: {f.why}" for stage in report.stages for f in stage.findings if not f.ok)


def change_records(made: Made, change: Callable[[RunRecord], RunRecord | None]) -> None:
    """Write the submission's results again, each record changed or, where None comes back, left out."""
    store, forged = open_results(made.entry / "results"), made.root / "forged"
    for record in store.records()[0]:
        changed = change(record)
        if changed is not None:
            folder = Store(forged).folder(changed.run_id)
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(to_json(changed), encoding="utf-8")
    shutil.rmtree(made.entry / "results")
    export_results(forged, made.entry / "results")
    shutil.rmtree(made.entry / "results" / "locks")
    shutil.rmtree(forged)


def respecified(record: RunRecord, **changes: Any) -> RunRecord:
    spec = dataclasses.replace(record.run_spec, **changes)
    return dataclasses.replace(record, spec=spec.to_dict(), run_id=spec.run_id)


def own(record: RunRecord) -> bool:
    return record.spec["method"] == NAME


# The road


@pytest.mark.slow
def test_an_honest_submission_is_consistent_and_reevaluated(original: Made) -> None:
    report = original.verify(artifacts=str(original.results))
    assert report.passed, failures(report)
    assert [stage.badge for stage in report.stages] == ["consistent", "re-evaluated"]
    assert "4 of 4 runs give the same bits here" in report.stages[1].notes[0]
    assert [(row.method, row.sparsity) for row in report.rows if row.change.startswith("new")] == [
        (NAME, "0.9")
    ]


@pytest.mark.slow
def test_weights_at_an_address_are_found_by_the_card(made: Made) -> None:
    address = made.root / "served"
    list(push(made.results, str(address), methods=[NAME, "dense"]))
    assert made.verify(artifacts=str(address)).badge == REEVALUATED
    report = made.verify(artifacts="card")
    assert report.badge == "consistent"
    assert "Its card names no address" in report.stages[0].notes[0]


def test_an_address_that_offers_other_objects_is_refused(made: Made) -> None:
    address = made.root / "served"
    list(push(made.results, str(address), methods=[NAME, "dense"]))
    manifest = address / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"bytes":', '"bytes":1'))
    assert "than artifacts.jsonl lists: push them" in failures(made.verify(artifacts=str(address)))
    listed = made.entry / "artifacts.jsonl"
    listed.write_text(listed.read_text().replace('"bytes":', '"bytes":1000'))
    assert "more than its network or test split has" in failures(made.verify())


@pytest.mark.slow
def test_drawn_runs_are_trained_again_to_the_same_bits(original: Made) -> None:
    report = original.verify(artifacts=str(original.results), retrain=1, draw_seed="a public text")
    assert report.badge == RETRAINED, failures(report)
    assert "1 of 1 drawn runs give the same logits" in report.stages[2].notes[1]


@pytest.mark.slow
def test_records_that_the_file_does_not_give_fail_the_training(made: Made) -> None:
    """The file trains no such network: its rows lie elsewhere."""
    submission = read_submission(made.entry)
    records = [
        dataclasses.replace(record, outputs_sha256="0" * 64, metrics=dict.fromkeys(record.metrics, 0.99))
        for record in open_results(submission.results).records()[0]
    ]
    stage = retrain(submission, records, 1, "text", None)
    assert not stage.passed
    assert "99.0%, here" in failures(VerificationReport("", "", "", "", "", (stage,)))


def test_the_draw_is_public_and_not_the_submitter_s(original: Made) -> None:
    records = open_results(original.entry / "results").records()[0]
    assert [run.run_id for run in draw_runs(records, 2, "x", NAME)] == [
        run.run_id for run in draw_runs(records[::-1], 2, "x", NAME)
    ]
    assert {draw_runs(records, 1, str(text), NAME)[0].run_id for text in range(30)} == {
        r.run_id for r in records if own(r)
    }
    with pytest.raises(UsageError, match="--draw-seed"):
        Depth(artifacts="x", retrain=1)


@pytest.mark.slow
def test_a_merge_adds_rows_badges_and_the_source(made: Made) -> None:
    report = made.verify(artifacts=str(made.results))
    write_report(report, made.root / "report")
    done = merge(made.entry, made.board, made.root / "report" / "report.json")
    assert (done.new, done.badge) == (len(SEEDS), "re-evaluated")
    (badge,) = read_standing(made.board).badges.values()
    assert (badge.method, badge.badge) == (NAME, "re-evaluated")
    assert (made.board / "submissions" / NAME / badge.version / "method" / FILE).read_text() == SOURCE
    board = build_board(open_results(made.board).records()[0], read_standing(made.board))
    assert {row.method: row.verified for row in board.tracks[0].rows} == {
        "dense": "",
        "magnitude": "",
        NAME: "re-evaluated",
    }
    assert b"Verified" in board_files(board)[f"tasks/{board.tracks[0].slug}.md"]
    assert merge(made.entry, made.board).new == 0
    assert read_standing(made.board).badges[badge.key].badge == "re-evaluated", "a lower badge replaces none"


def test_a_report_of_another_folder_gives_no_badge(made: Made) -> None:
    write_report(made.verify(), made.root / "report")
    write_card(made.entry / "card.toml", title="Changed since")
    with pytest.raises(UsageError, match="before it changed"):
        merge(made.entry, made.board, made.root / "report" / "report.json")


@pytest.mark.slow
def test_a_failed_stage_merges_nothing_and_more_runs_take_the_lower_badge(made: Made) -> None:
    failed = dataclasses.replace(
        made.verify(), stages=(*made.verify().stages, Stage(REEVALUATED, (Finding("x", False),)))
    )
    write_report(failed, made.root / "failed")
    with pytest.raises(UsageError, match="the report refuses this submission"):
        merge(made.entry, made.board, made.root / "failed" / "report.json")
    write_report(made.verify(artifacts=str(made.results)), made.root / "report")
    merge(made.entry, made.board, made.root / "report" / "report.json")
    suite = helpers.tiny_suite(str(made.file), seeds=SEEDS, sparsities=(0.5,))
    helpers.run_inline(suite, made.results)
    assert merge(made.pack("more"), made.board).new == len(SEEDS)
    assert [badge.badge for badge in read_standing(made.board).badges.values()] == ["consistent"]


def test_the_same_run_with_other_numbers_is_a_conflict_that_is_shown(made: Made) -> None:
    assert merge(made.entry, made.board).done
    before = open_results(made.board).records()[0]

    def slower(record: RunRecord) -> RunRecord:
        assert record.cost is not None
        return dataclasses.replace(record, cost=dataclasses.replace(record.cost, peak_memory_mb=1.0))

    change_records(made, slower)
    done = merge(made.entry, made.board)
    assert not done.done
    assert len(done.conflicts) == len(SEEDS)
    assert f"{NAME} 0.9 seed 0" in " ".join(done.conflicts)
    assert "cost" in done.conflicts[0]
    assert open_results(made.board).records()[0] == before


@pytest.mark.slow
def test_versions_coexist_and_the_newest_is_listed(made: Made) -> None:
    old = read_submission(made.entry).manifest.version
    merge(made.entry, made.board)
    made.file.write_text(SOURCE + "\n# a second version\n", encoding="utf-8")
    helpers.run_inline(helpers.tiny_suite(str(made.file), seeds=SEEDS), made.results)
    entry = made.pack("second", supersedes=old, title="Second")
    assert "It would take the place of" in comment(verify(entry, made.board)[0])
    assert merge(entry, made.board).notes == (
        f"version {old} is superseded: its runs stay, the board lists "
        f"{read_submission(entry).manifest.version}",
    )
    records, standing = open_results(made.board).records()[0], read_standing(made.board)
    assert {r.spec["method_version"] for r in records if own(r)} == {
        old,
        read_submission(entry).manifest.version,
    }
    board = build_board(records, standing)
    assert [row.method for row in board.tracks[0].rows].count(NAME) == 1
    assert f"{NAME} {old} was superseded" in methods_markdown(board).replace("\\_", "_")
    with pytest.raises(UsageError, match="was superseded: hand in a new version"):
        merge(made.entry, made.board)
    line = withdraw(made.board, NAME, None, "a fault was found")
    assert "was withdrawn: a fault was found" in line.words
    board = build_board(records, read_standing(made.board))
    assert NAME not in [row.method for row in board.tracks[0].rows]
    assert b"a fault was found" in board_files(board)["site/data/board.js"]


def test_two_contributors_bring_a_seed_each(made: Made) -> None:
    """Alone each lacks a seed; beside the other both are whole."""
    for seed, name in ((0, "first"), (1, "second")):
        part = Made(made.root / name)
        shutil.copytree(made.entry, part.entry)
        change_records(part, lambda record, seed=seed: record if record.spec["seed"] == seed else None)
    entries = [made.root / name / "entry" for name in ("first", "second")]
    assert "seeds 1 are missing" in failures(verify(entries[0], made.board)[0])
    assert [
        merge(entry, made.board, beside=[other]).done for entry, other in zip(entries, entries[::-1])
    ] == [True, True]
    assert sum(map(own, open_results(made.board).records()[0])) == len(SEEDS)


def test_latencies_of_two_machines_stand_apart(made: Made) -> None:
    def elsewhere(record: RunRecord) -> RunRecord:
        environment = {**record.environment, "cpu": "another processor"}
        return record if record.spec["seed"] == 0 else dataclasses.replace(record, environment=environment)

    change_records(made, elsewhere)
    assert merge(made.entry, made.board).done
    rows = build_board(open_results(made.board).records()[0]).tracks[0].rows
    (row,) = (row for row in rows if row.method == NAME)
    assert row.cost is not None
    assert [speed.runs for speed in row.cost.speeds if speed.machine.processor == "another processor"] == [1]
    assert len(row.cost.speeds) == 2
    assert "†" in row.label.removeprefix(NAME)


# Each step names the next command


def test_pack_says_what_is_missing_and_how_to_get_it(made: Made) -> None:
    card, out = made.root / "new.toml", made.root / "other"
    with pytest.raises(UsageError, match=r"name its file, `--method my_method.py`"):
        pack(made.results, NAME, out, card)
    with pytest.raises(UsageError, match=r"was written: fill it in, then the same command again"):
        pack(made.results, str(made.file), out, card)
    with pytest.raises(UsageError, match="title: is empty: fill it in"):
        pack(made.results, str(made.file), out, card)
    write_card(card, supervision="val-groups")
    with pytest.raises(UsageError, match="supervision: the runs declare none"):
        pack(made.results, str(made.file), out, card)
    with pytest.raises(UsageError, match="is there already"):
        pack(made.results, str(made.file), made.entry, write_card(card))
    record = next(filter(own, Store(made.results).records()[0]))
    (Store(made.results).folder(record.run_id) / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="run it again with --keep-models"):
        pack(made.results, str(made.file), out, card)
    made.file.write_text(SOURCE + "# edited\n", encoding="utf-8")
    with pytest.raises(UsageError, match="run it again, `prunebench run SUITE --method"):
        pack(made.results, str(made.file), out, card)
    assert not out.exists()


def test_a_package_travels_whole(made: Made) -> None:
    package = made.root / "relative_package"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE.replace(f'"{NAME}"', '"packed"'), encoding="utf-8")
    (package / "notes.txt").write_text("a constant", encoding="utf-8")
    helpers.run_inline(helpers.tiny_suite(str(package), seeds=SEEDS), made.results)
    entry = pack(made.results, str(package), made.root / "packed", write_card(made.root / "card.toml")).root
    report = verify(entry, made.board)[0]
    assert report.passed, failures(report)
    (entry / "method" / "relative_package" / "notes.txt").write_text("another constant", encoding="utf-8")
    assert "the file handed in is file-" in failures(verify(entry, made.board)[0])


@pytest.mark.slow
def test_one_method_of_a_file_with_several_is_packed_and_trained_again(made: Made) -> None:
    several = made.root / "several.py"
    several.write_text(f"{SOURCE}\n\n{SOURCE.replace('relative', 'another')}", encoding="utf-8")
    helpers.run_inline(helpers.tiny_suite(str(several), seeds=SEEDS), made.results)
    card = write_card(made.root / "card.toml")
    entry = pack(made.results, f"{several}:another", made.root / "one", card).root
    report = verify(entry, made.board)[0]
    assert report.passed, failures(report)
    submission, records = read_submission(entry), open_results(entry / "results").records()[0]
    assert {record.spec["method"] for record in records} == {"dense", "another"}
    (run, *_) = (record for record in records if record.spec["method"] == "another")
    planned = _plan(submission, run, RunContext(made.root / "again"))
    assert run.run_id in {each.spec.run_id for each in planned}
    assert {each.spec.method for each in planned} == {"dense", "another"}


# Forged, swapped, wrong: refused with the reason


@pytest.mark.slow
def test_made_up_counts_that_agree_are_found_by_the_logits(made: Made) -> None:
    def perfect(record: RunRecord) -> RunRecord:
        if not own(record):
            return record
        groups = [dataclasses.replace(row, correct=row.count) for row in record.groups]
        metrics = {**record.metrics, "bias_gap": 0.0}
        metrics |= dict.fromkeys(
            ("plain", "unbiased", "aligned", "conflicting", "worst_group", "train_weighted"), 1.0
        )
        return dataclasses.replace(record, groups=groups, metrics={k: metrics[k] for k in record.metrics})

    change_records(made, perfect)
    assert made.verify().passed, "its counts agree with each other"
    report = made.verify(artifacts=str(made.results))
    assert report.badge == "consistent"
    assert "its stored logits give other counts" in failures(report)


@pytest.mark.slow
def test_logits_of_other_weights_are_found(made: Made) -> None:
    """Records, logits and hashes agree with each other; the weights have another sign."""
    store = Store(made.results)
    by_seed = {
        record.spec["seed"]: record for record in store.records()[0] if record.spec["method"] == "magnitude"
    }

    def swapped(record: RunRecord) -> RunRecord:
        if not own(record):
            return record
        weights = read_tensors(store.folder(record.run_id) / "model.safetensors")
        other = read_tensors(store.folder(by_seed[record.spec["seed"]].run_id) / "model.safetensors")
        mixed = {
            n: torch.where(w != 0, -w, w) if n.endswith("weight") and n in other else w
            for n, w in weights.items()
        }
        digest = write_tensors(store.folder(record.run_id) / "model.safetensors", mixed)
        lines = (made.entry / "artifacts.jsonl").read_text().replace(record.model_sha256 or "", digest)
        (made.entry / "artifacts.jsonl").write_text(lines)
        changed = dataclasses.replace(record, model_sha256=digest)
        (store.folder(record.run_id) / "record.json").write_text(to_json(changed))
        return changed

    change_records(made, swapped)
    report = made.verify(artifacts=str(made.results))
    assert report.badge == "consistent"
    assert "other weights than those that gave the logits" in failures(report)


def hand_in_other_weights(made: Made, change: Callable[[Path], None]) -> None:
    """Change the method's stored weights, and whatever names them: hashes agree everywhere."""
    store = Store(made.results)

    def swap(record: RunRecord) -> RunRecord:
        if not own(record):
            return record
        path = store.folder(record.run_id) / "model.safetensors"
        change(path)
        digest = sha256_of(path)
        lines = (made.entry / "artifacts.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        for entry in entries:
            if entry["run_id"] == record.run_id:
                entry["model"] = {"sha256": digest, "bytes": path.stat().st_size}
        (made.entry / "artifacts.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        changed = dataclasses.replace(record, model_sha256=digest)
        (store.folder(record.run_id) / "record.json").write_text(to_json(changed))
        return changed

    change_records(made, swap)


@pytest.mark.slow
def test_zeros_that_are_claimed_are_counted(made: Made) -> None:
    def tiny(path: Path) -> None:
        weights = read_tensors(path)
        write_tensors(
            path, {n: torch.where(w == 0, 1e-12, w) if w.ndim > 1 else w for n, w in weights.items()}
        )

    hand_in_other_weights(made, tiny)
    report = made.verify(artifacts=str(made.results))
    assert "0.000000 zeros, its record says" in failures(report)


def _pickled(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (path.with_name("ran"),)

    path.write_bytes(pickle.dumps(Bomb()))


def _endless_header(path: Path) -> None:
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def _a_stranger_s_tensor(path: Path) -> None:
    write_tensors(path, {**read_tensors(path), "hook.weight": torch.ones(3)})


def _no_finite_weights(path: Path) -> None:
    write_tensors(path, {name: value * torch.nan for name, value in read_tensors(path).items()})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_pickled, "cannot be read"),
        (_endless_header, "cannot be read"),
        (_a_stranger_s_tensor, "its weights are not those of"),
        (_no_finite_weights, "not all finite"),
    ],
)
def test_weights_that_are_none_are_refused_and_nothing_runs(
    change: Callable[[Path], None], reason: str, made: Made
) -> None:
    hand_in_other_weights(made, change)
    assert reason in failures(made.verify(artifacts=str(made.results)))
    assert [*made.root.rglob("ran")] == []


def test_a_speed_that_no_zeros_give_is_refused(made: Made) -> None:
    def fast(record: RunRecord) -> RunRecord:
        assert record.cost is not None
        times = Percentiles(1e-3, 1e-3, 1e-3)
        cost = dataclasses.replace(record.cost, latency_pruned_ms=times)
        return dataclasses.replace(record, cost=cost) if own(record) else record

    change_records(made, fast)
    assert made.verify().passed
    report = made.verify(artifacts=str(made.results))
    assert report.badge == "consistent"
    assert "times as fast" in failures(report)


FORGERIES: dict[str, tuple[Callable[[RunRecord], RunRecord | None], str]] = {
    "a seed is missing": (
        lambda record: None if own(record) and record.spec["seed"] == 1 else record,
        "seeds 1 are missing: `prunebench run` all of them",
    ),
    "other seeds than the board's": (
        lambda record: respecified(record, seed=7) if record.spec["seed"] == 1 else record,
        "seeds 1 are missing",
    ),
    "a seed failed": (
        lambda record: (
            dataclasses.replace(record, status="failed", reason="bad luck")
            if own(record) and record.spec["seed"] == 1
            else record
        ),
        "seeds 1 failed: run the same command again",
    ),
    "another task version": (
        lambda record: respecified(record, task_version=record.run_spec.task_version + 1),
        "of the task, this is version",
    ),
    "other data": (
        lambda record: respecified(record, data_fingerprint="0123456789abcdef"),
        "made with other data",
    ),
    "other splits": (
        lambda record: dataclasses.replace(record, splits_hash="0123456789abcdef"),
        "its splits are 0123456789abcdef",
    ),
    "an unknown task": (lambda record: respecified(record, task="my-task"), "is no task of PruneBench"),
    "another version of the file": (
        lambda record: respecified(record, method_version="file-000000000000") if own(record) else record,
        "pack one version",
    ),
    "a better dense model": (
        lambda record: record if own(record) else _moved(record),
        "more than",
    ),
    "no dense model of ours or theirs": (
        lambda record: respecified(record, model="convnet-tiny") if own(record) else None,
        "its dense model is not there",
    ),
    "supervision that its card keeps quiet": (
        lambda record: dataclasses.replace(record, method={**record.method, "supervision": "train-groups"}),
        "its card declares supervision none",
    ),
    "no hash of weights": (
        lambda record: dataclasses.replace(record, model_sha256=None),
        "names no weights",
    ),
    "an edited metric": (
        lambda record: dataclasses.replace(record, metrics={**record.metrics, "unbiased": 0.999}),
        "metric unbiased is 0.999, its groups give",
    ),
    "zeros that the parameters contradict": (
        lambda record: dataclasses.replace(
            record,
            cost=dataclasses.replace(record.cost, nonzero_parameters=7),  # type: ignore[type-var]
        ),
        "cost.nonzero_parameters: 7",
    ),
    "a run from the future": (
        lambda record: dataclasses.replace(record, started_utc="2099-01-01T00:00:00Z"),
        "want a time that has been",
    ),
}


def _moved(record: RunRecord) -> RunRecord:
    """A dense record whose counts agree, better by a third of what it got wrong."""
    groups = [dataclasses.replace(row, correct=(row.count + 2 * row.correct) // 3) for row in record.groups]
    shares = {(row.label, row.bias): row.correct / row.count for row in groups}
    ways = {kind: [shares[r.label, r.bias] for r in groups if r.aligned is kind] for kind in (True, False)}
    aligned, conflicting = (sum(values) / len(values) for values in (ways[True], ways[False]))
    metrics = {
        **record.metrics,
        "plain": sum(r.correct for r in groups) / sum(r.count for r in groups),
        "unbiased": sum(shares.values()) / len(shares),
        "aligned": aligned,
        "conflicting": conflicting,
        "bias_gap": aligned - conflicting,
        "worst_group": min(shares.values()),
    }
    return dataclasses.replace(record, groups=groups, metrics=metrics)


def test_seeds_for_budgets_are_refused(original: Made) -> None:
    """None of them can be written in the committed form; the rule holds whatever wrote it."""
    records = open_results(original.entry / "results").records()[0]
    tuned = [respecified(record, seed=TUNE_SEEDS + record.run_spec.seed) for record in records]
    problems = [*out_of_bounds(tuned)]
    assert [*out_of_bounds(records)] == []
    assert "seeds 100, 101 are for choosing budgets" in problems[0]


def test_the_unpruned_reference_comes_along_and_is_the_board_s(made: Made) -> None:
    """Where the board has `dense-finetuned`, a submission has it for its seeds, with the board's numbers."""
    suite = helpers.tiny_suite(REFERENCE, seeds=SEEDS)
    helpers.run_inline(suite, made.results)
    export_results(made.results, made.board, methods=[REFERENCE])
    assert f"{REFERENCE}, which its row is compared with, has no run of seed 0" in failures(made.verify())
    shutil.rmtree(made.entry)
    made.pack()
    report = made.verify()
    assert report.passed, failures(report)
    assert {row.method for row in report.rows} == {NAME}
    change_records(made, lambda r: _moved(r) if r.spec["method"] == REFERENCE else r)
    assert f"{REFERENCE} on {helpers.TASK}" in failures(made.verify())


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_refused_with_its_reason(forgery: str, made: Made) -> None:
    change, reason = FORGERIES[forgery]
    change_records(made, change)
    report = made.verify()
    assert reason in failures(report)
    done = merge(made.entry, made.board)
    assert done.refused is not None
    assert not (made.board / "badges.jsonl").exists()


def rename(made: Made, name: str) -> None:
    """The same runs, file and card under another name, as if they had been made so."""
    made.file.write_text(SOURCE.replace(f'"{NAME}"', f'"{name}"'), encoding="utf-8")
    shutil.rmtree(made.entry)
    helpers.run_inline(helpers.tiny_suite(str(made.file), seeds=SEEDS), made.results)
    made.pack()


def test_another_s_method_under_a_new_name_is_refused(made: Made) -> None:
    assert merge(made.entry, made.board).done
    rename(made, "brand-new")
    assert f"2 of 2 runs are exactly those of {NAME}: that method renamed" in failures(made.verify())


@pytest.mark.parametrize(("name", "reason"), [("Magnitude_", "is taken for magnitude"), ("rnagnitude", "")])
def test_names_that_readers_confuse(name: str, reason: str, made: Made) -> None:
    rename(made, name)
    report = made.verify()
    assert reason in failures(report)
    assert report.passed == (not reason)


def test_a_name_stays_with_its_authors(made: Made) -> None:
    merge(made.entry, made.board)
    made.file.write_text(SOURCE + "# changed\n", encoding="utf-8")
    helpers.run_inline(helpers.tiny_suite(str(made.file), seeds=SEEDS), made.results)
    shutil.rmtree(made.entry)
    made.pack(authors=["Somebody Else"])
    assert f"{NAME} is a method by A. Example, on the board with other code" in failures(made.verify())
    shutil.rmtree(made.entry)
    made.pack()
    assert "name it on the card (`supersedes = ...`)" in failures(made.verify())


def test_a_source_that_did_not_run_is_refused(made: Made) -> None:
    (made.entry / "method" / FILE).write_text(SOURCE + "# better\n", encoding="utf-8")
    assert "run it again, then pack" in failures(made.verify())
    (made.entry / "method" / FILE).unlink()
    assert "the method's file is not there" in failures(made.verify())


# Predictions alone


def test_predictions_give_a_row_without_verified_weights(made: Made) -> None:
    store = Store(made.results)
    files = []
    for record in filter(own, store.records()[0]):
        from safetensors.torch import save_file

        path = made.root / f"{record.spec['seed']}.safetensors"
        tensors = read_tensors(store.folder(record.run_id) / "outputs.safetensors")
        save_file(tensors, path, metadata={"task": helpers.TASK, "seed": str(record.spec["seed"])})
        files.append(path)
    theirs = made.root / "theirs"
    entry = pack_predictions(
        files, theirs, "foreign", made.root / "foreign", made.root / "card.toml", None
    ).root
    with pytest.raises(UsageError, match="the report of `verify --artifacts`"):
        merge(entry, made.board)
    report, _ = verify(entry, made.board, Depth(artifacts=str(theirs)))
    assert report.badge == "unverified weights", failures(report)
    write_report(report, made.root / "report")
    assert merge(entry, made.board, made.root / "report" / "report.json").badge == "unverified weights"
    records = open_results(made.board).records()[0]
    (row,) = [
        row
        for track in build_board(records, read_standing(made.board)).tracks
        for row in track.rows
        if row.method == "foreign"
    ]
    own_mean = sum(r.metrics["unbiased"] or 0 for r in filter(own, store.records()[0])) / len(SEEDS)
    assert row.metric("unbiased").mean == pytest.approx(own_mean, abs=1e-12)
    assert (row.cost, row.verified) == (None, "unverified weights")


def test_predictions_of_another_shape_are_refused(made: Made) -> None:
    from safetensors.torch import save_file

    path, card = made.root / "x.safetensors", made.root / "card.toml"
    save_file({"val_logits": torch.zeros(3, 10), "test_logits": torch.zeros(3, 10)}, path)
    with pytest.raises(UsageError, match="want `task` and `seed` in its metadata"):
        pack_predictions([path], made.root / "theirs", "foreign", made.root / "foreign", card, None)
    save_file({"val_logits": torch.zeros(3, 10)}, path, metadata={"task": helpers.TASK, "seed": "0"})
    with pytest.raises(UsageError, match="val_logits: want floating-point numbers of shape"):
        pack_predictions([path], made.root / "theirs", "foreign", made.root / "foreign", card, None)


# Hostile input

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": '<img src=x onerror="alert(1)">',
    "pipes": "a | b | c",
    "markdown": "[x](javascript:alert(1)) **b** `c` #1 @everyone https://example.org",
    "comment": "<!-- board:end --> {{7*7}}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_of_a_card_are_inert(text: str, made: Made) -> None:
    write_card(made.entry / "card.toml", title=text[:120], authors=[text[:100]], data=text, tuning=text)
    report = made.verify()
    assert report.passed, failures(report)
    assert text not in comment(report), "a comment needs nothing of what a card says"


@pytest.mark.parametrize(
    "value",
    [
        "two\nlines",
        "tab\there",
        "\u202eright to left",
        "\u200binvisible",
        "\x1b]0;title\x07",
        "x" * 10_000,
        "",
        " ",
    ],
)
def test_a_card_takes_one_visible_line(value: str) -> None:
    with pytest.raises(UsageError, match="title: "):
        parse_card({**CARD, "title": value}, "card")
    with pytest.raises(UsageError, match=r"authors\.0: "):
        parse_card({**CARD, "authors": [value]}, "card")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paper", "javascript:alert(1)"),
        ("paper", 'https://example.org/"onclick="x'),
        ("paper", "http://example.org"),
        ("artifacts", "/etc"),
        ("artifacts", "file:///etc"),
        ("artifacts", "https://user:word@example.org"),
        ("licence", "MIT`rm`"),
        ("supersedes", "../../x"),
        ("tuned_on", "test"),
        ("supervision", "all"),
        ("authors", []),
        ("authors", ["x"] * 1000),
        ("authors", "A. Example"),
        ("licence", None),
        ("surprise", "x"),
    ],
)
def test_a_card_names_the_field_that_is_wrong(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{key}: |{key}.0: "):
        parse_card({**CARD, key: value}, "card")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"title = ",
        b"a = " + b"[" * 8000,
        b"x" * 100_000,
        b"a = 1e" + b"9" * 5000,
        b"a = " + b"9" * 6000,
    ],
)
def test_a_card_that_is_no_toml_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_bytes(data)
    with pytest.raises(UsageError):
        read_card(tmp_path / "card.toml")


def _link(made: Made) -> None:
    (made.entry / "method" / "extra.py").symlink_to("/etc/passwd")


def _link_folder(made: Made) -> None:
    (made.entry / "results" / "more").symlink_to(made.board)


def _pipe(made: Made) -> None:
    os.mkfifo(made.entry / "method" / "pipe.py")


def _pickle(made: Made) -> None:
    (made.entry / "method" / "weights.pt").write_bytes(b"x")


def _hidden(made: Made) -> None:
    (made.entry / "method" / ".hidden.py").write_text("")


def _sign(made: Made) -> None:
    (made.entry / "method" / "a\u202eb.py").write_text("")


def _large(made: Made) -> None:
    with (made.entry / "method" / "large.csv").open("wb") as stream:
        stream.truncate(1 << 40)


def _many(made: Made) -> None:
    for number in range(600):
        (made.entry / "method" / f"n{number}.py").write_text("")


def _deep(made: Made) -> None:
    made.entry.joinpath("method", *"abcdefghij").mkdir(parents=True)


def _stray(made: Made) -> None:
    (made.entry / "results" / safe_name(helpers.TASK) / "run.py").write_text("")


def _manifest(text: str) -> Callable[[Made], None]:
    def write(made: Made) -> None:
        (made.entry / "submission.json").write_text(text)

    return write


def _upwards(made: Made) -> None:
    """Predictions alone have no source whose hash is their version, so only its form stands in the way."""
    values = json.loads((made.entry / "submission.json").read_text())
    text = json.dumps({**values, "version": "..", "kind": "predictions", "source": None})
    (made.entry / "submission.json").write_text(text)


def _grows(made: Made) -> None:
    """One line that all runs of a file refer to: of 8 MB, it would be 16 GB in 2,000 runs."""
    path = made.entry / "results" / safe_name(helpers.TASK) / "context.json"
    head, *rest = path.read_text().splitlines()
    line = '"0000000000000000":{"environment":{"cpu":"' + "x" * (1 << 22) + '"}},'
    path.write_text("\n".join([head, line, *rest]) + "\n")


def _nested(made: Made) -> None:
    path = made.entry / "results" / safe_name(helpers.TASK) / f"{NAME}.jsonl"
    path.write_text(path.read_text() + '{"run":' + "[" * 50_000 + "\n")


def _same_name(made: Made) -> None:
    (made.entry / "method" / FILE.upper().replace(".PY", ".py")).write_text("")


def _elsewhere(made: Made) -> None:
    folder = made.entry / "results" / safe_name(helpers.TASK)
    folder.rename(folder.with_name("%2e%2e%2fetc"))


def _large_source(made: Made) -> None:
    (made.entry / "method" / "long.py").write_text("import a\n" * 200_000)


def _nested_card(made: Made) -> None:
    with (made.entry / "card.toml").open("a") as stream:
        stream.write("a" + ".a" * 7000 + " = 1\n")


def _nested_source(made: Made) -> None:
    (made.entry / "method" / FILE).write_text("x = " + "-" * 900_000 + "1\n")


def _objects_of_nobody(made: Made) -> None:
    with (made.entry / "artifacts.jsonl").open("a") as stream:
        stream.write('{"run_id": "../../x", "model": {"sha256": "../../etc/passwd", "bytes": 1}}\n')


def _heavy_objects(made: Made) -> None:
    path = made.entry / "artifacts.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        entry["model"]["bytes"] = 1 << 32
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize(
    ("mischief", "reason"),
    [
        (_upwards, "submission.json: version"),
        (_grows, "want lines of at most 64 kB"),
        (_nested, "its results are in the committed form"),
        (_same_name, "differ in case alone"),
        (_elsewhere, "its results are in the committed form"),
        (_large_source, "want source files of at most 1 MiB"),
        (_nested_card, "card.toml"),
        (_nested_source, "the file handed in is"),
        (_objects_of_nobody, "artifacts.jsonl"),
        (_heavy_objects, "4,294,967,296 bytes of weights, more than its network"),
    ],
)
def test_paths_bombs_and_nests_are_refused(mischief: Callable[[Made], None], reason: str, made: Made) -> None:
    mischief(made)
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = made.verify()
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert not report.passed
    assert reason in failures(report)
    assert len(comment(report)) < 10_000
    assert after.ru_utime - before.ru_utime < 20
    assert after.ru_maxrss - before.ru_maxrss < 1 << 20, "kB: no bomb went off"
    done = merge(made.entry, made.board)
    assert done.refused is not None
    assert not (made.board / "submissions").exists()


def _source(made: Made) -> None:
    values = json.loads((made.entry / "submission.json").read_text())
    (made.entry / "submission.json").write_text(json.dumps({**values, "source": "../../relative.py"}))


@pytest.mark.parametrize(
    ("mischief", "reason"),
    [
        (_link, "neither a file nor a folder"),
        (_link_folder, "neither a file nor a folder"),
        (_pipe, "neither a file nor a folder"),
        (_pickle, "never pickled"),
        (_hidden, "want plain short names"),
        (_sign, "want plain short names"),
        (_large, "want files of at most 8 MiB"),
        (_many, "more than 500 files"),
        (_deep, "want plain short names"),
        (_stray, "does not belong here"),
        (_source, "submission.json: source"),
        (_manifest("{"), "not valid JSON"),
        (_manifest("[" * 100_000), "not valid JSON"),
        (_manifest('{"format": 99}'), "submission.json: format"),
        (
            _manifest('{"format": 1, "method": "a\\nb", "version": "x", "kind": "weights"}'),
            "submission.json: method",
        ),
    ],
)
def test_a_folder_that_holds_what_it_must_not_is_refused_unread(
    mischief: Callable[[Made], None], reason: str, made: Made
) -> None:
    mischief(made)
    report = made.verify()
    assert not report.passed
    assert reason in failures(report)
    with pytest.raises(PruneBenchError):
        read_submission(made.entry)


def test_archives_are_not_taken(made: Made) -> None:
    archive = shutil.make_archive(str(made.root / "packed"), "zip", made.entry)
    with pytest.raises(UsageError, match="unpack archives yourself"):
        verify(Path(archive), made.board)


def test_code_of_a_submission_is_not_imported_to_verify_it(made: Made) -> None:
    mark = made.root / "ran"
    (made.entry / "method" / FILE).write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    (made.entry / "method" / "torch.py").write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    made.verify()
    assert not mark.exists()


def test_history_is_inert_on_the_board(made: Made) -> None:
    merge(made.entry, made.board)
    withdraw(made.board, NAME, None, "<script>alert(1)</script> | [x](javascript:alert(1))")
    board = build_board(open_results(made.board).records()[0], read_standing(made.board))
    files = board_files(board)
    assert b"&lt;script&gt;alert(1)" in files["methods.md"]
    for text in files.values():
        assert b"<script>alert" not in text
    assert b"[x](javascript" not in files["methods.md"]
    with pytest.raises(UsageError, match="want one line"):
        withdraw(made.board, "magnitude", None, "two\nlines")


def test_the_workflow_for_forks_has_no_secret_and_reads_only() -> None:
    text = (ROOT / ".github" / "workflows" / "submission.yml").read_text(encoding="utf-8")
    assert text.count("permissions: {contents: read}") == 1
    assert [word for word in ("secrets", "pull_request_target", "write") if word in text] == []
    assert text.count("persist-credentials: false") == text.count("actions/checkout")
    assert "github.event.pull_request.base.sha" in text


def test_a_code_span_holds_whatever_is_in_it() -> None:
    text = code("`x` | <b>\n\u202e\x1b[31m @me https://x " + "y" * 10_000)
    assert (text[0], text[-1]) == ("`", "`")
    assert not set("`|\n\u202e\x1b") & set(text[1:-1])
    assert len(text) < 400


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"task": 1}', '{"badge": "gold"}', "[" * 100_000, json.dumps({"task": "x" * 1000})]
)
def test_a_damaged_standing_is_named_by_its_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "badges.jsonl").write_text(line + "\n")
    with pytest.raises(StoreError, match=r"badges\.jsonl:1: "):
        read_standing(tmp_path)


# The fresh draw


TEXT = "a secret of the maintainer, 0123456789abcdef"


def _argv_and_files(folder: Path) -> str:
    """Everything that a verification wrote into a folder."""
    return "\n".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def test_honest_weights_pass_a_fresh_draw_and_the_secret_is_nowhere(
    made: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    run = subprocess.run

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append((arguments, named, dict(os.environ)))
        done = run(*arguments, **named)
        seen.append((done.stdout, done.stderr))
        return done

    monkeypatch.setenv("PRUNEBENCH_SECRET", TEXT)
    monkeypatch.setattr("prunebench.submission.reevaluation.subprocess.run", watched)
    secret = take_secret()
    assert secret is not None
    report = made.verify(artifacts=str(made.results), secret=secret)
    assert report.passed, failures(report)
    stage = report.stages[1]
    assert "it does as well on a fresh draw" in "".join(finding.what for finding in stage.findings)
    notes = "\n".join(stage.notes)
    assert secret.commitment in notes
    assert "honest at most" in notes
    write_report(report, made.root / "report")
    done = merge(made.entry, made.board, made.root / "report" / "report.json")
    assert done.badge == REEVALUATED
    written = _argv_and_files(made.root / "report") + _argv_and_files(made.board) + repr(seen)
    assert len(seen) >= 2
    assert TEXT not in written + "".join(capfd.readouterr())


def test_weights_that_were_fitted_to_the_public_test_split_are_refused(
    made: Made,
) -> None:
    """A network that gives public images their labels is refused, whatever its stored logits agree with."""
    secret = Secret(TEXT)
    records = open_results(made.entry / "results").records()[0]
    numbers = np.random.default_rng(0).random((397, 2)).round(1)
    honest = {name: numbers.T.tolist() for name in ("all", "conflicting")}
    fitted = {name: [[1.0] * 397, numbers[:, 1].tolist()] for name in ("all", "conflicting")}
    again = {
        run.run_id: Again(run.run_id, {}, 0, True, 0.0, 0.0, {}, fresh=fitted if own(run) else honest)
        for run in records
    }
    findings, notes = drawn_afresh(records, again, secret)
    assert [finding.ok for finding in findings] == [False]
    assert "fitted to the public test split" in findings[0].why
    assert f"{NAME} on" in findings[0].why
    assert "dense on" not in findings[0].why
    assert TEXT not in findings[0].why + "".join(notes)


def test_the_commands_say_how_to_come_by_a_secret(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRUNEBENCH_SECRET", "PRUNEBENCH_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()
    asked = runner.invoke(submission_app, ["verify", str(made.entry), "--artifacts", "x", "--fresh-draw"])
    assert isinstance(asked.exception, UsageError)
    assert "secrets.token_hex" in str(asked.exception)
    printed = runner.invoke(submission_app, ["commitment"], env={"PRUNEBENCH_SECRET": TEXT})
    assert printed.output.strip() == Secret(TEXT).commitment
