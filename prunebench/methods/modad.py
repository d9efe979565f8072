"""MoDAD, then magnitude pruning with its loss: bias-conflicting samples are anomalies among a biased net's features.

A biased net learns by generalised cross-entropy (1 - p^q) / q with classes drawn alike. Of each class a one-class SVM
(rbf, nu = .5) learns the features of the samples that the net gets right; of all samples of the class, the half of the
net's error rate that lie farthest out are taken for bias-conflicting. The dense model, pruned, is then trained with
both predicted groups drawn alike, a sample weighing its group's share of the batch; each conflicting one comes along
three more times, changed: flipped and rotated, rotated and perhaps stretched in contrast, and its middle enlarged.

The paper trains 100 epochs at 1e-5 and reports the best epoch on test; here the steps are the recipe's fine-tuning, and
none is chosen. The released code learns the SVM from features as they are and judges them scaled to [0, 1]
(`scaled_scores`); here both are as they are, unless asked. A class larger than `most` is learned from as many samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.training.loop import Batch, Objective, capturable, remembering

PASTORE = "Pastore et al., 2025 (Looking at model debiasing through the lens of anomaly detection)"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnomalyDebiasing:
    q: float = 0.7
    nu: float = 0.5
    error_ratio: float = 0.5
    """Of a class, this times the biased net's error rate is the share taken for conflicting."""
    scaled_scores: bool = False
    most: int = 5000
    augmented: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.q <= 1 and 0 < self.nu <= 1 and 0 < self.error_ratio <= 1 and self.most >= 2):
            raise ValueError("want q, nu and error_ratio above 0 and at most 1, and most of at least 2")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        mined = self.mined(experiment)
        experiment.report_mining(mined)
        model = experiment.dense_model()
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(
            model,
            masks,
            objective=self.objective(experiment, mined),
            sample_weight=drawn_alike(mined),
            networks=self.step_cost,
        )

    @property
    def step_cost(self) -> int:
        """In steps, rounded up: half of a batch comes along three more times."""
        return 3 if self.augmented else 1

    def mined(self, experiment: Experiment) -> Tensor:
        """Which training samples are taken for bias-conflicting, bool `[N]`: found once for all sparsities."""
        return experiment.shared("mined", lambda: self._mine(experiment), owner="modad")["conflicting"].bool()

    def _mine(self, experiment: Experiment) -> dict[str, Tensor]:
        model, split, q = experiment.new_model("biased"), experiment.train_split, self.q

        @capturable
        def generalised(net: nn.Module, batch: Batch) -> Tensor:
            each = functional.cross_entropy(net(batch.x).float(), batch.y, reduction="none")
            return ((1 - torch.exp(-q * each)) / q).mean()

        experiment.train(
            model,
            steps=experiment.recipe.steps,
            name="dense",
            objective=generalised,
            sample_weight=drawn_alike(split.y),
        )
        y, right = split.y.cpu().numpy(), (experiment.predict(model).argmax(1) == split.y).cpu().numpy()
        features = experiment.features(model, split).double().cpu().numpy()
        generator = np.random.default_rng(experiment.rng("modad").initial_seed())
        found = np.zeros(len(y), dtype=bool)
        for label in np.unique(y):
            own = np.flatnonzero(y == label)
            found[own] = self.outliers(features[own], right[own], generator)
        return {"conflicting": torch.from_numpy(found).byte()}

    def outliers(
        self, features: Floats, right: NDArray[np.bool_], generator: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Of one class's features `[n, F]`, which are outside, bool `[n]`; right: what the biased net gets right.

        None are where the net is right about fewer than two samples, so that nothing can be learned, or about all.
        """
        from sklearn.preprocessing import MinMaxScaler
        from sklearn.svm import OneClassSVM

        if right.sum() < 2 or right.all():
            return np.zeros(len(features), dtype=bool)
        learned = generator.permutation(np.flatnonzero(right))[: self.most]
        machine = OneClassSVM(kernel="rbf", gamma="scale", nu=self.nu).fit(features[learned])
        judged = MinMaxScaler().fit(features[right]).transform(features) if self.scaled_scores else features
        score = machine.decision_function(judged)
        return score <= np.percentile(score, 100 * self.error_ratio * (1 - right.mean()))

    def objective(self, experiment: Experiment, mined: Tensor) -> Objective:
        generator = experiment.rng("modad/augment")

        def loss(net: nn.Module, batch: Batch) -> Tensor:
            conflicting = mined[batch.index]
            share = conflicting.float().mean()
            weight = torch.where(conflicting, share, 1 - share)
            x, y = batch.x, batch.y
            if self.augmented and bool(conflicting.any()):
                more = changed(x[conflicting], generator)
                x = torch.cat([x, more])
                y = torch.cat([y, y[conflicting].repeat(3)])
                weight = torch.cat([weight, weight[conflicting].repeat(3)])
            each = functional.cross_entropy(net(x).float(), y, reduction="none")
            return (weight * each).mean()

        return remembering(loss, generator)


def drawn_alike(group: Tensor) -> Tensor:
    """How often each sample is drawn, `[N]`, so that all groups `[N]` (numbers or bool) that occur are drawn alike."""
    _, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
    return 1 / counts[index].float()


def changed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Three changed copies of images `[B, C, H, W]`, one set after another: `[3 B, C, H, W]`, those of a set alike.

    Flipped top to bottom with probability 1/2, then rotated by any angle; rotated, and with probability 1/2 each
    channel stretched to the range that the set has; the middle half, enlarged. What a rotation brings in is 0, the
    mean colour.
    """
    flip, stretch = (torch.rand(2, generator=generator) < 0.5).tolist()
    first = _rotated(x.flip(2) if flip else x, generator)
    second = _rotated(x, generator)
    if stretch:
        low, high = second.amin((2, 3), keepdim=True), second.amax((2, 3), keepdim=True)
        spread = (high - low).clamp(min=1e-6)
        second = x.amin() + (second - low) / spread * (x.amax() - x.amin())
    height, width = x.shape[2:]
    top, left = height // 4, width // 4
    middle = x[:, :, top : top + max(height // 2, 1), left : left + max(width // 2, 1)]
    third = functional.interpolate(middle, (height, width), mode="bilinear", antialias=True)
    return torch.cat([first, second, third])


def _rotated(x: Tensor, generator: torch.Generator) -> Tensor:
    """All images rotated by one angle, drawn from all; the nearest pixel is taken."""
    angle = float(torch.rand((), generator=generator)) * 2 * math.pi
    height, width = x.shape[2:]
    turn = torch.tensor(
        [
            [math.cos(angle), -math.sin(angle) * height / width, 0.0],
            [math.sin(angle) * width / height, math.cos(angle), 0.0],
        ],
        device=x.device,
        dtype=x.dtype,
    )
    grid = functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="nearest", align_corners=False)


modad = method("modad", cite=f"{PASTORE}; pruned by magnitude")(AnomalyDebiasing)
modad_dense = method("modad-dense", cite=f"{PASTORE}; not pruned", unpruned=True)(AnomalyDebiasing)
