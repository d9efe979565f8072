"""Which still figures an analysis has, and what their captions say."""

from __future__ import annotations

from dataclasses import dataclass

from prunebench.analysis.looks import heat_measure, lead_measures
from prunebench.analysis.values import Measure, TaskAnalysis

BACKGROUND = "Grey band: the dense model with its interval. Thin grey: the other methods."
SCATTER, HEAT, EXEMPLARS, FORETELLING, SPLITS = "scatter", "attributes", "exemplars", "foretelling", "splits"


@dataclass(frozen=True)
class Still:
    """A still figure: the part of the page it stands in, its file `figures/<slug>-<name>.png`, and its caption."""

    part: str
    name: str
    caption: str


def stills_of(analysis: TaskAnalysis) -> list[Still]:
    """Those that have anything to draw."""
    found = [
        Still("sparsity", measure.key, f"{measure.title} against sparsity. {measure.help}. {BACKGROUND}")
        for measure in lead_measures(analysis)
        if drawable(analysis, measure)
    ]
    if scatter_pairs(analysis):
        found.append(
            Still(
                "together",
                SCATTER,
                "Bias against uncertainty and dependence. A mark is a cell: mean over seeds.",
            )
        )
    heat = heat_measure(analysis)
    if heat is not None and any(row.values.get(heat.key) is not None for row in analysis.attributes):
        caption = f"Change of {heat.title.lower()} from the dense model. {heat.help}."
        found.append(Still("attributes", HEAT, caption))
    if any(row.share is not None for row in analysis.exemplars):
        caption = "Share of exemplars against sparsity, and what other seeds alone would give."
        found.append(Still("exemplars", EXEMPLARS, caption))
    if any(row.area_under_curve.mean is not None for row in analysis.sample_foretelling):
        caption = (
            "How well the dense models' uncertainty ranks the samples that pruning changed. 0.5 is guessing."
        )
        found.append(Still("foretelling", FORETELLING, caption))
    if any(row.bias_squared is not None and row.variance is not None for row in analysis.splits):
        caption = "Squared loss over seeds, in bias squared and variance; the dense model first."
        found.append(Still("splits", SPLITS, caption))
    return found


def drawable(analysis: TaskAnalysis, measure: Measure) -> bool:
    """Whether any pruned cell has a value."""
    estimates = (cell.values.get(measure.key) for cell in analysis.cells if not cell.dense)
    return any(estimate is not None and estimate.mean is not None for estimate in estimates)


def scatter_pairs(analysis: TaskAnalysis) -> list[tuple[Measure, Measure]]:
    """Uncertainty and bias, dependence and bias: what claim (b) ties together."""
    lead = [measure for measure in lead_measures(analysis) if drawable(analysis, measure)]
    bias = next((measure for measure in lead if measure.key == analysis.bias_key), None)
    others = [m for m in lead if m.key not in (analysis.bias_key, analysis.accuracy_key, "calibration_error")]
    return [] if bias is None else [(other, bias) for other in others]
