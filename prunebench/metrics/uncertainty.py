"""How sure a model is of its outputs: means over a split, from the batched kernels."""

from __future__ import annotations

import math

from prunebench_kernels import uncertainty
from torch import Tensor


def uncertainty_summary(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Mean entropy (share of log C), confidence and negative log-likelihood (nats) of logits `[N, C]`."""
    values = uncertainty(logits, labels=label)
    assert values.negative_log_likelihood is not None
    return {
        "entropy": float(values.entropy.double().mean()) / math.log(logits.shape[1]),
        "confidence": float(values.max_probability.double().mean()),
        "negative_log_likelihood": float(values.negative_log_likelihood.double().mean()),
    }
