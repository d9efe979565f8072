"""The oracles of dependence between outputs: their formulas in torch."""

from __future__ import annotations

import math

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
