"""SynFlow: the flow through the network of absolute weights, scored in a hundred rounds before training."""

import torch

from prunebench import criterion
from prunebench.pruning.masks import prunable


def flow(net):
    with torch.no_grad():
        for value in net.double().state_dict().values():
            value.abs_()
    net(torch.ones(1, 3, 16, 16, dtype=torch.float64)).sum().backward()
    return {name: (weight * weight.grad).detach() for name, weight in prunable(net).items()}


@criterion("my-synflow", cite="Tanaka et al., 2020", at="init", needs={"network"}, schedule="exponential")
def synflow(weight, context):
    return context.once("flow", lambda: flow(context.network()))[context.name(weight)]
