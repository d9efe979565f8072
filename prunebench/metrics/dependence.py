"""How strongly a model's outputs hang together, from the batched kernels."""

from __future__ import annotations

import math

import prunebench_kernels as kernels
import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, as_finite


def interdependence(prediction: Array) -> Tensor:
    """R2 `[K]` of a least-squares fit of each 0/1 prediction column on the others, fitted and scored on them.

    prediction: 0/1 `[N, K]`. nan for a constant column; 1 for a column that others determine. The one-vs-rest
    columns of a multi-class task always sum to 1, so there it says nothing: use `output_correlation` of the
    logits. Source: Iofinova et al., CVPR 2023.
    """
    return kernels.interdependence(_two_samples("prediction", as_binary("prediction", prediction, ndim=2)))


def output_correlation(logits: Array) -> Tensor:
    """Pearson correlation `[K, K]` between the columns of logits `[N, K]`; nan where a column is constant."""
    return kernels.correlation(_two_samples("logits", as_finite("logits", logits, ndim=2)))


def _two_samples(name: str, values: Tensor) -> Tensor:
    if len(values) < 2:
        raise MetricError(f"{name}: want at least two samples, got 1")
    return values


def mean_absolute_correlation(logits: Tensor) -> Tensor:
    """Mean |r| over pairs of different columns: logits `[M, N, K]` to `[M]`, float64.

    Pairs with a constant column are left out; nan where none is left.
    """
    matrix = kernels.correlation(logits).abs()
    pairs = torch.ones_like(matrix[0]).triu(1).bool()
    return matrix.masked_fill(~pairs, math.nan).flatten(1).nanmean(1)
