# mypy: disable-error-code="no-untyped-def"
"""Sums of products of output columns in Triton: one pass over the data, batched over models, without atomics.

A program takes one model, one pair of column tiles (the upper triangle) and one run of rows (a split), and writes
its partial sums to a workspace; up to 64 columns are one tile, so the data is read once. A second launch combines
the splits in float64 (correlation), or torch adds them in int64 (counts).

Counts. 0/1 as float16 times float16 with float32 accumulation is exact below 2^24 rows; a split is shorter.

Correlation. Each split is shifted by the mean of its own first rows: no launch comes before the pass, and data that
drifts or is sorted stays close to its shift. d = x - shift is scaled by a power of two to |u| < 2, with the exponent
of the largest |d| so far (the sums follow when it grows, exactly), and written as u = hi + lo / 2048, both float16,
which leaves 2^-22 of u. Then u u' = hi hi' + (hi lo' + lo hi') / 2048, and on the diagonal the two mixed terms are
one product and its transpose: two float16 products replace one float32 product. Why not the others, per row of 64
float32 columns (256 bytes): TF32 rounds to 2^-11, above the 1e-5 aimed at for few rows; TF32x3 needs 96 flops a byte
of its rate, where the ridge of an H200 is 92; IEEE float32 runs outside the tensor cores; two float16 products need
64 of 184. The dot of one tile starts at zero and is added in IEEE float32, because tensor cores truncate their sums.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.correlation_finish_triton import FIELDS, finish, finish_tile

SECOND = tl.constexpr(2048.0)
"""lo is stored times 2^11, so that it is a normal float16 wherever hi is."""

FLOATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
BYTES = {torch.uint8: "u8", torch.int8: "i8"}


@triton.jit
def _load(base, start, columns, count, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    rows = start + tl.arange(0, ROWS)
    inside = (rows < count)[:, None] & (columns < COLUMNS)[None, :]
    x = tl.load(base + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0)
    return x.to(tl.float32), inside


@triton.jit
def _shift(base, columns, count, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Mean of the first rows: exact where they are equal, an integer where they are (sums are then exact too)."""
    x, inside = _load(base, 0, columns, count, COLUMNS, ROWS)
    first = tl.load(base + columns, mask=columns < COLUMNS, other=0).to(tl.float32)
    difference = tl.where(inside, x - first[None, :], 0.0)
    mean = first + tl.sum(difference, axis=0) / tl.minimum(count, ROWS)
    whole = tl.min((tl.floor(x) == x).to(tl.int32), axis=0)
    return tl.where((whole == 1) & (tl.abs(mean) < 4194304.0), tl.floor(mean + 0.5), mean)


@triton.jit
def _biased(largest):
    """The exponent of the scale, as float32 stores it: that of the largest |d|, given as bits."""
    return tl.minimum(tl.maximum(largest >> 23, 1), 253)


@triton.jit
def _split_in_two(d, largest):
    """hi, lo, the bits of the largest |d| with this tile, and the factor for sums made before it."""
    old = _biased(largest)
    largest = tl.maximum(largest, tl.max(tl.abs(d), axis=0).to(tl.int32, bitcast=True))
    new = _biased(largest)
    factor = ((tl.maximum(old - new, -126) + 127) << 23).to(tl.float32, bitcast=True)
    scale = ((254 - new) << 23).to(tl.float32, bitcast=True)
    u = d * scale[None, :]
    hi = u.to(tl.float16)
    lo = ((u - hi.to(tl.float32)) * SECOND).to(tl.float16)
    return hi, lo, largest, factor


@triton.jit(do_not_specialize=["samples", "splits"])
def covariance_sums_kernel(  # noqa: PLR0913 - a kernel
    outputs, products, statistics, samples, rows_per_split, splits,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """products `[M, S, K, K]`: sums of u u'; statistics `[M, S, 4, K]`, float32. Grid (M S, tiles^2)."""
    ONE: tl.constexpr = COLUMNS <= TILE
    TILES: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    model = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    tile_i = tl.program_id(1) // TILES
    tile_j = tl.program_id(1) % TILES
    if tile_i > tile_j:
        return
    base = outputs + (model.to(tl.int64) * samples + split.to(tl.int64) * rows_per_split) * COLUMNS
    count = tl.minimum(rows_per_split, samples - split * rows_per_split)
    columns_i = tile_i * TILE + tl.arange(0, TILE)
    columns_j = tile_j * TILE + tl.arange(0, TILE)
    shift_i = _shift(base, columns_i, count, COLUMNS, ROWS)
    largest_i = tl.zeros((TILE,), tl.int32)
    total = tl.zeros((ROWS, TILE), tl.float32)
    main = tl.zeros((TILE, TILE), tl.float32)
    mixed = tl.zeros((TILE, TILE), tl.float32)
    zero = tl.zeros((TILE, TILE), tl.float32)
    if not ONE:
        shift_j = _shift(base, columns_j, count, COLUMNS, ROWS)
        largest_j = tl.zeros((TILE,), tl.int32)
    for start in range(0, count, ROWS):
        x, inside = _load(base, start, columns_i, count, COLUMNS, ROWS)
        d = tl.where(inside, x - shift_i[None, :], 0.0)
        total += d
        hi_i, lo_i, largest_i, factor_i = _split_in_two(d, largest_i)
        if ONE:
            factor = factor_i[:, None] * factor_i[None, :]
            main = tl.fma(main, factor, tl.dot(tl.trans(hi_i), hi_i, zero))
            mixed = tl.fma(mixed, factor, tl.dot(tl.trans(hi_i), lo_i, zero))
        else:
            y, inside = _load(base, start, columns_j, count, COLUMNS, ROWS)
            e = tl.where(inside, y - shift_j[None, :], 0.0)
            hi_j, lo_j, largest_j, factor_j = _split_in_two(e, largest_j)
            factor = factor_i[:, None] * factor_j[None, :]
            main = tl.fma(main, factor, tl.dot(tl.trans(hi_i), hi_j, zero))
            both = tl.dot(tl.trans(lo_i), hi_j, tl.dot(tl.trans(hi_i), lo_j, zero))
            mixed = tl.fma(mixed, factor, both)
    inside_j = (columns_j < COLUMNS)[None, :]
    place = tl.program_id(0).to(tl.int64) * COLUMNS
    matrix = products + place * COLUMNS
    if ONE:
        half = 0.5 * main + mixed / SECOND
        result = half + tl.trans(half)
    else:
        result = main + mixed / SECOND
    tl.store(matrix + columns_i[:, None] * COLUMNS + columns_j[None, :], result,
             mask=(columns_i < COLUMNS)[:, None] & inside_j)  # fmt: skip
    if tile_i < tile_j:
        tl.store(matrix + columns_j[None, :] * COLUMNS + columns_i[:, None], result,
                 mask=(columns_i < COLUMNS)[:, None] & inside_j)  # fmt: skip
    else:
        row = statistics + place * FIELDS + columns_i
        unit = (_biased(largest_i) << 23).to(tl.float32, bitcast=True)
        tl.store(row, shift_i, mask=columns_i < COLUMNS)
        tl.store(row + COLUMNS, tl.sum(total, axis=0), mask=columns_i < COLUMNS)
        tl.store(row + 2 * COLUMNS, unit, mask=columns_i < COLUMNS)
        tl.store(row + 3 * COLUMNS, (largest_i > 0).to(tl.float32), mask=columns_i < COLUMNS)


@triton.jit(do_not_specialize=["samples", "splits"])
def cooccurrence_kernel(  # noqa: PLR0913 - a kernel
    predictions, counts, flags, samples, rows_per_split, splits,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """counts `[M, S, K, K]` int32; flags `[M, S, tiles]`: 1 where a value is not 0 or 1. Grid (M S, tiles^2)."""
    ONE: tl.constexpr = COLUMNS <= TILE
    TILES: tl.constexpr = (COLUMNS + TILE - 1) // TILE
    model = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    tile_i = tl.program_id(1) // TILES
    tile_j = tl.program_id(1) % TILES
    if tile_i > tile_j:
        return
    base = predictions + (model.to(tl.int64) * samples + split.to(tl.int64) * rows_per_split) * COLUMNS
    count = tl.minimum(rows_per_split, samples - split * rows_per_split)
    columns_i = tile_i * TILE + tl.arange(0, TILE)
    columns_j = tile_j * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    other = tl.zeros((ROWS, TILE), tl.int1)
    for start in range(0, count, ROWS):
        x, _ = _load(base, start, columns_i, count, COLUMNS, ROWS)
        other = other | ((x != 0) & (x != 1))
        left = (x != 0).to(tl.float16)
        if ONE:
            total = tl.dot(tl.trans(left), left, total)
        else:
            y, _ = _load(base, start, columns_j, count, COLUMNS, ROWS)
            total = tl.dot(tl.trans(left), (y != 0).to(tl.float16), total)
    result = total.to(tl.int32)
    inside = (columns_i < COLUMNS)[:, None] & (columns_j < COLUMNS)[None, :]
    matrix = counts + tl.program_id(0).to(tl.int64) * COLUMNS * COLUMNS
    tl.store(matrix + columns_i[:, None] * COLUMNS + columns_j[None, :], result, mask=inside)
    if tile_i < tile_j:
        tl.store(matrix + columns_j[None, :] * COLUMNS + columns_i[:, None], result, mask=inside)
    else:
        found = tl.max(tl.max(other.to(tl.int32), axis=1), axis=0)
        tl.store(flags + tl.program_id(0).to(tl.int64) * TILES + tile_i, found)


@dataclass(frozen=True)
class Configuration:
    """Columns and rows of a tile, rows of a split, warps and stages. A split has at most 2^15 rows."""

    tile: int
    rows: int
    rows_per_split: int
    num_warps: int
    num_stages: int = 3


def configuration(models: int, samples: int, columns: int) -> Configuration:
    """What runs unless it is forced: about four programs for each of 132 multiprocessors, 256 rows at least.

    Chosen by registers: 64 columns and 64 rows a tile take 255 of them on sm_80. Not tuned on a GPU.
    """
    tile = 16 if columns <= 16 else 32 if columns <= 32 else 64
    tiles = triton.cdiv(columns, tile)
    work = models * samples * (tiles * (tiles + 1) // 2)
    wanted = max(256, min(triton.cdiv(work, 4 * 132), 1 << 15))
    rows = 32 if tile == 64 else 64
    rows_per_split = min(triton.cdiv(wanted, rows), triton.cdiv(samples, rows)) * rows
    return Configuration(tile, rows, rows_per_split, num_warps=4 if tile == 16 else 8, num_stages=3)


@dataclass(frozen=True)
class Buffers:
    """What a launch fills, so that a caller may keep or poison it."""

    partial: Tensor
    statistics: Tensor
    result: Tensor
    status: Tensor


def _splits(outputs: Tensor, chosen: Configuration) -> tuple[int, int]:
    return triton.cdiv(outputs.shape[1], chosen.rows_per_split), triton.cdiv(outputs.shape[2], chosen.tile)


def correlation_buffers(outputs: Tensor, chosen: Configuration) -> Buffers:
    """Empty buffers of a correlation of `[M, N, K]`."""
    models, _, columns = outputs.shape
    splits, _ = _splits(outputs, chosen)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=outputs.device)

    return Buffers(
        empty(models, splits, columns, columns),
        empty(models, splits, FIELDS.value, columns),
        empty(models, columns, columns, dtype=torch.float64),
        empty(models, triton.cdiv(columns, finish_tile(columns)), dtype=torch.int32),
    )


def correlation(
    outputs: Tensor, forced: Configuration | None = None, buffers: Buffers | None = None
) -> tuple[Tensor, Tensor]:
    """Correlation `[M, K, K]` of contiguous `[M, N, K]`, and a status: where not 0, the values are not to be used.

    That is so for input that is not finite, and for columns whose spread lies beyond 2^+-100.
    """
    models, samples, columns = outputs.shape
    chosen = forced or configuration(models, samples, columns)
    filled = buffers or correlation_buffers(outputs, chosen)
    splits, tiles = _splits(outputs, chosen)
    with on_device(outputs):
        covariance_sums_kernel[(models * splits, tiles * tiles)](
            outputs, filled.partial, filled.statistics, samples, chosen.rows_per_split, splits,
            COLUMNS=columns, TILE=chosen.tile, ROWS=chosen.rows,
            num_warps=chosen.num_warps, num_stages=chosen.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
        finish(
            filled.partial, filled.statistics, filled.result, filled.status,
            samples=samples, rows_per_split=chosen.rows_per_split,
        )  # fmt: skip
    # A tile on the diagonal among several is not added in one order on both of its sides.
    matrix = filled.result if tiles == 1 else (filled.result + filled.result.mT) / 2
    return matrix, filled.status


def cooccurrence_buffers(predictions: Tensor, chosen: Configuration) -> tuple[Tensor, Tensor]:
    """Empty partial counts and flags for 0/1 `[M, N, K]`."""
    models, _, columns = predictions.shape
    splits, tiles = _splits(predictions, chosen)
    counts = torch.empty(models, splits, columns, columns, dtype=torch.int32, device=predictions.device)
    return counts, torch.empty(models, splits, tiles, dtype=torch.int32, device=predictions.device)


def cooccurrence(
    predictions: Tensor, forced: Configuration | None = None, buffers: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Counts X'X `[M, K, K]` int64 of contiguous 0/1 `[M, N, K]`, and flags: 1 where another value was found."""
    models, samples, columns = predictions.shape
    chosen = forced or configuration(models, samples, columns)
    counts, flags = buffers or cooccurrence_buffers(predictions, chosen)
    splits, tiles = _splits(predictions, chosen)
    with on_device(predictions):
        cooccurrence_kernel[(models * splits, tiles * tiles)](
            predictions, counts, flags, samples, chosen.rows_per_split, splits,
            COLUMNS=columns, TILE=chosen.tile, ROWS=chosen.rows,
            num_warps=chosen.num_warps, num_stages=chosen.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
    return counts.sum(1, dtype=torch.int64), flags


_SIZES = {"samples": "i32", "rows_per_split": "i32", "splits": "i32"}


def _sums_case(kernel: object, dtype: str, columns: int) -> CompileCase:
    chosen = configuration(2, 50_000, columns)
    counted = kernel is cooccurrence_kernel
    pointers = (
        {"predictions": f"*{dtype}", "counts": "*i32", "flags": "*i32"}
        if counted
        else {"outputs": f"*{dtype}", "products": "*fp32", "statistics": "*fp32"}
    )
    sizes = {"COLUMNS": columns, "TILE": chosen.tile, "ROWS": chosen.rows}
    expects = {"tensor-cores"} if chosen.tile == 64 else set()
    if columns % 64 == 0 and dtype not in BYTES.values():
        expects.add("vector-loads")
    return CompileCase(
        name=f"{'cooccurrence' if counted else 'covariance sums'} {dtype}, {columns} columns",
        kernel=kernel,
        signature={**pointers, **_SIZES, **dict.fromkeys(sizes, "constexpr")},
        constexprs=sizes,
        divisible_by_16=(*pointers, "rows_per_split"),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        expects=frozenset(expects),
        fp_fusion=False,
    )


COMPILE_CASES: tuple[CompileCase, ...] = (
    *(
        _sums_case(covariance_sums_kernel, dtype, columns)
        for dtype in FLOATS.values()
        for columns in (10, 32, 40, 64, 1000)
    ),
    *(
        _sums_case(cooccurrence_kernel, dtype, columns)
        for dtype in (*FLOATS.values(), *BYTES.values())
        for columns in (10, 32, 40, 64, 1000)
    ),
)
