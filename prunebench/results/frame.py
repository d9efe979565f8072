"""Records as a frame: one row a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import polars

from prunebench.metrics.registry import metrics
from prunebench.results.record import RunRecord

_TEXT, _REAL, _WHOLE = polars.String(), polars.Float64(), polars.Int64()
_LEADING: dict[str, polars.DataType] = {
    "run_id": _TEXT,
    "task": _TEXT,
    "task_version": _WHOLE,
    "data_fingerprint": _TEXT,
    "model": _TEXT,
    "recipe": _TEXT,
    "method": _TEXT,
    "method_version": _TEXT,
    "params": _TEXT,
    "supervision": _TEXT,
    "sparsity": _REAL,
    "achieved_sparsity": _REAL,
    "seed": _WHOLE,
    "status": _TEXT,
    "reason": _TEXT,
}
_TRAILING: dict[str, polars.DataType] = {
    "parameters": _WHOLE,
    "nonzero_parameters": _WHOLE,
    "macs": _WHOLE,
    "nonzero_macs": _WHOLE,
    "latency_batch": _WHOLE,
    "latency_dense_ms": _REAL,
    "latency_pruned_ms": _REAL,
    "peak_memory_mb": _REAL,
    "training_steps": _WHOLE,
    "dense_training_steps": _WHOLE,
    "mining_precision": _REAL,
    "mining_recall": _REAL,
    "run_seconds": _REAL,
    "device": _TEXT,
    "cpu": _TEXT,
    "gpu": _TEXT,
}


def results_frame(records: list[RunRecord]) -> polars.DataFrame:
    """One row a run, in order of task, model, method, sparsity and seed.

    Columns and dtypes are the same for any records, none included: every metric of the registry has one, and one of
    the validation split (`val_`). A metric that this version does not know gets its columns at the end. `sparsity` is
    the one asked for (null: the method chose), latencies are medians (p50), `recipe` and `params` are JSON. What a
    failed run did not measure is null.
    """
    schema = dict(_LEADING)
    names = [entry.name for entry in metrics()]
    schema |= {prefix + name: _REAL for prefix in ("", "val_") for name in names}
    schema |= _TRAILING
    for prefix, found in (
        ("", _names(r.metrics for r in records)),
        ("val_", _names(r.validation for r in records)),
    ):
        schema |= {prefix + name: _REAL for name in found if prefix + name not in schema}
    rows = [_row(record) for record in records]
    frame = polars.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    return frame.sort("task", "model", "method", "sparsity", "seed", "run_id", nulls_last=True)


def _names(summaries: Iterable[Mapping[str, float | None]]) -> list[str]:
    return sorted({name for summary in summaries for name in summary})


def _row(record: RunRecord) -> dict[str, Any]:
    spec = record.spec
    row: dict[str, Any] = {
        name: spec[name]
        for name in (
            "task", "task_version", "data_fingerprint", "model", "method", "method_version", "sparsity",
            "seed",
        )
    }  # fmt: skip
    row["sparsity"] = _finite(spec["sparsity"])
    row |= {name: _canonical(spec[name]) for name in ("recipe", "params")}
    row |= {"run_id": record.run_id, "status": record.status, "reason": record.reason}
    row |= {"supervision": record.method.get("supervision")}
    row |= {name: record.environment.get(name) for name in ("device", "cpu", "gpu")}
    row |= {name: _finite(value) for name, value in record.metrics.items()}
    row |= {f"val_{name}": _finite(value) for name, value in record.validation.items()}
    row["run_seconds"] = math.fsum(record.phase_seconds.values()) if record.phase_seconds else None
    if record.sparsity is not None:
        row["achieved_sparsity"] = record.sparsity.achieved
    if record.mining is not None:
        row["mining_precision"] = _finite(record.mining.precision)
        row["mining_recall"] = _finite(record.mining.recall)
    return row | _cost(record)


def _cost(record: RunRecord) -> dict[str, Any]:
    cost = record.cost
    if cost is None:
        return {}
    names = (
        "parameters", "nonzero_parameters", "macs", "nonzero_macs", "latency_batch",
        "training_steps", "dense_training_steps",
    )  # fmt: skip
    values = {name: getattr(cost, name) for name in names}
    return values | {
        "peak_memory_mb": _finite(cost.peak_memory_mb),
        "latency_dense_ms": _finite(cost.latency_dense_ms.p50),
        "latency_pruned_ms": _finite(cost.latency_pruned_ms.p50),
    }


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
