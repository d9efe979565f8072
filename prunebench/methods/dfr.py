"""Deep feature reweighting: the head of a pruned network learned anew on group-balanced validation, its body frozen.

Logistic regression with an L1 penalty (liblinear) on standardised penultimate features. Its strength is chosen on half
of balanced validation by the worst group of the other half, then by the mean of the groups; then heads are learned on
balanced draws of all of it and their coefficients averaged. As released, the features are standardised by the half
that is learned from while the strength is chosen, and by the training images afterwards. Where all groups have as many
images, every balanced draw is the same set, and one head is learned.

The body is the pruned one, so the result says whether pruning lost the features or the head alone. The head's mask is
held: each class is fitted, one against the rest, on the features that the mask leaves it. A weight that the mask keeps
and the penalty makes zero is set to a millionth of the largest, since a sparsity is asked for exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned

KIRICHENKO = (
    "Kirichenko et al., 2023 (Last layer re-training is sufficient for robustness to spurious correlations)"
)
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class FeatureReweighting:
    strengths: Sequence[float] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    """C, the inverse of the penalty."""
    refits: int = 20

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0 or self.refits < 1:
            raise ValueError("want strengths above 0, one or more, and refits of at least 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.dense_model()
        pruned = experiment.finetune(model, experiment.prune(model, sparsity))
        return self.reweighted(experiment, pruned)

    def reweighted(self, experiment: Experiment, pruned: Pruned) -> Pruned:
        """The pruned network with its head learned anew, in place. Logged: the chosen strength (`dfr_strength`)."""
        model, split = pruned.model, experiment.val_balanced
        x = _array(experiment.features(model, split))
        y, group = split.y.cpu().numpy(), split.group.cpu().numpy()
        generator = np.random.default_rng(experiment.rng("dfr").initial_seed())
        kept = pruned.masks["head.weight"].cpu().numpy()
        strength = self._choose(x, y, group, kept, generator)
        centre, scale = standardising(_array(experiment.features(model, experiment.train_split)))
        draws = 1 if len(set(np.unique(group, return_counts=True)[1].tolist())) == 1 else self.refits
        heads = []
        for _ in range(draws):
            rows = balanced_draw(group, generator)
            heads.append(fit_head((x[rows] - centre) / scale, y[rows], kept, strength))
        weight, bias = (np.mean(values, axis=0) for values in zip(*heads))
        weight = weight / scale  # of the features as they are
        bias = bias - weight @ centre
        smallest = NEGLIGIBLE * max(float(np.abs(weight).max()), NEGLIGIBLE)
        weight = np.where((weight == 0) & kept, smallest, weight)
        with torch.no_grad():
            model.head.weight.copy_(torch.from_numpy(weight))
            model.head.bias.copy_(torch.from_numpy(bias))
        experiment.log(dfr_strength=strength)
        return pruned

    def _choose(
        self, x: Floats, y: Whole, group: Whole, kept: NDArray[np.bool_], generator: np.random.Generator
    ) -> float:
        """The strength whose worst group is best on one half when the other is learned from; ties: their mean."""
        order = generator.permutation(len(x))
        judge, learn = np.split(order, [len(x) // 2])
        learn = learn[balanced_draw(group[learn], generator)]
        centre, scale = standardising(x[learn])
        merits = []
        for strength in self.strengths:
            weight, bias = fit_head((x[learn] - centre) / scale, y[learn], kept, strength)
            right = ((x[judge] - centre) / scale @ weight.T + bias).argmax(1) == y[judge]
            accuracy = [float(right[group[judge] == each].mean()) for each in np.unique(group[judge])]
            merits.append((min(accuracy), float(np.mean(accuracy))))
        return self.strengths[max(range(len(merits)), key=merits.__getitem__)]


def balanced_draw(group: Whole, generator: np.random.Generator) -> Whole:
    """Positions of as many samples of each group that occurs in `[N]` as the smallest has."""
    names, counts = np.unique(group, return_counts=True)
    chosen = [generator.permutation(np.flatnonzero(group == name))[: counts.min()] for name in names]
    return np.concatenate(chosen)


def standardising(x: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of each feature of `[N, F]`; the deviation of a constant one is 1."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    return scaler.mean_, scaler.scale_


def fit_head(x: Floats, y: Whole, kept: NDArray[np.bool_], strength: float) -> tuple[Floats, Floats]:
    """L1 logistic regressions, each class against the rest: weights `[C, F]`, zero where not `kept`, and biases `[C]`.

    Of two classes, both halved, so that the softmax of their logits is the probability that was fitted. A class that
    does not occur, or has no feature, gets the bias of its smoothed frequency.
    """
    weight, bias = np.zeros(kept.shape), np.zeros(len(kept))
    for label, features in enumerate(kept):
        own = y == label
        if own.all() or not own.any() or not features.any():
            bias[label] = np.log((own.sum() + 0.5) / ((~own).sum() + 0.5))
            continue
        found = _logistic(strength).fit(x[:, features], own)
        weight[label, features], bias[label] = found.coef_[0], found.intercept_[0]
    return (weight / 2, bias / 2) if len(kept) == 2 else (weight, bias)


def _logistic(strength: float):  # type: ignore[no-untyped-def]
    """An L1 logistic regression by liblinear, under the names that the installed scikit-learn has for it."""
    from sklearn.linear_model import LogisticRegression

    named = LogisticRegression().get_params()["penalty"] == "l2"  # before scikit-learn 1.8
    penalty = {"penalty": "l1"} if named else {"l1_ratio": 1.0}
    return LogisticRegression(C=strength, solver="liblinear", random_state=0, **penalty)


def _array(features: torch.Tensor) -> Floats:
    return features.double().cpu().numpy()


dfr = method("dfr", cite=f"{KIRICHENKO}; after magnitude pruning", supervision="val-groups")(
    FeatureReweighting
)
dfr_dense = method("dfr-dense", cite=f"{KIRICHENKO}; not pruned", supervision="val-groups", unpruned=True)(
    FeatureReweighting
)
