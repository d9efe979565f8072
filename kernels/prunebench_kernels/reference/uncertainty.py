"""The oracle of per-sample uncertainty: its formulas in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.uncertainty_values import Uncertainty


def uncertainty(
    logits: Tensor,
    *,
    labels: Tensor | None = None,
    dense_logits: Tensor | None = None,
    band: float = 0.4,
) -> Uncertainty:
    """Softmax uncertainty of each sample: logits `[N, C]` or `[M, N, C]`, labels `[N]`, dense_logits `[N, C]`.

    The formulas stand at `Uncertainty`. Computed in float32, or float64 for float64 logits. Raises ValueError for
    fewer than two classes, an empty batch or logits that are not finite.
    """
    if logits.ndim not in (2, 3) or logits.shape[-1] < 2 or 0 in logits.shape:
        raise ValueError(f"logits: want [N, C] or [M, N, C] with N >= 1, C >= 2, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ValueError("logits: contains values that are not finite")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probability = torch.log_softmax(logits, dim=-1)
    probability = log_probability.exp()
    top = probability.topk(2, dim=-1).values
    loss = None
    if labels is not None:
        if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise ValueError(f"labels: values outside 0..{logits.shape[-1] - 1}")
        index = labels.to(torch.int64).expand(logits.shape[:-1]).unsqueeze(-1)
        loss = -log_probability.gather(-1, index).squeeze(-1)
    return Uncertainty(
        max_probability=top[..., 0],
        margin=top[..., 0] - top[..., 1],
        entropy=_entropy(probability, log_probability),
        negative_log_likelihood=loss,
        in_band_share=((logits.sigmoid() - 0.5).abs() < band).to(logits.dtype).mean(-1),
        **(_against_dense(logits, dense_logits.to(logits.dtype)) if dense_logits is not None else {}),
        **(_over_models(logits, probability, log_probability) if logits.ndim == 3 else {}),
    )


def _entropy(probability: Tensor, log_probability: Tensor) -> Tensor:
    return -torch.where(probability > 0, probability * log_probability, 0.0).sum(-1)


def _against_dense(logits: Tensor, dense_logits: Tensor) -> dict[str, Tensor]:
    log_p, log_q = torch.log_softmax(logits, dim=-1), torch.log_softmax(dense_logits, dim=-1)
    ours, theirs = (values - values.mean(-1, keepdim=True) for values in (logits, dense_logits))
    correlation = (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
    constant = [(values == values[..., :1]).all(-1) for values in (logits, dense_logits)]
    return {
        "kl_to_dense": torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(-1),
        "correlation_to_dense": torch.where(constant[0] | constant[1], torch.nan, correlation),
    }


def _over_models(logits: Tensor, probability: Tensor, log_probability: Tensor) -> dict[str, Any]:
    mean = probability.mean(0)
    predictive = _entropy(mean, mean.log())
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return {
        "mean_probability": mean,
        "predictive_entropy": predictive,
        "mutual_information": (predictive - _entropy(probability, log_probability).mean(0)).clamp(min=0),
        "vote": votes.argmax(-1),
        "agreement": votes.amax(-1).to(logits.dtype) / len(logits),
    }
