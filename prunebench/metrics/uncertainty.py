"""Uncertainty of a model's outputs, from the batched kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_finite, as_given, as_whole, read_array


@dataclass(frozen=True)
class MeanUncertainty:
    """Means over the samples (and attributes) of one model: `metrics.recorded.uncertainty` says of what."""

    entropy: float
    confidence: float
    margin: float
    negative_log_likelihood: float


@as_given
def uncertain_share(logits: Array, band: float = 0.4) -> Tensor:
    """Fraction of uncertain predictions: share `[K]` of the N outputs with |sigmoid(z) - 0.5| < band, strictly.

    Source: Iofinova et al., CVPR 2023 (band 0.4: probabilities in (0.1, 0.9)).

    Args:
        logits: `[N, K]` of binary attributes, or `[M, N, K]` of M models for `[M, K]`. For class logits `[N, C]`
            give `one_vs_rest(logits)`: the shape alone does not tell classes from attributes.
        band: between 0 and 0.5.

    Raises:
        MetricError: another band, other shapes, no sample, or values that are not finite.
    """
    if not 0 < band < 0.5:
        raise MetricError(f"band: want a number between 0 and 0.5, got {band}")
    border = math.log((0.5 + band) / (0.5 - band))
    return (as_finite("logits", logits, ndim=(2, 3)).abs() < border).double().mean(-2)


@as_given
def entropy(logits: Array, *, multi_label: bool = False) -> Tensor:
    """Entropy of each output as a share of the highest possible, in 0..1, float64.

    Args:
        logits: of classes `[N, C]`: -sum_c p_c log p_c / log C of p = softmax(z), `[N]`. Binary `[N]` or `[N, 1]`:
            the same with C = 2 and p = sigmoid(z), `[N]`.
        multi_label: logits are those of K binary attributes `[N, K]`, each by itself, `[N, K]`: `.mean(0)` is by
            attribute, `.mean(1)` by sample.

    Raises:
        MetricError: other shapes, or values that are not finite.
    """
    binary, values = _binary_or_classes(logits, multi_label)
    if not binary:
        return _uncertainty(values).entropy / math.log(values.shape[1])
    size = values.abs()
    return (functional.softplus(-size) + size * torch.sigmoid(-size)) / math.log(2)


@as_given
def margin(logits: Array, *, multi_label: bool = False) -> Tensor:
    """Confidence margin: p_(1) - p_(2), the likeliest answer ahead of the second, in 0..1, float64; 0 is undecided.

    For a binary output this is |2 p - 1|.

    Args:
        logits: shapes as for `entropy`.
        multi_label: as for `entropy`.

    Raises:
        MetricError: as `entropy` does.
    """
    binary, values = _binary_or_classes(logits, multi_label)
    return torch.tanh(values.abs() / 2) if binary else _uncertainty(values).margin


if TYPE_CHECKING:
    from prunebench_kernels import Uncertainty


def _uncertainty(logits: Tensor, labels: Tensor | None = None) -> Uncertainty:
    from prunebench_kernels import uncertainty

    return uncertainty(logits, labels=labels)


def _binary_or_classes(logits: Array, multi_label: bool) -> tuple[bool, Tensor]:
    """Whether each number is the logit of a yes or no; and the logits, `[N]`, `[N, K]` or `[N, C]`."""
    values = as_finite("logits", logits, ndim=2 if multi_label else (1, 2))
    if values.ndim == 2 and values.shape[1] == 1 and not multi_label:
        values = values[:, 0]
    return multi_label or values.ndim == 1, values


def uncertainty_summaries(logits: Array, label: Array) -> list[dict[str, float]]:
    """Means over the samples of each model, a mapping a model.

    entropy as a share of log C, confidence (maximum probability), margin (largest minus second), and
    negative_log_likelihood in nats.

    Args:
        logits: `[M, N, C]`.
        label: class indices `[N]`.

    Raises:
        MetricError: other shapes, or labels that are no integers.
    """
    given, truth = read_array("logits", logits), read_array("label", label)
    if given.ndim != 3 or truth.shape != given.shape[1:2]:
        shapes = f"{tuple(given.shape)} and {tuple(truth.shape)}"
        raise MetricError(f"logits: want [M, N, C], and label [N], got {shapes}")
    models, samples, classes = given.shape
    values = _uncertainty(given.reshape(-1, classes), labels=as_whole("label", truth).repeat(models))
    assert values.negative_log_likelihood is not None
    columns = {
        "entropy": values.entropy / math.log(classes),
        "confidence": values.max_probability,
        "margin": values.margin,
        "negative_log_likelihood": values.negative_log_likelihood,
    }
    means = {
        name: torch.sum(column.view(models, samples), dim=1, dtype=torch.float64) / samples
        for name, column in columns.items()
    }
    rows = zip(*(column.tolist() for column in means.values()))
    return [dict(zip(means, row)) for row in rows]


def binary_uncertainty(logits: Tensor, label: Tensor) -> MeanUncertainty:
    """Means over samples and attributes of what `uncertainty_summaries` gives for classes: float64 and 0/1 `[N, K]`.

    entropy is a share of log 2.
    """
    loss = functional.binary_cross_entropy_with_logits
    probability = torch.sigmoid(logits)
    return MeanUncertainty(
        entropy=float(loss(logits, probability)) / math.log(2),
        confidence=float(torch.sigmoid(logits.abs()).mean()),
        margin=float((2 * probability - 1).abs().mean()),
        negative_log_likelihood=float(loss(logits, label.double())),
    )
