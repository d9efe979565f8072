"""Performance-weighted loss, then magnitude pruning with it: what the dense model gets wrong keeps its weight.

A training sample weighs w = m + (1 - m) (1 - p)^gamma, with p the probability that the dense model gives to its label;
m = .75 and gamma = 5 as published. As in the released code the targets are corrected: where the dense model is right,
its own probabilities are the target (`soft_labels`), elsewhere the label. The released code scores with this loss too;
here a criterion that needs gradients has those of the plain loss. Of attributes, each has its own weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.training.loop import Batch, Objective, capturable

MEYER = "Meyer & Wong, 2022 (A fair loss function for network pruning)"


@dataclass(frozen=True)
class PerformanceWeighted:
    least: float = 0.75
    """m, the weight of a sample that the dense model is sure of."""
    gamma: float = 5.0
    soft_labels: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 or self.gamma < 0:
            raise ValueError(
                f"want least in [0, 1] and gamma of at least 0, got {self.least:g} and {self.gamma:g}"
            )

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.dense_model()
        objective = self.objective(experiment)
        return experiment.finetune(model, experiment.prune(model, sparsity), objective=objective)

    def objective(self, experiment: Experiment) -> Objective:
        """The loss, by the dense model's answers to the training images."""
        logits, y = experiment.predict(experiment.dense_model()).float(), experiment.train_split.y
        weight = performance_weight(logits, y, least=self.least, gamma=self.gamma)
        target = corrected_labels(logits, y) if self.soft_labels else as_probabilities(logits, y)
        losses = functional.cross_entropy if y.ndim == 1 else functional.binary_cross_entropy_with_logits

        @capturable
        def loss(net: nn.Module, batch: Batch) -> Tensor:
            each = losses(net(batch.x).float(), target[batch.index], reduction="none")
            return (weight[batch.index] * each).mean()

        return loss


def performance_weight(logits: Tensor, y: Tensor, *, least: float = 0.75, gamma: float = 5.0) -> Tensor:
    """least + (1 - least) (1 - p)^gamma with p the probability of the true answer.

    Args:
        logits: of the dense model, `[N, C]` of classes or `[N, K]` of attributes.
        y: classes `[N]`, or attributes `[N, K]`, 0 or 1.
        least: the smallest weight.
        gamma: how fast the weight falls as p rises.

    Returns:
        The weights, of the shape of y.
    """
    if y.ndim == 1:
        probability = logits.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    else:
        probability = torch.where(y.bool(), logits.sigmoid(), (-logits).sigmoid())
    return least + (1 - least) * (1 - probability).pow(gamma)


def as_probabilities(logits: Tensor, y: Tensor) -> Tensor:
    """Labels as probabilities: one-hot `[N, C]` of classes, float `[N, K]` of attributes."""
    return (functional.one_hot(y, logits.shape[1]) if y.ndim == 1 else y).to(logits.dtype)


def corrected_labels(logits: Tensor, y: Tensor) -> Tensor:
    """The dense model's own probabilities where its answer is right, else the label: as `as_probabilities`."""
    if y.ndim == 1:
        right, own = (logits.argmax(1) == y).unsqueeze(1), logits.softmax(1)
    else:
        right, own = (logits > 0) == y.bool(), logits.sigmoid()
    return torch.where(right, own, as_probabilities(logits, y))


pw_loss = method("pw-loss", cite=f"{MEYER}; pruned by magnitude", multi_label=True)(PerformanceWeighted)
pw_loss_dense = method("pw-loss-dense", cite=f"{MEYER}; not pruned", multi_label=True, unpruned=True)(
    PerformanceWeighted
)
