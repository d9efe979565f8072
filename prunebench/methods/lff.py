"""Learning from Failure, then magnitude pruning with the debiased loss.

A biased net (GCE) and a debiased net train together from different initial weights; samples that the biased net finds
harder weigh more. The debiased net is then pruned by magnitude and fine-tuned with the final sample weights, which is
not of the paper: it prunes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.training.loop import Batch, capturable
from prunebench.training.losses import RelativeDifficulty, generalised_cross_entropy, weighted_cross_entropy

NAM = "Nam et al., 2020 (Learning from Failure)"


class LearningFromFailure:
    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        state = experiment.shared("debiased", lambda: self.debias(experiment), owner="lff")
        weights = state.pop("sample_weights")
        model = experiment.model_from(state)
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(model, masks, objective=weighted_cross_entropy(weights))

    def debias(self, experiment: Experiment) -> dict[str, Tensor]:
        """The weights of the debiased net, and those of the samples, `[N]`, as `sample_weights`."""
        nets = nn.ModuleList([experiment.new_model("biased"), experiment.new_model()])
        difficulty = RelativeDifficulty(experiment.train_split.y, experiment.num_classes)

        @capturable
        def objective(pair: nn.Module, batch: Batch) -> Tensor:
            biased, debiased = (net(batch.x).float() for net in pair.children())
            losses = [functional.cross_entropy(z, batch.y, reduction="none") for z in (biased, debiased)]
            weight = difficulty.update(batch.index, *losses)
            return (weight * losses[1]).mean() + generalised_cross_entropy(biased, batch.y).mean()

        experiment.train(nets, steps=experiment.recipe.steps, name="dense", objective=objective, networks=2)
        weights = difficulty.all_weights()
        return {**state_of(nets[1]), "sample_weights": weights.to(torch.float32)}


lff = method("lff", cite=f"{NAM}; pruned by magnitude", version=2)(LearningFromFailure)
lff_dense = method("lff-dense", cite=f"{NAM}; not pruned", version=2, unpruned=True)(LearningFromFailure)
