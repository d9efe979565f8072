"""2:4 sparsity: of every four weights along the input channels two stay; by magnitude, or by SR-STE.

The pattern fixes the sparsity: half of every layer whose input channels four divides, and nothing of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.methods.magnitude import magnitude
from prunebench.methods.prune import prune_by
from prunebench.pruning.masks import Masks, apply_masks, prunable
from prunebench.pruning.pattern import largest_masks
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.training.loop import Batch, Objective
from prunebench.training.losses import cross_entropy

TWO_FOUR = "2:4"
MISHRA = "Mishra et al., 2021 (Accelerating sparse deep neural networks)"
magnitude_2_4 = prune_by(magnitude, "magnitude-2-4", cite=MISHRA, structure=TWO_FOUR, native=True)


@method(
    "sr-ste",
    cite="Zhou et al., 2021 (Learning N:M fine-grained structured sparse neural networks)",
    native=True,
    multi_label=True,
)
@dataclass(frozen=True)
class SparseRefined:
    """From initialisation, with the steps of training and fine-tuning together, masks chosen anew at every step.

    The gradient of the masked weights goes straight through to all of them, and those that are masked decay by
    `decay` * w more (2e-4, as published).
    """

    decay: float = 2e-4

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.new_model()
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        learner = RefinedPattern(model)
        experiment.train(learner, steps=steps, name="dense", objective=straight_through(self.decay))
        masks = two_four(model)
        apply_masks(model, masks)
        return Pruned(model, masks)


def two_four(model: nn.Module) -> Masks:
    """The 2:4 masks of the weights as they are."""
    return largest_masks(TWO_FOUR, {name: weight.detach().abs() for name, weight in prunable(model).items()})


class RefinedPattern(Reparametrised):
    """The weights under the 2:4 masks of each pass; `away` are those that these masks take."""

    def weights(self) -> dict[str, Tensor]:
        masks, own = two_four(self.net), prunable(self.net)
        self.away = {name: weight.masked_fill(masks[name], 0) for name, weight in own.items()}
        return {name: weight - self.away[name].detach() for name, weight in own.items()}


def straight_through(decay: float) -> Objective:
    """The task's loss under 2:4 masks, with gradients g(masked weights) + decay * (1 - mask) * w."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, RefinedPattern)
        loss = cross_entropy(model, batch)
        refined = torch.stack([values.square().sum() for values in model.away.values()]).sum()
        return loss + decay / 2 * refined

    return objective
