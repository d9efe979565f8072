"""A training step with masks, ResNet-18 on 32 px at batch 128: fixed, learned and block masks; and small nets.

A step is forward, cross-entropy, backward and SGD with momentum in bf16 autocast (float32 where shapes are reduced),
channels_last, cuDNN choosing by measurement. Each candidate is timed as called and as a captured CUDA graph.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.nn import functional

from gpu.items_masks import sampling_formula
from gpu.schedule import Call, Context, Item, Result
from gpu.subjects import AUTO, OURS, compare, conv_weights, images, masks_of, network, op, searching

DENSE, MATERIAL, HOLD, COMPILED = "dense, no masks", "eager w * m", "MaskHold", "torch.compile, MaskHold"
Layers = dict[str, Tensor]


class FedConv2d(nn.Conv2d):
    """A convolution that takes `product` for its weight, if there is one: masked weights are made all at once."""

    product: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.product is None else self.product
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)  # type: ignore[arg-type]


class Steps:
    """Training steps on one batch, each over its own copy of the network."""

    def __init__(self, context: Context, pattern: str = "unstructured") -> None:
        self.context, self.net = context, network(context)
        self.x = images(context)
        self.labels = torch.arange(len(self.x), device=context.device) % 10
        self.dtype = context.sizes(torch.bfloat16, torch.float32)
        masks = masks_of(self.net, pattern, 0.9)
        weights = conv_weights(self.net)
        self.masks = {name: _last(mask.to(weights[name].dtype)) for name, mask in masks.items()}

    def step(self, run: Callable[[], Tensor], trained: Iterable[Tensor], after: Call = lambda: None) -> Call:
        optimizer = torch.optim.SGD(list(trained), lr=1e-3, momentum=0.9, fused=True)

        def call() -> None:
            with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.context.is_full):
                loss = functional.cross_entropy(run(), self.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            after()

        return call

    def dense(self) -> Call:
        net = copy.deepcopy(self.net)
        return self.step(lambda: net(self.x), net.parameters())

    def held(self, *, compiles: bool = False) -> Call:
        """Dense convolutions, and one `_foreach_mul_` after the step: how PruneBench trains with fixed masks."""
        net = copy.deepcopy(self.net)
        run: Any = timing.compiled(net) if compiles else net
        weights = [conv_weights(net)[name].detach() for name in self.masks]
        factors = list(self.masks.values())
        return self.step(lambda: run(self.x), net.parameters(), lambda: torch._foreach_mul_(weights, factors))  # type: ignore[func-returns-value]

    def fed(self, make: Callable[[Layers, Layers], Layers]) -> Call:
        """`make(weights, masks)` gives the products of all layers."""
        net = copy.deepcopy(self.net)
        weights = {name: weight for name, weight in conv_weights(net).items() if name in self.masks}
        return self.step(
            _feeding(net, self.x, lambda: make(weights, self.masks), list(weights)), net.parameters()
        )

    def applied(self, backend: str | None) -> Call:
        """All products of a step in one launch, their gradients in another."""
        apply = op("masks", "apply_masks")
        return self.fed(lambda weights, masks: apply(weights, masks, dtype=self.dtype, backend=backend))

    def material(self) -> Call:
        return self.fed(lambda weights, masks: {name: weights[name] * masks[name] for name in masks})

    def modules(self, backend: str | None) -> Call:
        """Every convolution a MaskedConv2d that knows its mask: empty blocks are skipped in all three passes."""
        net, kind = copy.deepcopy(self.net), op("masked_conv", "MaskedConv2d")
        for name, mask in self.masks.items():
            place = name.removesuffix(".weight")
            made = kind.from_conv(net.get_submodule(place), backend=backend)
            made.set_mask(mask)
            net.set_submodule(place, made)
        return self.step(lambda: net(self.x), net.parameters())

    def learned(self, sample: Callable[[Tensor, Tensor], Tensor], after: Call = lambda: None) -> Call:
        """One logit a weight trains; `sample(logits, weights)` gives the masked weights as one flat buffer."""
        net = copy.deepcopy(self.net).requires_grad_(False)
        weights = conv_weights(net)
        flat = torch.cat([weight.permute(0, 2, 3, 1).reshape(-1) for weight in weights.values()])
        logits = nn.Parameter(torch.full_like(flat, 1.5))
        sizes = [weight.numel() for weight in weights.values()]

        def make() -> Layers:
            pieces = zip(weights.items(), sample(logits, flat).split(sizes))
            return {
                name: piece.view(weight.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
                for (name, weight), piece in pieces
            }

        return self.step(_feeding(net, self.x, make, list(weights)), [logits], after)

    def sampled(self, backend: str | None) -> Call:
        """The draw's number lies on the device: a replayed step draws new masks."""
        sample, offset = (
            op("mask_sampling", "sample_masks"),
            torch.zeros((), dtype=torch.int64, device=self.context.device),
        )
        options = {"weight_dtype": self.dtype, "seed": 7, "offset": offset, "backend": backend}
        return self.learned(
            lambda logits, weights: sample(logits, weights=weights, **options), lambda: offset.add_(1)
        )

    def sampled_by(self, formula: Callable[..., Any], *, flat: bool = False) -> Call:
        """By a formula in torch, layer by layer, or on all layers at once."""
        sizes = [weight.numel() for weight in conv_weights(self.net).values()]
        pieces = [sum(sizes)] if flat else sizes

        def sample(logits: Tensor, weights: Tensor) -> Tensor:
            with torch.autocast(self.context.device.type, enabled=False):
                return torch.cat(formula(logits.split(pieces), weights.split(pieces), self.dtype))

        return self.learned(sample)


def _feeding(net: nn.Module, x: Tensor, make: Callable[[], Layers], names: list[str]) -> Callable[[], Tensor]:
    """The network's pass with the products that `make` gives."""
    convolutions: list[Any] = [net.get_submodule(name.removesuffix(".weight")) for name in names]
    for conv in convolutions:
        conv.__class__ = FedConv2d

    def run() -> Tensor:
        for conv, product in zip(convolutions, make().values()):
            conv.product = product
        y: Tensor = net(x)
        for conv in convolutions:  # the next step, in a capture say, makes its graph anew
            conv.product = None
        return y

    return run


def _last(mask: Tensor) -> Tensor:
    return mask.contiguous(memory_format=torch.channels_last)


Builders = Mapping[str, Callable[[], Call]]
Plan = Callable[[Steps], Builders]


def fixed(steps: Steps) -> Builders:
    ours = partial(steps.applied, steps.context.backend)
    return {**_alternatives(steps), OURS: ours}


def block(steps: Steps) -> Builders:
    return {**_alternatives(steps), OURS: partial(steps.modules, steps.context.backend)}


def _alternatives(steps: Steps) -> Builders:
    modules = partial(steps.modules, None)
    return {DENSE: steps.dense, HOLD: steps.held, MATERIAL: steps.material, f"{AUTO}, MaskedConv2d": modules}


def learned(steps: Steps) -> Builders:
    found: dict[str, Callable[[], Call]] = {
        OURS: partial(steps.sampled, steps.context.backend),
        AUTO: partial(steps.sampled, None),
        MATERIAL: partial(steps.sampled_by, sampling_formula),
        DENSE: steps.dense,
    }
    if steps.context.compiles:
        fast = timing.compiled(sampling_formula)
        found["torch.compile of the sampling"] = partial(steps.sampled_by, fast, flat=True)
    return found


def compiled(steps: Steps) -> Builders:
    """The network compiled, beside ours: by itself, since compiling takes most of the time."""
    found: dict[str, Any] = {OURS: partial(steps.applied, steps.context.backend), HOLD: steps.held}
    return found | ({COMPILED: partial(steps.held, compiles=True)} if steps.context.compiles else {})


@searching()
def bench(plan: Plan, pattern: str, context: Context) -> Result:
    """A candidate that cannot be built is left out with its reason, as one that does not run."""
    calls = {name: _built_when_called(build) for name, build in plan(Steps(context, pattern)).items()}
    return compare(context, calls, ways=("called", "graph"), seconds=2.5)


def _built_when_called(build: Callable[[], Call]) -> Call:
    built = functools.cache(build)
    return lambda: built()()


def kernels(plan: Plan, pattern: str, context: Context) -> Iterable[Call]:
    return [lambda: plan(Steps(context, pattern))[OURS]()()]


# --- small nets ------------------------------------------------------------------------------------------------


def bench_small_nets(context: Context) -> Result:
    """PruneBench's convnet on 28 px at batch 256: milliseconds of a step of one network, by PruneBench's own loop.

    Eager; as a captured step; several networks (seeds) as branches of one graph.
    """
    from prunebench.data.images import Images
    from prunebench.models import build_model
    from prunebench.training import LoopSettings, loop
    from prunebench.training.losses import cross_entropy

    batch, steps, name, counts = context.sizes((256, 500, "convnet", (4, 8)), (8, 2, "convnet-small", (2,)))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4 * batch, 3, 28, 28), generator=generator, dtype=torch.uint8)
    shown = Images(pixels, mean=(0.5,) * 3, std=(0.5,) * 3, device=context.device)
    labels = torch.arange(len(pixels), device=context.device) % 10
    rows = torch.randint(len(pixels), (steps, batch), generator=generator)
    settings = LoopSettings("adam", 1e-3, steps, bf16=context.is_full)
    nets = [build_model(name, 10, seed=seed).to(context.device) for seed in range(max(counts))]

    def one(capture: bool) -> None:
        loop.train(nets[0], shown, labels, rows, objective=cross_entropy, settings=settings, capture=capture)

    def together(count: int) -> None:
        made = [
            loop.Training(net, shown, labels, objective=cross_entropy, settings=settings)
            for net in nets[:count]
        ]
        loop.train_together(made, [rows] * count)

    calls: dict[str, Call] = {"eager": partial(one, False), "captured step": partial(one, True)}
    calls |= {f"captured, {count} nets together": partial(together, count) for count in counts}
    parts = {name: steps * int("".join(filter(str.isdigit, name)) or 1) for name in calls}
    return compare(context, calls, ways=("called",), seconds=6.0, repeats=1, parts=parts, needed=tuple(calls))


def _item(name: str, plan: Plan, seconds: float, pattern: str = "unstructured") -> Item:
    run, made = partial(bench, plan, pattern), partial(kernels, plan, pattern)
    return Item(f"training step, ResNet-18, {name}", run, seconds, kernels=made)


def first() -> list[Item]:
    return [
        _item("unstructured 90 %", fixed, 15),
        _item("learned masks", learned, 12),
        _item("block 90 %", block, 10, "block"),
        Item("training of small nets", bench_small_nets, 30),
    ]


def last() -> list[Item]:
    """After the other targets: compiling the step takes about a minute."""
    return [_item("torch.compile", compiled, 30)]
