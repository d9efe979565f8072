"""Predictability of pruning-induced change: how well dense models tell which outputs will change or gain bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prunebench.analysis.aggregate import (
    FEWEST_PAIRS,
    MeasuredConditions,
    dense_runs,
    estimate,
    pruned_conditions,
    reference_runs,
)
from prunebench.analysis.exemplars import Masks, output_uncertainty
from prunebench.analysis.measures import MeasuredRun, Outputs, own_identity
from prunebench.analysis.values import AttributePredictability, Estimate, SamplePredictability, defined
from prunebench.metrics.predictability import (
    Predictability,
    bias_risks,
    bootstrap_area,
    evaluate_predictability,
    rank_correlation,
)

FEWEST_CLASSES = 20
"""Of a task of classes; fewer are no sample to correlate over."""


def predict_samples(
    conditions: MeasuredConditions, outputs: Outputs, masks: Masks
) -> list[SamplePredictability]:
    """How well the dense models' uncertainty ranks what pruning changes.

    Modal exemplars by the mean uncertainty of all dense seeds, with a bootstrap over outputs; flips and new errors
    by that of the seed's own dense model, with a t interval over seeds, and so their differences from the control.
    """
    dense, others = dense_runs(conditions), _control_runs(conditions)
    truth = outputs.test_y.long().flatten()
    unsure = {seed: output_uncertainty(run, outputs) for seed, run in dense.items()}
    together = torch.stack(list(unsure.values())).mean(0)
    columns = len(truth) // len(outputs.test_y)
    rows = []
    for place, runs in pruned_conditions(conditions).items():
        told = evaluate_predictability(together, masks[place])
        ends = bootstrap_area(together, masks[place], columns=columns)
        area = Estimate.of(told.area_under_curve, *ends, told.samples)
        rows.append(_sample_row(place, "modal exemplar", [told], area))
        for event in ("flip", "new error"):

            def told_of(run: MeasuredRun, seed: int, event: str = event) -> Predictability:
                before = dense[seed].predicted
                changed = run.predicted != before
                if event == "new error":
                    changed &= before == truth
                return evaluate_predictability(unsure[seed], changed)

            found = {run.run.seed: told_of(run, run.run.seed) for run in runs if run.run.seed in dense}
            if found:
                area = estimate([entry.area_under_curve for entry in found.values()])
                row = _sample_row(place, event, list(found.values()), area)
                beyond = [
                    entry.area_under_curve - told_of(others[seed], seed).area_under_curve
                    for seed, entry in found.items()
                    if seed in others and others[seed] not in runs
                ]
                rows.append(replace(row, beyond_control=estimate(beyond) if beyond else None))
    return rows


def _control_runs(conditions: MeasuredConditions) -> dict[int, MeasuredRun]:
    """By seed, the model whose changes owe nothing to pruning: the reference, or the next seed's dense model."""
    dense, reference = dense_runs(conditions), reference_runs(conditions)
    if not any(run.run.dense for run in reference.values()):
        return reference
    seeds = sorted(dense)
    return {seed: dense[other] for seed, other in zip(seeds, seeds[1:] + seeds[:1]) if other != seed}


def _sample_row(
    place: tuple[str, float | None], event: str, found: Sequence[Predictability], area: Estimate
) -> SamplePredictability:
    """Means over seeds, undefined where a seed's is."""
    rate, precision, recall = (
        defined(float(np.mean([getattr(entry, name) for entry in found])))
        for name in ("event_rate", "average_precision", "recall_at_5_percent")
    )
    return SamplePredictability(*place, event, rate, area, precision, recall)


def predict_attributes(conditions: MeasuredConditions, outputs: Outputs) -> list[AttributePredictability]:
    """Spearman's rho over classes or attributes (and identities) of each dense criterion with the change of the bias.

    Criteria and changes are means over the seeds where they are defined; a change is taken from the reference of the
    same seed. With fewer than five attributes there is no interval. Of fewer than 20 classes nothing is said: with ten,
    only a correlation above 0.65 could be told from 0.
    """
    if outputs.task.attributes is None and outputs.task.num_classes < FEWEST_CLASSES:
        return []
    dense, reference = dense_runs(conditions), reference_runs(conditions)
    risks = [_risks(run, outputs) for run in dense.values()]
    criteria = {
        name: torch.stack([entry[name] for entry in risks]).nanmean(0) for name in (risks[0] if risks else ())
    }
    rows = []
    for (method, sparsity), runs in pruned_conditions(conditions).items():
        changes = [
            _by_output(
                run.entries["bias_amplification"] - reference[run.run.seed].entries["bias_amplification"]
            )
            for run in runs
            if reference.get(run.run.seed, run) is not run
        ]
        if not changes:
            continue
        change = torch.stack(changes).nanmean(0)
        for name, criterion in criteria.items():
            found = rank_correlation(criterion, change)
            ends = (found.low, found.high) if found.pairs >= FEWEST_PAIRS else (math.nan, math.nan)
            rho = Estimate.of(found.rho, *ends, found.pairs)
            rows.append(AttributePredictability(method, sparsity, name, rho))
    return rows


def _by_output(entries: Tensor) -> Tensor:
    """`[K]` of `[I, K]` or `[K]`: the mean over identities where it is defined."""
    return entries.nanmean(0) if entries.ndim == 2 else entries


def _risks(run: MeasuredRun, outputs: Outputs) -> dict[str, Tensor]:
    """The dense criteria by name, `[K]`; of attributes, means over the identities where they are defined."""
    truth, attributes = outputs.truths[run.run.seed], outputs.task.attributes
    splits = ("test", "train")
    identities = (
        [[own_identity(truth, name) for name in splits]]
        if attributes is None
        else [[truth.y[name][:, column] for name in splits] for column in attributes.identity_indices]
    )
    found = [
        bias_risks(
            run.run.logits["test"], truth.y["test"], test, train_label=truth.y["train"], train_identity=train
        )
        for test, train in identities
    ]
    return {name: torch.stack([entry[name] for entry in found]).nanmean(0) for name in found[0]}
