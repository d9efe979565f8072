"""What the operation `uncertainty` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

PER_MODEL = (
    "max_probability",
    "margin",
    "entropy",
    "negative_log_likelihood",
    "in_band_share",
    "kl_to_dense",
    "correlation_to_dense",
)
OVER_MODELS = ("mean_probability", "predictive_entropy", "mutual_information", "vote", "agreement")


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of each sample, with p = softmax(z) over the C outputs z of one model; what was not asked is None.

    Per model, `[N]` for logits `[N, C]` and `[M, N]` for logits `[M, N, C]`; entropies in nats:
    max_probability = p_(1), the largest; margin = p_(1) - p_(2); entropy = -sum p log p;
    negative_log_likelihood = -log p_label; in_band_share = share of the C outputs with |sigmoid(z) - 0.5| < band;
    kl_to_dense = KL(p || q) = sum p (log p - log q), q = softmax(dense_logits);
    correlation_to_dense = Pearson's correlation of z and dense_logits over the C outputs, nan where a row is constant.

    Over the M models, for logits `[M, N, C]` only: mean_probability `[N, C]`; predictive_entropy `[N]`, the entropy
    of the mean probability; mutual_information `[N]` = predictive entropy - mean entropy (BALD; never below 0);
    vote `[N]` int64, the class that most models put first, the lowest of equals; agreement `[N]`, the share of the
    models that put it first.
    """

    max_probability: Tensor
    margin: Tensor
    entropy: Tensor
    negative_log_likelihood: Tensor | None
    in_band_share: Tensor
    kl_to_dense: Tensor | None = None
    correlation_to_dense: Tensor | None = None
    mean_probability: Tensor | None = None
    predictive_entropy: Tensor | None = None
    mutual_information: Tensor | None = None
    vote: Tensor | None = None
    agreement: Tensor | None = None
