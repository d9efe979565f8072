# mypy: disallow-untyped-defs=False
"""Uncertainty in Triton: one pass over the logits, whole rows in registers, a loop over the models.

One program takes a few samples. A step holds a tile `[models, rows, C]`; with x~ = x - max x, e = exp(x~), d = sum e:
max p = 1/d, margin = (1 - exp(x~_(2)))/d, entropy = log d - sum(e x~)/d. Mean probability and votes stay in
registers to the end, so that every logit is read from memory once whatever the number of models; the next step's
logits are asked for before this one's are used. A logit that is not finite counts as 0 and raises a flag, which the
launcher reads once, after the kernel.

Bytes: the logits once, 4 N C for the mean probability, 4 N M for each value per model.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.sample_uncertainty_compile_cases import ONES, constants_of, signature
from prunebench_kernels.sample_uncertainty_configurations import Configuration, configuration, rule
from prunebench_kernels.sample_uncertainty_torch import allocate, in_band_threshold

LOWEST = tl.constexpr(-3.0e38)
"""Stands for differences of finite logits that overflow: exp of it is 0, and 0 times it is 0."""


NOT_FINITE = tl.constexpr(float(1 << 20))
"""What a logit that is not finite adds to the count of those in the band, always fewer: one reduction serves both."""


@triton.jit
def _finite_or_zero(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _in_band(x, threshold, inside, AXIS: tl.constexpr):
    """How many |x| < threshold, plus NOT_FINITE for each x that is not finite."""
    counts = tl.where(tl.abs(x) < float("inf"), (tl.abs(x) < threshold).to(tl.float32), NOT_FINITE)
    return tl.sum(tl.where(inside, counts, 0.0), AXIS)


@triton.jit
def _centred(shifted, inside, CLASSES: tl.constexpr, AXIS: tl.constexpr):
    """Shifted logits (largest 0) scaled to [-1, 0] and less their mean: 0 exactly where all are equal."""
    extent = -tl.min(shifted, AXIS, keep_dims=True)
    scaled = shifted * (1.0 / tl.where(extent > 1e-37, extent, 1.0))
    mean = tl.sum(scaled, AXIS, keep_dims=True) * (1.0 / CLASSES)
    return tl.where(inside, scaled - mean, 0.0)


@triton.jit
def _whole_rows_kernel(  # noqa: PLR0913 - pointers, sizes and compile-time values
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
    MODELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_inside = rows < samples
    columns = tl.arange(0, COLUMNS)
    inside = (columns < CLASSES)[None, None, :]
    if HAS_LABELS:
        label = tl.load(labels_ptr + rows, mask=row_inside, other=0)
        known = (label >= 0) & (label < CLASSES)
        tl.store(flags_ptr + 2 + tl.zeros_like(label), 1, mask=known == 0)
        label = tl.where(known, label, 0)
    if HAS_DENSE:
        y = tl.load(
            dense_ptr + rows[None, :, None] * DENSE_STRIDE + columns[None, None, :],
            mask=row_inside[None, :, None] & inside,
            other=0.0,
        ).to(tl.float32)
        wrong = _in_band(y, threshold, inside, 2) >= NOT_FINITE
        tl.store(flags_ptr + 1 + tl.zeros([1, ROWS], tl.int32), 1, mask=wrong)
        y = _finite_or_zero(y)
        y = y - tl.max(tl.where(inside, y, float("-inf")), 2, keep_dims=True)
        y = tl.where(inside, tl.maximum(y, LOWEST), 0.0)
        dense_log_sum = tl.log(tl.sum(tl.where(inside, tl.exp(y), 0.0), 2))
        y_centred = _centred(y, inside, CLASSES, 2)
        y_squares = tl.sum(y_centred * y_centred, 2)
    if OVER_MODELS:
        mean = tl.zeros([ROWS, COLUMNS], tl.float32)
        votes = tl.zeros([ROWS, COLUMNS], tl.int32)
        entropy_sum = tl.zeros([ROWS], tl.float32)

    model = tl.arange(0, MODELS).to(tl.int64)
    row_ptr = logits_ptr + rows[None, :, None] * ROW_STRIDE + columns[None, None, :]
    stride = tl.cast(model_stride, tl.int64) * MODEL_UNIT
    upcoming = tl.load(
        row_ptr + model[:, None, None] * stride,
        mask=(model < models)[:, None, None] & row_inside[None, :, None] & inside,
        other=0.0,
    )
    for start in range(0, models, MODELS):
        x = upcoming.to(tl.float32)
        current = start + model
        model_inside = current < models
        if OVER_MODELS:
            following = current + MODELS
            upcoming = tl.load(
                row_ptr + following[:, None, None] * stride,
                mask=(following < models)[:, None, None] & row_inside[None, :, None] & inside,
                other=0.0,
            )
        in_band = _in_band(x, threshold, inside, 2)
        tl.store(flags_ptr + tl.zeros([MODELS, ROWS], tl.int32), 1, mask=in_band >= NOT_FINITE)
        x = tl.where(inside, _finite_or_zero(x), float("-inf"))
        highest, index = tl.max(x, 2, return_indices=True, return_indices_tie_break_left=True)
        is_first = columns[None, None, :] == index[:, :, None]
        second = tl.max(tl.where(is_first, float("-inf"), x), 2)
        shifted = tl.where(inside, tl.maximum(x - highest[:, :, None], LOWEST), 0.0)
        e = tl.where(inside, tl.exp(shifted), 0.0)
        largest = 1.0 / tl.sum(e, 2)
        p = e * largest[:, :, None]
        log_sum = -tl.log(largest)
        entropy = log_sum - tl.sum(p * shifted, 2)
        at = current[:, None] * samples + rows[None, :]
        stored = model_inside[:, None] & row_inside[None, :]
        tl.store(max_probability_ptr + at, largest, mask=stored)
        tl.store(margin_ptr + at, (1.0 - tl.exp(tl.maximum(second - highest, LOWEST))) * largest, mask=stored)
        tl.store(entropy_ptr + at, entropy, mask=stored)
        tl.store(in_band_ptr + at, in_band / CLASSES, mask=stored)
        if HAS_LABELS:
            where = current[:, None] * stride + rows[None, :] * ROW_STRIDE + label[None, :]
            chosen = tl.load(logits_ptr + where, mask=stored, other=0.0).to(tl.float32)
            tl.store(likelihood_ptr + at, log_sum - (chosen - highest), mask=stored)
        if HAS_DENSE:
            divergence = tl.sum(p * (shifted - y), 2) - log_sum + dense_log_sum
            tl.store(kl_ptr + at, tl.maximum(divergence, 0.0), mask=stored)
            centred = _centred(shifted, inside, CLASSES, 2)
            squares = tl.sum(centred * centred, 2) * y_squares
            product = tl.sum(centred * y_centred, 2) / tl.sqrt(tl.where(squares > 0, squares, 1.0))
            product = tl.minimum(tl.maximum(product, -1.0), 1.0)
            tl.store(correlation_ptr + at, tl.where(squares > 0, product, float("nan")), mask=stored)
        if OVER_MODELS:
            counted = model_inside[:, None, None]
            mean += tl.sum(tl.where(counted, p, 0.0), 0)
            votes += tl.sum((is_first & counted).to(tl.int32), 0)
            entropy_sum += tl.sum(tl.where(model_inside[:, None], entropy, 0.0), 0)

    if OVER_MODELS:
        mean = mean / models
        at_mean = rows[:, None] * CLASSES + columns[None, :]
        tl.store(mean_ptr + at_mean, mean, mask=row_inside[:, None] & (columns < CLASSES)[None, :])
        predictive = -tl.sum(mean * tl.log(tl.where(mean > 0, mean, 1.0)), 1)
        most, vote = tl.max(votes, 1, return_indices=True, return_indices_tie_break_left=True)
        tl.store(predictive_ptr + rows, predictive, mask=row_inside)
        information = tl.maximum(predictive - entropy_sum / models, 0.0)
        tl.store(information_ptr + rows, information, mask=row_inside)
        tl.store(vote_ptr + rows, vote.to(tl.int64), mask=row_inside)
        tl.store(agreement_ptr + rows, most.to(tl.float32) / models, mask=row_inside)


def launch(
    logits: Tensor,
    labels: Tensor | None,
    dense_logits: Tensor | None,
    band: float,
    over_models: bool,
    *,
    tile: Configuration | None = None,
    outputs: list[Tensor] | None = None,
) -> list[Tensor]:
    """All values for logits `[M, N, C]`, in the order of PER_MODEL and OVER_MODELS; absent ones have no elements.

    Logits whose last stride is not 1 are copied first. Raises ArgumentError for values that are not finite and labels
    outside 0..C-1, after the kernel has run.
    """
    models, samples, classes = logits.shape
    logits = logits if logits.stride(2) == 1 else logits.contiguous()
    dense = logits if dense_logits is None else dense_logits
    dense = dense if dense.stride(-1) == 1 else dense.contiguous()
    if outputs is None:
        has = (labels is not None, dense_logits is not None)
        outputs = allocate(logits, *has, over_models, torch.float32)
    tile = tile or configuration(models, classes, logits.dtype)
    flags = torch.zeros(3, dtype=torch.int32, device=logits.device)
    unit = math.gcd(logits.stride(0), 16) if models > 1 else 16
    arguments = (logits, dense, flags if labels is None else labels.contiguous(), *outputs, flags)
    constants = {
        "MODEL_UNIT": unit,
        "ROW_STRIDE": logits.stride(1),
        "DENSE_STRIDE": dense.stride(-2),
        "CLASSES": classes,
        "HAS_LABELS": labels is not None,
        "HAS_DENSE": dense_logits is not None,
        "OVER_MODELS": over_models,
        "COLUMNS": tile.columns,
    }
    sizes = (
        models,
        samples,
        logits.stride(0) // unit if models > 1 else 0,
        in_band_threshold(band, torch.float32),
    )
    options = {"num_warps": tile.num_warps, "num_stages": 1, "enable_fp_fusion": True}
    with on_device(logits):
        if tile.whole_rows:
            constants |= {"MODELS": tile.models, "ROWS": tile.rows}
            _whole_rows_kernel[(triton.cdiv(samples, tile.rows),)](*arguments, *sizes, **constants, **options)
        else:
            from prunebench_kernels.sample_uncertainty_columns_triton import columns_kernel

            peaks = torch.empty(models, samples, dtype=torch.float32, device=logits.device)
            firsts = torch.empty(models, samples, dtype=torch.int32, device=logits.device)
            columns_kernel[(samples,)](*arguments, peaks, firsts, *sizes, **constants, **options)
    _raise_for(flags.tolist(), classes)
    return outputs


def _raise_for(flags: list[int], classes: int) -> None:
    for raised, name in zip(flags, ("logits", "dense_logits")):
        if raised:
            raise ArgumentError(f"{name}: contains values that are not finite")
    if flags[2]:
        raise ArgumentError(f"labels: values outside 0..{classes - 1}")


def _case(classes: int, models: int, element: str, *, compared: bool, ones: bool = False) -> CompileCase:
    tile = rule(models or 1, classes)
    constants = {
        **constants_of(classes, tile.columns, compared=compared, over_models=models > 0),
        "MODELS": tile.models,
        "ROWS": tile.rows,
    }
    types = signature(element)
    if ones:
        constants |= ONES
    marks = ", compared" * compared + ", ones" * ones
    return CompileCase(
        name=f"uncertainty, {models} models of {classes} classes, {element}{marks}",
        kernel=_whole_rows_kernel,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        divisible_by_16=tuple(name for name, kind in types.items() if kind.startswith("*")),
        num_warps=tile.num_warps,
        num_stages=1,
        expects=frozenset({"vector-loads"} if classes % 8 == 0 else ()),
    )


COMPILE_CASES: tuple[CompileCase, ...] = (
    _case(16, 1, "fp32", compared=True, ones=True),
    *(
        _case(classes, models, element, compared=compared)
        for classes, models, compared in (
            *(
                (10, 1000, False),
                (10, 0, False),
                (40, 2, True),
                (1000, 0, False),
                (1000, 2, False),
                (1000, 2, True),
            ),
            *((2048, 2, True), (4096, 2, True)),
        )
        for element in ("fp32", "fp16", "bf16")
    ),
)
