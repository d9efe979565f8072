"""The oracles: each operation as its formula, in torch, with gradients by autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


class _StraightThrough(torch.autograd.Function):
    """hard(s) = [s > 1/2] forward, the identity backward (Bengio et al., 2013)."""

    @staticmethod
    def forward(context: object, soft: Tensor) -> Tensor:
        return (soft > 0.5).to(soft.dtype)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sample_masks(
    logits: Mapping[str, Tensor],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    squash: bool = True,
) -> dict[str, Tensor]:
    """Draw hard 0/1 masks from Gumbel-sigmoid logits, with straight-through gradients.

    s = sigmoid((g(pi) + L) / temperature), mask = [s > 1/2], d mask / d s := 1, where L = log u - log(1 - u)
    is logistic noise (the difference of two Gumbel variables). With `squash`, g is the sigmoid, as DCWP's
    released code has it: the keep-probability then lies in (0.5, 0.731) whatever the logit. Without it, g is
    the identity, as in Csordas et al. (2021).

    All layers are drawn from one flat buffer: one pass over the noise, whatever the number of layers.
    Masks have the shapes, dtype and device of the logits. Raises ValueError on an empty mapping or a
    temperature that is not positive. Source: Park et al., CVPR 2023, and its released code.
    """
    if not logits:
        raise ValueError("logits: no layer to sample masks for")
    if not temperature > 0:
        raise ValueError(f"temperature: must be positive, got {temperature}")
    flat = torch.cat([values.reshape(-1) for values in logits.values()])
    uniform = torch.rand(flat.shape, generator=generator, device=flat.device, dtype=flat.dtype)
    noise = torch.logit(uniform, eps=1e-7)
    location = torch.sigmoid(flat) if squash else flat
    hard = _StraightThrough.apply(torch.sigmoid((location + noise) / temperature))
    pieces = torch.split(hard, [values.numel() for values in logits.values()])
    return {name: piece.view_as(logits[name]) for name, piece in zip(logits, pieces)}


def masked_conv2d(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """y = conv2d(x, weight * mask): x `[N, C, H, W]`, weight and mask `[K, C / groups, R, S]`.

    Differentiable in x, weight, bias and, for a float mask, in the mask (the dense gradient).
    """
    if mask.shape != weight.shape:
        raise ValueError(f"mask: shape {tuple(mask.shape)} differs from weight's {tuple(weight.shape)}")
    return functional.conv2d(x, weight * mask.to(weight.dtype), bias, stride, padding, dilation, groups)


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


def correlation(outputs: Tensor) -> Tensor:
    """Pearson correlation between output columns: `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, float64.

    A constant column gives nan in its own row and column only. Raises ValueError for fewer than two samples.
    """
    if outputs.ndim not in (2, 3) or outputs.shape[-2] < 2:
        raise ValueError(f"outputs: want [N, K] or [M, N, K] with N >= 2, got {tuple(outputs.shape)}")
    centred = outputs.double() - outputs.double().mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    constant = (outputs == outputs[..., :1, :]).all(-2)
    deviation = variance.sqrt().masked_fill(constant, math.nan)
    return (covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))).clamp(-1, 1)
