"""The oracles of dependence between outputs: their formulas in torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def correlation(outputs: Tensor) -> Tensor:
    """Pearson correlation between output columns: `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, float64.

    A constant column gives nan in its own row and column only. Raises ValueError for fewer than two samples.
    """
    if outputs.ndim not in (2, 3) or outputs.shape[-2] < 2:
        raise ValueError(f"outputs: want [N, K] or [M, N, K] with N >= 2, got {tuple(outputs.shape)}")
    centred = outputs.double() - outputs.double().mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    constant = (outputs == outputs[..., :1, :]).all(-2)
    deviation = variance.sqrt().masked_fill(constant, math.nan)
    return (covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))).clamp(-1, 1)


def cooccurrence(predictions: Tensor) -> Tensor:
    """How often columns are 1 together, X'X: 0/1 `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, int64.

    Raises ValueError on a value that is not 0 or 1.
    """
    if not ((predictions == 0) | (predictions == 1)).all():
        raise ValueError("predictions: want only 0 and 1, found another value")
    values = predictions.double()
    return (values.transpose(-1, -2) @ values).to(torch.int64)


def interdependence(predictions: Tensor) -> Tensor:
    """R2 of each column on all others, one least-squares fit a column: `[N, K]` to `[K]`, or `[M, K]`; float64.

    With intercept (columns are centred), fitted and scored on the same rows; minimum norm where columns are
    collinear. A constant column is nan. Raises ValueError for fewer than two samples.
    """
    if predictions.ndim == 3:
        return torch.stack([interdependence(model) for model in predictions])
    if predictions.ndim != 2 or len(predictions) < 2:
        raise ValueError(f"predictions: want [N, K] or [M, N, K], N >= 2, got {tuple(predictions.shape)}")
    values = predictions.double()
    constant = (values == values[:1]).all(0)
    centred = (values - values.mean(0)).masked_fill(constant, 0)
    shares = torch.full((values.shape[1],), math.nan, dtype=torch.float64, device=values.device)
    for column in (~constant).nonzero().flatten().tolist():
        target = centred[:, column]
        rest = torch.cat([centred[:, :column], centred[:, column + 1 :]], 1)
        fitted = rest @ (torch.linalg.pinv(rest) @ target)
        shares[column] = 1 - (target - fitted).square().sum() / target.square().sum()
    return shares
