"""The layout `block`: blocks of block_out x block_in weights of one tap; blocks of zeros are not stored.

`values` `[blocks, block_out, block_in]`; blocks of one output block stand together, `pointers`
`[output blocks + 1]` says where; `columns` `[blocks]` holds tap * input blocks + input block. The last blocks
are filled up with zeros where the channels are no multiple.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.shifted import shift

TENSORS = ("values", "pointers", "columns")
SETTINGS: Mapping[str, int] = {"block_out": 64, "block_in": 64}
BLOCKS = (16, 32, 64, 128)


def refuse(geometry: Geometry, settings: Mapping[str, int]) -> str | None:
    """Why this convolution has no such blocks, or None."""
    if geometry.groups != 1:
        return f"takes convolutions of one group, got {geometry.groups}"
    for name, value in settings.items():
        if value not in BLOCKS:
            return f"takes {name} 16, 32, 64 or 128, got {value}"
    return None


def _blocks(geometry: Geometry, settings: Mapping[str, int]) -> tuple[int, int]:
    return -(-geometry.out_channels // settings["block_out"]), -(
        -geometry.in_channels // settings["block_in"]
    )


def _tiles(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> Tensor:
    """The weight as `[output blocks, taps * input blocks, block_out, block_in]`."""
    block_out, block_in = settings["block_out"], settings["block_in"]
    rows, columns = _blocks(geometry, settings)
    extra = (columns * block_in - geometry.in_channels, rows * block_out - geometry.out_channels)
    by_tap = functional.pad(weight.flatten(2).permute(2, 0, 1), (0, extra[0], 0, extra[1]))
    split = by_tap.view(geometry.taps, rows, block_out, columns, block_in)
    return split.permute(1, 0, 3, 2, 4).reshape(rows, geometry.taps * columns, block_out, block_in)


def pack(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> dict[str, Tensor]:
    """Store the blocks that hold a weight other than zero."""
    tiles = _tiles(weight, geometry, settings)
    used = (tiles != 0).flatten(2).any(2)
    row, column = used.nonzero(as_tuple=True)
    pointers = torch.zeros(tiles.shape[0] + 1, dtype=torch.int32, device=weight.device)
    pointers[1:] = used.sum(1).cumsum(0)
    return {
        "values": tiles[row, column].contiguous(),
        "pointers": pointers,
        "columns": column.to(torch.int32),
    }


def block_density(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> float:
    """Share of the blocks that would be stored."""
    return (_tiles(weight, geometry, settings) != 0).flatten(2).any(2).double().mean().item()


def unpack(tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]) -> Tensor:
    """The weight `[K, C, R, S]`."""
    values, pointers = tensors["values"], tensors["pointers"].to(torch.int64)
    rows, columns = _blocks(geometry, settings)
    block_out, block_in = settings["block_out"], settings["block_in"]
    tiles = values.new_zeros(rows, geometry.taps * columns, block_out, block_in)
    row = torch.repeat_interleave(torch.arange(rows, device=values.device), pointers.diff())
    tiles[row, tensors["columns"].to(torch.int64)] = values
    split = tiles.view(rows, geometry.taps, columns, block_out, block_in).permute(0, 3, 2, 4, 1)
    whole = split.reshape(rows * block_out, columns * block_in, *geometry.kernel)
    return whole[: geometry.out_channels, : geometry.in_channels].contiguous()


def convolve(
    x: Tensor, tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]
) -> Tensor:
    """Per stored block one matrix product with the shifted view of its input channels, added to its output block."""
    block_out, block_in = settings["block_out"], settings["block_in"]
    inputs = shift(x, geometry)
    product = x.new_empty(geometry.out_channels, inputs.pixels)
    input_blocks = _blocks(geometry, settings)[1]
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
