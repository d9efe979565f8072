"""Debiased contrastive weight pruning: find an unbiased subnetwork with a learned mask.

(1) Mine bias-conflicting samples: those that a biased net, trained with GCE, gets wrong. (2) On the frozen
dense model learn mask logits with upweighted sampling and a contrastive loss towards the mined samples.
(3) Keep the dense weights under the mask and fine-tune them, mined samples upweighted by the share of conflicting
images, which the method is told.

Its own threshold prunes little (logit >= 0, `dcwp-native`). To reach an asked sparsity the logits are ranked, which is
not of the paper: under the published squash keep-probabilities stay in (0.5, 0.731), so that no step of the training
has seen a network as sparse. What the mask adds is told by the same fine-tuning without one, with the largest weights,
and with the mask shuffled.

Only what the result depends on is trained: the released code also trains a main net while mining and a biased
net while pretraining, and throws both away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.errors import unknown
from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.learned import LearnedMasks, native_masks
from prunebench.pruning.masks import Masks, apply_masks, make_masks, whole_masks
from prunebench.training.loop import Batch, capturable
from prunebench.training.losses import confident_cross_entropy, contrastive_loss, gce_objective

CITE = "Park et al., CVPR 2023 (Training debiased subnetworks with contrastive weight pruning)"
FINETUNE_BETAS = (0.9, 0.99)
PUBLISHED_UPWEIGHT = {0.005: 80.0, 0.01: 50.0, 0.02: 30.0, 0.05: 10.0}
MINING = ("wrong", "early-stop", "ensemble")


@dataclass(frozen=True)
class DebiasedPruning:
    """The settings of the paper and its code; `mining_steps` are for small data (published: 2,000).

    `mining`: `wrong` uses the biased net at the end of its schedule, `early-stop` after `early_stop` of it. `ensemble`
    (published for Corrupted CIFAR-10, with as many steps as pretraining) trains the biased net by the recipe on samples
    whose label has a probability above `ensemble_least`, and takes those whose missing probability, averaged over the
    epochs, is above `ensemble_cut`. `finetune_upweight=0` takes the published weight for the task's share of
    conflicting images. Fine-tuning has a constant learning rate: `finetune_lr_share` of the recipe's.
    `sigmoid_before_noise` and `positives_as_coded` are the two quirks of the released code; published numbers
    come from it, so they are the default.
    """

    mining: str = "wrong"
    mining_steps: int = 400
    mining_lr: float = 0.1
    early_stop: float = 0.25
    ensemble_least: float = 0.05
    ensemble_cut: float = 0.8
    mask_steps: int = 2000
    mask_lr: float = 1e-2
    initial_logit: float = 1.5
    temperature: float = 1.0
    lambda_sparse: float = 1e-8
    lambda_contrast: float = 0.05
    contrast_temperature: float = 0.07
    mask_upweight: float = 80.0
    finetune_upweight: float = 0.0
    finetune_lr_share: float = 0.1
    sigmoid_before_noise: bool = True
    positives_as_coded: bool = True

    def __post_init__(self) -> None:
        if self.mining not in MINING:
            raise unknown("mining", self.mining, MINING)

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        conflicting = experiment.shared("mined", lambda: self.mine(experiment), owner="dcwp")["wrong"].bool()
        experiment.report_mining(conflicting)
        dense = experiment.dense_model()
        masks = self.masks(experiment, dense, conflicting, sparsity)
        apply_masks(dense, masks)
        upweight = self.finetune_upweight or PUBLISHED_UPWEIGHT.get(experiment.conflicting_share or 0.0, 50.0)
        return experiment.finetune(
            dense,
            masks,
            objective=self._objective(conflicting),
            lr=self.finetune_lr_share * experiment.recipe.lr,
            schedule="constant",
            betas=FINETUNE_BETAS,
            sample_weight=1 + (upweight - 1) * conflicting.float(),
        )

    def masks(self, experiment: Experiment, dense: Classifier, conflicting: Tensor, sparsity: float) -> Masks:
        """The learned logits, ranked to reach the asked sparsity exactly."""
        return make_masks(self._logits(experiment, conflicting), sparsity)

    def _logits(self, experiment: Experiment, conflicting: Tensor) -> Mapping[str, Tensor]:
        logits = experiment.shared("masks", lambda: self._learn_masks(experiment, conflicting), owner="dcwp")
        experiment.log(
            native_sparsity=1 - float(torch.cat([v.flatten() >= 0 for v in logits.values()]).float().mean())
        )
        return logits

    def mine(self, experiment: Experiment) -> dict[str, Tensor]:
        """Which samples the biased net finds hard: uint8 `[N]` as `wrong`."""
        biased = experiment.new_model()
        if self.mining == "ensemble":
            return {"wrong": self._mine_together(experiment, biased).byte()}
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

    def _mine_together(self, experiment: Experiment, biased: Classifier) -> Tensor:
        """Which samples the biased nets of all epochs together find improbable, bool `[N]`."""
        split, steps = experiment.train_split, self.mining_steps
        epoch = min(max(len(split) // experiment.recipe.batch_size, 1), steps)
        improbable = torch.zeros(len(split), device=experiment.device)

        @capturable
        def objective(model: nn.Module, batch: Batch) -> Tensor:
            return confident_cross_entropy(model(batch.x), batch.y, self.ensemble_least)

        def after_step(step: int) -> None:
            if step % epoch == 0:
                logits = experiment.predict(biased)
                biased.train()
                improbable.add_(missing_probability(logits, split.y), alpha=epoch / steps)

        experiment.train(biased, steps=steps, name="mining", objective=objective, after_step=after_step)
        return improbable > self.ensemble_cut

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

    def masks(self, experiment: Experiment, dense: Classifier, conflicting: Tensor, sparsity: float) -> Masks:
        return native_masks(self._logits(experiment, conflicting))


@dataclass(frozen=True)
class DebiasedFinetuning(DebiasedPruning):
    """DCWP without its mask: mining and fine-tuning alone."""

    def masks(self, experiment: Experiment, dense: Classifier, conflicting: Tensor, sparsity: float) -> Masks:
        return whole_masks(dense)


@dataclass(frozen=True)
class DebiasedMagnitude(DebiasedPruning):
    """DCWP with the largest weights of the dense model in place of its mask."""

    def masks(self, experiment: Experiment, dense: Classifier, conflicting: Tensor, sparsity: float) -> Masks:
        return experiment.prune(dense, sparsity)


def missing_probability(logits: Tensor, y: Tensor) -> Tensor:
    """1 - p of the label, `[N]`, of logits `[N, C]`."""
    return 1 - torch.softmax(logits.float(), 1).gather(1, y.unsqueeze(1)).squeeze(1)


RATE, VERSION = "bias-rate", 4
dcwp = method("dcwp", cite=CITE, supervision=RATE, version=VERSION)(DebiasedPruning)
dcwp_native = method("dcwp-native", cite=CITE, supervision=RATE, version=VERSION, native=True)(
    NativeDebiasedPruning
)
dcwp_dense = method(
    "dcwp-dense", cite=f"ablation of {CITE}: no mask", supervision=RATE, version=VERSION, unpruned=True
)(DebiasedFinetuning)
dcwp_magnitude_mask = method(
    "dcwp-magnitude-mask", cite=f"ablation of {CITE}: a magnitude mask", supervision=RATE, version=VERSION
)(DebiasedMagnitude)
