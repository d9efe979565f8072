"""A whole network for sparse inference: BatchNorm folded, dead channels removed, epilogues fused, layouts chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench_kernels.checks import FLOATS, check_tensor
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.sparse.channel_rules import is_sum
from prunebench_kernels.sparse.channels import Channels, remove_dead_channels
from prunebench_kernels.sparse.fold import fold_batchnorm, module_of, replace_module, shape_of, trace
from prunebench_kernels.sparse.layouts import LAYOUTS
from prunebench_kernels.sparse.measured import Decision, Timing
from prunebench_kernels.sparse.module import AUTO, Measuring, SparseConv2d
from prunebench_kernels.sparse.whole import WHOLE, choose_channels

RELUS = (functional.relu, torch.relu)
MULTIPLES = {"cuda": 8, "cpu": 16}
"""Numbers of channels that the device's libraries like: tensor cores want runs of 16 bytes, eight bf16 numbers in NHWC;
on a CPU with AVX-512 127 of 128 channels were 17 % slower than all 128 (convnet-small, fp32)."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one convolution. `density` is the share of non-zero weights as given, `density_left` of what
    is left after removing channels; `timings` are milliseconds of each candidate."""

    name: str
    layout: str
    settings: Mapping[str, int]
    channels: Channels
    density: float
    density_left: float
    timings: Mapping[str, Timing]
    refused: Mapping[str, str]
    reason: str


@dataclass(frozen=True)
class Report:
    """All convolutions, in the order of the forward pass, and what was said of the whole network (empty: nothing)."""

    layers: tuple[LayerReport, ...]
    whole: str
    whole_timings: Mapping[str, Timing]

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        """A line a convolution, then what was said of the whole network."""
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:{width}}  {layer.layout:8} "
            f"{layer.channels.in_after:4}/{layer.channels.in_before} in "
            f"{layer.channels.out_after:4}/{layer.channels.out_before} out  "
            f"density {layer.density:.3f}  {layer.reason}"
            for layer in self.layers
        ]
        return "\n".join([*lines, *([self.whole] if self.whole else [])])

    @property
    def layouts(self) -> dict[str, int]:
        """How many convolutions have each layout; only those that occur."""
        counts = {layout: sum(layer.layout == layout for layer in self.layers) for layout in LAYOUTS}
        return {layout: count for layout, count in counts.items() if count}

    @property
    def removed_channels(self) -> float:
        """Share of the convolutions' output channels that were removed."""
        before = sum(layer.channels.out_before for layer in self.layers)
        after = sum(layer.channels.out_after for layer in self.layers)
        return (before - after) / before if before else 0.0


class SparseNetwork(nn.Module):
    """A traced network whose convolutions are SparseConv2d; `report` says what was done."""

    def __init__(self, graph: fx.GraphModule, layers: Mapping[str, LayerFacts], example: Tensor) -> None:
        super().__init__()
        self.graph, self.facts = graph, dict(layers)
        self.example_shape, self.dtype = tuple(example.shape), example.dtype
        self.cut_channels = True
        self.whole = Decision(AUTO, "")

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)

    @property
    def convolutions(self) -> dict[str, SparseConv2d]:
        """The packed convolutions by their names in the model."""
        return {
            name: module for name, module in self.graph.named_modules() if isinstance(module, SparseConv2d)
        }

    @property
    def report(self) -> Report:
        convolutions = self.convolutions
        layers = [
            _report(name, facts, convolutions[name])
            for name, facts in self.facts.items()
            if name in convolutions
        ]
        return Report(tuple(layers), self.whole.reason, self.whole.timings)


@dataclass(frozen=True)
class LayerFacts:
    """Of a convolution before it was packed: its channels before and after, its density before."""

    channels: Channels
    density: float


def _report(name: str, facts: LayerFacts, conv: SparseConv2d) -> LayerReport:
    decision = conv.decision
    left = (conv.packed.unpack() != 0).double().mean().item()
    return LayerReport(
        name,
        conv.layout,
        dict(conv.settings),
        facts.channels,
        facts.density,
        left,
        decision.timings,
        decision.refused,
        decision.reason,
    )


@torch.no_grad()
def sparsify(
    model: nn.Module,
    *,
    example: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    layout: str = AUTO,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    measuring: Measuring | None = None,
) -> SparseNetwork:
    """The model for sparse inference; it computes the same, and the model itself is left as it is.

    `example` is an input `[N, C, H, W]` as will run: layouts are measured on it. `masks` by weight name (None: the
    zeros of the weights). A layout other than `auto` is used wherever it can be, dense elsewhere, and dead channels
    are removed down to a multiple that the device likes. With `dtype` the network computes in it and wants input in
    it. `auto` keeps what is not clearly slower: dense layouts, and all channels; removing all dead ones, or down to
    the multiple, is measured. Raises TracingError naming the module that torch.fx cannot trace, ArgumentError on
    masks, an example or a layout that do not fit.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise ArgumentError(f"layout: want auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    measuring = measuring or Measuring()
    multiple = MULTIPLES.get(example.device.type, 1) if isinstance(example, Tensor) else 1
    made: dict[str, SparseNetwork] = {}
    with torch.inference_mode(False):
        for name, cut in (WHOLE, 0), (f"channels in multiples of {multiple}", multiple), ("live channels", 1):
            if layout != AUTO and cut != multiple:
                continue
            network, x = build(model, example, masks, dtype, multiple=cut)
            if not any(network.facts == other.facts for other in made.values()):
                made[name] = network
        for name, network in made.items():
            is_guard = layout == AUTO and name == WHOLE and len(made) > 1
            fuse(network, "dense" if is_guard else layout, backend, measuring)
            network.eval()
    if layout != AUTO:
        return network
    return choose_channels(made, x, measuring)


@torch.no_grad()
def fold_dense(model: nn.Module, example: Tensor, *, dtype: torch.dtype | None = None) -> SparseNetwork:
    """The fair dense baseline: BatchNorm folded, bias, ReLU and residual fused alike; dense layouts, all channels."""
    with torch.inference_mode(False):
        network, _ = build(model, example, None, dtype, multiple=0)
        fuse(network, "dense", None, Measuring())
    return network.eval()  # type: ignore[return-value]


def build(
    model: nn.Module,
    example: Tensor,
    masks: Mapping[str, Tensor] | None,
    dtype: torch.dtype | None,
    *,
    multiple: int,
) -> tuple[SparseNetwork, Tensor]:
    """The traced and folded network with plain layers, and the example in its dtype.

    Of its channels the live ones are left, filled up to a multiple by dead ones; 0 leaves all.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: want a torch module, got {type(model).__name__}")
    if dtype is not None and dtype not in FLOATS:
        raise ArgumentError(f"dtype: want a floating dtype, got {dtype}")
    check_tensor("example", example)
    if example.dim() != 4 or example.numel() == 0:
        raise ArgumentError(f"example: want images [N, C, H, W], got {tuple(example.shape)}")
    graph = trace(model, example, masks)
    densities = {
        name: (module.weight != 0).double().mean().item()
        for name, module in graph.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    plain = {name: _channels(module) for name, module in graph.named_modules() if name in densities}
    fold_batchnorm(graph)
    changes = remove_dead_channels(graph, multiple) if multiple else {}
    if dtype is not None:
        graph.to(dtype)
    facts = {name: LayerFacts(changes.get(name, plain[name]), density) for name, density in densities.items()}
    example = example.to(dtype or example.dtype)
    network = SparseNetwork(graph, facts, example)
    network.cut_channels = bool(multiple)
    return network, example


def _channels(conv: nn.Module) -> Channels:
    assert isinstance(conv, nn.Conv2d)
    return Channels(conv.in_channels, conv.in_channels, conv.out_channels, conv.out_channels)


def fuse(network: SparseNetwork, layout: str, backend: str | None, measuring: Measuring) -> None:
    """Replace the convolutions by SparseConv2d, with the residual add and the ReLU that alone follow them."""
    graph = network.graph
    for node in list(graph.graph.nodes):
        conv = module_of(graph, node)
        if not isinstance(conv, nn.Conv2d) or len(node.args) != 1 or len(shape_of(node.args[0])) != 4:
            continue
        last, residual, relu = _epilogue(graph, node)
        module = _convert(conv, layout, relu, backend, measuring)
        if module is None:
            continue
        replace_module(graph, str(node.target), module)
        with graph.graph.inserting_before(last):
            fused = graph.graph.call_module(str(node.target), node.args)
            if residual is not None:
                fused.kwargs = {"residual": residual}
            fused.meta.update(last.meta)
        last.replace_all_uses_with(fused)
        graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()


def _epilogue(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node | None, bool]:
    """The last node that a convolution can take in, its residual, and whether there is a ReLU."""
    residual, last = None, node
    user = _only_user(last)
    if user is not None and is_sum(user) and shape_of(user.args[0]) == shape_of(user.args[1]):
        first, second = user.args
        if first is not second:
            residual, last = (second if first is node else first), user
            user = _only_user(last)
    if user is not None and _is_relu(graph, user):
        return user, residual, True  # type: ignore[return-value]
    return last, residual, False  # type: ignore[return-value]


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "relu"
    return node.target in RELUS if node.op == "call_function" else isinstance(module_of(graph, node), nn.ReLU)


def _convert(
    conv: nn.Conv2d, layout: str, relu: bool, backend: str | None, measuring: Measuring
) -> SparseConv2d | None:
    """The convolution in the layout; dense with the reason where the layout refuses; None if no layout takes it."""
    options = {"relu": relu, "backend": backend, "measuring": measuring}
    try:
        return SparseConv2d.from_dense(conv, None, layout, **options)  # type: ignore[arg-type]
    except LayoutError as error:
        refusal = str(error)
    try:
        module = SparseConv2d.from_dense(conv, None, "dense", **options)  # type: ignore[arg-type]
    except LayoutError:
        return None
    module.decision = Decision("dense", refusal)
    return module
