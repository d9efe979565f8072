"""Which samples and groups pruning changes, against what another seed alone would change."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_tensor

SPLITS = 50
"""At most so many draws of equal populations are averaged."""


@dataclass(frozen=True)
class Exemplars:
    """Compression-identified exemplars: `modal` bool `[N]`, `taxicab` float64 `[N]` in 0..2.

    `matched_share` and `matched_taxicab` compare h dense with h sparse models, `control_share` and
    `control_taxicab` h dense with h other dense models (h = min(R // 2, S), mean over splits): what pruning adds
    is matched minus control. All four are nan with a single dense model.
    """

    modal: Tensor
    taxicab: Tensor
    population: int
    matched_share: float
    matched_taxicab: float
    control_share: float
    control_taxicab: float

    @property
    def share(self) -> float:
        """Share of samples whose modal label changed."""
        return float(self.modal.double().mean())


def compression_identified_exemplars(dense_prediction: Array, sparse_prediction: Array) -> Exemplars:
    """Samples that a population of sparse models treats differently from a population of dense ones.

    dense_prediction: class indices `[R, N]`, sparse_prediction: `[S, N]`. modal: the most frequent label differs
    (ties go to the lowest class). taxicab: the L1 distance between the two label distributions.
    Raises MetricError on shapes that disagree or negative classes. Source: Hooker et al., 2019 (modal), and 2020
    (taxicab); the control is this project's.
    """
    dense, sparse = (
        _classes("dense_prediction", dense_prediction),
        _classes("sparse_prediction", sparse_prediction),
    )
    if dense.shape[1] != sparse.shape[1]:
        raise MetricError(
            f"sparse_prediction: has {sparse.shape[1]} samples, dense_prediction {dense.shape[1]}"
        )
    classes = int(max(dense.max(), sparse.max())) + 1
    dense_votes, sparse_votes = (functional.one_hot(values, classes) for values in (dense, sparse))
    modal, taxicab = _compare(dense_votes, sparse_votes)
    half = min(len(dense) // 2, len(sparse))
    if half == 0:
        return Exemplars(modal, taxicab, 0, *[math.nan] * 4)
    matched: list[tuple[float, float]] = []
    control: list[tuple[float, float]] = []
    for first, rest in _halves(len(dense), half):
        for others, pool in ((matched, sparse_votes), (control, dense_votes[rest])):
            flipped, distance = _compare(dense_votes[first], pool[:half])
            others.append((float(flipped.double().mean()), float(distance.mean())))
    (matched_share, matched_taxicab), (control_share, control_taxicab) = (
        np.mean(values, axis=0).tolist() for values in (matched, control)
    )
    return Exemplars(modal, taxicab, half, matched_share, matched_taxicab, control_share, control_taxicab)


def _classes(name: str, values: Array) -> Tensor:
    tensor = as_tensor(name, values, ndim=2)
    if tensor.is_floating_point() or int(tensor.min()) < 0:
        raise MetricError(f"{name}: want class indices from 0, as integers")
    return tensor.long()


def _compare(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Modal flips and taxicab distances of two populations of one-hot votes `[R, N, C]`."""
    shares = [votes.double().mean(0) for votes in (first, second)]
    return shares[0].argmax(1) != shares[1].argmax(1), (shares[0] - shares[1]).abs().sum(1)


def _halves(total: int, half: int) -> list[tuple[list[int], list[int]]]:
    """Ways to take `half` of `total` models and to leave the rest: all of them, or a fixed sample of 50."""
    if math.comb(total, half) <= SPLITS:
        chosen = [list(pick) for pick in itertools.combinations(range(total), half)]
    else:
        generator = random.Random(0)
        chosen = [sorted(generator.sample(range(total), half)) for _ in range(SPLITS)]
    return [(pick, [model for model in range(total) if model not in pick]) for pick in chosen]


@dataclass(frozen=True)
class RecallChange:
    """By group, float64 `[G]`: mean sparse minus mean dense recall, Welch's p, and Holm's corrected p."""

    change: Tensor
    p_value: Tensor
    corrected_p: Tensor


def recall_change(
    dense_prediction: Array,
    sparse_prediction: Array,
    label: Array,
    group: Array | None = None,
    *,
    relative: bool = True,
) -> RecallChange:
    """Whether pruning costs some classes (or groups) more than others.

    dense_prediction `[R, N]`, sparse_prediction `[S, N]`, label `[N]`; group `[N]`, by default the label. Recall
    of a group is its share of correct samples in one model; `relative` subtracts that model's accuracy over
    all samples first (Hooker et al., 2019). Welch's t-test over models, corrected for the number of groups by
    Holm's method. Groups without samples are nan. Raises MetricError with fewer than two models on a side.
    """
    from scipy.stats import ttest_ind

    truth = as_tensor("label", label, ndim=1).long()
    members = truth if group is None else as_tensor("group", group, ndim=1).long()
    if int(members.min()) < 0:
        raise MetricError("group: want indices from 0")
    recalls = []
    for name, prediction in (
        ("dense_prediction", dense_prediction),
        ("sparse_prediction", sparse_prediction),
    ):
        values = _classes(name, prediction)
        if len(values) < 2:
            raise MetricError(f"{name}: want at least two models to test, got {len(values)}")
        for other, array in (("label", truth), ("group", members)):
            if len(array) != values.shape[1]:
                raise MetricError(f"{other}: has {len(array)} samples, {name} {values.shape[1]}")
        hits = (values == truth).double()
        membership = functional.one_hot(members).double()
        recall = hits @ membership / torch.where(membership.sum(0) > 0, membership.sum(0), math.nan)
        recalls.append(recall - hits.mean(1, keepdim=True) if relative else recall)
    dense, sparse = recalls
    change = sparse.mean(0) - dense.mean(0)
    p_value = torch.full_like(change, math.nan)
    for column in torch.nonzero(~torch.isnan(change)).flatten().tolist():
        p_value[column] = _welch(ttest_ind, sparse[:, column], dense[:, column])
    return RecallChange(change, p_value, holm(p_value))


def _welch(ttest_ind, first: Tensor, second: Tensor) -> float:  # type: ignore[no-untyped-def]
    """Two-sided p; where neither side varies, 0 if the means differ and 1 if they do not."""
    if float(first.std()) == 0 and float(second.std()) == 0:
        return float(first.mean() == second.mean())
    return float(ttest_ind(first.numpy(), second.numpy(), equal_var=False).pvalue)


def holm(p_values: Tensor) -> Tensor:
    """Holm's step-down correction of p-values `[G]`; nan stays nan and is not counted."""
    corrected = torch.full_like(p_values, math.nan)
    defined = torch.nonzero(~torch.isnan(p_values)).flatten()
    order = defined[torch.argsort(p_values[defined])]
    largest = 0.0
    for place, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, float(p_values[index]) * (len(order) - place)))
        corrected[index] = largest
    return corrected
