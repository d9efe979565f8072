"""Metrics of stored runs, computed again from their logits with the code as it is now, without training.

A new or corrected metric so reaches old runs. What else a record says (sparsity, cost, times) stays as the run wrote
it; a record whose groups or metrics come out otherwise says in `scored_on` what computed them.

Runs are scored one by one, as when they were made: sums over several runs at once differ in the last bit, and a metric
that did not change must come out the same. That costs 2.4 ms of processor time for 10,000 x 10 logits, where batches
of runs take 1.3 ms.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from prunebench.errors import PruneBenchError, StoreError
from prunebench.inference.busy import count_cores
from prunebench.results.record import GroupRow, RunRecord
from prunebench.results.store import Store, open_results
from prunebench.runner.environment import describe_code
from prunebench.runner.evaluate import group_rows
from prunebench.runner.execute import one_thread
from prunebench.runner.ground_truth import STORED, GroundTruth
from prunebench.tasks import Task, resolve_task

IN_FLIGHT = 64
"""Runs handed to the threads at a time: enough to keep them busy while the next task is loaded."""

NOT_STORED = "its logits are not stored here (`prunebench artifacts pull` fetches those of committed runs)"

Draw = tuple[str, int]
"""A task's name and a seed: the runs of one draw share their labels."""


@dataclass(frozen=True)
class Change:
    """A metric that came out otherwise; `groups` stands for the group table, `validation ...` for that split.

    `size` is |after - before|: nan where either is undefined or absent, and for groups.
    """

    name: str
    kind: Literal["new", "changed", "gone"]
    size: float = math.nan


@dataclass(frozen=True)
class Rescored:
    """One ok record: what changed in it, or why it was not scored; `done` of `total`."""

    run_id: str
    label: str
    problem: str | None
    changes: tuple[Change, ...]
    done: int
    total: int


def rescore_results(
    results: Path,
    data_root: Path | None = None,
    *,
    dry_run: bool = False,
    resolve: Callable[[str, Path | None], Task] = resolve_task,
) -> Iterator[Rescored]:
    """Score every ok record of a results folder; writes those that changed, and yields each when it is done.

    Each draw of a task is loaded once. Memory does not grow with the number of runs. `dry_run` writes nothing;
    `resolve` finds a task by its name. Raises StoreError for a folder without finished runs. Records that are
    damaged, without logits, with logits that do not match their hash, or of data that are not at hand are left as
    they are, with the reason.
    """
    store = open_results(results)
    draws = find_runs(store)
    total = sum(map(len, draws.values()))
    if total == 0:
        raise StoreError(f"{results}: no finished runs to score")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    scored_on = None if dry_run else {**describe_code(), "utc": stamp}
    pending: deque[Future[Rescored]] = deque()
    number = 0
    with (
        one_thread(torch.device("cpu")),
        ThreadPoolExecutor(count_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for draw, run_ids in draws.items():
            labels = _load(draw, data_root, resolve) if _any_logits(store, run_ids) else NOT_STORED
            for run_id in run_ids:
                number += 1
                pending.append(pool.submit(_score, store, run_id, labels, scored_on, (number, total)))
                if len(pending) > IN_FLIGHT:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def find_runs(store: Store) -> dict[Draw | None, list[str]]:
    """The ok runs of a folder by draw, in order; under None those whose record cannot be read.

    A glance at each record: it is validated when its turn comes.
    """
    found: dict[Draw | None, list[str]] = {}
    for run_id, values in store.glances():
        draw: Draw | None = None
        try:
            if values["status"] != "ok":
                continue
            draw = str(values["spec"]["task"]), int(values["spec"]["seed"])
        except (ValueError, KeyError, TypeError):
            pass  # reading it in full will tell
        found.setdefault(draw, []).append(run_id)
    return dict(sorted(found.items(), key=lambda entry: entry[0] or ("", -1)))


def _load(
    draw: Draw | None, data_root: Path | None, resolve: Callable[[str, Path | None], Task]
) -> GroundTruth | str:
    """The draw's labels, or why it cannot be loaded."""
    if draw is None:
        return "its record does not say of which task and seed it is"
    try:
        return load_ground_truth(draw, data_root, resolve)
    except PruneBenchError as error:
        return str(error)


def load_ground_truth(
    draw: Draw, data_root: Path | None, resolve: Callable[[str, Path | None], Task] = resolve_task
) -> GroundTruth:
    """The labels of a draw. Raises UsageError for an unknown task, DataError where its data are not at hand."""
    name, seed = draw
    task = resolve(name, data_root)
    return GroundTruth.of(task, task.splits(data_root, seed))


def _score(
    store: Store,
    run_id: str,
    labels: GroundTruth | str,
    scored_on: Mapping[str, str | bool | None] | None,
    context: tuple[int, int],
) -> Rescored:
    """Score one run, and write its record if it changed and `scored_on` is given."""
    label, problem = run_id, None
    changes: tuple[Change, ...] = ()
    try:
        record = store.read(run_id)
        label = record.run_spec.label
        if record.run_id != run_id:
            raise StoreError(f"its folder is named {run_id}, its record says {record.run_id}")
        if not has_logits(store, record):
            raise StoreError(NOT_STORED)
        if isinstance(labels, str):
            raise StoreError(labels)
        scored = rescore_record(record, read_logits(record, store, labels), labels)
        changes = find_changes(record, scored)
        if changes and scored_on is not None:
            store.update(
                record,
                groups=scored.groups,
                metrics=scored.metrics,
                validation=scored.validation,
                scored_on=dict(scored_on),
            )
    except Exception as error:  # one record's trouble must not stop the others
        problem = str(error) if isinstance(error, PruneBenchError) else f"{type(error).__name__}: {error}"
    return Rescored(run_id, label, problem, changes, *context)


def read_logits(
    record: RunRecord, store: Store, labels: GroundTruth, splits: Sequence[str] = STORED
) -> dict[str, Tensor]:
    """Stored logits of some splits, float32 `[N, outputs]`, that these labels judge.

    Raises StoreError where they are of other data than the task draws here, are not there, do not have the recorded
    hash, or are of other shapes.
    """
    labels.check(record)
    path = store.find_tensors(record, "outputs")
    if path is None:
        raise StoreError(NOT_STORED)
    if hashlib.sha256(path.read_bytes()).hexdigest() != record.outputs_sha256:
        raise StoreError("its stored logits do not match their hash")
    tensors = store.read_tensors(record.run_id, "outputs")
    logits = {}
    for name in splits:
        values, wanted = tensors.get(f"{name}_logits"), (len(labels.y[name]), labels.task.num_outputs)
        if values is None or values.shape != wanted:
            found = "none" if values is None else f"shape {tuple(values.shape)}"
            raise StoreError(f"its {name} logits: want shape {wanted}, found {found}")
        logits[name] = values.float()
    return logits


def has_logits(store: Store, record: RunRecord) -> bool:
    """Whether the logits of a run are there, or pulled."""
    return store.find_tensors(record, "outputs") is not None


def _any_logits(store: Store, run_ids: Sequence[str]) -> bool:
    for run_id in run_ids:
        with contextlib.suppress(StoreError):
            if has_logits(store, store.read(run_id)):
                return True
    return False


def rescore_record(record: RunRecord, logits: Mapping[str, Tensor], labels: GroundTruth) -> RunRecord:
    """The record with groups and metrics of these logits, computed as `measure_outputs` does."""
    found = {name: labels.summary(logits[name], name, logits["val"]) for name in STORED}
    table, metrics = found["test"]
    return replace(
        record,
        groups=group_rows(table),
        metrics=_as_stored(metrics),
        validation=_as_stored(found["val"][1]),
    )


def _as_stored(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def find_changes(before: RunRecord, after: RunRecord) -> tuple[Change, ...]:
    """What differs between the groups and metrics of two records of one run."""
    changes = []
    if _in_order(before.groups) != _in_order(after.groups):
        changes.append(Change("groups", "changed" if before.groups else "new"))
    for prefix, old, new in (
        ("", before.metrics, after.metrics),
        ("validation ", before.validation, after.validation),
    ):
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new:
                changes.append(Change(prefix + name, "new" if name in new else "gone"))
            elif old[name] != new[name]:
                first, second = (math.nan if value is None else value for value in (old[name], new[name]))
                changes.append(Change(prefix + name, "changed", abs(first - second)))
    return tuple(changes)


def _in_order(groups: list[GroupRow]) -> list[GroupRow]:
    return sorted(groups, key=lambda row: (row.label, row.bias))
