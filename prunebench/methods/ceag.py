"""CEAG: no group shall lose more accuracy to pruning than the whole does, but for a tolerance.

Minimise the cross-entropy such that for each (label, bias) group g the excess accuracy gap [A_dense(g) - A_sparse(g)] -
[A_dense - A_sparse] is at most the tolerance: of the Lagrangian, weights descend and multipliers, 0 at first and never
below, ascend. Accuracies are those of training; the sparse network's are means of what it last answered, right or
wrong, from a buffer for each group that counts when it is full. They move the multipliers; as they have no gradient,
the weights follow the group's mean loss in the batch less the batch's in their place. In a step multipliers come first.
Weights go by magnitude over the first three tenths of fine-tuning, all layers alike, by the cubic of Zhu & Gupta and
under the plain loss; constraints hold from then on. A tolerance of 2 leaves naive fine-tuning.

Settings are those released for CIFAR-100, but for the tolerance, which that file leaves open: its .01 is that for
UTKFace and FairFace, where the step size is 1e-4. Otherwise than released: the overall accuracy is the groups', each
with its share of the training images (`alike`: all alike, while the dense network's is that of all images, so that a
small group may lose unnoticed); a group with fewer images than the buffer has a buffer of its size, else it would not
be full in time; the first and the last layer are pruned too, as all methods do here; and the optimizer begins anew when
the constraints do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.masks import make_masks, whole_masks
from prunebench.pruning.schedule import pruning_steps, pruning_targets
from prunebench.training.loop import Batch, Objective, Step, capturable

HASHEMIZADEH = (
    "Hashemizadeh, Ramirez et al., 2024 (Balancing act: constraining disparate impact in sparse models)"
)


class ExcessGaps:
    """The constraints, with a multiplier for each group; every batch changes both.

    Args:
        group: of each training sample, int64 `[N]`; any numbers.
        dense_right: where the dense network is right, bool `[N]`.
        tolerance: what a group may lose beyond the whole.
        step_size: of the multipliers.
        memory: answers that a group's buffer holds.
        alike: whether the overall accuracy is the mean over groups, as released.
    """

    def __init__(
        self,
        group: Tensor,
        dense_right: Tensor,
        *,
        tolerance: float,
        step_size: float,
        memory: int,
        alike: bool = False,
    ) -> None:
        _, self.index, counts = torch.unique(group, return_inverse=True, return_counts=True)
        groups = len(counts)
        self._names = torch.arange(groups, device=group.device)
        self._share = counts / counts.sum()
        hits = torch.zeros(groups, device=group.device).index_add_(0, self.index, dense_right.float())
        self._dense, self._dense_overall = hits / counts, hits.sum() / counts.sum()
        self._capacity = counts.clamp(max=memory)
        self._tolerance, self._step_size, self._alike = tolerance, step_size, alike
        self.multipliers = torch.zeros(groups, device=group.device)
        self._seen = torch.zeros_like(self._capacity)
        self._buffer = torch.zeros(groups, memory + 1, device=group.device)
        """The last column takes what a batch has of a group beyond its buffer."""

    def forget(self) -> None:
        """Multipliers of 0 and empty buffers, as at first."""
        for changed in (self.multipliers, self._seen, self._buffer):
            changed.zero_()

    def __call__(self, losses: Tensor, right: Tensor, index: Tensor) -> Tensor:
        """The Lagrangian of losses `[B]` of the samples `index` `[B]`, `right` `[B]` where they are answered right."""
        member = self.index[index].unsqueeze(1) == self._names
        self._remember(member, right, self.index[index])
        violation = (self.gaps() - self._tolerance) * self.full
        self.multipliers.add_(violation, alpha=self._step_size).clamp_(min=0)
        counts = member.sum(0)
        means = (losses.unsqueeze(1) * member).sum(0) / counts.clamp(min=1)
        weight = self.multipliers * (counts > 0)
        return losses.mean() + (weight * (means - losses.mean())).sum()

    def _remember(self, member: Tensor, right: Tensor, own: Tensor) -> None:
        """Write a batch's answers over the oldest of their groups `own` `[B]`; `member` is `[B, G]`."""
        counts, capacity = member.sum(0), self._capacity[own]
        rank = member.cumsum(0).gather(1, own.unsqueeze(1)).squeeze(1) - 1
        beyond, width = rank < counts[own] - capacity, self._buffer.shape[1]
        column = ((self._seen[own] + rank) % capacity).masked_fill(beyond, width - 1)
        self._buffer.view(-1).scatter_(0, own * width + column, right.to(self._buffer))
        self._seen.add_(counts)

    @property
    def full(self) -> Tensor:
        """Whether a group's buffer is full, bool `[G]`."""
        return self._seen >= self._capacity

    def gaps(self) -> Tensor:
        """The excess accuracy gap of each group `[G]`; of those alone whose buffers are full it means anything."""
        accuracy = self._buffer[:, :-1].sum(1) / self._capacity
        share = self.full * (torch.ones_like(self._share) if self._alike else self._share)
        share = share / share.sum().clamp(min=1e-12)
        dense = self._dense_overall if self._alike else (share * self._dense).sum()
        return (self._dense - accuracy) - (dense - (share * accuracy).sum())


@dataclass(frozen=True)
class ConstrainedGaps:
    tolerance: float = 0.01
    step_size: float = 0.01
    """Of the multipliers."""
    memory: int = 40
    """Answers that a group's buffer holds."""
    pruning: float = 0.3
    """The share of fine-tuning in which weights go."""
    events: int = 16
    """How often they go in it: each epoch from 0 to 15."""
    alike: bool = False
    """Whether all groups weigh alike in the overall accuracy, as released."""

    def __post_init__(self) -> None:
        if self.tolerance < 0 or self.step_size <= 0 or self.memory < 1:
            raise ValueError("want a tolerance of at least 0, a step_size above 0 and a memory of at least 1")
        if not 0 < self.pruning <= 1 or self.events < 1:
            raise ValueError("want pruning above 0 and at most 1, and events of at least 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model, steps = experiment.dense_model(), experiment.recipe.finetune_steps
        times = pruning_steps(steps, begin=0.0, end=self.pruning, events=self.events)
        targets = pruning_targets(times, span=0.0, final=sparsity, initial=0.0)

        def prune(step: Step) -> Mapping[str, Tensor] | None:
            if step not in targets:
                return None
            scores = {name: weight.detach().abs() for name, weight in step.weights.items()}
            return make_masks(scores, targets[step], allocation="uniform")

        whole, last = whole_masks(model), times[-1]
        masks = experiment.finetune(model, whole, steps=steps, stop_after=last, after_step=prune).masks
        if steps > last:
            gaps = self.constraints(experiment)
            experiment.finetune(model, masks, steps=steps, start=last, objective=lagrangian(gaps))
            experiment.log(largest_multiplier=float(gaps.multipliers.max()))
        return Pruned(model, masks)

    def constraints(self, experiment: Experiment) -> ExcessGaps:
        """Of the training split, with the dense network's accuracies."""
        split = experiment.train_split
        right = experiment.predict(experiment.dense_model()).argmax(1) == split.y
        return ExcessGaps(
            split.group,
            right,
            tolerance=self.tolerance,
            step_size=self.step_size,
            memory=self.memory,
            alike=self.alike,
        )


ceag = method("ceag", cite=HASHEMIZADEH, supervision="train-groups")(ConstrainedGaps)


def lagrangian(gaps: ExcessGaps) -> Objective:
    """The loss under constraints; each training begins with multipliers of 0."""

    @capturable
    def loss(net: nn.Module, batch: Batch) -> Tensor:
        if batch.step == 0:  # the first steps are none that a graph replays
            gaps.forget()
        logits = net(batch.x).float()
        each = functional.cross_entropy(logits, batch.y, reduction="none")
        return gaps(each, logits.detach().argmax(1) == batch.y, batch.index)

    return loss
