"""Counts of weights: how many survive a sparsity, and the best so many of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench.errors import MaskError, UsageError
from prunebench.results.spec import number_text

Masks = dict[str, Tensor]
"""Bool masks by the name of their weight."""


def keep_count(total: int, sparsity: float) -> int:
    """How many of `total` weights survive: total - round(total * sparsity), halves up."""
    if not 0 <= sparsity < 1:
        raise UsageError(
            f"sparsity must be in [0, 1), got {number_text(sparsity)} (0.9 prunes nine weights of ten)"
        )
    return total - math.floor(total * sparsity + 0.5)


def top_k(scores: Tensor, k: int) -> Tensor:
    """The `k` highest scores as a bool mask of the same shape; ties go to the lower index, so k is exact.

    Raises MaskError on scores that are nan.
    """
    flat = scores.detach().reshape(-1)
    if torch.isnan(flat).any():
        raise MaskError("scores: contains nan")
    if not 0 <= k <= flat.numel():
        raise MaskError(f"cannot keep {k} of {flat.numel()} weights")
    order = torch.argsort(flat, descending=True, stable=True)
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[order[:k]] = True
    return mask.view(scores.shape)


def masks_from_counts(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
    """Keep the `counts[layer]` highest scores of each layer."""
    return {name: top_k(values, counts[name]) for name, values in scores.items()}
