"""The networks that model names stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from prunebench.errors import DataError
from prunebench.models.base import Classifier, channels_last, contiguous
from prunebench.models.convnet import convnet
from prunebench.models.mobilenet import mobilenet
from prunebench.models.names import GROUP, PREFIX, PRETRAINED, ModelName, widened
from prunebench.models.resnet import cifar_resnet, find_imagenet_weights, resnet18
from prunebench.models.timm import import_timm, timm_model
from prunebench.plugins.entry_points import load_plugin

__all__ = [
    "MODELS", "Classifier", "ModelName", "build_model", "channels_last", "contiguous", "identify_model", "widened",
]  # fmt: skip

Builder = Callable[[int, "Path | None", float], Classifier]
MODELS: dict[str, Builder] = {
    "convnet": lambda classes, _, width: convnet((64, 128, 256), classes, width),
    "convnet-small": lambda classes, _, width: convnet((32, 64, 128), classes, width),
    "resnet8": lambda classes, _, width: cifar_resnet(8, classes, width),
    "resnet20": lambda classes, _, width: cifar_resnet(20, classes, width),
    "resnet18": lambda classes, _, width: resnet18(classes, cifar_stem=True, width=width),
    "resnet18-imagenet": lambda classes, _, width: resnet18(classes, cifar_stem=False, width=width),
    "mobilenet": lambda classes, _, width: mobilenet(classes, cifar_stem=True, width=width),
    "mobilenet-imagenet": lambda classes, _, width: mobilenet(classes, cifar_stem=False, width=width),
    PRETRAINED: lambda classes, data_root, _: resnet18(
        classes, cifar_stem=False, weights=find_imagenet_weights(data_root)
    ),
}


def identify_model(name: str, data_root: Path | None) -> str:
    """The name under which a run records its model: one for equal widths, and `name:HASH` for pretrained weights."""
    model = ModelName.parse(name)
    if model.base != PRETRAINED:
        if model.base.startswith(PREFIX):
            import_timm()
        return str(model)
    digest = hashlib.sha256(find_imagenet_weights(data_root).read_bytes()).hexdigest()[:12]
    return f"{PRETRAINED}:{digest}"


def build_model(name: str, num_classes: int, *, seed: int, data_root: Path | None = None) -> Classifier:
    """The network `name`, initialised from `seed` alone (and pretrained weights), channels_last, on the CPU."""
    model = ModelName.parse(name)
    if model.digest and identify_model(model.base, data_root) != f"{model.base}:{model.digest}":
        raise DataError(
            f"the weights of {model.base} changed since the run was planned (their hash was {model.digest})"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.base.startswith(PREFIX):
            net = timm_model(model.base.removeprefix(PREFIX), num_classes)
        else:
            build = MODELS[model.base] if model.base in MODELS else load_plugin(GROUP, model.base)
            net = build(num_classes, data_root, model.width)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
