# mypy: disallow-untyped-defs=False
"""Uncertainty in Triton for rows too long for registers: one sample a program, a loop over blocks of columns.

Each row is read two times per model (largest, then sums), a third with dense logits and once more for the values
over models; all but the first come from the second-level cache. Formulas as in `sample_uncertainty_triton`.
"""

import triton
import triton.language as tl

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.sample_uncertainty_compile_cases import ONES, constants_of, signature
from prunebench_kernels.sample_uncertainty_configurations import rule
from prunebench_kernels.sample_uncertainty_triton import (
    LOWEST,
    NOT_FINITE,
    _finite_or_zero,
    _in_band,
)


@triton.jit
def _load(row_ptr, columns, CLASSES: tl.constexpr):
    """A block of a row in float32, 0 outside of it."""
    return tl.load(row_ptr + columns, mask=columns < CLASSES, other=0.0).to(tl.float32)


@triton.jit
def _shifted(row_ptr, columns, highest, CLASSES: tl.constexpr):
    """x - max x of a block, 0 outside of the row."""
    x = _finite_or_zero(_load(row_ptr, columns, CLASSES))
    return tl.where(columns < CLASSES, tl.maximum(x - highest, LOWEST), 0.0)


@triton.jit
def _extremes(row_ptr, threshold, CLASSES: tl.constexpr, COLUMNS: tl.constexpr):
    """Largest logit and its lowest class, second largest, smallest, and the sum of `_in_band`."""
    highest, second, lowest = float("-inf"), float("-inf"), float("inf")
    first, in_band = 0, 0.0
    for start in range(0, CLASSES, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        x = _load(row_ptr, columns, CLASSES)
        inside = columns < CLASSES
        in_band += _in_band(x, threshold, inside, 0)
        x = _finite_or_zero(x)
        lowest = tl.minimum(lowest, tl.min(tl.where(inside, x, float("inf")), 0))
        x = tl.where(inside, x, float("-inf"))
        top, index = tl.max(x, 0, return_indices=True, return_indices_tie_break_left=True)
        runner_up = tl.max(tl.where(columns == start + index, float("-inf"), x), 0)
        second = tl.maximum(tl.maximum(second, runner_up), tl.minimum(highest, top))
        first = tl.where(top > highest, start + index, first)
        highest = tl.maximum(highest, top)
    return highest, first, second, lowest, in_band


@triton.jit
def columns_kernel(  # noqa: PLR0913 - pointers, sizes and compile-time values
    logits_ptr,
    dense_ptr,
    labels_ptr,
    max_probability_ptr,
    margin_ptr,
    entropy_ptr,
    likelihood_ptr,
    in_band_ptr,
    kl_ptr,
    correlation_ptr,
    mean_ptr,
    predictive_ptr,
    information_ptr,
    vote_ptr,
    agreement_ptr,
    flags_ptr,
    peaks_ptr,
    firsts_ptr,
    models,
    samples,
    model_stride,
    threshold,
    MODEL_UNIT: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    DENSE_STRIDE: tl.constexpr,
    CLASSES: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    OVER_MODELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    stride = tl.cast(model_stride, tl.int64) * MODEL_UNIT
    if HAS_LABELS:
        label = tl.load(labels_ptr + row)
        known = (label >= 0) & (label < CLASSES)
        tl.store(flags_ptr + 2, 1, mask=known == 0)
        label = tl.where(known, label, 0)
    if HAS_DENSE:
        dense_row = dense_ptr + row * DENSE_STRIDE
        dense_highest, _, _, dense_lowest, dense_band = _extremes(dense_row, threshold, CLASSES, COLUMNS)
        tl.store(flags_ptr + 1, 1, mask=dense_band >= NOT_FINITE)
        dense_scale = _scale(dense_lowest - dense_highest)
        dense_sum, dense_total = 0.0, 0.0
        for start in range(0, CLASSES, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            y = _shifted(dense_row, columns, dense_highest, CLASSES)
            dense_sum += tl.sum(tl.where(columns < CLASSES, tl.exp(y), 0.0), 0)
            dense_total += tl.sum(y * dense_scale, 0)
        dense_log_sum = tl.log(dense_sum)
        dense_mean = dense_total / CLASSES

    for model in range(0, models):
        row_ptr = logits_ptr + model * stride + row * ROW_STRIDE
        highest, first, second, lowest, in_band = _extremes(row_ptr, threshold, CLASSES, COLUMNS)
        tl.store(flags_ptr, 1, mask=in_band >= NOT_FINITE)
        scale = _scale(lowest - highest)
        d, weighted, divergence, total = 0.0, 0.0, 0.0, 0.0
        for start in range(0, CLASSES, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            shifted = _shifted(row_ptr, columns, highest, CLASSES)
            e = tl.where(columns < CLASSES, tl.exp(shifted), 0.0)
            d += tl.sum(e, 0)
            weighted += tl.sum(e * shifted, 0)
            if HAS_DENSE:
                y = _shifted(dense_row, columns, dense_highest, CLASSES)
                divergence += tl.sum(e * (shifted - y), 0)
                total += tl.sum(shifted * scale, 0)
        log_sum = tl.log(d)
        at = model * tl.cast(samples, tl.int64) + row
        tl.store(max_probability_ptr + at, 1.0 / d)
        tl.store(margin_ptr + at, (1.0 - tl.exp(tl.maximum(second - highest, LOWEST))) / d)
        tl.store(entropy_ptr + at, log_sum - weighted / d)
        tl.store(in_band_ptr + at, in_band / CLASSES)
        tl.store(peaks_ptr + at, highest)
        tl.store(firsts_ptr + at, first)
        if HAS_LABELS:
            tl.store(likelihood_ptr + at, log_sum - (tl.load(row_ptr + label).to(tl.float32) - highest))
        if HAS_DENSE:
            tl.store(kl_ptr + at, tl.maximum(divergence / d - log_sum + dense_log_sum, 0.0))
            squares, dense_squares, product = 0.0, 0.0, 0.0
            mean = total / CLASSES
            for start in range(0, CLASSES, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                inside = columns < CLASSES
                shifted = _shifted(row_ptr, columns, highest, CLASSES)
                y = _shifted(dense_row, columns, dense_highest, CLASSES)
                centred = tl.where(inside, shifted * scale - mean, 0.0)
                y_centred = tl.where(inside, y * dense_scale - dense_mean, 0.0)
                squares += tl.sum(centred * centred, 0)
                dense_squares += tl.sum(y_centred * y_centred, 0)
                product += tl.sum(centred * y_centred, 0)
            squares *= dense_squares
            ratio = product / tl.sqrt(tl.where(squares > 0, squares, 1.0))
            ratio = tl.minimum(tl.maximum(ratio, -1.0), 1.0)
            tl.store(correlation_ptr + at, tl.where(squares > 0, ratio, float("nan")))

    if OVER_MODELS:
        tl.debug_barrier()  # what this program stored per model is read back below
        predictive, most, vote = 0.0, 0, 0
        for start in range(0, CLASSES, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < CLASSES
            mean_block = tl.zeros([COLUMNS], tl.float32)
            votes = tl.zeros([COLUMNS], tl.int32)
            for model in range(0, models):
                at = model * tl.cast(samples, tl.int64) + row
                row_ptr = logits_ptr + model * stride + row * ROW_STRIDE
                e = tl.exp(_shifted(row_ptr, columns, tl.load(peaks_ptr + at), CLASSES))
                mean_block += e * tl.load(max_probability_ptr + at)
                votes += (columns == tl.load(firsts_ptr + at)).to(tl.int32)
            mean_block = tl.where(inside, mean_block / models, 0.0)
            tl.store(mean_ptr + row * CLASSES + columns, mean_block, mask=inside)
            predictive -= tl.sum(mean_block * tl.log(tl.where(mean_block > 0, mean_block, 1.0)), 0)
            top, index = tl.max(votes, 0, return_indices=True, return_indices_tie_break_left=True)
            vote = tl.where(top > most, start + index, vote)
            most = tl.maximum(most, top)
        entropy_sum = 0.0
        for model in range(0, models):
            entropy_sum += tl.load(entropy_ptr + model * tl.cast(samples, tl.int64) + row)
        tl.store(predictive_ptr + row, predictive)
        tl.store(information_ptr + row, tl.maximum(predictive - entropy_sum / models, 0.0))
        tl.store(vote_ptr + row, tl.cast(vote, tl.int64))
        tl.store(agreement_ptr + row, tl.cast(most, tl.float32) / models)


@triton.jit
def _scale(difference):
    """1 / (largest - smallest), or 1 where that is 0: keeps squares from over- and underflow."""
    extent = -tl.maximum(difference, LOWEST)
    return 1.0 / tl.where(extent > 1e-37, extent, 1.0)


def _case(classes: int, element: str, compared: bool, ones: bool = False) -> CompileCase:
    constants = constants_of(classes, rule(2, classes).columns, compared=compared, over_models=True)
    types = {**signature(element), "peaks_ptr": "*fp32", "firsts_ptr": "*i32"}
    if ones:
        constants |= ONES
    marks = ", compared" * compared + ", ones" * ones
    return CompileCase(
        name=f"uncertainty, 2 models of {classes} classes in a loop, {element}{marks}",
        kernel=columns_kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        divisible_by_16=tuple(name for name, kind in types.items() if kind.startswith("*")),
        num_warps=8,
        num_stages=1,
        expects=frozenset({"vector-loads"} if classes % 8 == 0 else ()),
    )


COMPILE_CASES: tuple[CompileCase, ...] = (
    _case(10_000, "fp32", compared=True, ones=True),
    *(
        _case(classes, element, compared)
        for classes, compared in ((10_000, False), (21_841, True))
        for element in ("fp32", "fp16", "bf16")
    ),
)
