"""Distributions of sparsity over layers: counts that sum exactly and empty no layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prunebench.errors import UsageError, unknown

ALLOCATIONS = ("global", "uniform", "erk", "like-magnitude")


def allocate(
    name: str, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], keep: int
) -> dict[str, int]:
    """Weights to keep by layer, summing to `keep`.

    `global`: where the highest scores are. `uniform`: the same density everywhere. `erk`: Erdos-Renyi-Kernel
    (Evci et al., 2020). `like-magnitude`: the layer counts of global magnitude pruning, whatever the scores (the
    control that shows whether it matters *which* weights stay).
    """
    if name == "global":
        return global_counts(scores, keep)
    if name == "like-magnitude":
        return global_counts({layer: weights[layer].detach().abs() for layer in scores}, keep)
    return layer_counts(name, {layer: tuple(values.shape) for layer, values in scores.items()}, keep)


def layer_counts(name: str, shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, int]:
    """Counts of the rules that look at layer shapes alone: min(size, t * share), t such that they sum to `keep`.

    `uniform`: a layer's share is its size. `erk`: the sum of its dimensions, so that its density is
    t * sum(shape) / prod(shape) and layers that would exceed 1 stay dense.
    """
    if name not in ("uniform", "erk"):
        raise unknown("allocation", name, ALLOCATIONS)
    sizes = {layer: math.prod(shape) for layer, shape in shapes.items()}
    shares = sizes if name == "uniform" else {layer: sum(shape) for layer, shape in shapes.items()}
    return _apportion(shares, sizes, keep)


def global_counts(scores: Mapping[str, Tensor], keep: int) -> dict[str, int]:
    """How many of the `keep` highest scores fall in each layer, after each layer's best one is kept.

    Ties go to the earlier layer and the lower index.
    """
    flat = torch.cat([values.detach().reshape(-1) for values in scores.values()])
    sizes = [values.numel() for values in scores.values()]
    if keep < len(sizes):
        raise UsageError(f"keeping {keep} weights would empty one of {len(sizes)} layers")
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    best = [start + int(flat[start : start + size].argmax()) for start, size in zip(starts, sizes)]
    order = torch.argsort(flat, descending=True, stable=True)
    reserved = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    reserved[best] = True
    chosen = reserved.clone()
    chosen[order[~reserved[order]][: keep - len(sizes)]] = True
    return {
        layer: int(chosen[start : start + size].sum()) for layer, start, size in zip(scores, starts, sizes)
    }


def _apportion(shares: Mapping[str, int], sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    """`keep` seats to layers in proportion to their shares, each 1..size, by highest averages (Webster).

    The k-th seat of a layer costs (k - 1/2) / share and the cheapest are taken, the first of every layer in any
    case. So a layer never shrinks when more weights are kept, which largest remainders do not guarantee.
    """
    if not len(sizes) <= keep <= sum(sizes.values()):
        raise UsageError(f"keeping {keep} weights would empty one of {len(sizes)} layers")

    def counts_at(cost: float) -> dict[str, int]:
        return {layer: min(max(math.floor(cost * shares[layer] + 0.5), 1), sizes[layer]) for layer in sizes}

    low, high = 0.0, float(max(sizes.values()))
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if sum(counts_at(middle).values()) <= keep:
            low = middle
        else:
            high = middle
    counts = counts_at(low)
    for _ in range(keep - sum(counts.values())):
        open_layers = [layer for layer in counts if counts[layer] < sizes[layer]]
        counts[min(open_layers, key=lambda layer: (counts[layer] + 0.5) / shares[layer])] += 1
    return counts
