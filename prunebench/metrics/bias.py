"""Bias amplification: do predictions tie an attribute to an identity more than the labels do?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, as_given, check_columns, check_rows
from prunebench.metrics.classes import binary_columns

FEWEST_POSITIVES = 10
LEAST_IMBALANCE = 0.1


@dataclass(frozen=True)
class BiasAmplification:
    """By attribute: `value` float64 `[K]` (positive: amplified), nan where `reason` says why."""

    value: Tensor
    reason: tuple[str | None, ...]


@as_given
def bias_amplification(
    prediction: Array, label: Array, identity: Array, *, train_label: Array, train_identity: Array
) -> BiasAmplification:
    """Bias amplification of Iofinova et al. for each of K attributes and one identity attribute.

    BA_j = sum_{i in A} yhat_ij / sum_i yhat_ij - sum_{i in A} y_ij / sum_i y_ij. A is the identity group {g = 1} if
    P_train(y_j = 1 | g = 1) > P_train(y_j = 1 | g = 0), else {g = 0}: the direction comes from the training
    labels, the base rate from the test labels, membership from the true identity.

    Undefined (nan) where the attribute is the identity itself, where a group has fewer than 10 test positives,
    where the two groups' rates of positives in training differ by less than 10 % of the smaller one, and where
    nothing is predicted positive. Source: Iofinova et al., CVPR 2023, and its released code.

    Args:
        prediction: 0/1 `[N, K]`. A multi-class task gives class indices `[N]`, and so for the labels: each class
            against the rest, for the classes 0 to the highest that occurs.
        label: 0/1 `[N, K]`, or class indices `[N]`.
        identity: 0/1 `[N]`, or `[N, K]`: one for each attribute, as "has the colour of class c".
        train_label: 0/1 `[N', K]`, or class indices `[N']`.
        train_identity: 0/1 `[N']` or `[N', K]`.

    Raises:
        MetricError: shapes that disagree, or values other than those.
    """
    prediction, label, train_label = binary_columns(
        {"prediction": prediction, "label": label, "train_label": train_label}
    )
    check_rows("label", label, "prediction", prediction)
    test = IdentityCounts.of("identity", identity, "label", label)
    train = IdentityCounts.of("train_identity", train_identity, "train_label", train_label)
    guessed = IdentityCounts.of("identity", identity, "prediction", prediction)

    towards_one = train.rate_one > train.rate_zero
    predicted = torch.where(towards_one, guessed.positives_one, guessed.positives_zero)
    true = torch.where(towards_one, test.positives_one, test.positives_zero)
    value = predicted / prediction.sum(0) - true / label.sum(0)

    fewest = torch.minimum(test.positives_one, test.positives_zero)
    imbalance = train.gap / torch.minimum(train.rate_one, train.rate_zero)
    rules = (
        (test.is_label & train.is_label, "the attribute is the identity itself"),
        (torch.isnan(train.gap), "the training split lacks one of the two identity groups"),
        (fewest < FEWEST_POSITIVES, f"a group has fewer than {FEWEST_POSITIVES} test positives"),
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
class IdentityCounts:
    """Positives of each column among g = 1 and among g = 0, and their rates; float64 `[K]`.

    A rate is nan for a group without members. `is_label`: whether the column is the identity itself.
    """

    positives_one: Tensor
    positives_zero: Tensor
    rate_one: Tensor
    rate_zero: Tensor
    is_label: Tensor

    @property
    def gap(self) -> Tensor:
        """|P(y = 1 | g = 1) - P(y = 1 | g = 0)|, nan where a group has no members."""
        return (self.rate_one - self.rate_zero).abs()

    @classmethod
    def of(cls, name: str, identity: Array, label_name: str, label: Tensor) -> IdentityCounts:
        """Count 0/1 columns `[N, K]` by an identity `[N]`, or `[N, K]` with one for each column."""
        member = as_binary(name, identity, ndim=(1, 2))
        check_rows(name, member, label_name, label)
        if member.ndim == 2:
            check_columns(name, member, label_name, label)
        else:
            member = member.unsqueeze(1)
        one, size = (member * label).sum(0), member.sum(0)
        zero = label.sum(0) - one
        return cls(one, zero, one / size, zero / (len(label) - size), (label == member).all(0))


@dataclass(frozen=True)
class DirectionalBiasAmplification:
    """Means over all (attribute, task) pairs, and the pairs: `[A, T]`, nan where undefined."""

    attribute_to_task: float
    task_to_attribute: float
    attribute_to_task_pairs: Tensor
    task_to_attribute_pairs: Tensor


@as_given
def directional_bias_amplification(
    task_prediction: Array,
    task_label: Array,
    attribute_prediction: Array | None,
    attribute_label: Array,
    *,
    train_task: Array,
    train_attribute: Array,
) -> DirectionalBiasAmplification:
    """Directional bias amplification, attribute to task and task to attribute (Wang & Russakovsky, ICML 2021).

    sign_at = sign(P_train(a, t) - P_train(a) P_train(t)), over training samples with a task or attribute label;
    from counts, so that independence is exactly 0.
    A -> T: mean over (a, t) of sign_at (P(That_t = 1 | A_a = 1) - P(T_t = 1 | A_a = 1)); T -> A: mean of
    sign_at (P(Ahat_a = 1 | T_t = 1) - P(A_a = 1 | T_t = 1)). Pairs without members in the test split are nan and left
    out of the means.

    Args:
        task_prediction: 0/1 `[N, T]`; this and any other array may be class indices instead, which become one
            column a class.
        task_label: 0/1 `[N, T]`.
        attribute_prediction: 0/1 `[N, A]`; None where the model predicts no attribute: then T -> A is nan.
        attribute_label: 0/1 `[N, A]`.
        train_task: 0/1 `[N', T]`.
        train_attribute: 0/1 `[N', A]`.

    Raises:
        MetricError: shapes that disagree, other values, or training samples without labels.
    """
    tasks = {"task_prediction": task_prediction, "task_label": task_label, "train_task": train_task}
    t_hat, t, train_t = binary_columns(tasks)
    attributes = {"attribute_label": attribute_label, "train_attribute": train_attribute}
    if attribute_prediction is not None:
        attributes["attribute_prediction"] = attribute_prediction
    a, train_a, *predicted = binary_columns(attributes)
    check_rows("task_label", t, "task_prediction", t_hat)
    check_rows("attribute_label", a, "task_prediction", t_hat)
    check_rows("train_attribute", train_a, "train_task", train_t)

    labelled = (train_t.sum(1) + train_a.sum(1)) > 0
    if not labelled.any():
        raise MetricError("train_task: no training sample has a task or attribute label")
    train_t, train_a = train_t[labelled], train_a[labelled]
    sign = torch.sign(train_a.T @ train_t * len(train_t) - torch.outer(train_a.sum(0), train_t.sum(0)))
    together = a.T @ t
    a_to_t = sign * (a.T @ t_hat - together) / a.sum(0).unsqueeze(1)
    t_to_a = torch.full_like(a_to_t, math.nan)
    for a_hat in predicted:
        check_rows("attribute_prediction", a_hat, "task_prediction", t_hat)
        t_to_a = sign * (a_hat.T @ t - together) / t.sum(0).unsqueeze(0)
    return DirectionalBiasAmplification(float(a_to_t.nanmean()), float(t_to_a.nanmean()), a_to_t, t_to_a)
