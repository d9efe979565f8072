"""Tiles worth timing on a GPU, by operation: the first is the one that the operation's own rule gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from prunebench_kernels.dependence import ColumnTile, default_tile
from prunebench_kernels.layouts import PackedWeight
from prunebench_kernels.masks import Configuration
from prunebench_kernels.sparse_conv import ConvTile, run_length, tile_of
from prunebench_kernels.uncertainty import RowTile, rule


def of_uncertainty(models: int, classes: int, dtype: torch.dtype, compared: bool = False) -> list[RowTile]:
    first = rule(models, classes, dtype, compared)
    width, warps, rows = first.width, first.warps, first.rows
    if not first.whole_rows:
        others = [replace(first, width=512 * n, warps=n) for n in (2, 4)]
        return [first, *others, replace(first, warps=16)]
    others = [replace(first, registers=count) for count in (None, 168, 128)]
    others += [replace(first, registers=168, steps=steps) for steps in (2, 4)]
    others += [replace(first, registers=None, early=not first.early)]
    if rows >= 32:
        others += [
            RowTile(width, 32, n, n, early=early)
            for n in (1, 4, 8, 16)
            if n <= models
            for early in (True, False)
        ]
    elif rows == warps:
        others += [replace(first, rows=n, warps=n, registers=168) for n in (1, 2, 8)]
        others += [replace(first, width=2 * width, rows=rows // 2 or 1, warps=max(2, warps), registers=None)]
    else:
        wider = {"width": 2 * width, "rows": rows // 2 or 1, "warps": max(warps, 2 * warps // rows)}
        others += [replace(first, **wider, registers=None)]
        others += [replace(first, rows=n * rows, warps=n * warps, registers=None) for n in (2, 4)]
    return list(dict.fromkeys([first, *others]))


def of_dependence(columns: int) -> list[ColumnTile]:
    first = default_tile(columns)
    others = [
        ColumnTile(first.columns, rows, warps, stages, programs)
        for rows, warps, stages, programs in (
            (32, 4, 4, 2), (32, 8, 4, 2), (64, 4, 3, 2), (64, 8, 3, 2), (64, 8, 4, 1), (128, 8, 3, 1), (128, 8, 2, 2),
        )
        if rows <= 64 or columns <= 64  # two tiles of 128 rows spill on sm_80
    ]  # fmt: skip
    return [first, *(tile for tile in others if tile != first)]


def of_sparse_conv(
    packed: PackedWeight, x_shape: Sequence[int], device: torch.device | str = "cpu"
) -> list[ConvTile]:
    first = tile_of(packed, x_shape, torch.device(device))
    small = packed.dtype == torch.float32
    if packed.layout == "block":
        shapes = (
            ((32, 8, 2), (32, 8, 3), (64, 8, 2), (64, 8, 3))
            if small
            else ((64, 4, 4), (64, 4, 5), (128, 4, 4), (128, 4, 3), (128, 8, 4), (128, 8, 3), (256, 8, 3))
        )
        found = [first, *(ConvTile(*shape) for shape in shapes)]
    else:
        run = run_length(x_shape[0], packed.dtype)
        found = [
            first,
            replace(first, unroll=4),
            replace(first, pixels=2 * first.pixels),
            replace(first, pixels=max(run, first.pixels // 2)),
            replace(first, channels=4, warps=4),
            replace(first, channels=16, warps=16),
            replace(first, splits=min(2 * first.splits, -(-packed.geometry.out_channels // 8))),
            replace(first, splits=-(-first.splits // 2)),
        ]
    return list(dict.fromkeys(found))[:8]


def of_masks() -> tuple[Configuration, ...]:
    """For each of the four kernels."""
    sizes = (512, 2), (512, 4), (1024, 2), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8)
    return tuple(Configuration(*size) for size in sizes)
