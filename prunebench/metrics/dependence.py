"""Dependence between a model's outputs, from the batched kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_finite, as_given, as_tensor


@as_given
def interdependence(prediction: Array) -> Tensor:
    """R2 `[K]` of a least-squares fit of each 0/1 prediction column on the others, fitted and scored on them.

    nan for a constant column; 1 for a column that others determine; 0 for a column alone. The one-vs-rest columns
    of a multi-class task always sum to 1, so there it says nothing: use `output_correlation` of the logits. Source:
    Iofinova et al., CVPR 2023.

    Args:
        prediction: 0/1 `[N, K]`, or `[M, N, K]` of M models for `[M, K]`.

    Raises:
        MetricError: fewer than two samples, other shapes, or values other than 0 and 1.
    """
    columns = _two_samples("prediction", as_tensor("prediction", prediction, ndim=(2, 3)))
    if columns.dtype != torch.bool and not ((columns == 0) | (columns == 1)).all():
        raise MetricError("prediction: want 0 and 1 only")
    from prunebench_kernels import interdependence

    return interdependence(columns.bool())  # as bytes: a third of the time of float64


@as_given
def output_correlation(logits: Array) -> Tensor:
    """Pearson correlation `[K, K]` between the columns of logits; nan where a column is constant.

    Class logits are taken as they are: one-vs-rest logits of two classes are each other's negative.

    Args:
        logits: `[N, K]`, or `[M, N, K]` of M models for `[M, K, K]`.

    Raises:
        MetricError: fewer than two samples, other shapes, or values that are not finite.
    """
    columns = _two_samples("logits", as_finite("logits", logits, ndim=(2, 3)))
    from prunebench_kernels import correlation

    return correlation(columns)


def _two_samples(name: str, values: Tensor) -> Tensor:
    if values.shape[-2] < 2:
        raise MetricError(f"{name}: want at least two samples, got 1")
    return values


def mean_absolute_correlation(logits: Tensor) -> Tensor:
    """Mean |r| over pairs of different columns: logits `[M, N, K]` to `[M]`, float64.

    Pairs with a constant column are left out; nan where none is left.
    """
    from prunebench_kernels import correlation

    matrix = correlation(logits).abs()
    pairs = torch.ones_like(matrix[0]).triu(1).bool()
    return matrix.masked_fill(~pairs, math.nan).flatten(1).nanmean(1)
