"""Pure functions of predictions, labels and groups.

N samples, K binary attributes, C classes, M models. Arrays are torch tensors, NumPy of any layout and width, or columns
of pandas and polars; tensors come back where a tensor was given, NumPy where none was. Undefined values are nan, wrong
arguments raise MetricError. Where labels are an argument, class indices `[N]` with class logits `[N, C]` stand
for one-vs-rest columns; where they are not, give `one_vs_rest(logits)` and `one_hot(labels, C)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunebench.metrics.attributes import AttributeTable, attribute_table
    from prunebench.metrics.bias import (
        BiasAmplification,
        DirectionalBiasAmplification,
        bias_amplification,
        directional_bias_amplification,
    )
    from prunebench.metrics.calibration import (
        area_under_curve,
        calibrated_thresholds,
        class_offsets,
        expected_calibration_error,
        rare_value_underprediction,
    )
    from prunebench.metrics.classes import one_hot, one_vs_rest
    from prunebench.metrics.dependence import interdependence, mean_absolute_correlation, output_correlation
    from prunebench.metrics.evaluated import summarize_runs
    from prunebench.metrics.groups import GroupTable, group_accuracy, group_tables
    from prunebench.metrics.populations import (
        BiasVariance,
        Disagreement,
        Exemplars,
        RecallChange,
        bias_variance,
        compression_identified_exemplars,
        expected_disagreement,
        holm,
        recall_change,
    )
    from prunebench.metrics.predictability import (
        Predictability,
        RankCorrelation,
        bias_risk,
        bias_risks,
        evaluate_predictability,
        margin_uncertainty,
        rank_correlation,
    )
    from prunebench.metrics.uncertainty import entropy, margin, uncertain_share, uncertainty_summaries

_MODULES = (
    "attributes",
    "bias",
    "calibration",
    "classes",
    "dependence",
    "evaluated",
    "groups",
    "populations",
    "predictability",
    "uncertainty",
)
_FORMER = {"evaluate_susceptibility": "evaluate_predictability", "susceptibility": "margin_uncertainty"}

__all__ = [
    "AttributeTable",
    "BiasAmplification",
    "BiasVariance",
    "DirectionalBiasAmplification",
    "Disagreement",
    "Exemplars",
    "GroupTable",
    "Predictability",
    "RankCorrelation",
    "RecallChange",
    "area_under_curve",
    "attribute_table",
    "bias_amplification",
    "bias_risk",
    "bias_risks",
    "bias_variance",
    "calibrated_thresholds",
    "class_offsets",
    "compression_identified_exemplars",
    "directional_bias_amplification",
    "entropy",
    "evaluate_predictability",
    "expected_calibration_error",
    "expected_disagreement",
    "group_accuracy",
    "group_tables",
    "holm",
    "interdependence",
    "margin",
    "margin_uncertainty",
    "mean_absolute_correlation",
    "one_hot",
    "one_vs_rest",
    "output_correlation",
    "rank_correlation",
    "rare_value_underprediction",
    "recall_change",
    "summarize_runs",
    "uncertain_share",
    "uncertainty_summaries",
]


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name in __all__:  # not at import: torch takes seconds, and names and titles need none
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
