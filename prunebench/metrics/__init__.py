"""Pure functions of predictions, labels and groups."""

from prunebench.metrics.groups import GroupTable, group_accuracy, group_tables

__all__ = ["GroupTable", "group_accuracy", "group_tables"]
