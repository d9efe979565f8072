"""Biased data sets: one file each; `base.py` is the contract. Names are known without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.tasks.registry import describe_families, find_family, resolve_task

if TYPE_CHECKING:
    from prunebench.tasks.base import Attributes, Split, Splits, Task, split_hash, splits_hash

__all__ = [
    "Attributes",
    "Split",
    "Splits",
    "Task",
    "describe_families",
    "find_family",
    "resolve_task",
    "split_hash",
    "splits_hash",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prunebench.tasks import base

    return getattr(base, name)
