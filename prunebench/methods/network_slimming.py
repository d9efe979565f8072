"""Network slimming: training with an L1 penalty on BatchNorm's scales, then the channels of the smallest scales go.

The penalty is lambda * sum |gamma| with lambda 1e-4, as published; the network trains with it from initialisation for
the recipe's steps, once for all sparsities. Channels are compared over the whole network by |gamma|, the mean over
the layers that hold a unit, and the narrow network is fine-tuned without the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.errors import UsageError
from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, state_of
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling
from prunebench.training.loop import Batch, Objective, capturable
from prunebench.training.losses import cross_entropy

LIU = "Liu et al., 2017 (Learning efficient convolutional networks through network slimming)"


@method("network-slimming", cite=LIU, multi_label=True)
@dataclass(frozen=True)
class NetworkSlimming(RemoveChannels):
    distribution: Literal["uniform", "global"] = "global"
    penalty: float = 1e-4

    def start(self, experiment: Experiment) -> Classifier:
        def trained() -> dict[str, Tensor]:
            model = experiment.new_model()
            objective = with_scale_penalty(model, self.penalty)
            experiment.train(model, steps=experiment.recipe.steps, name="dense", objective=objective)
            return state_of(model)

        return experiment.model_from(experiment.shared("slimming", trained))

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        return coupling.reduced({name: norm.weight.abs() for name, norm in norms_of(model, coupling).items()})


def norms_of(model: nn.Module, coupling: Coupling) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorms that pass units on. Raises UsageError where channels have none."""
    found = {name: model.get_submodule(name) for name in coupling.passed}
    norms = {
        name: layer for name, layer in found.items() if isinstance(layer, nn.BatchNorm2d) and layer.affine
    }
    held = coupling.reduced({name: torch.ones(layer.num_features) for name, layer in norms.items()})
    if not held.bool().all():
        raise UsageError(
            "channels are judged by BatchNorm's scales, and some of this network's have no BatchNorm"
        )
    return norms


def with_scale_penalty(model: nn.Module, penalty: float) -> Objective:
    """The task's loss plus `penalty` times the sum of the absolute scales of all BatchNorms of a network."""
    scales = [layer.weight for layer in model.modules() if isinstance(layer, nn.BatchNorm2d) and layer.affine]

    @capturable
    def objective(net: nn.Module, batch: Batch) -> Tensor:
        return (
            cross_entropy(net, batch) + penalty * torch.stack([scale.abs().sum() for scale in scales]).sum()
        )

    return objective
