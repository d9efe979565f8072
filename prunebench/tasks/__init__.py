"""Biased data sets: one file each; `base.py` is the contract."""

from prunebench.tasks.base import Attributes, Split, Splits, Task, split_hash, splits_hash
from prunebench.tasks.registry import describe_families, resolve_task

__all__ = [
    "Attributes",
    "Split",
    "Splits",
    "Task",
    "describe_families",
    "resolve_task",
    "split_hash",
    "splits_hash",
]
