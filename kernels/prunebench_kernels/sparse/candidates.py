"""Which layouts are worth measuring for a weight: the rule that keeps `auto` from timing hopeless ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunebench_kernels.sparse import block, compact, direct
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.layouts import PackedWeight

Candidate = tuple[str, dict[str, int]]

LARGEST_DIRECT_DENSITY = {"cuda": 0.06, "cpu": 0.12}
"""Direct loses to dense above about 5 % on a GPU by arithmetic (14.8 against 240 TFLOP/s); a CPU's margin is wider."""
LARGEST_COMPACT_ROWS = 0.6
LARGEST_BLOCK_DENSITY = 0.8


def candidates(
    weight: PackedWeight | Tensor, geometry: Geometry, x_shape: Sequence[int], device: torch.device | str
) -> list[Candidate]:
    """(layout, settings) worth measuring, `dense` always first.

    By the weight's density, the density of its blocks and of the compacted reduction, and the groups.
    `x_shape` `[N, C, H, W]` as will run.
    """
    dense = weight.unpack() if isinstance(weight, PackedWeight) else weight
    kind = "cuda" if torch.device(device).type == "cuda" else "cpu"
    # Runs of eight values are the least that 16-byte loads take; a CPU copies into its own order anyway.
    orders = (0, 1) if kind == "cuda" and x_shape[0] % 8 == 0 else (0,)
    found: list[Candidate] = [("dense", {})]
    density = (dense != 0).double().mean().item()
    if geometry.groups == 1:
        found += _blocks(dense, geometry)
        settings = dict(compact.SETTINGS)
        if compact.refuse(geometry, settings) is None and density < 0.2:
            rows = compact.row_density(dense, geometry, settings)
            if rows <= LARGEST_COMPACT_ROWS:
                found += [("compact", {**settings, "batch_innermost": inner}) for inner in orders]
    depthwise = geometry.groups == geometry.in_channels
    settings = dict(direct.SETTINGS)
    if direct.refuse(geometry, settings) is None and (depthwise or density <= LARGEST_DIRECT_DENSITY[kind]):
        found += [("direct", {"batch_innermost": inner}) for inner in orders]
    return found


def _blocks(dense: Tensor, geometry: Geometry) -> list[Candidate]:
    """The block sizes that leave blocks out: of those with nearly the same density, the largest only."""
    found: list[Candidate] = []
    least = LARGEST_BLOCK_DENSITY
    for block_out, block_in in ((128, 64), (64, 64), (32, 32), (16, 16)):
        if block_out > 2 * geometry.out_channels or block_in > 2 * geometry.in_channels:
            continue
        settings = {"block_out": block_out, "block_in": block_in}
        density = block.block_density(dense, geometry, settings)
        if density <= least:
            found.append(("block", settings))
            least = 0.8 * density
    return found
