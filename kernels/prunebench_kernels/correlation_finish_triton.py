# mypy: disable-error-code="no-untyped-def"
"""The second launch of a correlation: the splits' float32 sums become a matrix in float64.

A program makes one row of a model's matrix. It reads the splits' means first and centres on the mean of all, so
that a split's own shift leaves no trace: cov = sum_s S_s - t_s t_s' / n_s + n_s (m_s - m)(m_s - m)', where split s of
n_s rows has the shift a_s, the sums t_s and S_s of d = x - a_s and d d', and the mean m_s = a_s + t_s / n_s
(Chan, Golub and LeVeque, 1983).
"""

import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.compile_cases import CompileCase

FIELDS = tl.constexpr(4)
"""Per split and column: shift, sum of d, unit (a power of two), and whether a value differs from the shift.

The shift of a split whose column is constant is its value, so a column is constant if no value differs from its
split's shift and the shifts are equal.
"""


@triton.jit
def _split_statistics(statistics, s, splits, columns, n, COLUMNS: tl.constexpr):
    """Per split (rows) and column, float64: mean, mean - shift, unit; and 1 where not constant so far, else 0."""
    inside = (s < splits)[:, None] & (columns < COLUMNS)[None, :]
    place = statistics + s[:, None].to(tl.int64) * FIELDS * COLUMNS + columns[None, :]
    shift = tl.load(place, mask=inside, other=0.0).to(tl.float64)
    total = tl.load(place + COLUMNS, mask=inside, other=0.0).to(tl.float64)
    unit = tl.load(place + 2 * COLUMNS, mask=inside, other=1.0).to(tl.float64)
    differs = tl.load(place + 3 * COLUMNS, mask=inside, other=0.0)
    off = total / tl.maximum(n, 1.0)[:, None]
    first = tl.load(statistics + columns, mask=columns < COLUMNS, other=0.0).to(tl.float64)
    unit = tl.where(differs > 0, unit, 1.0)  # the products of equal values are 0
    moved = inside & (shift != first[None, :])
    return shift + off, off, unit, tl.maximum(differs, moved.to(tl.float32))


@triton.jit
def _row_counts(s, samples, rows_per_split):
    """Rows of each split, float64; 0 beyond the last."""
    left = samples.to(tl.int64) - s.to(tl.int64) * rows_per_split
    return tl.minimum(tl.maximum(left, 0), rows_per_split).to(tl.float64)


@triton.jit
def _column_moments(  # noqa: PLR0913 - part of a kernel
    products, statistics, columns, samples, rows_per_split, splits,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Mean, centred square sum, differs and sound of each column. Unsound: not finite, or d beyond 2^+-100."""
    mean = tl.zeros((TILE,), tl.float64)
    differs = tl.zeros((TILE,), tl.float32)
    sound = tl.full((TILE,), 1, tl.int32)
    for start in range(0, splits, SPLITS):
        s = start + tl.arange(0, SPLITS)
        n = _row_counts(s, samples, rows_per_split)
        means, off, units, different = _split_statistics(statistics, s, splits, columns, n, COLUMNS)
        mean += tl.sum(means * n[:, None], axis=0)
        differs = tl.maximum(differs, tl.max(different, axis=0))
        good = (means - means == 0) & (units < 1.2e30) & (units > 8e-31)
        sound = tl.minimum(sound, tl.min(good.to(tl.int32), axis=0))
    mean = mean / samples
    squares = tl.zeros((TILE,), tl.float64)
    for start in range(0, splits, SPLITS):
        s = start + tl.arange(0, SPLITS)
        n = _row_counts(s, samples, rows_per_split)[:, None]
        means, off, units, different = _split_statistics(
            statistics, s, splits, columns, tl.sum(n, axis=1), COLUMNS
        )
        inside = (s < splits)[:, None] & (columns < COLUMNS)[None, :]
        place = (s[:, None].to(tl.int64) * COLUMNS + columns[None, :]) * COLUMNS + columns[None, :]
        product = tl.load(products + place, mask=inside, other=0.0).to(tl.float64)
        apart = means - mean[None, :]
        product = product * units * units - n * (off * off) + n * (apart * apart)
        squares += tl.sum(tl.where(inside, product, 0.0), axis=0)
    return mean, squares, differs, sound


@triton.jit(do_not_specialize=["samples", "splits"])
def correlation_finish_kernel(  # noqa: PLR0913 - a kernel
    products, statistics, matrix, status, samples, rows_per_split, splits,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """matrix `[M, K, K]` float64 from the splits' sums; status `[M, tiles]`, 0 if sound. Grid (M K, tiles)."""
    TILES: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    model = (tl.program_id(0) // COLUMNS).to(tl.int64)
    row = tl.program_id(0) % COLUMNS
    tile = tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    products += model * splits * COLUMNS * COLUMNS
    statistics += model * splits * FIELDS * COLUMNS
    mean, squares, differs, sound = _column_moments(
        products, statistics, columns, samples, rows_per_split, splits, COLUMNS, TILE, SPLITS
    )
    own_columns = columns
    own_mean, own_squares, own_differs = mean, squares, differs
    if TILES > 1:
        own_columns = (row // TILE) * TILE + tl.arange(0, TILE)
        own_mean, own_squares, own_differs, _own_sound = _column_moments(
            products, statistics, own_columns, samples, rows_per_split, splits, COLUMNS, TILE, SPLITS
        )
    row_mean = tl.sum(tl.where(own_columns == row, own_mean, 0.0), axis=0)
    row_squares = tl.sum(tl.where(own_columns == row, own_squares, 0.0), axis=0)
    row_differs = tl.max(tl.where(own_columns == row, own_differs, 0.0), axis=0)
    covariance = tl.zeros((TILE,), tl.float64)
    for start in range(0, splits, SPLITS):
        s = start + tl.arange(0, SPLITS)
        n = _row_counts(s, samples, rows_per_split)
        means, off, units, _different = _split_statistics(statistics, s, splits, columns, n, COLUMNS)
        here = statistics + s.to(tl.int64) * FIELDS * COLUMNS + row
        shift = tl.load(here, mask=s < splits, other=0.0).to(tl.float64)
        row_off = tl.load(here + COLUMNS, mask=s < splits, other=0.0).to(tl.float64) / tl.maximum(n, 1.0)
        row_unit = tl.load(here + 2 * COLUMNS, mask=s < splits, other=1.0).to(tl.float64)
        inside = (s < splits)[:, None] & (columns < COLUMNS)[None, :]
        place = (s[:, None].to(tl.int64) * COLUMNS + row) * COLUMNS + columns[None, :]
        product = tl.load(products + place, mask=inside, other=0.0).to(tl.float64)
        apart = (means - mean[None, :]) * (shift + row_off - row_mean)[:, None]
        shifted = n[:, None] * (off * row_off[:, None])
        product = product * units * row_unit[:, None] - shifted + n[:, None] * apart
        covariance += tl.sum(tl.where(inside, product, 0.0), axis=0)
    spread = squares * row_squares
    value = covariance / tl.sqrt(tl.where(spread > 0, spread, 1.0))
    value = tl.where(columns == row, 1.0, tl.minimum(tl.maximum(value, -1.0), 1.0))
    value = tl.where(differs * row_differs > 0, value, float("nan"))
    place = matrix + (model * COLUMNS + row) * COLUMNS + columns
    tl.store(place, value, mask=columns < COLUMNS)
    if row == 0:
        fails = (columns < COLUMNS) & ((sound == 0) | ((differs > 0) & ((squares > 0) == 0)))
        tl.store(status + model * TILES + tile, tl.max(fails.to(tl.int32), axis=0))


def finish_tile(columns: int) -> int:
    """Columns of a program."""
    return min(128, max(16, triton.next_power_of_2(columns)))


def finish_splits(columns: int) -> int:
    """Splits read at once: 16 spill in Triton 3.6 where more than 32 columns do not fill a tile, or fill one of 128."""
    return 16 if columns <= 32 or columns == 64 else 8


def finish_warps(columns: int) -> int:
    """Warps of a program."""
    return 8 if finish_tile(columns) == 128 else 4


def finish(
    products: Tensor, statistics: Tensor, matrix: Tensor, status: Tensor, *, samples: int, rows_per_split: int
) -> None:
    """Fill matrix `[M, K, K]` and status `[M, tiles]` from products `[M, S, K, K]`, statistics `[M, S, 4, K]`."""
    models, splits, _, columns = products.shape
    correlation_finish_kernel[(models * columns, status.shape[1])](
        products, statistics, matrix, status, samples, rows_per_split, splits,
        COLUMNS=columns, TILE=finish_tile(columns), SPLITS=finish_splits(columns),
        num_warps=finish_warps(columns), enable_fp_fusion=False,
    )  # fmt: skip


_SIZES = {"samples": "i32", "rows_per_split": "i32", "splits": "i32"}


def _finish_case(columns: int) -> CompileCase:
    sizes = {"COLUMNS": columns, "TILE": finish_tile(columns), "SPLITS": finish_splits(columns)}
    pointers = {"products": "*fp32", "statistics": "*fp32", "matrix": "*fp64", "status": "*i32"}
    return CompileCase(
        name=f"correlation finish, {columns} columns",
        kernel=correlation_finish_kernel,
        signature={**pointers, **_SIZES, **dict.fromkeys(sizes, "constexpr")},
        constexprs=sizes,
        divisible_by_16=(*pointers, "rows_per_split"),
        num_warps=finish_warps(columns),
        num_stages=3,
        fp_fusion=False,
    )


COMPILE_CASES: tuple[CompileCase, ...] = tuple(_finish_case(columns) for columns in (10, 40, 64, 1000))
