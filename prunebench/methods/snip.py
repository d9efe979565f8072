"""SNIP: connection sensitivity |w dL/dw| at initialisation, one shot, then training."""

from __future__ import annotations

from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion


@criterion("snip", needs={"gradient"}, at="init", cite="Lee et al., 2019 (SNIP)")
def snip(weight: Tensor, context: ScoringContext) -> Tensor:
    return (weight * context.gradient(weight)).abs()
