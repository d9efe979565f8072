"""Benchmarks of every operation against eager torch, torch.compile and a copy of the same bytes, L2 hot and cold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cases
import torch
from cases import ConvCase, LogitsCase
from gpu_stages import Context, Item, Result
from gpu_subjects import operation, random, random_mask
from timing import Call, compiled, time_calls, time_kernels
from torch import Tensor
from torch.nn import functional

OURS, EAGER, COMPILED, COPY = "prunebench", "eager", "torch.compile", "copy of the same bytes"


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in tensors_in(entry)]
    return tensors_in(list(vars(value).values())) if hasattr(value, "__dict__") else []


def nbytes(value: object) -> int:
    return sum(tensor.nbytes for tensor in tensors_in(value))


def compare(
    context: Context,
    calls: Mapping[str, Call],
    *,
    moved: int = 0,
    flop: int = 0,
    launches: bool = False,
    cold: bool = True,
    seconds: float = 1.0,
) -> Result:
    """Time candidates in turns, L2 hot and cold. `moved`: bytes that must move, which a copy then moves as well.

    `launches` adds timings without CUDA graphs, as a user sees a call from Python, and of the kernels alone, without
    what the host waits for. A candidate that does not run is left out with its reason.
    """
    rounds = None if context.cuda else 2
    alive, refused = _that_run(calls)
    if moved:
        source = torch.empty(moved // 2, dtype=torch.uint8, device=context.device).random_()
        target = torch.empty_like(source)
        alive[COPY] = lambda: target.copy_(source)
    seconds = context.sizes(seconds, 0.02)
    settings = [{"cold": False}, {"cold": True}] if cold else [{"cold": False}]
    if launches and context.cuda:
        settings.append({"cold": False, "graph": False})
    rows = []
    for setting in settings:
        for name, timing in time_calls(
            alive, context.device, seconds=seconds, rounds=rounds, **setting
        ).items():
            rows.append({"candidate": name, **timing.to_dict(), **_rates(timing.p50_ms, moved, flop)})
    if launches and cold and context.cuda:
        for name, call in alive.items():
            alone = time_kernels(call, context.device)
            if alone is not None:
                rows.append({"candidate": name, **alone.to_dict(), **_rates(alone.p50_ms, moved, flop)})
    return {"rows": rows, "refused": refused, "bytes": moved, "flop": flop}


def _rates(milliseconds: float, moved: int, flop: int) -> dict[str, float]:
    rates = {"gb_per_s": moved / milliseconds / 1e6} if moved and milliseconds else {}
    return rates | ({"tflop_per_s": flop / milliseconds / 1e9} if flop and milliseconds else {})


def _that_run(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    alive: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for name, call in calls.items():
        try:
            call()
            alive[name] = call
        except Exception as error:  # a baseline that fails must not hide the others; ours must run
            if name == OURS:
                raise
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return alive, refused


def with_baselines(
    context: Context, ours: Call, formula: Callable[..., Any], *arguments: Any
) -> dict[str, Call]:
    """Our call, the formula in eager torch and, unless it is switched off, compiled for these shapes."""
    calls: dict[str, Call] = {OURS: ours, EAGER: lambda: formula(*arguments)}
    if context.compiles:
        fast = compiled(formula)
        calls[COMPILED] = lambda: fast(*arguments)
    return calls


# --- uncertainty and dependence ----------------------------------------------------------------------------


def uncertainty_formula(logits: Tensor, labels: Tensor, band: float = 0.4) -> tuple[Tensor, ...]:
    """Per-sample values of logits `[M, N, C]` as one writes them in torch, without checks of the arguments."""
    logits = logits.float()
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    top = p.topk(2, -1).values
    entropy = -(p * log_p).sum(-1)
    loss = -log_p.gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    in_band = ((logits.sigmoid() - 0.5).abs() < band).float().mean(-1)
    mean = p.mean(0)
    predictive = -(mean * mean.log()).sum(-1)
    votes = functional.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return (
        top[..., 0],
        top[..., 0] - top[..., 1],
        entropy,
        loss,
        in_band,
        mean,
        predictive,
        predictive - entropy.mean(0),
        votes.argmax(-1),
        votes.amax(-1) / len(logits),
    )


def correlation_formula(outputs: Tensor) -> Tensor:
    """Pearson correlation of the columns of `[M, N, K]` in float32."""
    centred = outputs.float() - outputs.float().mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))


def reduced(case: LogitsCase, context: Context) -> LogitsCase:
    """The case, with 64 to 400 samples and at most 8 models on a CPU."""
    if context.cuda:
        return case
    samples = min(max(case.samples // 500, 64), 400)
    return LogitsCase(case.name, min(case.models, 8), samples, case.classes)


def bench_uncertainty(case: LogitsCase, dtype: torch.dtype, context: Context) -> Result:
    case = reduced(case, context)
    uncertainty = operation("uncertainty")
    logits = random(context, *case.shape, dtype=dtype, scale=4.0)
    labels = torch.arange(case.samples, device=context.device) % case.classes

    def ours() -> Any:
        return uncertainty(logits, labels=labels)

    calls = with_baselines(context, ours, uncertainty_formula, logits, labels)
    moved = nbytes((logits, labels)) + nbytes(ours())
    return {
        "shape": list(case.shape),
        "dtype": str(dtype),
        **compare(context, calls, moved=moved, launches=True),
    }


def bench_dependence(name: str, case: LogitsCase, dtype: torch.dtype, context: Context) -> Result:
    """`correlation` of real outputs, or `cooccurrence` of 0/1 predictions against float32 matrix products."""
    case = reduced(case, context)
    function = operation(name)
    outputs = random(context, *case.shape)
    outputs = (outputs > 0.5).to(torch.uint8) if name == "cooccurrence" else (outputs + 3.0).to(dtype)

    def count(predictions: Tensor) -> Tensor:
        return predictions.float().transpose(-1, -2) @ predictions.float()

    def ours() -> Any:
        return function(outputs)

    formula = count if name == "cooccurrence" else correlation_formula
    calls = with_baselines(context, ours, formula, outputs)
    flop = 2 * math.prod(case.shape) * case.classes
    moved = nbytes(outputs) + nbytes(ours())
    timed = compare(context, calls, moved=moved, flop=flop, launches=True)
    return {"shape": list(case.shape), "dtype": str(outputs.dtype), **timed}


def interdependence_formula(predictions: Tensor) -> Tensor:
    """R2 of each column on the others by one least-squares fit a column: `[N, K]` to `[K]`, float64."""
    values = predictions.double()
    centred = values - values.mean(0)
    shares = []
    for column in range(centred.shape[1]):
        rest = torch.cat([centred[:, :column], centred[:, column + 1 :]], 1)
        fitted = rest @ torch.linalg.lstsq(rest, centred[:, column]).solution
        shares.append(1 - (centred[:, column] - fitted).square().sum() / centred[:, column].square().sum())
    return torch.stack(shares)


def bench_interdependence(context: Context) -> Result:
    case = reduced(cases.OUTPUTS[0], context)
    interdependence = operation("interdependence")
    common = random(context, case.samples, 1)
    predictions = (random(context, case.samples, case.classes) + common > 0).to(torch.uint8)
    calls: dict[str, Call] = {
        OURS: lambda: interdependence(predictions),
        EAGER: lambda: interdependence_formula(predictions),
    }
    return {"shape": list(predictions.shape), **compare(context, calls, launches=True)}


# --- masks and masked convolutions -------------------------------------------------------------------------


def sampling_formula(logits: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gumbel-sigmoid masks layer by layer, straight through, times the weights, in the compute dtype."""
    made = []
    for values, weight in zip(logits, weights):
        uniform = torch.rand_like(values).clamp(1e-7, 1 - 1e-7)
        soft = torch.sigmoid(torch.sigmoid(values) + uniform.log() - (1 - uniform).log())
        hard = (soft > 0.5).to(soft.dtype)
        made.append(((hard - soft).detach() + soft).mul(weight).to(dtype))
    return made


def bench_sampling(network: str, backward: bool, context: Context) -> Result:
    """All masks of a network with masked bf16 weights from float32 ones; with `backward`, the gradients too."""
    sample_masks = operation("sample_masks")
    shapes = context.sizes(cases.MASK_LAYERS[network], cases.ODD_MASK_LAYERS)
    sizes = [math.prod(shape) for shape in shapes]
    elements = sum(sizes)
    logits, weights = (random(context, elements).requires_grad_(backward) for _ in range(2))
    gradient = random(context, elements, dtype=torch.bfloat16)
    layers = [
        [part.detach().requires_grad_(backward) for part in flat.split(sizes)] for flat in (logits, weights)
    ]

    def ours() -> object:
        made = sample_masks(logits, weights=weights, weight_dtype=torch.bfloat16, seed=7)
        return torch.autograd.grad(made, (logits, weights), gradient) if backward else made

    def step(function: Callable[..., Any]) -> Call:
        def run() -> object:
            made = function(*layers, torch.bfloat16)
            leaves = [*layers[0], *layers[1]]
            return torch.autograd.grad(made, leaves, gradient.split(sizes)) if backward else made

        return run

    calls: dict[str, Call] = {OURS: ours, EAGER: step(sampling_formula)}
    if context.compiles:
        calls[COMPILED] = step(compiled(sampling_formula))
    # float32 logits and weights in, bfloat16 products out; backward reads the gradient too and writes two.
    moved = (10 if not backward else 28) * elements
    return {"elements": elements, **compare(context, calls, moved=moved, launches=True)}


def bench_masked_conv(case: ConvCase, backward: bool, context: Context) -> Result:
    """One layer of a training step in bf16 (float32 on a CPU): float32 weights, a bool mask, channels_last."""
    masked_conv2d = operation("masked_conv2d")
    x_shape = context.sizes(case.x_shape, (1, *case.x_shape[1:]))
    dtype = context.sizes(torch.bfloat16, torch.float32)
    x = random(context, *x_shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = random(context, *case.weight_shape, scale=0.1)
    mask = random_mask(context, case.weight_shape, "unstructured", 0.9)
    x.requires_grad_(backward)
    weight.requires_grad_(backward)
    arguments = case.arguments

    def formula(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return functional.conv2d(x, (weight * mask).to(x.dtype), **arguments)

    def ours(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.cuda):
            return masked_conv2d(x, weight, mask, **arguments)

    gradient = torch.randn_like(formula(x, weight, mask))

    def step(function: Callable[..., Any]) -> Call:
        def run() -> object:
            y = function(x, weight, mask)
            return torch.autograd.grad(y, (x, weight), gradient) if backward else y

        return run

    calls = {OURS: step(ours), EAGER: step(formula)}
    if context.compiles:
        calls[COMPILED] = step(compiled(formula))
    flop = case.flop * x_shape[0] // case.batch * (3 if backward else 1)
    return {
        "x": list(x_shape),
        "weight": list(case.weight_shape),
        **compare(context, calls, flop=flop, seconds=0.5),
    }


def items(context: Context) -> list[Item]:
    """The targets' shapes first."""
    imagenet, celeba, runs = cases.LOGITS
    found = [
        Item("uncertainty, imagenet, fp32", lambda c: bench_uncertainty(imagenet, torch.float32, c), 25),
        Item("sample_masks, resnet18", lambda c: bench_sampling("resnet18", False, c), 20),
        Item(
            "correlation, 64 columns, fp32",
            lambda c: bench_dependence("correlation", cases.OUTPUTS[1], torch.float32, c),
            15,
        ),
        Item(
            "correlation, 40 columns, fp32",
            lambda c: bench_dependence("correlation", cases.OUTPUTS[0], torch.float32, c),
            15,
        ),
        Item("sample_masks, resnet18, with gradients", lambda c: bench_sampling("resnet18", True, c), 20),
        Item(
            "cooccurrence, 40 columns",
            lambda c: bench_dependence("cooccurrence", cases.OUTPUTS[0], torch.uint8, c),
            15,
        ),
        Item("uncertainty, celeba, fp32", lambda c: bench_uncertainty(celeba, torch.float32, c), 15),
        Item("uncertainty, imagenet, bf16", lambda c: bench_uncertainty(imagenet, torch.bfloat16, c), 25),
    ]
    layers = cases.RESNET18_32[128] if context.cuda else cases.RESNET18_32[128][-1:]
    for case in layers:
        name = f"masked_conv2d, {case.name}, forward and backward"
        found.append(Item(name, lambda c, case=case: bench_masked_conv(case, True, c), 15))  # type: ignore[misc]
    found += [
        Item("interdependence, 40 columns", bench_interdependence, 15),
        Item("uncertainty, many runs, fp32", lambda c: bench_uncertainty(runs, torch.float32, c), 25),
        Item(
            "correlation, many runs, fp32",
            lambda c: bench_dependence("correlation", cases.OUTPUTS[2], torch.float32, c),
            20,
        ),
    ]
    return found
