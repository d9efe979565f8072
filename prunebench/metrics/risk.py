"""Risk of an attribute under pruning, told from the dense model and the labels alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_binary, as_finite, as_given, middle_ranks, read_array
from prunebench.metrics.bias import IdentityCounts, bias_amplification
from prunebench.metrics.classes import class_columns, logit_columns, one_hot
from prunebench.metrics.uncertainty import uncertain_share

COMBINED = "combined"


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
    """How much bias pruning is expected to add to each attribute: one criterion of `bias_risks`, float64 `[K]`.

    Higher: more at risk. `rank_correlation(bias_risk(...), bias_after - bias_before)` is its evaluation. Raises
    MetricError on an unknown criterion, and as `bias_risks` does.
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

    dense_logits, label: `[N, K]`; identity `[N]` or `[N, K]`; train_label `[N', K]`; train_identity `[N']` or
    `[N', K]`. With class indices label `[N]` and train_label `[N']`, each class is taken against the rest, and
    predicted where it is the likeliest. Raises MetricError on shapes that disagree and other values.
    Source: hypotheses after Iofinova et al., CVPR 2023, section on criteria of the uncompressed model; the
    formulas are this project's.
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
