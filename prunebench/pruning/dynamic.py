"""Dynamic masks: weights dropped and others grown while a network trains, as many in every layer as before."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunebench.pruning.counts import Masks
from prunebench.pruning.masks import prunable


def drop_and_grow(
    masks: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    growth: Mapping[str, Tensor],
    share: float,
) -> Masks:
    """New masks: in each layer the `share` of the kept weights that are smallest go, and as many others come.

    Args:
        masks: bool, by layer.
        weights: of the same names; the smallest magnitudes are dropped.
        growth: of the same names; where its absolute value is largest grows: gradients (RigL, Evci et al., 2020) or
            noise (SET, Mocanu et al., 2018). What was just dropped may grow again, as in RigL's released code.
        share: of the kept weights, rounded down.

    Returns:
        Masks with the same count in every layer, ties to the lower index.
    """
    return {
        name: _moved(mask, weights[name].detach().abs(), growth[name].detach().abs(), share)
        for name, mask in masks.items()
    }


def _moved(mask: Tensor, magnitude: Tensor, growth: Tensor, share: float) -> Tensor:
    kept = mask.reshape(-1)
    count = int(kept.sum())
    stay = count - int(share * count)
    held = torch.where(kept, magnitude.reshape(-1), -torch.inf).argsort(descending=True, stable=True)[:stay]
    after = torch.zeros_like(kept)
    after[held] = True
    order = torch.where(after, -torch.inf, growth.reshape(-1)).argsort(descending=True, stable=True)
    after[order[: count - stay]] = True
    return after.view(mask.shape)


def noise_like(values: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform noise in [0, 1) of the shapes of tensors, from a CPU generator, on their device."""
    return {name: torch.rand(one.shape, generator=generator).to(one.device) for name, one in values.items()}


LEAST = 1e-12
"""Of a kept weight: far too small to change an output."""


@torch.no_grad()
def wake_kept_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Make kept weights that are exactly zero 1e-12, in place.

    Those are weights that grew where no gradient comes, behind a channel that is never active; what a mask keeps is
    counted by what is not zero.
    """
    for name, weight in prunable(model).items():
        weight.masked_fill_(masks[name].to(weight.device) & (weight == 0), LEAST)


def cosine_share(step: int, *, initial: float, end: float) -> float:
    """RigL's share at a step: initial / 2 * (1 + cos(pi * step / end)), and 0 from `end` on."""
    return initial / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0
