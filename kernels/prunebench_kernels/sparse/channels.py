"""Channels that cannot change a network's output are removed from both sides; what is left computes the same.

- A channel is *constant* if every input gives it one value: its filter is zero and the value is relu(bias) or the
  like. A reader drops its weights for a channel that is constant zero, and adds `value * sum(weights)` to its bias for
  another constant if it pads nothing (with zero padding the border would see zeros instead of the value).
- A channel is *needed* if a layer has weights for it, or the network's output or an unknown operation reads it.
  Activations, pooling, depthwise convolutions and residual adds join channels into one set, which keeps what any
  member needs.

Both are repeated until nothing changes, then the weights are cut. Constants are added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunebench_kernels.sparse.channel_rules import (
    evaluate,
    is_flat,
    is_pointwise,
    is_sum,
    keeps_channels,
    leaves_constants,
    mixes_channels,
    plain_padding,
    reads_batch_size,
    zeros_only,
)
from prunebench_kernels.sparse.fold import (
    Layer,
    affine_of,
    is_depthwise,
    is_fixed_norm,
    module_of,
    set_parameters,
    shape_of,
)


@dataclass(frozen=True)
class Channels:
    """A layer's channels before and after."""

    in_before: int
    in_after: int
    out_before: int
    out_after: int


@dataclass
class _Cut:
    """What is left of a layer: which of its (output, input) pairs have weights, their sums over taps, the bias."""

    alive: Tensor
    sums: Tensor
    bias: Tensor
    pads: bool
    depthwise: bool

    def absorb(self, constant: Tensor) -> None:
        """Drop weights for constant inputs (`[inputs]`, nan: not constant), as far as that is exact."""
        known = constant == 0 if self.pads else ~constant.isnan()
        known = known.unsqueeze(1) if self.depthwise else known.unsqueeze(0)
        values = constant.unsqueeze(1) if self.depthwise else constant.unsqueeze(0)
        gone = self.alive & known
        self.bias = self.bias + torch.where(gone, self.sums * values, 0).sum(1)
        self.alive = self.alive & ~gone

    def constants(self) -> Tensor:
        """The value of each output channel, nan where it depends on the input."""
        return torch.where(self.alive.any(1), torch.nan, self.bias)


def _cut_of(module: Layer) -> _Cut:
    weight = module.weight.flatten(2) if module.weight.ndim == 4 else module.weight.unsqueeze(2)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias
    padding = module.padding if isinstance(module, nn.Conv2d) else 0
    pads = padding == "same" or any(size != 0 for size in (padding if isinstance(padding, tuple) else ()))
    return _Cut(
        (weight != 0).any(2).cpu(),
        weight.double().sum(2).cpu(),
        bias.double().cpu(),
        pads,
        is_depthwise(module),
    )


class _Sets:
    """Channel sets of tensors: which tensors must keep the same channels, and which keep all (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.repeat: dict[fx.Node, int] = {}
        """Features per channel: height * width after flattening."""
        self.fixed: set[fx.Node] = set()

    def new(self, node: fx.Node, *, fixed: bool = False) -> None:
        self.parent[node], self.repeat[node] = node, 1
        if fixed:
            self.fixed.add(node)

    def root(self, node: fx.Node) -> fx.Node:
        while self.parent[node] is not node:
            node = self.parent[node]
        return node

    def follow(self, node: fx.Node, before: fx.Node, times: int = 1) -> None:
        """`node` has the channels of `before`, each repeated `times`."""
        self.parent[node], self.repeat[node] = self.root(before), self.repeat[before] * times

    def join(self, first: fx.Node, second: fx.Node) -> None:
        one, other = self.root(first), self.root(second)
        if one is not other:
            self.parent[other] = one
            if other in self.fixed:
                self.fixed.add(one)

    def fix(self, node: fx.Node) -> None:
        if node in self.parent:
            self.fixed.add(self.root(node))

    def is_fixed(self, node: fx.Node) -> bool:
        return self.root(node) in self.fixed


class _Analysis:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.sets = graph, _Sets()
        self.cuts: dict[fx.Node, _Cut] = {}
        self.rules: dict[fx.Node, Callable[[dict[fx.Node, Tensor]], Tensor]] = {}
        """How a node's constants follow from those of its inputs; nodes without a rule have none."""
        for node in list(graph.graph.nodes):
            self._classify(node)

    def _classify(self, node: fx.Node) -> None:  # one branch a kind of node
        sets, module = self.sets, module_of(self.graph, node)
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if before is None or before not in sets.parent:
            if shape_of(node):
                sets.new(node, fixed=True)
            for other in node.all_input_nodes:
                sets.fix(other)
        elif reads_batch_size(node):
            pass
        elif mixes_channels(module, before):
            assert isinstance(module, Layer)
            self.cuts[node] = _cut_of(module)
            sets.new(node)
        elif is_depthwise(module) and plain_padding(module) and len(shape_of(before)) == 4:
            self.cuts[node] = _cut_of(module)  # type: ignore[arg-type]
            sets.follow(node, before)
        elif is_flat(node, module, before):
            height, width = shape_of(before)[2:]
            self._make_flatten(node, before)
            sets.follow(node, before, height * width)
            self.rules[node] = lambda known: known[before].repeat_interleave(height * width)
        elif is_fixed_norm(module) and sets.repeat[before] == 1:
            scale, shift = (values.cpu() for values in affine_of(module))  # type: ignore[arg-type]
            sets.follow(node, before)
            self.rules[node] = lambda known: scale * known[before] + shift
        elif is_pointwise(node, module):
            sets.follow(node, before)
            self.rules[node] = lambda known: evaluate(node, module, known[before])
        elif keeps_channels(node, module):
            sets.follow(node, before)
            still = leaves_constants(node, module)
            self.rules[node] = lambda known: known[before] if still else zeros_only(known[before])
        elif is_sum(node) and len({sets.repeat[other] for other in node.all_input_nodes}) == 1:
            self._add(node)
        else:
            sets.new(node, fixed=True)
            for other in node.all_input_nodes:
                sets.fix(other)

    def _add(self, node: fx.Node) -> None:
        first, second = node.args
        assert isinstance(first, fx.Node)
        assert isinstance(second, fx.Node)
        self.sets.join(first, second)
        self.sets.follow(node, first)
        self.rules[node] = lambda known: known[first] + known[second]

    def _make_flatten(self, node: fx.Node, before: fx.Node) -> None:
        """Flatten without a written-out number of features, which is about to change."""
        if node.op == "call_method":
            node.op, node.target, node.args, node.kwargs = "call_function", torch.flatten, (before, 1), {}

    def settle(self) -> dict[fx.Node, Tensor]:
        """Repeat until no weight can be dropped; gives the channels that each set keeps, by the set's root."""
        while True:
            count = self._count()
            self._find_constants()
            kept = self._needed()
            for node, cut in self.cuts.items():
                cut.alive &= kept[self.sets.root(node)].unsqueeze(1)
            if self._count() == count:
                return kept

    def _count(self) -> int:
        return sum(int(cut.alive.sum()) for cut in self.cuts.values())

    def _find_constants(self) -> None:
        known: dict[fx.Node, Tensor] = {}
        for node in self.graph.graph.nodes:
            if node not in self.sets.parent:
                continue
            if node in self.cuts:
                self.cuts[node].absorb(known[node.args[0]])
                known[node] = self.cuts[node].constants()
            elif node in self.rules:
                known[node] = self.rules[node](known)
            else:
                size = shape_of(node)[1] if len(shape_of(node)) > 1 else 1
                known[node] = torch.full((size,), torch.nan, dtype=torch.float64)

    def _needed(self) -> dict[fx.Node, Tensor]:
        """Channels to keep by set: at least one, so that every tensor still exists."""
        kept: dict[fx.Node, Tensor] = {}
        for node in self.sets.parent:
            root = self.sets.root(node)
            size = (shape_of(node)[1] if len(shape_of(node)) > 1 else 1) // self.sets.repeat[node]
            kept.setdefault(root, torch.full((size,), root in self.sets.fixed))
        for node, cut in self.cuts.items():
            if not cut.depthwise:
                before = node.args[0]
                assert isinstance(before, fx.Node)
                kept[self.sets.root(before)] |= cut.alive.any(0).view(-1, self.sets.repeat[before]).any(1)
        for channels in kept.values():
            channels[0] |= not channels.any()
        return kept

    def fill(self, kept: dict[fx.Node, Tensor], multiple: int) -> None:
        """Keep dead channels up to a multiple, the first ones; they are zeros or constants that nobody reads."""
        for channels in kept.values():
            wanted = min(-(-int(channels.sum()) // multiple) * multiple, len(channels))
            channels[torch.nonzero(~channels).flatten()[: wanted - int(channels.sum())]] = True

    def cut(self, kept: dict[fx.Node, Tensor]) -> dict[str, Channels]:
        """Cut weights, biases and BatchNorms down to the kept channels."""
        changes = {}
        for node in self.graph.graph.nodes:
            module = module_of(self.graph, node)
            if node in self.cuts:
                assert isinstance(module, Layer)
                before = node.args[0]
                columns = kept[self.sets.root(before)].repeat_interleave(self.sets.repeat[before])
                rows = kept[self.sets.root(node)]
                changes[str(node.target)] = Channels(
                    len(columns), int(columns.sum()), len(rows), int(rows.sum())
                )
                _cut_layer(module, self.cuts[node], rows, columns)
            elif node in self.rules and is_fixed_norm(module):
                _cut_norm(module, kept[self.sets.root(node)])  # type: ignore[arg-type]
        return changes


@torch.no_grad()
def remove_dead_channels(graph: fx.GraphModule, multiple: int = 1) -> dict[str, Channels]:
    """Remove what cannot change the output, in place; gives the channels of each layer that could be cut.

    A number of channels is a multiple of `multiple`, or what it was.
    """
    analysis = _Analysis(graph)
    kept = analysis.settle()
    analysis.fill(kept, multiple)
    changes = analysis.cut(kept)
    graph.graph.lint()
    graph.recompile()
    return changes


def _cut_layer(module: Layer, cut: _Cut, rows: Tensor, columns: Tensor) -> None:
    weight, device = module.weight, module.weight.device
    alive = cut.alive.to(device)
    weight = torch.where(alive.view(*alive.shape, *[1] * (weight.ndim - 2)), weight, 0)[rows.to(device)]
    if not cut.depthwise:
        weight = weight[:, columns.to(device)]
    if weight.ndim == 4 and module.weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = cut.bias[rows].to(device)
    set_parameters(module, weight, bias if module.bias is not None or bool((bias != 0).any()) else None)


def _cut_norm(norm: nn.BatchNorm2d, channels: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(norm, name)
        if values is not None:
            values = values.detach()[channels.to(values.device)]
            setattr(norm, name, nn.Parameter(values, False) if name in norm._parameters else values)
    norm.num_features = int(channels.sum())
