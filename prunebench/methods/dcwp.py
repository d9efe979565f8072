"""Debiased contrastive weight pruning: find an unbiased subnetwork with a learned mask.

(1) Mine bias-conflicting samples: those that a biased net, trained with GCE, gets wrong. (2) On the frozen
dense model learn mask logits with upweighted sampling and a contrastive loss towards the mined samples.
(3) Keep the dense weights under the mask and fine-tune them, mined samples upweighted.

Only what the result depends on is trained: the released code also trains a main net while mining and a biased
net while pretraining, and throws both away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import unknown
from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.learned import LearnedMasks, native_masks
from prunebench.pruning.masks import Masks, apply_masks, make_masks
from prunebench.training.loop import Batch, capturable
from prunebench.training.losses import contrastive_loss, gce_objective

CITE = "Park et al., CVPR 2023 (Training debiased subnetworks with contrastive weight pruning)"
ADAM_BETAS = (0.9, 0.99)
PUBLISHED_UPWEIGHT = {0.005: 80.0, 0.01: 50.0, 0.02: 30.0, 0.05: 10.0}


@dataclass(frozen=True)
class DebiasedPruning:
    """The settings of the paper and its code; steps are those of the shortened schedule.

    `mining`: `wrong` uses the biased net at the end of its schedule, `early-stop` after `early_stop` of it.
    `finetune_upweight=0` takes the published weight for the task's share of conflicting images.
    `sigmoid_before_noise` and `positives_as_coded` are the two quirks of the released code; published numbers
    come from it, so they are the default.
    """

    mining: str = "wrong"
    mining_steps: int = 400
    mining_lr: float = 0.1
    early_stop: float = 0.25
    mask_steps: int = 400
    mask_lr: float = 1e-2
    initial_logit: float = 1.5
    temperature: float = 1.0
    lambda_sparse: float = 1e-8
    lambda_contrast: float = 0.05
    contrast_temperature: float = 0.07
    mask_upweight: float = 80.0
    finetune_upweight: float = 0.0
    sigmoid_before_noise: bool = True
    positives_as_coded: bool = True

    def __post_init__(self) -> None:
        if self.mining not in ("wrong", "early-stop"):
            raise unknown("mining", self.mining, ("wrong", "early-stop"))

    def masks(self, logits: dict[str, Tensor], sparsity: float) -> Masks:
        """Rank the logits to reach the asked sparsity exactly."""
        return make_masks(logits, sparsity)

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        conflicting = experiment.shared("mined", lambda: self._mine(experiment), owner="dcwp")["wrong"].bool()
        experiment.report_mining(conflicting)
        dense = experiment.dense_model()
        logits = experiment.shared("masks", lambda: self._learn_masks(experiment, conflicting), owner="dcwp")
        experiment.log(
            native_sparsity=1 - float(torch.cat([v.flatten() >= 0 for v in logits.values()]).float().mean())
        )
        masks = self.masks(logits, sparsity)
        apply_masks(dense, masks)
        upweight = self.finetune_upweight or PUBLISHED_UPWEIGHT.get(experiment.conflicting_share or 0.0, 50.0)
        return experiment.finetune(
            dense,
            masks,
            objective=self._objective(conflicting),
            betas=ADAM_BETAS,
            sample_weight=1 + (upweight - 1) * conflicting.float(),
        )

    def _mine(self, experiment: Experiment) -> dict[str, Tensor]:
        biased = experiment.new_model()
        steps = self.mining_steps
        experiment.train(
            biased,
            steps=steps,
            stop_after=max(round(self.early_stop * steps), 1) if self.mining == "early-stop" else None,
            lr=self.mining_lr,
            name="mining",
            objective=gce_objective,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
        )
        wrong = experiment.predict(biased).argmax(1) != experiment.train_split.y
        return {"wrong": wrong.byte()}

    def _learn_masks(self, experiment: Experiment, conflicting: Tensor) -> dict[str, Tensor]:
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
            features, logits = learner.features_and_logits(batch.x)
            loss = self._loss(features, logits, batch, conflicting)
            return loss + self.lambda_sparse * learner.sum_of_logits()

        experiment.train(
            learner,
            steps=self.mask_steps,
            lr=self.mask_lr,
            name="masks",
            objective=objective,
            sample_weight=1 + (self.mask_upweight - 1) * conflicting.float(),
            parameters=[learner.logits],
            optimizer="adam",
            betas=ADAM_BETAS,
            weight_decay=0.0,
            schedule="constant",
        )
        return learner.named_logits()

    def _objective(self, conflicting: Tensor):  # type: ignore[no-untyped-def]
        @capturable
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(model, Classifier)
            features = model.features(batch.x)
            return self._loss(features, model.head(features), batch, conflicting)

        return objective

    def _loss(self, features: Tensor, logits: Tensor, batch: Batch, conflicting: Tensor) -> Tensor:
        contrast = contrastive_loss(
            features,
            batch.y,
            conflicting[batch.index],
            temperature=self.contrast_temperature,
            released=self.positives_as_coded,
        )
        return functional.cross_entropy(logits.float(), batch.y) + self.lambda_contrast * contrast


@dataclass(frozen=True)
class NativeDebiasedPruning(DebiasedPruning):
    """DCWP at the sparsity that its own threshold, logit >= 0, gives."""

    def masks(self, logits: dict[str, Tensor], sparsity: float) -> Masks:
        return native_masks(logits)


dcwp = method("dcwp", cite=CITE, version=3)(DebiasedPruning)
dcwp_native = method("dcwp-native", cite=CITE, version=3, native=True)(NativeDebiasedPruning)
