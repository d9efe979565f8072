"""Oracles: the formula of every operation in plain torch, slow and obvious, for tests and benchmarks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.uncertainty import Uncertainty

if TYPE_CHECKING:
    from prunebench_kernels.layouts import PackedWeight


# --- uncertainty ---------------------------------------------------------------------------------------------


def uncertainty(
    logits: Tensor, *, labels: Tensor | None = None, dense_logits: Tensor | None = None, band: float = 0.4
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


# --- dependence ----------------------------------------------------------------------------------------------


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


def cooccurrence(predictions: Tensor) -> Tensor:
    """How often columns are 1 together, X'X: 0/1 `[N, K]` to `[K, K]`, or `[M, N, K]` to `[M, K, K]`, int64.

    Raises ValueError on a value that is not 0 or 1.
    """
    if not ((predictions == 0) | (predictions == 1)).all():
        raise ValueError("predictions: want only 0 and 1, found another value")
    values = predictions.double()
    return (values.transpose(-1, -2) @ values).to(torch.int64)


def interdependence(predictions: Tensor) -> Tensor:
    """R2 of each column on all others, one least-squares fit a column: `[N, K]` to `[K]`, or `[M, K]`; float64.

    With intercept (columns are centred), fitted and scored on the same rows; minimum norm where columns are
    collinear. A constant column is nan. Raises ValueError for fewer than two samples.
    """
    if predictions.ndim == 3:
        return torch.stack([interdependence(model) for model in predictions])
    if predictions.ndim != 2 or len(predictions) < 2:
        raise ValueError(f"predictions: want [N, K] or [M, N, K], N >= 2, got {tuple(predictions.shape)}")
    values = predictions.double()
    constant = (values == values[:1]).all(0)
    centred = (values - values.mean(0)).masked_fill(constant, 0)
    shares = torch.full((values.shape[1],), math.nan, dtype=torch.float64, device=values.device)
    for column in (~constant).nonzero().flatten().tolist():
        target = centred[:, column]
        rest = torch.cat([centred[:, :column], centred[:, column + 1 :]], 1)
        fitted = rest @ (torch.linalg.pinv(rest) @ target)
        shares[column] = 1 - (target - fitted).square().sum() / target.square().sum()
    return shares


# --- masks ---------------------------------------------------------------------------------------------------


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a counter of four and a key of two.

    Source: Salmon et al., SC 2011 (Parallel random numbers: as easy as 1, 2, 3), and its library Random123.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high % 2**32, (low >> 32) ^ c3 ^ k1, low % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniforms(count: int, *, seed: int, offset: int = 0) -> Tensor:
    """The uniform numbers `[count]` (float64, exact) of draw `offset`: u = ((word >> 8) | 1) / 2^24.

    Element e takes word e % 4 of the counter (e // 4, offset, 0, 0) under the key (seed % 2^32, seed // 2^32):
    what Triton's `tl.randint4x(seed, offset * 2^32 + e // 4)` gives.
    """
    key = (seed % 2**32, seed >> 32)
    words = [philox4x32((counter, offset, 0, 0), key) for counter in range(-(-count // 4))]
    return torch.from_numpy(((np.array(words, dtype=np.int64).ravel()[:count] >> 8) | 1) / 2**24)


class _StraightThrough(torch.autograd.Function):
    """hard(s) = [s > 1/2] forward, the identity backward (Bengio et al., 2013)."""

    @staticmethod
    def forward(context: object, soft: Tensor) -> Tensor:
        return (soft > 0.5).to(soft.dtype)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sample_masks(logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, squash: bool = True) -> Tensor:
    """Hard 0/1 masks from Gumbel-sigmoid logits and given uniform numbers, with straight-through gradients.

    s = sigmoid((g(pi) + L) / temperature), mask = [s > 1/2], d mask / d s := 1, where L = log u - log(1 - u)
    is logistic noise (the difference of two Gumbel variables). With `squash`, g is the sigmoid, as DCWP's
    released code has it: the keep-probability then lies in (0.5, 0.731) whatever the logit. Without it, g is
    the identity, as in Csordas et al. (2021). Logits and uniform numbers have one shape.
    Source: Park et al., CVPR 2023, and its released code.
    """
    noise = torch.log(uniform) - torch.log1p(-uniform)
    location = torch.sigmoid(logits) if squash else logits
    return _StraightThrough.apply(torch.sigmoid((location + noise) / temperature))


# --- convolutions --------------------------------------------------------------------------------------------


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


def sparse_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y = relu(conv2d(x, W) + bias + residual) in float64: x `[N, C, H, W]`, bias `[K]`, residual as y."""
    geometry = packed.geometry
    y = functional.conv2d(
        x.to(torch.float64),
        packed.unpack().to(torch.float64),
        None if bias is None else bias.to(torch.float64),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.groups,
    )
    if residual is not None:
        y = y + residual.to(torch.float64)
    return y.relu() if relu else y
