"""PruneBench: what a pruned vision model costs its minorities, and what it really gains in speed.

    import prunebench
    prunebench.run("quick", out="results/quick")
    frame = prunebench.load_results("results/quick")

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.api import load_results, run
    from prunebench.methods.api import method
    from prunebench.methods.criteria import criterion
    from prunebench.methods.experiment import Experiment, Pruned

__version__ = "0.1.0"
_HOMES = {
    "run": "prunebench.api",
    "load_results": "prunebench.api",
    "criterion": "prunebench.methods.criteria",
    "method": "prunebench.methods.api",
    "Experiment": "prunebench.methods.experiment",
    "Pruned": "prunebench.methods.experiment",
}

__all__ = ["Experiment", "Pruned", "__version__", "criterion", "load_results", "method", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prunebench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
