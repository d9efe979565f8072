"""Whole networks (a training step with masks, sparse inference), then single layers in every layout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cases
import torch
from cases import ConvCase
from gpu_correctness import relative_error
from gpu_networks import MaterialisedConv2d, conv_names, replace_convolutions, resnet18
from gpu_operations import COMPILED, EAGER, OURS, compare, sampling_formula
from gpu_stages import Context, Item, Result
from gpu_subjects import operation, random, random_mask
from timing import Call, compiled
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

INFERENCE = (
    ("block", 0.9),
    ("unstructured", 0.99),
    ("unstructured", 0.995),
    ("unstructured", 0.95),
    ("block", 0.5),
    ("filter", 0.5),
    ("2:4", 0.5),
    ("unstructured", 0.9),
)
"""Patterns and sparsities of whole networks, the targets' first. The first convolution stays dense."""
LAYERS = (
    ("block", 0.5),
    ("block", 0.75),
    ("block", 0.9),
    ("unstructured", 0.9),
    ("unstructured", 0.95),
    ("unstructured", 0.98),
    ("unstructured", 0.99),
    ("unstructured", 0.995),
    ("2:4", 0.5),
)


# --- a training step ---------------------------------------------------------------------------------------


def training_calls(context: Context, batch: int) -> dict[str, Call]:
    """Steps of forward, cross-entropy, backward and SGD in bf16 autocast (float32 on a CPU), channels_last.

    Fixed masks train the weights; learned masks train one logit a weight through sampled masks. Each against the
    same step with the masked weight made by `weight * mask` in eager torch.
    """
    net = resnet18(10, context.sizes(64, 16)).to(context.device, memory_format=torch.channels_last)
    masks = {
        name: random_mask(context, w.shape, "unstructured", 0.9).float()
        for name, w in conv_names(net).items()
    }
    size = context.sizes(32, 8)
    x = random(context, batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=context.device) % 10

    def step(run: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Call:
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

        def call() -> None:
            with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.cuda):
                loss = functional.cross_entropy(run(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return call

    def fixed(kind: type[nn.Conv2d]) -> Call:
        masked = replace_convolutions(copy.deepcopy(net), kind, masks)
        return step(lambda: masked(x), list(masked.parameters()))

    masked_conv = operation("MaskedConv2d")
    dense = copy.deepcopy(net)
    return {
        OURS: fixed(masked_conv),
        EAGER: fixed(MaterialisedConv2d),
        "dense, no masks": step(lambda: dense(x), list(dense.parameters())),
        **learned_calls(context, net, x, step),
    }


def learned_calls(
    context: Context,
    net: nn.Module,
    x: Tensor,
    step: Callable[[Callable[[], Tensor], list[nn.Parameter]], Call],
) -> dict[str, Call]:
    """Steps that train the masks' logits: all masks sampled in one call, and layer by layer in eager torch."""
    sample_masks = operation("sample_masks")
    dtype = context.sizes(torch.bfloat16, torch.float32)
    frozen = copy.deepcopy(net).requires_grad_(False)
    weights = conv_names(frozen)
    flat = torch.cat([weight.detach().reshape(-1) for weight in weights.values()])
    logits = nn.Parameter(torch.full_like(flat, 1.5))
    separate = [nn.Parameter(torch.full_like(weight, 1.5)) for weight in weights.values()]
    sizes = [weight.numel() for weight in weights.values()]

    def ours() -> Tensor:
        made = sample_masks(logits, seed=7, weights=flat, weight_dtype=dtype)
        views = [part.view_as(w) for part, w in zip(made.split(sizes), weights.values())]
        return functional_call(frozen, dict(zip(weights, views)), (x,))

    def eager() -> Tensor:
        with torch.autocast(context.device.type, enabled=False):
            made = sampling_formula(separate, list(weights.values()), dtype)
        return functional_call(frozen, dict(zip(weights, made)), (x,))

    return {f"{OURS}, learned masks": step(ours, [logits]), f"{EAGER}, learned masks": step(eager, separate)}


def bench_training(context: Context) -> Result:
    batch = context.sizes(128, 2)
    calls = training_calls(context, batch)
    return {"batch": batch, **compare(context, calls, launches=True, seconds=6.0, cold=False)}


# --- whole-network inference -------------------------------------------------------------------------------


def bench_inference(batch: int, pattern: str, sparsity: float, context: Context) -> Result:
    """bf16 (float32 on a CPU): sparsified against the dense network with BatchNorm folded, eager and compiled."""
    from prunebench_kernels.sparse.choices import Choices
    from prunebench_kernels.sparse.measured import QUICK, Effort
    from prunebench_kernels.sparse.module import Measuring
    from prunebench_kernels.sparse.network import fold_dense, sparsify

    batch, dtype = context.sizes(batch, 1), context.sizes(torch.bfloat16, torch.float32)
    size = context.sizes(32, 8)
    net = resnet18(10, context.sizes(64, 16)).to(context.device, memory_format=torch.channels_last).eval()
    x = random(context, batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    names = list(conv_names(net).items())[1:]
    masks = {name: random_mask(context, weight.shape, pattern, sparsity) for name, weight in names}
    effort = context.sizes(Effort(), QUICK)
    measuring = Measuring(effort, Choices.in_memory())  # nothing from an earlier session decides
    sparse = sparsify(net, example=x, masks=masks, dtype=dtype, measuring=measuring)
    dense = fold_dense(net, x, dtype=dtype)
    low = x.to(dtype)
    calls: dict[str, Call] = {OURS: lambda: sparse(low), EAGER: lambda: dense(low)}
    if context.compiles:
        fast = compiled(copy.deepcopy(dense))
        calls[COMPILED] = lambda: fast(low)
        both = compiled(copy.deepcopy(sparse))
        calls[f"{OURS}, compiled"] = lambda: both(low)
    with torch.inference_mode():
        error = relative_error(sparse(low), masked_output(net, masks, x))
        timed = compare(context, calls, launches=True, seconds=2.0, cold=False)
    report = sparse.report
    return {
        "batch": batch,
        "pattern": pattern,
        "sparsity": sparsity,
        "dtype": str(dtype),
        "zero_weights": 1
        - sum(int(mask.sum()) for mask in masks.values()) / sum(w.numel() for _, w in names),
        "relative_error": error,
        "layouts": report.layouts,
        "layers": {layer.name: f"{layer.layout}: {layer.reason}" for layer in report},
        "whole": report.whole,
        "removed_channels": report.removed_channels,
        **timed,
    }


def masked_output(net: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the masked network gives in float32: what sparse inference must come near."""
    weights = {name: conv_names(net)[name] * mask for name, mask in masks.items()}
    output: Tensor = functional_call(net, weights, (x,))
    return output


# --- single layers -----------------------------------------------------------------------------------------


def layer_calls(case: ConvCase, weight: Tensor, x: Tensor, bias: Tensor, context: Context) -> Iterator[Any]:
    """(name, call) of the dense convolution with bias and ReLU, eager and compiled, and of every layout."""
    from prunebench_kernels.sparse.candidates import candidates
    from prunebench_kernels.sparse.conv import sparse_conv2d
    from prunebench_kernels.sparse.formats import arrange, format_of
    from prunebench_kernels.sparse.layouts import pack
    from prunebench_kernels.sparse.module import label

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv2d(x, weight, bias, **case.arguments).relu()

    last = weight.contiguous(memory_format=torch.channels_last)
    yield EAGER, lambda: dense(x, last, bias)
    if context.compiles:
        fast = compiled(dense)
        yield COMPILED, lambda: fast(x, last, bias)
    geometry = case.geometry
    for layout, settings in candidates(weight, geometry, tuple(x.shape), x.device)[1:]:
        packed = pack(weight, layout, geometry=geometry, **settings)
        # In the order that a layer of the same layout before it gives: no copy is timed.
        ready = arrange(x, format_of(layout, packed.settings))
        yield (
            f"{OURS} {label(layout, settings)}",
            lambda packed=packed, ready=ready: sparse_conv2d(ready, packed, bias, relu=True),
        )


def bench_layer(case: ConvCase, pattern: str, context: Context) -> Result:
    """One layer at the sparsities of `pattern`, in bf16 (float32 on a CPU)."""
    dtype = context.sizes(torch.bfloat16, torch.float32)
    x = random(context, *context.sizes(case.x_shape, (1, *case.x_shape[1:])), dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = random(context, case.out_channels, dtype=dtype)
    results: dict[str, Result] = {}
    sparsities = [sparsity for name, sparsity in LAYERS if name == pattern]
    for sparsity in sparsities if context.cuda else sparsities[-1:]:
        mask = random_mask(context, case.weight_shape, pattern, sparsity)
        weight = random(context, *case.weight_shape, dtype=dtype, scale=0.1) * mask
        with torch.no_grad():
            calls = dict(layer_calls(case, weight, x, bias, context))
            results[f"{sparsity:g}"] = compare(context, calls, flop=case.flop, seconds=0.5)
    return {"pattern": pattern, "x": list(x.shape), "weight": list(case.weight_shape), "sparsities": results}


def items(context: Context) -> list[Item]:
    found = [Item("training step, ResNet-18, 32 px", bench_training, 60)]
    wanted = INFERENCE if context.cuda else (("block", 0.9),)
    for pattern, sparsity in wanted:
        for batch in context.sizes((128, 256), (128,)):
            found.append(
                Item(
                    f"inference, ResNet-18, {pattern} {sparsity:g}, batch {batch}",
                    lambda c, b=batch, p=pattern, s=sparsity: bench_inference(b, p, s, c),  # type: ignore[misc]
                    60,
                )
            )
    layers = cases.RESNET18_32[128]
    for case in reversed(layers) if context.cuda else layers[-1:]:
        for pattern in ("block", "unstructured", "2:4") if context.cuda else ("block",):
            found.append(
                Item(
                    f"layer {case.name}, {pattern}",
                    lambda c, case=case, p=pattern: bench_layer(case, p, c),  # type: ignore[misc]
                    20,
                )
            )
    return found
