"""SET and RigL: sparse from the first step, under masks that move; small weights go, others grow in their place.

Masks begin at random with the Erdos-Renyi-Kernel distribution, and every layer keeps its count. At an update a share of
the kept weights, 0.3 at first and falling by a cosine to nothing at three quarters of the training, is dropped by
magnitude; as many grow by the largest dense gradient (RigL) or at random (SET), from zero and with clean moments.

Settings are RigL's, for both, as in its authors' comparison (Mocanu et al. draw new weights anew each epoch). Published
updates are 100 steps apart in trainings of 32,000 and more; a short one has them closer, so that it sees at least
`fewest` of them. The gradient step of an update is taken too, as in JaxPruner; RigL's own code leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.methods.random import random
from prunebench.pruning.dynamic import cosine_share, drop_and_grow, noise_like, wake_kept_zeros
from prunebench.pruning.schedule import update_interval
from prunebench.training.loop import Step


@dataclass(frozen=True)
class DynamicSparseTraining:
    """`share` is dropped at first, none from `end` on, a share of the steps; updates lie at most `every` apart."""

    growth: Literal["gradient", "random"] = "gradient"
    share: float = 0.3
    end: float = 0.75
    every: int = 100
    fewest: int = 60

    def __post_init__(self) -> None:
        if self.growth not in ("gradient", "random"):
            raise ValueError(f"growth: want gradient or random, got {self.growth!r}")
        if not 0 <= self.share < 1 or not 0 < self.end <= 1 or self.every < 1 or self.fewest < 1:
            raise ValueError("want 0 <= share < 1, 0 < end <= 1, every and fewest of at least 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model, noise = experiment.new_model(), experiment.rng("growth")
        masks = experiment.prune(model, sparsity, random, distribution="erk")
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        end = self.end * steps
        interval = update_interval(end, every=self.every, fewest=self.fewest)

        def update(step: Step) -> Mapping[str, Tensor] | None:
            if step % interval or step >= end:
                return None
            growth = step.gradients() if self.growth == "gradient" else noise_like(step.masks, noise)
            share = cosine_share(step, initial=self.share, end=end)
            return drop_and_grow(step.masks, step.weights, growth, share)

        masks = experiment.train(model, steps=steps, name="init/sparse", masks=masks, after_step=update)
        wake_kept_zeros(model, masks)
        return Pruned(model, masks)


@dataclass(frozen=True)
class SparseEvolutionaryTraining(DynamicSparseTraining):
    growth: Literal["gradient", "random"] = "random"


rigl = method("rigl", cite="Evci et al., 2020 (Rigging the lottery)", multi_label=True)(DynamicSparseTraining)
set_training = method(
    "set",
    cite="Mocanu et al., 2018 (SET), with the schedule and layers of Evci et al., 2020 (RigL)",
    multi_label=True,
)(SparseEvolutionaryTraining)
