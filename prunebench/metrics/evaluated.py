"""Outputs of a run on a split with their ground truth, and the metrics of a record computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_given, read_array
from prunebench.metrics.attributes import AttributeTable
from prunebench.metrics.dependence import mean_absolute_correlation
from prunebench.metrics.groups import GroupTable, group_accuracy, group_tables
from prunebench.metrics.registry import metrics
from prunebench.metrics.uncertainty import MeanUncertainty, binary_uncertainty, uncertainty_summaries

ELEMENTS_AT_A_TIME = 1 << 24

Summary = tuple[GroupTable, dict[str, float]]


@dataclass(frozen=True)
class EvaluatedSplit:
    """What the metrics of a record may need: each field as `registry.NEEDS` says, None where the task lacks it.

    Tables and means that several metrics share are computed once, by `evaluate_classes` or `evaluate_attributes`.
    """

    logits: Tensor
    y: Tensor
    prediction: Tensor
    label: Tensor
    bias: Tensor
    groups: GroupTable
    uncertainty: MeanUncertainty
    output_correlation: float
    attributes: AttributeTable | None = None
    aligned_pair: Tensor | None = None
    train_count: Tensor | None = None
    train_y: Tensor | None = None
    validation_logits: Tensor | None = None
    validation_y: Tensor | None = None


def compute_metrics(split: EvaluatedSplit) -> dict[str, float]:
    """All metrics of the registry whose needs the split has, by name; undefined ones are nan."""
    found = {}
    for entry in metrics():
        needed = [getattr(split, need) for need in entry.needs]
        if all(value is not None for value in needed):
            found[entry.name] = float(entry(*needed))
    return found


def evaluate_classes(
    logits: Tensor,
    y: Tensor,
    bias: Tensor,
    aligned_pair: Tensor | None,
    known: Mapping[str, Any] | None = None,
) -> list[EvaluatedSplit]:
    """Each of M runs of a multi-class task: logits `[M, N, C]`, y and bias int64 `[N]`, aligned_pair bool `[C, B]`.

    Args:
        known: further fields of `EvaluatedSplit`, the same for every run.
    """
    runs = logits.float()
    predictions = runs.argmax(-1)
    tables = group_tables(predictions, y, bias, aligned_pair=aligned_pair)
    means = uncertainty_summaries(runs, y)
    together = mean_absolute_correlation(runs).tolist() if runs.shape[1] > 1 else [math.nan] * len(runs)
    return [
        EvaluatedSplit(
            run, y, prediction, y, bias, table, MeanUncertainty(**mean), correlation,
            aligned_pair=table.aligned_pair, **known or {},
        )
        for run, prediction, table, mean, correlation in zip(runs, predictions, tables, means, together)
    ]  # fmt: skip


def evaluate_attributes(
    logits: Tensor,
    y: Tensor,
    bias: Tensor,
    aligned_pair: Tensor,
    *,
    target: int,
    attributes: AttributeTable,
    known: Mapping[str, Any] | None = None,
) -> EvaluatedSplit:
    """One run of a multi-label task: logits and 0/1 y `[N, K]`, bias int64 `[N]`, aligned_pair bool `[2, B]`.

    Args:
        target: the column whose values are the labels of the groups.
        attributes: the metrics by attribute of these logits.
        known: further fields of `EvaluatedSplit`.
    """
    prediction, label = (logits[:, target] > 0).long(), y[:, target].long()
    several = len(logits) > 1
    together = float(mean_absolute_correlation(logits.float().unsqueeze(0))[0]) if several else math.nan
    return EvaluatedSplit(
        logits, y, prediction, label, bias,
        group_accuracy(prediction, label, bias, aligned_pair=aligned_pair),
        binary_uncertainty(logits.double(), y),
        together,
        attributes,
        aligned_pair,
        **known or {},
    )  # fmt: skip


@as_given
def summarize_runs(
    logits: Array, label: Array, bias: Array, *, aligned_pair: Array | None = None
) -> list[Summary]:
    """Group table and metrics of each of M runs of a multi-class task.

    Runs are taken a few at a time, so memory does not grow with M.

    Args:
        logits: `[M, N, C]`, floating.
        label: class indices `[N]`.
        bias: integers `[N]`.
        aligned_pair: bool `[C, B]`, by default label == bias.

    Returns:
        A mapping by the registry's names for each run, of the metrics that need nothing but these.
    """
    values, truth, place = (
        read_array(name, array) for name, array in (("logits", logits), ("label", label), ("bias", bias))
    )
    if values.ndim != 3 or not values.is_floating_point():
        raise MetricError(f"logits: want floating [M, N, C], got {values.dtype} {tuple(values.shape)}")
    pairs = None if aligned_pair is None else read_array("aligned_pair", aligned_pair)
    models, samples, classes = values.shape
    at_once = max(ELEMENTS_AT_A_TIME // (samples * classes), 1)
    found: list[Summary] = []
    for start in range(0, models, at_once):
        for split in evaluate_classes(values[start : start + at_once], truth, place, pairs):
            found.append((split.groups, compute_metrics(split)))
    return found
