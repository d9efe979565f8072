"""GraSP: what a weight adds to the flow of gradients at initialisation, w (Hg), one shot, then training.

The change of the gradient's norm by removing a weight is about -w (Hg), with gradient g and Hessian H of the loss of
logits / 200; the weights whose removal helps it most go, so the largest w (Hg) stay, global. Both passes see the same
batches, eight of training. BatchNorm is in evaluation mode, as in Tanaka et al.'s code; the authors' own has it in
training mode and ten images a class.
"""

from __future__ import annotations

from torch import Tensor

from prunebench.methods.criteria import ScoringContext, criterion


@criterion(
    "grasp",
    cite="Wang et al., 2020 (Picking winning tickets before training by preserving gradient flow)",
    at="init",
    needs={"hessian_gradient"},
)
def grasp(weight: Tensor, context: ScoringContext, *, softening: float = 200.0) -> Tensor:
    return weight * context.hessian_gradient(weight, softening)
