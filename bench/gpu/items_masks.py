"""Masks of all layers of ResNet-18 in one launch: drawn from their logits, and given masks applied to weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import cases
import timing
import torch
from torch import Tensor

from gpu.schedule import Call, Context, Item, Result
from gpu.subjects import AUTO, COMPILED, EAGER, OURS, compare, op, random, random_mask

FOREACH, LOW = "_foreach", torch.bfloat16


def sampling_formula(logits: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gumbel-sigmoid masks layer by layer, straight through, times the weights, in the compute dtype."""
    made = []
    for values, weight in zip(logits, weights):
        uniform = torch.rand_like(values).clamp(1e-7, 1 - 1e-7)
        soft = torch.sigmoid(torch.sigmoid(values) + uniform.log() - (1 - uniform).log())
        hard = (soft > 0.5).to(soft.dtype)
        made.append(((hard - soft).detach() + soft).mul(weight).to(dtype))
    return made


def product_formula(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    return [(weight * mask).to(LOW) for weight, mask in zip(weights, masks)]


def product_foreach(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Two multi-tensor calls: `_foreach_copy_` casts."""
    products = torch._foreach_mul(weights, masks)
    low = [torch.empty_like(product, dtype=LOW) for product in products]
    torch._foreach_copy_(low, products)
    return low


def sampled(context: Context) -> tuple[int, dict[str, Call]]:
    """Masked bf16 weights from float32 logits and weights, each one flat buffer; the number of elements."""
    sizes = [math.prod(shape) for shape in _shapes(context)]
    flats = [random(context, sum(sizes)) for _ in range(2)]
    logits, weights = flats
    offset = torch.zeros((), dtype=torch.int64, device=context.device)
    options = {"weights": weights, "weight_dtype": LOW, "seed": 7, "offset": offset}
    sample, split = op("mask_sampling", "sample_masks"), [flat.split(sizes) for flat in flats]
    calls: dict[str, Call] = {
        OURS: partial(sample, logits, **options, backend=context.backend),
        AUTO: partial(sample, logits, **options),
        EAGER: partial(sampling_formula, *split, LOW),
    }
    if context.compiles:  # all layers as one: what a compiler does best
        calls[COMPILED] = partial(timing.compiled(sampling_formula), [logits], [weights], LOW)
    return sum(sizes), calls


def applied(context: Context) -> tuple[int, dict[str, Call]]:
    """(weight * mask) in bf16 from float32 weights and masks, layer by layer; the number of elements."""
    shapes = _shapes(context)
    weights = {str(place): random(context, *shape) for place, shape in enumerate(shapes)}
    masks = {
        str(place): random_mask(shape, "unstructured", 0.9).float().to(context.device)
        for place, shape in enumerate(shapes)
    }
    apply, lists = op("masks", "apply_masks"), (list(weights.values()), list(masks.values()))
    calls: dict[str, Call] = {
        OURS: partial(apply, weights, masks, dtype=LOW, backend=context.backend),
        AUTO: partial(apply, weights, masks, dtype=LOW),
        EAGER: partial(product_formula, *lists),
        FOREACH: partial(product_foreach, *lists),
    }
    if context.compiles:
        calls[COMPILED] = partial(timing.compiled(product_formula), *lists)
    return sum(map(torch.numel, weights.values())), calls


def _shapes(context: Context) -> Sequence[tuple[int, ...]]:
    return context.sizes(cases.MASK_LAYERS["resnet18"], cases.ODD_MASK_LAYERS)  # type: ignore[no-any-return]


Subject = Callable[[Context], tuple[int, dict[str, Call]]]


@torch.no_grad()
def bench(subject: Subject, context: Context) -> Result:
    """Ten bytes an element must move either way: two float32 numbers in, one bf16 out."""
    elements, calls = subject(context)
    return {"elements": elements, **compare(context, calls, moved=10 * elements)}


def kernels(subject: Subject, context: Context) -> Iterable[Call]:
    return [subject(context)[1][OURS]]


def first() -> list[Item]:
    return [
        Item(f"masks, ResNet-18, {name}", partial(bench, subject), 6, kernels=partial(kernels, subject))
        for name, subject in (("sampled", sampled), ("applied", applied))
    ]
