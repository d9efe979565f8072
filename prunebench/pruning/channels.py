"""Channels of a network: which can be removed by themselves, and which BatchNorm follows a convolution.

A convolution's output channels can go where layers that mix channels alone read them: through BatchNorm, activations,
pooling, depthwise convolutions and flattening. Channels that a residual sum adds, or that an unknown operation reads,
stay: of a residual block the inner ones go, as in Li et al. (2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunebench.errors import UsageError
from prunebench.pruning.wrapped import bare_network

PASSING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity, nn.Dropout, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
)  # fmt: skip
"""Modules whose output channels are their input channels."""
PASSING_FUNCTIONS = {functional.relu, torch.relu, functional.relu6, functional.silu, torch.flatten}


@dataclass(frozen=True)
class FreeChannels:
    """The output channels of `layer`, the layers that hold values of each, and those that read them."""

    layer: str
    beside: tuple[str, ...]
    readers: tuple[str, ...]


def free_channels(model: nn.Module) -> list[FreeChannels]:
    """The layers of a network whose output channels can be removed. Raises UsageError where it cannot be traced."""
    net = bare_network(model)
    try:
        graph = fx.symbolic_trace(net).graph
    except Exception as error:
        raise UsageError(
            f"channels cannot be removed from a network that torch.fx cannot trace: {error}"
        ) from error
    modules = dict(net.named_modules())
    found = []
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            beside: list[str] = []
            readers: list[str] = []
            if _follow(node, modules, beside, readers) and readers:
                found.append(FreeChannels(str(node.target), tuple(beside), tuple(readers)))
    return found


def _follow(node: fx.Node, modules: Mapping[str, nn.Module], beside: list[str], readers: list[str]) -> bool:
    """Whether all that reads a node's channels is known; collects the layers on the way."""
    for user in node.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        name = str(user.target)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            readers.append(name)
            continue
        depthwise = (
            isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
        )
        if depthwise or isinstance(module, nn.BatchNorm2d):
            beside.append(name)
        elif not (isinstance(module, PASSING) or user.target in PASSING_FUNCTIONS):
            return False
        if not _follow(user, modules, beside, readers):
            return False
    return True


def norms_behind(model: nn.Module) -> dict[str, str]:
    """The BatchNorm that alone reads a convolution, by the name of the convolution's weight; empty if not traceable."""
    net = bare_network(model)
    try:
        graph = fx.symbolic_trace(net).graph
    except Exception:  # whatever a user's network does: nothing is then known of it
        return {}
    modules, found = dict(net.named_modules()), {}
    for node in graph.nodes:
        users = list(node.users)
        if (
            node.op == "call_module"
            and isinstance(modules.get(str(node.target)), nn.Conv2d)
            and len(users) == 1
        ):
            reader = modules.get(str(users[0].target)) if users[0].op == "call_module" else None
            if isinstance(reader, nn.BatchNorm2d) and reader.affine:
                found[f"{node.target}.weight"] = str(users[0].target)
    return found


def with_norms(masks: Mapping[str, Tensor], norms: Mapping[str, str]) -> dict[str, Tensor]:
    """Masks, and those of the weight and bias of each BatchNorm behind a filter that its mask empties."""
    found = dict(masks)
    for name, norm in norms.items():
        if name in masks:
            alive = masks[name].flatten(1).any(1)
            found |= {f"{norm}.weight": alive, f"{norm}.bias": alive}
    return found
