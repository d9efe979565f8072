"""Accuracy by group: what the average hides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_finite


@dataclass(frozen=True)
class GroupTable:
    """Counts by (label, bias), each `[C, B]`: samples, correct predictions, and which pairs are aligned.

    Accuracies are nan where no group has samples. "Mean over groups" skips empty groups; `plain` is the share of
    correct samples, `unbiased` the mean over groups, `train_weighted` the mean at the training split's mixture.
    """

    count: Tensor
    correct: Tensor
    aligned_pair: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Accuracy of each group, float64 `[C, B]`; nan for an empty group."""
        return self.correct.double() / torch.where(self.count > 0, self.count.double(), torch.nan)

    @property
    def plain(self) -> float:
        """Share of correct samples over the whole split."""
        total = int(self.count.sum())
        return int(self.correct.sum()) / total if total else math.nan

    @property
    def unbiased(self) -> float:
        """Mean over groups: every (label, bias) pair counts the same (DCWP, LfF)."""
        return self._mean(torch.ones_like(self.aligned_pair))

    @property
    def aligned(self) -> float:
        """Mean over bias-aligned groups."""
        return self._mean(self.aligned_pair)

    @property
    def conflicting(self) -> float:
        """Mean over bias-conflicting groups."""
        return self._mean(~self.aligned_pair)

    @property
    def worst_group(self) -> float:
        """The lowest accuracy of a group that has samples."""
        present = self.accuracy[self.count > 0]
        return float(present.min()) if len(present) else math.nan

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
        weight = as_finite("train_count", train_count, ndim=2)
        if weight.shape != self.count.shape:
            wanted = tuple(self.count.shape)
            raise MetricError(f"train_count: want shape {wanted}, got {tuple(weight.shape)}")
        if (weight < 0).any():
            raise MetricError("train_count: want counts of samples, found a negative one")
        return float((weight * self.accuracy)[weight > 0].sum() / weight.sum())

    def _mean(self, chosen: Tensor) -> float:
        present = self.accuracy[chosen & (self.count > 0)]
        return float(present.mean()) if len(present) else math.nan

    def summary(self) -> dict[str, float]:
        """The accuracies by name."""
        names = ("plain", "unbiased", "aligned", "conflicting", "worst_group", "bias_gap")
        return {name: getattr(self, name) for name in names}


def group_accuracy(
    prediction: Array, label: Array, bias: Array, *, aligned_pair: Tensor | None = None
) -> GroupTable:
    """Count samples and hits by group.

    prediction, label, bias: integers `[N]`. aligned_pair: bool `[C, B]`, which (label, bias) pairs are aligned;
    by default label == bias, with as many classes and biases as occur. A prediction outside the classes is a miss.
    Raises MetricError when shapes disagree, a label or bias is outside its range, or anything is not an integer.
    """
    prediction = torch.as_tensor(prediction)
    if prediction.ndim != 1:
        raise MetricError(f"prediction: want shape [N], got {tuple(prediction.shape)}")
    if prediction.is_floating_point():
        raise MetricError(f"prediction: want integers, got {prediction.dtype}")
    return group_tables(prediction.unsqueeze(0), label, bias, aligned_pair=aligned_pair)[0]


def group_tables(
    predictions: Array, label: Array, bias: Array, *, aligned_pair: Tensor | None = None
) -> list[GroupTable]:
    """`group_accuracy` of many models at once: predictions `[M, N]`, label and bias `[N]`; a table a model.

    Hits are counted by one matrix product of hits `[M, N]` and group membership `[N, C B]`, exact in float32
    for the few million that are multiplied at a time.
    """
    predictions, label, bias = (torch.as_tensor(values) for values in (predictions, label, bias))
    if predictions.ndim != 2:
        raise MetricError(f"predictions: want shape [M, N], got {tuple(predictions.shape)}")
    if predictions.is_floating_point():
        raise MetricError(f"predictions: want integers, got {predictions.dtype}")
    for name, values in (("label", label), ("bias", bias)):
        if values.ndim != 1 or values.shape != predictions.shape[1:]:
            raise MetricError(f"{name}: want shape {tuple(predictions.shape[1:])}, got {tuple(values.shape)}")
        if values.is_floating_point():
            raise MetricError(f"{name}: want integers, got {values.dtype}")
    if aligned_pair is None:
        size = 1 + max((int(values.max()) for values in (label, bias) if len(values)), default=0)
        aligned_pair = torch.eye(size, dtype=torch.bool)
    if aligned_pair.ndim != 2 or aligned_pair.dtype != torch.bool:
        raise MetricError(f"aligned_pair: want bool [C, B], got {aligned_pair.dtype} {aligned_pair.shape}")
    for name, values, bound in (("label", label, len(aligned_pair)), ("bias", bias, aligned_pair.shape[1])):
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= bound):
            raise MetricError(f"{name}: values outside 0..{bound - 1}")
    aligned_pair = aligned_pair.cpu()
    group = label.long() * aligned_pair.shape[1] + bias  # bytes would wrap around
    count = torch.bincount(group.cpu(), minlength=aligned_pair.numel()).view(aligned_pair.shape)
    correct = _hits_by_group(predictions, label, group, aligned_pair.numel())
    return [GroupTable(count, hits.view(aligned_pair.shape), aligned_pair) for hits in correct]


def _hits_by_group(predictions: Tensor, label: Tensor, group: Tensor, groups: int) -> Tensor:
    """Correct predictions `[M, groups]`, int64, on the CPU."""
    total = torch.zeros(len(predictions), groups, dtype=torch.int64)
    rows = max(2**22 // max(groups, 1), 1)  # of the one-hot membership: at most 32 MiB
    for start in range(0, len(label), rows):
        part = slice(start, start + rows)
        membership = torch.nn.functional.one_hot(group[part], groups).float()
        hits = (predictions[:, part] == label[part]).float()
        with torch.autocast(hits.device.type, enabled=False):  # bfloat16 counts to 256
            total += (hits @ membership).round().long().cpu()
    return total
