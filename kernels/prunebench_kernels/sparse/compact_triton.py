"""Convolution with a compacted reduction: tensor cores on the rows of input that a block of channels uses.

One program = one tile of output pixels. It walks over blocks of output channels; for each it gathers the input
rows of the block's places, a chunk at a time (a row is the tile's pixels under one tap of one channel), and
multiplies. The input is read again for each block, so a program takes many blocks and lives off L1.

Pixels stand on the side of the product that tensor cores want long (64 for WGMMA); the block's 16 channels on
the other.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.sparse.configurations import Configuration
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.launching import TRITON_TYPES, PixelKernel, ieee_or_tf32
from prunebench_kernels.sparse.tile_pixels import finish, pixel_place, taps_outside


@triton.jit
def compact_convolution_kernel(  # noqa: PLR0913 - pointers, and constants of the call
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
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """values `[chunks, BLOCK_OUT, BLOCK_ROWS]`, codes `[chunks, BLOCK_ROWS]`; x, residual, y in the layout's format."""
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < BATCH * OUT_H * OUT_W
    image, i, j = pixel_place(pixel, BATCH, OUT_H, OUT_W, INNER)
    top = i * STRIDE_H - PADDING_H
    left = j * STRIDE_W - PADDING_W
    x_at = (x + (image * X_N + top * X_H + left * X_W))[:, None]
    y_start = (image * Y_N + i * Y_H + j * Y_W)[:, None]
    if BORDER:
        outside = taps_outside(top, left, inside, HEIGHT, WIDTH, KERNEL_H, KERNEL_W, DILATION_H, DILATION_W)
        outside = outside[:, None]
    inside = inside[:, None]
    within_out = tl.arange(0, BLOCK_OUT)
    within_rows = tl.arange(0, BLOCK_ROWS)
    w_at = values + (within_rows[:, None] + within_out[None, :] * BLOCK_ROWS)

    for block in range(tl.program_id(1), (OUT_CHANNELS + BLOCK_OUT - 1) // BLOCK_OUT, SPLITS):
        total = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
        for chunk in tl.range(tl.load(pointers + block), tl.load(pointers + block + 1), num_stages=STAGES):
            code = tl.load(codes + chunk * BLOCK_ROWS + within_rows)[None, :]
            r = (code >> 4) & 15
            s = code & 15
            offset = code >> 8
            if WIDE:
                offset = offset.to(tl.int64)
            offset = offset * X_C
            if KERNEL_H * KERNEL_W > 1:
                offset += r * (DILATION_H * X_H) + s * (DILATION_W * X_W)
            wanted = inside
            if BORDER:
                wanted = (outside & ((1 << r) | (32768 << s))) == 0
            a = tl.load(x_at + offset, mask=wanted, other=0.0)
            w = tl.load(w_at + chunk * (BLOCK_OUT * BLOCK_ROWS))
            total = tl.dot(a, w, total, input_precision=PRECISION)
        position = block * BLOCK_OUT + within_out
        used = position < OUT_CHANNELS
        output = tl.load(order + position, mask=used, other=0)[None, :]
        if WIDE:
            output = output.to(tl.int64)
        at = y_start + output * Y_C
        finish(total, bias, residual, y, output, at, inside & used[None, :], HAS_BIAS, HAS_RESIDUAL, RELU)


def _sizes(
    x_shape: Sequence[int],
    geometry: Geometry,
    dtype: torch.dtype,
    settings: Mapping[str, int],
    chosen: Configuration,
) -> dict[str, Any]:
    sizes = {"PIXELS": chosen.pixels, "STAGES": chosen.stages, "SPLITS": chosen.splits}
    sizes |= {"BLOCK_OUT": settings["block_out"], "BLOCK_ROWS": settings["block_rows"]}
    return sizes | {"PRECISION": ieee_or_tf32()}


_KERNEL = PixelKernel("compact", compact_convolution_kernel, _sizes)
launch = _KERNEL.launch


def _compile_cases() -> tuple[CompileCase, ...]:
    cases = []
    for name, geometry, shape, inner in (
        ("3x3", Geometry(64, 64, padding=(1, 1)), (128, 64, 32, 32), 0),
        ("3x3 stride 2", Geometry(64, 128, stride=(2, 2), padding=(1, 1)), (128, 64, 32, 32), 0),
        ("1x1", Geometry(256, 64, (1, 1)), (128, 256, 8, 8), 0),
        ("3x3 batch innermost", Geometry(512, 512, padding=(1, 1)), (128, 512, 4, 4), 1),
        ("1x1 batch innermost", Geometry(256, 64, (1, 1)), (128, 256, 8, 8), 1),
    ):
        settings = {"block_out": 16, "block_rows": 32, "sorted": 1, "batch_innermost": inner}
        for dtype in TRITON_TYPES:
            expects = {"tensor-cores"} if dtype != torch.float32 else set()
            expects |= {"vector-loads"} if inner else set()
            cases.append(_KERNEL.compile_case(name, geometry, shape, dtype, settings, expects))
    return tuple(cases)


COMPILE_CASES: tuple[CompileCase, ...] = _compile_cases()
