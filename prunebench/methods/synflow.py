"""SynFlow: the flow through the network of absolute weights, scored in a hundred rounds before training, without data.

R is the sum of the outputs for an image of ones, in evaluation mode, with every parameter and buffer replaced by its
absolute value, in float64; a weight scores |w dR/dw|. The density falls exponentially over the rounds, global, and what
went does not come back, also where nothing flows any more. Each round is charged as a step, though it passes one image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunebench.methods.criteria import ScoringContext, criterion
from prunebench.pruning.masks import prunable

TANAKA = "Tanaka et al., 2020 (Pruning neural networks without any data)"


@criterion("synflow", cite=TANAKA, at="init", needs={"network"}, schedule="exponential", rounds=100)
def synflow(weight: Tensor, context: ScoringContext) -> Tensor:
    scores = context.once("flow", lambda: flow_scores(context.network(), context.image_shape()))
    return scores[context.name(weight)].masked_fill(weight == 0, -1.0)


def flow_scores(net: nn.Module, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """|w dR/dw| of every prunable weight, float64; changes `net`, which is in evaluation mode, to float64."""
    with torch.no_grad():
        for value in net.double().state_dict().values():
            value.abs_()
    weights = prunable(net)
    ones = torch.ones(1, *shape, dtype=torch.float64, device=next(net.parameters()).device)
    slopes = torch.autograd.grad(net(ones).sum(), list(weights.values()))
    return {name: (weight.detach() * slope).abs() for (name, weight), slope in zip(weights.items(), slopes)}
