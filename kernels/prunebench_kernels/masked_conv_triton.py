"""Triton kernel of the masked convolution and of its input gradient: one implicit GEMM.

A tile of outputs [rows = channels, columns = pixels] sums over taps x channels the products of the weight, on the
A side of the dot (there it may be multiplied by its mask in registers), and shifted input pixels on the B side.

dgrad with stride (sh, sw) splits dx into sh * sw parity classes, h = i * sh + a: each reads dy without gaps through
its own taps, r = first + j * step, at rows i + base - j * shift, so nothing is multiplied by inserted zeros.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.masked_conv_compile_cases import Precision, cases_of, expectations
from prunebench_kernels.masked_conv_geometry import Configuration, Geometry, compute_name
from prunebench_kernels.masked_conv_weight_triton import as_bytes, launch_product


@triton.jit
def _taps(
    phase,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    STEP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """First tap, number of taps and first input position, along one axis, of outputs in one parity class."""
    first = phase * 0
    count = phase * 0 + KERNEL
    base = phase * 0 - PADDING
    if TRANSPOSED:
        first += STEP
        for tap in tl.static_range(STEP):
            hit = (phase + PADDING - tap * DILATION) % STRIDE == 0
            first = tl.where(hit, tap, first)  # at most one tap below STEP hits
        count = tl.where(first < STEP, tl.maximum(KERNEL - first + STEP - 1, 0) // STEP, 0)
        base = (phase + PADDING - first * DILATION) // STRIDE  # exact where a tap hits
    return first, count, base


@triton.jit
def masked_conv2d_kernel(  # noqa: PLR0913 - strides and geometry
    x,
    weight,
    mask,
    bias,
    y,
    batch,
    x_height,
    x_width,
    y_height,
    y_width,
    weight_stride_group,
    weight_stride_row,
    weight_stride_channel,
    weight_stride_r,
    weight_stride_s,
    mask_stride_group,
    mask_stride_row,
    mask_stride_channel,
    mask_stride_r,
    mask_stride_s,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """y = conv(x, weight * mask) + bias, or TRANSPOSED: y = dx from x = dy. ROWS, CHANNELS are of one group."""
    row_blocks: tl.constexpr = (ROWS + BLOCK_ROWS - 1) // BLOCK_ROWS
    channel_blocks: tl.constexpr = (CHANNELS + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS
    # Neighbours in launch order share the pixels: they are read from DRAM once.
    row = tl.program_id(0) % row_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    pixel = tl.program_id(0) // row_blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    group = tl.program_id(1)
    OUT_H: tl.constexpr = STRIDE_H if TRANSPOSED else 1
    OUT_W: tl.constexpr = STRIDE_W if TRANSPOSED else 1
    IN_H: tl.constexpr = 1 if TRANSPOSED else STRIDE_H
    IN_W: tl.constexpr = 1 if TRANSPOSED else STRIDE_W
    SHIFT_H: tl.constexpr = -(DILATION_H * STEP_H // STRIDE_H) if TRANSPOSED else DILATION_H
    SHIFT_W: tl.constexpr = -(DILATION_W * STEP_W // STRIDE_W) if TRANSPOSED else DILATION_W
    phase_h = tl.program_id(2) // OUT_W
    phase_w = tl.program_id(2) % OUT_W
    first_h, count_h, base_h = _taps(phase_h, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, STEP_H, TRANSPOSED)
    first_w, count_w, base_w = _taps(phase_w, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, STEP_W, TRANSPOSED)
    class_height = (y_height - phase_h + OUT_H - 1) // OUT_H
    class_width = (y_width - phase_w + OUT_W - 1) // OUT_W
    valid = pixel < batch * class_height * class_width
    sample = pixel // (class_height * class_width)
    i = pixel // class_width % class_height
    j = pixel % class_width
    x_i = i * IN_H + base_h
    x_j = j * IN_W + base_w
    if WIDE:
        sample = sample.to(tl.int64)
        group = group.to(tl.int64)
    y_row = i * OUT_H + phase_h
    y_column = j * OUT_W + phase_w
    x_pixels = x_height * x_width
    if CHANNELS_LAST:
        x_at = ((sample * x_height + x_i) * x_width + x_j) * (CHANNELS * GROUPS) + group * CHANNELS
        y_at = ((sample * y_height + y_row) * y_width + y_column) * (ROWS * GROUPS) + group * ROWS
    else:
        x_at = (sample * (CHANNELS * GROUPS) + group * CHANNELS) * x_pixels + x_i * x_width + x_j
        y_at = (sample * (ROWS * GROUPS) + group * ROWS) * (y_height * y_width) + y_row * y_width + y_column
    weight += group * weight_stride_group
    mask += group * mask_stride_group
    taps_w = tl.maximum(count_w, 1)
    total = tl.zeros((BLOCK_ROWS, BLOCK_PIXELS), dtype=tl.float32)
    # One flat loop: a nest would pipeline only its inner one, a single step long for few channels.
    for step in range(count_h * count_w * channel_blocks):
        channel = step % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
        tap_h = step // channel_blocks // taps_w
        tap_w = step // channel_blocks % taps_w
        down = tap_h * SHIFT_H
        right = tap_w * SHIFT_W
        inside = valid & (x_i + down >= 0) & (x_i + down < x_height)
        inside = inside & (x_j + right >= 0) & (x_j + right < x_width)
        if CHANNELS_LAST:
            shifted = x_at + (down * x_width + right) * (CHANNELS * GROUPS)
            b_at = shifted[None, :] + channel[:, None]
        else:
            shifted = x_at + down * x_width + right
            b_at = shifted[None, :] + (channel * x_pixels)[:, None]
        b = tl.load(x + b_at, mask=inside[None, :] & (channel < CHANNELS)[:, None], other=0.0)
        r = first_h + tap_h * STEP_H
        s = first_w + tap_w * STEP_W
        a_valid = (row < ROWS)[:, None] & (channel < CHANNELS)[None, :]
        w_at = (r * weight_stride_r + s * weight_stride_s) + (row * weight_stride_row)[:, None]
        a = tl.load(weight + w_at + (channel * weight_stride_channel)[None, :], mask=a_valid, other=0.0)
        if HAS_MASK:
            m_at = (r * mask_stride_r + s * mask_stride_s) + (row * mask_stride_row)[:, None]
            m = tl.load(mask + m_at + (channel * mask_stride_channel)[None, :], mask=a_valid, other=0)
            a = a.to(tl.float32) * m.to(tl.float32)
        total = tl.dot(a.to(x.dtype.element_ty), b, total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + group * ROWS + row, mask=row < ROWS, other=0.0).to(tl.float32)[:, None]
    row_stride = 1 if CHANNELS_LAST else y_height * y_width
    at = y_at[None, :] + (row * row_stride)[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(row < ROWS)[:, None] & valid[None, :])


def launch_forward(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    configuration: Configuration,
    out: Tensor | None = None,
) -> Tensor:
    """y = conv2d(x, weight * mask) + bias in x's memory format, written into `out` if given."""
    if out is None:
        out = torch.empty(geometry.y_shape, dtype=x.dtype, device=x.device, memory_format=geometry.layout)
    if not configuration.fuse_mask:
        made = torch.empty_like(weight, dtype=x.dtype, memory_format=torch.channels_last)
        weight, mask = launch_product(weight, mask, made), made
    _launch(x, weight, mask, bias, geometry, configuration, out)
    return out


def launch_dgrad(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor,
    geometry: Geometry,
    configuration: Configuration,
    out: Tensor | None = None,
) -> Tensor:
    """dx, the gradient of x, in x's memory format, written into `out` if given."""
    if out is None:
        shape = (geometry.batch, geometry.in_channels, geometry.height, geometry.width)
        out = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=geometry.layout)
    if not configuration.fuse_mask:
        # Output channels lie next to each other: they are what dgrad sums over.
        _, channels, kernel_h, kernel_w = weight.shape
        made = grad.new_empty((channels, kernel_h, kernel_w, weight.shape[0])).permute(3, 0, 1, 2)
        weight, mask = launch_product(weight, mask, made), made
    _launch(grad, weight, mask, None, geometry, configuration, out, transposed=True)
    return out


def _launch(  # noqa: PLR0913 - the tensors of a convolution
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    configuration: Configuration,
    out: Tensor,
    transposed: bool = False,
) -> None:
    """Launch on tensors of the layout that `geometry` names; `mask` is `weight` itself: a product already."""
    outputs = geometry.group_shape[0]
    steps = geometry.stride if transposed else (1, 1)
    extents = (-(-out.shape[2] // steps[0]), -(-out.shape[3] // steps[1]))
    columns = triton.cdiv(out.shape[0] * extents[0] * extents[1], configuration.columns)
    strides = []
    for operand in (weight, mask):
        k, c, r, s = operand.stride()
        strides += [outputs * k, *((c, k) if transposed else (k, c)), r, s]
    constants = _constants(
        geometry,
        configuration,
        "tf32" if compute_name(x.dtype) == "tf32" else "ieee",
        transposed=transposed,
        has_mask=mask is not weight,
        has_bias=bias is not None,
        wide=max(x.numel(), out.numel()) >= 2**31 - 2**20,
    )
    tiles = triton.cdiv(constants["ROWS"], configuration.rows) * columns
    with on_device(x):
        masked_conv2d_kernel[tiles, geometry.groups, steps[0] * steps[1]](
            x.contiguous(memory_format=geometry.layout),
            weight,
            as_bytes(mask),
            x if bias is None else bias.contiguous(),
            out,
            geometry.batch,
            x.shape[2],
            x.shape[3],
            out.shape[2],
            out.shape[3],
            *strides,
            **constants,
            num_warps=configuration.num_warps,
            num_stages=configuration.num_stages,
            enable_fp_fusion=True,
        )


def _constants(
    geometry: Geometry,
    configuration: Configuration,
    precision: str,
    *,
    transposed: bool,
    has_mask: bool,
    has_bias: bool = False,
    wide: bool = False,
) -> dict[str, Any]:
    """The kernel's compile-time arguments; transposed: input and output channels change places."""
    rows, channels = geometry.group_shape[::-1] if transposed else geometry.group_shape
    gaps = zip("HW", geometry.stride, geometry.dilation)
    return {
        "GROUPS": geometry.groups,
        "ROWS": rows,
        "CHANNELS": channels,
        **geometry_constants(geometry),
        **{
            f"STEP_{axis}": stride // math.gcd(stride, gap) if transposed else 1 for axis, stride, gap in gaps
        },
        "TRANSPOSED": transposed,
        "CHANNELS_LAST": geometry.channels_last,
        "HAS_MASK": has_mask,
        "HAS_BIAS": has_bias,
        "WIDE": wide,
        "PRECISION": precision,
        "BLOCK_ROWS": configuration.rows,
        "BLOCK_PIXELS": configuration.columns,
        "BLOCK_CHANNELS": configuration.depth,
    }


def geometry_constants(geometry: Geometry) -> dict[str, int]:
    """Kernel size, stride, padding and dilation as the kernels' constants."""
    pairs = {
        "KERNEL": geometry.kernel,
        "STRIDE": geometry.stride,
        "PADDING": geometry.padding,
        "DILATION": geometry.dilation,
    }
    return {f"{name}_{axis}": value for name, pair in pairs.items() for axis, value in zip("HW", pair)}


def compile_case(
    name: str, part: str, geometry: Geometry, precision: Precision, configuration: Configuration
) -> CompileCase:
    """One signature of the kernel. A fused weight and mask are float32, channels_last (master weights)."""
    transposed, fused = part == "dgrad", configuration.fuse_mask
    dot = "tf32" if precision.label == "tf32" else "ieee"
    constants = _constants(
        geometry, configuration, dot, transposed=transposed, has_mask=fused, has_bias=not transposed
    )
    pointer, weight = precision.pointer, "*fp32" if fused else precision.pointer
    types = {"x": pointer, "weight": weight, "mask": weight, "bias": "*fp32", "y": pointer}
    names = [entry for entry in masked_conv2d_kernel.arg_names if entry not in constants]
    axis = "row" if fused and transposed else "channel"
    units = (f"weight_stride_{axis}", f"mask_stride_{axis}")
    strides = [entry for entry in names if "_stride_" in entry and entry not in units]
    signature = {entry: types.get(entry, "constexpr" if entry in units else "i32") for entry in names}
    return CompileCase(
        name=f"masked_conv2d-{part}-{name}",
        kernel=masked_conv2d_kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs={**dict.fromkeys(units, 1), **constants},
        divisible_by_16=(*types, *(strides if min(geometry.group_shape) % 16 == 0 else ())),
        num_warps=configuration.num_warps,
        num_stages=configuration.num_stages,
        expects=expectations(part, geometry, precision, configuration),
    )


COMPILE_CASES = tuple(
    compile_case(name, part, geometry, precision, made)
    for part in ("forward", "dgrad")
    for name, geometry, precision, made in cases_of(part)
)
