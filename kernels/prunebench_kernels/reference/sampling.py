"""The oracle of mask sampling: its formula in torch, with gradients by autograd."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """hard(s) = [s > 1/2] forward, the identity backward (Bengio et al., 2013)."""

    @staticmethod
    def forward(context: object, soft: Tensor) -> Tensor:
        return (soft > 0.5).to(soft.dtype)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sample_masks(
    logits: Mapping[str, Tensor],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    squash: bool = True,
) -> dict[str, Tensor]:
    """Draw hard 0/1 masks from Gumbel-sigmoid logits, with straight-through gradients.

    s = sigmoid((g(pi) + L) / temperature), mask = [s > 1/2], d mask / d s := 1, where L = log u - log(1 - u)
    is logistic noise (the difference of two Gumbel variables). With `squash`, g is the sigmoid, as DCWP's
    released code has it: the keep-probability then lies in (0.5, 0.731) whatever the logit. Without it, g is
    the identity, as in Csordas et al. (2021).

    All layers are drawn from one flat buffer: one pass over the noise, whatever the number of layers.
    Masks have the shapes, dtype and device of the logits. Raises ValueError on an empty mapping or a
    temperature that is not positive. Source: Park et al., CVPR 2023, and its released code.
    """
    if not logits:
        raise ValueError("logits: no layer to sample masks for")
    if not temperature > 0:
        raise ValueError(f"temperature: must be positive, got {temperature}")
    flat = torch.cat([values.reshape(-1) for values in logits.values()])
    uniform = torch.rand(flat.shape, generator=generator, device=flat.device, dtype=flat.dtype)
    noise = torch.logit(uniform, eps=1e-7)
    location = torch.sigmoid(flat) if squash else flat
    hard = _StraightThrough.apply(torch.sigmoid((location + noise) / temperature))
    pieces = torch.split(hard, [values.numel() for values in logits.values()])
    return {name: piece.view_as(logits[name]) for name, piece in zip(logits, pieces)}
