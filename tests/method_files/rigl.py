"""RigL, and SET's random growth as a setting."""

from dataclasses import dataclass
from typing import Literal

from prunebench import Pruned, method
from prunebench.pruning.dynamic import cosine_share, drop_and_grow, noise_like


@method("my-rigl", cite="Evci et al., 2020 (RigL)", multi_label=True)
@dataclass(frozen=True)
class RigL:
    every: int = 100
    growth: Literal["gradient", "random"] = "gradient"

    def fit(self, experiment, sparsity):
        model, noise = experiment.new_model(), experiment.rng("growth")
        masks = experiment.prune(model, sparsity, lambda w, c: c.random(w), distribution="erk")
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps

        def update(step):
            if step % self.every or step >= 0.75 * steps:
                return None
            share = cosine_share(step, initial=0.3, end=0.75 * steps)
            new = step.gradients() if self.growth == "gradient" else noise_like(step.masks, noise)
            return drop_and_grow(step.masks, step.weights, new, share)

        masks = experiment.train(model, steps=steps, name="rigl", masks=masks, after_step=update)
        return Pruned(model, masks)
