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

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench_kernels.fold import (
    PART,
    Layer,
    affine_of,
    is_depthwise,
    is_fixed_norm,
    is_flat,
    module_of,
    set_parameters,
    shape_of,
)

# --- what a node of a traced network does with channels ------------------------------------------------------

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
    nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
POINTWISE_FUNCTIONS = {
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.silu, functional.gelu,
    functional.hardswish, functional.hardtanh, torch.relu, torch.sigmoid, torch.tanh, torch.clamp,
}  # fmt: skip
POINTWISE_METHODS = {"relu", "sigmoid", "tanh", "clamp", "contiguous"}
STILL_MODULES = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
STILL_FUNCTIONS = {
    functional.max_pool2d, torch.max_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d,
}  # fmt: skip
"""Pooling that leaves a constant channel as it is (max pooling pads with minus infinity)."""
ADDS = {operator.add, torch.add}
SPATIAL = ({2, 3}, {-2, -1})


def mixes_channels(module: nn.Module | None, before: fx.Node) -> bool:
    """Whether it is a layer whose every output channel may read every input channel."""
    if isinstance(module, nn.Linear):
        return len(shape_of(before)) == 2
    plain = isinstance(module, nn.Conv2d) and module.groups == 1 and pads_zeros(module)
    return plain and len(shape_of(before)) == 4


def pads_zeros(module: nn.Module | None) -> bool:
    return getattr(module, "padding_mode", "zeros") == "zeros"


def is_pointwise(node: fx.Node, module: nn.Module | None) -> bool:
    if len(shape_of(node)) < 2 or any(isinstance(value, fx.Node) for value in node.args[1:]):
        return False
    if node.op == "call_function":
        return node.target in POINTWISE_FUNCTIONS and len(node.all_input_nodes) == 1
    if node.op == "call_method":
        return node.target in POINTWISE_METHODS and len(node.all_input_nodes) == 1
    return isinstance(module, POINTWISE_MODULES)


def evaluate(node: fx.Node, module: nn.Module | None, values: Tensor) -> Tensor:
    """What a pointwise node gives for the constants of channels, nan where they are none."""
    if module is not None:
        result = module(values)
    elif node.op == "call_method" and node.target == "contiguous":
        result = values  # of any memory format, which values of channels do not have
    elif node.op == "call_method":
        result = getattr(values, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        result = node.target(values, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return torch.where(values.isnan(), torch.nan, result)


def keeps_channels(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it is pooling over positions."""
    if len(node.all_input_nodes) != 1 or len(shape_of(node.args[0])) != 4:
        return False
    if node.op == "call_function" and node.target in STILL_FUNCTIONS | {functional.avg_pool2d}:
        return not node.kwargs.get("return_indices")
    return is_mean(node) or isinstance(module, (*STILL_MODULES, nn.AvgPool2d))


def leaves_constants(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether this pooling leaves a constant channel as it is; average pooling may count its padding's zeros."""
    return isinstance(module, STILL_MODULES) or node.target in STILL_FUNCTIONS or is_mean(node)


def is_mean(node: fx.Node) -> bool:
    if node.op == "call_module" or node.target not in ("mean", torch.mean):
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return isinstance(dims, tuple | list) and set(dims) in SPATIAL


def reads_batch_size(node: fx.Node) -> bool:
    """Whether it reads only how many samples there are."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return bool(node.args[1] == 0)
    whole = (node.op == "call_method" and node.target == "size") or (
        node.op == "call_function" and node.target is getattr and node.args[1:] == ("shape",)
    )
    return whole and all(
        user.target is operator.getitem and user.args[1] == 0 and user.op == "call_function"
        for user in node.users
    )


def is_sum(node: fx.Node) -> bool:
    """Whether it adds two tensors with the same channels."""
    is_add = node.target == "add" if node.op == "call_method" else node.target in ADDS
    if node.op == "call_module" or not is_add or len(node.args) != 2 or node.kwargs:
        return False
    first, second = map(shape_of, node.args)
    return len(first) == len(second) >= 2 and first[1] == second[1]


# --- the analysis --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Channels:
    """A layer's channels before and after."""

    in_before: int
    in_after: int
    out_before: int
    out_after: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Channels:
        """All of them."""
        return cls(conv.in_channels, conv.in_channels, conv.out_channels, conv.out_channels)


class _Weights:
    """Which outputs and inputs of a layer its weights join, while channels go on both sides.

    `alive` outputs have a weight for an input that varies, `read` inputs one for an output that is wanted. Weights
    are looked at where they are, a byte each: a float64 copy of a wide layer would take eight.
    """

    def __init__(self, module: nn.Module | None, before: fx.Node) -> None:
        assert isinstance(module, Layer)
        self.module, self.before, self.depthwise = module, before, is_depthwise(module)
        outputs = len(module.weight)
        self.wanted = torch.ones(outputs, dtype=torch.bool)
        self.varying = torch.ones(outputs if self.depthwise else module.weight.shape[1], dtype=torch.bool)
        bias = torch.zeros(outputs) if module.bias is None else module.bias
        self.bias = bias.detach().double().cpu()
        padding = getattr(module, "padding", 0)
        self.pads = padding == "same" or (isinstance(padding, tuple) and any(padding))
        self._look()

    def _look(self) -> None:
        weight = self.module.weight
        joined = weight != 0 if weight.ndim == 2 else (weight != 0).flatten(2).any(2)
        if self.depthwise:
            self.alive = self.read = joined[:, 0].cpu() & self.wanted
            return
        if not self.varying.all():
            joined &= self.varying.to(weight.device)
        self.alive = joined.any(1).cpu() & self.wanted
        if not self.wanted.all():
            joined &= self.wanted.to(weight.device)[:, None]
        self.read = joined.any(0).cpu()

    def want(self, outputs: Tensor) -> None:
        """Drop the weights of all other outputs."""
        if bool((self.wanted & ~outputs).any()):
            self.wanted = self.wanted & outputs
            self._look()

    def absorb(self, constant: Tensor) -> None:
        """Drop weights for constant inputs (`[inputs]`, nan: not constant), as far as that is exact."""
        gone = self.read & (constant == 0 if self.pads else ~constant.isnan())
        if not gone.any():
            return
        weight = self.module.weight
        moved = torch.nonzero(gone & (constant != 0)).flatten()
        for some in moved.split(max(1, PART // (weight.numel() // len(gone)))):
            part = weight[some] if self.depthwise else weight[:, some]
            sums = (part.double() if part.ndim == 2 else part.double().flatten(2).sum(2)).cpu()
            if self.depthwise:
                self.bias[some] += sums[:, 0] * constant[some]
            else:
                self.bias = self.bias + (sums * constant[some]).sum(1)
        self.varying = self.varying & ~gone
        if self.depthwise:
            self.wanted = self.wanted & ~gone
        self._look()

    def constants(self) -> Tensor:
        """The value of each output channel, nan where it depends on the input."""
        return torch.where(self.alive, torch.nan, self.bias)

    def cut(self, module: nn.Module, columns: Tensor, rows: Tensor) -> None:
        """Leave these inputs and outputs in `module`, a layer with the same weights."""
        assert isinstance(module, Layer)
        weight, device = module.weight, module.weight.device
        if not all(bool(channels.all()) for channels in (rows, columns, self.wanted, self.varying)):
            last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
            weight = weight[rows.to(device)]
            # Dead channels that fill up a multiple become zero: their constants are in the bias.
            weight[~self.wanted[rows].to(device)] = 0
            if not self.depthwise:
                weight = weight[:, columns.to(device)]
                weight[:, ~self.varying[columns].to(device)] = 0
            weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
        bias = self.bias[rows].to(device)
        set_parameters(module, weight, bias if module.bias is not None or bool((bias != 0).any()) else None)


@dataclass(eq=False)
class _Set:
    """Channels that several tensors must keep alike: `kept` of them, all if it is fixed."""

    size: int
    fixed: bool
    kept: Tensor = field(default_factory=Tensor)


Known = dict[fx.Node, Tensor]


class DeadChannels:
    """What a traced network could do without: `channels` tells, `cut` removes it, from this graph or a twin."""

    @torch.no_grad()
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.sets: dict[fx.Node, _Set] = {}
        self.repeat: dict[fx.Node, int] = {}
        """Features of a tensor per channel of its set: height * width after flattening."""
        self.weights: dict[fx.Node, _Weights] = {}
        self.norms: list[fx.Node] = []
        self.rules: dict[fx.Node, Callable[[Known], Tensor]] = {}
        """How a node's constants follow from those of its inputs; nodes without a rule have none."""
        for node in graph.graph.nodes:
            self._classify(node)
        self._settle()

    def _classify(self, node: fx.Node) -> None:  # one branch a kind of node
        module = module_of(self.graph, node)
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if before is None or before not in self.sets:
            self._leave(node)
        elif reads_batch_size(node):
            pass
        elif mixes_channels(module, before):
            self.weights[node] = _Weights(module, before)
            self._begin(node, fixed=False)
        elif is_depthwise(module) and pads_zeros(module) and len(shape_of(before)) == 4:
            self.weights[node] = _Weights(module, before)
            self._follow(node, before)
        elif is_flat(node, module):
            pixels = shape_of(before)[2] * shape_of(before)[3]
            self._follow(node, before, lambda known: known[before].repeat_interleave(pixels))
            self.repeat[node] *= pixels
        elif is_fixed_norm(module) and self.repeat[before] == 1:
            scale, shift = (values.cpu() for values in affine_of(module))  # type: ignore[arg-type]
            self._follow(node, before, lambda known: scale * known[before] + shift)
            self.norms.append(node)
        elif is_pointwise(node, module):
            self._follow(node, before, lambda known: evaluate(node, module, known[before]))
        elif keeps_channels(node, module):
            still = leaves_constants(node, module)
            self._follow(
                node,
                before,
                lambda known: torch.where((known[before] == 0) | still, known[before], torch.nan),
            )
        elif is_sum(node) and len({self.repeat[other] for other in node.all_input_nodes}) == 1:
            first, second = node.all_input_nodes[0], node.all_input_nodes[-1]
            self._join(first, second)
            self._follow(node, first, lambda known: known[first] + known[second])
        else:
            self._leave(node)

    def _begin(self, node: fx.Node, *, fixed: bool) -> None:
        self.sets[node], self.repeat[node] = _Set(_width(node), fixed), 1

    def _follow(self, node: fx.Node, before: fx.Node, rule: Callable[[Known], Tensor] | None = None) -> None:
        self.sets[node], self.repeat[node] = self.sets[before], self.repeat[before]
        if rule is not None:
            self.rules[node] = rule

    def _join(self, first: fx.Node, second: fx.Node) -> None:
        one, other = self.sets[first], self.sets[second]
        one.fixed |= other.fixed
        self.sets = {node: one if mine is other else mine for node, mine in self.sets.items()}

    def _leave(self, node: fx.Node) -> None:
        """Keep all channels of what is not understood, and of what it reads."""
        if shape_of(node):
            self._begin(node, fixed=True)
        for other in node.all_input_nodes:
            if other in self.sets:
                self.sets[other].fixed = True

    def _settle(self) -> None:
        """Repeat until no weight can be dropped."""
        left = -1
        while True:
            self._find_constants()
            self._find_needed()
            for node, weights in self.weights.items():
                weights.want(self.sets[node].kept)
            before, left = left, sum(int(w.wanted.sum() + w.varying.sum()) for w in self.weights.values())
            if left == before:
                return

    def _find_constants(self) -> None:
        known: Known = {}
        for node in self.sets:
            if node in self.weights:
                weights = self.weights[node]
                weights.absorb(known[weights.before])
                known[node] = weights.constants()
            elif node in self.rules:
                known[node] = self.rules[node](known)
            else:
                known[node] = torch.full((_width(node),), torch.nan, dtype=torch.float64)

    def _find_needed(self) -> None:
        """Channels to keep by set: at least one, so that every tensor still exists."""
        for mine in self.sets.values():
            mine.kept = torch.full((mine.size,), mine.fixed)
        for weights in self.weights.values():
            if not weights.depthwise:
                read = weights.read.view(-1, self.repeat[weights.before]).any(1)
                self.sets[weights.before].kept |= read
        for mine in self.sets.values():
            mine.kept[0] |= not mine.kept.any()

    def _left(self, node: fx.Node, multiple: int) -> Tensor:
        """The channels of a node's tensor that stay: the needed ones, and the first dead ones up to a multiple.

        Those are zeros, or constants that nobody reads.
        """
        channels = self.sets[node].kept.clone()
        wanted = min(-(-int(channels.sum()) // multiple) * multiple, len(channels))
        channels[torch.nonzero(~channels).flatten()[: wanted - int(channels.sum())]] = True
        return channels.repeat_interleave(self.repeat[node])

    def channels(self, multiple: int) -> dict[str, Channels]:
        """What becomes of each layer that could be cut. A number of channels is a multiple, or what it was."""
        found = {}
        for node, weights in self.weights.items():
            columns, rows = self._left(weights.before, multiple), self._left(node, multiple)
            found[str(node.target)] = Channels(len(columns), int(columns.sum()), len(rows), int(rows.sum()))
        return found

    @torch.no_grad()
    def cut(self, graph: fx.GraphModule, multiple: int) -> None:
        """Cut weights, biases and BatchNorms of the graph, or a twin of it, in place."""
        for node, weights in self.weights.items():
            columns, rows = self._left(weights.before, multiple), self._left(node, multiple)
            weights.cut(graph.get_submodule(str(node.target)), columns, rows)
        for node in self.norms:
            _cut_norm(graph.get_submodule(str(node.target)), self._left(node, multiple))


def _width(node: fx.Node) -> int:
    return shape_of(node)[1] if len(shape_of(node)) > 1 else 1


def _cut_norm(norm: nn.Module, channels: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(norm, name)
        if values is not None:
            values = values.detach()[channels.to(values.device)]
            setattr(norm, name, nn.Parameter(values, False) if name in norm._parameters else values)
    norm.num_features = int(channels.sum())  # type: ignore[assignment]
