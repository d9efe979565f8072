"""Sparse convolution for inference: y = relu(conv2d(x, W) + bias + residual), W packed.

`sparse_conv2d` and the module `SparseConv2d`; a Triton kernel for each of the layouts `block` and `direct`. What a call
needs besides its tensors (grid, constants, the compiled kernel) is found out once for each input
shape and kept with the packed weight.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import functools
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from prunebench_kernels.dispatch import (
    ArgumentError,
    Choice,
    Launch,
    LayoutError,
    check_device,
    check_tensor,
    explains,
    is_traced,
    jit,
    limits,
    requested,
    select,
    tl,
)
from prunebench_kernels.layouts import (
    BLOCK,
    DIRECT,
    FORMATS,
    LAYOUTS,
    SEMI_STRUCTURED,
    Geometry,
    PackedWeight,
    arrange,
    decode,
    empty,
    format_of,
    is_arranged,
    layout_of,
    library_convolution,
    pack,
    strides,
)
from prunebench_kernels.measured import Decision, Measuring, device_name, key_of, precision, versions

AUTO = "auto"
LARGEST_INT32 = 2**31 - 1
_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# --- what the kernels share -----------------------------------------------------------------------------------
# Output pixels of the whole batch are numbered in the order in which they lie in memory: (n, i, j) for channels_last,
# (i, j, n) where the batch is innermost. All sizes are constants, so that divisions become multiplications and the
# compiler sees which loads are aligned.


@jit
def _taps_outside(top, left, valid, X_SIZE: tl.constexpr, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """One integer a pixel: bit r is set if row r of the kernel lies outside the image, bit 15 + s for column s.

    Tap (r, s) may be loaded where `outside & (1 << r | 32768 << s)` is zero: one test per load, however many
    borders there are. Bit 30 is always set, for taps that are not to be loaded at all; all are, where `valid`
    is false.
    """
    ROWS: tl.constexpr = KERNEL[0]
    COLUMNS: tl.constexpr = KERNEL[1]
    bits = tl.full(top.shape, 1 << 30, dtype=tl.int32)
    for r in tl.static_range(ROWS):
        row = top + r * DILATION[0]
        bits |= ((row < 0) | (row >= X_SIZE[0])).to(tl.int32) << r
    for s in tl.static_range(COLUMNS):
        column = left + s * DILATION[1]
        bits |= ((column < 0) | (column >= X_SIZE[1])).to(tl.int32) << (15 + s)
    return tl.where(valid, bits, (1 << 31) - 1)


@jit
def _finish(  # noqa: PLR0913 - pointers, and constants of the call
    total, bias, residual, y, channel, at, valid,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Store relu(total + bias[channel] + residual[at]) at y[at]; `channel` has total's rank."""
    if HAS_BIAS:
        total += tl.load(bias + channel).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
    if RELU:
        # A comparison, unlike maximum, hands NaN through, as torch does.
        total = tl.where(total < 0, 0.0, total)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=valid)


# --- block ----------------------------------------------------------------------------------------------------


@jit
def block_convolution_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    x, values, pointers, columns, bias, residual, y,
    BATCH: tl.constexpr, IN_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr, X_SIZE: tl.constexpr,
    Y_SIZE: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """x `[N, H, W, C]`, values `[blocks, BLOCK_OUT, BLOCK_IN]`, y and residual `[N, OH, OW, K]`.

    An implicit matrix product that visits only the stored blocks. One program = one block of output channels x one
    tile of output pixels. It walks the block's index list; a step is one `[BLOCK_OUT, BLOCK_IN] x [BLOCK_IN, PIXELS]`
    product on tensor cores, the weight on the A side (pixels, where BLOCK_OUT is less than the 64 rows that WGMMA
    has). Weight blocks are packed one after the other, so their loads are aligned whatever the channels are.

    The address of a step's input depends on an index. Loaded in the step itself, the index load eats stages of the
    software pipeline: at 4 stages 64 x 64 blocks then kept 2 inputs in flight on sm_90 and none on sm_80. Here each
    step loads the next one's index: 4 and 3 (by the shared memory of the compiled kernels, Triton 3.9).
    """
    ROWS: tl.constexpr = (OUT_CHANNELS + BLOCK_OUT - 1) // BLOCK_OUT
    INPUT_BLOCKS: tl.constexpr = (IN_CHANNELS + BLOCK_IN - 1) // BLOCK_IN
    PIXELS_FIRST: tl.constexpr = BLOCK_OUT < 64
    # Programs of one tile of pixels stand side by side: they read the same input.
    row = tl.program_id(0) % ROWS
    tile = tl.program_id(0) // ROWS
    if WIDE:
        tile = tile.to(tl.int64)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < BATCH * Y_SIZE[0] * Y_SIZE[1]
    image = pixel // (Y_SIZE[0] * Y_SIZE[1])
    place = pixel % (Y_SIZE[0] * Y_SIZE[1])
    top = place // Y_SIZE[1] * STRIDE[0] - PADDING[0]
    left = place % Y_SIZE[1] * STRIDE[1] - PADDING[1]
    x_start = ((image * X_SIZE[0] + top) * X_SIZE[1] + left) * IN_CHANNELS
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
        down = tap // KERNEL[1] * DILATION[0]
        right = tap % KERNEL[1] * DILATION[1]
        wanted = inside
        if BORDER:
            wanted &= (
                (top + down >= 0)
                & (top + down < X_SIZE[0])
                & (left + right >= 0)
                & (left + right < X_SIZE[1])
            )
        wanted = wanted[None, :]
        if IN_CHANNELS % BLOCK_IN != 0:
            wanted = wanted & (first + within_in < IN_CHANNELS)[:, None]
        w = tl.load(w_at + position * (BLOCK_OUT * BLOCK_IN))
        b = tl.load(x_at + ((down * X_SIZE[1] + right) * IN_CHANNELS + first), mask=wanted, other=0.0)
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
    _finish(total, bias, residual, y, channel[:, None], at, valid, HAS_BIAS, HAS_RESIDUAL, RELU)


# --- direct ---------------------------------------------------------------------------------------------------


@jit
@no_type_check  # tuples that grow
def direct_convolution_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    x, table, pointers, order, bias, residual, y,
    BATCH: tl.constexpr, OUT_CHANNELS: tl.constexpr, X_SIZE: tl.constexpr, Y_SIZE: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    SPLITS: tl.constexpr, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr, UNROLL: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """x `[C, H, W, N]`, table `[weights, 3]` (`direct_table`), y and residual `[K, OH, OW, N]`.

    On CUDA cores: every weight is read once per tile of pixels, nothing is unfolded. One program = one tile of output
    pixels, CHUNKS runs of RUN, which it keeps for CHANNELS output channels side by side, one a warp; SPLITS programs
    share the channels of a tile. A step takes the next weight of each channel and a run of pixels of the input row it
    names. Neighbouring channels have nearly the same number of weights (they are sorted), so the warps stay together,
    and, walking the input channels in the same order, they find each other's rows in L1.

    Borders are masked: which taps of a pixel lie inside the image is one integer per pixel, computed once per
    program, so that a border costs one test a load. The other choice, padding x first, saves that test and costs a
    pass over x: as many bytes as the convolution itself moves where in- and output are equally large.

    The chunks are tensors of their own: as an axis of one tensor they make Triton 3.6 load weights again for each of
    them. PAIRS: two bfloat16 numbers are loaded as one word, which is widened by a shift and a mask; unpacked by
    conversion the second costs two instructions. In the loop of a bf16 3x3 on sm_90, 32 pixels a thread, that comes
    to 2.9 instructions a multiply-add with Triton 3.6 and 3.9.
    """
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    EACH: tl.constexpr = 2 if PAIRS else 1
    WORDS: tl.constexpr = RUN // EACH
    STEP: tl.constexpr = BATCH // EACH
    if PAIRS:
        x = x.to(tl.pointer_type(tl.int32))
    x_at = ()
    outside = ()
    for chunk in tl.static_range(CHUNKS):
        word = (tile * CHUNKS + chunk) * WORDS + tl.arange(0, WORDS)
        inside = word < STEP * Y_SIZE[0] * Y_SIZE[1]
        place = word // STEP
        top = place // Y_SIZE[1] * STRIDE[0] - PADDING[0]
        left = place % Y_SIZE[1] * STRIDE[1] - PADDING[1]
        x_at += ((x + ((top * X_SIZE[1] + left) * STEP + word % STEP))[None, :],)
        if BORDER:
            bits = _taps_outside(top, left, inside, X_SIZE, KERNEL, DILATION)
        else:
            bits = tl.where(inside, 1 << 30, (1 << 31) - 1)
        outside += (bits[None, :],)

    for group in range(tl.program_id(1), (OUT_CHANNELS + CHANNELS - 1) // CHANNELS, SPLITS):
        position = group * CHANNELS + tl.arange(0, CHANNELS)
        used = position < OUT_CHANNELS
        first = tl.load(pointers + position, mask=used, other=0)
        count = tl.load(pointers + position + 1, mask=used, other=0) - first
        longest = tl.max(count)
        total = ()
        for _ in tl.static_range(CHUNKS * EACH):
            total += (tl.zeros((CHANNELS, WORDS), dtype=tl.float32),)
        at_weight = table + first * 3
        for step in tl.range(0, longest, loop_unroll_factor=UNROLL):
            offset = tl.load(at_weight)[:, None]
            # Bit 30 is no tap's: a channel without weights left loads nothing.
            needed = tl.load(at_weight + 1, mask=step < count, other=1 << 30)[:, None]
            value = tl.load(at_weight + 2).to(tl.float32, bitcast=True)[:, None]
            at_weight += 3
            if WIDE:
                offset = offset.to(tl.int64)
            offset = offset * STEP
            summed = ()
            for chunk in tl.static_range(CHUNKS):
                loaded = tl.load(x_at[chunk] + offset, mask=(outside[chunk] & needed) == 0, other=0)
                if PAIRS:
                    low = (loaded << 16).to(tl.float32, bitcast=True)
                    high = (loaded & -65536).to(tl.float32, bitcast=True)
                    summed += (total[2 * chunk] + value * low, total[2 * chunk + 1] + value * high)
                else:
                    summed += (total[chunk] + value * loaded.to(tl.float32),)
            total = summed
        output = tl.load(order + position, mask=used, other=0)
        if WIDE:
            output = output.to(tl.int64)
        for chunk in tl.static_range(CHUNKS):
            whole = total[EACH * chunk]
            if PAIRS:
                whole = tl.join(whole, total[2 * chunk + 1]).reshape(CHANNELS, RUN)
            pixel = (tile * CHUNKS + chunk) * RUN + tl.arange(0, RUN)
            at = pixel[None, :] + (output * (Y_SIZE[0] * Y_SIZE[1] * BATCH))[:, None]
            if RUN == 32:
                # Else the aligned stores would decide how a warp's pixels are dealt out, and its loads of x would
                # scatter.
                at = tl.multiple_of(at, [1, 1])
            valid = (pixel < BATCH * Y_SIZE[0] * Y_SIZE[1])[None, :] & used[:, None]
            _finish(whole, bias, residual, y, output[:, None], at, valid, HAS_BIAS, HAS_RESIDUAL, RELU)


def direct_table(packed: PackedWeight, height: int, width: int) -> Tensor:
    """What the kernel reads of each weight, int32 `[weights + C / groups * taps, 3]`: where its input stands from the
    pixel's own, in runs of the batch; the bits of its tap (`_taps_outside`); and its value as float32.

    The channels of a group are read as far as the longest of them reaches, so rows of zeros follow the last.
    """
    geometry = packed.geometry
    channel, row, column = decode(packed.tensors["codes"])
    offset = (channel * height + row * geometry.dilation[0]) * width + column * geometry.dilation[1]
    needed = torch.bitwise_left_shift(1, row) | torch.bitwise_left_shift(32768, column)
    value = packed.values.float().view(torch.int32)
    rows = torch.stack((offset.to(torch.int32), needed.to(torch.int32), value), 1)
    return functional.pad(rows, (0, 0, 0, geometry.weight_shape[1] * geometry.taps))


# --- tiles ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvTile:
    """How a kernel is launched.

    `pixels` is a program's tile of output pixels. `splits` programs share the output channels of one tile
    (`direct`). `channels` are walked side by side and `unroll` steps unrolled by `direct`.
    """

    pixels: int
    warps: int
    stages: int = 1
    splits: int = 1
    channels: int = 8
    unroll: int = 2


def tile_of(packed: PackedWeight, x_shape: Sequence[int], device: torch.device) -> ConvTile:
    """The tile that follows from sizes alone."""
    geometry, dtype = packed.geometry, packed.dtype
    pixels = _pixels(geometry, x_shape)
    places, _ = limits(device)
    if packed.layout == "block":
        return _block_tile(packed, pixels, places)
    groups = -(-geometry.out_channels // 8)
    tile = _direct_pixels(run_length(x_shape[0], dtype), pixels, groups, places)
    return ConvTile(tile, warps=8, splits=_splits(pixels, tile, groups, places))


def _pixels(geometry: Geometry, x_shape: Sequence[int]) -> int:
    size = geometry.output_size(x_shape[2], x_shape[3])
    return x_shape[0] * size[0] * size[1]


def _block_tile(packed: PackedWeight, pixels: int, places: int) -> ConvTile:
    """Three stages of 16 and 8 KiB: at block 90 % a list is one to seven steps long, and a fourth stage only delays the
    first (measured on an H100 with the training kernel of this form: 12.5 us against 15.4 on layer1 of ResNet-18, 6.9
    against 10.1 on layer3). IEEE float32 products need registers instead.

    Of all kernels as called with sm_80, sm_90 and sm_100 in Triton 3.6 and 3.9, one spills: float32 with 128 channels
    on sm_80 in 3.9, four registers.
    """
    if packed.dtype == torch.float32:
        return ConvTile(64, warps=8, stages=2)
    block_out = packed.settings["block_out"]
    tile = 128 if -(-pixels // 128) * -(-packed.geometry.out_channels // block_out) >= places else 64
    return ConvTile(tile, warps=8 if block_out == 128 and tile == 128 else 4, stages=3)


def _direct_pixels(run: int, pixels: int, groups: int, places: int) -> int:
    """The largest tile that leaves three programs a multiprocessor: reading a weight takes some 11 instructions of
    every thread, whether for 8 pixels or for 32. Single pixels take two registers of address each."""
    tile = run
    while tile < min(pixels, 1024 if run > 32 else 256) and -(-pixels // (2 * tile)) * groups >= 3 * places:
        tile *= 2
    return tile


def _splits(pixels: int, tile: int, groups: int, places: int) -> int:
    """Programs that share a tile: as few as put eight on a multiprocessor, since those of one tile read the same
    input."""
    return max(1, min(groups, -(-8 * places // -(-pixels // tile))))


def run_length(batch: int, dtype: torch.dtype) -> int:
    """Pixels that a warp of `direct` loads at once: 32 times as many as one aligned load takes, 16 bytes at most."""
    return 32 * math.gcd(batch, 16 // dtype.itemsize)


# --- launch ---------------------------------------------------------------------------------------------------

_KERNELS: dict[str, Any] = {"block": block_convolution_kernel, "direct": direct_convolution_kernel}


class KernelCall:
    """The kernel of a packed weight for one shape of x, epilogue and tile: a call's all but x, bias, residual and y."""

    def __init__(
        self, packed: PackedWeight, x: Tensor, bias: bool, residual: bool, relu: bool, tile: ConvTile | None = None
    ) -> None:  # fmt: skip
        tile = tile or tile_of(packed, x.shape, x.device)
        geometry, layout, batch = packed.geometry, packed.layout, x.shape[0]
        self.shape = geometry.output_shape(x.shape)
        self.strides = strides(self.shape, format_of(layout))
        constants = {
            "BATCH": batch, "IN_CHANNELS": geometry.in_channels, "OUT_CHANNELS": geometry.out_channels,
            "X_SIZE": tuple(x.shape[2:]), "Y_SIZE": self.shape[2:], "KERNEL": geometry.kernel,
            "STRIDE": geometry.stride, "PADDING": geometry.padding, "DILATION": geometry.dilation,
            "BORDER": geometry.padding != (0, 0), "WIDE": max(x.numel(), math.prod(self.shape)) > LARGEST_INT32,
            "HAS_BIAS": bias, "HAS_RESIDUAL": residual, "RELU": relu, "PRECISION": ieee_or_tf32(),
            "PIXELS": tile.pixels, "STAGES": tile.stages,
        }  # fmt: skip
        self.by_words, blocks = False, 1
        if layout == "direct":
            run = run_length(batch, packed.dtype)
            self.by_words = packed.dtype == torch.bfloat16 and batch % 2 == 0
            constants |= {"SPLITS": tile.splits, "CHANNELS": tile.channels, "UNROLL": tile.unroll, "RUN": run}
            constants |= {"CHUNKS": tile.pixels // run, "PAIRS": self.by_words}
            places = packed.tensors["pointers"], packed.tensors["order"]
            self.static: tuple[Tensor, ...] = (_table_of(packed, x.shape[2], x.shape[3]), *places)
        else:
            constants |= {name.upper(): value for name, value in packed.settings.items()}
            self.static = tuple(packed.tensors[name] for name in BLOCK.tensors)
            blocks = -(-geometry.out_channels // packed.settings["block_out"])
        grid = (-(-_pixels(geometry, x.shape) // tile.pixels) * blocks, tile.splits)
        kernel, warps, stages = _KERNELS[layout], tile.warps, tile.stages
        self.launch = Launch(kernel, grid, constants, num_warps=warps, num_stages=stages)

    def __call__(
        self, x: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """y, in the layout's format, in which x and residual must be; `out`, if given, is written and returned."""
        y = x.new_empty_strided(self.shape, self.strides) if out is None else out
        if bias is not None and not bias.is_contiguous():
            bias = bias.contiguous()
        if self.by_words and x.data_ptr() & 3:
            x = x.clone()  # words of two numbers lie at multiples of four bytes
        self.launch(x, *self.static, bias, residual, y)
        return y


def ieee_or_tf32() -> str:
    """Precision of float32 products: IEEE, unless torch was asked for less in matrix products.

    By `fp32_precision`, which also tells what torch.set_float32_matmul_precision set; the latter's getter raises
    once `fp32_precision` was written.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


_tables: Any = WeakTensorKeyDictionary()
"""Of each tensor of values: its tables by image size. Calls under a compiler bring tensors, but no packed weight."""


def _table_of(packed: PackedWeight, height: int, width: int) -> Tensor:
    known = _tables.setdefault(packed.values, {})
    key = (height, width, packed.geometry.numbers, packed.dtype, _version(packed))
    if key in known:
        return known[key]
    table = direct_table(packed, height, width)
    if not (table.is_cuda and torch.cuda.is_current_stream_capturing()):
        known[key] = table  # memory of a captured graph is the graph's
    return table


def _version(packed: PackedWeight) -> int:
    """Grows when the weights are written, as load_state_dict does."""
    return 0 if packed.values.is_inference() else packed.values._version


def launch(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, residual: Tensor | None = None,
    relu: bool = False, *, tile: ConvTile | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The kernel of the packed weight's layout, whatever `auto` would say; x and residual in the layout's format.

    `tile` replaces the rule's; `out`, if given, is written instead of a new tensor.
    """
    return KernelCall(packed, x, bias is not None, residual is not None, relu, tile)(x, bias, residual, out)


# --- the operation --------------------------------------------------------------------------------------------


def sparse_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """y = relu(conv2d(x, W) + bias + residual), with bias, residual and ReLU in the kernel's last step.

    x `[N, C, H, W]`, bias `[K]`, residual and y `[N, K, OH, OW]`, all in the weight's dtype and on its device.
    y is in the layout's own format (`format_of`); x and residual in another are copied first. Sums are in
    float32 (float64 for float64). For inference: raises ArgumentError, naming the argument, on wrong
    arguments, and where autograd would record the call.

    Arguments are checked, and PRUNEBENCH_KERNELS is read, at the first call of each kind: a packed weight remembers
    the shapes and strides it has seen.
    """
    if is_traced(x):
        return _traced(x, packed, bias, residual, relu, backend)
    if not isinstance(packed, PackedWeight):
        raise ArgumentError(f"packed: want a PackedWeight (see pack), got {type(packed).__name__}")
    key = (
        _signature(x),
        _signature(residual),
        relu,
        backend,
        torch.is_grad_enabled(),
        x.dtype is torch.float32 and ieee_or_tf32(),
    )
    known = packed.resolved.get(key)
    if known is None or known.bias is not bias or known.version != _version(packed):
        _check(x, packed, bias, residual)
        known = _Resolved(x, packed, bias, residual, relu, backend)
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            if len(packed.resolved) >= MOST_RESOLVED:
                packed.resolved.clear()
            packed.resolved[key] = known
    return known(x, packed, residual)


MOST_RESOLVED = 64
"""Kinds of call that a packed weight remembers; each shape of input compiles kernels of its own anyway."""


def _signature(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


class _Resolved:
    """A kind of call, checked and chosen: the launch of a kernel, or torch."""

    def __init__(
        self, x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None, relu: bool,
        backend: str | None,
    ) -> None:  # fmt: skip
        self.bias, self.relu, self.version = bias, relu, _version(packed)
        self.order = format_of(packed.layout)
        self.ready = is_arranged(x, self.order) and (residual is None or is_arranged(residual, self.order))
        self.kernel: KernelCall | None = None
        if _choose(x, packed.layout, backend).is_triton:
            self.kernel = KernelCall(packed, x, bias is not None, residual is not None, relu)

    def __call__(self, x: Tensor, packed: PackedWeight, residual: Tensor | None) -> Tensor:
        if self.kernel is None:
            return _by_torch(x, packed, self.bias, residual, self.relu)
        if not self.ready:
            x = arrange(x, self.order)
            residual = None if residual is None else arrange(residual, self.order)
        return self.kernel(x, self.bias, residual)


@explains("sparse_conv2d")
def _explain(x, packed, bias=None, *, residual=None, relu: bool = False, backend=None) -> Choice:
    _check(x, packed, bias, residual)
    return _choose(x, packed.layout, backend)


def _choose(x: Tensor, layout: str, backend: str | None) -> Choice:
    refusal = None
    if layout == "dense":
        refusal = "layout dense is the library's convolution"
    elif layout == "semi_structured":
        refusal = "layout semi_structured is the library's product of matrices"
    elif x.dtype not in _KERNEL_DTYPES:
        refusal = f"the kernel takes float32, float16 and bfloat16, not {x.dtype}"
    elif math.prod(x.shape[1:]) > LARGEST_INT32:
        refusal = f"the kernel takes images of fewer than 2^31 elements, not {tuple(x.shape[1:])}"
    # Whether a layout pays is measured against dense (`SparseConv2d`, auto), with its kernel.
    certain = f"layout {layout} was asked for, and on a GPU it is its kernel"
    return select("sparse_conv2d", backend, x.device, x.dtype, refusal=refusal, certain=certain)


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None) -> None:
    if not isinstance(packed, PackedWeight):
        raise ArgumentError(f"packed: want a PackedWeight (see pack), got {type(packed).__name__}")
    geometry = packed.geometry
    check_tensor("x", x)
    if x.dim() != 4 or x.shape[1] != geometry.in_channels:
        raise ArgumentError(f"x: want [N, {geometry.in_channels}, H, W], got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ArgumentError(f"x: is empty, {tuple(x.shape)}")
    check_device("x", x, "packed", packed.values)
    wanted = {
        "bias": (bias, (geometry.out_channels,)),
        "residual": (residual, geometry.output_shape(x.shape)),
    }
    for name, (tensor, want) in wanted.items():
        if tensor is None:
            continue
        check_device(name, check_tensor(name, tensor), "x", x)
        if tuple(tensor.shape) != want:
            raise ArgumentError(f"{name}: want shape {want}, got {tuple(tensor.shape)}")
    for name, tensor in {"x": x, "bias": bias, "residual": residual, "packed": packed.values}.items():
        if tensor is None:
            continue
        if tensor.dtype != packed.dtype:
            raise ArgumentError(f"{name}: is {tensor.dtype}, the packed weight {packed.dtype}")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ArgumentError(
                f"{name}: requires a gradient, and sparse_conv2d has none: call it under torch.no_grad()"
            )


def _by_torch(
    x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """The torch path: the layout's convolution, then one copy into the output's format (with the bias)."""
    kind = layout_of(packed.layout)
    order = kind.order
    if packed.layout == "dense":
        product, bias = library_convolution(x, packed.unpack(), bias, packed.geometry), None
    elif packed.layout == "semi_structured" and x.is_cuda:
        product, bias = _semi_structured(x, packed, bias), None
    elif x.dtype in (torch.float16, torch.bfloat16):
        tensors = {**packed.tensors, kind.tensors[0]: packed.values.float()}
        product = kind.convolve(x.float(), replace(packed, tensors=tensors))
    else:
        product = kind.convolve(x, packed)
    if is_arranged(product, order):
        y = product if bias is None else product.add_(bias[:, None, None])
    else:
        y = empty(product.shape, order, product)
        y.copy_(product) if bias is None else torch.add(product, bias[:, None, None], out=y)
    if residual is not None:
        y.add_(residual)
    if relu:
        y.relu_()
    return y.to(x.dtype)


def _semi_structured(x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
    """The product of the channels_last pixels of x with the 2:4 operand, in channels_last."""
    known = _tables.setdefault(packed.values, {})
    version = _version(packed)
    if version not in known:
        with warnings.catch_warnings():
            # Once a process, torch warns that these tensors are a prototype.
            warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
            weight = torch.sparse.to_sparse_semi_structured(packed.unpack().flatten(1).contiguous())
        weight.fuse_transpose_cusparselt = True  # pixels by channels, not channels by pixels
        known.clear()
        known[version] = weight
    (sh, sw), shape = packed.geometry.stride, packed.geometry.output_shape(x.shape)
    pixels = x[:, :, ::sh, ::sw].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    product = functional.linear(pixels, known[version], bias)
    return product.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


# --- the operator, which stands in the call under compilers and tracers ---------------------------------------


def _traced(
    x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None, relu: bool, backend: str | None
) -> Tensor:  # fmt: skip
    _check(x, packed, bias, residual)
    kind, numbers = layout_of(packed.layout), list(packed.geometry.numbers)
    tensors = [packed.tensors[name] for name in kind.tensors]
    settings = [packed.settings[name] for name in kind.settings]
    made: Tensor = _operator(x, tensors, bias, residual, numbers, packed.layout, settings, relu, backend)
    return made


@torch.library.custom_op(
    "prunebench::sparse_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor[] tensors, Tensor? bias, Tensor? residual, SymInt[] geometry, str layout, "
    "SymInt[] settings, bool relu, str? backend) -> Tensor",
)
def _operator(x, tensors, bias, residual, geometry, layout, settings, relu, backend) -> Tensor:  # noqa: PLR0913
    """Flat: an operator takes tensors, integers and strings only."""
    kind, numbers = layout_of(layout), Geometry.from_numbers(geometry)
    named = dict(zip(kind.tensors, tensors)), dict(zip(kind.settings, settings))
    packed = PackedWeight(layout, numbers, *named)
    return _Resolved(x, packed, bias, residual, relu, backend)(x, packed, residual)


@_operator.register_fake
def _(x, tensors, bias, residual, geometry, layout, *_) -> Tensor:
    return empty(Geometry.from_numbers(geometry).output_shape(x.shape), format_of(layout), x)


# --- candidates -----------------------------------------------------------------------------------------------

Candidate = tuple[str, dict[str, int]]

LARGEST_DIRECT_DENSITY = {"cuda": 0.08, "cpu": 0.12}
"""By arithmetic direct comes to 20 TFLOP/s on an H100 (2.9 instructions a bf16 multiply-add, 128 of them a clock and
multiprocessor), a twelfth of the 240 that a library reaches with 64 channels; a CPU's margin is wider."""
LARGEST_BLOCK_DENSITY = 0.8
LEAST_SEMI_STRUCTURED_DENSITY = 0.25
"""Much sparser masks have two weights of four by chance, and do not gain by a layout that keeps a half."""
FEW_PLACES = 32
"""A filter of at most so many weights costs `direct` less than a pass over its output, however dense: a stem of 3 x 9
of them, and then the next layer needs no copy into its format."""


def candidates(
    weight: PackedWeight | Tensor, geometry: Geometry, x_shape: Sequence[int], device: torch.device | str
) -> list[Candidate]:
    """(layout, settings) worth measuring, `dense` always first.

    By the weight's density, the density of its blocks, its 2:4 pattern and the groups.
    `x_shape` `[N, C, H, W]` as will run.
    """
    dense = weight.unpack() if isinstance(weight, PackedWeight) else weight
    kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
    # Runs of eight values are the least that 16-byte loads take; a CPU copies into its own order anyway.
    runs = kind == "cpu" or x_shape[0] % 8 == 0
    found: list[Candidate] = [("dense", {})]
    density = (dense != 0).double().mean().item()
    if geometry.groups == 1:
        found += _blocks(dense, geometry)
    if runs and DIRECT.refuse(geometry, {}) is None:
        depthwise = geometry.groups == geometry.in_channels
        few = kind == "cuda" and geometry.weight_shape[1] * geometry.taps <= FEW_PLACES
        if depthwise or few or density <= LARGEST_DIRECT_DENSITY[kind]:
            found.append(("direct", {}))
    if density >= LEAST_SEMI_STRUCTURED_DENSITY and SEMI_STRUCTURED.fits(dense):
        found.append(("semi_structured", {}))
    return found


def _blocks(dense: Tensor, geometry: Geometry) -> list[Candidate]:
    """The block sizes that leave blocks out: of those with nearly the same density, the largest only."""
    found: list[Candidate] = []
    least = LARGEST_BLOCK_DENSITY
    for block_out, block_in in ((128, 64), (64, 64), (32, 32), (16, 16)):
        if block_out > 2 * geometry.out_channels or block_in > 2 * geometry.in_channels:
            continue
        settings = {"block_out": block_out, "block_in": block_in}
        density = BLOCK.density(dense, geometry, settings)
        if density <= least:
            found.append(("block", settings))
            least = 0.8 * density
    return found


# --- the module -----------------------------------------------------------------------------------------------


class SparseConv2d(nn.Module):
    """y = relu(conv2d(x, W) + bias + residual), W packed; the ReLU and the residual are optional. For inference.

    With layout `auto` the candidates are measured at the first forward pass, or by `prepare`, for that input's
    shape; the choice then stays. `decision` says what was chosen and why.
    """

    bias: Tensor | None
    _packed: PackedWeight | None

    def __init__(
        self, packed: PackedWeight, bias: Tensor | None = None, *, relu: bool = False,
        backend: str | None = None, measuring: Measuring | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.relu, self.backend, self.measuring = relu, backend, measuring or Measuring()
        self.is_prepared = True
        self.decision = Decision(packed.layout, "asked for")
        self.key = ""
        self.formats: frozenset[str] | None = None
        """Memory formats that sparse layouts may have when measured (None: all)."""
        self.register_buffer("bias", bias)
        self.take(packed)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d,
        mask: Tensor | None = None,
        layout: str = AUTO,
        *,
        relu: bool = False,
        backend: str | None = None,
        measuring: Measuring | None = None,
        **settings: int,
    ) -> SparseConv2d:
        """The convolution with `weight * mask` (None: the weight as it is) in a layout, or `auto`.

        `settings` are the layout's. Raises LayoutError where the layout cannot take the convolution,
        ArgumentError on a mask of another shape or an unknown layout.
        """
        if not isinstance(conv, nn.Conv2d):
            raise ArgumentError(f"conv: want a Conv2d, got {type(conv).__name__}")
        if layout not in (AUTO, *LAYOUTS):
            raise ArgumentError(f"layout: want auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
        if layout == AUTO and settings:
            raise ArgumentError(f"settings: layout auto chooses its own, got {', '.join(sorted(settings))}")
        weight = conv.weight.detach()
        if mask is not None:
            if mask.shape != weight.shape:
                raise ArgumentError(f"mask: want shape {tuple(weight.shape)}, got {tuple(mask.shape)}")
            weight = torch.where(mask.to(weight.device) != 0, weight, 0)
        packed = pack(weight, "dense" if layout == AUTO else layout, geometry=Geometry.of(conv), **settings)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        made = cls(packed, bias, relu=relu, backend=backend, measuring=measuring)
        if layout == AUTO:
            made.is_prepared, made.decision = False, Decision("dense", "not measured yet")
        return made

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is packed now."""
        buffers, known = self._buffers, self._packed
        # Buffers may be replaced one by one: by load_state_dict(assign=True), or for a call by functional_call.
        if known is None or any(
            buffers[f"packed_{name}"] is not known.tensors[name] for name in self._tensor_names
        ):
            tensors = {name: buffers[f"packed_{name}"] for name in self._tensor_names}
            self._packed = PackedWeight(self.layout, self.geometry, tensors, self.settings)  # type: ignore[arg-type]
            return self._packed
        return known

    def take(self, packed: PackedWeight) -> None:
        """Use this packed weight from now on."""
        for name in getattr(self, "_tensor_names", ()):
            delattr(self, f"packed_{name}")
        self.layout, self.geometry, self.settings = packed.layout, packed.geometry, dict(packed.settings)
        self._tensor_names = tuple(packed.tensors)
        self._packed = packed
        for name, tensor in packed.tensors.items():
            self.register_buffer(f"packed_{name}", tensor)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._packed = None
        return super()._apply(*args, **kwargs)

    @torch.no_grad()
    def prepare(self, x: Tensor, residual: Tensor | None = None) -> Decision:
        """Measure the candidates on this input `[N, C, H, W]` and take the winner; dense is the guard.

        Where `formats` names one order only, in which the whole network is to run, every candidate gives it.
        """
        with torch.inference_mode(False):
            options, refused = self._options(x)
        order = next(iter(self.formats)) if self.formats is not None and len(self.formats) == 1 else None
        calls = {
            name: functools.partial(self._timed, x, packed, residual, order)
            for name, packed in options.items()
        }
        self.key = self._key(x, residual, tuple(options))
        decision = self.measuring.decide(self.key, calls, x.device)
        if refused:
            decision = replace(decision, refused={**refused, **decision.refused})
        self.take(options[decision.winner])
        self.decision, self.is_prepared = decision, True
        return decision

    def _timed(self, x: Tensor, packed: PackedWeight, residual: Tensor | None, order: str | None) -> Tensor:
        y = self._run(x, packed, residual)
        return y if order is None else arrange(y, order)

    def _options(self, x: Tensor) -> tuple[dict[str, PackedWeight], dict[str, str]]:
        """Packed candidates by label, and why others could not be packed."""
        weight = self.packed.unpack()
        options: dict[str, PackedWeight] = {}
        refused = {}
        for layout, settings in candidates(weight, self.geometry, tuple(x.shape), x.device):
            if layout != "dense" and self.formats and format_of(layout) not in self.formats:
                continue
            try:
                options[label(layout, settings)] = pack(weight, layout, geometry=self.geometry, **settings)
            except LayoutError as error:
                refused[label(layout, settings)] = str(error)
        return options, refused

    def _key(self, x: Tensor, residual: Tensor | None, options: tuple[str, ...]) -> str:
        """What decides the layer's choice. The batch is one of it: `direct` loads as many values at once as divide it,
        and kernels that fill the GPU at 128 do not at 8; the layer measures its own, so there is nothing to guess."""
        return key_of(
            operation="sparse_conv2d",
            device=device_name(x.device),
            x=tuple(x.shape),
            formats=[name for name in FORMATS if is_arranged(x, name)],
            gives=None if self.formats is None else sorted(self.formats),
            candidates=options,
            dtype=x.dtype,
            geometry=self.geometry.numbers,
            mask=fingerprint(self.packed.unpack()),
            epilogue=(self.bias is not None, residual is not None, self.relu),
            backend=requested(self.backend),
            precision=precision(),
            versions=versions(),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """y `[N, K, OH, OW]` of x `[N, C, H, W]` and, if given, a residual of y's shape."""
        if not self.is_prepared and not torch.compiler.is_compiling():
            self.prepare(x, residual)
        return self._run(x, self.packed, residual)

    def _run(self, x: Tensor, packed: PackedWeight, residual: Tensor | None) -> Tensor:
        bias = self._buffers["bias"]
        if packed.layout != "dense":
            if residual is not None and residual.shape[0] != x.shape[0]:
                residual = residual.expand(x.shape[0], *residual.shape[1:])  # one for all images: a parameter
            return sparse_conv2d(x, packed, bias, residual=residual, relu=self.relu, backend=self.backend)
        # The guard: the library's convolution adds the bias itself, and no operator of ours stands in between.
        y = library_convolution(x, packed.unpack(), bias, packed.geometry)
        if residual is not None:
            y += residual
        return y.relu_() if self.relu else y

    def extra_repr(self) -> str:
        return f"{self.geometry.in_channels}, {self.geometry.out_channels}, layout={label(self.layout, self.settings)}"


def label(layout: str, settings: Mapping[str, int]) -> str:
    """A layout with its settings, as reports and choices name it: `block block_in=64 block_out=64`."""
    return " ".join((layout, *(f"{name}={settings[name]}" for name in sorted(settings))))


def fingerprint(weight: Tensor) -> str:
    """16 hex digits of which weights are not zero, and of the shape."""
    bits = (weight.detach() != 0).to("cpu", torch.uint8).contiguous().numpy()
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    digest.update(np.packbits(bits).tobytes())
    return digest.hexdigest()[:16]
