"""Biased data sets: one file each; `base.py` is the contract."""

from prunebench.tasks.base import Attributes, Split, Splits, Task, splits_hash
from prunebench.tasks.catalog import describe_families, resolve_task

__all__ = ["Attributes", "Split", "Splits", "Task", "describe_families", "resolve_task", "splits_hash"]
