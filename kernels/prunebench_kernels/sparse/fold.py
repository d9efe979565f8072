"""A model as a graph of its layers, in evaluation mode, with every BatchNorm that follows a layer folded into it.

BatchNorm in evaluation is y = scale * x + shift per channel, scale = gamma / sqrt(variance + eps) and
shift = beta - scale * mean; after a convolution or linear layer: weight' = scale * weight and
bias' = scale * bias + shift.
Computed in float64, stored in the layer's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench_kernels.checks import check_tensor
from prunebench_kernels.errors import ArgumentError

Layer = nn.Conv2d | nn.Linear
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
LARGEST_DIFFERENCE = 1e-3
"""Between the outputs of a model and of its graph, as a share of the largest: both call the same operations, but a
GPU may take another algorithm."""


class TracingError(ArgumentError):
    """The model's forward pass cannot be written as a graph of its layers; the message names the module."""


class _Tracer(fx.Tracer):
    """Remembers the path of the module that is being traced, for the error."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []

    def call_module(self, m, forward, args, kwargs):  # type: ignore[no-untyped-def]
        self.path.append(f"{self.path_of_module(m)} ({type(m).__name__})")
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return result


def trace(model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """A copy of the model, masked and in evaluation mode, as a graph; the model itself is left as it is.

    In-place operations become plain ones, a layer that is called twice becomes two, what does nothing in evaluation
    goes. `example` is an input `[N, C, H, W]`; every node learns its shape for one sample. Raises TracingError naming
    the module whose forward pass depends on the values of tensors, or if the graph does not compute what the model
    does, ArgumentError on an example that does not fit.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    apply_masks(model, masks or {})
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever a forward pass does with a proxy
        where = tracer.path[-1] if tracer.path else type(model).__name__
        raise TracingError(
            f"model: {where} cannot be traced by torch.fx ({type(error).__name__}: {error})"
        ) from error
    traced = fx.GraphModule(model, graph)
    _separate_shared_layers(traced)
    _drop_identities(traced)
    _leave_values_alone(traced)
    _allow_any_memory_format(traced)
    traced.graph.lint()
    traced.recompile()
    try:
        found = _Shapes(traced).run(example[:1])
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ArgumentError(f"example: the model does not take {tuple(example.shape)} ({reason})") from error
    _check_outputs(model, example[:1].clone(), found)
    return traced


@torch.no_grad()
def _check_outputs(model: nn.Module, x: Tensor, found: object) -> None:
    """Raise TracingError unless the model's outputs are those of its graph. `x` may be written to."""
    try:
        wanted = model(x)
    except Exception:  # such as a `view` that wants another memory format, where the graph takes any
        return
    if not _agree(_tensors(found), _tensors(wanted)):
        raise TracingError(
            "model: its graph computes something else; does it write to a tensor that it reads by another name, "
            "as with `+=`, or draw random numbers?"
        )


def _tensors(values: Any) -> list[Tensor]:
    found: list[object] = []
    fx.node.map_aggregate(values, found.append)
    return [value for value in found if isinstance(value, Tensor) and value.numel()]


def _agree(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether outputs are the same; not finite ones count as the same."""
    if [value.shape for value in found] != [value.shape for value in wanted]:
        return False
    pairs = [(one.double(), other.double()) for one, other in zip(found, wanted)]
    return not any(
        bool((one - other).abs().max() > LARGEST_DIFFERENCE * other.abs().max()) for one, other in pairs
    )


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor at its node."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result

    @torch.no_grad()
    def run(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        return super().run(*args, **kwargs)


def shape_of(node: object) -> tuple[int, ...]:
    """Shape of a node's tensor for one sample; empty if it is none."""
    return node.meta.get("shape", ()) if isinstance(node, fx.Node) else ()


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def replace_module(graph: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Put another module in a module's place."""
    parent, _, leaf = name.rpartition(".")
    setattr(graph.get_submodule(parent), leaf, module)


def bypass(graph: fx.GraphModule, node: fx.Node, value: fx.Node) -> None:
    """Let the users of a node read `value` instead, and drop the node."""
    node.replace_all_uses_with(value)
    graph.graph.erase_node(node)


def _separate_shared_layers(graph: fx.GraphModule) -> None:
    seen: set[str] = set()
    for node in graph.graph.nodes:
        module = module_of(graph, node)
        if not isinstance(module, Layer | nn.modules.batchnorm._BatchNorm):
            continue
        name = str(node.target)
        if name in seen:
            name = _free_name(graph, name)
            graph.add_submodule(name, copy.deepcopy(module))
            node.target = name
        seen.add(name)


def _free_name(graph: fx.GraphModule, name: str) -> str:
    taken = {path for path, _ in graph.named_modules()}
    return next(f"{name}_{index}" for index in range(2, 10_000) if f"{name}_{index}" not in taken)


def _drop_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        dropout = node.op == "call_function" and node.target in (functional.dropout, functional.dropout2d)
        if isinstance(module_of(graph, node), IDENTITIES) or (dropout and not _trains(node)):
            bypass(graph, node, node.args[0])


def _trains(node: fx.Node) -> bool:
    """Whether a traced dropout is active: `training` was read from the module, which is in evaluation mode."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _leave_values_alone(graph: fx.GraphModule) -> None:
    """Replace in-place operations; later readers of the changed value read the operation's result."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in [node for node in graph.graph.nodes if _writes_its_input(graph, node)]:
        _make_plain(graph, node)
        changed = node.args[0]
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
    for name, module in list(graph.named_modules(remove_duplicate=False)):
        if getattr(module, "inplace", False):
            plain = copy.copy(module)
            plain.inplace = False  # type: ignore[assignment]
            replace_module(graph, name, plain)


def _allow_any_memory_format(graph: fx.GraphModule) -> None:
    """`view` becomes `reshape`: layouts decide between NCHW and channels_last, and a view works for one of them."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"


def _writes_its_input(graph: fx.GraphModule, node: fx.Node) -> bool:
    if "out" in node.kwargs:
        raise TracingError(
            f"model: {_name_of(node)} writes to `out`, which a graph of layers cannot; leave it away"
        )
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return bool(getattr(module_of(graph, node), "inplace", False))
    # Python's own `operator.and_` is none.
    ours = node.op == "call_method" or str(getattr(node.target, "__module__", "")).startswith("torch")
    return (ours and _name_of(node).endswith("_")) or bool(node.kwargs.get("inplace"))


def _name_of(node: fx.Node) -> str:
    """A method's or function's name, such as `relu_`."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _make_plain(graph: fx.GraphModule, node: fx.Node) -> None:
    """Take the operation of the same name without the underscore, or without `inplace`."""
    name = _name_of(node)
    if node.op == "call_module" or not name.endswith("_"):
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        return
    homes = (Tensor,) if node.op == "call_method" else (torch, functional)
    plain = next((found for home in homes if callable(found := getattr(home, name[:-1], None))), None)
    if plain is None:
        raise TracingError(
            f"model: {name} writes in place and has no other form; it cannot stand in a graph of layers"
        )
    node.target = name[:-1] if node.op == "call_method" else plain


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the masked weights: `masks` by the weight's name in the model, as `layer.weight` or `layer`.

    Raises ArgumentError on a name without such a weight, or another shape.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():
        layer = modules.get(name.removesuffix(".weight"))
        if not isinstance(layer, Layer):
            known = ", ".join(path for path, module in modules.items() if isinstance(module, Layer))
            raise ArgumentError(f"masks: {name} names no convolution or linear layer of the model ({known})")
        if check_tensor(f"masks: {name}", mask).shape != layer.weight.shape:
            wanted = tuple(layer.weight.shape)
            raise ArgumentError(f"masks: {name} has shape {tuple(mask.shape)}, the weight {wanted}")
        weight = torch.where(mask.to(layer.weight.device) != 0, layer.weight, 0)
        layer.weight = nn.Parameter(weight, requires_grad=False)


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift `[C]` of a BatchNorm in evaluation, float64."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -scale * norm.running_mean.double()
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


def is_fixed_norm(module: nn.Module | None) -> bool:
    """Whether it is a BatchNorm with running statistics; without them it normalises by the batch even here."""
    return isinstance(module, NORMS) and module.running_mean is not None and module.running_var is not None


@torch.no_grad()
def fold_batchnorm(graph: fx.GraphModule) -> list[str]:
    """Fold each BatchNorm that alone reads a convolution or linear layer; gives the names of those folded."""
    folded = []
    for node in list(graph.graph.nodes):
        norm = module_of(graph, node)
        if not is_fixed_norm(norm) or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before = node.args[0]
        layer = module_of(graph, before)
        if not isinstance(layer, Layer) or len(before.users) != 1 or not _over_channels(layer, before):
            continue
        scale, shift = affine_of(norm)  # type: ignore[arg-type]
        bias = shift if layer.bias is None else shift + scale * layer.bias.double()
        weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
        set_parameters(layer, weight, bias)
        folded.append(str(node.target))
        bypass(graph, node, before)
    graph.recompile()
    graph.delete_all_unused_submodules()
    return folded


def _over_channels(layer: nn.Module, node: fx.Node) -> bool:
    """Whether dimension 1 of the layer's output, that BatchNorm normalises, is the layer's channels."""
    return len(shape_of(node)) == (4 if isinstance(layer, nn.Conv2d) else 2)


def is_depthwise(module: nn.Module | None) -> bool:
    """Whether each output channel of a convolution reads the input channel of the same number alone."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels == module.out_channels


def set_parameters(layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer this weight and bias in its own dtype, and channels to match (groups and kernel stay)."""
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
        return
    if is_depthwise(layer):
        layer.groups = weight.shape[0]
    layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
