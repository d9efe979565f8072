"""Populations of models, dense and sparse: samples and groups that pruning changes, against what seeds alone change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_classes, as_finite, as_given, check_table, compact, read_array
from prunebench.stats.multiplicity import holm_adjusted

COUNTS_AT_A_TIME = 1 << 22
"""Samples times classes of a table of counts: 32 MiB."""

MANY_CLASSES = 4096
"""Of more, those that occur are counted: labels may be ids."""


@dataclass(frozen=True)
class Exemplars:
    """Compression-identified exemplars: `modal` bool `[N]`, `l1_distance` float64 `[N]` in 0..2.

    Other seeds alone change some of them: `expected_disagreement` has the control.
    """

    modal: Tensor
    l1_distance: Tensor

    @property
    def share(self) -> float:
        """Share of samples whose modal label changed."""
        return float(torch.as_tensor(self.modal).double().mean())


@as_given
def compression_identified_exemplars(dense_prediction: Array, sparse_prediction: Array) -> Exemplars:
    """Compression-identified exemplars: samples that a population of sparse models treats differently from dense ones.

    modal: the most frequent label differs (ties go to the lowest class). l1_distance: of the two label distributions.
    Source: Hooker et al., 2019 (modal), and 2020 (L1 distance, there "taxicab").

    Args:
        dense_prediction: class indices `[R, N]` of R models.
        sparse_prediction: class indices `[S, N]`.

    Raises:
        MetricError: shapes that disagree, or negative classes.
    """
    dense = as_classes("dense_prediction", dense_prediction, ndim=2)
    sparse = as_classes("sparse_prediction", sparse_prediction, ndim=2)
    if dense.shape[1] != sparse.shape[1]:
        raise MetricError(
            f"sparse_prediction: has {sparse.shape[1]} samples, dense_prediction {dense.shape[1]}"
        )
    return Exemplars(*_compare(dense, sparse))


@dataclass(frozen=True)
class Disagreement:
    """How often two models of different seeds give a sample different labels.

    `sparse`: a dense and a sparse one; `control`: two dense ones; `difference`: what pruning adds, with its 95 %
    jackknife interval over seeds from `low` to `high`. `seeds` stand behind them; nan where there are too few.
    """

    sparse: float
    control: float
    difference: float
    low: float
    high: float
    seeds: int


@as_given
def expected_disagreement(dense_prediction: Array, sparse_prediction: Array) -> Disagreement:
    """Expected disagreement of dense and sparse models, beside that of dense models among themselves.

    Over all pairs of seeds s != t: the mean share of samples to which s dense and t sparse (control: t dense) give
    different labels. That is half the expected L1 ("taxicab") distance of two models' one-hot labels, and unlike modes
    of two models against two it uses every pair and has no ties. A model and its own pruned copy are no pair: they
    agree more than two seeds do. Seeds recur in pairs, so the interval is the jackknife's: Student's t about the
    difference, variance (R - 1) / R sum (d_-s - mean)^2 of the differences without each seed. Two seeds have no
    interval, one has nothing. Source: Hooker et al., 2020 (taxicab); Efron & Stein, 1981 (jackknife).

    Args:
        dense_prediction: class indices `[R, N]` of R seeds.
        sparse_prediction: class indices `[R, N]` of the same seeds in the same order.

    Raises:
        MetricError: shapes that disagree, or negative classes.
    """
    from scipy.special import stdtrit

    dense = as_classes("dense_prediction", dense_prediction, ndim=2)
    sparse = as_classes("sparse_prediction", sparse_prediction, ndim=2)
    if dense.shape != sparse.shape:
        raise MetricError(
            f"sparse_prediction: is {list(sparse.shape)}, dense_prediction {list(dense.shape)}: want the same seeds"
        )
    seeds = len(dense)
    shares = np.array(
        [
            [[float((one != two).double().mean()) for two in other] for one in dense]
            for other in (sparse, dense)
        ]
    )
    if seeds < 2:
        return Disagreement(math.nan, math.nan, math.nan, math.nan, math.nan, seeds)
    apart = ~np.eye(seeds, dtype=bool)
    found, control = (float(table[apart].mean()) for table in shares)
    difference, half = found - control, math.nan
    if seeds > 2:
        gap = np.where(apart, shares[0] - shares[1], 0.0)
        without = (gap.sum() - gap.sum(0) - gap.sum(1)) / ((seeds - 1) * (seeds - 2))
        variance = (seeds - 1) / seeds * float(((without - without.mean()) ** 2).sum())
        half = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(variance)
    return Disagreement(found, control, difference, difference - half, difference + half, seeds)


def _compare(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Modal flips and l1_distance distances of two populations of class indices `[R, N]`, some samples at a time."""
    classes = int(max(first.max(), second.max())) + 1
    if classes > MANY_CLASSES:
        first, second = compact(first, second)
        classes = int(max(first.max(), second.max())) + 1
    samples = max(COUNTS_AT_A_TIME // classes, 1)
    flipped, distance = [], []
    for pair in zip(first.split(samples, dim=1), second.split(samples, dim=1)):
        one, two = (_label_shares(part, classes) for part in pair)
        flipped.append(one.argmax(1) != two.argmax(1))
        distance.append((one - two).abs_().sum(1))
    return torch.cat(flipped), torch.cat(distance)


def _label_shares(prediction: Tensor, classes: int) -> Tensor:
    """Share of the models `[R, N]` that predict each class, `[N, C]`; equal counts are equal numbers."""
    one = torch.ones((), dtype=torch.float64).expand(prediction.T.shape)
    counts = torch.zeros(prediction.shape[1], classes, dtype=torch.float64)
    return counts.scatter_add_(1, prediction.T, one).div_(len(prediction))


@dataclass(frozen=True)
class RecallChange:
    """By group, float64 `[G]`: mean sparse minus mean dense recall, Welch's p, and Holm's corrected p."""

    change: Tensor
    p_value: Tensor
    corrected_p: Tensor


@as_given
def recall_change(
    dense_prediction: Array,
    sparse_prediction: Array,
    label: Array,
    group: Array | None = None,
    *,
    relative: bool = True,
) -> RecallChange:
    """Change of recall by class or group, and whether pruning costs some more than others.

    Recall of a group is its share of correct samples in one model. Welch's t-test over models, corrected for the
    number of groups by Holm's method. Groups without samples are nan. Source: Hooker et al., 2019.

    Args:
        dense_prediction: class indices `[R, N]` of R >= 2 models.
        sparse_prediction: class indices `[S, N]` of S >= 2 models.
        label: class indices `[N]`.
        group: integers `[N]`, by default the label.
        relative: subtract a model's accuracy over all samples first.

    Raises:
        MetricError: fewer than two models on a side, or shapes that disagree.
    """
    truth = as_classes("label", label, ndim=1)
    members = truth if group is None else as_classes("group", group, ndim=1)
    check_table("label" if group is None else "group", members, int(members.max()) + 1)
    membership = functional.one_hot(members).double()
    recalls = []
    for name, prediction in (
        ("dense_prediction", dense_prediction),
        ("sparse_prediction", sparse_prediction),
    ):
        values = as_classes(name, prediction, ndim=2)
        if len(values) < 2:
            raise MetricError(f"{name}: want at least two models to test, got {len(values)}")
        for other, array in (("label", truth), ("group", members)):
            if len(array) != values.shape[1]:
                raise MetricError(f"{other}: has {len(array)} samples, {name} {values.shape[1]}")
        hits = (values == truth).double()
        recall = hits @ membership / torch.where(membership.sum(0) > 0, membership.sum(0), math.nan)
        recall = recall - hits.mean(1, keepdim=True) if relative else recall
        recalls.append(recall.round(decimals=12))  # equal differences of shares are then equal numbers
    dense, sparse = recalls
    p_value = _welch(sparse, dense)
    return RecallChange(sparse.mean(0) - dense.mean(0), p_value, holm(p_value))


def _welch(first: Tensor, second: Tensor) -> Tensor:
    """Two-sided p `[G]` of `[R, G]` and `[S, G]`; where neither side varies, 0 if the means differ, else 1."""
    from scipy.special import stdtr

    moved = [values - values[0] for values in (first, second)]  # exactly 0 where a side does not vary
    mean = [values[0] + d.mean(0) for values, d in zip((first, second), moved)]
    error = [d.var(0) / len(d) for d in moved]
    total = error[0] + error[1]
    freedom = total**2 / sum(e**2 / (len(d) - 1) for e, d in zip(error, moved))
    statistic = (mean[0] - mean[1]).abs() / total.sqrt()
    p_value = 2 * torch.from_numpy(stdtr(freedom.numpy(), -statistic.numpy()))
    return torch.where(total == 0, (mean[0] == mean[1]).double(), p_value)


@as_given
def holm(p_values: Array) -> Tensor:
    """Holm's step-down correction of p-values `[G]`; nan stays nan and is not counted."""
    adjusted = holm_adjusted(read_array("p_values", p_values).double().tolist())
    return torch.tensor(adjusted, dtype=torch.float64)


@dataclass(frozen=True)
class BiasVariance:
    """Decomposition of the mean squared (Brier) loss over seeds: loss = bias_squared + variance.

    Both parts are unbiased estimates; with few seeds that of the squared bias may be negative.
    """

    loss: float
    bias_squared: float
    variance: float


def bias_variance(probabilities: Array, label: Array) -> BiasVariance:
    """Bias and variance of the squared loss: what every seed shares, and what differs between seeds.

    With p-bar the mean over R seeds and e the one-hot label: loss = mean_n mean_r sum_c (p - e)^2, variance =
    mean_n 1/(R - 1) sum_r sum_c (p - p-bar)^2, bias^2 = loss - variance. Over draws of R seeds both are on average what
    many seeds would show; with 1/R the variance of three seeds is a third too low. Source: Yang et al., ICML 2020.

    Args:
        probabilities: `[R, N, C]`, the softmax of the logits of R >= 2 seeds.
        label: class indices `[N]`.

    Raises:
        MetricError: a single seed, shapes that disagree, labels outside 0..C-1, or values outside 0..1 (logits are
            no probabilities).
    """
    values = as_finite("probabilities", probabilities, ndim=3)
    truth = as_classes("label", label, ndim=1)
    if len(values) < 2:
        raise MetricError("probabilities: want at least two seeds, got 1")
    if ((values < 0) | (values > 1 + 1e-6)).any():
        raise MetricError("probabilities: found values outside 0..1; want the softmax of the logits")
    if len(truth) != values.shape[1]:
        raise MetricError(f"label: has {len(truth)} samples, probabilities {values.shape[1]}")
    if int(truth.max()) >= values.shape[2]:
        raise MetricError(f"label: values outside 0..{values.shape[2] - 1}")
    target = torch.nn.functional.one_hot(truth, values.shape[2]).double()
    mean = values.mean(0)
    loss = float(((values - target) ** 2).sum(2).mean())
    variance = float(((values - mean) ** 2).sum(2).sum(0).mean()) / (len(values) - 1)
    return BiasVariance(loss, loss - variance, variance)
