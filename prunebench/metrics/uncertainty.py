"""How sure a model is of its outputs, from the batched kernels."""

from __future__ import annotations

import math

import torch
from prunebench_kernels import uncertainty
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_finite


def uncertain_share(logits: Array, band: float = 0.4) -> Tensor:
    """Share `[K]` of the N outputs with |sigmoid(z) - 0.5| < band, strictly: logits `[N, K]` of binary attributes.

    Source: Iofinova et al., CVPR 2023 (band 0.4: probabilities in (0.1, 0.9)).
    """
    if not 0 < band < 0.5:
        raise MetricError(f"band: want a number between 0 and 0.5, got {band}")
    border = math.log((0.5 + band) / (0.5 - band))
    return (as_finite("logits", logits, ndim=2).abs() < border).double().mean(0)


def uncertainty_summaries(logits: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Means over the samples of each model: logits `[M, N, C]`, label `[N]`; a mapping a model.

    entropy as a share of log C, confidence (maximum probability), margin (largest minus second), and
    negative_log_likelihood in nats.
    """
    models, samples, classes = logits.shape
    values = uncertainty(logits.reshape(-1, classes), labels=label.repeat(models))
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
