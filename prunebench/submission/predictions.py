"""Predictions alone: logits of validation and test split become runs, of whose networks nothing is known or claimed.

A file is safetensors with `val_logits` and `test_logits`, `[N, outputs]` in the task's order, and `task` and `seed` in
its header's metadata: `save_file({"val_logits": ..., "test_logits": ...}, path, metadata={"task": ..., "seed": "0"})`.
Metrics are computed here; sparsity and cost are those of the task's dense network, and the board does not show them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import UsageError
from prunebench.methods.criteria import check_name
from prunebench.results.record import PREDICTIONS_NOTE, SCHEMA_VERSION, RunRecord, SparsityReport
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store
from prunebench.submission.card import Card

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.runner.evaluate import TaskData

VERSION = "predictions-1"
LARGEST = 1 << 30
NO_COST = "predictions only: nothing of its network was seen"


def store_predictions(
    files: Sequence[Path], method: str, card: Card, results: Path, data_root: Path | None
) -> list[RunRecord]:
    """Write the runs that files of logits make into a store. Raises UsageError for a file that does not fit."""
    import torch

    from prunebench.runner.evaluate import TaskData
    from prunebench.tasks import resolve_task

    check_name("method", method)
    store, records = Store(results), []
    store.prepare()
    for path in files:
        name, seed = _subject(path)
        task = resolve_task(name, data_root)
        data = TaskData(task, data_root, seed, torch.device("cpu"))
        logits = _read(path, data)
        record = _record(logits, data, method, card, data_root)
        records.append(store.write(record, {f"{split}_logits": values for split, values in logits.items()}))
    return records


def _subject(path: Path) -> tuple[str, int]:
    """The task and the seed that a file's header names."""
    facts = header(path)
    if not re.fullmatch(r"\d{1,18}", facts.get("seed", "")) or "task" not in facts:
        raise UsageError(f"{path}: want `task` and `seed` in its metadata: save_file(..., metadata={{...}})")
    return facts["task"], int(facts["seed"])


def header(path: Path) -> dict[str, str]:
    """The metadata in the header of a file of logits. Raises UsageError where it is none, or too large."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path}: larger than {LARGEST >> 30} GiB")
        with safe_open(path, "pt") as stream:
            return stream.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: no safetensors file ({error})") from error


def _read(path: Path, data: TaskData) -> dict[str, Tensor]:
    from prunebench.results.store import read_tensors

    tensors = read_tensors(path)
    return {
        split: checked_logits(path, split, tensors.get(f"{split}_logits"), data) for split in ("val", "test")
    }


def checked_logits(path: Path, split: str, values: Tensor | None, data: TaskData) -> Tensor:
    """Logits of a split as a run stores them, in float16. Raises UsageError for those that do not fit."""
    wanted = (len(data.labels.y[split]), data.task.num_outputs)
    if values is None or tuple(values.shape) != wanted or not values.is_floating_point():
        seen = "none" if values is None else f"{tuple(values.shape)} {values.dtype}"
        raise UsageError(
            f"{path}: {split}_logits: want floating-point numbers of shape {wanted}, found {seen}"
        )
    logits = values.half()
    wrong = (~logits.isfinite()).any(1).nonzero()
    if len(wrong):
        raise UsageError(
            f"{path}: {split}_logits: not all are finite in float16, the first in row {int(wrong[0])} (counted from 0)"
        )
    return logits


def _record(
    logits: dict[str, Tensor], data: TaskData, method: str, card: Card, data_root: Path | None
) -> RunRecord:
    import dataclasses

    from prunebench.models import build_model, identify_model
    from prunebench.pruning.masks import prunable
    from prunebench.runner.environment import describe_code, describe_environment
    from prunebench.runner.evaluate import measure_cost
    from prunebench.runner.rescore import rescore_record

    task = data.task
    spec = RunSpec(
        task=task.name,
        task_version=task.version,
        data_fingerprint=task.fingerprint(data_root),
        model=identify_model(task.model, data_root),
        method=method,
        method_version=VERSION,
        params=(),
        sparsity=None,
        seed=data.seed,
        recipe=task.recipe,
    )
    net = build_model(spec.model, task.num_outputs, seed=data.seed, data_root=data_root)
    steps = spec.recipe.steps
    empty = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=spec.run_id,
        status="ok",
        spec=spec.to_dict(),
        method={"name": method, "supervision": card.supervision, "cite": _cite(card)},
        started_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        environment=describe_environment("cpu", spec.recipe.precision),
        code=describe_code(),
        splits_hash=data.labels.splits_hash,
        sparsity=SparsityReport(None, 0.0, dict.fromkeys(prunable(net), 0.0)),
        cost=measure_cost(net.eval(), net, data, steps, steps, latency_skipped=NO_COST),
        notes={PREDICTIONS_NOTE: 1.0},
    )
    scored = rescore_record(empty, {split: values.float() for split, values in logits.items()}, data.labels)
    return dataclasses.replace(scored, scored_on={})


def _cite(card: Card) -> str:
    return card.title if card.paper == "none" else card.paper
