"""Statistics of a network over training batches: per-sample gradients, activations, curvature; each computed once.

All but the plain gradient are taken in evaluation mode, as the network answers, and none changes it. What they take is
charged in steps of one network: a step is a forward and a backward pass of a batch; a forward pass alone is a third.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from prunebench.errors import UsageError
from prunebench.methods.counting import BackwardCounter
from prunebench.models.base import channels_last
from prunebench.pruning.masks import prunable
from prunebench.training.losses import task_loss

NEEDS: Mapping[str, str] = {
    "gradient": "mean training loss's gradient, in training mode",
    "squared_gradient": "mean over samples of the squared gradient: the diagonal of the empirical Fisher matrix",
    "activation_norm": "L2 norm of each input channel over samples and positions, to be multiplied with the weight",
    "hessian_diagonal": "diagonal of the mean loss's Hessian, by Hutchinson's estimate",
    "hessian_gradient": "Hessian times gradient of the mean loss",
    "fisher_block": "blocks of the empirical Fisher matrix along the weight's diagonal, [blocks, size, size]",
    "input_gram": "2 X X^T of the layer's unfolded inputs, [groups, inputs, inputs]",
    "network": "a copy of the network, in evaluation mode, to compute with",
}
"""What a criterion may declare, and what it gets then; shapes are the weight's where none is named."""
FLOATS_AT_ONCE = 1 << 26
"""Numbers of per-sample gradients held at a time."""


class Statistics:
    """Statistics of a network, by the name of the weight; see `NEEDS`.

    Args:
        model: read only.
        batches: images `[B, C, H, W]` and labels of each, made anew at each call.
        charge: told the steps that a statistic took.
        generator: a CPU generator of the probes of Hutchinson's estimate.
        gradients: the plain gradients of all weights, and charged elsewhere.
        counter: of the backward passes of a method's own, which those in here are none of.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
        charge: Callable[[float], None],
        generator: torch.Generator,
        gradients: Callable[[], Mapping[str, Tensor]],
        counter: BackwardCounter | None = None,
    ) -> None:
        self._model, self._batches, self._charge = model, batches, charge
        self._generator, self._gradients = generator, gradients
        self._counter = counter or BackwardCounter()
        self._known: dict[Any, Mapping[str, Tensor]] = {}

    def _once(self, key: Any, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        if key not in self._known:
            before = self._counter.count
            self._known[key] = compute()
            self._counter.take(before)
        return self._known[key]

    def network(self) -> nn.Module:
        """A copy, in evaluation mode."""
        return copy.deepcopy(self._model).eval()

    def image_shape(self) -> tuple[int, ...]:
        """Of an image as the network sees it: channels, height, width."""
        return tuple(next(self._batches())[0].shape[1:])

    def gradient(self, name: str) -> Tensor:
        """The gradient of the mean loss, in training mode."""
        return self._once("gradient", self._gradients)[name]

    def squared_gradient(self, name: str) -> Tensor:
        """Mean over samples of the squared gradient, the weight's shape."""

        def compute() -> Mapping[str, Tensor]:
            return self._over_samples(lambda _, values: values.square().sum(0))

        return self._once("squared_gradient", compute)[name]

    def fisher_block(self, name: str, size: int = 32) -> Tensor:
        """Mean over samples of g g^T within blocks of `size` weights, `[ceil(P / size), size, size]`.

        Weights follow each other as in `weight.flatten()`; what the last block lacks is zero.
        """

        def products(_: str, values: Tensor) -> Tensor:
            flat = values.flatten(1)
            rows = functional.pad(flat, (0, -flat.shape[1] % size)).unflatten(1, (-1, size))
            return torch.einsum("nbi,nbj->bij", rows, rows)

        return self._once(("fisher_block", size), lambda: self._over_samples(products))[name]

    def _over_samples(self, reduce: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """Means over all samples of what `reduce` sums over the gradients `[n, *shape]` of some."""
        net = self.network()
        weights = {name: weight.detach() for name, weight in prunable(net).items()}

        def loss(given: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return task_loss(functional_call(net, given, (x.unsqueeze(0),)), y.unsqueeze(0))

        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
        size = max(FLOATS_AT_ONCE // sum(weight.numel() for weight in weights.values()), 1)
        sums: dict[str, Tensor] = {}
        count = steps = 0
        for x, y in self._batches():
            for part, labels in zip(x.contiguous().split(size), y.split(size)):
                for name, values in per_sample(weights, part, labels).items():
                    new = reduce(name, values)
                    sums[name] = sums[name].add_(new) if name in sums else new
            count, steps = count + len(x), steps + 1
        self._charge(steps)
        return {name: total / count for name, total in sums.items()}

    def activation_norm(self, name: str) -> Tensor:
        """L2 norm of each input channel over samples and positions: `[1, I, 1, 1]`, `[1, I]` of a linear layer.

        Of a grouped convolution `[O, I / groups, 1, 1]`, so that it multiplies with the weight in any case.
        """

        def squares(layer: nn.Module, x: Tensor) -> Tensor:
            if isinstance(layer, nn.Conv2d):
                return x.float().square().sum((0, 2, 3))
            return x.float().flatten(0, -2).square().sum(0)

        sums = self._once("activation_norm", lambda: self._over_inputs(squares))
        layer, weight = self._layers()[name], prunable(self._model)[name]
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        by_group = sums[name].sqrt().view(groups, -1)
        if groups > 1:
            by_group = by_group.repeat_interleave(weight.shape[0] // groups, 0)
        return by_group.view(*by_group.shape, *[1] * (weight.ndim - 2))

    def input_gram(self, name: str) -> Tensor:
        """2 X X^T over samples and positions, `[groups, D, D]` with D weights an output; X are unfolded inputs."""

        def products(layer: nn.Module, x: Tensor) -> Tensor:
            columns = _unfolded(layer, x.float())
            return 2 * columns @ columns.transpose(1, 2)

        return self._once("input_gram", lambda: self._over_inputs(products))[name]

    def _layers(self, net: nn.Module | None = None) -> dict[str, nn.Module]:
        """The prunable layers by the name of their weight."""
        net = net or self._model
        layers = {f"{name}.weight": layer for name, layer in net.named_modules()}
        return {name: layers[name] for name in prunable(net)}

    @torch.no_grad()
    def _over_inputs(self, reduce: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
        """Sums over all batches of what `reduce` makes of the inputs of each prunable layer."""
        net, sums, steps = self.network(), dict[str, Tensor](), 0

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                new = reduce(layer, inputs[0])
                sums[name] = sums[name].add_(new) if name in sums else new

            return look

        for name, layer in self._layers(net).items():
            layer.register_forward_pre_hook(watch(name))
        with channels_last(net):
            for x, _ in self._batches():
                net(x)
                steps += 1
        self._charge(steps / 3)
        return sums

    def hessian_diagonal(self, name: str, probes: int = 4) -> Tensor:
        """E[v * Hv] over +-1 vectors v, one set of `probes` for each batch (Hutchinson): the weight's shape."""

        def probe(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
            total = [torch.zeros_like(weight) for weight in weights]
            for _ in range(probes):
                signs = [self._signs(weight) for weight in weights]
                products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
                for sum_, sign, product in zip(total, signs, products):
                    sum_.add_(sign * product / probes)
            return total

        return self._once(("hessian_diagonal", probes), lambda: self._curvature(probe, 1 + probes))[name]

    def _signs(self, weight: Tensor) -> Tensor:
        drawn = torch.randint(2, weight.shape, generator=self._generator)
        return (2 * drawn - 1).to(weight)

    def hessian_gradient(self, name: str, temperature: float = 1.0) -> Tensor:
        """H g of the mean loss of logits / temperature, the weight's shape (GraSP: 200)."""
        key = "hessian_gradient", temperature

        def compute() -> Mapping[str, Tensor]:
            means: Mapping[str, Tensor] = self._curvature(lambda _, gradients: gradients, 1, temperature)

            def multiply(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
                return torch.autograd.grad(gradients, weights, [means[name] for name in names])

            names = list(means)
            return self._curvature(multiply, 2, temperature)

        return self._once(key, compute)[name]

    def _curvature(
        self,
        second: Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]],
        steps: int,
        temperature: float = 1.0,
    ) -> dict[str, Tensor]:
        """Means over the batches of what `second` makes of weights and gradients, which can be derived again."""
        net = self.network()
        weights = prunable(net)
        values = [weight.requires_grad_() for weight in weights.values()]
        total, count = [torch.zeros_like(value) for value in values], 0
        with torch.enable_grad():
            for x, y in self._batches():
                loss = task_loss(net(x) / temperature, y)
                gradients = torch.autograd.grad(loss, values, create_graph=True)
                for sum_, new in zip(total, second(values, gradients)):
                    sum_.add_(new.detach())
                count += 1
        self._charge(steps * count)
        return {name: sum_ / count for name, sum_ in zip(weights, total)}


def _unfolded(layer: nn.Module, x: Tensor) -> Tensor:
    """Inputs as the columns that each output's weights are multiplied with: `[groups, D, samples x positions]`."""
    if isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise UsageError(
                "input_gram: want zeros as padding, in numbers (padding=1, not padding='same' or another padding_mode)"
            )
        columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return columns.unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    return x.flatten(0, -2).T.unsqueeze(0)


def steps_of(amount: float) -> int:
    """Whole steps that are charged: rounded up."""
    return math.ceil(amount - 1e-9)
