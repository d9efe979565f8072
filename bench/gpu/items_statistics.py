"""Per-sample uncertainty and dependence between outputs: share of the bandwidth, eager torch, torch.compile."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import cases
import torch
from cases import LogitsCase
from torch import Tensor
from torch.nn import functional

from gpu.schedule import LAYER, TARGET, Call, Context, Item, Result
from gpu.subjects import AUTO, OURS, compare, labels_of, nbytes, op, random, reduced, with_baselines

TORCH = "float64 cuBLAS"
IMAGENET, CELEBA, RUNS = cases.LOGITS
ONE_MODEL = LogitsCase("one model", 0, 50_000, 1000)
OUTPUTS40, OUTPUTS64 = cases.OUTPUTS[:2]


def uncertainty_formula(logits: Tensor, labels: Tensor, band: float = 0.4) -> tuple[Tensor, ...]:
    """Per-sample values of logits `[M, N, C]` as one writes them in torch, without checks of the arguments."""
    logits = logits.float()
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    top = p.topk(2, -1).values
    entropy = -(p * log_p).sum(-1)
    index = labels.expand(log_p.shape[:-1]).unsqueeze(-1)
    loss = -log_p.gather(-1, index).squeeze(-1)
    in_band = ((p - 0.5).abs() < band).float().mean(-1)
    each = (top[..., 0], top[..., 0] - top[..., 1], entropy, loss, in_band)
    if logits.ndim == 2:
        return each
    mean = p.mean(0)
    predictive = -(mean * mean.log()).sum(-1)
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    share = votes.amax(-1) / len(logits)
    return *each, mean, predictive, predictive - entropy.mean(0), votes.argmax(-1), share


def correlation_formula(outputs: Tensor) -> Tensor:
    """Pearson correlation of the columns of `[M, N, K]` in float32."""
    centred = outputs.float() - outputs.float().mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))


def count_formula(predictions: Tensor) -> Tensor:
    """Co-occurrence counts of 0/1 predictions `[M, N, K]` by a float32 product."""
    return predictions.float().transpose(-1, -2) @ predictions.float()


def logits_of(case: LogitsCase, dtype: torch.dtype, context: Context) -> tuple[Tensor, Tensor]:
    """Random logits, and labels."""
    case = reduced(case, context)
    return random(context, *case.shape, dtype=dtype, scale=4.0), labels_of(case, context)


def bench_uncertainty(case: LogitsCase, dtype: torch.dtype, context: Context) -> Result:
    uncertainty, (logits, labels) = op("uncertainty", "uncertainty"), logits_of(case, dtype, context)
    ours: Call = partial(uncertainty, logits, labels=labels, backend=context.backend)
    calls: dict[str, Call] = {OURS: ours, AUTO: partial(uncertainty, logits, labels=labels)}
    with_baselines(context, calls, uncertainty_formula, logits, labels)
    moved = nbytes((logits, labels)) + nbytes(ours())
    return {"shape": list(logits.shape), **compare(context, calls, moved=moved)}


def uncertainty_kernels(case: LogitsCase, dtype: torch.dtype, context: Context) -> Iterable[Call]:
    logits, labels = logits_of(case, dtype, context)
    return [partial(op("uncertainty", "uncertainty"), logits, labels=labels, backend=context.backend)]


def outputs_of(name: str, case: LogitsCase, context: Context) -> Tensor:
    """Real outputs far from zero, or 0/1 predictions for `cooccurrence`."""
    outputs = random(context, *reduced(case, context).shape)
    return (outputs > 0.5).to(torch.uint8) if name == "cooccurrence" else outputs + 3.0


def bench_dependence(name: str, case: LogitsCase, context: Context) -> Result:
    function, outputs = op("dependence", name), outputs_of(name, case, context)
    ours: Call = partial(function, outputs, backend=context.backend)
    calls = {OURS: ours, AUTO: partial(function, outputs), TORCH: partial(function, outputs, backend="torch")}
    formula = count_formula if name == "cooccurrence" else correlation_formula
    with_baselines(context, calls, formula, outputs)
    flop = 2 * math.prod(outputs.shape) * outputs.shape[-1]
    moved = nbytes(outputs) + nbytes(ours())
    return {"shape": list(outputs.shape), **compare(context, calls, moved=moved, flop=flop, unit="tf32")}


def dependence_kernels(name: str, case: LogitsCase, context: Context) -> Iterable[Call]:
    return [partial(op("dependence", name), outputs_of(name, case, context), backend=context.backend)]


def _uncertainty(name: str, case: LogitsCase, seconds: float, dtype: torch.dtype, part: str = TARGET) -> Item:
    run, kernels = partial(bench_uncertainty, case, dtype), partial(uncertainty_kernels, case, dtype)
    return Item(f"uncertainty, {name}", run, seconds, part, kernels=kernels)


def _dependence(operation: str, name: str, case: LogitsCase, part: str = TARGET) -> Item:
    run, kernels = partial(bench_dependence, operation, case), partial(dependence_kernels, operation, case)
    return Item(f"{operation}, {name}", run, 5, part, kernels=kernels)


def first() -> list[Item]:
    """The targets' shapes."""
    return [
        _uncertainty("2 x 50,000 x 1000, fp32", IMAGENET, 12, torch.float32),
        _uncertainty("1000 x 10,000 x 10, fp32", RUNS, 8, torch.float32),
        _uncertainty("one model, 50,000 x 1000, fp32", ONE_MODEL, 5, torch.float32),
        _dependence("correlation", "2 x 50,000 x 64, fp32", OUTPUTS64),
    ]


def later() -> list[Item]:
    """Other shapes."""
    return [
        _uncertainty("2 x 50,000 x 1000, bf16", IMAGENET, 5, torch.bfloat16, LAYER),
        _uncertainty("2 x 19,962 x 40, fp32", CELEBA, 6, torch.float32, LAYER),
        _dependence("correlation", "19,962 x 40, fp32", OUTPUTS40, LAYER),
        _dependence("cooccurrence", "19,962 x 40", OUTPUTS40, LAYER),
    ]
