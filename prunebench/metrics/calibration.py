"""Thresholds, calibration and under-prediction of rare values, by attribute."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from prunebench.metrics.arrays import Array, as_count, as_given, check_rows, middle_ranks
from prunebench.metrics.classes import binary_columns, logit_columns


@as_given
def calibrated_thresholds(val_logits: Array, val_label: Array, official: bool = False) -> Tensor:
    """Thresholds `[K]` so that logit > threshold gives as many positives on validation as the labels have.

    With k positives the threshold lies half-way between the k-th and the (k + 1)-th largest logit, and -inf where
    all are positive. nan where none is, for there is nothing to calibrate: a comparison with nan predicts no
    positive either. Logits that tie across that border make the exact number impossible; then the fewer are
    predicted. `official=True` is the released rule: the k-th largest logit itself, so that k - 1 exceed it.

    val_logits: `[N, K]`; val_label: 0/1 `[N, K]`, or class indices `[N]`: then the thresholds `[C]` are for
    `one_vs_rest(logits)`. Bias amplification of `logits > threshold` is the threshold-calibrated one (TCBA). Raises
    MetricError on shapes that disagree, other labels, no sample, and logits that are not finite.
    Source: Iofinova et al., CVPR 2023 (threshold-calibrated bias), and its released code.
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
def expected_calibration_error(logits: Array, label: Array, bins: int = 10) -> Tensor:
    """ECE `[K]` of the positive class: sum_b (n_b / N) |mean p - mean y| over bins floor(bins p) of p = sigmoid(z).

    logits: `[N, K]`; label: 0/1 `[N, K]`, or class indices `[N]`: then each class against the rest, `[C]`, with p its
    softmax probability. p = 1 falls into the last bin. Raises MetricError on shapes that disagree, other labels,
    no sample, no bin, and logits that are not finite. Source: Iofinova et al., CVPR 2023.
    """
    bins = as_count("bins", bins)
    values, truth = logit_columns("logits", logits, "label", label)
    probability = torch.sigmoid(values)
    index = (probability * bins).floor().long().clamp(0, bins - 1)
    gap = torch.zeros(bins, values.shape[1], dtype=torch.float64).scatter_add_(0, index, probability - truth)
    return gap.abs().sum(0) / len(values)


@as_given
def rare_value_underprediction(prediction: Array, label: Array, train_label: Array) -> Tensor:
    """How often the rarer value is predicted, over how often it is true: `[K]`, below 1 where under-predicted.

    (1 - predicted positives) / (1 - true positives) where P_train(y_j) > 0.5, else predicted / true; nan where the
    rarer value never occurs in the test labels.

    prediction, label: 0/1 `[N, K]`, train_label: `[N', K]`. Or class indices `[N]`, `[N]`, `[N']`: then each class
    against the rest, `[C]` for the classes 0 to the highest in any of the three. Raises MetricError on shapes that
    disagree, other values and no sample. Source: Iofinova et al., CVPR 2023, released code.
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

    logits: `[N, K]`; label: 0/1 `[N, K]`, or class indices `[N]`: then each class against the rest, `[C]`. Equals the
    Mann-Whitney statistic over the number of pairs. Raises MetricError on shapes that disagree, other labels, no
    sample, and logits that are not finite.
    """
    values, truth = logit_columns("logits", logits, "label", label)
    positives = truth.sum(0)
    negatives = len(truth) - positives
    wins = (middle_ranks(values) * truth).sum(0) - positives * (positives + 1) / 2
    return wins / (positives * negatives)
