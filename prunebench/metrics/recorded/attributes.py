"""Means over the attributes of a multi-label task (and over identities, where there are several)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from prunebench.metrics.registry import metric

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.metrics.attributes import AttributeTable

SHARE = (0.0, 1.0)
DIFFERENCE = (-1.0, 1.0)

of_paper = partial(metric, decimals=2, cite="Iofinova et al., CVPR 2023", board=True)


@of_paper(
    "attribute_accuracy",
    title="Attribute accuracy",
    unit="%",
    better="higher",
    help="Share of right outputs, mean over attributes",
    range=SHARE,
    compared=True,
)
def attribute_accuracy(attributes: AttributeTable) -> float:
    return mean(attributes.accuracy)


@of_paper(
    "bias_amplification",
    title="Bias amplification",
    unit="points",
    better="zero",
    help="Of the images predicted to have an attribute, the share in the identity group that has it more often in "
    "training, minus that share among images that have it; mean over attributes. Above 0: amplified",
    range=DIFFERENCE,
)
def bias_amplification(attributes: AttributeTable) -> float:
    return mean(attributes.amplification)


@of_paper(
    "calibrated_bias_amplification",
    title="Threshold-calibrated bias amplification",
    short="Amplification, calibrated",
    unit="points",
    better="zero",
    help="Bias amplification with thresholds that predict as many positives on validation as there are",
    range=DIFFERENCE,
)
def calibrated_bias_amplification(attributes: AttributeTable) -> float:
    return mean(attributes.calibrated_amplification)


@of_paper(
    "underprediction",
    title="Rare values predicted",
    unit="%",
    help="How often the rarer value is predicted over how often it is true, mean over attributes; below 100 %: too "
    "rarely",
    range=(0.0, math.inf),
)
def underprediction(attributes: AttributeTable) -> float:
    return mean(attributes.underprediction)


@of_paper(
    "uncertain_share",
    title="Fraction of uncertain predictions",
    short="Uncertain",
    unit="%",
    help="Share of probabilities strictly between 0.1 and 0.9, mean over attributes",
    range=SHARE,
)
def uncertain_share(attributes: AttributeTable) -> float:
    return mean(attributes.uncertain_share)


@of_paper(
    "calibration_error",
    title="Expected calibration error",
    short="Calibration error",
    unit="points",
    better="lower",
    help="Expected calibration error of the positive value in 10 bins, mean over attributes",
    range=SHARE,
)
def calibration_error(attributes: AttributeTable) -> float:
    return mean(attributes.calibration_error)


@of_paper(
    "interdependence",
    title="Interdependence",
    unit="%",
    help="R² of an attribute's predictions on all others, mean over attributes",
    range=SHARE,
)
def interdependence(attributes: AttributeTable) -> float:
    return mean(attributes.interdependence)


@metric(
    "area_under_curve",
    title="Area under the ROC curve",
    short="AUROC",
    better="higher",
    help="Area under the ROC curve of an attribute's logits, mean over attributes",
    cite="Hanley and McNeil, Radiology 1982",
    range=SHARE,
)
def area_under_curve(attributes: AttributeTable) -> float:
    return mean(attributes.area_under_curve)


def mean(values: Tensor) -> float:
    """Over the entries where the metric is defined; nan where none is."""
    return float(values.nanmean())
