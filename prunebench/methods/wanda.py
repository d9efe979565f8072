"""Wanda: |weight| times the norm of the input that it meets, compared within each output, uniform over layers."""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion

SUN = "Sun et al., 2024 (A simple and effective pruning approach for large language models)"


@criterion("wanda", cite=SUN, needs={"activation_norm"}, distribution="uniform")
def wanda(weight: Tensor, context: ScoringContext) -> Tensor:
    return ranks_within_outputs(weight.abs() * context.activation_norm(weight))


def ranks_within_outputs(values: Tensor) -> Tensor:
    """The rank of each value among those of its output, the smallest 0 and ties by place: the shape of `[O, ...]`.

    So a layer's lowest scores are as many of every output, give or take one.
    """
    rows = values.flatten(1)
    order = rows.argsort(dim=1, descending=True, stable=True).flip(1)
    ranks = torch.empty(rows.shape, device=rows.device)
    places = torch.arange(rows.shape[1], dtype=ranks.dtype, device=rows.device).expand_as(ranks)
    return ranks.scatter_(1, order, places).view(values.shape)
