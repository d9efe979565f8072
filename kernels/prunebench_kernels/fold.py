"""A model as a graph of its layers, in evaluation mode, with masks, parametrisations and BatchNorm folded into weights.

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
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from prunebench_kernels.dispatch import ArgumentError, check_tensor

Layer = nn.Conv2d | nn.Linear
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
WEIGHT_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Hooks that compute a weight before the forward pass, as torch did before parametrisations: folded like these."""
LARGEST_DIFFERENCE = 1e-3
"""Between the outputs of a model and of its graph, as a share of the largest: both call the same operations, but a
GPU may take another algorithm."""
PART = 1 << 22
"""Weights that are computed with in float64 at a time: a copy of a wide layer would take twice its memory."""


class TracingError(ArgumentError):
    """The model's forward pass cannot be written as a graph of its layers; the message names the module."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is a layer of torch's own: not torch.ao's, nor one with a method replaced on the object."""
        replaced = any(callable(getattr(type(m), name, None)) for name in vars(m))
        ours = type(m).__module__.startswith("torch.nn.") and not replaced
        return ours and super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, example: Tensor, masks: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """A copy of the model, masked and in evaluation mode, as a graph; the model itself is left as it is.

    Parametrised weights become plain ones, in-place operations plain operations, a layer that is called twice two;
    what does nothing in evaluation goes. `example` is an input `[N, C, H, W]`; every node learns its shape for one
    sample. Raises TracingError naming the module whose forward pass depends on the values of tensors or that has a
    hook, or if the graph does not compute what the model does, ArgumentError on an example that does not fit.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    _refuse_what_would_be_lost(model)
    model = _copy(model)
    _fold_parametrisations(model)
    apply_masks(model, masks or {})
    tracer = _Tracer()
    try:
        traced = fx.GraphModule(model, tracer.trace(model))
    except Exception as error:  # whatever a forward pass does with a proxy
        path, kind = next(reversed(tracer.module_stack.values()), ("", type(model)))
        where = f"{path} ({kind.__name__})" if path else kind.__name__
        reason = f"cannot be traced by torch.fx ({type(error).__name__}: {error})"
        raise TracingError(f"model: {where} {reason}") from error
    _write_alike(traced)
    _separate_shared_layers(traced)
    _drop_identities(traced)
    _leave_values_alone(traced)
    traced.graph.lint()
    traced.recompile()
    try:
        found = _Shapes(traced).run(example[:1])
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ArgumentError(f"example: the model does not take {tuple(example.shape)} ({reason})") from error
    _check_outputs(model, example[:1].clone(), found)
    _flatten_any_width(traced)
    return traced


def twin(graph: fx.GraphModule, *shared: object) -> fx.GraphModule:
    """A copy with layers of its own, and the same tensors and `shared` objects in them."""
    tensors: dict[int, object] = {id(value): value for value in graph.buffers()}
    tensors |= {id(value): nn.Parameter(value.detach(), value.requires_grad) for value in graph.parameters()}
    return copy.deepcopy(graph, tensors | {id(value): value for value in shared})


# --- before tracing ------------------------------------------------------------------------------------------


def _refuse_what_would_be_lost(model: nn.Module) -> None:
    """Raise TracingError on what a graph of layers does not hold: hooks, a replaced forward pass, compiled code."""
    without = "which a graph of layers cannot keep: remove it, or do its work in the forward pass of a module"
    for hook in (
        *torch_module._global_forward_pre_hooks.values(),
        *torch_module._global_forward_hooks.values(),
    ):
        raise TracingError(f"model: every module has the global forward hook {_title(hook)}, {without}")
    for path, module in model.named_modules():
        where = f"{path} ({type(module).__name__})" if path else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TracingError(f"model: {where} is a ScriptModule; give the module that it was made from")
        hooks = {"forward pre-hook": module._forward_pre_hooks, "forward hook": module._forward_hooks}
        for kind, hook in ((kind, hook) for kind, found in hooks.items() for hook in found.values()):
            if not isinstance(hook, WEIGHT_HOOKS):
                raise TracingError(f"model: {where} has the {kind} {_title(hook)}, {without}")
    if "forward" in vars(model):
        raise TracingError(
            f"model: {type(model).__name__}.forward was replaced on the object; subclass it instead"
        )
    for name in (*model._modules, *model._parameters, *model._buffers):
        if hasattr(fx.GraphModule, name) or name in ("_graph", "_code", "meta"):
            raise TracingError(
                f"model: torch.fx keeps the name {name} of its attribute for itself; rename it"
            )


def _title(hook: object) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy for inference, without the history that a hook or a forward pass left on a module's tensors."""
    left = [v for module in model.modules() for v in vars(module).values() if isinstance(v, Tensor)]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in left if not value.is_leaf}
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module holds: locks, files, tensors with a history in lists
        raise TracingError(f"model: cannot be copied ({type(error).__name__}: {error})") from error
    for module in copied.modules():
        module._backward_hooks.clear()  # which would ask a proxy for its gradient
        module._backward_pre_hooks.clear()
    return copied.eval().requires_grad_(False)


@torch.no_grad()
def _fold_parametrisations(model: nn.Module) -> None:
    """Replace weights that are computed at every access or forward pass by what they are in evaluation.

    Raises TracingError where that is not always the same.
    """
    computed = [
        (f"{path}.{name}", module, [getattr(module, name).detach().clone() for _ in range(2)])
        for path, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for name in module.parametrizations  # type: ignore[union-attr]
    ]
    for path, module, (value, again) in computed:  # all were computed: one may read the weights of another
        if not torch.allclose(value, again, equal_nan=True):
            raise TracingError(f"model: the parametrisation of {path} draws random numbers in evaluation")
        # By hand: torch's own function takes the property from the class, which the user's module shares.
        module.__class__ = parametrize.type_before_parametrizations(module)
        module._modules.pop("parametrizations", None)
        module._parameters[path.rpartition(".")[2]] = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    model.requires_grad_(False)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the masked weights, in place: `masks` by the weight's name in the model, as `layer.weight` or `layer`.

    A tensor with several names is masked under all. Raises ArgumentError on a name without such a weight, another
    shape, or masks of one tensor that differ.
    """
    if not isinstance(masks, Mapping):
        raise ArgumentError(f"masks: want masks by the weights' names, got {type(masks).__name__}")
    weights = {
        name: value for name, value in model.named_parameters(remove_duplicate=False) if value.ndim > 1
    }
    applied: dict[int, str] = {}
    for name, given in masks.items():
        path = name.removeprefix("_orig_mod.")
        weight = weights.get(path, weights.get(f"{path}.weight"))
        if weight is None:
            raise ArgumentError(f"masks: {name} names no weight of the model ({', '.join(weights)})")
        if check_tensor(f"masks: {name}", given).shape != weight.shape:
            raise ArgumentError(
                f"masks: {name} has shape {tuple(given.shape)}, the weight {tuple(weight.shape)}"
            )
        other = applied.setdefault(id(weight), name)
        if not torch.equal(given != 0, masks[other].to(given.device) != 0):
            raise ArgumentError(
                f"masks: {other} and {name} are one tensor in the model, and their masks differ"
            )
        weight.masked_fill_(given.to(weight.device) == 0, 0)


# --- the graph -----------------------------------------------------------------------------------------------


@torch.no_grad()
def _check_outputs(model: nn.Module, x: Tensor, found: object) -> None:
    """Raise TracingError unless the model's outputs are those of its graph. `x` may be written to."""
    try:
        wanted = model(x)
    except Exception:  # such as a `view` that wants another memory format, where the graph takes any
        return
    pairs = list(zip(_tensors(found), _tensors(wanted)))
    if len(_tensors(found)) != len(_tensors(wanted)) or not all(_agree(*pair) for pair in pairs):
        raise TracingError(
            "model: its graph computes something else; does it write to a tensor that it reads by another name, "
            "as with `+=`, or draw random numbers?"
        )


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same; not finite ones count as the same."""
    return one.shape == other.shape and not bool(
        (one - other).abs().max() > LARGEST_DIFFERENCE * other.abs().max()
    )


def _tensors(values: Any) -> list[Tensor]:
    found: list[object] = []
    fx.node.map_aggregate(values, found.append)
    return [value.double() for value in found if isinstance(value, Tensor) and value.numel()]


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


def _write_alike(graph: fx.GraphModule) -> None:
    """One form for calls that mean the same: `layer(input=x)` is `layer(x)`, and `f(x, out=None)` is `f(x)`.

    `view` becomes `reshape`: layouts decide between NCHW and channels_last, and a view works for one of them.
    """
    for node in graph.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        kwargs = dict(node.kwargs)
        if kwargs.get("out", 0) is None:
            del kwargs["out"]
        if "out" in kwargs:
            raise TracingError(
                f"model: {_name_of(node)} writes to `out`, which a graph of layers cannot; leave it away"
            )
        if node.op == "call_module" and not node.args and "input" in kwargs:
            node.args = (kwargs.pop("input"),)
        node.kwargs = kwargs
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[-1], torch.dtype):
            node.target = "reshape"


def _separate_shared_layers(graph: fx.GraphModule) -> None:
    """A layer called twice becomes two; a weight that functions read beside its layer becomes their own."""
    called: set[str] = set()
    for node in graph.graph.nodes:
        if isinstance(module_of(graph, node), Layer | nn.modules.batchnorm._BatchNorm):
            name = str(node.target)
            if name in called:
                node.target = _free_name(graph, name)
                graph.add_submodule(node.target, copy.deepcopy(graph.get_submodule(name)))
            called.add(str(node.target))
    for node in graph.graph.nodes:
        owner, _, leaf = str(node.target).rpartition(".")
        if node.op == "get_attr" and owner in called:
            value = getattr(graph.get_submodule(owner), leaf)
            node.target = _free_name(graph, f"{owner}_{leaf}".replace(".", "_"))
            graph.register_buffer(node.target, value.detach())


def _free_name(graph: fx.GraphModule, name: str) -> str:
    taken = {*dir(graph), *(path for path, _ in graph.named_modules())}
    return next(free for index in range(2, 10_000) if (free := f"{name}_{index}") not in taken)


def _drop_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        dropout = node.target in (functional.dropout, functional.dropout2d) and bool(node.args)
        if isinstance(module_of(graph, node), IDENTITIES) or (dropout and not _trains(node)):
            bypass(graph, node, node.args[0])


def _trains(node: fx.Node) -> bool:
    """Whether a traced dropout is active: `training` was read from the module, which is in evaluation mode."""
    return bool(node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True))


def _leave_values_alone(graph: fx.GraphModule) -> None:
    """Replace in-place operations; later readers of the changed value read the operation's result."""
    order = {node: position for position, node in enumerate(graph.graph.nodes)}
    for node in [node for node in graph.graph.nodes if _writes_its_input(graph, node)]:
        _make_plain(node)
        changed = node.args[0]
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
    for name, module in list(graph.named_modules(remove_duplicate=False)):
        if getattr(module, "inplace", False):
            plain = copy.copy(module)
            plain.inplace = False  # type: ignore[assignment]
            replace_module(graph, name, plain)


def _writes_its_input(graph: fx.GraphModule, node: fx.Node) -> bool:
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


def _make_plain(node: fx.Node) -> None:
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


def _flatten_any_width(graph: fx.GraphModule) -> None:
    """Flatten without a written-out number of features, which may change."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and is_flat(node, None):
            node.op, node.target, node.args, node.kwargs = (
                "call_function",
                torch.flatten,
                (node.args[0], 1),
                {},
            )
    graph.graph.eliminate_dead_code()
    graph.recompile()


def is_flat(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it flattens `[N, C, H, W]` to `[N, C * H * W]` for any N."""
    shape, flat = shape_of(node.args[0] if node.args else None), shape_of(node)
    if len(shape) != 4 or flat != (shape[0], shape[1] * shape[2] * shape[3]):
        return False
    if node.op == "call_module":
        return isinstance(module, nn.Flatten)
    if node.target in (torch.flatten, "flatten"):
        return bool(node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0) == 1)
    samples = node.args[1] if node.target == "reshape" else 0
    return isinstance(samples, fx.Node) or bool(samples == -1)


# --- BatchNorm -----------------------------------------------------------------------------------------------


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
        set_parameters(layer, _scaled(layer.weight, scale), bias)
        folded.append(str(node.target))
        bypass(graph, node, before)
    graph.recompile()
    graph.delete_all_unused_submodules()
    return folded


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """scale * weight by output channel, computed in float64, some rows at a time."""
    scaled, rows = torch.empty_like(weight), max(1, PART // weight[0].numel())
    for part, factor, into in zip(weight.split(rows), scale.split(rows), scaled.split(rows)):
        into.copy_(part.double() * factor.view(-1, *[1] * (weight.ndim - 1)))
    return scaled


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
