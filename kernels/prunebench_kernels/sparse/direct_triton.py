"""Direct sparse convolution on CUDA cores: every weight is read once per tile of pixels, nothing is unfolded.

One program = one tile of output pixels; it walks over output channels, CHANNELS of them side by side, one a
warp. A step takes the next (value, code) of each channel and a run of pixels of the input row it names.
Neighbouring channels have nearly the same number of weights (they are sorted), so the warps stay together, and,
walking the input channels in the same order, they find each other's rows in L1.

Borders are masked: which taps of a pixel lie inside the image is one integer per pixel, computed once per
program, so that a border costs one test a load. The other choice, padding x first, saves that test and costs a
pass over x: as many bytes as the convolution itself moves where in- and output are equally large.

Instructions per multiply-add, in the loop compiled for a bf16 3x3 on sm_90 (Triton 3.9): 8.8 for NCHW, where taps
shift by single elements, and 3.8 with the batch innermost, where every load takes 16 bytes. A multiprocessor
issues 128 a clock, so the latter comes to the 32 multiply-adds a clock that its L1 feeds, the former to 15.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.sparse.configurations import Configuration, run_length
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.launching import TRITON_TYPES, PixelKernel
from prunebench_kernels.sparse.tile_pixels import finish, pixel_place, taps_outside


@triton.jit
def direct_convolution_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    x,
    values,
    pointers,
    codes,
    order,
    bias,
    residual,
    y,
    BATCH: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    X_N: tl.constexpr,
    X_C: tl.constexpr,
    X_H: tl.constexpr,
    X_W: tl.constexpr,
    Y_N: tl.constexpr,
    Y_C: tl.constexpr,
    Y_H: tl.constexpr,
    Y_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    INNER: tl.constexpr,
    BORDER: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    RUN: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """A tile is CHUNKS runs of RUN pixels for each of CHANNELS output channels: `[CHUNKS, CHANNELS, RUN]`."""
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = (tile * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * RUN + tl.arange(0, RUN)[None, :]
    inside = pixel < BATCH * OUT_H * OUT_W
    image, i, j = pixel_place(pixel, BATCH, OUT_H, OUT_W, INNER)
    top = i * STRIDE_H - PADDING_H
    left = j * STRIDE_W - PADDING_W
    x_start = image * X_N + top * X_H + left * X_W
    if BORDER:
        outside = taps_outside(top, left, inside, HEIGHT, WIDTH, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W)
        outside = outside[:, None, :]
    x_at = (x + x_start)[:, None, :]
    y_start = (image * Y_N + i * Y_H + j * Y_W)[:, None, :]
    inside = inside[:, None, :]

    for group in range(tl.program_id(1), (OUT_CHANNELS + CHANNELS - 1) // CHANNELS, SPLITS):
        position = (group * CHANNELS + tl.arange(0, CHANNELS))[None, :, None]
        used = position < OUT_CHANNELS
        first = tl.load(pointers + position, mask=used, other=0)
        count = tl.load(pointers + position + 1, mask=used, other=0) - first
        longest = tl.max(count)
        total = tl.zeros((CHUNKS, CHANNELS, RUN), dtype=tl.float32)
        for step in tl.range(0, longest, loop_unroll_factor=UNROLL):
            live = step < count
            code = tl.load(codes + first + step, mask=live, other=0)
            value = tl.load(values + first + step, mask=live, other=0.0).to(tl.float32)
            r = (code >> 4) & 15
            s = code & 15
            offset = code >> 8
            if WIDE:
                offset = offset.to(tl.int64)
            offset = offset * X_C
            if KERNEL_H * KERNEL_W > 1:
                offset += r * (DILATION_H * X_H) + s * (DILATION_W * X_W)
            if BORDER:
                # Bit 30 is no tap's and always set: a channel without weights left loads nothing.
                needed = tl.where(live, (1 << r) | (32768 << s), 1 << 30)
                wanted = (outside & needed) == 0
            else:
                wanted = live & inside
            total += value * tl.load(x_at + offset, mask=wanted, other=0.0).to(tl.float32)
        output = tl.load(order + position, mask=used, other=0)
        if WIDE:
            output = output.to(tl.int64)
        at = y_start + output * Y_C
        if RUN == 32:
            # Else the aligned stores would decide how a warp's pixels are dealt out, and its loads of x would scatter.
            at = tl.multiple_of(at, [1, 1, 1])
        finish(total, bias, residual, y, output, at, inside & used, HAS_BIAS, HAS_RESIDUAL, RELU)


def _sizes(
    x_shape: Sequence[int],
    geometry: Geometry,
    dtype: torch.dtype,
    settings: Mapping[str, int],
    chosen: Configuration,
) -> dict[str, Any]:
    run = run_length(geometry, x_shape, dtype, settings)
    sizes = {"SPLITS": chosen.splits, "CHANNELS": chosen.channels, "UNROLL": chosen.unroll}
    return sizes | {"RUN": run, "CHUNKS": chosen.pixels // run}


_KERNEL = PixelKernel("direct", direct_convolution_kernel, _sizes)
launch = _KERNEL.launch


def _compile_cases() -> tuple[CompileCase, ...]:
    cases = []
    for name, geometry, shape, inner in (
        ("3x3", Geometry(64, 64, padding=(1, 1)), (128, 64, 32, 32), 0),
        ("3x3 stride 2", Geometry(64, 128, stride=(2, 2), padding=(1, 1)), (128, 64, 32, 32), 0),
        ("1x1", Geometry(256, 64, (1, 1)), (128, 256, 8, 8), 0),
        ("depthwise", Geometry(96, 96, padding=(1, 1), groups=96), (128, 96, 16, 16), 0),
        ("3x3 batch innermost", Geometry(512, 512, padding=(1, 1)), (128, 512, 4, 4), 1),
        ("3x3 batch innermost, many pixels", Geometry(64, 64, padding=(1, 1)), (128, 64, 32, 32), 1),
        ("1x1 batch innermost", Geometry(256, 64, (1, 1)), (128, 256, 8, 8), 1),
    ):
        settings = {"batch_innermost": inner}
        for dtype in TRITON_TYPES:
            expects = {"vector-loads"} if inner else set()
            cases.append(_KERNEL.compile_case(name, geometry, shape, dtype, settings, expects))
    return tuple(cases)


COMPILE_CASES: tuple[CompileCase, ...] = _compile_cases()
