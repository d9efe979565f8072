"""Former place of `metrics.predictability`, until its last importer has moved."""

from prunebench.metrics.populations import bias_variance
from prunebench.metrics.predictability import bootstrap_area, rank_correlation, spearman
from prunebench.metrics.predictability import evaluate_predictability as evaluate_susceptibility
from prunebench.metrics.predictability import margin_uncertainty as susceptibility

__all__ = [
    "bias_variance",
    "bootstrap_area",
    "evaluate_susceptibility",
    "rank_correlation",
    "spearman",
    "susceptibility",
]
