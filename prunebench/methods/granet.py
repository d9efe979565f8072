"""GraNet: gradual magnitude pruning whose every event drops half of what is left, and grows as much by gradient.

From masks of half the weights, Erdos-Renyi-Kernel at random, the density falls by a cubic to the asked one until 0.6875
of the training (epoch 110 of 160), global by magnitude. After each such event a share of the kept weights of every
layer, 0.5 at first and by a cosine 0.005 at the end, is dropped by magnitude, and as many grow by the largest dense
gradient. Events are 1,000 steps apart in the released scripts' trainings of 62,560; a short one has at least 60 in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.methods.random import random
from prunebench.pruning.dynamic import drop_and_grow, wake_kept_zeros
from prunebench.pruning.masks import make_masks
from prunebench.pruning.schedule import cubic_sparsity, update_interval
from prunebench.training.loop import Step


@dataclass(frozen=True)
class GradualRegeneration:
    """`initial` is the sparsity at first, if less than the asked one; pruning ends at `end`, a share of the steps."""

    initial: float = 0.5
    end: float = 0.6875
    share: float = 0.5
    final_share: float = 0.005
    every: int = 1000
    fewest: int = 60

    def __post_init__(self) -> None:
        if not (0 <= self.initial < 1 and 0 < self.end < 1 and 0 <= self.final_share <= self.share < 1):
            raise ValueError("want 0 <= initial < 1, 0 < end < 1 and 0 <= final_share <= share < 1")
        if self.every < 1 or self.fewest < 1:
            raise ValueError("want every and fewest of at least 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model, initial = experiment.new_model(), min(self.initial, sparsity)
        masks = experiment.prune(model, initial, random, distribution="erk")
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        interval = update_interval(steps, every=self.every, fewest=self.fewest)
        end = max(int(self.end * steps) // interval, 1) * interval

        def update(step: Step) -> Mapping[str, Tensor] | None:
            if step % interval or step == steps:
                return None
            held: Mapping[str, Tensor] = step.masks
            if step <= end:
                now = cubic_sparsity(step, begin=0, end=end, final=sparsity, initial=initial)
                held = make_masks({name: one.detach().abs() for name, one in step.weights.items()}, now)
            return drop_and_grow(held, step.weights, step.gradients(), self._share_at(step / steps))

        masks = experiment.train(model, steps=steps, name="init/sparse", masks=masks, after_step=update)
        wake_kept_zeros(model, masks)
        return Pruned(model, masks)

    def _share_at(self, progress: float) -> float:
        """The share that is dropped after a share of the training."""
        return self.final_share + (self.share - self.final_share) / 2 * (1 + math.cos(math.pi * progress))


granet = method(
    "granet",
    cite="Liu et al., 2021 (Sparse training via boosting pruning plasticity with neuroregeneration)",
    multi_label=True,
)(GradualRegeneration)
