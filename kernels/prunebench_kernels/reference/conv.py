"""The oracle of masked convolution: its formula in torch, with gradients by autograd."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def masked_conv2d(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """y = conv2d(x, weight * mask): x `[N, C, H, W]`, weight and mask `[K, C / groups, R, S]`.

    Differentiable in x, weight, bias and, for a float mask, in the mask (the dense gradient).
    """
    if mask.shape != weight.shape:
        raise ValueError(f"mask: shape {tuple(mask.shape)} differs from weight's {tuple(weight.shape)}")
    return functional.conv2d(x, weight * mask.to(weight.dtype), bias, stride, padding, dilation, groups)
