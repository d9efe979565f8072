"""The oracle of sparse convolution: the dense convolution of the unpacked weight, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from prunebench_kernels.sparse.layouts import PackedWeight


def sparse_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y = relu(conv2d(x, W) + bias + residual) in float64: x `[N, C, H, W]`, bias `[K]`, residual as y."""
    geometry = packed.geometry
    y = functional.conv2d(
        x.to(torch.float64),
        packed.unpack().to(torch.float64),
        None if bias is None else bias.to(torch.float64),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.groups,
    )
    if residual is not None:
        y = y + residual.to(torch.float64)
    return y.relu() if relu else y
