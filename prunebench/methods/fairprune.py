"""FairPrune: weights go that matter to those who fare well, and not to those who fare badly.

Removing a weight w raises a group's loss by about h w^2 / 2, with h the loss's second derivative there (LeCun et al.,
1990). Kept are the weights of the largest h_0 w^2 / 2 - beta h_1 w^2 / 2, with 0 for the unprivileged and 1 for the
privileged, each a mean over batches of its own samples; compared over the whole network, from the dense model, at once.

Published for two values of one attribute, of which the dense network serves one better. Here the unprivileged are the
(label, bias) groups whose mean training loss under the dense network is above that of all training images: a loss, as
accuracies of training are often alike. How the second derivative was computed we do not know: it is Hutchinson's
estimate, or with `fisher` the mean squared gradient of a sample, as in StructuredFairPrune's code; that is a curvature
where the network is right alone. Nor do we know the published beta, which lies between 0 and 1, and whether the pruned
network was trained on; here it is, as all are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.criteria import BATCHES
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.masks import prunable

WU = "Wu et al., 2022 (FairPrune: achieving fairness through pruning for dermatological disease diagnosis)"


@dataclass(frozen=True)
class FairPrune:
    beta: float = 0.3
    """What the privileged weigh."""
    curvature: Literal["hessian", "fisher"] = "hessian"
    batches: int = BATCHES
    """Batches of each of the two that it is measured over."""

    def __post_init__(self) -> None:
        if self.beta < 0 or self.batches < 1:
            raise ValueError("want a beta of at least 0 and batches of at least 1")
        if self.curvature not in ("hessian", "fisher"):
            raise ValueError(f"curvature: want hessian or fisher, got {self.curvature!r}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.dense_model()
        return experiment.finetune(model, experiment.prune(model, sparsity, self.saliency(experiment, model)))

    def saliency(self, experiment: Experiment, model: Classifier) -> dict[str, Tensor]:
        """w^2 / 2 (h_0 - beta h_1) of each weight, by name."""
        split = experiment.train_split
        losses = functional.cross_entropy(experiment.predict(model), split.y, reduction="none")
        below = unprivileged(losses, split.group)
        experiment.log(unprivileged_share=float(below.float().mean()))
        own, other = (self._curvature(experiment, model, of) for of in (below, ~below))
        return {
            name: weight.detach().square() / 2 * (own[name] - self.beta * other[name])
            for name, weight in prunable(model).items()
        }

    def _curvature(self, experiment: Experiment, model: Classifier, of: Tensor) -> dict[str, Tensor]:
        """Of the samples where `of` is true, bool `[N]`."""
        statistics = experiment.statistics(model, batches=self.batches, sample_weight=of.float())
        values = statistics.squared_gradient if self.curvature == "fisher" else statistics.hessian_diagonal
        return {name: values(name) for name in prunable(model)}


fairprune = method("fairprune", cite=WU, supervision="train-groups")(FairPrune)


def unprivileged(losses: Tensor, group: Tensor) -> Tensor:
    """Which samples belong to a group whose mean loss is above that of all, bool `[N]`.

    Args:
        losses: of each sample, `[N]`.
        group: its group, int64 `[N]`; any numbers.
    """
    _, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64, device=losses.device)
    means = sums.index_add_(0, index, losses.double()) / counts
    return means[index] > losses.double().mean()
