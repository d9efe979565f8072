"""The unpruned baseline: trained once for every task and seed, shared by all methods."""

from __future__ import annotations

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.masks import whole_masks


@method("dense", cite="the baseline: empirical risk minimisation, no pruning", dense=True, multi_label=True)
class DenseBaseline:
    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.new_model()
        experiment.train(model, steps=experiment.recipe.steps, name="dense")
        return Pruned(model, whole_masks(model))
