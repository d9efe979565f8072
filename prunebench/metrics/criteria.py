"""What the dense model alone says about pruning, and how well it foretells what pruning then does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, as_classes, as_finite, as_tensor, check_rows


def susceptibility(dense_logits: Array) -> Tensor:
    """How unsure the dense model is of each sample: 1 - (p_(1) - p_(2)), float64 `[N]` in 0..1.

    dense_logits: class logits `[N, C]`, or binary logits `[N]`, for which this is 1 - 2 |p - 1/2|. A hypothesis
    (after Iofinova et al., 2023): the samples that the dense model is unsure of are those that pruning changes.
    """
    ndim = torch.as_tensor(dense_logits).ndim
    logits = as_finite("dense_logits", dense_logits, ndim=1 if ndim == 1 else 2)
    if logits.ndim == 1:
        return 1 - 2 * (torch.sigmoid(logits) - 0.5).abs()
    if logits.shape[1] < 2:
        raise MetricError("dense_logits: want at least two classes, or binary logits of shape [N]")
    top = torch.softmax(logits, dim=1).topk(2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


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
    border of the 5 % (rounded up) count by their share of the places left.
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

    Pairs with a value that is not finite are left out; draws in which a side is constant too.
    """
    from scipy.stats import rankdata

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
    ranks = [rankdata(values[index], axis=1) for values in (one, two)]
    centred = [values - values.mean(1, keepdims=True) for values in ranks]
    spread = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        rho = (centred[0] * centred[1]).sum(1) / spread
    if math.isnan(rho[0]):
        return RankCorrelation(math.nan, math.nan, math.nan, len(one))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(rho[1:], [tail, 1 - tail])
    return RankCorrelation(float(rho[0]), float(low), float(high), len(one))


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
    Raises MetricError with a single seed. Source: Yang et al., ICML 2020 (the squared-loss decomposition).
    """
    values = as_finite("probabilities", probabilities, ndim=3)
    truth = as_classes("label", label, ndim=1)
    if len(values) < 2:
        raise MetricError("probabilities: want at least two seeds, got 1")
    if len(truth) != values.shape[1]:
        raise MetricError(f"label: has {len(truth)} samples, probabilities {values.shape[1]}")
    if int(truth.max()) >= values.shape[2]:
        raise MetricError(f"label: values outside 0..{values.shape[2] - 1}")
    target = torch.nn.functional.one_hot(truth, values.shape[2]).double()
    mean = values.mean(0)
    bias = float(((mean - target) ** 2).sum(1).mean())
    variance = float(((values - mean) ** 2).sum(2).mean())
    return BiasVariance(bias + variance, bias, variance)
