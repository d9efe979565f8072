"""Block-sparse convolution: an implicit matrix product that visits only the stored blocks of the weight.

One program = one block of output channels x one tile of output pixels, in channels_last. It walks the block's
index list; a step is one `[block_out, block_in] x [block_in, pixels]` product on tensor cores, the weight on the
A side (pixels, where block_out is less than the 64 rows that WGMMA has). Weight blocks are packed one after the
other, so their loads are aligned whatever the channels are.

The address of a step's input depends on an index. Loaded in the step itself, the index load eats stages of the
software pipeline: at 4 stages 64 x 64 blocks then kept 2 inputs in flight on sm_90 and none on sm_80. Here each
step loads the next one's index: 4 and 3 (by the shared memory of the compiled kernels, Triton 3.9).
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
from prunebench_kernels.sparse.tile_pixels import finish, pixel_place


@triton.jit
def block_convolution_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    x,
    values,
    pointers,
    columns,
    bias,
    residual,
    y,
    BATCH: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    BORDER: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
    PIXELS_FIRST: tl.constexpr,
):
    """x `[N, H, W, C]`, values `[blocks, BLOCK_OUT, BLOCK_IN]`, y and residual `[N, OH, OW, K]`."""
    ROWS: tl.constexpr = (OUT_CHANNELS + BLOCK_OUT - 1) // BLOCK_OUT
    INPUT_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_IN - 1) // BLOCK_IN
    # Programs of one tile of pixels stand side by side: they read the same input.
    row = tl.program_id(0) % ROWS
    tile = tl.program_id(0) // ROWS
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < BATCH * OUT_H * OUT_W
    image, i, j = pixel_place(pixel, BATCH, OUT_H, OUT_W, False)
    top = i * STRIDE_H - PADDING_H
    left = j * STRIDE_W - PADDING_W
    x_start = ((image * HEIGHT + top) * WIDTH + left) * IN_CHANNELS
    within_out = tl.arange(0, BLOCK_OUT)
    within_in = tl.arange(0, BLOCK_IN)
    w_at = values + within_out[:, None] * BLOCK_IN + within_in[None, :]
    x_at = x + (within_in[:, None] + x_start[None, :])

    total = tl.zeros((BLOCK_OUT, PIXELS), dtype=tl.float32)
    if PIXELS_FIRST:
        total = tl.trans(total)
    start = tl.load(pointers + row)
    end = tl.load(pointers + row + 1)
    column = tl.load(columns + start, mask=start < end, other=0)
    for position in tl.range(start, end, num_stages=STAGES):
        following = tl.load(columns + position + 1, mask=position + 1 < end, other=0)
        first = column % INPUT_BLOCKS * BLOCK_IN
        tap = column // INPUT_BLOCKS
        down = tap // KERNEL_W * DILATION_H
        right = tap % KERNEL_W * DILATION_W
        wanted = inside
        if BORDER:
            wanted &= (top + down >= 0) & (top + down < HEIGHT) & (left + right >= 0) & (left + right < WIDTH)
        wanted = wanted[None, :]
        if IN_CHANNELS % BLOCK_IN != 0:
            wanted = wanted & (first + within_in < IN_CHANNELS)[:, None]
        w = tl.load(w_at + position * (BLOCK_OUT * BLOCK_IN))
        b = tl.load(x_at + ((down * WIDTH + right) * IN_CHANNELS + first), mask=wanted, other=0.0)
        if PIXELS_FIRST:
            total = tl.dot(tl.trans(b), tl.trans(w), total, input_precision=PRECISION)
        else:
            total = tl.dot(w, b, total, input_precision=PRECISION)
        column = following

    if PIXELS_FIRST:
        total = tl.trans(total)
    channel = row * BLOCK_OUT + within_out
    at = channel[:, None] + (pixel * OUT_CHANNELS)[None, :]
    valid = inside[None, :]
    if OUT_CHANNELS % BLOCK_OUT != 0:
        valid = valid & (channel < OUT_CHANNELS)[:, None]
        channel = tl.minimum(channel, OUT_CHANNELS - 1)
    finish(total, bias, residual, y, channel[:, None], at, valid, HAS_BIAS, HAS_RESIDUAL, RELU)


def _sizes(
    x_shape: Sequence[int],
    geometry: Geometry,
    dtype: torch.dtype,
    settings: Mapping[str, int],
    chosen: Configuration,
) -> dict[str, Any]:
    sizes = {"PIXELS": chosen.pixels, "STAGES": chosen.stages, "PRECISION": ieee_or_tf32()}
    sizes |= {"BLOCK_OUT": settings["block_out"], "BLOCK_IN": settings["block_in"]}
    return sizes | {"PIXELS_FIRST": settings["block_out"] < 64}


_KERNEL = PixelKernel("block", block_convolution_kernel, _sizes, one_block=True)
launch = _KERNEL.launch


def _compile_cases() -> tuple[CompileCase, ...]:
    cases = []
    for name, geometry, shape, block_out, block_in in (
        ("64x64", Geometry(128, 128, padding=(1, 1)), (128, 128, 16, 16), 64, 64),
        ("64x64 stride 2", Geometry(64, 128, stride=(2, 2), padding=(1, 1)), (128, 64, 32, 32), 64, 64),
        ("64x64 1x1", Geometry(256, 64, (1, 1)), (128, 256, 8, 8), 64, 64),
        ("128x64", Geometry(512, 512, padding=(1, 1)), (256, 512, 14, 14), 128, 64),
        ("32x32", Geometry(128, 128, padding=(1, 1)), (128, 128, 16, 16), 32, 32),
        ("16x16", Geometry(128, 128, padding=(1, 1)), (128, 128, 16, 16), 16, 16),
    ):
        settings = {"block_out": block_out, "block_in": block_in}
        for dtype in TRITON_TYPES:
            expects = {"vector-loads"} | ({"tensor-cores"} if dtype != torch.float32 else set())
            cases.append(_KERNEL.compile_case(name, geometry, shape, dtype, settings, expects))
    return tuple(cases)


COMPILE_CASES: tuple[CompileCase, ...] = _compile_cases()
