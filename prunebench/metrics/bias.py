"""Bias amplification: do predictions tie an attribute to an identity more than the labels do?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, check_columns, check_rows

FEWEST_POSITIVES = 10
LEAST_IMBALANCE = 0.1


@dataclass(frozen=True)
class BiasAmplification:
    """By attribute: `value` float64 `[K]` (positive: amplified), nan where `reason` says why."""

    value: Tensor
    reason: tuple[str | None, ...]


def bias_amplification(
    prediction: Array, label: Array, identity: Array, *, train_label: Array, train_identity: Array
) -> BiasAmplification:
    """Bias amplification of Iofinova et al. for each of K attributes and one identity attribute.

    BA_j = sum_{i in A} yhat_ij / sum_i yhat_ij - sum_{i in A} y_ij / sum_i y_ij. A is the identity group {g = 1} if
    P_train(y_j = 1 | g = 1) > P_train(y_j = 1 | g = 0), else {g = 0}: the direction comes from the training
    labels, the base rate from the test labels, membership from the true identity.

    prediction, label: 0/1 `[N, K]`; identity `[N]`; train_label `[N', K]`; train_identity `[N']`. Undefined (nan)
    where the attribute is the identity itself, where a group has fewer than 10 test positives, where the two
    groups' rates of positives in training differ by less than 10 % of the smaller one, and where nothing is
    predicted positive. Raises MetricError on shapes that disagree or values other than 0 and 1.
    Source: Iofinova et al., CVPR 2023, and its released code.
    """
    prediction, label = as_binary("prediction", prediction, ndim=2), as_binary("label", label, ndim=2)
    identity = as_binary("identity", identity, ndim=1)
    train_label = as_binary("train_label", train_label, ndim=2)
    train_identity = as_binary("train_identity", train_identity, ndim=1)
    check_rows("label", label, "prediction", prediction)
    check_rows("identity", identity, "prediction", prediction)
    check_rows("train_identity", train_identity, "train_label", train_label)
    for name, values in (("label", label), ("train_label", train_label)):
        check_columns(name, values, "prediction", prediction)

    rate_one = train_identity @ train_label / train_identity.sum()  # nan without members
    rate_zero = (1 - train_identity) @ train_label / (1 - train_identity).sum()
    towards_one = rate_one > rate_zero
    predicted = torch.where(towards_one, identity @ prediction, (1 - identity) @ prediction)
    true = torch.where(towards_one, identity @ label, (1 - identity) @ label)
    value = predicted / prediction.sum(0) - true / label.sum(0)

    positives = torch.stack([identity @ label, (1 - identity) @ label]).amin(0)
    imbalance = (rate_one - rate_zero).abs() / torch.minimum(rate_one, rate_zero)
    same = (label == identity.unsqueeze(1)).all(0) & (train_label == train_identity.unsqueeze(1)).all(0)
    rules = (
        (same, "the attribute is the identity itself"),
        (
            torch.isnan(rate_one) | torch.isnan(rate_zero),
            "the training split lacks one of the two identity groups",
        ),
        (positives < FEWEST_POSITIVES, f"a group has fewer than {FEWEST_POSITIVES} test positives"),
        (
            torch.isnan(imbalance) | (imbalance < LEAST_IMBALANCE),
            f"the groups' rates of positives in training differ by less than {LEAST_IMBALANCE:.0%}",
        ),
        (prediction.sum(0) == 0, "nothing is predicted positive"),
    )
    reasons = tuple(
        next((text for broken, text in rules if broken[column]), None) for column in range(label.shape[1])
    )
    undefined = torch.tensor([reason is not None for reason in reasons])
    return BiasAmplification(value.masked_fill(undefined, math.nan), reasons)


@dataclass(frozen=True)
class DirectionalBiasAmplification:
    """Means over all (attribute, task) pairs, and the pairs: `[A, T]`, nan where undefined."""

    attribute_to_task: float
    task_to_attribute: float
    attribute_to_task_pairs: Tensor
    task_to_attribute_pairs: Tensor


def directional_bias_amplification(
    task_prediction: Array,
    task_label: Array,
    attribute_prediction: Array,
    attribute_label: Array,
    *,
    train_task: Array,
    train_attribute: Array,
) -> DirectionalBiasAmplification:
    """Both directions of Wang & Russakovsky (ICML 2021).

    sign_at = sign(P_train(a, t) - P_train(a) P_train(t)), over training samples with a task or attribute label;
    from counts, so that independence is exactly 0.
    A -> T: mean over (a, t) of sign_at (P(That_t = 1 | A_a = 1) - P(T_t = 1 | A_a = 1)); T -> A: mean of
    sign_at (P(Ahat_a = 1 | T_t = 1) - P(A_a = 1 | T_t = 1)). Task arrays 0/1 `[N, T]`, attribute arrays `[N, A]`.
    Pairs without members in the test split are nan and left out of the means.
    """
    names = ("task_prediction", "task_label", "attribute_prediction", "attribute_label")
    given = (task_prediction, task_label, attribute_prediction, attribute_label)
    t_hat, t, a_hat, a = (as_binary(name, values, ndim=2) for name, values in zip(names, given))
    train_t, train_a = (
        as_binary("train_task", train_task, ndim=2),
        as_binary("train_attribute", train_attribute, ndim=2),
    )
    for name, values in zip(names[1:], (t, a_hat, a)):
        check_rows(name, values, "task_prediction", t_hat)
    check_rows("train_attribute", train_a, "train_task", train_t)
    for name, values, other in (("task_prediction", t_hat, t), ("train_task", train_t, t)):
        check_columns(name, values, "task_label", other)
    for name, values, other in (("attribute_prediction", a_hat, a), ("train_attribute", train_a, a)):
        check_columns(name, values, "attribute_label", other)

    labelled = (train_t.sum(1) + train_a.sum(1)) > 0
    if not labelled.any():
        raise MetricError("train_task: no training sample has a task or attribute label")
    train_t, train_a = train_t[labelled], train_a[labelled]
    sign = torch.sign(train_a.T @ train_t * len(train_t) - torch.outer(train_a.sum(0), train_t.sum(0)))
    a_to_t = sign * ((a.T @ t_hat) - (a.T @ t)) / a.sum(0).unsqueeze(1)
    t_to_a = sign * ((a_hat.T @ t) - (a.T @ t)) / t.sum(0).unsqueeze(0)
    return DirectionalBiasAmplification(float(a_to_t.nanmean()), float(t_to_a.nanmean()), a_to_t, t_to_a)
