"""A whole network for sparse inference: BatchNorm folded, dead channels removed, epilogues fused, layouts chosen.

What is chosen by measurement, each time for the whole network on one input: how many dead channels go (with dense
layouts), then the layouts of what is left. Layer by layer a convolution pays for copying its input out of the format
of the layer before it, so a format that pays only where all layers have it would not be found: where layouts of a
format come near, the network is also prepared in that format throughout.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench_kernels import measured
from prunebench_kernels.channels import Channels, DeadChannels, is_sum
from prunebench_kernels.dispatch import FLOATS, ArgumentError, LayoutError, check_tensor, on_device
from prunebench_kernels.fold import fold_batchnorm, module_of, replace_module, shape_of, trace, twin
from prunebench_kernels.layouts import FORMATS, LAYOUTS, format_of, is_arranged, pack
from prunebench_kernels.measured import Decision, Measuring, Timing, capture, key_of
from prunebench_kernels.sparse_conv import AUTO, SparseConv2d, label

RELUS = (functional.relu, torch.relu)
MULTIPLES = {"cuda": 8, "cpu": 16}
"""Numbers of channels that the device's libraries like: tensor cores want runs of 16 bytes, eight bf16 numbers in NHWC;
on a CPU with AVX-512 127 of 128 channels were 17 % slower than all 128 (convnet-small, fp32)."""
PASSES: dict[str, Sequence[str]] = {"cuda": FORMATS}
"""Memory formats that a whole network may have: on a CPU every sparse layout copies its input, whatever its format."""
WHOLE = "all channels"

# --- the network and its report -------------------------------------------------------------------------------


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
    """All convolutions, in the order of the forward pass, and what was said of the whole network (empty: nothing).

    `whole_timings` are milliseconds of whole networks as they were chosen between: on a GPU in CUDA graphs, as
    `SparseNetwork.graphed` runs them. `as_called` are those of dense and of the network as Python calls them on a
    GPU; empty on a CPU, where they are the same, and where dense was chosen.
    """

    layers: tuple[LayerReport, ...]
    whole: str
    whole_timings: Mapping[str, Timing]
    as_called: Mapping[str, Timing] = field(default_factory=dict)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        """A line a convolution, then what was said of the whole network, and its times."""
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:{width}}  {layer.layout:8} "
            f"{layer.channels.in_after:4}/{layer.channels.in_before} in "
            f"{layer.channels.out_after:4}/{layer.channels.out_before} out  "
            f"density {layer.density:.3f}  {layer.reason}"
            for layer in self.layers
        ]
        how = "in a CUDA graph" if self.as_called else "measured"
        times = [_shown(how, self.whole_timings), _shown("as called from Python", self.as_called)]
        return "\n".join(filter(None, [*lines, self.whole, *times]))

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


def _shown(how: str, timings: Mapping[str, Timing]) -> str:
    times = ", ".join(f"{name} {timing.p50:.3g} ms" for name, timing in timings.items())
    return f"{how}: {times}" if times else ""


@dataclass(frozen=True)
class LayerFacts:
    """Of a convolution before it was packed: its channels before and after, its density before."""

    channels: Channels
    density: float


class SparseNetwork(nn.Module):
    """A traced network whose convolutions are SparseConv2d; `report` says what was done. For inference.

    Takes `torch.compile` and `torch.export` (sparse layouts as the operator `prunebench::sparse_conv2d`); for ONNX
    export `dense()`.
    """

    def __init__(self, traced: fx.GraphModule, facts: Mapping[str, LayerFacts], example: Tensor) -> None:
        super().__init__()
        # Not `graph`: torch.export gives its own modules that attribute, and would find ours no more.
        self.traced, self.facts = traced, dict(facts)
        self.example_shape, self.dtype = tuple(example.shape), example.dtype
        self.whole, self.as_called = Decision(AUTO, ""), Decision(AUTO, "")

    def forward(self, x: Tensor) -> Tensor:
        if (torch.compiler.is_exporting() or torch.jit.is_tracing()) and _exports_to_onnx():
            sparse = [name for name, conv in self.convolutions.items() if conv.layout != "dense"]
            if sparse:
                raise ArgumentError(
                    f"network: ONNX has no operator for the sparse layouts of {', '.join(sparse)}; "
                    "export network.dense(), the same network with dense layouts"
                )
        return self.traced(x)

    @property
    def convolutions(self) -> dict[str, SparseConv2d]:
        """The packed convolutions by their names in the model."""
        modules = self.traced.named_modules()
        return {name: module for name, module in modules if isinstance(module, SparseConv2d)}

    @property
    def report(self) -> Report:
        """What became of every convolution, and the times that decided."""
        layers = []
        convolutions = self.convolutions
        for name, facts in self.facts.items():
            if name in convolutions:
                conv, made = convolutions[name], convolutions[name].decision
                left = _density(conv.packed.unpack())
                said = (facts.channels, facts.density, left, made.timings, made.refused, made.reason)
                layers.append(LayerReport(name, conv.layout, dict(conv.settings), *said))
        return Report(tuple(layers), self.whole.reason, self.whole.timings, self.as_called.timings)

    @torch.inference_mode(False)
    @torch.no_grad()
    def dense(self) -> SparseNetwork:
        """The same network with dense layouts, what other runtimes take, such as ONNX's; other tensors are shared."""
        made = self._twin()
        made.whole = Decision(AUTO, "")
        for conv in made.convolutions.values():
            conv.is_prepared = True
            if conv.layout != "dense":
                conv.decision = Decision("dense", f"was {label(conv.layout, conv.settings)}")
                conv.take(pack(conv.packed.unpack(), "dense", geometry=conv.geometry))
        return made

    def _twin(self) -> SparseNetwork:
        """A copy with convolutions of its own, and the same tensors in them."""
        parts = [part for conv in self.convolutions.values() for part in (conv.measuring, conv.packed)]
        made = SparseNetwork(twin(self.traced, *parts), self.facts, torch.empty(0, dtype=self.dtype))
        made.example_shape, made.whole = self.example_shape, self.whole
        return made.eval()  # type: ignore[return-value]

    def graphed(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """A function for inputs like `x` `[N, C, H, W]` that replays one CUDA graph: no time of Python's in between.

        The input is copied into the graph's own. The output is the graph's, and the next call overwrites it: clone
        what is to stay. Weights that are replaced later are not seen. On a CPU the network itself is returned.
        Raises ArgumentError if the network cannot be captured (it waits for the GPU, say), and the function on an
        input of another shape, dtype or device.
        """
        return replayed(self, x) if check_tensor("x", x).is_cuda else self


def _exports_to_onnx() -> bool:
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


# As torch.compiler.assume_constant_result, which imports the compiler (seconds): torch.export's strict mode, ONNX's
# second try, takes is_in_onnx_export for a constant False.
_exports_to_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.inference_mode(False)
@torch.no_grad()
def replayed(network: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`SparseNetwork.graphed` of any module."""
    own, outputs = x.detach().clone(), []
    with on_device(own):
        network(own)  # layouts are chosen and kernels compiled now: both wait for the GPU
        graph = capture(lambda: outputs.append(network(own)))
    if graph is None:
        raise ArgumentError("network: cannot be captured as a CUDA graph; call the network itself")
    y = outputs[-1]
    outputs.clear()

    def replay(x: Tensor) -> Tensor:
        """The network's output for `x`, valid until the next call."""
        if (check_tensor("x", x).shape, x.dtype, x.device) != (own.shape, own.dtype, own.device):
            given, wanted = (f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in (x, own))
            raise ArgumentError(f"x: the graph takes {wanted}, got {given}")
        with torch.no_grad(), on_device(own):
            own.copy_(x)
            graph.replay()
        return y

    replay.network = network  # type: ignore[attr-defined] # whose weights the graph reads
    return replay


def _density(weight: Tensor) -> float:
    return torch.count_nonzero(weight).item() / weight.numel()


# --- making it ------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
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
    zeros of the weights); a parametrised weight (weight_norm, spectral_norm) is folded first, and its mask applies to
    what the parametrisation gives. A layout other than `auto` is used wherever it can be, dense elsewhere, and dead
    channels are removed down to a multiple that the device likes. With `dtype` the network computes in it and wants
    input in it. `auto` keeps what is not clearly slower: dense layouts, and all channels; removing all dead ones, or
    down to the multiple, is measured. Raises TracingError naming the module that torch.fx cannot trace or that has a
    hook, ArgumentError on masks, an example or a layout that do not fit.
    """
    if layout not in (AUTO, *LAYOUTS):
        raise ArgumentError(f"layout: want auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    measuring = measuring or Measuring()
    multiple = MULTIPLES.get(check_tensor("example", example).device.type, 1)
    multiples = {f"channels in multiples of {multiple}": multiple}
    if layout == AUTO:
        multiples = {WHOLE: 0, **multiples, "live channels": 1}
    made = _build(model, example, masks, dtype, multiples)
    for network in made.values():
        _fuse(network, layout, backend, measuring)
    if layout != AUTO:
        return next(iter(made.values()))
    x = example.to(dtype or example.dtype)
    network = _choose_layouts(_choose_channels(made, x, measuring), x, measuring)
    if x.is_cuda:
        _time_as_called(network, made[WHOLE].dense(), x, measuring)
    return network


@torch.inference_mode(False)
@torch.no_grad()
def fold_dense(
    model: nn.Module, example: Tensor, *, dtype: torch.dtype | None = None, fuse: bool = True
) -> SparseNetwork:
    """The fair dense baseline: BatchNorm folded, bias, ReLU and residual fused alike; dense layouts, all channels.

    Without `fuse` torch's plain layers are left, for a compiler to fuse.
    """
    network = _build(model, example, None, dtype, {WHOLE: 0})[WHOLE]
    if fuse:
        _fuse(network, "dense", None, Measuring())
    return network


@torch.inference_mode(False)
@torch.no_grad()
def without_dead_channels(model: nn.Module, example: Tensor) -> SparseNetwork:
    """The network for other runtimes: BatchNorm folded, dead channels removed, torch's plain layers left.

    It computes the same, with the weights' zeros where they are. Channels are left down to a multiple that the
    example's device likes. Raises TracingError naming the module that torch.fx cannot trace.
    """
    multiple = MULTIPLES.get(check_tensor("example", example).device.type, 1)
    return _build(model, example, None, None, {WHOLE: multiple})[WHOLE]


def _build(
    model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None, dtype: torch.dtype | None,
    multiples: Mapping[str, int],
) -> dict[str, SparseNetwork]:  # fmt: skip
    """Traced and folded networks with plain layers, by names of multiples of channels.

    Live channels are left, filled up to the multiple by dead ones; 0 leaves all. A network with the channels of an
    earlier one is left out.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: want a torch module, got {type(model).__name__}")
    if any(isinstance(module, SparseConv2d) for module in model.modules()):
        raise ArgumentError("model: is sparse already; give the model that it was made from")
    if dtype is not None and dtype not in FLOATS:
        raise ArgumentError(f"dtype: want a floating dtype, got {dtype}")
    if check_tensor("example", example).dim() != 4 or example.numel() == 0:
        raise ArgumentError(f"example: want images [N, C, H, W], got {tuple(example.shape)}")
    graph = trace(model, example, masks)
    whole = {
        name: LayerFacts(Channels.of(module), _density(module.weight))
        for name, module in graph.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    fold_batchnorm(graph)
    dead = DeadChannels(graph) if any(multiples.values()) else None
    made: dict[str, SparseNetwork] = {}
    for name, multiple in multiples.items():
        left = dead.channels(multiple) if dead and multiple else {}
        facts = {path: replace(fact, channels=left.get(path, fact.channels)) for path, fact in whole.items()}
        if any(facts == other.facts for other in made.values()):
            continue
        traced = twin(graph)
        if dead and multiple:
            dead.cut(traced, multiple)
        if dtype is not None:
            traced.to(dtype)
        made[name] = SparseNetwork(traced, facts, example.to(dtype or example.dtype))
        made[name].eval()
    return made


def _fuse(network: SparseNetwork, layout: str, backend: str | None, measuring: Measuring) -> None:
    """Replace the convolutions by SparseConv2d, with the residual add and the ReLU that alone follow them."""
    graph = network.traced
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
    network.eval()


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
    refusal = ""
    for asked in (layout, "dense"):
        try:
            module = SparseConv2d.from_dense(
                conv, None, asked, relu=relu, backend=backend, measuring=measuring
            )
        except LayoutError as error:
            refusal = refusal or str(error)
            continue
        if refusal:
            module.decision = Decision("dense", refusal)
        return module
    return None


# --- choosing -------------------------------------------------------------------------------------------------


def _choose_channels(made: Mapping[str, SparseNetwork], x: Tensor, measuring: Measuring) -> SparseNetwork:
    """The network that is fastest on x with dense layouts.

    All compute the same; they differ in how many dead channels were removed. The first one stays unless another
    clearly beats it: fewer channels can be slower, where the library has no kernel for their number.
    """
    if len(made) == 1:
        return next(iter(made.values()))
    decision = _decide("channels", {name: network.dense() for name, network in made.items()}, x, measuring)
    network = made[decision.winner]
    network.whole = replace(decision, winner=AUTO, reason=f"{decision.winner}: {decision.reason}")
    return network


def _choose_layouts(network: SparseNetwork, x: Tensor, measuring: Measuring) -> SparseNetwork:
    """The network with every convolution prepared on what the layers before it give for x, the fastest plan overall.

    A layout that won a layer is also tried wherever it can be. Dense layouts stay unless another plan clearly beats
    them.
    """
    plans = {"dense": network.dense()}
    auto = _prepared(network, x, None)
    orders = _orders_worth_a_pass(auto, PASSES.get(x.device.type, ()))
    passes = {f"{AUTO} {order}": _prepared(network, x, frozenset({order})) for order in orders}
    winners = {conv.layout: conv.settings for conv in auto.convolutions.values() if conv.layout != "dense"}
    everywhere = {f"everywhere {layout}": _everywhere(auto, layout, winners[layout]) for layout in winners}
    for name, other in {AUTO: auto, **passes, **everywhere}.items():
        if not any(_layouts(other) == _layouts(earlier) for earlier in plans.values()):
            plans[name] = other
    if len(plans) == 1:
        return auto
    decision = _decide("network", plans, x, measuring)
    made = plans[decision.winner]
    reasons = "; ".join(filter(None, [network.whole.reason, decision.reason]))
    made.whole = replace(decision, reason=reasons, timings={**network.whole.timings, **decision.timings})
    if made is plans["dense"]:
        for name, conv in made.convolutions.items():
            won = conv.decision = auto.convolutions[name].decision
            if won.winner != "dense":
                reason = f"{won.winner} won this layer, but the whole network was not faster with it"
                conv.decision = replace(won, winner="dense", reason=reason)
    return made


def _prepared(network: SparseNetwork, x: Tensor, formats: frozenset[str] | None) -> SparseNetwork:
    """A twin with the layouts that win on x layer by layer, of these memory formats (None: of all)."""
    made = network._twin()
    for conv in made.convolutions.values():
        conv.formats, conv.is_prepared = formats, False
    made(x)
    return made


def _everywhere(auto: SparseNetwork, layout: str, settings: Mapping[str, int]) -> SparseNetwork:
    """A twin with this layout wherever it can be, and what was chosen layer by layer elsewhere."""
    made = auto._twin()
    for name, conv in made.convolutions.items():
        conv.decision = auto.convolutions[name].decision
        with contextlib.suppress(LayoutError):
            conv.take(pack(conv.packed.unpack(), layout, geometry=conv.geometry, **settings))
            reason = f"the whole network was the fastest with {layout} everywhere"
            conv.decision = replace(conv.decision, winner=label(layout, settings), reason=reason)
    return made


def _orders_worth_a_pass(network: SparseNetwork, orders: Sequence[str]) -> list[str]:
    """Memory formats of which a sparse layout came near the fastest in some layer.

    Unless all layers have that format already: each would only be asked again.
    """
    near = set()
    for conv in network.convolutions.values():
        times = {name: timing.p50 for name, timing in conv.decision.timings.items()}
        limit = measured.HOPELESS * min(times.values(), default=0.0)
        near |= {format_of(name.split()[0]) for name, ms in times.items() if ms <= limit and name != "dense"}
    taken = {format_of(conv.layout) for conv in network.convolutions.values()}
    return [order for order in orders if order in near and taken != {order}]


def _layouts(network: SparseNetwork) -> list[str]:
    return [label(conv.layout, conv.settings) for conv in network.convolutions.values()]


def _time_as_called(network: SparseNetwork, dense: SparseNetwork, x: Tensor, measuring: Measuring) -> None:
    """Time dense and the network as Python calls them: on a GPU the host's part may turn what graphs say around."""
    if network.facts != dense.facts or _layouts(network) != _layouts(dense):
        as_called = replace(measuring, timer=measuring.timer or measured.time_as_called)
        network.as_called = _decide("as called", {"dense": dense, "sparse": network}, x, as_called)


def _decide(
    operation: str, networks: Mapping[str, SparseNetwork], x: Tensor, measuring: Measuring
) -> Decision:
    """Which of the networks is fastest on x, the first unless another clearly is; remembered by all it depends on."""
    described = {}
    for name, network in networks.items():
        convolutions = network.convolutions.values()
        layers = [(conv.geometry.numbers, conv.backend, conv.key) for conv in convolutions]
        all_of_it = repr((network.traced.code, _layouts(network), layers))
        described[name] = hashlib.sha256(all_of_it.encode()).hexdigest()[:16]
    key = key_of(
        operation=operation,
        device=measured.device_name(x.device),
        x=tuple(x.shape),
        dtype=x.dtype,
        formats=[name for name in FORMATS if is_arranged(x, name)],
        networks=described,
        precision=measured.precision(),
        versions=measured.versions(),
    )
    calls = {name: functools.partial(network, x) for name, network in networks.items()}
    return measuring.decide(key, calls, x.device)
