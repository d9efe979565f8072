"""Records that hold together: every field in its range, and in its relation to the others, the model and the data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunebench.results.convert import form_problems
from prunebench.results.objects import sha256_of
from prunebench.results.record import REMOVED_NOTE, RunRecord
from prunebench.results.store import CommittedStore, CorruptRecord, Store, open_results
from prunebench.runner.rescore import has_logits, rescore_record
from prunebench.runner.stored import dense_of
from prunebench.submission.facts import RecordFacts, TaskFacts
from prunebench.submission.fields import field_problems

CLOSE = 1e-6
"""How far a metric may lie from the one computed here: another processor sums in another order."""


@dataclass(frozen=True)
class Finding:
    """One rule: what it says, whether it holds, and if not, why."""

    what: str
    ok: bool
    why: str = ""


def check_records(folder: Path) -> list[Finding]:
    """Validate every record of a results folder: schema, identity, ranges and relations of its fields, hashes.

    What a record says is held against its model and, where they are at hand, against the task's labels and the run's
    own logits. Nothing is trained.
    """
    store, facts = open_results(folder), RecordFacts(data_root())
    records, damaged = store.records()
    findings = [Finding(f"{entry.path} is readable", False, entry.reason) for entry in damaged]
    for record in records:
        problems = record_problems(store, record, facts)
        what = f"{record.run_id} {_label(record)}"
        findings.append(Finding(what, not problems, "; ".join(problems)))
    if not records and not damaged:
        findings.append(Finding("there are records", False, f"{folder} holds none"))
    if isinstance(store, CommittedStore) and not damaged:
        problems = form_problems(folder)
        findings.append(Finding("the committed form is canonical", not problems, "; ".join(problems)))
    return findings


def sound_records(store: Store) -> tuple[list[RunRecord], list[CorruptRecord]]:
    """The records that `check_records` passes, in order; the others, and those that cannot be read, with reasons."""
    facts = RecordFacts(data_root())
    records, damaged = store.records()
    sound = []
    for record in records:
        problems = record_problems(store, record, facts)
        if problems:
            path = store.where(record)
            damaged.append(CorruptRecord(path, f"{path}: {'; '.join(problems)}"))
        else:
            sound.append(record)
    return sound, damaged


def data_root() -> Path | None:
    root = os.environ.get("PRUNEBENCH_DATA")
    return Path(root) if root else None


def _label(record: RunRecord) -> str:
    return ascii(record.run_spec.label)[1:-1][:200]


def record_problems(store: Store, record: RunRecord, facts: RecordFacts) -> list[str]:
    """What does not hold of a record, in words that begin with the field's name."""
    try:
        return list(_problems(store, record, facts))
    except Exception as error:  # whatever a stranger's record holds, the others are still checked
        return [f"cannot be checked: {type(error).__name__}: {error}"]


def _problems(store: Store, record: RunRecord, facts: RecordFacts) -> Iterator[str]:
    """One kind of fault after another; a wrong field ends the search, for others follow from it."""
    problems = field_problems(record)
    if problems or record.status != "ok":
        yield from problems
        return
    for name, what, digest in (
        ("outputs", "logits", record.outputs_sha256),
        ("model", "weights", record.model_sha256),
    ):
        path = store.find_tensors(record, name)
        unknown = name == "model" and digest is None  # before schema 4
        if path is not None and not unknown and sha256_of(path) != digest:
            yield f"its stored {what} do not match their hash"
            return
    yield from _against_dense(store, record)
    task = facts.task(record.run_spec.task)
    if task is None or task.version != record.run_spec.task_version:
        return  # of data that only its maker has, or that are drawn otherwise by now
    yield from _against_model(record, task, facts)
    yield from _against_labels(store, record, task)


def _against_dense(store: Store, record: RunRecord) -> Iterator[str]:
    """A run and the dense model that it starts from see the same images."""
    dense = dense_of(store, record)
    if dense is not None and dense.splits_hash != record.splits_hash:
        yield f"splits_hash: {record.splits_hash}, its dense model saw other data, {dense.splits_hash}"


def _against_model(record: RunRecord, task: TaskFacts, facts: RecordFacts) -> Iterator[str]:
    assert record.sparsity is not None
    assert record.cost is not None
    model = facts.model(record.run_spec.model, task)
    if model is None:
        return
    cost, sparsity, total = record.cost, record.sparsity, sum(model.sizes.values())
    if set(sparsity.by_layer) != set(model.sizes):
        yield f"sparsity.by_layer: its layers are not those of {record.run_spec.model}"
        return
    alive = {name: round((1 - share) * model.sizes[name]) for name, share in sparsity.by_layer.items()}
    kept = round((1 - sparsity.achieved) * total)
    if sum(alive.values()) != kept:
        yield f"sparsity.achieved: {kept} of {total} weights are kept, by layer {sum(alive.values())}"
    asked = record.run_spec.sparsity
    if asked is not None and REMOVED_NOTE not in record.notes and kept != model.keep(asked):
        yield f"sparsity.achieved: keeps {kept} of {total} weights, {model.keep(asked)} were asked for"
    if cost.parameters != model.parameters:
        yield f"cost.parameters: {cost.parameters}, the model has {model.parameters}"
    deferred = record.notes.get("deferred_share_test")
    most = model.parameters - total + kept
    if deferred is None and not kept <= cost.nonzero_parameters <= most:
        yield f"cost.nonzero_parameters: {cost.nonzero_parameters}, the zeros leave {kept} to {most}"
    if task.shape is None:
        return
    macs = facts.macs(record.run_spec.model, task)
    if cost.macs != macs.total:
        yield f"cost.macs: {cost.macs}, the model has {macs.total}"
    left = macs.left(alive, model.sizes)
    most_macs = left if deferred is None else left + math.ceil(deferred * macs.total)
    if not left <= cost.nonzero_macs <= most_macs:
        yield f"cost.nonzero_macs: {cost.nonzero_macs}, the zeros leave {most_macs}"


def _against_labels(store: Store, record: RunRecord, task: TaskFacts) -> Iterator[str]:
    labels = task.labels(record.run_spec.seed)
    if labels is None:
        return
    pairs = labels.aligned_pair
    counted: dict[tuple[int, int], int] = {}
    for pair in zip(labels.label("test").tolist(), labels.bias["test"].tolist()):
        counted[pair] = counted.get(pair, 0) + 1
    wanted = {pair: (count, bool(pairs[pair])) for pair, count in counted.items()}
    if {(row.label, row.bias): (row.count, row.aligned) for row in record.groups} != wanted:
        yield "groups: not those of the task's test split"
        return
    if not has_logits(store, record):
        return
    tensors = store.read_tensors(record.run_id, "outputs")
    logits = {
        name: tensors[f"{name}_logits"].float() for name in ("val", "test") if f"{name}_logits" in tensors
    }
    shapes = {name: tuple(values.shape) for name, values in logits.items()}
    if shapes != {name: (len(labels.y[name]), labels.task.num_outputs) for name in ("val", "test")}:
        yield f"its stored logits have shapes {shapes}"
        return
    again = rescore_record(record, logits, labels)
    if _counts(record) != _counts(again):
        yield "groups: its stored logits give other counts of correct samples"
    for part, said, found in (
        ("metrics", record.metrics, again.metrics),
        ("validation", record.validation, again.validation),
    ):
        yield from (
            f"{part}: {name} is {said[name]}, its stored logits give {found[name]}"
            for name in sorted(said.keys() & found.keys())
            if not _close(said[name], found[name])
        )


def _counts(record: RunRecord) -> Mapping[tuple[int, int], int]:
    return {(row.label, row.bias): row.correct for row in record.groups}


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=CLOSE, abs_tol=CLOSE)
