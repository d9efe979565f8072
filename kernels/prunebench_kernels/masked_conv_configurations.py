"""Tiles of the masked convolution's Triton kernels: a rule by shape and dtype, and what is worth measuring.

The rule comes from tile counting (132 SMs of an H200) and compile-time facts; nothing in it was measured on a GPU.
"""

from __future__ import annotations

import dataclasses

import torch

from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.masked_conv_geometry import PARTS, Configuration, Geometry, compute_name

SHARED_MEMORY = 163 * 1024
"""Bytes that one program may use, the smaller figure of sm_80 and sm_90."""


def configuration(
    part: str,
    geometry: Geometry,
    dtype: torch.dtype,
    *,
    multiprocessors: int = 132,
    splits: int | None = None,
    precision: str | None = None,
) -> Configuration:
    """The tile for `part` (forward, dgrad, wgrad).

    `splits` overrides how a wgrad's sum is cut to fill the multiprocessors; `precision` (float32 or tf32) what
    torch's settings say of float32.
    """
    if part not in PARTS:
        raise ArgumentError(f"part: want one of {', '.join(PARTS)}, got {part!r}")
    outputs, inputs = geometry.group_shape
    name = precision or compute_name(dtype)
    if part == "wgrad":
        return _wgrad(geometry, name, multiprocessors, splits)
    rows, channels = (inputs, outputs) if part == "dgrad" else (outputs, inputs)
    largest_rows = 64 if name == "float32" else 128
    tile_rows = _tile(rows, largest_rows)
    depth = _tile(channels, {"float32": 16, "tf32": 32}.get(name, 64))
    columns = 64 if name == "float32" else 128
    if _tiles(part, geometry, tile_rows, columns) < multiprocessors:
        columns = 64
    # Where channels fill no vector, every element has its own pointer: 4 warps spill on sm_80.
    warps = 8 if tile_rows * columns >= 128 * 128 or channels % 4 else 4
    # Triton 3.6 spills a few registers of the 4 warps of a strided 1x1 dgrad, but for TF32.
    strided = geometry.stride != (1, 1)
    if part == "dgrad" and geometry.kernel == (1, 1) and strided and name != "tf32":
        warps = 8
    if not geometry.channels_last and name != "float32":
        # In NCHW every pixel has its own pointer: Triton 3.6 keeps them all in registers, and spills larger tiles.
        columns, depth, warps = 64 if tile_rows > 64 else columns, min(depth, 32), 8
    return Configuration(tile_rows, columns, depth, warps, num_stages=2 if name == "float32" else 3)


def tuning_candidates(
    part: str, geometry: Geometry, dtype: torch.dtype, *, precision: str | None = None
) -> list[Configuration]:
    """Configurations to measure for `part`, the rule's own first; all fit the shared memory of sm_80."""
    precision = precision or compute_name(dtype)
    base = configuration(part, geometry, dtype, precision=precision)
    if precision == "float32":
        return [base]
    if part == "wgrad":
        made = _wgrad_candidates(base, geometry)
    else:
        rows = geometry.group_shape[1 if part == "dgrad" else 0]
        made = [
            dataclasses.replace(
                base, rows=tile, columns=columns, num_stages=stages, fuse_mask=fuse, num_warps=warps
            )
            for tile in sorted({min(base.rows, 64), _tile(rows, 128)})
            for columns in (64, 128)
            # Wider tiles with a mask in registers spill on sm_80.
            for stages, fuse in ((3, False), (4, False), (3, True))[: 3 if columns == 64 else 2]
            for warps in {max(base.num_warps, 8 if tile * columns >= 128 * 128 else 4)}
        ]
    itemsize = 4 if dtype == torch.float32 else 2
    return [
        entry for entry in dict.fromkeys([base, *made]) if _shared_memory(entry, itemsize) <= SHARED_MEMORY
    ]


def _wgrad_candidates(base: Configuration, geometry: Geometry) -> list[Configuration]:
    """Square and flat tiles, each with splits for half a wave, one and two waves of the multiprocessors."""
    inputs = geometry.group_shape[1]
    tiles = [
        dataclasses.replace(base, rows=rows, columns=columns, num_stages=stages, num_warps=warps)
        for rows in sorted({min(base.rows, 64), base.rows})
        for columns in sorted({min(base.columns, 64), _tile(inputs, 128)})
        for stages in (3, 4)
        for warps in {8 if rows * columns >= 128 * 128 else 4}
    ]
    return [
        dataclasses.replace(tile, splits=splits)
        for tile in tiles
        for splits in sorted({_splits(tile, geometry, processors) for processors in (66, 132, 264)})
    ]


def _wgrad(geometry: Geometry, name: str, multiprocessors: int, splits: int | None) -> Configuration:
    outputs, inputs = geometry.group_shape
    largest = 64 if name == "float32" else 128
    rows, columns = _tile(outputs, largest), _tile(inputs, 64)
    depth = {"float32": 16, "tf32": 32}.get(name, 64)
    warps = 8 if rows * columns >= 128 * 128 else 4
    tile = Configuration(rows, columns, depth, warps, num_stages=3)
    return dataclasses.replace(tile, splits=splits or _splits(tile, geometry, multiprocessors))


def _splits(tile: Configuration, geometry: Geometry, multiprocessors: int) -> int:
    """Parts of a wgrad's sum that fill the multiprocessors once.

    At least four steps a program, else the workspace costs more than the wait it saves.
    """
    outputs, inputs = geometry.group_shape
    taps = geometry.kernel[0] * geometry.kernel[1]
    programs = -(-outputs // tile.rows) * -(-inputs // tile.columns) * taps * geometry.groups
    pixels = geometry.batch * geometry.output[0] * geometry.output[1]
    return max(1, min(multiprocessors // programs, -(-pixels // tile.depth) // 4))


def _tile(extent: int, largest: int) -> int:
    """The power of two that covers `extent`, from 16 (the least a tensor-core dot takes) to `largest`."""
    return min(largest, max(16, 1 << (extent - 1).bit_length()))


def _tiles(part: str, geometry: Geometry, rows: int, columns: int) -> int:
    outputs, inputs = geometry.group_shape
    height, width = geometry.output if part == "forward" else (geometry.height, geometry.width)
    pixels = geometry.batch * height * width
    return -(-(outputs if part == "forward" else inputs) // rows) * -(-pixels // columns) * geometry.groups


def _shared_memory(made: Configuration, itemsize: int) -> int:
    """Bytes of the pipelined tiles; a fused float32 weight and mask take 8 bytes an element."""
    weight = 8 if made.fuse_mask else itemsize
    return made.num_stages * made.depth * (made.rows * weight + made.columns * itemsize)
