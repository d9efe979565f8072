"""Model names: `resnet8`, `resnet8@0.5` (half as wide), `timm:NAME`; and the networks that they stand for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from prunebench.errors import DataError, UsageError, unknown
from prunebench.models.base import Classifier, channels_last, contiguous
from prunebench.models.convnet import convnet
from prunebench.models.mobilenet import mobilenet
from prunebench.models.resnet import cifar_resnet, find_imagenet_weights, resnet18
from prunebench.models.timm import PREFIX, import_timm, timm_model
from prunebench.results.spec import number_text

__all__ = [
    "MODELS", "Classifier", "ModelName", "build_model", "channels_last", "contiguous", "identify_model", "widened",
]  # fmt: skip

PRETRAINED = "resnet18-pretrained"
NARROWEST, WIDEST = 0.01, 16.0
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


@dataclass(frozen=True)
class ModelName:
    """The parts of a model's name: `base`, `@width`, `:digest` of pretrained weights to start from.

    `outside` is the hash of a checkpoint that stands for the dense model (`resnet8+0123456789ab`): what `build_model`
    makes is the network untrained.
    """

    base: str
    width: float = 1.0
    digest: str = ""
    outside: str = ""

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Raises UsageError, with a suggestion, for a name that stands for no model."""
        known, _, outside = name.partition("+")
        if known.startswith(PREFIX):
            return cls(known, outside=outside)
        stem, _, digest = known.partition(":")
        base, at, width = stem.partition("@")
        if base not in MODELS:
            raise unknown("model", base, [*MODELS, f"{PREFIX}NAME"])
        return cls(base, _read_width(name, width) if at else 1.0, digest, outside)

    def __str__(self) -> str:
        width = "" if self.width == 1 else f"@{number_text(self.width)}"
        return f"{self.base}{width}{self.digest and f':{self.digest}'}{self.outside and f'+{self.outside}'}"


def _read_width(name: str, text: str) -> float:
    width = float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,17})?|\.[0-9]{1,17}", text) else 0.0
    if not NARROWEST <= width <= WIDEST:
        raise UsageError(
            f"model {name!r}: the width behind the @ must be a number from {NARROWEST:g} to {WIDEST:g}, "
            "say resnet8@0.5 for half the channels"
        )
    if name.startswith(PRETRAINED) and width != 1:
        raise UsageError(f"model {name!r}: pretrained weights fit one width; use resnet18-imagenet@{text}")
    return width


def widened(name: str, factor: float) -> str:
    """The name of a model with its channels times `factor`: `resnet8` and 0.5 give `resnet8@0.5`."""
    model = ModelName.parse(name)
    if model.base.startswith(PREFIX):
        raise UsageError(f"model {name!r} cannot be scaled: timm's widths are part of its names")
    return str(ModelName.parse(str(ModelName(model.base, model.width * factor))))


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
            net = MODELS[model.base](num_classes, data_root, model.width)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
