"""STR: weights shrink by a threshold that each layer learns, w' = sign(w) max(|w| - sigmoid(s), 0).

`str` is as sparse as it turns out: s begins at -3200 and weight decay draws it up until the loss resists. Thresholds
train as published, by SGD with learning rate 0.256 on the recipe's schedule and momentum 0.875, beside the recipe's
optimizer of the weights; their weight decay is the published 2.2518e-5, times 500,400 steps as published over those of
the training, so that decay * steps is the same. Then the pattern is held for the fine-tuning.

`str-swept` reaches an asked sparsity: one number is added to all s, such that the share that survives follows the cubic
of gradual pruning down to the asked one, from a tenth to 0.8 of the training, and layers learn their differences alone,
from 0 and by the recipe's optimizer. What survives is fine-tuned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.counts import keep_count, top_k
from prunebench.pruning.dynamic import wake_kept_zeros
from prunebench.pruning.masks import make_masks, prunable
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.pruning.schedule import CubicFall
from prunebench.training.beside import SideOptimizer
from prunebench.training.loop import Step

KUSUPATI = "Kusupati et al., 2020 (Soft threshold weight reparameterization for learnable sparsity)"
PUBLISHED_STEPS = 100 * 5004
"""Epochs of ImageNet, in batches of 256."""


class SoftThreshold(Reparametrised):
    """sign(w) max(|w| - sigmoid(s + shift), 0), s `[layers]` learned.

    With `keep`, the shift is what leaves so many weights over all layers; without, it is 0.
    """

    def __init__(self, net: nn.Module, initial: float, keep: int | None = None) -> None:
        super().__init__(net)
        device = next(net.parameters()).device
        self.s = nn.Parameter(torch.full((len(prunable(net)),), initial, device=device))
        self.keep = keep

    def weights(self) -> dict[str, Tensor]:
        thresholds = torch.sigmoid(self.s + self.shift())
        return {
            name: weight.sign() * torch.relu(weight.abs() - threshold)
            for (name, weight), threshold in zip(prunable(self.net).items(), thresholds)
        }

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """logit(|w|) - s by layer: a weight survives where that is above the shift."""
        return {
            name: torch.logit(weight.abs().double(), eps=1e-15) - s
            for (name, weight), s in zip(prunable(self.net).items(), self.s.double())
        }

    @torch.no_grad()
    def shift(self) -> Tensor:
        """The largest margin of those weights that do not survive."""
        if self.keep is None:
            return torch.zeros_like(self.s[0])
        margins = torch.cat([values.flatten() for values in self.margins().values()])
        gone = margins.numel() - self.keep
        if gone == 0:
            return torch.full_like(self.s[0], -torch.inf)
        return margins.kthvalue(gone).values.to(self.s.dtype)


@dataclass(frozen=True)
class LearnedThresholds:
    """Settings are those of the released ResNet-50 configuration for 90.23 % sparsity."""

    initial: float = -3200.0
    threshold_lr: float = 0.256
    momentum: float = 0.875
    weight_decay: float = 2.251757813e-5

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net, recipe = experiment.new_model(), experiment.recipe
        learner, weights = SoftThreshold(net, self.initial), list(net.parameters())
        beside = SideOptimizer(
            [learner.s],
            recipe,
            lr=self.threshold_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay * PUBLISHED_STEPS / recipe.steps,
        )
        experiment.train(
            learner, steps=recipe.steps, name="dense", parameters=weights, after_step=beside.step
        )
        masks = {
            name: shrunk != 0 if (shrunk != 0).any() else top_k(prunable(net)[name].detach().abs(), 1)
            for name, shrunk in learner.weights().items()
        }
        learner.settle()
        return experiment.finetune(net, masks)


@dataclass(frozen=True)
class SweptThresholds(CubicFall):
    """The density falls between the shares `begin` and `end` of the training steps."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net, steps = experiment.new_model(), experiment.recipe.steps
        total = sum(weight.numel() for weight in prunable(net).values())
        learner = SoftThreshold(net, 0.0, keep=total)

        def sparsify(step: Step) -> None:
            learner.keep = keep_count(total, self.sparsity_at(step, steps, sparsity))

        experiment.train(learner, steps=steps, name="dense", after_step=sparsify)
        masks = make_masks(learner.margins(), sparsity)
        learner.settle()
        pruned = experiment.finetune(net, masks)
        wake_kept_zeros(net, masks)
        return pruned


soft_threshold = method("str", cite=KUSUPATI, multi_label=True, native=True)(LearnedThresholds)
soft_threshold_swept = method("str-swept", cite=f"after {KUSUPATI}: at an asked sparsity", multi_label=True)(
    SweptThresholds
)
