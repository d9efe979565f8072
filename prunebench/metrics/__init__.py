"""Pure functions of predictions, labels and groups."""

from prunebench.metrics.groups import GroupTable, group_accuracy, group_tables
from prunebench.metrics.summary import summarize_runs

__all__ = ["GroupTable", "group_accuracy", "group_tables", "summarize_runs"]
