"""Packed weights of sparse convolutions: the layouts, their exact inverse, and each layout's convolution in torch.

`dense` is the masked weight as it is; `block` leaves out blocks of zeros; `direct` lists every weight on its own;
`semi_structured` is the 2:4 pattern that tensor cores skip.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench_kernels.dispatch import ArgumentError, LayoutError, check_finite, check_floating, check_tensor

Tensors = Mapping[str, Tensor]
Settings = Mapping[str, int]


@dataclass(frozen=True)
class Geometry:
    """A 2-d convolution without its weight. Pairs are (height, width). Raises ArgumentError on impossible values."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: want at least 1, got {getattr(self, name)}")
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, name)
            if len(pair) != 2 or min(pair) < least:
                raise ArgumentError(f"{name}: want two integers of at least {least}, got {pair}")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ArgumentError(f"groups: {self.groups} does not divide {name}, {getattr(self, name)}")

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """The geometry of a module. Raises LayoutError for a padding that is not symmetric zeros."""
        if conv.padding_mode != "zeros":
            raise LayoutError(f"conv: padding mode {conv.padding_mode} is not packed, only zeros")
        kernel = pair(conv.kernel_size)
        numbers = pairs(kernel, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]
        return cls(conv.in_channels, conv.out_channels, kernel, *numbers, conv.groups)

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Geometry:
        """The inverse of `numbers`."""
        if len(numbers) != 11:
            raise ArgumentError(f"geometry: want 11 numbers, got {len(numbers)}")
        pairs = [(numbers[i], numbers[i + 1]) for i in (2, 4, 6, 8)]
        return cls(numbers[0], numbers[1], pairs[0], pairs[1], pairs[2], pairs[3], numbers[10])

    @property
    def numbers(self) -> tuple[int, ...]:
        """All fields as one flat tuple of 11 integers, for operators and files."""
        channels = (self.in_channels, self.out_channels)
        return (*channels, *self.kernel, *self.stride, *self.padding, *self.dilation, self.groups)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def taps(self) -> int:
        """Positions of the kernel, R * S."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output. Raises ArgumentError where the kernel does not fit the padded input."""
        size = [
            (extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for extent, pad, dilation, kernel, stride in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride
            )
        ]
        if min(size) < 1:
            raise ArgumentError(f"x: {height} x {width} pixels are fewer than kernel {self.kernel} reaches")
        return (size[0], size[1])

    def output_shape(self, x_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """`[N, K, OH, OW]` of x `[N, C, H, W]`. Raises ArgumentError as `output_size` does."""
        return (x_shape[0], self.out_channels, *self.output_size(x_shape[2], x_shape[3]))


Pair = int | Sequence[int]


def pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def pairs(
    kernel: Sequence[int], stride: Pair, padding: Pair | str, dilation: Pair
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation of both axes. Raises LayoutError for a `same` that is not symmetric."""
    gaps = pair(dilation)
    if padding == "same":
        reach = (gaps[0] * (kernel[0] - 1), gaps[1] * (kernel[1] - 1))
        if reach[0] % 2 or reach[1] % 2 or pair(stride) != (1, 1):
            raise LayoutError("padding: 'same' of an even kernel or a stride is not symmetric")
        padding = (reach[0] // 2, reach[1] // 2)
    return pair(stride), (0, 0) if isinstance(padding, str) else pair(padding), gaps


# --- orders of the axes in memory -----------------------------------------------------------------------------

FORMATS = ("contiguous", "channels_last", "batch_innermost")
"""`batch_innermost` is `[C, H, W, N]` in memory, seen as `[N, C, H, W]`: every tap of every pixel is then one aligned
run of N values, which a GPU loads 16 bytes at a time, where NCHW shifts by single elements and a small image breaks
into short rows. Elementwise operations of torch keep such strides, library convolutions copy."""
_AXES = {"contiguous": (0, 1, 2, 3), "channels_last": (0, 2, 3, 1), "batch_innermost": (1, 2, 3, 0)}


def arrange(x: Tensor, order: str) -> Tensor:
    """`x` `[N, C, H, W]` in that order in memory: itself if it is, else a copy."""
    if order == "batch_innermost":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    form = torch.channels_last if order == "channels_last" else torch.contiguous_format
    return x.contiguous(memory_format=form)


def is_arranged(x: Tensor, order: str) -> bool:
    """Whether `x` lies in that order."""
    return x.permute(_AXES[order]).is_contiguous()


def strides(shape: Sequence[int], order: str) -> tuple[int, ...]:
    """Strides of `[N, C, H, W]` in that order; fixed ones also for axes of length one."""
    made, step = [1] * 4, 1
    for axis in reversed(_AXES[order]):
        made[axis], step = step, step * shape[axis]
    return tuple(made)


def empty(shape: Sequence[int], order: str, like: Tensor) -> Tensor:
    """An uninitialised `[N, C, H, W]` in that order, with the dtype and device of `like`."""
    return like.new_empty_strided(tuple(shape), strides(shape, order))


# --- packed weights -------------------------------------------------------------------------------------------


class Layout(ABC):
    """A way to store a weight. `tensors` and `settings` name what a PackedWeight of it holds; `order` is the format
    (one of FORMATS) that its convolution reads without a copy and writes."""

    name: str
    tensors: tuple[str, ...]
    settings: ClassVar[Settings] = {}
    order = "channels_last"

    def refuse(self, geometry: Geometry, settings: Settings) -> str | None:
        """Why this convolution is not stored so, or None."""
        return None

    def refuse_weight(self, weight: Tensor) -> str | None:
        """Why this weight is not stored so, or None."""
        return None

    @abstractmethod
    def pack(self, weight: Tensor, geometry: Geometry, settings: Settings) -> dict[str, Tensor]:
        """The stored tensors of `weight` `[K, C / groups, R, S]`, contiguous."""

    @abstractmethod
    def unpack(self, packed: PackedWeight) -> Tensor:
        """The weight `[K, C / groups, R, S]`."""

    def convolve(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """y `[N, K, OH, OW]` of x `[N, C, H, W]` by torch alone, in any order in memory."""
        return library_convolution(x, self.unpack(packed), None, packed.geometry)


@dataclass(frozen=True)
class PackedWeight:
    """A masked weight in a layout. `tensors` are contiguous and `settings` integers: both go into safetensors.

    `resolved` keeps what `sparse_conv2d` finds out once for each input shape.
    """

    layout: str
    geometry: Geometry
    tensors: dict[str, Tensor]
    settings: dict[str, int] = field(default_factory=dict)
    resolved: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        kind = layout_of(self.layout)
        if set(self.tensors) != set(kind.tensors):
            raise ArgumentError(
                f"tensors: layout {self.layout} has {kind.tensors}, got {tuple(self.tensors)}"
            )
        if set(self.settings) != set(kind.settings):
            names = tuple(kind.settings)
            raise ArgumentError(f"settings: layout {self.layout} has {names}, got {tuple(self.settings)}")

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and what is pickled, find out for themselves."""
        return {**self.__dict__, "resolved": {}}

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return PackedWeight(self.layout, self.geometry, moved, dict(self.settings))

    @property
    def values(self) -> Tensor:
        """The tensor that holds the weights."""
        return self.tensors[layout_of(self.layout).tensors[0]]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which the convolution computes."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, indices included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def unpack(self) -> Tensor:
        """The dense masked weight `[K, C / groups, R, S]`, bit for bit (a negative zero becomes zero)."""
        return layout_of(self.layout).unpack(self)


def pack(weight: Tensor, layout: str, *, geometry: Geometry, **settings: int) -> PackedWeight:
    """Pack `weight` `[K, C / groups, R, S]`, masked already (zeros are pruned), in the dtype to compute in.

    `settings` override the layout's own, e.g. `block_out=32`. Raises LayoutError, a sentence, where the layout
    does not take the convolution or the weight, and ArgumentError on wrong arguments.
    """
    kind = layout_of(layout)
    check_floating("weight", check_tensor("weight", weight))
    if tuple(weight.shape) != geometry.weight_shape:
        raise ArgumentError(f"weight: want shape {geometry.weight_shape}, got {tuple(weight.shape)}")
    if weight.numel() >= 2**31:
        raise ArgumentError(f"weight: want fewer than 2^31 elements, got {weight.numel()}")
    check_finite("weight", weight)
    unknown = set(settings) - set(kind.settings)
    if unknown:
        known = ", ".join(kind.settings) or "none"
        raise ArgumentError(f"settings: layout {layout} has {known}; got {', '.join(sorted(unknown))}")
    chosen = {**kind.settings, **settings}
    refusal = kind.refuse(geometry, chosen) or kind.refuse_weight(weight)
    if refusal is not None:
        raise LayoutError(f"layout: {layout} {refusal}")
    return PackedWeight(layout, geometry, kind.pack(weight.detach(), geometry, chosen), chosen)


# --- places of weights in their filters -----------------------------------------------------------------------

LARGEST_KERNEL = 15
"""Taps an axis: kernels keep one bit a tap of whether it leaves the image, and a code has four."""


def encode(flat: Tensor, first_channel: Tensor | int, geometry: Geometry) -> Tensor:
    """Codes, int32, of positions `flat` in a filter `[C / groups, R, S]` whose group begins at `first_channel`.

    A code is input channel * 256 + row of the kernel * 16 + column. It does not depend on the image, so that a packed
    weight serves every input size; kernels take it apart with shifts.
    """
    channel, tap = flat // geometry.taps + first_channel, flat % geometry.taps
    row, column = tap // geometry.kernel[1], tap % geometry.kernel[1]
    return (channel * 256 + row * 16 + column).to(torch.int32)


def decode(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input channel, row and column of the kernel, int64."""
    wide = codes.to(torch.int64)
    return wide >> 8, (wide >> 4) & 15, wide & 15


# --- the input, shifted ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShiftedInput:
    """The input laid out so that every tap of a convolution is a shifted view of it: no unfolding.

    The image is stored channel-major, `[C, N * Hq * Wq]`, with zeros between rows and images. Output pixel
    (n, i, j) stands at n * Hq * Wq + i * Wq + j, and the input that tap (r, s) brings to it stands a fixed number of
    elements further on. So the tap's matrix of inputs `[C, pixels]` is a slice, which BLAS takes as it is. Rows
    share the zeros between them (the right border of one is the left border of the next), so 8 x 8 pixels cost
    9 x 9. A stride splits the padded image into stride_h * stride_w phases, each stored like that.

    `data` `[phases, C, length]`; `pitch` (Hq, Wq).
    """

    data: Tensor
    geometry: Geometry
    batch: int
    output: tuple[int, int]
    pitch: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Places of the output, the unused ones between rows included: N * Hq * Wq."""
        return self.batch * self.pitch[0] * self.pitch[1]

    def tap(self, row: int, column: int, channels: slice) -> Tensor:
        """The inputs that tap (row, column) multiplies, `[channels, pixels]`, a view."""
        (sh, sw), (dh, dw) = self.geometry.stride, self.geometry.dilation
        phase = row * dh % sh * sw + column * dw % sw
        shift = row * dh // sh * self.pitch[1] + column * dw // sw
        return self.data[phase, channels, shift : shift + self.pixels]

    def rows(self, codes: Tensor) -> Tensor:
        """The inputs of each code, `[codes, pixels]`, gathered."""
        (sh, sw), (dh, dw) = self.geometry.stride, self.geometry.dilation
        channel, row, column = decode(codes)
        phase = row * dh % sh * sw + column * dw % sw if sh * sw > 1 else 0
        shift = _times_over(row, dh, sh) * self.pitch[1] + _times_over(column, dw, sw)
        channels, length = self.data.shape[1:]
        starts = (phase * channels + channel) * length + shift
        every_start = self.data.as_strided((self.data.numel() - self.pixels + 1, self.pixels), (1, 1))
        return every_start.index_select(0, starts)

    def crop(self, product: Tensor) -> Tensor:
        """`[K, N * Hq * Wq]` as the view `[N, K, OH, OW]`, without the places between rows."""
        grid = product.view(product.shape[0], self.batch, *self.pitch)
        return grid[:, :, : self.output[0], : self.output[1]].transpose(0, 1)


def _times_over(value: Tensor, factor: int, divisor: int) -> Tensor:
    """value * factor // divisor. An integer division takes torch longer than all else here, so it is left out."""
    return value * factor if divisor == 1 else value * factor // divisor


def shift(x: Tensor, geometry: Geometry) -> ShiftedInput:
    """Lay out `x` `[N, C, H, W]`: one copy, padding and stride included."""
    batch, channels, height, width = x.shape
    (sh, sw), (ph, pw) = geometry.stride, geometry.padding
    output = geometry.output_size(height, width)
    if (sh, sw) == (1, 1):
        # Padding beyond the kernel's reach makes the output larger than the image with its zeros.
        pitch = (max(height + ph, output[0]), max(width + pw, output[1]))
    else:
        pitch = (-(-(height + 2 * ph) // sh), -(-(width + 2 * pw) // sw))
    pixels = batch * pitch[0] * pitch[1]
    reach = [(kernel - 1) * dilation for kernel, dilation in zip(geometry.kernel, geometry.dilation)]
    furthest = reach[0] // sh * pitch[1] + reach[1] // sw
    data = x.new_zeros(sh * sw, channels, pixels + furthest + ph * pitch[1] + pw)
    if (sh, sw) == (1, 1):
        lead = ph * pitch[1] + pw
        grid = data[0, :, lead : lead + pixels].view(channels, batch, *pitch)
        grid[:, :, :height, :width] = x.transpose(0, 1)
    else:
        padded = functional.pad(x, (pw, pw, ph, ph))
        grid = data[:, :, :pixels].view(sh * sw, channels, batch, *pitch)
        for phase in range(sh * sw):
            part = padded[:, :, phase // sw :: sh, phase % sw :: sw].transpose(0, 1)
            grid[phase, :, :, : part.shape[2], : part.shape[3]] = part
    return ShiftedInput(data, geometry, batch, output, pitch)


# --- dense ----------------------------------------------------------------------------------------------------


class DenseLayout(Layout):
    """The masked weight as it is, for the library's convolution (cuDNN, oneDNN)."""

    name, tensors = "dense", ("weight",)

    def pack(self, weight: Tensor, geometry: Geometry, settings: Settings) -> dict[str, Tensor]:
        """`weight` `[K, R, S, C / groups]`: a view of it is channels_last, and files hold contiguous tensors only.

        A copy: `contiguous` would leave a 1 x 1 weight its strides, and convolutions read the format off them.
        """
        return {"weight": weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)}

    def unpack(self, packed: PackedWeight) -> Tensor:
        """The weight, a channels_last view."""
        return packed.tensors["weight"].permute(0, 3, 1, 2)


def library_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The library's convolution, with the bias that it adds itself."""
    return functional.conv2d(
        x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )


# --- block ----------------------------------------------------------------------------------------------------


class BlockLayout(Layout):
    """Blocks of block_out x block_in weights of one tap; blocks of zeros are not stored.

    `values` `[blocks, block_out, block_in]`; blocks of one output block stand together, `pointers`
    `[output blocks + 1]` says where; `columns` `[blocks]` holds tap * input blocks + input block. The last blocks
    are filled up with zeros where the channels are no multiple.
    """

    name, tensors = "block", ("values", "pointers", "columns")
    settings: ClassVar[Settings] = {"block_out": 64, "block_in": 64}
    sizes = (16, 32, 64, 128)

    def refuse(self, geometry: Geometry, settings: Settings) -> str | None:
        if geometry.groups != 1:
            return f"takes convolutions of one group, got {geometry.groups}"
        for name, value in settings.items():
            if value not in self.sizes:
                return f"takes {name} 16, 32, 64 or 128, got {value}"
        return None

    def pack(self, weight: Tensor, geometry: Geometry, settings: Settings) -> dict[str, Tensor]:
        tiles = self._tiles(weight, geometry, settings)
        used = (tiles != 0).flatten(2).any(2)
        row, column = used.nonzero(as_tuple=True)
        pointers = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32, device=weight.device)
        pointers[1:] = used.sum(1).cumsum(0)
        values = tiles[row, column].contiguous()
        return {"values": values, "pointers": pointers, "columns": column.to(torch.int32)}

    def unpack(self, packed: PackedWeight) -> Tensor:
        geometry, tensors = packed.geometry, packed.tensors
        values, pointers = tensors["values"], tensors["pointers"].to(torch.int64)
        rows, columns, block_out, block_in = self._blocks(geometry, packed.settings)
        tiles = values.new_zeros(rows, geometry.taps * columns, block_out, block_in)
        row = torch.repeat_interleave(torch.arange(rows, device=values.device), pointers.diff())
        tiles[row, tensors["columns"].to(torch.int64)] = values
        split = tiles.view(rows, geometry.taps, columns, block_out, block_in).permute(0, 3, 2, 4, 1)
        whole = split.reshape(rows * block_out, columns * block_in, *geometry.kernel)
        return whole[: geometry.out_channels, : geometry.in_channels].contiguous()

    def convolve(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """Per stored block one product with the shifted view of its input channels, added to its output block."""
        geometry, tensors = packed.geometry, packed.tensors
        _, input_blocks, block_out, block_in = self._blocks(geometry, packed.settings)
        inputs = shift(x, geometry)
        product = x.new_empty(geometry.out_channels, inputs.pixels)
        pointers, columns = tensors["pointers"].tolist(), tensors["columns"].tolist()
        for row, (start, end) in enumerate(pairwise(pointers)):
            output = product[row * block_out : (row + 1) * block_out]
            if start == end:
                output.zero_()
            for position in range(start, end):
                tap, block = divmod(columns[position], input_blocks)
                channels = slice(block * block_in, min((block + 1) * block_in, geometry.in_channels))
                weight = tensors["values"][position, : output.shape[0], : channels.stop - channels.start]
                view = inputs.tap(tap // geometry.kernel[1], tap % geometry.kernel[1], channels)
                torch.addmm(output, weight, view, beta=float(position > start), out=output)
        return inputs.crop(product)

    def density(self, weight: Tensor, geometry: Geometry, settings: Settings) -> float:
        """Share of the blocks that would be stored."""
        return (self._tiles(weight, geometry, settings) != 0).flatten(2).any(2).double().mean().item()

    def _blocks(self, geometry: Geometry, settings: Settings) -> tuple[int, int, int, int]:
        """Numbers of output and of input blocks, and a block's sides."""
        block_out, block_in = settings["block_out"], settings["block_in"]
        return (
            -(-geometry.out_channels // block_out),
            -(-geometry.in_channels // block_in),
            block_out,
            block_in,
        )

    def _tiles(self, weight: Tensor, geometry: Geometry, settings: Settings) -> Tensor:
        """The weight as `[output blocks, taps * input blocks, block_out, block_in]`."""
        rows, columns, block_out, block_in = self._blocks(geometry, settings)
        extra = (columns * block_in - geometry.in_channels, rows * block_out - geometry.out_channels)
        by_tap = functional.pad(weight.flatten(2).permute(2, 0, 1), (0, extra[0], 0, extra[1]))
        split = by_tap.view(geometry.taps, rows, block_out, columns, block_in)
        return split.permute(1, 0, 3, 2, 4).reshape(rows, geometry.taps * columns, block_out, block_in)


# --- direct ---------------------------------------------------------------------------------------------------


class DirectLayout(Layout):
    """Every weight on its own, as (value, place), for unstructured masks of very high sparsity. Any groups.

    Output channels are sorted by their number of weights, most first, so that neighbours take equally long:
    `order` `[K]` names the output channel at each position, `pointers` `[K + 1]` its range in `values` and `codes`
    (`encode`). Within a channel the weights are sorted by input channel.
    """

    name, tensors, order = "direct", ("values", "pointers", "codes", "order"), "batch_innermost"

    def refuse(self, geometry: Geometry, settings: Settings) -> str | None:
        if max(geometry.kernel) > LARGEST_KERNEL:
            return f"takes kernels of at most {LARGEST_KERNEL} x {LARGEST_KERNEL}, got {geometry.kernel}"
        too_many = geometry.in_channels >= 1 << 23
        return f"takes fewer than {1 << 23} input channels, got {geometry.in_channels}" if too_many else None

    def pack(self, weight: Tensor, geometry: Geometry, settings: Settings) -> dict[str, Tensor]:
        filters = weight.flatten(1)
        counts = (filters != 0).sum(1)
        order = counts.argsort(descending=True, stable=True)
        position, flat = (filters[order] != 0).nonzero(as_tuple=True)
        group = order[position] // (geometry.out_channels // geometry.groups)
        pointers = torch.zeros(geometry.out_channels + 1, dtype=torch.int32, device=weight.device)
        pointers[1:] = counts[order].cumsum(0)
        return {
            "values": filters[order[position], flat].contiguous(),
            "pointers": pointers,
            "codes": encode(flat, group * (geometry.in_channels // geometry.groups), geometry),
            "order": order.to(torch.int32),
        }

    def unpack(self, packed: PackedWeight) -> Tensor:
        geometry, tensors = packed.geometry, packed.tensors
        order, pointers = tensors["order"].to(torch.int64), tensors["pointers"].to(torch.int64)
        output = torch.repeat_interleave(order, pointers.diff())
        channel, row, column = decode(tensors["codes"])
        weight = tensors["values"].new_zeros(geometry.weight_shape)
        weight[output, channel % (geometry.in_channels // geometry.groups), row, column] = tensors["values"]
        return weight

    def convolve(self, x: Tensor, packed: PackedWeight) -> Tensor:
        """One product of a CSR matrix `[K, used places]` with the gathered inputs of the used places."""
        geometry, tensors = packed.geometry, packed.tensors
        inputs = shift(x, geometry)
        channel, row, column = decode(tensors["codes"])
        flat = (channel * geometry.kernel[0] + row) * geometry.kernel[1] + column
        code_at = torch.full((geometry.in_channels * geometry.taps,), -1, dtype=torch.int32, device=x.device)
        code_at[flat] = tensors["codes"]
        used = code_at >= 0
        codes = code_at[used]
        weight = self._csr(tensors, (used.cumsum(0) - 1)[flat], len(codes))
        return inputs.crop(weight @ inputs.rows(codes))

    def _csr(self, tensors: Tensors, column: Tensor, width: int) -> Tensor:
        """The sparse matrix `[K, width]`, its rows in the order of the output channels again."""
        order, pointers = tensors["order"].to(torch.int64), tensors["pointers"].to(torch.int64)
        counts = torch.zeros_like(order)
        counts[order] = pointers.diff()
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        # Entry e of sorted row p goes to the same place within the row of channel order[p].
        shift_by = starts[order] - pointers[:-1]
        target = torch.arange(len(column), device=column.device)
        target += torch.repeat_interleave(shift_by, pointers.diff())
        columns, values = torch.empty_like(column), torch.empty_like(tensors["values"])
        columns[target], values[target] = column, tensors["values"]
        with warnings.catch_warnings():
            # Once a process, torch warns that its CSR support is in beta, and torch 2.11 that it checks nothing.
            warnings.filterwarnings("ignore", "Sparse (CSR|invariant checks)", UserWarning)
            return torch.sparse_csr_tensor(
                starts, columns, values, (len(order), width), check_invariants=False
            )


# --- semi_structured ------------------------------------------------------------------------------------------


class SemiStructuredLayout(Layout):
    """The 2:4 pattern, at most two weights in four neighbouring input channels, for 1 x 1 convolutions on a GPU.

    `values` `[K, C / 2]`, two a group of four (zeros fill up); `places` `[K, C / 4]` (uint8), of the first plus four
    times that of the second. No library has a 2:4 convolution, so only a product of matrices remains; its operand is
    made from this by `torch.sparse.to_sparse_semi_structured`, once.
    """

    name, tensors = "semi_structured", ("values", "places")
    devices = ("cuda",)

    def refuse(self, geometry: Geometry, settings: Settings) -> str | None:
        if geometry.kernel != (1, 1) or geometry.padding != (0, 0):
            return f"takes 1 x 1 convolutions without padding, got {geometry.kernel} with {geometry.padding}"
        if geometry.groups != 1:
            return f"takes convolutions of one group, got {geometry.groups}"
        if geometry.in_channels % 16 or geometry.out_channels % 16:
            return (
                f"takes channels in multiples of 16, got {geometry.in_channels} and {geometry.out_channels}"
            )
        return None

    def refuse_weight(self, weight: Tensor) -> str | None:
        if weight.device.type not in self.devices:
            return f"takes weights on a GPU, got {weight.device.type}"
        if weight.dtype not in (torch.float16, torch.bfloat16):
            return f"takes float16 and bfloat16, got {weight.dtype}"
        return None if self.fits(weight) else "takes at most two weights in four neighbouring input channels"

    def fits(self, weight: Tensor) -> bool:
        """Whether `weight` `[K, C, R, S]` has at most two weights in four neighbouring input channels."""
        if weight.shape[1] % 4:
            return False
        groups = (weight != 0).view(weight.shape[0], -1, 4, *weight.shape[2:])
        return bool((groups.sum(2) <= 2).all())

    def pack(self, weight: Tensor, geometry: Geometry, settings: Settings) -> dict[str, Tensor]:
        quads = weight.reshape(geometry.out_channels, -1, 4)
        # A stable sort brings what is not zero to the front, in order; a zero fills up.
        places = (quads == 0).to(torch.uint8).argsort(dim=2, stable=True)[..., :2].sort(2).values
        values = quads.gather(2, places).flatten(1)
        return {"values": values, "places": (places[..., 0] + 4 * places[..., 1]).to(torch.uint8)}

    def unpack(self, packed: PackedWeight) -> Tensor:
        values, both = packed.tensors["values"], packed.tensors["places"].to(torch.int64)
        quads = values.new_zeros(*both.shape, 4)
        quads.scatter_(2, torch.stack((both % 4, both // 4), 2), values.view(*both.shape, 2))
        return quads.view(packed.geometry.weight_shape)


# --- the layouts by name --------------------------------------------------------------------------------------

DENSE, BLOCK, DIRECT, SEMI_STRUCTURED = DenseLayout(), BlockLayout(), DirectLayout(), SemiStructuredLayout()
_BY_NAME: dict[str, Layout] = {layout.name: layout for layout in (DENSE, BLOCK, DIRECT, SEMI_STRUCTURED)}
LAYOUTS = tuple(_BY_NAME)


def layout_of(name: str) -> Layout:
    """The layout of that name. Raises ArgumentError."""
    if name not in _BY_NAME:
        raise ArgumentError(f"layout: want one of {', '.join(LAYOUTS)}, got {name!r}")
    return _BY_NAME[name]


def format_of(layout: str) -> str:
    """The order in memory that a layout reads without a copy and writes."""
    return layout_of(layout).order
