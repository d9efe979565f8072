"""Iterative magnitude pruning with rewinding: the lottery ticket procedure.

Train, prune a fifth of what is left globally by magnitude, rewind the weights to an early step, repeat; the
last round prunes to exactly the asked count. Rounds do not depend on the asked sparsity, so they are shared.
Each round trains for the full budget with the learning-rate schedule from its start (the paper's code resumes
the schedule at the rewind point).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable


@method(
    "imp",
    cite="Frankle & Carbin, 2019; rewinding: Frankle et al., 2020 (Linear mode connectivity)",
    multi_label=True,
)
@dataclass(frozen=True)
class IterativeMagnitude:
    rate: float = 0.2
    """Share of the remaining weights pruned in a round."""
    rewind: float = 0.05
    """Share of the training steps after which the weights to rewind to are taken."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        start = self._rewind_point(experiment)
        rounds = 0
        while (1 - self.rate) ** (rounds + 1) > 1 - sparsity:
            rounds += 1
        masks = make_masks(self._magnitudes_after(experiment, start, rounds), sparsity)
        model = experiment.model_from(start)
        apply_masks(model, masks)
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        experiment.train(model, steps=steps, name="dense", masks=masks)
        experiment.log(rounds=rounds + 1)
        return Pruned(model, masks)

    def _rewind_point(self, experiment: Experiment) -> dict[str, Tensor]:
        def early() -> dict[str, Tensor]:
            model = experiment.new_model()
            steps = experiment.recipe.steps
            experiment.train(model, steps=steps, name="dense", stop_after=max(round(self.rewind * steps), 1))
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
            model = experiment.model_from(start)
            apply_masks(model, masks)
            experiment.train(model, steps=experiment.recipe.steps, name="dense", masks=masks)
            return {
                name: torch.where(masks[name], weight.detach().abs(), -1.0)
                for name, weight in prunable(model).items()
            }

        return experiment.shared(f"round-{rounds}", next_round)
