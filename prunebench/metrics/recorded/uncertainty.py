"""Uncertainty and dependence of the outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prunebench.metrics.registry import metric

if TYPE_CHECKING:
    from prunebench.metrics.uncertainty import MeanUncertainty

SHARE = (0.0, 1.0)


@metric(
    "entropy",
    title="Entropy",
    help="Mean entropy of the predicted distribution over that of the uniform one: 1 for uniform",
    cite="Shannon, 1948",
    range=SHARE,
)
def entropy(uncertainty: MeanUncertainty) -> float:
    return uncertainty.entropy


@metric(
    "confidence",
    title="Confidence",
    help="Mean probability of the predicted class",
    cite="Guo et al., ICML 2017",
    range=SHARE,
)
def confidence(uncertainty: MeanUncertainty) -> float:
    return uncertainty.confidence


@metric(
    "margin",
    title="Confidence margin",
    short="Margin",
    help="Mean difference between the two highest probabilities; 0 is undecided",
    cite="Scheffer et al., IDA 2001",
    range=SHARE,
)
def margin(uncertainty: MeanUncertainty) -> float:
    return uncertainty.margin


@metric(
    "negative_log_likelihood",
    title="Negative log likelihood",
    short="NLL",
    unit="nats",
    better="lower",
    help="Mean negative log probability of the true class (of attributes: over all outputs)",
    cite="Guo et al., ICML 2017",
    range=(0.0, math.inf),
)
def negative_log_likelihood(uncertainty: MeanUncertainty) -> float:
    return uncertainty.negative_log_likelihood


@metric(
    "logit_correlation",
    title="Logit correlation",
    help="Mean absolute Pearson correlation between the logits of different outputs",
    cite="PruneBench",
    range=SHARE,
)
def logit_correlation(output_correlation: float) -> float:
    return output_correlation
