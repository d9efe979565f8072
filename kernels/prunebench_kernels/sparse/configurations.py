"""Tile sizes of the sparse convolution kernels: a plain rule, which a table measured on the GPU overrides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from prunebench_kernels import tuned
from prunebench_kernels.sparse.geometry import Geometry

WAVE = 8 * 132
"""Programs that fill an H100 or H200, eight on each of its 132 multiprocessors."""


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched.

    `pixels` is a program's tile of output pixels. `splits` programs share the output channels of one tile
    (`direct`, `compact`). `channels` are walked side by side and `unroll` steps unrolled by `direct`.
    """

    pixels: int
    warps: int
    stages: int = 1
    splits: int = 1
    channels: int = 8
    unroll: int = 2


def configuration(
    layout: str,
    geometry: Geometry,
    x_shape: Sequence[int],
    dtype: torch.dtype,
    settings: Mapping[str, int],
) -> Configuration:
    """The measured configuration for this call on the current GPU, else the rule's."""
    entry = tuned.lookup("sparse_conv2d", key(layout, geometry, x_shape, dtype, settings))
    if entry is not None:
        return Configuration(**entry)
    return rule(layout, geometry, x_shape, dtype, settings)


def key(
    layout: str, geometry: Geometry, x_shape: Sequence[int], dtype: torch.dtype, settings: Mapping[str, int]
) -> str:
    """The text under which the tuned table holds a call: layout, dtype, input, geometry, settings."""
    numbers = "x".join(str(number) for number in geometry.numbers)
    chosen = ",".join(f"{name}={value}" for name, value in sorted(settings.items()))
    return f"{layout} {str(dtype).removeprefix('torch.')} {'x'.join(map(str, x_shape))} {numbers} {chosen}".strip()


def rule(
    layout: str,
    geometry: Geometry,
    x_shape: Sequence[int],
    dtype: torch.dtype,
    settings: Mapping[str, int],
) -> Configuration:
    """The configuration that follows from sizes alone."""
    size = geometry.output_size(x_shape[2], x_shape[3])
    pixels = x_shape[0] * size[0] * size[1]
    if layout == "block":
        return _block_rule(geometry, pixels, dtype, settings)
    if layout == "direct":
        run = run_length(geometry, x_shape, dtype, settings)
        groups = -(-geometry.out_channels // 8)
        tile = _direct_tile(run, pixels, groups)
        return Configuration(tile, warps=8, splits=_splits(pixels, tile, groups))
    small = dtype == torch.float32
    tile = 64 if small else 128
    groups = -(-geometry.out_channels // settings["block_out"])
    return Configuration(tile, warps=4, stages=2 if small else 3, splits=_splits(pixels, tile, groups))


def _block_rule(
    geometry: Geometry, pixels: int, dtype: torch.dtype, settings: Mapping[str, int]
) -> Configuration:
    """Four stages of 16 and 8 KiB fit twice into a multiprocessor; IEEE float32 products need registers instead.

    Their tile of 128 channels spills with two stages in Triton 3.6 (sm_90), with three in neither 3.6 nor 3.9.
    """
    block_out = settings["block_out"]
    rows = -(-geometry.out_channels // block_out)
    if dtype == torch.float32:
        return (
            Configuration(32, warps=8, stages=3) if block_out == 128 else Configuration(64, warps=8, stages=2)
        )
    tile = 128 if -(-pixels // 128) * rows >= 132 else 64
    return Configuration(tile, warps=8 if block_out == 128 and tile == 128 else 4, stages=4)


def _direct_tile(run: int, pixels: int, groups: int) -> int:
    """The largest tile that leaves three programs a multiprocessor: reading and decoding a weight takes some 25
    instructions of every thread, whether for 8 pixels or for 32. Single pixels take two registers of address each:
    512 of them 158 registers, so that one program fits a multiprocessor; 256 of them 92, two."""
    tile = run
    while tile < min(pixels, 1024 if run > 32 else 256) and -(-pixels // (2 * tile)) * groups >= 3 * 132:
        tile *= 2
    return tile


def _splits(pixels: int, tile: int, groups: int) -> int:
    """Programs that share a tile: as few as fill the GPU, since those of one tile read the same input."""
    return max(1, min(groups, -(-WAVE // -(-pixels // tile))))


def run_length(
    geometry: Geometry, x_shape: Sequence[int], dtype: torch.dtype, settings: Mapping[str, int]
) -> int:
    """Pixels that a warp of `direct` loads at once: 32 times as many as one aligned load takes, 16 bytes at most."""
    row = x_shape[2] * x_shape[3] if geometry.is_pointwise else 1
    aligned = x_shape[0] if settings["batch_innermost"] else row
    return 32 * math.gcd(aligned, 16 // dtype.itemsize)


def tuning_candidates(
    layout: str,
    geometry: Geometry,
    x_shape: Sequence[int],
    dtype: torch.dtype,
    settings: Mapping[str, int],
) -> list[Configuration]:
    """Configurations worth measuring, the rule's first."""
    first = rule(layout, geometry, x_shape, dtype, settings)
    found = [first]
    if layout == "block":
        small = dtype == torch.float32
        for pixels, warps in ((32, 8), (64, 8)) if small else ((64, 4), (128, 4), (128, 8)):
            for stages in (2, 3) if small else (3, 4, 5):
                found.append(Configuration(pixels, warps, stages))
    elif layout == "direct":
        run = run_length(geometry, x_shape, dtype, settings)
        for pixels in sorted({max(run, least) for least in (128, 256, 512, 1024)}):
            for channels in (4, 8, 16):
                for splits in sorted({1, first.splits, 4 * first.splits}):
                    limit = -(-geometry.out_channels // channels)
                    found.append(Configuration(pixels, channels, 1, min(splits, limit), channels, 2))
    else:
        for pixels in (64, 128):
            for stages in (2, 3, 4):
                for splits in sorted({1, first.splits, 2 * first.splits}):
                    limit = -(-geometry.out_channels // settings["block_out"])
                    found.append(Configuration(pixels, 4, stages, min(splits, limit)))
    return list(dict.fromkeys(found))


def as_entry(chosen: Configuration) -> dict[str, int]:
    """What the tuned table stores."""
    return asdict(chosen)
