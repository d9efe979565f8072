"""The networks: each gives penultimate features and logits. Names are known without importing torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.models.base import Classifier
    from prunebench.models.names import widened
    from prunebench.models.narrow import narrowed
    from prunebench.models.nets import MODELS, build_model, identify_model

_HOMES = {
    "MODELS": "nets", "Classifier": "base", "build_model": "nets", "identify_model": "nets", "narrowed": "narrow",
    "widened": "names",
}  # fmt: skip

__all__ = ["MODELS", "Classifier", "build_model", "identify_model", "narrowed", "widened"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
