"""`timm:NAME`: any image model of the timm library with a pooled feature vector, from random weights."""

from __future__ import annotations

from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.models.base import Classifier

SHOWN = 200
"""Names of timm that a suggestion is sought among, beginning as the one asked for."""


def timm_model(name: str, num_classes: int) -> Classifier:
    """The network that timm calls `name`, untrained. Raises UsageError without the extra or for an unknown name."""
    timm = import_timm()
    if name not in timm.list_models():
        raise unknown("timm model", name, timm.list_models(f"{name[:3]}*")[:SHOWN] or ["resnet18"])
    body = timm.create_model(name, pretrained=False, num_classes=0)
    features = getattr(body, "head_hidden_size", None) or body.num_features
    return Classifier(body, features, num_classes)


def import_timm() -> Any:
    """The library. Raises UsageError naming the extra."""
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            "models of timm need the extra `timm`: pip install 'prunebench[timm]' (uv sync --extra timm)"
        ) from error
    return timm
