"""The layout `dense`: the masked weight as it is, for the library's convolution (cuDNN, oneDNN)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.sparse.geometry import Geometry

TENSORS = ("weight",)
SETTINGS: Mapping[str, int] = {}


def refuse(geometry: Geometry, settings: Mapping[str, int]) -> str | None:
    """Nothing: every convolution has a dense weight."""
    return None


def pack(weight: Tensor, geometry: Geometry, settings: Mapping[str, int]) -> dict[str, Tensor]:
    """`weight` `[K, R, S, C / groups]`: a view of it is channels_last, and files hold contiguous tensors only.

    A copy: `contiguous` would leave a 1 x 1 weight its strides, and convolutions read the memory format off them.
    """
    return {"weight": weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)}


def unpack(tensors: Mapping[str, Tensor], geometry: Geometry, settings: Mapping[str, int]) -> Tensor:
    """The weight `[K, C / groups, R, S]`, a channels_last view."""
    return tensors["weight"].permute(0, 3, 1, 2)


def convolve(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    geometry: Geometry,
    settings: Mapping[str, int],
    bias: Tensor | None = None,
) -> Tensor:
    """conv2d, with the bias that the library adds itself."""
    weight = unpack(tensors, geometry, settings)
    return functional.conv2d(
        x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
