"""Whole-network inference in bf16 at batch 128, and single layers, against cuDNN channels_last and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import cases
import timing
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from gpu.items_checks import relative_error
from gpu.schedule import LAYER, Call, Context, Item, Result
from gpu.subjects import (
    COMPILED,
    OURS,
    compare,
    conv_weights,
    images,
    masks_of,
    network,
    op,
    random,
    random_mask,
    searching,
)

CUDNN, GRAPHED = "cuDNN, folded", ", graphed"
WRONG = 0.05
"""Relative error of the logits in bf16 beyond which a network is wrong: twenty layers round."""
NETWORKS = {
    "block 90 %": ("block", 0.9),
    "unstructured 99 %": ("unstructured", 0.99),
    "unstructured 99.5 %": ("unstructured", 0.995),
    "2:4": ("2:4", 0.5),
    "channels 50 %": ("filter", 0.5),
}
FORCED = {"block": "block", "unstructured": "direct"}
LAYERS = (("block", 0.9), ("unstructured", 0.99))


class Subject:
    """The network, its input, and dense baselines: the same for every pattern."""

    def __init__(self, context: Context) -> None:
        self.net, self.x = network(context).eval(), images(context)
        self.dtype = context.sizes(torch.bfloat16, torch.float32)
        self.low = self.x.to(self.dtype)
        fold = op("sparsify", "fold_dense")
        dense = fold(self.net, self.x, dtype=self.dtype)
        self.calls: dict[str, Call] = {CUDNN: lambda: dense(self.low)}
        if context.compiles:
            fast = timing.compiled(fold(self.net, self.x, dtype=self.dtype, fuse=False))
            self.calls[COMPILED] = lambda: fast(self.low)
        self.graphed = graphed(f"{CUDNN}{GRAPHED}", dense, self.low) if context.on_gpu else {}

    def sparse(self, masks: Mapping[str, Tensor], **options: Any) -> Any:
        """Layouts chosen by measurement, as a user gets them; nothing remembered from before decides."""
        measuring = op("measured", "Measuring")(
            choices=op("measured", "Choices").in_memory(), **options.pop("measuring", {})
        )
        return op("sparsify", "sparsify")(
            self.net, example=self.x, masks=masks, dtype=self.dtype, measuring=measuring, **options
        )

    def masked_output(self, masks: Mapping[str, Tensor]) -> Tensor:
        """What the masked network gives in float32."""
        weights = {name: conv_weights(self.net)[name] * mask for name, mask in masks.items()}
        return functional_call(self.net, weights, (self.x,))  # type: ignore[no-any-return]


def graphed(name: str, net: Any, x: Tensor) -> dict[str, Call]:
    replay = net.graphed(x)
    return {name: lambda: replay(x)}


@torch.no_grad()
@searching()
def bench_network(pattern: str, sparsity: float, context: Context) -> Result:
    subject: Subject = context.once("inference", partial(Subject, context))
    masks = masks_of(subject.net, pattern, sparsity)
    sparse = subject.sparse(masks)
    calls: dict[str, Call] = {OURS: lambda: sparse(subject.low), **subject.calls}
    if layout := FORCED.get(pattern):  # wherever it can be, whatever was measured
        everywhere = subject.sparse(masks, layout=layout, backend=context.backend)
        calls[f"{OURS}, {layout} everywhere"] = lambda: everywhere(subject.low)
    error = relative_error(sparse(subject.low), subject.masked_output(masks))
    result = compare(context, calls, ways=("graph",), seconds=2.0)
    if context.on_gpu:
        both = {**calls, **graphed(f"{OURS}{GRAPHED}", sparse, subject.low), **subject.graphed}
        result["rows"] += compare(context, both, ways=("called",), seconds=2.0)["rows"]
    layers = {layer.name: f"{layer.layout}: {layer.reason}" for layer in sparse.report}
    facts = {name: getattr(sparse.report, name) for name in ("layouts", "whole", "removed_channels")}
    failed = {} if error < WRONG else {"failed": f"relative error {error:.3g}"}
    return {"relative_error": error, **facts, "layers": layers, **result, **failed}


def network_kernels(pattern: str, sparsity: float, context: Context) -> Iterable[Call]:
    """The choice itself, once for each number of channels that may win it: every candidate of every layer runs."""
    from prunebench_kernels import sparse_conv, sparsify

    sparsify.MULTIPLES["cpu"], real = sparsify.MULTIPLES["cuda"], sparse_conv.candidates
    sparse_conv.candidates = lambda weight, geometry, shape, device: real(weight, geometry, shape, "cuda")

    def prefer(start: str, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        return {name: [1.0 if name.startswith(start) else 2.0] * repeats for name in calls}

    subject: Subject = context.once("inference", partial(Subject, context))
    masks = masks_of(subject.net, pattern, sparsity)

    def choose(start: str) -> None:
        subject.sparse(masks, backend=context.backend, measuring={"timer": partial(prefer, start)})

    def force() -> None:
        with torch.no_grad():
            subject.sparse(masks, layout=FORCED[pattern], backend=context.backend)(subject.low)

    # A network without dead channels has one number of them, and is chosen once.
    some = pattern == "filter" or sparsity > 0.5
    chosen = [partial(choose, start) for start in (("all", "channels", "live") if some else ("all",))]
    return [*chosen, *([force] if pattern in FORCED else [])]


# --- single layers -----------------------------------------------------------------------------------------------


def layer_calls(
    case: cases.ConvCase, pattern: str, sparsity: float, context: Context
) -> dict[str, Callable[..., Any]]:
    """The dense convolution with bias and ReLU, and every layout that may take the weight."""
    dtype = context.sizes(torch.bfloat16, torch.float32)
    x = random(context, *context.sizes(case.x_shape, (1, *case.x_shape[1:2], 4, 4)), dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = random(context, case.out_channels, dtype=dtype)
    mask = random_mask(case.weight_shape, pattern, sparsity).to(x.device)
    weight = (random(context, *case.weight_shape, dtype=dtype, scale=0.1) + 1e-3) * mask
    last = weight.contiguous(memory_format=torch.channels_last)
    found: dict[str, Call] = {CUDNN: lambda: functional.conv2d(x, last, bias, **case.arguments).relu()}
    arrange, form = op("layouts", "arrange"), op("layouts", "format_of")
    kind = "cuda" if context.is_full else "cpu"
    for layout, settings in op("sparse_conv", "candidates")(weight, case.geometry, tuple(x.shape), kind)[1:]:
        packed = op("layouts", "pack")(weight, layout, geometry=case.geometry, **settings)
        # In the order that a layer of the same layout before it gives: no copy is timed.
        ready, run = arrange(x, form(layout)), op("sparse_conv", "sparse_conv2d")
        name = op("sparse_conv", "label")(layout, settings)
        found[f"{OURS} {name}"] = partial(run, ready, packed, bias, relu=True, backend=context.backend)
    return found


@torch.no_grad()
@searching()
def bench_layer(case: cases.ConvCase, context: Context) -> Result:
    found = {}
    for pattern, sparsity in LAYERS:
        calls = layer_calls(case, pattern, sparsity, context)
        named = f"{pattern} {sparsity:g}"
        found[named] = compare(context, calls, flop=case.flop, ways=("graph",), seconds=0.5, needed=())
    return found


def layer_kernels(case: cases.ConvCase, context: Context) -> Iterable[Call]:
    found = [layer_calls(case, pattern, sparsity, context) for pattern, sparsity in LAYERS]
    return [call for calls in found for name, call in calls.items() if name.startswith(OURS)]


def first() -> list[Item]:
    return [
        Item(
            f"inference, ResNet-18, {name}",
            partial(bench_network, *pattern),
            16 if index == 0 else 9,
            kernels=partial(network_kernels, *pattern),
        )
        for index, (name, pattern) in enumerate(NETWORKS.items())
    ]


def later() -> list[Item]:
    return [
        Item(f"layer {case.name}", partial(bench_layer, case), 2, LAYER, kernels=partial(layer_kernels, case))
        for case in reversed(cases.RESNET18_32[128])
    ]
