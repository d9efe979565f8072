"""Dependence between output columns: co-occurrence, correlation, interdependence; batched over models.

These are measurements: the results carry no gradient. Input that breaks a rule on values is found in the one pass
over the data, so each operation ends by reading a flag, which waits for a GPU.

The kernel. A program takes one model, one pair of column tiles (the upper triangle) and one run of rows (a split),
and writes its partial sums to a workspace; torch adds the splits in float64 and finishes there. Up to 64 columns are
one tile, so the data is read once. Counts: 0/1 as float16 with float32 sums is exact below 2^24 rows; a split has at
most 2^15. Correlation: d = x - shift, with one shift and one power of two as unit for all splits of a column, so that
partial sums simply add and units cancel. Every program makes them from the same 256 rows, spread over the data: no
launch comes before the pass. u = d / unit is written as hi + lo / 2048, both float16, which leaves 2^-22 of u; then
u u' = hi hi' + (hi lo' + lo hi') / 2048: float16 products replace one float32 product. Why not the others, per row of
64 float32 columns (256 bytes): TF32 rounds to 2^-11, above the 1e-5 aimed at for few rows; TF32x3 needs 96 flops a
byte of its rate, where the ridge of an H200 is 92; IEEE float32 runs outside the tensor cores; two float16 products
need 64 of 184.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunebench_kernels.dispatch import (
    FLOATS,
    ArgumentError,
    Choice,
    Contest,
    check_finite,
    check_tensor,
    constexpr,
    explains,
    is_traced,
    jit,
    limits,
    on_device,
    select,
    shape_class,
    tl,
)

BYTES = (torch.bool, torch.uint8, torch.int8)
WHOLE = (*BYTES, torch.int16, torch.int32, torch.int64)
PROBED_ROWS = 256
SAMPLE = constexpr(256)
"""Rows that give a column's shift and unit: `samples // 256` apart, so that sorted or drifting data is sampled too."""
CROSS = constexpr(2 / 2048)
"""lo is stored times 2^11, so that it is a normal float16 wherever hi is; hi lo' stands for lo hi' too."""
CANCELLATION = 16
"""The kernel's sums are off by up to 5e-7 of their squares; a variance may be this much smaller than its square sum."""
WEAKEST = 2.0**-24
"""A variance of u below this has lost digits: float16 pairs hold u to 2^-36."""
EXTREME = 1e140
"""Square sums beyond this, or below its inverse, could leave float64 in the products of the finish."""
NULL = 4e-15
"""Eigenvalues of a K x K correlation matrix up to K times this are rounding."""
WEAK = 1e-6
"""Eigenvalues below this have lost digits that the columns hold."""
SHARE = 1e-12
"""A 0/1 column takes part in a collinearity if more than this part of it lies in the null space."""


# --- operations ----------------------------------------------------------------------------------------------


def cooccurrence(predictions: Tensor, *, backend: str | None = None) -> Tensor:
    """How often columns are 1 together: X'X, exact counts; the diagonal counts the ones of each column.

    predictions: only 0 and 1, `[N, K]` or `[M, N, K]`, bool, uint8, int8 or floating. Returns int64 `[K, K]` or
    `[M, K, K]`. Raises ArgumentError on another value (found during the pass), dtype or shape, or no element.
    """
    return _call("cooccurrence", predictions, backend)


def correlation(outputs: Tensor, *, backend: str | None = None) -> Tensor:
    """Pearson correlation between columns: `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, float64.

    r_ij = cov_ij / sqrt(cov_ii cov_jj) in one pass over shifted data, clamped to [-1, 1]; exactly 1 on the
    diagonal. A constant column gives nan in its own row and column only. 0/1 columns: from exact counts (phi).
    The kernel is within 1e-5 of float64 (in the interpreter 1.6e-6, at the limit of what it takes 4e-6); torch
    computes in float64.
    Raises ArgumentError on fewer than two samples, no column, another dtype, or values that are not finite.
    """
    return _call("correlation", outputs, backend)


def interdependence(predictions: Tensor, *, backend: str | None = None) -> Tensor:
    """R2 of the least-squares fit (with intercept) of each column on all others: `[K]`, or `[M, K]`; float64.

    Fitted and scored on the same data, so with the correlation matrix R of the columns R2_j = 1 - 1 / (R^-1)_jj:
    one matrix and one inverse for K fits. A constant column is nan and no regressor of the others. A column that
    is a linear combination of others (a duplicate, y and 1 - y, a sum, more columns than rows) has R2 = 1; the
    others then follow from the pseudo-inverse, as in a minimum-norm fit. One varying column alone: R2 = 0.
    Equals scikit-learn's LinearRegression scores, but for real columns that are nearly collinear: release 1.9 and
    later drop directions below 1e-6 of the strongest (their `tol`), where this keeps what float64 resolves.
    predictions: `[N, K]` or `[M, N, K]`, 0/1 or real. Raises ArgumentError as `correlation` does.
    """
    return _call("interdependence", predictions, backend)


RULES = {
    "cooccurrence": ("predictions", (*FLOATS, *BYTES), 1),
    "correlation": ("outputs", (*FLOATS, *WHOLE), 2),
    "interdependence": ("predictions", (*FLOATS, *WHOLE), 2),
}
"""Of each operation: its argument's name, the dtypes that it takes, and the fewest samples."""


def _batched(operation: str, value: Tensor) -> Tensor:
    """`[M, N, K]` without gradient. Raises ArgumentError on a wrong type, dtype or shape."""
    name, dtypes, fewest = RULES[operation]
    check_tensor(name, value)
    if value.dtype not in dtypes:
        raise ArgumentError(f"{name}: dtype {value.dtype} is not taken")
    if value.ndim not in (2, 3) or value.shape[-2] < fewest or value.numel() == 0:
        raise ArgumentError(
            f"{name}: want [N, K] or [M, N, K] with N >= {fewest}, M, K >= 1, got {tuple(value.shape)}"
        )
    value = value.detach()
    return value if value.ndim == 3 else value.unsqueeze(0)


def _call(operation: str, value: Tensor, backend: str | None) -> Tensor:
    batched = _batched(operation, value)
    run = _OPERATORS[operation] if is_traced(batched) else _IMPLEMENTATIONS[operation]
    result: Tensor = run(batched, backend or "")
    return result if value.ndim == 3 else result.squeeze(0)


# --- the choice ----------------------------------------------------------------------------------------------


def _choose(operation: str, batched: Tensor, backend: str | None, refusal: str | None = None) -> Choice:
    """Torch, unless the kernel was measured to be faster as called: no bound on shapes makes its win certain."""
    run = _IMPLEMENTATIONS[operation]
    contest = Contest(
        (*shape_class(*batched.shape), str(batched.dtype)),
        lambda: {name: functools.partial(run, batched, name) for name in ("torch", "triton")},
    )
    if batched.dtype not in (*BYTES, torch.float32, torch.float16, torch.bfloat16):
        refusal = f"{batched.dtype} is computed in float64, in torch"
    elif batched.shape[-1] > 8192:
        refusal = "more than 8192 columns: the kernels' workspace grows with their square"
    elif batched.shape[-2] >= 1 << 30:
        refusal = "2^30 rows or more: the kernel counts rows in 32 bits"
    return select(operation, backend, batched.device, batched.dtype, refusal=refusal, contest=contest)


REAL = "real-valued columns: an inverse needs float64 sums, the kernel's are float32"


def _is_binary_so_far(batched: Tensor) -> bool:
    """Whether the first rows hold only 0 and 1."""
    head = batched[:, :PROBED_ROWS]
    return batched.dtype == torch.bool or bool(((head == 0) | (head == 1)).all())


# --- what runs -----------------------------------------------------------------------------------------------


def _cooccurrence(predictions: Tensor, backend: str) -> Tensor:
    counts = _counts(predictions, _choose("cooccurrence", predictions, backend))
    if counts is None:
        raise ArgumentError("predictions: want only 0 and 1, found another value")
    return counts


def _correlation(outputs: Tensor, backend: str) -> Tensor:
    choice = _choose("correlation", outputs, backend)
    if outputs.dtype in BYTES:
        counts = _counts(outputs, choice)
        if counts is not None:
            return phi(counts, outputs.shape[1])
    matrix = finish(sums(outputs), outputs.shape[1]) if choice.is_triton else None
    return correlation_in_torch(outputs, "outputs") if matrix is None else matrix


def _interdependence(predictions: Tensor, backend: str) -> Tensor:
    counts = None
    if _is_binary_so_far(predictions):
        counts = _counts(predictions, _choose("interdependence", predictions, backend))
    samples = predictions.shape[1]
    matrix = correlation_in_torch(predictions, "predictions") if counts is None else phi(counts, samples)
    return determination(matrix, predictions, counted=counts is not None)


def _counts(batched: Tensor, choice: Choice) -> Tensor | None:
    """Counts X'X; None if a value is not 0 or 1."""
    if not choice.is_triton:
        return counts_in_torch(batched)
    total = sums(batched, binary=True)
    counts = total[:, :-2].to(torch.int64)
    return None if total[:, -1].any() else counts


def finish(total: Tensor, samples: int) -> Tensor | None:
    """Correlation `[M, K, K]` of the sums `[M, K + 2, K]`, float64; None where they do not hold it.

    That is so for input that is not finite, for a value beyond 32,000 times the sample's range, and where the
    rows of the sample are no sample: four deviations from the mean of all, or equal where a column varies by little.
    """
    products, offset, constant = total[:, :-2], total[:, -2], total[:, -1] == 0
    numerator = torch.baddbmm(products, offset.unsqueeze(-1), offset.unsqueeze(-2), beta=samples, alpha=-1)
    least = (products.diagonal(dim1=-2, dim2=-1) * (samples / CANCELLATION)).clamp(min=WEAKEST * samples**2)
    sound = (numerator.diagonal(dim1=-2, dim2=-1) > least) | constant  # false for infinite sums and nan
    matrix = normalised(numerator, constant)  # launched before the flag is waited for
    return matrix if sound.all() else None


_IMPLEMENTATIONS = {
    "cooccurrence": _cooccurrence,
    "correlation": _correlation,
    "interdependence": _interdependence,
}


def _fake(operation: str, batched: Tensor, backend: str) -> Tensor:
    models, _, columns = batched.shape
    shape = (models, columns) if operation == "interdependence" else (models, columns, columns)
    return batched.new_empty(shape, dtype=torch.int64 if operation == "cooccurrence" else torch.float64)


def _explain(operation: str, *values: Tensor, backend: str | None = None, **named: Tensor) -> Choice:
    batched = _batched(operation, *values, *named.values())
    real = operation == "interdependence" and not _is_binary_so_far(batched)
    return _choose(operation, batched, backend, REAL if real else None)


def _registered(operation: str) -> Any:
    operator = torch.library.custom_op(f"prunebench::{operation}", mutates_args=())(
        _IMPLEMENTATIONS[operation]
    )
    operator.register_fake(functools.partial(_fake, operation))
    explains(operation)(functools.partial(_explain, operation))
    return operator


_OPERATORS = {operation: _registered(operation) for operation in _IMPLEMENTATIONS}


# --- torch ----------------------------------------------------------------------------------------------------
# Float64 sums of products, in pieces that stay in the cache. On a CPU float64 costs no more than float32 with its
# corrections would: the conversion happens in the cache and the products are BLAS. The first row is the shift. It is
# one of the values, so |first - mean| <= sqrt(N) deviations and float64 keeps at least 16 - log10(N) digits; a column
# is constant exactly if its shifted square sum is 0; and sums over 0/1 columns are exact integers.


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


def correlation_in_torch(outputs: Tensor, name: str) -> Tensor:
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


def counts_in_torch(predictions: Tensor) -> Tensor | None:
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


# --- the kernel ----------------------------------------------------------------------------------------------


@jit
def _load(base, rows, columns, count, COLUMNS: tl.constexpr):
    inside = (rows < count)[:, None] & (columns < COLUMNS)[None, :]
    place = rows[:, None].to(tl.int64) * COLUMNS + columns[None, :]
    return tl.load(base + place, mask=inside, other=0).to(tl.float32), inside


@jit
def _shift_and_scale(base, columns, samples, COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):
    """The sample's mean, and 1 / unit: 1 where all its values are equal, as they are where the mean is exact.

    Whole numbers get a whole mean, so that their sums are exact.
    """
    first = tl.load(base + columns, mask=columns < COLUMNS, other=0).to(tl.float32)
    total = tl.zeros((ROWS, TILE), tl.float32)
    largest = tl.zeros((ROWS, TILE), tl.float32)
    broken = tl.zeros((ROWS, TILE), tl.int1)
    step = tl.maximum(samples // SAMPLE, 1)
    for start in range(0, SAMPLE, ROWS):
        x, inside = _load(base, (start + tl.arange(0, ROWS)) * step, columns, samples, COLUMNS)
        d = tl.where(inside, x - first[None, :], 0.0)
        total += d
        largest = tl.maximum(largest, tl.abs(d))
        broken = broken | (tl.floor(x) != x)
    mean = first + tl.sum(total, axis=0) / tl.minimum(samples, SAMPLE)
    whole = (tl.max(broken.to(tl.int32), axis=0) == 0) & (tl.abs(mean) < 4194304.0)
    exponent = tl.max(largest, axis=0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.where(tl.max(largest, axis=0) > 0, tl.minimum(tl.maximum(exponent, 1), 253), 127)
    scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return tl.where(whole, tl.floor(mean + 0.5), mean), scale


@jit
def _in_two(x, inside, shift, scale):
    """u, and its hi and lo."""
    u = tl.where(inside, (x - shift[None, :]) * scale[None, :], 0.0)
    hi = u.to(tl.float16)
    return u, hi, ((u - hi.to(tl.float32)) * 2048.0).to(tl.float16)


@jit(do_not_specialize=["samples", "splits"])
def sums_kernel(  # noqa: PLR0913 - a kernel
    values, partial, samples, rows_per_split, splits,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, BINARY: tl.constexpr,
):  # fmt: skip
    """partial `[M, S, K + 2, K]`: sums of u u' (only their symmetric part counts), of u, of |u|.

    BINARY: sums of x x', zeros, and how many values are not 0 or 1. Grid (M S, tiles, tiles).
    """
    tile_i, tile_j = tl.program_id(1), tl.program_id(2)
    if tile_i > tile_j:
        return
    model = tl.program_id(0) // splits
    start = (tl.program_id(0) % splits) * rows_per_split
    stop = tl.minimum(start + rows_per_split, samples)
    base = values + model.to(tl.int64) * samples * COLUMNS
    i = tile_i * TILE + tl.arange(0, TILE)
    j = tile_j * TILE + tl.arange(0, TILE)
    if not BINARY:
        shift_i, scale_i = _shift_and_scale(base, i, samples, COLUMNS, TILE, ROWS)
        if COLUMNS > TILE:
            shift_j, scale_j = _shift_and_scale(base, j, samples, COLUMNS, TILE, ROWS)
    products = tl.zeros((TILE, TILE), tl.float32)
    offset = tl.zeros((ROWS, TILE), tl.float32)
    moved = tl.zeros((ROWS, TILE), tl.float32)
    zero = tl.zeros((TILE, TILE), tl.float32)
    for row in range(start, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        x, inside = _load(base, rows, i, stop, COLUMNS)
        if BINARY:
            moved += ((x != 0) & (x != 1)).to(tl.float32)
            hi = (x != 0).to(tl.float16)
            other = hi
            if COLUMNS > TILE:
                y, inside = _load(base, rows, j, stop, COLUMNS)
                other = (y != 0).to(tl.float16)
            # Not as the dot's accumulator: with one operand on both sides, Triton 3.6 fails to compile it for sm_100.
            products = tl.fma(tl.dot(tl.trans(hi), other, zero), 1.0, products)
        else:
            u, hi, lo = _in_two(x, inside, shift_i, scale_i)
            offset += u
            moved += tl.abs(u)
            # The dot of a tile starts at its small part and is added in IEEE float32: tensor cores truncate sums.
            if COLUMNS > TILE:
                y, inside = _load(base, rows, j, stop, COLUMNS)
                _u, hi_j, lo_j = _in_two(y, inside, shift_j, scale_j)
                cross = tl.dot(tl.trans(lo), hi_j, tl.dot(tl.trans(hi), lo_j, zero))
                products += tl.dot(tl.trans(hi), hi_j, cross * (0.5 * CROSS))
            else:
                products += tl.dot(tl.trans(hi), hi, tl.dot(tl.trans(hi), lo, zero) * CROSS)
    out = partial + tl.program_id(0).to(tl.int64) * (COLUMNS + 2) * COLUMNS
    inside = (i < COLUMNS)[:, None] & (j < COLUMNS)[None, :]
    tl.store(out + i[:, None] * COLUMNS + j[None, :], products, mask=inside)
    if tile_i < tile_j:
        tl.store(out + j[None, :] * COLUMNS + i[:, None], products, mask=inside)
    else:
        last = out + COLUMNS * COLUMNS + i
        tl.store(last, tl.sum(offset, axis=0), mask=i < COLUMNS)
        tl.store(last + COLUMNS, tl.sum(moved, axis=0), mask=i < COLUMNS)


# --- the launch ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnTile:
    """How the kernel cuts its work: columns and rows a step, warps, stages, and programs per multiprocessor."""

    columns: int
    rows: int
    warps: int = 8
    stages: int = 3
    programs: int = 1


LONGEST_SPLIT = 1 << 15


def default_tile(columns: int) -> ColumnTile:
    """The tile that runs unless one is passed. Not tuned on a GPU."""
    if columns <= 16:
        return ColumnTile(16, 64, warps=4)
    return ColumnTile(32, 64) if columns <= 32 else ColumnTile(64, 64)


def workspace(batched: Tensor, tile: ColumnTile) -> tuple[Tensor, int]:
    """Empty partial sums `[M, S, K + 2, K]`, and the rows of a split: 256 at least, else as the GPU is filled."""
    models, samples, columns = batched.shape
    across = -(-columns // tile.columns)
    pairs = models * across * (across + 1) // 2
    splits = max(1, limits(batched.device)[0] * tile.programs // pairs)
    rows = min(max(-(-samples // splits), 256), LONGEST_SPLIT, samples)
    rows = -(-rows // tile.rows) * tile.rows
    return batched.new_empty((models, -(-samples // rows), columns + 2, columns), dtype=torch.float32), rows


def sums(
    batched: Tensor, *, binary: bool = False, tile: ColumnTile | None = None,
    filled: tuple[Tensor, int] | None = None,
) -> Tensor:  # fmt: skip
    """The kernel's sums over all rows of `[M, N, K]`: `[M, K + 2, K]`, float64. `filled`: a workspace to be filled."""
    models, samples, columns = batched.shape
    batched = batched.contiguous()
    tile = tile or default_tile(columns)
    partial, rows = filled or workspace(batched, tile)
    splits, across = partial.shape[1], -(-columns // tile.columns)
    with on_device(batched):
        sums_kernel[(models * splits, across, across)](
            batched.view(torch.uint8) if batched.dtype == torch.bool else batched,
            partial, samples, rows, splits,
            COLUMNS=columns, TILE=tile.columns, ROWS=tile.rows, BINARY=binary,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=False,
        )  # fmt: skip
    return partial.sum(1, dtype=torch.float64)
