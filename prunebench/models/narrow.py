"""Networks with layers as narrow as given weights: what structured pruning leaves, built from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError
from prunebench.models.base import Classifier


def narrowed(net: Classifier, state: Mapping[str, Tensor]) -> Classifier:
    """The network, in place, with every convolution, linear layer and BatchNorm of the channels that `state` has.

    It keeps its memory format. Weights whose shape agrees are left alone, and none is loaded. Depthwise convolutions
    stay so; other grouped ones keep their number of groups. Modules that follow their neighbours' channels have a
    method `follow_channels`.

    Args:
        net: a network of the task.
        state: weights and buffers by name, no larger in any dimension.

    Raises:
        MaskError: a weight is not there, larger, or of a layer that cannot be narrowed.
    """
    own = net.state_dict()
    for name, value in own.items():
        if name not in state:
            raise MaskError(f"{name}: the network lacks it; a narrow network has every layer of the task's")
        shape = tuple(state[name].shape)
        if len(shape) != value.ndim or any(new > old for new, old in zip(shape, value.shape)):
            raise MaskError(f"{name}: shape {shape} is no part of the task's network's, {tuple(value.shape)}")
    for name, module in net.named_modules():
        held = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        shapes = {key: tuple(state[f"{name}.{key}" if name else key].shape) for key in held}
        if any(shapes[key] != tuple(value.shape) for key, value in held.items()):
            _resize(name, module, shapes)
    for module in net.modules():
        if callable(follow := getattr(module, "follow_channels", None)):
            follow()
    return net


def _resize(name: str, module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give a layer new channels; what it holds is empty then."""
    if isinstance(module, nn.Conv2d) and shapes["weight"][2:] == tuple(module.weight.shape[2:]):
        module.out_channels, inner = shapes["weight"][:2]
        if module.groups > 1 and module.weight.shape[1] == 1:
            module.groups = module.out_channels
        module.in_channels = inner * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shapes["weight"]
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = shapes["weight"][0]
    else:
        raise MaskError(f"{name}: a {type(module).__name__} cannot be narrowed so")
    for key, shape in shapes.items():
        held = getattr(module, key)
        empty = _empty_like(held, shape)
        setattr(module, key, nn.Parameter(empty) if isinstance(held, nn.Parameter) else empty)


def _empty_like(held: Tensor, shape: tuple[int, ...]) -> Tensor:
    last = (
        held.ndim == 4 and not held.is_contiguous() and held.is_contiguous(memory_format=torch.channels_last)
    )
    empty = held.detach().new_empty(shape)
    return empty.to(memory_format=torch.channels_last) if last else empty
