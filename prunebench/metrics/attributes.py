"""All metrics of a multi-label model, by attribute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    Array,
    as_binary,
    as_finite,
    as_given,
    as_tensor,
    check_columns,
    check_rows,
)
from prunebench.metrics.bias import bias_amplification
from prunebench.metrics.calibration import (
    area_under_curve,
    expected_calibration_error,
    rare_value_underprediction,
)
from prunebench.metrics.dependence import interdependence
from prunebench.metrics.uncertainty import uncertain_share


@dataclass(frozen=True)
class AttributeTable:
    """Metrics of K attributes, each float64 `[K]`; bias amplification by identity attribute, `[I, K]`.

    `calibrated_amplification` uses the calibrated thresholds (nan without them). Undefined entries are nan.
    """

    accuracy: Tensor
    area_under_curve: Tensor
    uncertain_share: Tensor
    calibration_error: Tensor
    underprediction: Tensor
    interdependence: Tensor
    amplification: Tensor
    calibrated_amplification: Tensor
    reasons: tuple[tuple[str | None, ...], ...]
    """By identity and attribute: why the amplification is undefined."""


@as_given
def attribute_table(
    logits: Array,
    label: Array,
    *,
    train_label: Array,
    identities: Sequence[int],
    thresholds: Array | None = None,
) -> AttributeTable:
    """Metrics of one model by attribute.

    Args:
        logits: `[N, K]`.
        label: 0/1 `[N, K]`.
        train_label: 0/1 `[N', K]`.
        identities: the columns that bias amplification is measured against.
        thresholds: `[K]` as of `calibrated_thresholds` on validation; a positive is logit > threshold, elsewhere
            logit > 0.

    Raises:
        MetricError: shapes that disagree, identities that are no columns, and as the metrics do.
    """
    logits, label = as_finite("logits", logits, ndim=2), as_binary("label", label, ndim=2)
    train_label = as_binary("train_label", train_label, ndim=2)
    check_rows("label", label, "logits", logits)
    for name, values in (("label", label), ("train_label", train_label)):
        check_columns(name, values, "logits", logits)
    if any(not 0 <= column < label.shape[1] for column in identities):
        raise MetricError(f"identities: want columns 0..{label.shape[1] - 1}, got {list(identities)}")
    prediction = (logits > 0).double()

    def amplification(predicted: Tensor) -> tuple[Tensor, tuple[tuple[str | None, ...], ...]]:
        found = [
            bias_amplification(
                predicted,
                label,
                label[:, column],
                train_label=train_label,
                train_identity=train_label[:, column],
            )
            for column in identities
        ]
        values = [entry.value for entry in found]
        shape = (0, label.shape[1])
        return torch.stack(values) if values else torch.zeros(shape), tuple(entry.reason for entry in found)

    plain, reasons = amplification(prediction)
    calibrated = torch.full_like(plain, math.nan)
    if thresholds is not None:
        border = as_tensor("thresholds", thresholds, ndim=1).double()
        if len(border) != logits.shape[1]:
            raise MetricError(f"thresholds: has {len(border)} values, logits {logits.shape[1]} columns")
        calibrated, _ = amplification((logits > border).double())
    return AttributeTable(
        accuracy=(prediction == label).double().mean(0),
        area_under_curve=area_under_curve(logits, label),
        uncertain_share=uncertain_share(logits),
        calibration_error=expected_calibration_error(logits, label),
        underprediction=rare_value_underprediction(prediction, label, train_label),
        interdependence=interdependence(prediction),
        amplification=plain,
        calibrated_amplification=calibrated,
        reasons=reasons,
    )
