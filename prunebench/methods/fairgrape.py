"""FairGRAPE: weights stay so that each sensitive group keeps its share of a layer's importance.

The importance of a weight for a group is the sum over batches of (|weight| |gradient of the group's mean loss|)^2.
Layer by layer, the group whose share of the kept importance is furthest below its share before is given its most
important weight that is still free, until the layer is full; all layers keep the same share of their weights. So in
rounds that each keep .9 of the weights, as published; the recipe's fine-tuning steps are spread over the rounds (three
epochs after each in the paper). Groups are those of the bias attribute.

As described, not as released: the released code steps the optimizer while it measures, never clears gradients and
divides the last group alone by the number of batches; and it takes two weights for a group at a time. Gradients are
those of evaluation mode, so that a group's are its own, over some batches rather than the whole training split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.masks import Masks, apply_masks, prunable, uniform_counts, whole_masks

LIN = "Lin et al., 2022 (FairGRAPE: fairness-aware gradient pruning method for face attribute classification)"


@method("fairgrape", cite=LIN, supervision="train-groups")
@dataclass(frozen=True)
class FairGRAPE:
    keep: float = 0.9
    """The share of the weights that a round keeps."""
    batches: int = 8
    """Training batches that importance is measured over, anew in each round."""

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1 or self.batches < 1:
            raise ValueError(f"want keep between 0 and 1 and batches of at least 1, got {self.keep:g}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model, total = experiment.dense_model(), experiment.recipe.finetune_steps
        masks, targets = whole_masks(model), round_targets(sparsity, self.keep)
        for number, target in enumerate(targets):
            masks = self.masks(experiment, model, masks, target)
            apply_masks(model, masks)
            begin, end = (round(total * done / len(targets)) for done in (number, number + 1))
            if end > begin:
                experiment.finetune(model, masks, steps=total, start=begin, stop_after=end)
        return Pruned(model, masks)

    def masks(self, experiment: Experiment, model: Classifier, before: Masks, sparsity: float) -> Masks:
        """Masks within those before."""
        weights = prunable(model)
        importance = experiment.group_importance(model, experiment.train_split.bias, batches=self.batches)
        counts, masks = uniform_counts(model, sparsity), {}
        for name, values in importance.items():
            flat, free = values.flatten(1).double().cpu().numpy(), before[name].flatten().cpu().numpy()
            chosen = np.zeros(flat.shape[1], dtype=bool)
            places = np.flatnonzero(free)
            chosen[places[fair_choice(flat[:, places], counts[name])]] = True
            masks[name] = torch.from_numpy(chosen).view(weights[name].shape).to(weights[name].device)
        return masks


def round_targets(sparsity: float, keep: float) -> list[float]:
    """The sparsity after each round: 1 - keep, 1 - keep^2, ... and the asked one at last."""
    rounds = max(math.ceil(math.log(1 - sparsity) / math.log(keep) - 1e-9), 1)
    return [1 - keep**done for done in range(1, rounds)] + [sparsity]


def fair_choice(importance: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Which weights to keep, so that the groups' shares of importance stay near what they were.

    Args:
        importance: of each weight for each group, `[G, D]`, not negative.
        count: how many weights to keep, at most D.

    Returns:
        Positions of the chosen weights, in the order they were chosen.
    """
    totals = importance.sum(1)
    target = totals / totals.sum() if totals.sum() > 0 else np.full(len(totals), 1 / len(totals))
    order = np.argsort(-importance, axis=1, kind="stable").tolist()
    columns = np.ascontiguousarray(importance.T)
    chosen: list[int] = []
    taken = bytearray(importance.shape[1])
    upcoming = [0] * len(totals)
    kept = np.zeros(len(totals))
    gap = 1 / len(totals) - target
    while len(chosen) < count:
        group = int(gap.argmin())
        at, queue = upcoming[group], order[group]
        while taken[queue[at]]:
            at += 1
        place, upcoming[group] = queue[at], at + 1
        taken[place] = 1
        chosen.append(place)
        kept += columns[place]
        whole = kept.sum()
        if whole > 0:
            gap = kept / whole - target
    return np.array(chosen, dtype=np.int64)
