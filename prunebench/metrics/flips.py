"""Former place of `metrics.populations`, until its last importer has moved."""

from prunebench.metrics.populations import compression_identified_exemplars, holm, recall_change

__all__ = ["compression_identified_exemplars", "holm", "recall_change"]
