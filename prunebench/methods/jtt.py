"""Just Train Twice, then magnitude pruning with the upweighted loss.

An early-stopped net marks the training samples that it gets wrong; a second net trains from scratch with
those upweighted, is pruned by magnitude and fine-tuned with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.pruning.masks import apply_masks, make_masks, prunable


@method("jtt", cite="Liu et al., 2021 (Just Train Twice); pruned by magnitude")
@dataclass(frozen=True)
class JustTrainTwice:
    identify: float = 0.25
    """Share of the training steps after which the first net marks its errors."""
    upweight: float = 20.0

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        wrong = experiment.shared("errors", lambda: self._find_errors(experiment))["wrong"].bool()
        experiment.report_mining(wrong)
        weight = 1 + (self.upweight - 1) * wrong.float()
        state = experiment.shared("retrained", lambda: self._retrain(experiment, weight))
        model = experiment.model_from(state)
        masks = make_masks({name: w.detach().abs() for name, w in prunable(model).items()}, sparsity)
        apply_masks(model, masks)
        return experiment.finetune(model, masks, sample_weight=weight)

    def _find_errors(self, experiment: Experiment) -> dict[str, Tensor]:
        model, steps = experiment.new_model(), experiment.recipe.steps
        experiment.train(model, steps=steps, name="dense", stop_after=max(round(self.identify * steps), 1))
        wrong = experiment.predict(model).argmax(1) != experiment.train_split.y
        return {"wrong": wrong.byte()}

    def _retrain(self, experiment: Experiment, weight: Tensor) -> dict[str, Tensor]:
        model = experiment.new_model()
        experiment.train(model, steps=experiment.recipe.steps, name="upweighted", sample_weight=weight)
        return state_of(model)
