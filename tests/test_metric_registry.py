"""The registry of a record's metrics: what it holds, refuses, and costs to import."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from prunebench.errors import UsageError
from prunebench.metrics.registry import Metric, metric, metric_named, metric_or_plain, metrics, metrics_in


def test_names_are_those_of_records() -> None:
    assert [entry.name for entry in metrics()] == [
        "plain", "unbiased", "aligned", "conflicting", "worst_group", "bias_gap", "train_weighted",
        "attribute_accuracy", "bias_amplification", "calibrated_bias_amplification", "underprediction",
        "uncertain_share", "calibration_error", "interdependence", "area_under_curve",
        "entropy", "confidence", "margin", "negative_log_likelihood", "logit_correlation",
    ]  # fmt: skip


def test_metadata_needs_no_torch() -> None:
    code = "import sys; from prunebench.metrics.registry import metrics; metrics(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_a_metric_is_its_function_and_shows_itself() -> None:
    gap = metric_named("bias_gap")
    assert (gap.scale, gap.decimals, gap.title_with_unit, gap.range) == (100, 1, "Bias gap, points", (-1, 1))
    assert metric_named("entropy").scale == 1
    assert metric_named("logit_correlation")(0.25) == 0.25
    assert metric_or_plain("made_up") == metric_or_plain("made_up")
    assert metric_or_plain("made_up").title == "Made up"
    with pytest.raises(UsageError, match="did you mean worst_group"):
        metric_named("worst_grup")


def test_what_is_refused() -> None:
    def of(prediction: object) -> float:
        return float(prediction is None)

    made = metric("made", title="Made", help="Made up", cite="none")(of)
    assert made.needs == ("prediction",)
    assert metric("made", title="Made", help="Made up", cite="none", needs=("logits",))(of).needs == (
        "logits",
    )
    with pytest.raises(UsageError, match="unknown need of metric made 'predicted'"):
        metric("made", title="Made", help="Made up", cite="none", needs=("predicted",))(of)
    for fields in ({"name": "Made"}, {"title": " "}, {"help": ""}, {"cite": "a\nb"}):
        with pytest.raises(UsageError, match=r"metric '[Mm]ade'"):
            metric(**{"name": "made", "title": "Made", "help": "Made up", "cite": "none"} | fields)


def test_a_module_has_its_own_metrics_alone() -> None:
    module = ModuleType("prunebench.metrics.recorded.other")
    module.__dict__["borrowed"] = metric_named("plain")
    assert metrics_in(module) == []
    assert all(isinstance(entry, Metric) and entry.title and entry.help and entry.cite for entry in metrics())
