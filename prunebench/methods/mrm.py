"""Modular risk minimisation: learn a mask on the biased data, rewind, retrain the subnetwork."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.learned import LearnedMasks
from prunebench.pruning.masks import apply_masks, make_masks
from prunebench.training.loop import Batch, capturable


@method(
    "mrm", cite="Zhang et al., 2021 (Can subnetwork structure be the key to OOD generalization?)", version=3
)
@dataclass(frozen=True)
class ModularRiskMinimisation:
    """Settings as in the DCWP authors' reproduction; the logits are ranked to reach the asked sparsity."""

    mask_steps: int = 400
    mask_lr: float = 1e-2
    initial_logit: float = 1.5
    temperature: float = 1.0
    lambda_sparse: float = 1e-8
    sigmoid_before_noise: bool = True

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        logits = experiment.shared("masks", lambda: self._learn_masks(experiment))
        masks = make_masks(logits, sparsity)
        model = experiment.new_model()
        apply_masks(model, masks)
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        experiment.train(model, steps=steps, name="dense", masks=masks)
        return Pruned(model, masks)

    def _learn_masks(self, experiment: Experiment) -> dict[str, Tensor]:
        dense = experiment.dense_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = LearnedMasks(
            dense,  # in the layout that it trains in: the order of its noise is the weights' in memory
            seed=experiment.rng("masks").initial_seed(),
            initial=self.initial_logit,
            temperature=self.temperature,
            squash=self.sigmoid_before_noise,
        )

        @capturable
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            _, logits = learner.features_and_logits(batch.x)
            task = functional.cross_entropy(logits.float(), batch.y)
            return task + self.lambda_sparse * learner.sum_of_logits()

        experiment.train(
            learner,
            steps=self.mask_steps,
            lr=self.mask_lr,
            name="masks",
            objective=objective,
            parameters=[learner.logits],
            optimizer="adam",
            betas=(0.9, 0.99),
            weight_decay=0.0,
            schedule="constant",
        )
        return learner.named_logits()
