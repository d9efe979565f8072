"""Calibration: thresholds and class offsets that give the labels' frequencies, calibration error, rare values, ROC."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    Array,
    as_classes,
    as_count,
    as_finite,
    as_given,
    check_rows,
    middle_ranks,
)
from prunebench.metrics.classes import binary_columns, logit_columns

Numbers = np.ndarray


@as_given
def calibrated_thresholds(val_logits: Array, val_label: Array, official: bool = False) -> Tensor:
    """Thresholds `[K]` so that logit > threshold gives as many positives on validation as the labels have.

    With k positives the threshold lies half-way between the k-th and the (k + 1)-th largest logit, and -inf where
    all are positive. nan where none is, for there is nothing to calibrate: a comparison with nan predicts no
    positive either. Logits that tie across that border make the exact number impossible; then the fewer are
    predicted. Bias amplification of `logits > threshold` is the threshold-calibrated one (TCBA).
    Source: Iofinova et al., CVPR 2023 (threshold-calibrated bias), and its released code.

    Args:
        val_logits: `[N, K]`.
        val_label: 0/1 `[N, K]`, or class indices `[N]`: then the thresholds `[C]` are for `one_vs_rest(logits)`.
        official: the released rule: the k-th largest logit itself, so that k - 1 exceed it.

    Raises:
        MetricError: shapes that disagree, other labels, no sample, or logits that are not finite.
    """
    logits, label = logit_columns("val_logits", val_logits, "val_label", val_label)
    count = label.sum(0).long()
    ascending = torch.from_numpy(
        np.sort(np.ascontiguousarray(logits.numpy().T), axis=1)
    )  # faster than torch's
    infinite = torch.full((logits.shape[1], 1), math.inf, dtype=torch.float64)
    bounds = torch.cat([infinite, ascending.flip(1), -infinite], dim=1)
    above = bounds.gather(1, count.unsqueeze(1)).squeeze(1).masked_fill(count == 0, math.nan)
    if official:
        return above
    below = bounds.gather(1, (count + 1).unsqueeze(1)).squeeze(1)
    middle = below + (above - below) / 2
    # Neighbouring floats have no middle: the lower one is the threshold that `>` needs.
    middle = torch.where(middle >= above, below, middle)
    middle = torch.where(above == below, above, middle)
    return torch.where(count == len(logits), below, middle).masked_fill(count == 0, math.nan)


@as_given
def class_offsets(val_logits: Array, val_label: Array) -> Tensor:
    """Offsets `[C]`, float64, so that argmax(logits + offsets) has as many of each class as the labels.

    The multi-class analogue of `calibrated_thresholds`; for two classes it is the threshold of their difference.
    The assignment of samples to classes with the labels' counts n_c and the largest sum of logits has dual prices,
    and those are offsets that reproduce it. It is found by shortest augmenting paths over the classes: from argmax,
    each step moves one sample along the cheapest chain of classes from one with too many to one with too few, and the
    last step leaves none (at most N steps, O(N C + C^3) each). Of all offsets that fit, those are taken that keep
    the closest sample as far from the border as possible.

    The mean offset of the classes in the labels is 0; a class without labels keeps offset 0, or is lowered just
    enough for none to be predicted. The counts are exact but where samples tie at a border (equal logits), and in
    arithmetic coarser than the distance to the border.

    Args:
        val_logits: `[N, C]`.
        val_label: class indices `[N]`.

    Raises:
        MetricError: shapes that disagree, labels outside 0..C-1, no sample, fewer than two classes, or logits that
            are not finite.
    """
    logits, label = as_finite("val_logits", val_logits, ndim=2), as_classes("val_label", val_label, ndim=1)
    check_rows("val_label", label, "val_logits", logits)
    classes = logits.shape[1]
    if classes < 2 or int(label.max()) >= classes:
        raise MetricError(f"val_label: want classes below the {classes} (at least 2) columns of the logits")
    values = logits.numpy()
    wanted = np.bincount(label.numpy(), minlength=classes)
    losses = _cheapest_moves(values, _assign(values, wanted)).loss
    return torch.from_numpy(_widest_offsets(losses, wanted > 0))


@dataclass(frozen=True)
class Moves:
    """The cheapest sample to move from class a to class c: what the sum of logits loses, and which sample it is."""

    loss: Numbers
    sample: Numbers


def _cheapest_moves(values: Numbers, assigned: Numbers) -> Moves:
    """Loss `[C, C]` (infinite from a class without samples, and from a class to itself) and sample `[C, C]`."""
    classes = values.shape[1]
    loss = np.full((classes, classes), math.inf)
    sample = np.zeros((classes, classes), dtype=np.int64)
    for origin in range(classes):
        rows = np.flatnonzero(assigned == origin)
        if len(rows):
            losses = values[rows, origin, None] - values[rows]
            cheapest = losses.argmin(0)
            loss[origin], sample[origin] = losses[cheapest, np.arange(classes)], rows[cheapest]
    np.fill_diagonal(loss, math.inf)
    return Moves(loss, sample)


def _assign(values: Numbers, wanted: Numbers) -> Numbers:
    """The assignment `[N]` with `wanted` samples of each class and the largest sum of logits."""
    assigned = values.argmax(1)
    slack = 1e-12 * max(float(np.abs(values).max()), 1e-300)
    while True:
        surplus = np.bincount(assigned, minlength=len(wanted)) - wanted
        if not surplus.any():
            return assigned
        moves = _cheapest_moves(values, assigned)
        chain = _cheapest_chain(moves.loss, surplus, slack)
        for origin, target in itertools.pairwise(chain):
            assigned[moves.sample[origin, target]] = target


def _cheapest_chain(loss: Numbers, surplus: Numbers, slack: float) -> list[int]:
    """Classes from one with too many samples to one with too few, by Bellman and Ford.

    Losses may be negative, but no cycle is: a way counts as shorter by more than `slack` only, so that rounding
    makes none.
    """
    classes = np.arange(len(surplus))
    distance = np.where(surplus > 0, 0.0, math.inf)
    before = np.full(len(surplus), -1)
    for _ in classes:
        through = distance[:, None] + loss
        nearest = through.argmin(0)
        shorter = through[nearest, classes] < distance - slack
        distance = np.where(shorter, through[nearest, classes], distance)
        before = np.where(shorter, nearest, before)
    chain = [int(np.where(surplus < 0, distance, math.inf).argmin())]
    while before[chain[0]] >= 0:
        chain.insert(0, int(before[chain[0]]))
    return chain


def _widest_offsets(loss: Numbers, present: Numbers) -> Numbers:
    """Offsets b `[C]` with the largest m such that b_c - b_a + m <= loss_ac for all pairs of present classes."""
    from scipy.optimize import linprog

    offsets, margin = np.zeros(len(present)), 1.0
    chosen = np.flatnonzero(present)
    if len(chosen) > 1:
        target, origin = np.nonzero(~np.eye(len(chosen), dtype=np.bool_))
        rows = np.zeros((len(origin), len(chosen) + 1))
        rows[np.arange(len(origin)), target] = 1
        rows[np.arange(len(origin)), origin] = -1
        rows[:, -1] = 1
        gain = np.append(np.zeros(len(chosen)), -1.0)
        bounds = [(0, 0), *[(None, None)] * len(chosen)]
        found = linprog(gain, A_ub=rows, b_ub=loss[chosen[origin], chosen[target]], bounds=bounds).x
        offsets[chosen], margin = found[:-1] - found[:-1].mean(), found[-1]
    for absent in np.flatnonzero(~present):
        offsets[absent] = min(0.0, float((offsets[chosen] + loss[chosen, absent]).min()) - margin)
    return offsets


@as_given
def expected_calibration_error(logits: Array, label: Array, bins: int = 10) -> Tensor:
    """ECE `[K]` of the positive class: sum_b (n_b / N) |mean p - mean y| over bins floor(bins p) of p = sigmoid(z).

    p = 1 falls into the last bin. Source: Iofinova et al., CVPR 2023.

    Args:
        logits: `[N, K]`.
        label: 0/1 `[N, K]`, or class indices `[N]`: then each class against the rest, `[C]`, with p its softmax
            probability.
        bins: how many of equal width.

    Raises:
        MetricError: shapes that disagree, other labels, no sample, no bin, or logits that are not finite.
    """
    bins = as_count("bins", bins)
    values, truth = logit_columns("logits", logits, "label", label)
    probability = torch.sigmoid(values)
    index = (probability * bins).floor().long().clamp(0, bins - 1)
    gap = torch.zeros(bins, values.shape[1], dtype=torch.float64).scatter_add_(0, index, probability - truth)
    return gap.abs().sum(0) / len(values)


@as_given
def rare_value_underprediction(prediction: Array, label: Array, train_label: Array) -> Tensor:
    """Ratio of how often the rarer value is predicted to how often it is true: `[K]`, below 1 where under-predicted.

    (1 - predicted positives) / (1 - true positives) where P_train(y_j) > 0.5, else predicted / true; nan where the
    rarer value never occurs in the test labels. Source: Iofinova et al., CVPR 2023, released code.

    Args:
        prediction: 0/1 `[N, K]`. Or class indices `[N]`, and so for the labels: then each class against the rest,
            `[C]` for the classes 0 to the highest in any of the three.
        label: 0/1 `[N, K]`, or class indices `[N]`.
        train_label: 0/1 `[N', K]`, or class indices `[N']`.

    Raises:
        MetricError: shapes that disagree, other values, or no sample.
    """
    given = {"prediction": prediction, "label": label, "train_label": train_label}
    predictions, truth, train = binary_columns(given)
    check_rows("label", truth, "prediction", predictions)
    predicted, true = predictions.mean(0), truth.mean(0)
    common = train.mean(0) > 0.5
    share = torch.where(common, 1 - predicted, predicted) / torch.where(common, 1 - true, true)
    return share.masked_fill(torch.where(common, true == 1, true == 0), math.nan)


@as_given
def area_under_curve(logits: Array, label: Array) -> Tensor:
    """Area under the ROC curve `[K]` by ranks (ties count half); nan where either value is absent.

    It equals the Mann-Whitney statistic over the number of pairs.

    Args:
        logits: `[N, K]`.
        label: 0/1 `[N, K]`, or class indices `[N]`: then each class against the rest, `[C]`.

    Raises:
        MetricError: shapes that disagree, other labels, no sample, or logits that are not finite.
    """
    values, truth = logit_columns("logits", logits, "label", label)
    positives = truth.sum(0)
    negatives = len(truth) - positives
    wins = (middle_ranks(values) * truth).sum(0) - positives * (positives + 1) / 2
    return wins / (positives * negatives)
