"""The whole summary of a run's outputs, for one run or a thousand."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_given, read_array
from prunebench.metrics.attributes import AttributeTable
from prunebench.metrics.dependence import mean_absolute_correlation
from prunebench.metrics.groups import GroupTable, group_accuracy, group_tables
from prunebench.metrics.uncertainty import uncertainty_summaries

ELEMENTS_AT_A_TIME = 1 << 24

Summary = tuple[GroupTable, dict[str, float]]


@as_given
def summarize_runs(
    logits: Array, label: Array, bias: Array, *, aligned_pair: Array | None = None
) -> list[Summary]:
    """Group table and metrics of each run: logits `[M, N, C]` (floating), label and bias int64 `[N]`.

    Metrics: the accuracies of `GroupTable.summary`, the means of `uncertainty_summaries`, and
    logit_correlation, the mean |Pearson r| between class logits. Runs are taken a few at a time, so memory does
    not grow with M.
    """
    values, truth = read_array("logits", logits), read_array("label", label)
    if values.ndim != 3 or not values.is_floating_point():
        raise MetricError(f"logits: want floating [M, N, C], got {values.dtype} {tuple(values.shape)}")
    models, samples, classes = values.shape
    at_once = max(ELEMENTS_AT_A_TIME // (samples * classes), 1)
    found = []
    for start in range(0, models, at_once):
        part = values[start : start + at_once].float()
        tables = group_tables(part.argmax(-1), truth, bias, aligned_pair=aligned_pair)
        sure = uncertainty_summaries(part, truth)
        together = mean_absolute_correlation(part).tolist() if samples > 1 else [math.nan] * len(part)
        found += [
            (table, {**table.summary(), **means, "logit_correlation": value})
            for table, means, value in zip(tables, sure, together)
        ]
    return found


def summarize_attribute_run(
    logits: Tensor,
    label: Tensor,
    bias: Tensor,
    *,
    target: int,
    aligned_pair: Tensor,
    attributes: AttributeTable,
) -> Summary:
    """Group table of the target attribute, and metrics of all attributes: logits `[N, K]` of one multi-label run.

    label: 0/1 `[N, K]`, bias int64 `[N]`; target: the column of the group table, aligned_pair bool `[2, B]`.
    Metrics: the accuracies of `GroupTable.summary`, the means of `attributes`, logit_correlation, and over all
    outputs: entropy (as a share of log 2), confidence, margin, and negative_log_likelihood in nats.
    """
    predicted, true = (logits[:, target] > 0).long(), label[:, target].long()
    table = group_accuracy(predicted, true, bias, aligned_pair=aligned_pair)
    together = (
        float(mean_absolute_correlation(logits.float().unsqueeze(0))[0]) if len(logits) > 1 else math.nan
    )
    metrics = {**table.summary(), **attributes.means(), **_binary_uncertainty(logits.double(), label)}
    return table, {**metrics, "logit_correlation": together}


def _binary_uncertainty(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Means over samples and attributes of what `uncertainty_summaries` gives for classes."""
    loss = functional.binary_cross_entropy_with_logits
    probability = torch.sigmoid(logits)
    return {
        "entropy": float(loss(logits, probability)) / math.log(2),
        "confidence": float(torch.sigmoid(logits.abs()).mean()),
        "margin": float((2 * probability - 1).abs().mean()),
        "negative_log_likelihood": float(loss(logits, label.double())),
    }
