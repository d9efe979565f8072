"""Biased data sets: one file each; `base.py` is the contract."""

from prunebench.tasks.base import Split, Splits, Task, splits_hash
from prunebench.tasks.catalog import describe_families, resolve_task

__all__ = ["Split", "Splits", "Task", "describe_families", "resolve_task", "splits_hash"]
