"""Patterns over a network: masks of N:M, of blocks and of filters that keep exactly as many weights as asked.

A pattern alone rarely meets a count: a first layer of three channels has no 2:4, and filters come in hundreds of
weights. So of N:M every group keeps at most N, and more are pruned where the count asks for it; blocks and filters go
as a whole, but for one a layer, of which the best weights stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench.errors import MaskError, UsageError, unknown
from prunebench.pruning.counts import Masks, masks_from_counts
from prunebench.pruning.distribution import Distribution, allocate, within
from prunebench.pruning.structure import BLOCK, n_of_m

PATTERNS = ("unstructured", "2:4", "block", "filter")
"""Named in errors; any `N:M` and any `block:ROWSxCOLUMNS` are understood too."""


def pattern_masks(
    structure: str,
    scores: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    keep: int,
    distribution: str | Distribution = "global",
) -> Masks:
    """Masks of a structure with `keep` weights in all.

    Args:
        structure: `N:M` (at most N of every M weights along the input channels; layers whose channels M does not
            divide are pruned without pattern, as far as the count asks), `block` or `block:ROWSxCOLUMNS` (output x
            input channels at one tap), `filter` (output channels).
        scores: by layer; a block or filter is worth the mean of its own.
        weights: for distributions that look at them.
        keep: in all.
        distribution: over layers, as `distribution.allocate` has it.

    Raises:
        UsageError: for an unknown structure, and where N:M has less room than `keep`.
    """
    if n_and_m(structure):
        allowed = largest_masks(structure, scores)
        room = {name: int(mask.sum()) for name, mask in allowed.items()}
        if keep > sum(room.values()):
            total = sum(values.numel() for values in scores.values())
            raise UsageError(
                f"{structure} keeps at most {sum(room.values())} of {total} weights: ask for a sparsity of at least "
                f"{1 - sum(room.values()) / total:.4f}, or declare native=True"
            )
        inside = {name: values.masked_fill(~allowed[name], -torch.inf) for name, values in scores.items()}
        return masks_from_counts(inside, within(allocate(distribution, inside, weights, keep), room))
    groups = {name: groups_of(structure, values.shape).to(values.device) for name, values in scores.items()}
    worth = {name: _means(values, groups[name]) for name, values in scores.items()}
    counts = allocate(distribution, worth, weights, keep)
    return {
        name: _whole_groups(values, worth[name], groups[name], counts[name])
        for name, values in scores.items()
    }


def least_sparsity(structure: str | None, scores: Mapping[str, Tensor]) -> float:
    """Share of the weights that a structure takes at the least: of 2:4 half of them where channels divide by 4."""
    if structure is None or not n_and_m(structure):
        return 0.0
    total = sum(values.numel() for values in scores.values())
    return 1 - sum(int(mask.sum()) for mask in largest_masks(structure, scores).values()) / total


def n_and_m(structure: str) -> tuple[int, int] | None:
    """N and M of `N:M`; None of another structure."""
    found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", structure)
    return (int(found[1]), int(found[2])) if found else None


def check_structure(structure: str) -> None:
    """Raise UsageError, with a suggestion, unless the structure can be made."""
    both = n_and_m(structure)
    if both is not None and both[0] > both[1]:
        raise UsageError(f"structure {structure!r}: want N <= M")
    if both is None and structure != "unstructured":
        groups_of(structure, (1, 1))


def largest_masks(structure: str, scores: Mapping[str, Tensor]) -> Masks:
    """The masks of N:M alone: N of every M, and all weights of a layer whose input channels M does not divide."""
    n, m = n_and_m(structure) or (1, 1)
    return {
        name: n_of_m(values, n, m) if values.shape[1] % m == 0 else torch.ones_like(values, dtype=torch.bool)
        for name, values in scores.items()
    }


def groups_of(structure: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The number of the group that each weight of a layer belongs to, int64 of the layer's shape."""
    outputs, inputs, *taps = shape
    found = re.fullmatch(r"block(?::([1-9]\d{0,3})x([1-9]\d{0,3}))?", structure)
    if structure == "filter":
        return torch.arange(outputs).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    if found is None:
        raise unknown("structure", structure, (*PATTERNS, "N:M", "block:16x16"))
    rows, columns = (int(found[1]), int(found[2])) if found[1] else BLOCK
    high = torch.arange(outputs).div(rows, rounding_mode="floor").view(-1, 1, 1)
    wide = torch.arange(inputs).div(columns, rounding_mode="floor").view(1, -1, 1)
    count = torch.Size(taps).numel()
    return ((high * -(-inputs // columns) + wide) * count + torch.arange(count)).view(shape)


def _means(scores: Tensor, groups: Tensor) -> Tensor:
    """The mean score of each weight's group, float64, of the layer's shape."""
    if torch.isnan(scores).any():
        raise MaskError("scores: contains nan")
    flat, number = scores.detach().double().reshape(-1), groups.reshape(-1)
    sums = torch.zeros(int(number.max()) + 1, dtype=torch.float64, device=flat.device).index_add_(
        0, number, flat
    )
    return (sums / torch.bincount(number))[number].view(scores.shape)


def _whole_groups(scores: Tensor, worth: Tensor, groups: Tensor, count: int) -> Tensor:
    """`count` weights: the groups of most worth whole, then the best weights of the next."""
    flat = groups.reshape(-1)
    best = torch.argsort(scores.reshape(-1), descending=True, stable=True)
    grouped = best[torch.argsort(flat[best], stable=True)]
    order = grouped[torch.argsort(worth.reshape(-1)[grouped], descending=True, stable=True)]
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)
