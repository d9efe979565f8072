"""The layout `compact`: per block of output channels only the places that one of them uses, for tensor cores.

A place is an (input channel, tap) pair. At sparsity s a place is used by none of 16 channels with
probability s^16, so 56, 28, 15 and 8 % of the reduction remain at 95, 98, 99 and 99.5 %. Channels are sorted by
which places they use most (a cheap signature), so that similar masks share a block. `values`
`[chunks, block_out, block_rows]` and `codes` `[chunks, block_rows]` (`codes.py`) hold a block's places in
chunks, filled up with zeros; `pointers` `[blocks + 1]` counts chunks; `order` `[K]` names the output channel at
each position. One group only. `batch_innermost` 1 reads and writes that format (`formats.py`) instead of NCHW.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.sparse import codes as places
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.shifted import shift

TENSORS = ("values", "pointers", "codes", "order")
SETTINGS: Mapping[str, int] = {"block_out": 16, "block_rows": 32, "sorted": 1, "batch_innermost": 0}


def refuse(geometry: Geometry, settings: Mapping[str, int]) -> str | None:
    """Why this convolution is not packed so, or None."""
    if geometry.groups != 1:
        return f"takes convolutions of one group, got {geometry.groups}"
    if settings["block_out"] not in (16, 32, 64) or settings["block_rows"] not in (16, 32, 64):
        return f"takes block_out and block_rows of 16, 32 or 64, got {dict(settings)}"
    for name in ("sorted", "batch_innermost"):
        if settings[name] not in (0, 1):
            return f"takes {name} 0 or 1, got {settings[name]}"
    return places.refuse(geometry)


def _order(used: Tensor, settings: Mapping[str, int]) -> Tensor:
    """Output channels, similar masks side by side: by the mean place they use."""
    if not settings["sorted"]:
        return torch.arange(used.shape[0], device=used.device)
    place = torch.linspace(0, 1, used.shape[1], dtype=torch.float64, device=used.device)
    mean = (used * place).sum(1) / used.sum(1).clamp(min=1)
    return mean.argsort(stable=True)


def row_density(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> float:
    """Share of the reduction that the blocks keep, filling included."""
    packed = pack(weight, geometry, settings)
    blocks = len(packed["pointers"]) - 1
    return packed["codes"].numel() / (blocks * geometry.weight_shape[1] * geometry.taps)


def pack(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> dict[str, Tensor]:
    """Store each block's used places."""
    block_out, block_rows = settings["block_out"], settings["block_rows"]
    filters = weight.flatten(1)
    order = _order(filters != 0, settings)
    blocks = -(-geometry.out_channels // block_out)
    ordered = functional.pad(filters[order], (0, 0, 0, blocks * block_out - geometry.out_channels))
    values, codes, pointers = [], [], [0]
    for block in ordered.view(blocks, block_out, -1):
        flat = (block != 0).any(0).nonzero()[:, 0]
        extra = -len(flat) % block_rows
        gathered = functional.pad(block[:, flat], (0, extra))
        values.append(gathered.view(block_out, -1, block_rows).transpose(0, 1))
        codes.append(functional.pad(places.encode(flat, 0, geometry), (0, extra)).view(-1, block_rows))
        pointers.append(pointers[-1] + codes[-1].shape[0])
    return {
        "values": torch.cat(values).contiguous(),
        "pointers": torch.tensor(pointers, dtype=torch.int32, device=weight.device),
        "codes": torch.cat(codes).contiguous(),
        "order": order.to(torch.int32),
    }


def unpack(tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]) -> Tensor:
    """The weight `[K, C, R, S]`."""
    block_out = settings["block_out"]
    pointers, order = tensors["pointers"].to(torch.int64), tensors["order"].to(torch.int64)
    block = torch.repeat_interleave(torch.arange(len(pointers) - 1, device=order.device), pointers.diff())
    filters = tensors["values"].new_zeros(
        len(pointers) - 1, geometry.weight_shape[1] * geometry.taps, block_out
    )
    flat = places.flat_position(tensors["codes"], geometry)
    # Filling has code 0 and value 0: adding it, unlike writing it, leaves the place 0 as it is.
    filters.index_put_((block[:, None], flat), tensors["values"].transpose(1, 2), accumulate=True)
    ordered = filters.transpose(1, 2).flatten(0, 1)[: geometry.out_channels]
    weight = torch.empty_like(ordered)
    weight[order] = ordered
    return weight.view(geometry.weight_shape)


def convolve(
    x: Tensor, tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]
) -> Tensor:
    """Per block one product with the gathered inputs of its places."""
    block_out = settings["block_out"]
    inputs = shift(x, geometry)
    product = x.new_empty(geometry.out_channels, inputs.pixels)
    pointers, order = tensors["pointers"].tolist(), tensors["order"].to(torch.int64)
    for block, (start, end) in enumerate(pairwise(pointers)):
        channels = order[block * block_out : (block + 1) * block_out]
        weight = tensors["values"][start:end].transpose(0, 1).flatten(1)[: len(channels)]
        rows = inputs.rows(tensors["codes"][start:end].flatten())
        product[channels] = weight @ rows
    return inputs.crop(product)
