"""Dependence between output columns in torch: float64 sums of products, taken in pieces that stay in the cache.

On a CPU, float64 costs no more than float32 with its corrections would: the conversion happens in the cache and
the products are BLAS. The first row is the shift. It is one of the values, so |first - mean| <= sqrt(N) deviations
and float64 keeps at least 16 - log10(N) digits; a column is constant exactly if its shifted square sum is 0; and
sums over 0/1 columns are exact integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from prunebench_kernels.dispatch import check_finite

EXTREME = 1e140
"""Square sums beyond this, or below its inverse, could leave float64 in the products of the finish."""
NULL = 4e-15
"""Eigenvalues of a K x K correlation matrix up to K times this are rounding."""
WEAK = 1e-6
"""Eigenvalues below this have lost digits that the columns hold."""
SHARE = 1e-12
"""A 0/1 column takes part in a collinearity if more than this part of it lies in the null space."""


def pieces(outputs: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of models and rows: whole models while they are small, else runs of rows of one model."""
    models, samples, columns = outputs.shape
    on_cpu = outputs.device.type == "cpu"
    together, alone = (1 << 20, 1 << 16) if on_cpu else (1 << 26, 1 << 26)
    if samples * columns <= together // 4:
        group, rows = together // (samples * columns), samples
    else:
        group, rows = 1, max(1, alone // columns)
    for model in range(0, models, group):
        for row in range(0, samples, rows):
            yield slice(model, model + group), slice(row, row + rows)


def shifted_sums(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """G = sum d d' `[M, K, K]` and t = sum d `[M, K]` of d = x - first row, float64, from `[M, N, K]`."""
    models, _, columns = outputs.shape
    first = outputs[:, :1].double()
    products = torch.zeros(models, columns, columns, dtype=torch.float64, device=outputs.device)
    sums = torch.zeros(models, columns, dtype=torch.float64, device=outputs.device)
    for model, row in pieces(outputs):
        d = outputs[model, row].double() - first[model]
        products[model].baddbmm_(d.transpose(1, 2), d)
        sums[model] += d.sum(1)
    return products, sums


def _scaled_to_one(outputs: Tensor) -> Tensor:
    """x - first row, each column scaled by a power of two to about 1; float64, `[M, N, K]`."""
    d = outputs.double() / 4
    d = d - d[:, :1]
    _, exponent = torch.frexp(d.abs().amax(1, keepdim=True))
    half = exponent // 2
    return torch.ldexp(torch.ldexp(d, -half), half - exponent)


def normalised(numerator: Tensor, constant: Tensor) -> Tensor:
    """c_ij / sqrt(c_ii c_jj) in [-1, 1] of c's symmetric part; nan in the rows and columns of constant columns.

    The diagonal is exactly 1: the root of a rounded square is the number itself.
    """
    twice = numerator + numerator.mT  # BLAS does not add both triangles in one order
    own = twice.diagonal(dim1=-2, dim2=-1).masked_fill(constant, math.nan)
    return (twice / (own.unsqueeze(-1) * own.unsqueeze(-2)).sqrt()).clamp(-1, 1)


def _is_extreme(own: Tensor, outputs: Tensor) -> bool:
    """Whether a square sum `[M, K]` of a column that varies could leave float64."""
    extreme = ~((own > 1 / EXTREME) & (own < EXTREME))
    return bool(extreme.any()) and bool((extreme & (outputs != outputs[:, :1]).any(1)).any())


def correlation(outputs: Tensor, name: str) -> Tensor:
    """Pearson correlation `[M, K, K]` of `[M, N, K]`. Raises ArgumentError, naming `name`, if not finite."""
    products, sums = shifted_sums(outputs)
    if not torch.isfinite(sums).all():
        check_finite(name, outputs)
    own = products.diagonal(dim1=-2, dim2=-1)
    if outputs.dtype == torch.float64 and _is_extreme(own, outputs):
        products, sums = shifted_sums(_scaled_to_one(outputs))
        own = products.diagonal(dim1=-2, dim2=-1)
    constant = own == 0
    numerator = products * outputs.shape[1] - sums.unsqueeze(-1) * sums.unsqueeze(-2)
    return normalised(numerator, constant)


def phi(counts: Tensor, samples: int) -> Tensor:
    """Pearson correlation of 0/1 columns from their counts X'X: (N n_ij - n_i n_j) / sqrt(...), all exact."""
    own = counts.diagonal(dim1=-2, dim2=-1)
    numerator = counts * samples - own.unsqueeze(-1) * own.unsqueeze(-2)
    return normalised(numerator.double(), (own == 0) | (own == samples))


def counts(predictions: Tensor) -> Tensor | None:
    """X'X `[M, K, K]` int64 of `[M, N, K]`, or None if a value is not 0 or 1.

    A piece of one model is multiplied in float32, exact as a piece has less than 2^24 rows, in half the time of
    float64; for many small models at once float32 was the slower one (0.25 s against 0.09 s for 1000 x 10,000 x 10).
    """
    models, _, columns = predictions.shape
    total = torch.zeros(models, columns, columns, dtype=torch.float64, device=predictions.device)
    other = torch.zeros((), dtype=torch.bool, device=predictions.device)
    for model, row in pieces(predictions):
        piece = predictions[model, row]
        if piece.dtype != torch.bool:
            wrong = piece > 1 if piece.dtype == torch.uint8 else (piece != 0) & (piece != 1)
            other |= wrong.any()
        piece = piece.to(torch.float32 if len(piece) == 1 and piece.shape[1] < 1 << 24 else torch.float64)
        with torch.autocast(piece.device.type, enabled=False):  # bfloat16 counts to 256
            total[model] += piece.transpose(1, 2) @ piece
    return None if other else total.to(torch.int64)


def determination(matrix: Tensor, outputs: Tensor, *, counted: bool) -> Tensor:
    """R2 `[M, K]` of each column on the others from the correlation matrix `[M, K, K]`; nan where constant.

    R2_j = 1 - 1 / (R^-1)_jj. With collinear columns R has a null space: a column with a part in it is a linear
    combination of others, R2 = 1; for any other, the pseudo-inverse takes the place of the inverse. Where the
    eigenvalues do not tell rounding from a weak direction, the columns themselves are decomposed instead. A matrix
    from exact counts of 0/1 columns (`counted`) tells them apart more often.
    """
    constant = matrix.diagonal(dim1=-2, dim2=-1).isnan()
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(constant.unsqueeze(-1) | constant.unsqueeze(-2), unit, matrix)
    values, vectors = torch.linalg.eigh(matrix)
    null = values <= NULL * matrix.shape[-1]
    share, inverse = _from_spectrum(values, vectors, null)
    result = torch.where(share > SHARE, 1.0, 1 - 1 / inverse).clamp(0, 1)
    weak = values < WEAK
    unclear = (weak & ~null).any(-1) | ((share > 1e-14) & (share < 1e-6)).any(-1)
    for model in (unclear if counted else weak.any(-1)).nonzero().flatten().tolist():
        varying = ~constant[model]
        result[model, varying] = _from_columns(outputs[model][:, varying])
    return result.masked_fill(constant, math.nan)


def _from_spectrum(values: Tensor, vectors: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Each column's part in the null space, and the diagonal of the pseudo-inverse, from eigenvalues `[..., K]`."""
    weights = vectors.square()
    share = (weights * null.unsqueeze(-2)).sum(-1)
    return share, (weights / values.masked_fill(null, math.inf).unsqueeze(-2)).sum(-1)


def _from_columns(columns: Tensor) -> Tensor:
    """R2 `[K]` of varying columns `[N, K]`: singular values resolve 1e-16 where eigenvalues resolve their root.

    Null: singular values up to max(N, K) eps times the largest, the rule of numpy's rank. Rounding of that size
    turns a singular vector of the null space towards another by its size over that one's singular value, so that a
    column has a part in the null space if it is more than the sum of those, squared: with the factor 4, which
    parted all of 18,071 columns (R2 < 0.9999) from 72,868 (R2 > 0.999999) of small integers and of combinations
    with factors of 1e-12 to 1.
    """
    centred = _scaled_to_one(columns.unsqueeze(0))[0]
    centred = centred - centred.mean(0)
    centred = centred / torch.linalg.vector_norm(centred, dim=0)
    triangle = torch.linalg.qr(centred, mode="r").R
    _, singular, vectors = torch.linalg.svd(triangle, full_matrices=True)
    values = torch.zeros(columns.shape[1], dtype=torch.float64, device=columns.device)
    values[: len(singular)] = singular
    rounding = max(columns.shape) * torch.finfo(torch.float64).eps * values.max()
    share, inverse = _from_spectrum(values.square(), vectors.transpose(0, 1), values <= rounding)
    return torch.where(share > (4 * rounding) ** 2 * inverse, 1.0, 1 - 1 / inverse).clamp(0, 1)
