"""A weight's place in its filter as one 32-bit integer: input channel * 256 + row of the kernel * 16 + column.

The code does not depend on the image, so that a packed weight serves every input size; kernels take it apart
with shifts. Kernels of at most 15 x 15 taps have codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench_kernels.sparse.geometry import Geometry

LARGEST_KERNEL = 15


def refuse(geometry: Geometry) -> str | None:
    """Why the places of this convolution have no codes, or None."""
    if max(geometry.kernel) > LARGEST_KERNEL:
        return f"takes kernels of at most {LARGEST_KERNEL} x {LARGEST_KERNEL}, got {geometry.kernel}"
    if geometry.in_channels >= 1 << 23:
        return f"takes fewer than {1 << 23} input channels, got {geometry.in_channels}"
    return None


def encode(flat: Tensor, first_channel: Tensor | int, geometry: Geometry) -> Tensor:
    """Codes of positions `flat` in a filter `[C / groups, R, S]` whose group begins at `first_channel`."""
    channel, tap = flat // geometry.taps + first_channel, flat % geometry.taps
    row, column = tap // geometry.kernel[1], tap % geometry.kernel[1]
    return (channel * 256 + row * 16 + column).to(torch.int32)


def decode(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input channel, row and column of the kernel, int64."""
    wide = codes.to(torch.int64)
    return wide >> 8, (wide >> 4) & 15, wide & 15


def flat_position(codes: Tensor, geometry: Geometry) -> Tensor:
    """Index of each code in `[C, R, S]` with C all input channels, int64."""
    channel, row, column = decode(codes)
    return (channel * geometry.kernel[0] + row) * geometry.kernel[1] + column
