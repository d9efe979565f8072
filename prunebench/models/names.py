"""Model names: `resnet8`, `resnet8@0.5` (half as wide), `timm:NAME`; known without importing torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunebench.errors import UsageError, unknown
from prunebench.plugins.entry_points import plugin_names
from prunebench.plugins.plain import VARIABLE
from prunebench.results.spec import number_text

GROUP = "prunebench.models"
"""Of entry points: a package declares `name = "module:function"` in it, a `nets.Builder`."""
PREFIX = "timm:"
PRETRAINED = "resnet18-pretrained"
NARROWEST, WIDEST = 0.01, 16.0
BASES = (
    "convnet", "convnet-small", "resnet8", "resnet20", "resnet18", "resnet18-imagenet", "mobilenet",
    "mobilenet-imagenet", PRETRAINED,
)  # fmt: skip
"""What `nets.MODELS` builds."""


@dataclass(frozen=True)
class ModelName:
    """The parts of a model's name: `base`, `@width`, `:digest` of pretrained weights to start from, or of its file.

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
        if base not in BASES and base not in plugin_names(GROUP):
            error = unknown("model", base, [*BASES, *plugin_names(GROUP), f"{PREFIX}NAME"])
            hint = f"; of your own file? {VARIABLE}=my_net.py prunebench ..." if digest else ""
            raise UsageError(f"{error}{hint}")
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
