"""The oracle of per-sample uncertainty: its formulas in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uncertainty:
    """Per-sample uncertainty, each `[N]` (or `[M, N]` for M models), float32."""

    max_probability: Tensor
    margin: Tensor
    entropy: Tensor
    negative_log_likelihood: Tensor | None


def uncertainty(logits: Tensor, *, labels: Tensor | None = None) -> Uncertainty:
    """Softmax uncertainty of each sample: logits `[N, C]` or `[M, N, C]`, labels `[N]`.

    p = softmax(z); max_probability = max p; margin = p_(1) - p_(2); entropy = -sum p log p in nats;
    negative_log_likelihood = -log p_label. Computed in float32 or wider. Raises ValueError for fewer than two
    classes, an empty batch or logits that are not finite.
    """
    if logits.ndim not in (2, 3) or logits.shape[-1] < 2 or logits.shape[-2] < 1:
        raise ValueError(f"logits: want [N, C] or [M, N, C] with N >= 1, C >= 2, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ValueError("logits: contains values that are not finite")
    log_probability = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    probability = log_probability.exp()
    top = probability.topk(2, dim=-1).values
    loss = None
    if labels is not None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise ValueError(f"labels: values outside 0..{logits.shape[-1] - 1}")
        index = labels.to(torch.int64).expand(logits.shape[:-1]).unsqueeze(-1)
        loss = -log_probability.gather(-1, index).squeeze(-1)
    return Uncertainty(
        max_probability=top[..., 0],
        margin=top[..., 0] - top[..., 1],
        entropy=-torch.where(probability > 0, probability * log_probability, 0.0).sum(-1),
        negative_log_likelihood=loss,
    )
