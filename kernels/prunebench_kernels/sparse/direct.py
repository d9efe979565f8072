"""The layout `direct`: every weight on its own, as (value, place), for unstructured masks of very high sparsity.

Output channels are sorted by their number of weights, most first, so that neighbours take equally long:
`order` `[K]` names the output channel at each position, `pointers` `[K + 1]` its range in `values` and `codes`
(`codes.py`). Within a channel the weights are sorted by input channel. Any groups. `batch_innermost` 1 reads and
writes that format (`formats.py`) instead of NCHW.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench_kernels.sparse import codes as places
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.shifted import shift

TENSORS = ("values", "pointers", "codes", "order")
SETTINGS: Mapping[str, int] = {"batch_innermost": 0}


def refuse(geometry: Geometry, settings: Mapping[str, int]) -> str | None:
    """Why this convolution is not packed so, or None."""
    if settings["batch_innermost"] not in (0, 1):
        return f"takes batch_innermost 0 or 1, got {settings['batch_innermost']}"
    return places.refuse(geometry)


def pack(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> dict[str, Tensor]:
    """List the weights other than zero, by output channel."""
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
        "codes": places.encode(flat, group * (geometry.in_channels // geometry.groups), geometry),
        "order": order.to(torch.int32),
    }


def unpack(tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]) -> Tensor:
    """The weight `[K, C / groups, R, S]`."""
    order, pointers = tensors["order"].to(torch.int64), tensors["pointers"].to(torch.int64)
    output = torch.repeat_interleave(order, pointers.diff())
    channel, row, column = places.decode(tensors["codes"])
    weight = tensors["values"].new_zeros(geometry.weight_shape)
    weight[output, channel % (geometry.in_channels // geometry.groups), row, column] = tensors["values"]
    return weight


def convolve(
    x: Tensor, tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]
) -> Tensor:
    """One product of a CSR matrix `[K, used places]` with the gathered inputs of the used places."""
    inputs = shift(x, geometry)
    flat = places.flat_position(tensors["codes"], geometry)
    code_at = torch.full((geometry.in_channels * geometry.taps,), -1, dtype=torch.int32, device=x.device)
    code_at[flat] = tensors["codes"]
    used = code_at >= 0
    codes = code_at[used]
    weight = _csr(tensors, (used.cumsum(0) - 1)[flat], len(codes))
    return inputs.crop(weight @ inputs.rows(codes))


def _csr(tensors: Mapping[str, Tensor], column: Tensor, width: int) -> Tensor:
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
        return torch.sparse_csr_tensor(starts, columns, values, (len(order), width), check_invariants=False)
