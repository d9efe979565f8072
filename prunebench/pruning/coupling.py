"""Coupled channels: which channels of a network can only be removed together, followed channel by channel.

Every convolution and hidden linear layer writes channels; BatchNorm, depthwise convolutions and activations pass them
on; a sum makes the channels that it adds one unit; a convolution or linear layer reads them. Channels of the image, of
the logits, and those that an unknown operation sees, stay. Source of the idea: Fang et al., 2023 (DepGraph).

Zeros that a shortcut pads with (He et al.'s option A) stand half in front and half behind. So that they still do when
channels are gone, the first padded channel in front is coupled with the first behind, and so on.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench.errors import UsageError
from prunebench.pruning.wrapped import bare_network

SAME = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Identity,
    nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
)  # fmt: skip
"""Modules that hand every channel on as it is (flattened ones as several features each)."""
SAME_FUNCTIONS = {
    functional.relu, torch.relu, functional.relu6, functional.silu, functional.gelu, functional.avg_pool2d,
    functional.max_pool2d, functional.adaptive_avg_pool2d, functional.dropout, torch.flatten,
    "relu", "relu_", "flatten", "contiguous",
}  # fmt: skip
TOGETHER = {
    operator.add,
    operator.iadd,
    torch.add,
    operator.mul,
    operator.imul,
    torch.mul,
    "add",
    "add_",
    "mul",
}
FIXED, ZERO = 0, -1
"""Labels of channels that stay, and of padded zeros."""
Labels = list[int]


@dataclass(frozen=True)
class Coupling:
    """The units of a network, numbered from 0; a channel that must stay has unit -1.

    `written`, `passed` and `read` hold, by the name of a layer, the unit of each of its output channels, of each
    channel that it passes on, and of each input of its weight.
    """

    written: Mapping[str, Tensor]
    passed: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    count: int
    groups: Tensor = field(repr=False)
    """The group of each unit: units of one group are written by the same layers."""
    added: Tensor = field(repr=False)
    """Bool `[units]`: those that are added to others, or multiplied with them."""

    def reduced(self, values: Mapping[str, Tensor], *, mean: bool = True) -> Tensor:
        """One number a unit, float64: mean or sum over its channels in the layers of `values`, `[channels]` each."""
        total, members = torch.zeros(2, self.count, dtype=torch.float64)
        for layer, numbers in values.items():
            unit = self.written[layer] if layer in self.written else self.passed[layer]
            add_to(total, members, unit, numbers)
        return total / members.clamp(min=1) if mean else total

    def rows(self, layer: str, kept: Tensor) -> Tensor | None:
        """Which output channels of a layer stay, bool, where only the units `kept` do; None if nothing is known."""
        unit = self.written.get(layer, self.passed.get(layer))
        return None if unit is None else _stays(unit, kept)

    def columns(self, layer: str, kept: Tensor) -> Tensor | None:
        """Which inputs of a layer's weight stay, bool."""
        return _stays(self.read[layer], kept) if layer in self.read else None


def add_to(total: Tensor, members: Tensor, unit: Tensor, numbers: Tensor) -> None:
    """Add the numbers of a layer's channels to their units, in place, and one to each unit's count of members."""
    held = unit >= 0
    total.index_add_(0, unit[held], numbers.detach().double().cpu()[held])
    members.index_add_(0, unit[held], torch.ones(int(held.sum()), dtype=torch.float64))


def _stays(unit: Tensor, kept: Tensor) -> Tensor:
    return (unit < 0) | kept[unit.clamp(min=0)]


def coupled_channels(model: nn.Module) -> Coupling:
    """The coupling of a network. Raises UsageError where torch.fx cannot trace it."""
    net = bare_network(model)
    try:
        graph = fx.symbolic_trace(net).graph
    except Exception as error:
        raise UsageError(
            f"channels cannot be removed from a network that torch.fx cannot trace: {error}"
        ) from error
    return _Follower(dict(net.named_modules())).follow(graph)


class _Follower:
    """Labels of every node's channels; joined labels have one root."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.parent = [FIXED]
        self.written: dict[str, Labels] = {}
        self.passed: dict[str, Labels] = {}
        self.read: dict[str, Labels] = {}
        self.added: set[int] = set()

    def follow(self, graph: fx.Graph) -> Coupling:
        known: dict[fx.Node, Labels | None] = {}
        for node in graph.nodes:
            inputs = [known[each] for each in node.all_input_nodes]
            if node.op == "call_module":
                known[node] = self._through(str(node.target), self.modules[str(node.target)], inputs)
            elif node.op in ("call_function", "call_method"):
                known[node] = self._by_function(node, inputs)
            else:
                known[node] = self._unknown(inputs)
        return self._coupling()

    def _through(self, name: str, layer: nn.Module, inputs: Sequence[Labels | None]) -> Labels | None:
        given = inputs[0] if len(inputs) == 1 else None
        if isinstance(layer, SAME):
            return given
        seen_before = name in self.written or name in self.passed
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if plain and not seen_before:
            high, width = layer.get_parameter("weight").shape[:2]
            given = given or [FIXED] * width
            self.read[name] = [self._of_weight(label) for label in given for _ in range(width // len(given))]
            self.written[name] = [self._new() for _ in range(high)]
            return self.written[name]
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
        if given and not seen_before and (depthwise or isinstance(layer, nn.BatchNorm2d)):
            self.passed[name] = [self._of_weight(label) for label in given]
            return given
        return self._unknown(inputs)

    def _by_function(self, node: fx.Node, inputs: Sequence[Labels | None]) -> Labels | None:
        if node.target in SAME_FUNCTIONS and len(inputs) == 1:
            return inputs[0]
        given = [labels for labels in inputs if labels]
        if node.target in TOGETHER and len(given) == len(node.args) and len({*map(len, given)}) == 1:
            return self._together(given)
        if node.target is functional.pad and given:
            sizes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad", ())
            constant = node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value")
            constant = constant and len(node.args) <= 2
            if constant and len(sizes) == 6 and min(sizes) >= 0:
                return [ZERO] * sizes[4] + given[0] + [ZERO] * sizes[5]
            if constant and len(sizes) <= 4:
                return given[0]
        return self._unknown(inputs)

    def _together(self, given: Sequence[Labels]) -> Labels:
        for labels in given:
            front = next((at for at, label in enumerate(labels) if label != ZERO), 0)
            behind = next((at for at, label in enumerate(reversed(labels)) if label != ZERO), 0)
            for other in given:
                if other is not labels and (front or behind):
                    self._mirror(other[:front], other[len(other) - behind :])
        joined = []
        for channel in zip(*given):
            real = [label for label in channel if label != ZERO]
            for label in real[1:]:
                self._join(real[0], label)
            self.added.update(real)
            joined.append(real[0] if real else ZERO)
        return joined

    def _mirror(self, front: Labels, behind: Labels) -> None:
        """Couple padded channels in pairs; what has no partner stays."""
        for at in range(max(len(front), len(behind))):
            pair = [side[at] if at < len(side) else FIXED for side in (front, behind)]
            self._join(*[self._of_weight(label) for label in pair])

    def _unknown(self, inputs: Sequence[Labels | None]) -> Labels | None:
        """Whatever is seen here stays, and of what comes out nothing is known."""
        for label in {label for labels in inputs for label in labels or () if label != ZERO}:
            self._join(FIXED, label)
        return None

    def _of_weight(self, label: int) -> int:
        return FIXED if label == ZERO else label

    def _new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def _root(self, label: int) -> int:
        while self.parent[label] != label:
            label = self.parent[label]
        return label

    def _join(self, one: int, other: int) -> None:
        low, high = sorted((self._root(one), self._root(other)))
        self.parent[high] = low

    def _coupling(self) -> Coupling:
        numbers: dict[int, int] = {FIXED: -1}
        for labels in self.written.values():
            for label in labels:
                numbers.setdefault(self._root(label), len(numbers) - 1)

        def of(tables: Mapping[str, Labels]) -> dict[str, Tensor]:
            return {
                name: torch.tensor([numbers[self._root(label)] for label in labels])
                for name, labels in tables.items()
            }

        written, passed, read = of(self.written), of(self.passed), of(self.read)
        count = len(numbers) - 1
        layers: list[list[str]] = [[] for _ in range(count)]
        for name, units in written.items():
            for unit in units[units >= 0].unique().tolist():
                layers[unit].append(name)
        known: dict[tuple[str, ...], int] = {}
        groups = torch.tensor([known.setdefault(tuple(names), len(known)) for names in layers])
        added = torch.zeros(count, dtype=torch.bool)
        added[[unit for label in self.added if (unit := numbers[self._root(label)]) >= 0]] = True
        return Coupling(written, passed, read, count, groups, added)


def slice_state(state: Mapping[str, Tensor], coupling: Coupling, kept: Tensor) -> dict[str, Tensor]:
    """The weights and buffers of the network without the units that are not `kept` (bool `[units]`)."""
    narrow = dict(state)
    for name, value in state.items():
        layer, _, what = name.rpartition(".")
        if value.ndim == 0:
            continue
        rows, columns = coupling.rows(layer, kept), coupling.columns(layer, kept)
        if rows is not None:
            value = value[rows.to(value.device)]
        if columns is not None and what == "weight":
            value = value[:, columns.to(value.device)]
        narrow[name] = value.contiguous()
    return narrow
