"""Iterative magnitude pruning with rewinding: the lottery ticket procedure.

Train, prune a fifth of what is left globally by magnitude, rewind the weights to an early step, train on from there,
repeat; the last round prunes to exactly the asked count. Rounds do not depend on the asked sparsity and are shared.
Each round resumes the order of samples and the learning-rate schedule at the step that it rewinds to, as the paper's
code does; the last one has the budget of training and fine-tuning together. The output layer is pruned too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable
from prunebench.results.spec import Recipe


@dataclass(frozen=True)
class IterativeMagnitude:
    rate: float = 0.2
    """Share of the remaining weights pruned in a round."""
    rewind: float = 0.05
    """Share of the training steps after which the weights to rewind to are taken."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        start, rounds = self._rewind_point(experiment), self._rounds(sparsity)
        masks = make_masks(self._magnitudes_after(experiment, start, rounds), sparsity)
        model = experiment.model_from(start)
        apply_masks(model, masks)
        recipe = experiment.recipe
        experiment.train(
            model,
            steps=recipe.steps + recipe.finetune_steps,
            start=self._rewind_step(recipe),
            name="dense",
            masks=masks,
        )
        experiment.log(rounds=rounds + 1)
        return Pruned(model, masks)

    def training_steps(self, recipe: Recipe, sparsity: float) -> int:
        """What reaching a sparsity takes in all: dense model, rewind point, rounds and the last training."""
        early = self._rewind_step(recipe)
        rounds = self._rounds(sparsity) * (recipe.steps - early)
        return recipe.steps + early + rounds + recipe.steps + recipe.finetune_steps - early

    def _rounds(self, sparsity: float) -> int:
        """Whole rounds that leave more weights than asked for; one more prunes to exactly the asked count."""
        rounds = 0
        while (1 - self.rate) ** (rounds + 1) > 1 - sparsity:
            rounds += 1
        return rounds

    def _rewind_step(self, recipe: Recipe) -> int:
        return max(round(self.rewind * recipe.steps), 1)

    def _rewind_point(self, experiment: Experiment) -> dict[str, Tensor]:
        def early() -> dict[str, Tensor]:
            model, recipe = experiment.new_model(), experiment.recipe
            experiment.train(model, steps=recipe.steps, name="dense", stop_after=self._rewind_step(recipe))
            return state_of(model)

        return experiment.shared("rewind", early)

    def _magnitudes_after(
        self, experiment: Experiment, start: dict[str, Tensor], rounds: int
    ) -> dict[str, Tensor]:
        """|w| after `rounds` prunings and retrainings; weights already pruned score -1, below all others."""
        if rounds == 0:
            return {name: w.detach().abs() for name, w in prunable(experiment.dense_model()).items()}
        before = self._magnitudes_after(experiment, start, rounds - 1)

        def next_round() -> dict[str, Tensor]:
            masks: Masks = make_masks(before, 1 - (1 - self.rate) ** rounds)
            model, recipe = experiment.model_from(start), experiment.recipe
            apply_masks(model, masks)
            experiment.train(
                model, steps=recipe.steps, start=self._rewind_step(recipe), name="dense", masks=masks
            )
            return {
                name: torch.where(masks[name], weight.detach().abs(), -1.0)
                for name, weight in prunable(model).items()
            }

        return experiment.shared(f"round-{rounds}", next_round)


imp = method(
    "imp",
    cite="Frankle & Carbin, 2019; rewinding: Frankle et al., 2020 (Linear mode connectivity)",
    version=2,
    multi_label=True,
)(IterativeMagnitude)
