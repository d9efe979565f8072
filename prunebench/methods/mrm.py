"""Modular risk minimisation: learn a mask on the biased data, rewind, retrain the subnetwork.

The logits of the mask are pressed down by a penalty, and what stays at or above 0 is the subnetwork, as sparse as it
turns out (`mrm`). `mrm-swept` samples its masks at an asked sparsity instead and has no penalty: a ranking of logits
that never were part of a sparse network would choose among the noise of their optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.learned import DensityMasks, LearnedMasks, native_masks
from prunebench.pruning.masks import Masks, apply_masks, make_masks
from prunebench.training.loop import Batch, capturable

ZHANG = "Zhang et al., 2021 (Can subnetwork structure be the key to OOD generalization?)"


@method("mrm", cite=ZHANG, version=4, native=True)
@dataclass(frozen=True)
class ModularRiskMinimisation:
    """Settings as in the DCWP authors' reproduction, but for the noise: it is added to the raw logits.

    That reproduction adds it to their sigmoid (`sigmoid_before_noise`), so that no probability leaves (0.5, 0.731).
    """

    mask_steps: int = 2000
    mask_lr: float = 1e-2
    initial_logit: float = 1.5
    temperature: float = 1.0
    lambda_sparse: float = 1e-8
    sigmoid_before_noise: bool = False

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        logits = experiment.shared("masks", lambda: self._learn_logits(experiment))
        return retrain(experiment, native_masks(logits))

    def _learn_logits(self, experiment: Experiment) -> dict[str, Tensor]:
        learner = LearnedMasks(
            dense_to_mask(experiment),
            seed=experiment.rng("masks").initial_seed(),
            initial=self.initial_logit,
            temperature=self.temperature,
            squash=self.sigmoid_before_noise,
        )
        return learn(experiment, learner, steps=self.mask_steps, lr=self.mask_lr, penalty=self.lambda_sparse)


@method("mrm-swept", cite=f"after {ZHANG}: masks sampled at the asked sparsity")
@dataclass(frozen=True)
class SweptModularRiskMinimisation:
    """`anneal` is the share of the mask's steps in which its density falls from 1 to the asked one."""

    mask_steps: int = 2000
    mask_lr: float = 1e-2
    temperature: float = 1.0
    anneal: float = 0.5

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        logits = experiment.shared(f"masks at {sparsity!r}", lambda: self._learn_logits(experiment, sparsity))
        return retrain(experiment, make_masks(logits, sparsity))

    def _learn_logits(self, experiment: Experiment, sparsity: float) -> dict[str, Tensor]:
        learner = DensityMasks(
            dense_to_mask(experiment),
            seed=experiment.rng("masks").initial_seed(),
            density=1 - sparsity,
            anneal_steps=round(self.anneal * self.mask_steps),
            temperature=self.temperature,
        )
        return learn(experiment, learner, steps=self.mask_steps, lr=self.mask_lr)


def dense_to_mask(experiment: Experiment) -> Classifier:
    """The dense model in the layout that it trains in: the order of the masks' noise is the weights' in memory."""
    return experiment.dense_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def learn(
    experiment: Experiment, learner: LearnedMasks, *, steps: int, lr: float, penalty: float = 0.0
) -> dict[str, Tensor]:
    """The logits `[shape]` by layer that the task's loss, and the penalty on their sum, lead to."""

    @capturable
    def objective(model: nn.Module, batch: Batch) -> Tensor:
        _, logits = learner.features_and_logits(batch.x)
        return functional.cross_entropy(logits.float(), batch.y) + penalty * learner.sum_of_logits()

    experiment.train(
        learner,
        steps=steps,
        lr=lr,
        name="masks",
        objective=objective,
        parameters=[learner.logits],
        optimizer="adam",
        weight_decay=0.0,
        schedule="constant",
    )
    return learner.named_logits()


def retrain(experiment: Experiment, masks: Masks) -> Pruned:
    """The subnetwork of the initial weights, trained with the whole budget."""
    model = experiment.new_model()
    apply_masks(model, masks)
    steps = experiment.recipe.steps + experiment.recipe.finetune_steps
    experiment.train(model, steps=steps, name="dense", masks=masks)
    return Pruned(model, masks)
