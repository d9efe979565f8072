"""FORCE: the connection sensitivity of the weights that stay, found in sixty rounds in which weights may come back.

Each round takes the gradient of the network as it is masked by then, on a batch of its own, and keeps the largest
|w g| of all initial weights, also of those that are masked; the density falls exponentially. Then the network trains.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable
from prunebench.pruning.schedule import exponential_targets
from prunebench.training.losses import cross_entropy


@dataclass(frozen=True)
class ForesightPruning:
    rounds: int = 60

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: want at least 1, got {self.rounds}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        masks = self._skeleton(experiment, sparsity)
        model = experiment.new_model()
        apply_masks(model, masks)
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        experiment.train(model, steps=steps, name="init/sparse", masks=masks)
        return Pruned(model, masks)

    def _skeleton(self, experiment: Experiment, sparsity: float) -> Masks:
        initial = {name: weight.detach() for name, weight in prunable(experiment.new_model()).items()}
        masks: Masks = {}
        batches = experiment.batches(experiment.new_model(), steps=self.rounds, name="force")
        for target, batch in zip(exponential_targets(self.rounds, sparsity), batches):
            masked = experiment.new_model().train()
            apply_masks(masked, masks)
            cross_entropy(masked, batch).backward()
            scores = {}
            for name, weight in prunable(masked).items():
                assert weight.grad is not None
                scores[name] = (initial[name] * weight.grad).abs()
            masks = make_masks(scores, target)
        return masks


force = method("force", cite="de Jorge et al., 2021 (Progressive skeletonization)", multi_label=True)(
    ForesightPruning
)
