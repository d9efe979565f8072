"""Own models and metrics of plain files, as the command line names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def use_own(model: str | None, metrics: Sequence[Path] = ()) -> str | None:
    """The model's name, its file or those of metrics standing for a package from now on. Raises UsageError."""
    from prunebench.plugins.plain import use_metrics, use_model

    for path in metrics:
        use_metrics(path)
    if metrics:
        from prunebench.metrics.registry import metrics as known

        known.cache_clear()
    return None if model is None else use_model(model)
