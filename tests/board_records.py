"""Records to build boards from: a small factory, and one board with everything in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prunebench.results.record import (
    SCHEMA_VERSION,
    CostReport,
    GroupRow,
    Mining,
    Percentiles,
    RunRecord,
    SparsityReport,
)
from prunebench.results.spec import Recipe, RunSpec

RECIPE = Recipe(steps=400, finetune_steps=100, batch_size=128)
MACHINE = {
    "device": "cpu",
    "cpu": "Processor One",
    "gpu": None,
    "threads": 2,
    "python": "3.11.7",
    "torch": "2.11.0",
    "precision": "fp32",
}
CELL = RunSpec(
    task="digits@2pct",
    task_version=1,
    data_fingerprint="0123456789abcdef",
    model="convnet",
    method="magnitude",
    method_version="1",
    params=(),
    sparsity=0.9,
    seed=0,
    recipe=RECIPE,
)


def run(
    method: str, sparsity: float | None, seed: int, conflicting: float = 0.4, /, **changes: Any
) -> RunRecord:
    """An ok run of two labels and two biases with this conflicting accuracy; aligned is always 0.9.

    `cell` replaces fields of the spec, other keywords fields of the record.
    """
    spec = replace(CELL, method=method, sparsity=sparsity, seed=seed, **changes.pop("cell", {}))
    achieved = 0.25 if sparsity is None else sparsity
    hits = round(100 * conflicting)
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run_id": spec.run_id,
        "status": "ok",
        "spec": spec.to_dict(),
        "method": {"name": method, "supervision": "none", "cite": f"Author of {method}, 2020"},
        "started_utc": "2026-01-01T00:00:00Z",
        "phase_seconds": {"fit": 1.5, "cost": 0.5},
        "environment": dict(MACHINE),
        "code": {"commit": "abcdef0123456789", "dirty": False, "version": "0.1.0"},
        "splits_hash": f"splits of seed {seed}",
        "sparsity": SparsityReport(sparsity, achieved, {"head.weight": achieved}),
        "groups": [
            GroupRow(label, bias, label == bias, 100, 90 if label == bias else hits)
            for label in (0, 1)
            for bias in (0, 1)
        ],
        "metrics": metrics(conflicting),
        "validation": metrics(conflicting + 0.05),
        "cost": cost(achieved, 1.0, 1.0),
    }
    return RunRecord(**{**fields, **changes})


def metrics(conflicting: float) -> dict[str, float | None]:
    """Summaries of a run whose aligned accuracy is 0.9."""
    return {
        "plain": 0.8,
        "unbiased": (0.9 + conflicting) / 2,
        "aligned": 0.9,
        "conflicting": conflicting,
        "worst_group": conflicting,
        "bias_gap": 0.9 - conflicting,
        "entropy": 0.5,
        "confidence": 0.7,
        "negative_log_likelihood": 1.0,
    }


def cost(achieved: float, dense_ms: float, pruned_ms: float) -> CostReport:
    """The cost of a network of 1000 weights, trained in 600 steps from a dense one of 400."""
    left = round(1000 * (1 - achieved))
    before, after = (Percentiles(0.9 * ms, ms, 1.1 * ms) for ms in (dense_ms, pruned_ms))
    return CostReport(1000, left, 4_000_000, 4000 * left, 64, before, after, 100.0, 600, 400)


def failed(method: str, sparsity: float | None, seed: int, reason: str, **changes: Any) -> RunRecord:
    """A run that failed for a reason."""
    nothing: dict[str, Any] = {"groups": [], "metrics": {}, "validation": {}, "cost": None}
    record = run(method, sparsity, seed, **{**nothing, **changes})
    return replace(record, status="failed", reason=reason, sparsity=None)


def full_records(seeds: int = 3) -> list[RunRecord]:
    """Two sparsities, some seeds, four methods, native sparsity, mining, a failure and a missing run.

    There is no `dense-finetuned`, and so no change and no training cost.
    """
    records = [run("dense", 0.0, seed, 0.5 + 0.01 * seed) for seed in range(seeds)]
    for sparsity, loss in ((0.5, 0.0), (0.9, 0.1)):
        for rank, method in enumerate(("alpha", "beta", "gamma", "delta")):
            for seed in range(seeds):
                wobble = 0.01 * seed + 0.004 * (-1) ** (seed + rank) + 0.001 * ((seed * (rank + 2)) % 3)
                records.append(run(method, sparsity, seed, 0.45 - loss - 0.06 * (rank > 1) + wobble))
    found = Mining(mined=50, conflicting=40, precision=0.6, recall=0.75)
    records += [run("native", None, seed, 0.6 + 0.01 * seed, mining=found) for seed in range(seeds)]
    index = next(i for i, r in enumerate(records) if r.run_spec.label == "digits@2pct delta 0.9 seed 1")
    records[index] = failed("delta", 0.9, 1, "MaskError: layer head.weight is empty")
    return [r for r in records if r.run_spec.label != "digits@2pct gamma 0.9 seed 2"]


def sound_records() -> list[RunRecord]:
    """`full_records` as runs would write them: accuracies follow from the groups, and no method is a built-in one."""
    return [_sound(record) for record in full_records()]


def _sound(record: RunRecord) -> RunRecord:
    spec = replace(record.run_spec, method_version="made up")
    record = replace(record, spec=spec.to_dict(), run_id=spec.run_id)
    if record.status != "ok":
        return record
    hits = round(1000 * (record.metrics["conflicting"] or 0.0))
    groups = [replace(row, count=1000, correct=900 if row.aligned else hits) for row in record.groups]
    share = hits / 1000
    follows = {"plain": (1800 + 2 * hits) / 4000, "unbiased": (0.9 + share) / 2, "conflicting": share}
    follows |= {"worst_group": min(0.9, share), "bias_gap": 0.9 - share}
    return replace(record, groups=groups, metrics={**record.metrics, **follows})
