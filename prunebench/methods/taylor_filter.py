"""Taylor pruning of filters: the squared first-order change of the loss when a channel's gate closes.

A gate multiplies the output of BatchNorm; its gradient is gamma dL/dgamma + beta dL/dbeta, and a unit's worth is the
mean over batches of the square, summed over the layers that pass the unit on (method 22 of the paper's code, in
evaluation mode: in training mode BatchNorm undoes any scale of a filter). Compared over the whole network, at once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment
from prunebench.methods.network_slimming import norms_of
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling
from prunebench.training.losses import task_loss

MOLCHANOV = "Molchanov et al., 2019 (Importance estimation for neural network pruning)"


@method("taylor-filter", cite=MOLCHANOV, multi_label=True)
@dataclass(frozen=True)
class TaylorFilter(RemoveChannels):
    distribution: Literal["uniform", "global"] = "global"
    batches: int = 8

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        net = copy.deepcopy(model).eval()
        norms = norms_of(net, coupling)
        sums = {name: torch.zeros(norm.num_features, dtype=torch.float64) for name, norm in norms.items()}
        for batch in experiment.batches(net, steps=self.batches, name="gates"):
            net.zero_grad()
            task_loss(net(batch.x), batch.y).backward()
            for name, norm in norms.items():
                assert norm.weight.grad is not None
                assert norm.bias.grad is not None
                gate = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach().double().cpu()
                sums[name] += gate.square() / self.batches
        return coupling.reduced(sums, mean=False)
