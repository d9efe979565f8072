"""Pure functions of predictions, labels and groups."""

from prunebench.metrics.groups import GroupTable, group_accuracy

__all__ = ["GroupTable", "group_accuracy"]
