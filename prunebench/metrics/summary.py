"""All that a record says of a run's outputs, for one run or a thousand."""

from __future__ import annotations

import math

from torch import Tensor

from prunebench.metrics.dependence import mean_absolute_correlation
from prunebench.metrics.groups import GroupTable, group_tables
from prunebench.metrics.uncertainty import uncertainty_summaries

ELEMENTS_AT_A_TIME = 1 << 24


def summarize_runs(
    logits: Tensor, label: Tensor, bias: Tensor, *, aligned_pair: Tensor | None = None
) -> list[tuple[GroupTable, dict[str, float]]]:
    """Group table and metrics of each run: logits `[M, N, C]` (floating), label and bias int64 `[N]`.

    Metrics: the accuracies of `GroupTable.summary`, the means of `uncertainty_summaries`, and
    logit_correlation, the mean |Pearson r| between class logits. Runs are taken a few at a time, so memory does
    not grow with M.
    """
    models, samples, classes = logits.shape
    at_once = max(ELEMENTS_AT_A_TIME // (samples * classes), 1)
    found = []
    for start in range(0, models, at_once):
        part = logits[start : start + at_once].float()
        tables = group_tables(part.argmax(-1), label, bias, aligned_pair=aligned_pair)
        sure = uncertainty_summaries(part, label)
        together = mean_absolute_correlation(part).tolist() if samples > 1 else [math.nan] * len(part)
        found += [
            (table, {**table.summary(), **means, "logit_correlation": value})
            for table, means, value in zip(tables, sure, together)
        ]
    return found
