"""First-order Taylor pruning of single weights: |w dL/dw| of the trained network, compared globally."""

from __future__ import annotations

from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion


@criterion(
    "taylor",
    cite="Molchanov et al., 2017 (Pruning CNNs for resource efficient inference)",
    needs={"gradient"},
)
def taylor(weight: Tensor, context: ScoringContext) -> Tensor:
    return (weight * context.gradient(weight)).abs()
