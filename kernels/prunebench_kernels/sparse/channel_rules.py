"""What a node of a traced network does with channels: leaves them, pools them, flattens them, or mixes them."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench_kernels.sparse.fold import shape_of

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
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and plain_padding(module)
        and len(shape_of(before)) == 4
    )


def plain_padding(module: nn.Module | None) -> bool:
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
    if module is not None:
        result = module(values)
    elif node.op == "call_method" and node.target == "contiguous":
        result = values  # of any memory format, which values of channels do not have
    elif node.op == "call_method":
        result = getattr(values, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        result = node.target(values, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return torch.where(values.isnan(), torch.nan, result)


def zeros_only(values: Tensor) -> Tensor:
    return torch.where(values == 0, 0.0, torch.nan)


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


def is_flat(node: fx.Node, module: nn.Module | None, before: fx.Node) -> bool:
    """Whether it flattens `[N, C, H, W]` to `[N, C * H * W]` for any N."""
    shape, flat = shape_of(before), shape_of(node)
    if len(shape) != 4 or flat != (shape[0], shape[1] * shape[2] * shape[3]):
        return False
    if node.op == "call_module":
        return isinstance(module, nn.Flatten)
    if node.target in (torch.flatten, "flatten"):
        return bool(node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0) == 1)
    samples = node.args[1] if node.target == "reshape" else 0
    return isinstance(samples, fx.Node) or bool(samples == -1)


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
