"""Movement pruning: weights that move away from zero stay; scores learn with them, while the dense model is fine-tuned.

w' = w * mask, the mask being the largest scores of each layer (uniform distribution), and the score of a weight gathers
-dL/dw' * w by the optimizer: the straight-through gradient, from zero. A masked weight keeps its value, and may come
back. As published, all weights stay for the first tenth of the fine-tuning, the density falls by a cubic until 0.8 of
it, and then rests. Scores have the weights' optimizer: only their order matters, and a learning rate of their own would
not change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.masks import apply_masks, prunable, uniform_counts
from prunebench.pruning.reparametrised import ScoredMasks
from prunebench.pruning.schedule import CubicFall
from prunebench.training.loop import Step


@dataclass(frozen=True)
class MovementPruning(CubicFall):
    """The density falls between the shares `begin` and `end` of the fine-tuning."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net, recipe = experiment.dense_model(), experiment.recipe
        steps = recipe.finetune_steps
        learner = ScoredMasks(net, {name: torch.zeros_like(weight) for name, weight in prunable(net).items()})

        def sparsify(step: Step) -> None:
            learner.counts = uniform_counts(net, self.sparsity_at(step, steps, sparsity))

        experiment.train(learner, steps=steps, lr=recipe.finetune_lr, name="movement", after_step=sparsify)
        masks = learner.masks()
        apply_masks(net, masks)
        return Pruned(net, masks)


movement = method(
    "movement",
    cite="Sanh et al., 2020 (Movement pruning: adaptive sparsity by fine-tuning)",
    multi_label=True,
)(MovementPruning)
