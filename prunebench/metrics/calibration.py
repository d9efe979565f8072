"""Thresholds, calibration and under-prediction of rare values, by attribute."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, as_finite, check_columns, check_rows


def calibrated_thresholds(val_logits: Array, val_label: Array, *, official: bool = False) -> Tensor:
    """Thresholds `[K]` so that logit > threshold gives as many positives on validation as the labels have.

    With k positives the threshold lies half-way between the k-th and the (k + 1)-th largest logit (-inf where all
    are positive, +inf where none is). Logits that tie across that border make the exact number impossible; then
    the fewer are predicted. `official=True` is the released rule: the k-th largest logit itself, so that k - 1
    exceed it (nan where there is no positive). val_logits: `[N, K]`, val_label: 0/1 `[N, K]`.
    Source: Iofinova et al., CVPR 2023 (threshold-calibrated bias), and its released code.
    """
    logits, label = as_finite("val_logits", val_logits, ndim=2), as_binary("val_label", val_label, ndim=2)
    check_rows("val_label", label, "val_logits", logits)
    check_columns("val_label", label, "val_logits", logits)
    count = label.sum(0).long()
    ordered = logits.sort(dim=0, descending=True).values
    infinite = torch.full((1, logits.shape[1]), math.inf, dtype=torch.float64)
    bounds = torch.cat([infinite, ordered, -infinite])
    above = bounds.gather(0, count.unsqueeze(0)).squeeze(0)
    if official:
        return above.masked_fill(count == 0, math.nan)
    below = bounds.gather(0, (count + 1).unsqueeze(0)).squeeze(0)
    middle = below + (above - below) / 2
    # Neighbouring floats have no middle: the lower one is the threshold that `>` needs.
    middle = torch.where(middle >= above, below, middle)
    middle = torch.where(above == below, above, middle)
    middle = torch.where(count == len(logits), -infinite[0], middle)
    return torch.where(count == 0, infinite[0], middle)


def expected_calibration_error(logits: Array, label: Array, *, bins: int = 10) -> Tensor:
    """ECE `[K]` of the positive class: sum_b (n_b / N) |mean p - mean y| over bins floor(bins p) of p = sigmoid(z).

    logits: `[N, K]`, label: 0/1 `[N, K]`. p = 1 falls into the last bin. Source: Iofinova et al., CVPR 2023.
    """
    if bins < 1:
        raise MetricError(f"bins: want at least one, got {bins}")
    logits, label = as_finite("logits", logits, ndim=2), as_binary("label", label, ndim=2)
    check_rows("label", label, "logits", logits)
    check_columns("label", label, "logits", logits)
    probability = torch.sigmoid(logits)
    index = (probability * bins).floor().long().clamp(0, bins - 1)
    gap = torch.zeros(bins, logits.shape[1], dtype=torch.float64).scatter_add_(0, index, probability - label)
    return gap.abs().sum(0) / len(logits)


def rare_value_underprediction(prediction: Array, label: Array, train_label: Array) -> Tensor:
    """How often the rarer value is predicted, over how often it is true: `[K]`, below 1 where under-predicted.

    (1 - predicted positives) / (1 - true positives) where P_train(y_j) > 0.5, else predicted / true; nan where the
    rarer value never occurs in the test labels. prediction, label: 0/1 `[N, K]`, train_label: `[N', K]`.
    Source: Iofinova et al., CVPR 2023, released code.
    """
    prediction, label = as_binary("prediction", prediction, ndim=2), as_binary("label", label, ndim=2)
    train_label = as_binary("train_label", train_label, ndim=2)
    check_rows("label", label, "prediction", prediction)
    for name, values in (("label", label), ("train_label", train_label)):
        check_columns(name, values, "prediction", prediction)
    predicted, true = prediction.mean(0), label.mean(0)
    common = train_label.mean(0) > 0.5
    share = torch.where(common, 1 - predicted, predicted) / torch.where(common, 1 - true, true)
    return share.masked_fill(torch.where(common, true == 1, true == 0), math.nan)


def area_under_curve(logits: Array, label: Array) -> Tensor:
    """Area under the ROC curve `[K]` by ranks (ties count half); nan where a class is absent.

    logits: `[N, K]`, label: 0/1 `[N, K]`. Equals the Mann-Whitney statistic over the number of pairs.
    """
    logits, label = as_finite("logits", logits, ndim=2), as_binary("label", label, ndim=2)
    check_rows("label", label, "logits", logits)
    check_columns("label", label, "logits", logits)
    rank = torch.stack([_middle_ranks(column) for column in logits.T], dim=1)
    positives = label.sum(0)
    negatives = len(label) - positives
    wins = (rank * label).sum(0) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def _middle_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing the mean of theirs: `[N]`."""
    _, place, count = torch.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count.double() - 1) / 2)[place]
