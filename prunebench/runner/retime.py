"""Latencies of stored models, measured again: one at a time, nothing else running, on this machine or another.

A sweep keeps every core busy, and what it times feels that. This pass changes the latencies of a record and says
so in it (`cost.timed_on`); accuracies, masks and costs of training stay as the run wrote them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from prunebench.errors import StoreError
from prunebench.inference.busy import machine_load
from prunebench.inference.cascade import TEST_NOTE, THRESHOLD_NOTE, Cascade, Deferral
from prunebench.methods.discovery import resolve_method
from prunebench.models import build_model
from prunebench.results.record import CostReport, RunRecord
from prunebench.results.speed import disturbance
from prunebench.results.store import Store, open_results
from prunebench.runner.environment import describe_code, describe_environment
from prunebench.runner.evaluate import TaskData, measure_cost
from prunebench.runner.execute import one_thread
from prunebench.runner.stored import Draws, check_stored, stored_network


@dataclass(frozen=True)
class Retimed:
    """One record: measured again, or why not; `done` of `total`."""

    record: RunRecord
    problem: str | None
    done: int
    total: int


def retime(
    results: Path, data_root: Path | None, device: str, *, disturbed: bool = False
) -> Iterator[Retimed]:
    """Measure every ok record of a results folder whose model is stored; yields each as it is written.

    With `disturbed` only those that a busy machine disturbed (`results.speed.disturbance`), none if there are none.
    Raises StoreError for a folder without records. Records without a stored model, or whose task cannot be loaded
    here, are left as they are.
    """
    store = open_results(results)
    records = [record for record in store.records()[0] if record.status == "ok"]
    if not records:
        raise StoreError(f"{results}: no finished runs to time")
    if disturbed:
        records = [record for record in records if record.cost and disturbance(record.cost)]
    records.sort(key=lambda record: (record.spec["task"], record.spec["seed"], record.run_id))
    draws = Draws(data_root, torch.device(device))
    for number, record in enumerate(records, start=1):
        problem = None
        try:
            check_stored(record, store)
            cost = _measured(record, store, draws.of(record), data_root)
            record = store.update(record, cost=cost)
        except Exception as error:  # one record's trouble must not stop the others
            problem = str(error)
        yield Retimed(record, problem, number, len(records))


def _measured(record: RunRecord, store: Store, data: TaskData, data_root: Path | None) -> CostReport:
    """The record's cost with new latencies."""
    spec, before = record.run_spec, record.cost
    assert before is not None
    outputs, device = data.task.num_outputs, data.device
    dense = build_model(spec.model, outputs, seed=spec.seed, data_root=data_root).to(device)
    pruned = stored_network(record, store, outputs, data_root).to(device)
    measured, share = _with_deferral(record, store, pruned, dense, data)
    load = machine_load().load_average
    with one_thread(data.device):
        facts = describe_environment(str(data.device), spec.recipe.precision)
        steps = before.training_steps, before.dense_training_steps
        after = measure_cost(dense, measured, data, *steps, deferred_share=share)
    code = describe_code()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    timed_on = {**facts, "commit": code["commit"], "dirty": code["dirty"], "utc": stamp, "load_average": load}
    if after.nonzero_parameters != before.nonzero_parameters:
        raise StoreError("its stored model has another number of non-zero weights than its record")
    return replace(after, peak_memory_mb=before.peak_memory_mb, timed_on=timed_on)


def _with_deferral(
    record: RunRecord, store: Store, pruned: nn.Module, dense: nn.Module, data: TaskData
) -> tuple[nn.Module, float]:
    """The pruned network; or, with the stored dense one behind it, the two that the run deferred with, and its share.

    Raises StoreError where the dense model of a run that deferred is not stored.
    """
    threshold, share = (record.notes.get(name) for name in (THRESHOLD_NOTE, TEST_NOTE))
    if threshold is None or share is None:
        return pruned, 0.0
    baseline = resolve_method("dense")
    spec = replace(
        record.run_spec, method=baseline.name, method_version=baseline.version, params=(), sparsity=0.0
    )
    if not store.has_model(spec.run_id):
        raise StoreError(f"the dense model that it defers to (run {spec.run_id}) is not stored")
    dense.load_state_dict(store.read_tensors(spec.run_id, "model"))
    return Cascade(pruned, dense, Deferral(threshold), multi_label=data.task.attributes is not None), share
