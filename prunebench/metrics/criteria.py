"""Criteria of the dense model alone for what pruning will change, and how well they predict it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    Array,
    as_binary,
    as_classes,
    as_count,
    as_finite,
    as_given,
    as_tensor,
    check_rows,
)
from prunebench.metrics.uncertainty import margin


@as_given
def susceptibility(dense_logits: Array, *, multi_label: bool = False) -> Tensor:
    """How unsure the dense model is of each sample: 1 - (p_(1) - p_(2)), float64 `[N]` in 0..1.

    dense_logits: class logits `[N, C]`, or binary logits `[N]` or `[N, 1]`, for which this is 1 - 2 |p - 1/2|. The
    shape alone does not tell K binary attributes from C classes: with `multi_label=True` logits `[N, K]` are those
    of attributes, and the score is the mean of 1 - 2 |p - 1/2| over them (the highest would be near 1 for every
    sample with many attributes); for one attribute give its column `[N]`. A hypothesis (after Iofinova et al.,
    2023): the samples that the dense model is unsure of are those that pruning changes. Raises MetricError on other
    shapes, no sample, and values that are not finite.
    """
    logits = as_finite("dense_logits", dense_logits, ndim=2 if multi_label else (1, 2))
    unsure = 1 - margin(logits, multi_label=multi_label)
    return unsure.mean(1) if multi_label else unsure


@dataclass(frozen=True)
class Foretelling:
    """How well a score `[N]` ranked what happened: areas in 0..1, nan where nothing or everything happened."""

    area_under_curve: float
    average_precision: float
    recall_at_5_percent: float
    happened: int
    samples: int


def evaluate_susceptibility(score: Array, happened: Array) -> Foretelling:
    """AUROC, average precision, and the share of what happened among the 5 % of samples with the highest score.

    score: float `[N]`; happened: 0/1 `[N]`, e.g. modal exemplars, flips or new errors. Samples that tie at the
    border of the 5 % (rounded up) count by their share of the places left. Raises MetricError on shapes that
    disagree, no sample, and other values.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, truth = as_finite("score", score, ndim=1), as_binary("happened", happened, ndim=1)
    check_rows("happened", truth, "score", values)
    count, total = int(truth.sum()), len(truth)
    if count in (0, total):
        return Foretelling(math.nan, math.nan, math.nan, count, total)
    places = math.ceil(0.05 * total)
    border = values.sort(descending=True).values[places - 1]
    above, tied = values > border, values == border
    share = (places - int(above.sum())) / int(tied.sum())
    found = float(truth[above].sum() + share * truth[tied].sum())
    area = float(roc_auc_score(truth.numpy(), values.numpy()))
    precision = float(average_precision_score(truth.numpy(), values.numpy()))
    return Foretelling(area, precision, found / count, count, total)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho with its bootstrap interval; nan where fewer than three pairs are defined."""

    rho: float
    low: float
    high: float
    pairs: int


def rank_correlation(
    first: Array, second: Array, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of `[K]` and `[K]`, with a percentile bootstrap over the pairs.

    Pairs with a value that is not finite are left out (`pairs` counts the others), and so are draws in which a side
    is constant. All is nan with fewer than three pairs or a constant side. Raises MetricError on lengths that
    disagree, no value, no draw, and a confidence outside 0..1.
    """
    draws = as_count("draws", draws)
    if not 0 < confidence < 1:
        raise MetricError(f"confidence: want a share between 0 and 1, got {confidence}")

    one, two = (
        as_tensor(name, values, ndim=1).double().numpy()
        for name, values in (("first", first), ("second", second))
    )
    if len(one) != len(two):
        raise MetricError(f"second: has {len(two)} values, first {len(one)}")
    kept = np.isfinite(one) & np.isfinite(two)
    one, two = one[kept], two[kept]
    if len(one) < 3:
        return RankCorrelation(math.nan, math.nan, math.nan, len(one))
    index = np.random.default_rng(seed).integers(0, len(one), (draws, len(one)))
    index = np.concatenate([np.arange(len(one))[None], index])
    rho = spearman(one[index], two[index])
    if math.isnan(rho[0]):
        return RankCorrelation(math.nan, math.nan, math.nan, len(one))
    tail = (1 - confidence) / 2
    drawn = rho[1:][~np.isnan(rho[1:])]
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (math.nan, math.nan)
    return RankCorrelation(float(rho[0]), float(low), float(high), len(one))


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rank correlation of each row of `[D, n]` and `[D, n]`, n > 0: float64 `[D]`.

    nan where a side is constant; two values that differ on both sides correlate by +1 or -1.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (first, second)]
    centred = [values - values.mean(1, keepdims=True) for values in ranks]
    spread = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(1) / spread


def bootstrap_area(
    score: Array, happened: Array, *, columns: int = 1, draws: int = 400
) -> tuple[float, float]:
    """95 % percentile interval of the area under the ROC curve, over samples drawn with replacement; ties count half.

    score: float, happened: 0/1, both `[N columns]`, sample by sample; the outputs of a sample are drawn together, and a
    draw weighs them by how often. nan where nothing or everything happened, in the data or in every draw. Raises
    MetricError on lengths that disagree or are no multiple of `columns`, and without draws.
    """
    draws = as_count("draws", draws)
    values = as_finite("score", score, ndim=1).numpy()
    truth = as_binary("happened", happened, ndim=1).numpy()
    if len(values) != len(truth) or columns < 1 or len(truth) % columns:
        raise MetricError(f"happened: has {len(truth)} values, score {len(values)}; want rows of {columns}")
    if truth.all() or not truth.any():
        return math.nan, math.nan
    _, place = np.unique(values, return_inverse=True)
    size, samples = int(place.max()) + 1, len(truth) // columns
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(draws):
        drawn = np.bincount(generator.integers(0, samples, samples), minlength=samples)
        weight = np.repeat(drawn, columns)
        positive = np.bincount(place, weights=weight * truth, minlength=size)
        negative = np.bincount(place, weights=weight * (1 - truth), minlength=size)
        pairs = positive.sum() * negative.sum()
        if pairs:
            below = np.cumsum(negative) - negative / 2
            areas.append(float((positive * below).sum() / pairs))
    if not areas:
        return math.nan, math.nan
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class BiasVariance:
    """Decomposition of the mean squared (Brier) loss over seeds: loss = bias_squared + variance."""

    loss: float
    bias_squared: float
    variance: float


def bias_variance(probabilities: Array, label: Array) -> BiasVariance:
    """How much of the loss every seed shares (bias) and how much differs between seeds (variance).

    probabilities: `[R, N, C]`, label: class indices `[N]`. With p-bar the mean over R seeds and e the one-hot label:
    bias^2 = mean_n sum_c (p-bar - e)^2, variance = mean_n mean_r sum_c (p - p-bar)^2, loss = their sum exactly.
    Raises MetricError with a single seed, shapes that disagree, labels outside 0..C-1, and values outside 0..1
    (logits are no probabilities). Source: Yang et al., ICML 2020 (the squared-loss decomposition).
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
    bias = float(((mean - target) ** 2).sum(1).mean())
    variance = float(((values - mean) ** 2).sum(2).mean())
    return BiasVariance(bias + variance, bias, variance)
