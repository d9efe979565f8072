"""Continuous sparsification: soft masks sigmoid(beta s) that harden while beta grows; as sparse as it turns out.

w' = w sigmoid(beta s) / sigmoid(s_0), the loss being the task's and 1e-8 times the sum of the masks. Every s begins at
s_0 = -0.01; beta rises from 1 to 200 exponentially over the training, and s >= 0 stays at the end: one round, without
rewinding, then the pattern is held for the fine-tuning. Masks train as published, by SGD with learning rate 0.1 on the
recipe's schedule and momentum 0.9, without decay, beside the recipe's optimizer of the weights; the learning rate is
multiplied by the 59,755 published steps over those of the training, so that lr * steps is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.learned import native_masks
from prunebench.pruning.masks import apply_masks, prunable
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.training.beside import SideOptimizer
from prunebench.training.loop import Batch, Step
from prunebench.training.losses import cross_entropy

PUBLISHED_STEPS = 85 * 703
"""Epochs of CIFAR-10's 45,000 images, in batches of 64."""


class SoftMasks(Reparametrised):
    """w sigmoid(beta s) / sigmoid(s_0), s of each weight learned; `beta` is changed from outside."""

    def __init__(self, net: nn.Module, initial: float) -> None:
        super().__init__(net)
        self._names = list(prunable(net))
        self.s = nn.ParameterList(
            nn.Parameter(torch.full_like(weight, initial)) for weight in prunable(net).values()
        )
        self._scale = 1 / torch.sigmoid(torch.tensor(initial)).item()
        self.beta = 1.0

    def masks(self) -> dict[str, Tensor]:
        """Of each layer, differentiable, between 0 and 1 / sigmoid(s_0)."""
        return {name: self._scale * torch.sigmoid(self.beta * s) for name, s in zip(self._names, self.s)}

    def weights(self) -> dict[str, Tensor]:
        own = prunable(self.net)
        return {name: own[name] * mask for name, mask in self.masks().items()}

    def final_masks(self) -> dict[str, Tensor]:
        """Where s >= 0, bool; the best weight of an empty layer stays."""
        return native_masks({name: s.detach() for name, s in zip(self._names, self.s)})

    @torch.no_grad()
    def harden(self) -> None:
        """Multiply the network's weights with the limit of the masks for a large beta, in place."""
        for weight in prunable(self.net).values():
            weight.mul_(self._scale)
        apply_masks(self.net, self.final_masks())


@dataclass(frozen=True)
class ContinuousSparsification:
    initial: float = -0.01
    final_beta: float = 200.0
    penalty: float = 1e-8
    mask_lr: float = 0.1
    momentum: float = 0.9

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net, recipe = experiment.new_model(), experiment.recipe
        learner, weights = SoftMasks(net, self.initial), list(net.parameters())
        lr = self.mask_lr * PUBLISHED_STEPS / recipe.steps
        beside = SideOptimizer(list(learner.s), recipe, lr=lr, momentum=self.momentum)

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            total = torch.stack([mask.sum() for mask in learner.masks().values()]).sum()
            return cross_entropy(model, batch) + self.penalty * total

        def sharpen(step: Step) -> None:
            beside.step(step)
            learner.beta = self.final_beta ** (step / max(step.of - 1, 1))

        experiment.train(
            learner,
            steps=recipe.steps,
            name="dense",
            parameters=weights,
            objective=objective,
            after_step=sharpen,
        )
        masks = learner.final_masks()
        learner.harden()
        return experiment.finetune(net, masks)


continuous_sparsification = method(
    "continuous-sparsification",
    cite="Savarese et al., 2020 (Winning the lottery with continuous sparsification)",
    multi_label=True,
    native=True,
)(ContinuousSparsification)
