"""Sparsity patterns: masks of one layer from its scores, unstructured or with a fixed structure.

Scores have the weight's shape: `[O, I]` of a linear layer or `[O, I, KH, KW]` of a convolution (I: input channels
of one group); higher = keep. Masks are bool of the same shape, with exact counts and ties to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunebench.errors import MaskError, UsageError, unknown
from prunebench.pruning.counts import keep_count, top_k

BLOCK = (64, 64)
"""Output x input channels of a block, as the block-sparse kernels skip them."""


def unstructured(scores: Tensor, sparsity: float) -> Tensor:
    """The `keep_count` highest scores, wherever they stand."""
    return top_k(scores, _keep(scores.numel(), sparsity, "weights"))


def n_of_m(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """The n highest of every m scores that follow each other along the input channels, at each output and tap.

    The order is that of `scores.permute(0, 2, 3, 1)`: groups never reach over taps or outputs. Sparsity is
    1 - n/m exactly. Raises MaskError where the input channels are no multiple of m (a first layer of 3 channels):
    such a layer has no n:m mask, leave it dense.
    """
    if not 0 < n <= m:
        raise UsageError(f"n of m: want 0 < n <= m, got {n} of {m}")
    values = _checked(scores)
    inputs = values.shape[1]
    if inputs % m:
        raise MaskError(f"{inputs} input channels are no multiple of {m}: {n}:{m} leaves this layer dense")
    last = values.movedim(1, -1)
    groups = last.reshape(-1, m)
    order = torch.argsort(groups, dim=1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return mask.view(last.shape).movedim(-1, 1).contiguous()


def block(scores: Tensor, sparsity: float, block: tuple[int, int] = BLOCK) -> Tensor:
    """Whole blocks of output x input channels within one tap, those with the highest summed scores.

    Of B blocks exactly keep_count(B, sparsity) stay. Blocks at the edge are smaller where the channels are no
    multiple of the block, so that their sums are too, and the share of zero weights may differ from `sparsity`.
    Index order of ties: output block, input block, tap.
    """
    values = _checked(scores)
    rows, columns = block
    if rows < 1 or columns < 1:
        raise UsageError(f"block: want two positive sizes, got {rows} x {columns}")
    row_of = torch.arange(values.shape[0], device=values.device) // rows
    column_of = torch.arange(values.shape[1], device=values.device) // columns
    high, wide = -(-values.shape[0] // rows), -(-values.shape[1] // columns)
    summed = torch.zeros(high, values.shape[1], *values.shape[2:], dtype=torch.float64, device=values.device)
    summed.index_add_(0, row_of, values.double())
    sums = torch.zeros(high, wide, *values.shape[2:], dtype=torch.float64, device=values.device)
    sums.index_add_(1, column_of, summed)
    kept = top_k(sums, _keep(sums.numel(), sparsity, f"blocks of {rows} x {columns}"))
    return kept[row_of][:, column_of].contiguous()


def filters(scores: Tensor, sparsity: float) -> Tensor:
    """Whole output channels, those with the highest summed scores."""
    values = _checked(scores)
    sums = values.double().flatten(1).sum(1)
    kept = top_k(sums, _keep(len(sums), sparsity, "filters"))
    return kept.view(-1, *[1] * (values.ndim - 1)).expand(values.shape).contiguous()


def _keep(total: int, sparsity: float, what: str) -> int:
    keep = keep_count(total, sparsity)
    if keep == 0:
        raise UsageError(f"sparsity {sparsity:g} keeps none of {total} {what}: it would empty the layer")
    return keep


def _checked(scores: Tensor) -> Tensor:
    if scores.ndim < 2 or scores.numel() == 0:
        raise MaskError(f"scores: want [O, I] or [O, I, KH, KW], got {tuple(scores.shape)}")
    if torch.isnan(scores).any():
        raise MaskError("scores: contains nan")
    return scores.detach()


STRUCTURES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "unstructured": unstructured,
    "block": block,
    "filter": filters,
}
"""Structures that take any sparsity, by name."""
TWO_FOUR = "2:4"
TWO_FOUR_SPARSITY = 0.5
STRUCTURE_NAMES = (*STRUCTURES, TWO_FOUR)


def structured_mask(structure: str, scores: Tensor, sparsity: float) -> Tensor:
    """The mask of a structure by name: unstructured, block, filter, or 2:4 (at sparsity 0.5 only)."""
    if structure == TWO_FOUR:
        if sparsity != TWO_FOUR_SPARSITY:
            raise UsageError(f"2:4 has sparsity 0.5, not {sparsity:g}")
        return n_of_m(scores)
    if structure not in STRUCTURES:
        raise unknown("structure", structure, STRUCTURE_NAMES)
    return STRUCTURES[structure](scores, sparsity)
