"""Distributions of sparsity over layers: counts that sum exactly and empty no layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunebench.errors import UsageError, unknown

ALLOCATIONS = ("global", "uniform", "erk", "like-magnitude", "lamp")
Distribution = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], int], Mapping[str, int]]
"""Of scores and weights by layer and the number to keep: how many to keep of each layer."""


def allocate(
    name: str | Distribution, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], keep: int
) -> dict[str, int]:
    """Weights to keep by layer, summing to `keep`.

    `name` may be a function of one's own (`Distribution`). `global`: where the highest scores are. `uniform`: the same
    density everywhere. `erk`: Erdos-Renyi-Kernel (Evci et al., 2020). `like-magnitude`: the layer counts of global
    magnitude pruning, whatever the scores (the control that shows whether it matters *which* weights stay). `lamp`:
    where the highest LAMP scores of the weights are (Lee et al., 2021), w^2 over the sum of the squares at least as
    large in the layer.
    """
    if callable(name):
        return _whole_counts(name(scores, weights, keep), scores, keep)
    if name == "lamp":
        return global_counts({layer: lamp_scores(weights[layer]) for layer in scores}, keep)
    if name == "global":
        return global_counts(scores, keep)
    if name == "like-magnitude":
        return global_counts({layer: weights[layer].detach().abs() for layer in scores}, keep)
    return layer_counts(name, {layer: tuple(values.shape) for layer, values in scores.items()}, keep)


def lamp_scores(weight: Tensor) -> Tensor:
    """LAMP scores of one layer, float64: w_i^2 / sum of w_j^2 over all j with |w_j| >= |w_i|, ties by place."""
    squares = weight.detach().double().reshape(-1).square()
    order = torch.argsort(squares, descending=True, stable=True)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / squares[order].cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return scores.view(weight.shape)


def within(counts: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """Counts with the same sum, none above its layer's room; what does not fit goes where most room is left."""
    fitted = {layer: min(count, room[layer]) for layer, count in counts.items()}
    spare = sum(counts.values()) - sum(fitted.values())
    for layer in sorted(fitted, key=lambda name: fitted[name] - room[name]):
        moved = min(spare, room[layer] - fitted[layer])
        fitted[layer], spare = fitted[layer] + moved, spare - moved
    if spare:
        raise UsageError(f"{spare} weights have no room in any layer")
    return fitted


def _whole_counts(counts: Mapping[str, int], scores: Mapping[str, Tensor], keep: int) -> dict[str, int]:
    """What a function of one's own answered. Raises UsageError unless it is a count for each layer, summing to keep."""
    sizes = {layer: values.numel() for layer, values in scores.items()}
    if dict(counts).keys() != sizes.keys() or sum(counts.values()) != keep:
        raise UsageError(
            f"distribution: want a count for each of {len(sizes)} layers that sum to {keep}, "
            f"got {len(counts)} that sum to {sum(counts.values())}"
        )
    for layer, count in counts.items():
        if not 1 <= count <= sizes[layer]:
            raise UsageError(f"distribution: {layer} has {sizes[layer]} weights, {count} are to be kept")
    return {layer: int(counts[layer]) for layer in scores}


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
