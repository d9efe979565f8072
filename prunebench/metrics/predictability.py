"""Predictability of what pruning changes: criteria of the dense model alone, and how well they rank it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    Array,
    as_binary,
    as_count,
    as_finite,
    as_given,
    as_tensor,
    check_rows,
    middle_ranks,
    read_array,
)
from prunebench.metrics.bias import IdentityCounts, bias_amplification
from prunebench.metrics.classes import class_columns, logit_columns, one_hot
from prunebench.metrics.uncertainty import margin, uncertain_share
from prunebench.stats.correlation import row_spearman as spearman

COMBINED = "combined"


@as_given
def margin_uncertainty(dense_logits: Array, *, multi_label: bool = False) -> Tensor:
    """Margin uncertainty of the dense model on each sample: 1 - (p_(1) - p_(2)), float64 `[N]` in 0..1.

    A hypothesis (after Iofinova et al., 2023): the samples that the dense model is unsure of are those that pruning
    changes.

    Args:
        dense_logits: of classes `[N, C]`, or binary `[N]` or `[N, 1]`, for which this is 1 - 2 |p - 1/2|.
        multi_label: logits `[N, K]` are those of K binary attributes, which the shape alone does not tell; the
            score is the mean of 1 - 2 |p - 1/2| over them (the highest would be near 1 for every sample with many
            attributes). For one attribute give its column `[N]`.

    Raises:
        MetricError: other shapes, no sample, or values that are not finite.
    """
    logits = as_finite("dense_logits", dense_logits, ndim=2 if multi_label else (1, 2))
    unsure = 1 - margin(logits, multi_label=multi_label)
    return unsure.mean(1) if multi_label else unsure


@as_given
def bias_risk(
    dense_logits: Array,
    label: Array,
    identity: Array,
    *,
    train_label: Array,
    train_identity: Array,
    criterion: str = COMBINED,
) -> Tensor:
    """Bias that pruning is expected to add to each attribute: one criterion of `bias_risks`, float64 `[K]`.

    Higher: more at risk. `rank_correlation(bias_risk(...), bias_after - bias_before)` is its evaluation.

    Args:
        dense_logits: as for `bias_risks`, and so the other arrays.
        criterion: the name of one of its criteria.

    Raises:
        MetricError: an unknown criterion, and as `bias_risks` does.
    """
    risks = bias_risks(dense_logits, label, identity, train_label=train_label, train_identity=train_identity)
    if criterion not in risks:
        raise MetricError(f"criterion: want one of {', '.join(risks)}, got {criterion!r}")
    return risks[criterion]


@as_given
def bias_risks(
    dense_logits: Array, label: Array, identity: Array, *, train_label: Array, train_identity: Array
) -> dict[str, Tensor]:
    """All criteria by name, float64 `[K]` each; higher: more at risk. Nothing of a pruned model is used.

    uncertainty: `uncertain_share` of the dense logits. amplification: `bias_amplification` of the dense predictions
    z > 0. identity_imbalance: |P_train(y = 1 | g = 1) - P_train(y = 1 | g = 0)|, nan for the identity itself and
    without members in a group. class_imbalance: |2 P_train(y = 1) - 1|. combined: the mean over these four of an
    attribute's rank (1 to D, ties share the mean) over D, among the D attributes where all four are defined; nan
    for the others.

    Source: hypotheses after Iofinova et al., CVPR 2023, section on criteria of the uncompressed model; the formulas
    are this project's.

    Args:
        dense_logits: `[N, K]`.
        label: 0/1 `[N, K]`, or class indices `[N]`: then each class is taken against the rest, and predicted where
            it is the likeliest.
        identity: 0/1 `[N]` or `[N, K]`.
        train_label: 0/1 `[N', K]`, or class indices `[N']`.
        train_identity: 0/1 `[N']` or `[N', K]`.

    Raises:
        MetricError: shapes that disagree, and other values.
    """
    raw = as_finite("dense_logits", dense_logits, ndim=2)
    logits, columns = logit_columns("dense_logits", raw, "label", label)
    if read_array("label", label).ndim == 1:
        prediction = one_hot(raw.argmax(1), raw.shape[1])
        train = class_columns("train_label", train_label, raw.shape[1])
    else:
        prediction = (raw > 0).long()
        train = as_binary("train_label", train_label, ndim=2)
    amplified = bias_amplification(
        prediction, columns, identity, train_label=train, train_identity=train_identity
    )
    tied = IdentityCounts.of("train_identity", train_identity, "train_label", train)
    risks = {
        "uncertainty": uncertain_share(logits),
        "amplification": amplified.value,
        "identity_imbalance": tied.gap.masked_fill(tied.is_label, math.nan),
        "class_imbalance": (2 * train.mean(0) - 1).abs(),
    }
    return {**risks, COMBINED: _mean_rank(torch.stack(list(risks.values()), dim=1))}


def _mean_rank(criteria: Tensor) -> Tensor:
    """Mean over criteria `[K, S]` of the rank among complete rows, over their number: `[K]`, nan for the others."""
    complete = ~criteria.isnan().any(1)
    result = torch.full((len(criteria),), math.nan, dtype=torch.float64)
    if complete.any():
        result[complete] = middle_ranks(criteria[complete]).mean(1) / complete.sum()
    return result


@dataclass(frozen=True)
class Predictability:
    """How well a score `[N]` ranks an event: areas in 0..1, nan where it happened to no sample or to all.

    `events` counts the samples to which it happened.
    """

    area_under_curve: float
    average_precision: float
    recall_at_5_percent: float
    events: int
    samples: int

    @property
    def event_rate(self) -> float:
        """Share of the samples to which the event happened."""
        return self.events / self.samples


def evaluate_predictability(score: Array, event: Array) -> Predictability:
    """AUROC, average precision, and the share of the events among the 5 % of samples with the highest score.

    Samples that tie at the border of the 5 % (rounded up) count by their share of the places left.

    Args:
        score: `[N]`.
        event: 0/1 `[N]`, e.g. modal exemplars, flips or new errors.

    Raises:
        MetricError: shapes that disagree, no sample, or other values.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, truth = as_finite("score", score, ndim=1), as_binary("event", event, ndim=1)
    check_rows("event", truth, "score", values)
    count, total = int(truth.sum()), len(truth)
    if count in (0, total):
        return Predictability(math.nan, math.nan, math.nan, count, total)
    places = math.ceil(0.05 * total)
    border = values.sort(descending=True).values[places - 1]
    above, tied = values > border, values == border
    share = (places - int(above.sum())) / int(tied.sum())
    found = float(truth[above].sum() + share * truth[tied].sum())
    area = float(roc_auc_score(truth.numpy(), values.numpy()))
    precision = float(average_precision_score(truth.numpy(), values.numpy()))
    return Predictability(area, precision, found / count, count, total)


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
    is constant. All is nan with fewer than three pairs or a constant side.

    Args:
        first: `[K]`.
        second: `[K]`.
        draws: of the bootstrap.
        confidence: of the interval, between 0 and 1.
        seed: of the draws.

    Raises:
        MetricError: lengths that disagree, no value, no draw, or a confidence outside 0..1.
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


def bootstrap_area(score: Array, event: Array, *, columns: int = 1, draws: int = 400) -> tuple[float, float]:
    """95 % percentile interval of the area under the ROC curve, over samples drawn with replacement; ties count half.

    nan where the event happened to no sample or to all, in the data or in every draw.

    Args:
        score: `[N columns]`, sample by sample.
        event: 0/1 `[N columns]`.
        columns: the outputs of a sample, which are drawn together; a draw weighs them by how often.
        draws: of the bootstrap.

    Raises:
        MetricError: lengths that disagree or are no multiple of `columns`, or no draws.
    """
    draws = as_count("draws", draws)
    values = as_finite("score", score, ndim=1).numpy()
    truth = as_binary("event", event, ndim=1).numpy()
    if len(values) != len(truth) or columns < 1 or len(truth) % columns:
        raise MetricError(f"event: has {len(truth)} values, score {len(values)}; want rows of {columns}")
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
