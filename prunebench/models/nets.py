"""The networks that model names stand for."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from prunebench.errors import DataError, UsageError
from prunebench.models.base import Classifier, channels_last, contiguous
from prunebench.models.convnet import convnet
from prunebench.models.mobilenet import mobilenet
from prunebench.models.names import GROUP, PREFIX, PRETRAINED, ModelName, widened
from prunebench.models.resnet import cifar_resnet, find_imagenet_weights, resnet18
from prunebench.models.timm import import_timm, timm_model
from prunebench.plugins.entry_points import load_plugin
from prunebench.plugins.files import digest_of
from prunebench.plugins.plain import file_of

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


GIVEN = ("num_classes", "data_root", "width")
"""What a model of a plain file may ask for, by name."""


def identify_model(name: str, data_root: Path | None) -> str:
    """The name under which a run records its model: one for equal widths, `name:HASH` for pretrained weights.

    And for a model of a plain file, whose code it is the hash of.
    """
    model = ModelName.parse(name)
    plain = file_of(GROUP, model.base)
    if plain is not None:
        if model.base in MODELS:
            raise UsageError(f"{plain}: {model.base!r} is a model of the package; give yours another name")
        return str(replace(model, digest=digest_of(plain)))
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
        changed = "weights" if model.base == PRETRAINED else "file"
        raise DataError(
            f"the {changed} of {model.base} changed since the run was planned (the hash was {model.digest})"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.base.startswith(PREFIX):
            net = timm_model(model.base.removeprefix(PREFIX), num_classes)
        else:
            build = MODELS[model.base] if model.base in MODELS else _of_others(model.base)
            net = build(num_classes, data_root, model.width)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _of_others(name: str) -> Builder:
    """What builds the model of an installed package, or of a plain file. Raises UsageError for what cannot."""
    found = load_plugin(GROUP, name)
    path = file_of(GROUP, name)
    return found if path is None else _builder(found, f"{path}: {name}")


def _builder(function: Callable[..., object], place: str) -> Builder:
    """A file's function, called with those of `num_classes`, `data_root` and `width` that it has."""
    wanted = inspect.signature(function).parameters
    own = [key for key in wanted if key not in GIVEN and wanted[key].default is inspect.Parameter.empty]
    if own or "num_classes" not in wanted:
        raise UsageError(
            f"{place}: want the parameters num_classes and, if you like, {' and '.join(GIVEN[1:])}"
        )

    def build(num_classes: int, data_root: Path | None, width: float) -> Classifier:
        if width != 1 and "width" not in wanted:
            raise UsageError(f"{place} has no parameter `width`: leave out the @")
        given = dict(zip(GIVEN, (num_classes, data_root, width)))
        net = function(**{key: value for key, value in given.items() if key in wanted})
        if not isinstance(net, Classifier):
            kind = type(net).__name__
            raise UsageError(f"{place} gives a {kind}: want Classifier(body, num_features, num_classes)")
        return net

    return build
