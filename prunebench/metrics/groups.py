"""Accuracy by group: what the average hides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    MOST_CELLS,
    Array,
    as_finite,
    as_given,
    as_pairs,
    as_whole,
    read_array,
    to_numpy,
)

MANY_GROUPS = 1 << 20
"""Of more, a table holds the labels and biases that occur: they may be ids, and memory would grow with the largest."""
FEW_GROUPS = 1 << 12
"""Up to so many, hits are counted by a matrix product."""


@dataclass(frozen=True)
class GroupTable:
    """Counts by (label, bias), each `[C, B]`: samples, correct predictions, and which pairs are aligned.

    Accuracies are nan where no group has samples. "Mean over groups" skips empty groups; `plain` is the share of
    correct samples, `unbiased` the mean over groups, `train_weighted` the mean at the training split's mixture. The
    arrays are tensors, or NumPy where the samples were.
    """

    count: Tensor
    correct: Tensor
    aligned_pair: Tensor
    labels: Tensor
    """`[C]`: the labels of the rows, 0 to C - 1 or those that occur."""
    biases: Tensor
    """`[B]`: the biases of the columns, 0 to B - 1 or those that occur."""

    @property
    def accuracy(self) -> Tensor:
        """Accuracy of each group, float64 `[C, B]`; nan for an empty group."""
        accuracy = self._accuracy
        return accuracy if isinstance(self.count, Tensor) else to_numpy(accuracy)

    @property
    def _accuracy(self) -> Tensor:
        count, correct = torch.as_tensor(self.count), torch.as_tensor(self.correct)
        return correct.double() / torch.where(count > 0, count.double(), torch.nan)

    @property
    def plain(self) -> float:
        """Share of correct samples over the whole split."""
        total = int(self.count.sum())
        return int(self.correct.sum()) / total if total else math.nan

    @property
    def unbiased(self) -> float:
        """Mean over groups: every (label, bias) pair counts the same (DCWP, LfF)."""
        return self._mean(torch.ones(self.aligned_pair.shape, dtype=torch.bool))

    @property
    def aligned(self) -> float:
        """Mean over bias-aligned groups."""
        return self._mean(torch.as_tensor(self.aligned_pair))

    @property
    def conflicting(self) -> float:
        """Mean over bias-conflicting groups."""
        return self._mean(~torch.as_tensor(self.aligned_pair))

    def conflicting_where(self, train_count: Array, *, seen: bool) -> float:
        """Mean over the bias-conflicting groups that training has images of, or over those it has none of.

        train_count: `[C, B]`. nan where there is no such group. Raises MetricError on another shape.
        """
        count = self._by_group(train_count)
        return self._mean(~torch.as_tensor(self.aligned_pair) & ((count > 0) == seen))

    @property
    def worst_group(self) -> float:
        """The lowest accuracy of a group that has samples."""
        present = self._accuracy[torch.as_tensor(self.count) > 0]
        return float(present.min()) if len(present) else math.nan

    @property
    def worst_tenth(self) -> float:
        """Mean over the worst tenth of the groups that have samples, rounded down, one at least."""
        present = self._accuracy[torch.as_tensor(self.count) > 0].sort().values
        return float(present[: max(1, len(present) // 10)].mean()) if len(present) else math.nan

    @property
    def worst_class_conflicting(self) -> float:
        """The lowest accuracy of a label on its bias-conflicting samples, all of them together."""
        recall = self._recall(~torch.as_tensor(self.aligned_pair))
        return float(recall.min()) if len(recall) else math.nan

    @property
    def class_recall(self) -> float:
        """Mean over labels of the accuracy on all samples of a label."""
        recall = self._recall(torch.ones(self.aligned_pair.shape, dtype=torch.bool))
        return float(recall.mean()) if len(recall) else math.nan

    @property
    def bias_gap(self) -> float:
        """Aligned minus conflicting accuracy: 0 for a model that does not use the bias."""
        return self.aligned - self.conflicting

    def train_weighted(self, train_count: Array) -> float:
        """Mean over groups weighted by their share of the training split, as papers on Waterbirds report.

        sum_g n_g acc_g / sum_g n_g with n_g the training samples of group g: the accuracy on a test split with the
        training split's mixture. train_count: `[C, B]`, at least 0. nan if a training group has no test samples, or
        none has training samples. Raises MetricError on another shape and negative or infinite counts.
        Source: Sagawa et al., ICLR 2020 ("adjusted" average accuracy).
        """
        weight = self._by_group(train_count)
        return float((weight * self._accuracy)[weight > 0].sum() / weight.sum())

    def _recall(self, chosen: Tensor) -> Tensor:
        """Accuracy of each label over the samples of its chosen groups `[C, B]`, without labels that have none."""
        count, correct = (
            torch.where(chosen, torch.as_tensor(x), 0).sum(1) for x in (self.count, self.correct)
        )
        return correct[count > 0].double() / count[count > 0]

    def _by_group(self, train_count: Array) -> Tensor:
        """Training samples by group, `[C, B]`. Raises MetricError on another shape and negative or infinite counts."""
        count = as_finite("train_count", train_count, ndim=2)
        wanted = tuple(self.count.shape)
        if tuple(count.shape) != wanted:
            raise MetricError(f"train_count: want shape {wanted}, got {tuple(count.shape)}")
        if (count < 0).any():
            raise MetricError("train_count: want counts of samples, found a negative one")
        return count

    def _mean(self, chosen: Tensor) -> float:
        present = self._accuracy[chosen & (torch.as_tensor(self.count) > 0)]
        return float(present.mean()) if len(present) else math.nan

    def summary(self) -> dict[str, float]:
        """The accuracies by name."""
        names = ("plain", "unbiased", "aligned", "conflicting", "worst_group", "bias_gap")
        return {name: getattr(self, name) for name in names}


@as_given
def group_accuracy(
    prediction: Array, label: Array, bias: Array, *, aligned_pair: Array | None = None
) -> GroupTable:
    """Samples and hits of one model by group.

    Args:
        prediction: integers `[N]`; one outside the classes is a miss.
        label: integers `[N]`.
        bias: integers `[N]`.
        aligned_pair: bool `[C, B]`, which (label, bias) pairs are aligned; by default label == bias, with as many
            classes and biases as occur: from 0 to the highest or, where that would be more than a million groups,
            those values alone (`labels`, `biases`).

    Raises:
        MetricError: shapes that disagree, a label or bias outside its range, or anything that is not an integer.
    """
    predicted = read_array("prediction", prediction)
    if predicted.ndim != 1:
        raise MetricError(f"prediction: want shape [N], got {tuple(predicted.shape)}")
    predicted = as_whole("prediction", predicted).unsqueeze(0)
    return group_tables(predicted, label, bias, aligned_pair=aligned_pair)[0]


@as_given
def group_tables(
    predictions: Array, label: Array, bias: Array, *, aligned_pair: Array | None = None
) -> list[GroupTable]:
    """`group_accuracy` of many models at once, a table a model.

    Hits are counted by one matrix product of hits `[M, N]` and group membership `[N, C B]`, exact in float32
    for the few million that are multiplied at a time; of many groups, model by model.

    Args:
        predictions: integers `[M, N]`.
        label: integers `[N]`.
        bias: integers `[N]`.
        aligned_pair: as for `group_accuracy`.

    Raises:
        MetricError: as `group_accuracy` does.
    """
    predicted = read_array("predictions", predictions)
    if predicted.ndim != 2:
        raise MetricError(f"predictions: want shape [M, N], got {tuple(predicted.shape)}")
    predicted = as_whole("predictions", predicted)
    truth, place = (
        _by_sample(name, values, predicted) for name, values in (("label", label), ("bias", bias))
    )
    row, column = truth, place
    pairs = _diagonal(truth, place) if aligned_pair is None else as_pairs("aligned_pair", aligned_pair)
    if pairs is not None:
        labels, biases = (torch.arange(size) for size in pairs.shape)
    else:
        (labels, row), (biases, column) = (values.unique(return_inverse=True) for values in (truth, place))
        pairs = _equal_pairs(labels, biases)
    for name, indices, bound in (("label", row, len(pairs)), ("bias", column, pairs.shape[1])):
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= bound):
            raise MetricError(f"{name}: values outside 0..{bound - 1}")
    group = row * pairs.shape[1] + column
    count = torch.bincount(group.cpu(), minlength=pairs.numel()).view(pairs.shape)
    correct = _hits_by_group(predicted, truth, group, pairs.numel())
    return [GroupTable(count, hits.view(pairs.shape), pairs, labels.cpu(), biases.cpu()) for hits in correct]


def _by_sample(name: str, values: Array, predictions: Tensor) -> Tensor:
    """Integers `[N]`, where the predictions `[M, N]` lie."""
    tensor = read_array(name, values)
    if tensor.ndim != 1 or tensor.shape != predictions.shape[1:]:
        raise MetricError(f"{name}: want shape {tuple(predictions.shape[1:])}, got {tuple(tensor.shape)}")
    return as_whole(name, tensor).to(predictions.device)


def _diagonal(label: Tensor, bias: Tensor) -> Tensor | None:
    """Which pairs of 0 to the highest value are equal, bool `[C, C]`; None where they are too many for a table."""
    size = 1
    for name, values in (("label", label), ("bias", bias)):
        if len(values):
            lowest, highest = int(values.min()), int(values.max())
            if lowest < 0:
                raise MetricError(f"{name}: values outside 0..{max(highest, 0)}: found {lowest}")
            size = max(size, highest + 1)
    return None if size * size > MANY_GROUPS else torch.eye(size, dtype=torch.bool)


def _equal_pairs(labels: Tensor, biases: Tensor) -> Tensor:
    if len(labels) * len(biases) > MOST_CELLS:
        raise MetricError(
            f"bias: {len(biases)} values by {len(labels)} labels are too many groups; are these ids of samples?"
        )
    return (labels.unsqueeze(1) == biases).cpu()


def _hits_by_group(predictions: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Correct predictions `[M, groups]`, int64, on the CPU."""
    if groups > FEW_GROUPS:
        hits = (predictions == label).cpu()
        return torch.stack([torch.bincount(group.cpu()[right], minlength=groups) for right in hits])
    total = torch.zeros(len(predictions), groups, dtype=torch.int64)
    rows = max(2**22 // max(groups, 1), 1)  # of the one-hot membership: at most 32 MiB
    for start in range(0, len(label), rows):
        part = slice(start, start + rows)
        membership = torch.nn.functional.one_hot(group[part], groups).float()
        hits = (predictions[:, part] == label[part]).float()
        with torch.autocast(hits.device.type, enabled=False):  # bfloat16 counts to 256
            total += (hits @ membership).round().long().cpu()
    return total
