"""Records as a frame: one row a run; kept beside large results, so that only what changed is read again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars

from prunebench.metrics.registry import metrics
from prunebench.results.index import FOLDER, WORTHWHILE, Stamps, is_settled
from prunebench.results.record import SCHEMA_VERSION, RunRecord
from prunebench.results.store import CommittedStore, CorruptRecord, Store, replace_file

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
    return _in_order([_part(records)])


def load_frame(store: Store) -> tuple[polars.DataFrame, list[CorruptRecord]]:
    """The frame of all records of a folder, and what cannot be read.

    Of a large folder the frame is kept, beside a store's runs or, for the committed form, in the user's cache. A row of
    it counts only while the file that its record is in has the same stamp (`results.index`); the others are read again.
    """
    stamps, key = store.sources(), _cache_key()
    path = _cache_path(store)
    kept = _read_kept(path, key)
    current = kept.filter(
        polars.col(_STAMP) == polars.col(_SOURCE).replace_strict(stamps, default=None, return_dtype=_TEXT)
    )
    if current.height < kept.height and set(kept.columns) - {_SOURCE, _STAMP} - set(_schema()):
        current = _nothing()  # the metric that only a dropped row had would stay as a column
    there = set(current[_SOURCE])
    anew = [source for source in stamps if source not in there]
    damaged: list[CorruptRecord] = []
    parts = [current, *_read_parts(store, anew, stamps, damaged)]
    frame = _in_order(parts)
    if current.height and frame["run_id"].is_duplicated().any():  # which of them counts, a whole reading says
        damaged.clear()
        parts = [_nothing(), *_read_parts(store, list(stamps), stamps, damaged)]
        frame = _in_order(parts)
    if sum(part.height for part in parts[1:]) >= WORTHWHILE or kept.height - current.height >= WORTHWHILE:
        wrong = {_source_of(store, entry.path) for entry in damaged}
        _keep(path, key, frame.filter(~polars.col(_SOURCE).is_in(wrong)))
    return frame.drop(_SOURCE, _STAMP), damaged


_SOURCE, _STAMP = "_source", "_stamp"
_CHUNK = 2048
"""Records that are held at once; a frame needs a tenth of their memory."""


def _read_parts(
    store: Store, sources: list[str], stamps: Stamps, damaged: list[CorruptRecord]
) -> Iterator[polars.DataFrame]:
    """Frames of the records of some sources, with where each row is from."""
    rows: list[RunRecord] = []
    origins: list[str] = []

    def part() -> polars.DataFrame:
        frame = _part(rows).with_columns(
            polars.Series(_SOURCE, origins, _TEXT),
            polars.Series(_STAMP, [stamps.get(origin) for origin in origins], _TEXT),
        )
        rows.clear()
        origins.clear()
        return frame

    for entry in store.documents(sources):
        if isinstance(entry, CorruptRecord):
            damaged.append(entry)
            continue
        rows.append(entry.record)
        origins.append(_source_of(store, entry.path))
        if len(rows) == _CHUNK:
            yield part()
    yield part()


def _source_of(store: Store, path: Path) -> str:
    """Which of a store's sources a file is."""
    return str(path.relative_to(store.root)) if isinstance(store, CommittedStore) else path.parent.name


def _cache_path(store: Store) -> Path:
    if not isinstance(store, CommittedStore):
        return store.root / FOLDER / "frame.bin"
    from prunebench_kernels.measured import cache_folder

    name = hashlib.sha256(str(store.root.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "frames" / f"{name}.bin"


def _cache_key() -> bytes:
    """What a kept frame depends on besides records, this file among it: 32 bytes."""
    words = json.dumps([SCHEMA_VERSION, *_schema()]).encode()
    return hashlib.sha256(words + Path(__file__).read_bytes()).digest()


def _read_kept(path: Path, key: bytes) -> polars.DataFrame:
    """The kept frame; one without rows where there is none, it is damaged or another version's."""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        if data[:32] == key and data[32:64] == hashlib.sha256(data[64:]).digest():
            return polars.read_ipc(io.BytesIO(data[64:]))
    return _nothing()


def _nothing() -> polars.DataFrame:
    """A frame with where its rows are from, and no row."""
    return _part([]).with_columns(polars.lit(None, _TEXT).alias(name) for name in (_SOURCE, _STAMP))


def _keep(path: Path, key: bytes, frame: polars.DataFrame) -> None:
    """Keep the rows whose files have settled, if the folder can be written to."""
    settled = {
        stamp for stamp in frame[_STAMP].drop_nulls().unique() if all(map(is_settled, stamp.split(" ")))
    }
    stream = io.BytesIO()
    frame.filter(polars.col(_STAMP).is_in(settled)).write_ipc(stream, compression="lz4")
    data = stream.getvalue()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, key + hashlib.sha256(data).digest() + data)


def _schema() -> dict[str, polars.DataType]:
    """The columns that every frame has."""
    names = [entry.name for entry in metrics()]
    return _LEADING | {prefix + name: _REAL for prefix in ("", "val_") for name in names} | _TRAILING


def _part(records: list[RunRecord]) -> polars.DataFrame:
    """A frame of some records, in their order."""
    schema = _schema()
    for prefix, found in (
        ("", _names(r.metrics for r in records)),
        ("val_", _names(r.validation for r in records)),
    ):
        schema |= {prefix + name: _REAL for name in found if prefix + name not in schema}
    rows = [_row(record) for record in records]
    columns = {name: [row.get(name) for row in rows] for name in schema}
    return polars.DataFrame(columns, schema=schema)


def _in_order(parts: list[polars.DataFrame]) -> polars.DataFrame:
    """One frame of all rows, sorted, with the columns that any of them has."""
    frame = polars.concat(parts, how="diagonal")
    own = [name for name in frame.columns if name not in _schema() and name not in (_SOURCE, _STAMP)]
    own.sort(key=lambda name: (name.startswith("val_"), name))
    hidden = [name for name in (_SOURCE, _STAMP) if name in frame.columns]
    frame = frame.select(*_schema(), *own, *hidden)
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
