"""Triton kernel of the weight gradient G of a convolution: split over the sum, deterministic.

G[k, (r, s, c)] = sum over pixels of dy[k, pixel] * x[c, pixel shifted by tap (r, s)]. The sum over N * OH * OW pixels
is cut into `splits` parts, each written whole into a float32 workspace `[splits, K, R, S, C]`; the epilogue
(masked_conv_weight_triton) adds them in order and writes both gradients. No atomics: runs repeat bit by bit.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.masked_conv_compile_cases import Precision, cases_of, expectations
from prunebench_kernels.masked_conv_geometry import Configuration, Geometry, compute_name
from prunebench_kernels.masked_conv_triton import geometry_constants


@triton.jit
def masked_conv2d_wgrad_kernel(  # noqa: PLR0913 - geometry
    grad,
    x,
    workspace,
    batch,
    splits,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    X_HEIGHT: tl.constexpr,
    X_WIDTH: tl.constexpr,
    Y_HEIGHT: tl.constexpr,
    Y_WIDTH: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """One tile [rows, channels] of one tap of one split of G. ROWS and CHANNELS are of one group.

    Extents of the images are constants: pixels are taken apart in every step, by multiplications then.
    """
    row_blocks: tl.constexpr = (ROWS + BLOCK_ROWS - 1) // BLOCK_ROWS
    channel_blocks: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    row = tl.program_id(0) % row_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    rest = tl.program_id(0) // row_blocks
    channel = rest % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tap = rest // channel_blocks
    r = tap // KERNEL_W
    s = tap % KERNEL_W
    split = tl.program_id(1)
    group = tl.program_id(2)
    pixels = batch * (Y_HEIGHT * Y_WIDTH)
    steps = (pixels + BLOCK_PIXELS - 1) // BLOCK_PIXELS
    share = (steps + splits - 1) // splits
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), dtype=tl.float32)
    for step in range(split * share, tl.minimum((split + 1) * share, steps)):
        pixel = step * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
        valid = pixel < pixels
        sample = pixel // (Y_HEIGHT * Y_WIDTH)
        place = pixel % (Y_HEIGHT * Y_WIDTH)
        i = place // Y_WIDTH * STRIDE_H - PADDING_H + r * DILATION_H
        j = place % Y_WIDTH * STRIDE_W - PADDING_W + s * DILATION_W
        inside = valid & (i >= 0) & (i < X_HEIGHT) & (j >= 0) & (j < X_WIDTH)
        if WIDE:
            sample = sample.to(tl.int64)
            pixel = pixel.to(tl.int64)
        if CHANNELS_LAST:
            a_at = (pixel * (ROWS * GROUPS))[None, :] + (group * ROWS + row)[:, None]
            b_at = ((sample * X_HEIGHT + i) * X_WIDTH + j) * (CHANNELS * GROUPS)
            b_at = b_at[:, None] + (group * CHANNELS + channel)[None, :]
        else:
            a_at = sample * (ROWS * GROUPS * Y_HEIGHT * Y_WIDTH) + place
            a_at = a_at[None, :] + ((group * ROWS + row) * (Y_HEIGHT * Y_WIDTH))[:, None]
            b_at = sample * (CHANNELS * GROUPS * X_HEIGHT * X_WIDTH) + i * X_WIDTH + j
            b_at = b_at[:, None] + ((group * CHANNELS + channel) * (X_HEIGHT * X_WIDTH))[None, :]
        a = tl.load(grad + a_at, mask=valid[None, :] & (row < ROWS)[:, None], other=0.0)
        b = tl.load(x + b_at, mask=inside[:, None] & (channel < CHANNELS)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    k = split.to(tl.int64) * (GROUPS * ROWS) + group * ROWS + row
    at = (k * (KERNEL_H * KERNEL_W) + tap)[:, None] * CHANNELS + channel[None, :]
    tl.store(workspace + at, total, mask=(row < ROWS)[:, None] & (channel < CHANNELS)[None, :])


def launch_wgrad(
    grad: Tensor,
    x: Tensor,
    geometry: Geometry,
    configuration: Configuration,
    workspace: Tensor | None = None,
) -> Tensor:
    """The parts of G, float32 `[splits, K, R, S, C / groups]`, written into `workspace` if given."""
    rows, channels = geometry.group_shape
    shape = (configuration.splits, geometry.out_channels, *geometry.kernel, channels)
    if workspace is None:
        workspace = torch.empty(shape, dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(rows, configuration.rows) * triton.cdiv(channels, configuration.columns)
    grid = (tiles * geometry.kernel[0] * geometry.kernel[1], configuration.splits, geometry.groups)
    constants = _constants(
        geometry,
        configuration,
        "tf32" if compute_name(x.dtype) == "tf32" else "ieee",
        wide=max(x.numel(), grad.numel()) >= 2**31 - 2**20,
    )
    with on_device(x):
        masked_conv2d_wgrad_kernel[grid](
            grad.contiguous(memory_format=geometry.layout),
            x.contiguous(memory_format=geometry.layout),
            workspace,
            geometry.batch,
            configuration.splits,
            **constants,
            num_warps=configuration.num_warps,
            num_stages=configuration.num_stages,
            enable_fp_fusion=True,
        )
    return workspace


def _constants(
    geometry: Geometry, configuration: Configuration, precision: str, *, wide: bool = False
) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    return {
        "GROUPS": geometry.groups,
        "ROWS": geometry.group_shape[0],
        "CHANNELS": geometry.group_shape[1],
        "X_HEIGHT": geometry.height,
        "X_WIDTH": geometry.width,
        "Y_HEIGHT": geometry.output[0],
        "Y_WIDTH": geometry.output[1],
        **geometry_constants(geometry),
        "CHANNELS_LAST": geometry.channels_last,
        "WIDE": wide,
        "PRECISION": precision,
        "BLOCK_ROWS": configuration.rows,
        "BLOCK_CHANNELS": configuration.columns,
        "BLOCK_PIXELS": configuration.depth,
    }


def compile_case(
    name: str, geometry: Geometry, precision: Precision, configuration: Configuration
) -> CompileCase:
    """One signature of the kernel."""
    constants = _constants(geometry, configuration, "tf32" if precision.label == "tf32" else "ieee")
    types = {"grad": precision.pointer, "x": precision.pointer, "workspace": "*fp32"}
    return CompileCase(
        name=f"masked_conv2d-wgrad-{name}",
        kernel=masked_conv2d_wgrad_kernel,
        signature={**types, "batch": "i32", "splits": "i32", **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
        divisible_by_16=(*types, "batch"),
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
        expects=expectations("wgrad", geometry, precision, configuration),
    )


COMPILE_CASES = tuple(
    compile_case(name, geometry, precision, made) for name, geometry, precision, made in cases_of("wgrad")
)
