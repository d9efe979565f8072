"""Orders of the four axes in memory, as the layouts read and write them.

`batch_innermost` is `[C, H, W, N]` in memory, seen as `[N, C, H, W]`: every tap of every pixel is then one aligned
run of N values, which a GPU loads 16 bytes at a time, where NCHW shifts by single elements and a small image
breaks into short rows. Elementwise operations of torch keep such strides, library convolutions copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FORMATS = ("contiguous", "channels_last", "batch_innermost")
_AXES = {"contiguous": (0, 1, 2, 3), "channels_last": (0, 2, 3, 1), "batch_innermost": (1, 2, 3, 0)}


def format_of(layout: str, settings: Mapping[str, int]) -> str:
    """The order that a layout reads without a copy and writes."""
    if layout in ("dense", "block"):
        return "channels_last"
    return "batch_innermost" if settings.get("batch_innermost") else "contiguous"


def arrange(x: Tensor, order: str) -> Tensor:
    """`x` `[N, C, H, W]` in that order in memory: itself if it is, else a copy."""
    if order == "batch_innermost":
        return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    form = torch.channels_last if order == "channels_last" else torch.contiguous_format
    return x.contiguous(memory_format=form)


def is_arranged(x: Tensor, order: str) -> bool:
    """Whether `x` lies in that order."""
    return x.permute(_AXES[order]).is_contiguous()


def empty(shape: Sequence[int], order: str, like: Tensor) -> Tensor:
    """An uninitialised `[N, C, H, W]` in that order, with the dtype and device of `like`."""
    axes = _AXES[order]
    base = torch.empty([shape[axis] for axis in axes], dtype=like.dtype, device=like.device)
    return base.permute([axes.index(axis) for axis in range(4)])
