"""Predictability of pruning-induced change: how well dense models tell which outputs will change or gain bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from prunebench.analysis.aggregate import FEWEST_PAIRS, MeasuredConditions, defined, dense_runs, estimate
from prunebench.analysis.exemplars import Masks, output_uncertainty
from prunebench.analysis.measures import MeasuredRun, Outputs, own_identity
from prunebench.analysis.values import AttributePredictability, Estimate, SamplePredictability
from prunebench.metrics.predictability import (
    bias_risks,
    bootstrap_area,
    evaluate_predictability,
    rank_correlation,
)


def predict_samples(
    conditions: MeasuredConditions, outputs: Outputs, masks: Masks
) -> list[SamplePredictability]:
    """How well the dense models' uncertainty ranks what pruning changes.

    Modal exemplars by the mean uncertainty of all dense seeds, with a bootstrap over outputs; flips and new errors
    by that of the seed's own dense model, with a t interval over seeds.
    """
    dense = dense_runs(conditions)
    truth = outputs.test_y.long().flatten()
    unsure = {seed: output_uncertainty(run, outputs) for seed, run in dense.items()}
    together = torch.stack(list(unsure.values())).mean(0)
    columns = len(truth) // len(outputs.test_y)
    rows = []
    for (method, sparsity), runs in conditions.items():
        if runs[0].run.dense:
            continue
        mask = masks[method, sparsity]
        told = evaluate_predictability(together, mask)
        low, high = bootstrap_area(together, mask, columns=columns)
        area = Estimate(defined(told.area_under_curve), defined(low), defined(high), told.samples)
        rows.append(
            SamplePredictability(
                method,
                sparsity,
                "modal exemplar",
                told.event_rate,
                area,
                defined(told.average_precision),
                defined(told.recall_at_5_percent),
            )
        )
        paired = [run for run in runs if run.run.seed in dense]
        for event in ("flip", "new error"):
            found = []
            for run in paired:
                before = dense[run.run.seed].predicted
                changed = run.predicted != before
                if event == "new error":
                    changed = (before == truth) & (run.predicted != truth)
                found.append(evaluate_predictability(unsure[run.run.seed], changed))
            if found:
                rows.append(
                    SamplePredictability(
                        method,
                        sparsity,
                        event,
                        _mean([entry.event_rate for entry in found]),
                        estimate([entry.area_under_curve for entry in found]),
                        _mean([entry.average_precision for entry in found]),
                        _mean([entry.recall_at_5_percent for entry in found]),
                    )
                )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    """The mean, or None where a value is undefined."""
    return defined(float(np.mean(values)))


def predict_attributes(conditions: MeasuredConditions, outputs: Outputs) -> list[AttributePredictability]:
    """Spearman's rho over classes or attributes (and identities) of each dense criterion with the change of the bias.

    Criteria and changes are means over the seeds where they are defined; a change is taken from the dense model of
    the same seed. With fewer than five of them there is no interval.
    """
    dense = dense_runs(conditions)
    risks = [_risks(run, outputs) for run in dense.values()]
    criteria = {
        name: torch.stack([entry[name] for entry in risks]).nanmean(0) for name in (risks[0] if risks else ())
    }
    rows = []
    for (method, sparsity), runs in conditions.items():
        if runs[0].run.dense:
            continue
        changes = [
            _by_output(run.entries["bias_amplification"] - dense[run.run.seed].entries["bias_amplification"])
            for run in runs
            if run.run.seed in dense
        ]
        if not changes:
            continue
        change = torch.stack(changes).nanmean(0)
        for name, criterion in criteria.items():
            found = rank_correlation(criterion, change)
            low, high = (found.low, found.high) if found.pairs >= FEWEST_PAIRS else (math.nan, math.nan)
            rho = Estimate(defined(found.rho), defined(low), defined(high), found.pairs)
            rows.append(AttributePredictability(method, sparsity, name, rho))
    return rows


def _by_output(entries: Tensor) -> Tensor:
    """`[K]` of `[I, K]` or `[K]`: the mean over identities where it is defined."""
    return entries.nanmean(0) if entries.ndim == 2 else entries


def _risks(run: MeasuredRun, outputs: Outputs) -> dict[str, Tensor]:
    """The dense criteria by name, `[K]`; of attributes, means over the identities where they are defined."""
    truth = outputs.truths[run.run.seed]
    logits = run.run.logits["test"]
    attributes = outputs.task.attributes
    if attributes is None:
        identity, train_identity = (own_identity(truth, name) for name in ("test", "train"))
        return bias_risks(
            logits, truth.y["test"], identity, train_label=truth.y["train"], train_identity=train_identity
        )
    found = [
        bias_risks(
            logits,
            truth.y["test"],
            truth.y["test"][:, column],
            train_label=truth.y["train"],
            train_identity=truth.y["train"][:, column],
        )
        for column in attributes.identity_indices
    ]
    return {name: torch.stack([entry[name] for entry in found]).nanmean(0) for name in found[0]}
