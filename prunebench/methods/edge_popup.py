"""Edge-popup: the best subnetwork of a network whose random weights never train; scores of the edges do.

w' = w * mask, the mask being the largest |score| of each layer (uniform distribution), with the straight-through
gradient dL/dw' * w. Weights are signed constants, +- sqrt(2 / (fan-in * density)), scores begin as Kaiming-uniform, and
BatchNorm and biases stay as they begin (scale 1, rest 0). Scores train by SGD as published: learning rate 0.1, cosine,
momentum 0.9, weight decay 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.masks import apply_masks, prunable, uniform_counts
from prunebench.pruning.reparametrised import ScoredMasks


@dataclass(frozen=True)
class EdgePopup:
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net = experiment.new_model()
        counts = uniform_counts(net, sparsity)
        make_signed_constants(net, {name: counts[name] / one.numel() for name, one in prunable(net).items()})
        learner = ScoredMasks(
            net.requires_grad_(False), initial_scores(net, experiment.rng("scores")), absolute=True
        )
        learner.counts = counts
        experiment.train(
            learner,
            steps=experiment.recipe.steps + experiment.recipe.finetune_steps,
            name="init/sparse",
            lr=self.lr,
            parameters=list(learner.scores),
            optimizer="sgd",
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="cosine",
        )
        masks = learner.masks()
        net.requires_grad_(True)
        apply_masks(net, masks)
        return Pruned(net, masks)


@torch.no_grad()
def make_signed_constants(net: Classifier, densities: Mapping[str, float]) -> None:
    """Weights become sign(w) sqrt(2 / (fan-in * density)), biases 0, in place: outputs keep their scale under masks."""
    for name, weight in prunable(net).items():
        scale = math.sqrt(2 / (weight[0].numel() * densities[name]))
        weight.copy_(torch.where(weight < 0, -scale, scale))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()


def initial_scores(net: Classifier, generator: torch.Generator) -> dict[str, Tensor]:
    """Uniform in +- 1 / sqrt(fan-in), Kaiming-uniform with a = sqrt(5), by layer."""
    return {
        name: ((2 * torch.rand(weight.shape, generator=generator) - 1) / math.sqrt(weight[0].numel())).to(
            weight.device
        )
        for name, weight in prunable(net).items()
    }


edge_popup = method(
    "edge-popup",
    cite="Ramanujan et al., 2020 (What's hidden in a randomly weighted neural network?)",
    multi_label=True,
)(EdgePopup)
