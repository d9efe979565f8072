"""Metrics computed again from stored logits: what stays, what changes, and what is left with its reason."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.errors import StoreError
from prunebench.inference.cost import count_macs, count_parameters
from prunebench.leaderboard import write_board
from prunebench.models import build_model
from prunebench.pruning.masks import apply_masks, make_masks, prunable, verify
from prunebench.results.record import CostReport, Percentiles, RunRecord, SparsityReport
from prunebench.results.spec import Recipe, RunSpec
from prunebench.results.store import Store
from prunebench.runner.evaluate import TaskData, measure_outputs
from prunebench.runner.rescore import NOT_STORED, Rescored, find_changes, load_ground_truth, rescore_results
from prunebench.tasks import Split, Splits, Task, resolve_task
from prunebench.tasks.base import Attributes

TASK = "colored-digits@2pct"
METHODS = ("dense", "magnitude", "snip")

MakeRecord = Callable[..., RunRecord]


class Marks(Task):
    """A multi-label task of random images: three attributes, the groups by the second."""

    name, version, title, source, bias_name = "marks", 1, "Marks", "random numbers", "mark"
    num_classes, num_biases, conflicting_share = 2, 2, None
    model, recipe = "convnet-small", Recipe(steps=1, finetune_steps=1, batch_size=1)
    attributes = Attributes(("first", "second", "third"), "second", ("third",))

    def fingerprint(self, data_root: Path | None) -> str:
        return "0" * 16

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        generator = torch.Generator().manual_seed(seed)

        def split(count: int) -> Split:
            images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
            labels = torch.randint(2, (count, 3), generator=generator, dtype=torch.uint8)
            return Split(images, labels, torch.randint(2, (count,), generator=generator))

        return Splits(split(80), split(60), split(70))


def write_run(store: Store, make_record: MakeRecord, data: TaskData, method: str) -> RunRecord:
    """A run of an untrained, pruned network, measured as runs are; its times are made up."""
    sparsity = 0.0 if method == "dense" else 0.9
    spec = RunSpec(
        data.task.name, data.task.version, data.task.fingerprint(None), data.task.model, method, "made up", (),
        sparsity, data.seed, data.task.recipe,
    )  # fmt: skip
    model = build_model(data.task.model, data.task.num_outputs, seed=METHODS.index(method))
    masks = make_masks({name: weight.detach().abs() for name, weight in prunable(model).items()}, sparsity)
    apply_masks(model, masks)
    outputs, groups, metrics, validation = measure_outputs(model, data)
    (parameters, left), (macs, nonzero_macs) = (
        count_parameters(model),
        count_macs(model, data.images["test"].batch(slice(0, 1))),
    )
    times, steps = Percentiles(1.0, 1.5, 2.0), data.task.recipe.steps
    changes = {
        "groups": groups,
        "metrics": metrics,
        "validation": validation,
        "environment": {"python": "3.11.7", "torch": "2.11.0", "device": "cpu"},
        "sparsity": SparsityReport(**asdict(verify(model, masks, sparsity))),
        "cost": CostReport(parameters, left, macs, nonzero_macs, 64, times, times, 12.5, steps + 1, steps),
    }
    return store.write(make_record(spec, splits_hash=data.labels.splits_hash, **changes), outputs)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, make_record: MakeRecord) -> Path:
    """Three runs of two draws; not to be changed."""
    store = Store(tmp_path_factory.mktemp("results"))
    store.prepare()
    for seed, methods in ((0, METHODS[:2]), (1, METHODS[2:])):
        data = TaskData(resolve_task(TASK), None, seed, torch.device("cpu"))
        for method in methods:
            write_run(store, make_record, data, method)
    return store.root


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Store:
    """The three runs, to be changed."""
    return Store(Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True)))


def texts(store: Store) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in store.root.glob("runs/*/record.json")}


def one_of(store: Store, method: str) -> RunRecord:
    (record,) = (record for record in store.records()[0] if record.spec["method"] == method)
    return record


def by_method(store: Store, scored: list[Rescored]) -> dict[str, Rescored]:
    return {entry.label.split()[1]: entry for entry in scored}


# What changes


def test_what_runs_computed_comes_out_the_same(store: Store) -> None:
    before = texts(store)
    scored = list(rescore_results(store.root))
    assert [(entry.problem, entry.changes) for entry in scored] == [(None, ())] * 3
    assert [(entry.done, entry.total) for entry in scored] == [(1, 3), (2, 3), (3, 3)]
    assert texts(store) == before


def test_stale_metrics_are_replaced(store: Store) -> None:
    record = one_of(store, "magnitude")
    stale = {name: value for name, value in record.metrics.items() if name != "entropy"}
    stale |= {"plain": 0.25, "worst_group": None, "abandoned": 1.0}
    groups = [replace(record.groups[0], correct=record.groups[0].correct + 1), *record.groups[1:]]
    validation = {**record.validation, "margin": 2.0}
    store.write(replace(record, metrics=stale, groups=groups, validation=validation))

    entry = by_method(store, list(rescore_results(store.root)))["magnitude"]
    found = {change.name: (change.kind, change.size) for change in entry.changes}
    assert found.keys() == {"groups", "plain", "worst_group", "entropy", "abandoned", "validation margin"}
    assert {name for name, (kind, _) in found.items() if kind == "new"} == {"entropy"}
    assert {name for name, (kind, _) in found.items() if kind == "gone"} == {"abandoned"}
    assert record.metrics["plain"] is not None
    assert found["plain"] == ("changed", pytest.approx(abs(record.metrics["plain"] - 0.25)))
    assert math.isnan(found["worst_group"][1])

    after = one_of(store, "magnitude")
    assert replace(after, scored_on={}) == record
    assert after.scored_on.keys() == {"commit", "dirty", "utc", "version"}
    assert str(after.scored_on["utc"]) > "2026"
    assert [one_of(store, name).scored_on for name in ("dense", "snip")] == [{}, {}]
    assert not any(entry.changes for entry in rescore_results(store.root))


def test_only_scores_are_written_and_only_to_the_run_that_was_scored(store: Store) -> None:
    """Between reading a run and writing its scores others may write it: `time` its cost, `run` all of it."""
    record = store.write(replace(one_of(store, "magnitude"), metrics={}))
    renewed: dict[str, RunRecord] = {}

    def written_meanwhile(outputs_sha256: str) -> Rescored:
        read = Store.read_tensors

        def then_written(place: Store, run_id: str, name: str) -> dict[str, Tensor]:
            tensors = read(place, run_id, name)
            if run_id == record.run_id:
                renewed[run_id] = place.write(replace(record, reason="new", outputs_sha256=outputs_sha256))
            return tensors

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "read_tensors", then_written)
            return by_method(store, list(rescore_results(store.root)))["magnitude"]

    assert written_meanwhile("0" * 64).problem == "it was run again meanwhile"
    assert one_of(store, "magnitude") == renewed[record.run_id]
    store.write(record)
    assert written_meanwhile(record.outputs_sha256).problem is None
    after = one_of(store, "magnitude")
    assert (after.reason, after.metrics["plain"] is not None) == ("new", True)


def test_a_dry_run_writes_nothing(store: Store) -> None:
    store.write(replace(one_of(store, "snip"), metrics={}))
    before = texts(store)
    scored = by_method(store, list(rescore_results(store.root, dry_run=True)))
    assert {change.kind for change in scored["snip"].changes} == {"new"}
    assert texts(store) == before


def test_a_multi_label_run(tmp_path: Path, make_record: MakeRecord) -> None:
    store, task = Store(tmp_path), Marks()
    record = write_run(store, make_record, TaskData(task, None, 0, torch.device("cpu")), "dense")
    assert record.metrics["attribute_accuracy"] is not None
    (entry,) = rescore_results(tmp_path, resolve=lambda name, root: task)
    assert (entry.problem, entry.changes) == (None, ())
    undefined = {name for name, value in record.metrics.items() if value is None or math.isnan(value)}
    assert undefined  # bias amplification: too few samples
    store.write(replace(record, metrics=dict.fromkeys(record.metrics, -0.5)))
    (entry,) = rescore_results(tmp_path, resolve=lambda name, root: task)
    assert {change.name for change in entry.changes} == record.metrics.keys()
    stored = store.read(record.run_id).metrics
    assert {name for name, value in stored.items() if value is None} == undefined


def test_undefined_is_not_a_change(make_record: MakeRecord) -> None:
    before = make_record(metrics={"plain": None, "conflicting": 0.5})
    assert find_changes(before, before) == ()
    after = replace(before, metrics={"plain": 0.0, "conflicting": None})
    names = [(change.name, change.kind) for change in find_changes(before, after)]
    assert names == [("conflicting", "changed"), ("plain", "changed")]


def test_the_order_of_groups_is_not_a_change(make_record: MakeRecord) -> None:
    record = make_record()
    assert find_changes(record, replace(record, groups=record.groups[::-1])) == ()
    (change,) = find_changes(replace(record, groups=[]), record)
    assert (change.name, change.kind) == ("groups", "new")


# What it takes


def test_each_draw_is_loaded_once_and_without_images(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    task = resolve_task(TASK)
    draw = type(task).draw

    def counted(task: Task, data_root: Path | None, seed: int) -> Splits:
        drawn.append(seed)
        return draw(task, data_root, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(type(task), "draw", counted)
    list(rescore_results(store.root))
    assert drawn == [0, 1]
    kept = load_ground_truth((TASK, 0), None)
    assert {values.ndim for field in (kept.y, kept.bias) for values in field.values()} == {1}
    assert not any(isinstance(value, torch.Tensor) for value in vars(kept).values())


def test_nothing_is_loaded_for_runs_without_logits(store: Store) -> None:
    for path in store.root.glob("runs/*/outputs.safetensors"):
        path.unlink()

    def resolve(name: str, root: Path | None) -> Task:
        raise AssertionError(name)

    problems = {entry.problem for entry in rescore_results(store.root, resolve=resolve)}
    assert problems == {NOT_STORED}


def test_the_number_of_threads_is_left_as_it_was(store: Store) -> None:
    torch.set_num_threads(2)
    try:
        list(rescore_results(store.root))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# What is left as it was


def cut(store: Store, record: RunRecord) -> None:
    path = store.folder(record.run_id) / "outputs.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def draw_otherwise(store: Store, record: RunRecord) -> None:
    store.write(replace(record, splits_hash="0" * 16))


def forget_samples(store: Store, record: RunRecord) -> None:
    tensors = store.read_tensors(record.run_id, "outputs")
    store.write(record, {**tensors, "test_logits": tensors["test_logits"][1:]})


def forget_validation(store: Store, record: RunRecord) -> None:
    tensors = store.read_tensors(record.run_id, "outputs")
    store.write(record, {"test_logits": tensors["test_logits"]})


def overflow(store: Store, record: RunRecord) -> None:
    tensors = store.read_tensors(record.run_id, "outputs")
    tensors["val_logits"][3, 2] = math.inf
    store.write(record, tensors)


def remove(store: Store, record: RunRecord) -> None:
    (store.folder(record.run_id) / "outputs.safetensors").unlink()


def damage(store: Store, record: RunRecord) -> None:
    path = store.folder(record.run_id) / "record.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"groups": "none"}))


def tear(store: Store, record: RunRecord) -> None:
    path = store.folder(record.run_id) / "record.json"
    path.write_text(path.read_text()[:100])


def outgrow(store: Store, record: RunRecord) -> None:
    path = store.folder(record.run_id) / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))


def misname(store: Store, record: RunRecord) -> None:
    store.folder(record.run_id).rename(store.folder("f" * 16))


def retask(store: Store, record: RunRecord) -> None:
    spec = replace(record.run_spec, task="colored-mnist@1pct")
    tensors = store.read_tensors(record.run_id, "outputs")
    store.write(replace(record, run_id=spec.run_id, spec=spec.to_dict()), tensors)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (remove, "its logits are not stored here"),
        (cut, "its stored logits do not match their hash"),
        (draw_otherwise, "its data are not those that the task draws here"),
        (forget_samples, "its test logits: want shape (3970, 10), found shape (3969, 10)"),
        (forget_validation, "its val logits: want shape (800, 10), found none"),
        (overflow, "not finite"),
        (damage, "invalid record: groups"),
        (tear, "not valid JSON"),
        (outgrow, "written with record schema 99"),
        (misname, "its folder is named ffffffffffffffff"),
        (retask, "pass --data-root DIR"),
    ],
)
def test_what_cannot_be_scored_is_named_and_left(
    store: Store, spoil: Callable[[Store, RunRecord], None], why: str
) -> None:
    spoil(store, one_of(store, "snip"))
    store.write(replace(one_of(store, "dense"), metrics={}))
    before = texts(store)
    scored = list(rescore_results(store.root))
    (problem,) = (entry.problem for entry in scored if entry.problem is not None)
    assert why in problem
    changed = {run_id for run_id, text in texts(store).items() if before[run_id] != text}
    assert changed == {one_of(store, "dense").run_id}


def test_another_version_of_the_task_is_named(store: Store) -> None:
    record = one_of(store, "snip")
    spec = replace(record.run_spec, task_version=1)
    tensors = store.read_tensors(record.run_id, "outputs")
    store.write(replace(record, run_id=spec.run_id, spec=spec.to_dict(), splits_hash="0" * 16), tensors)
    problems = [entry.problem or "" for entry in rescore_results(store.root)]
    told = f"it was made with version 1, this is version {record.run_spec.task_version}"
    assert any(told in problem for problem in problems)


def test_only_ok_runs_are_scored(store: Store) -> None:
    record = one_of(store, "snip")
    store.write(replace(record, status="failed", reason="why"))
    assert [entry.total for entry in rescore_results(store.root)] == [2, 2]


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no results here"):
        list(rescore_results(tmp_path))


# The command


def test_the_command_and_the_board_after_it(store: Store) -> None:
    for method in ("dense", "magnitude"):
        record = one_of(store, method)
        kept = {name: value for name, value in record.metrics.items() if name not in ("entropy", "margin")}
        store.write(replace(record, metrics={**kept, "confidence": 0.5}))
    remove(store, one_of(store, "snip"))
    runner = CliRunner()
    done = runner.invoke(app, ["score", str(store.root), "--dry-run"])
    assert done.exit_code == 1
    assert "nothing was written" in done.output
    done = runner.invoke(app, ["score", str(store.root)])
    assert done.exit_code == 1
    assert "2 runs scored, 2 changed, 2 new metrics (entropy, margin), 1 not scored" in done.output
    assert "not scored (1): its logits are not stored here" in done.output
    assert f"  {one_of(store, 'snip').run_id} {TASK} snip 0.9 seed 1" in done.output
    remove_run = store.folder(one_of(store, "snip").run_id)
    for path in remove_run.iterdir():
        path.unlink()
    done = runner.invoke(app, ["score", str(store.root)])
    assert (done.exit_code, done.output.strip()) == (0, "2 runs scored, 0 changed, 0 new metrics")

    board = write_board(Store(store.root).records()[0], store.root / "board")
    assert board.ok == 2
    done = runner.invoke(app, ["leaderboard", "--results", str(store.root), "--out", str(store.root / "b")])
    assert done.exit_code == 0
    assert (store.root / "b" / "README.md").is_file()
