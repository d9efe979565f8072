"""Interactive figures as plotly values, in the board's look."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunebench.analysis import looks, stills
from prunebench.analysis.map_charts import scatter_figure
from prunebench.analysis.values import Cell, Estimate, Measure, TaskAnalysis
from prunebench.leaderboard.figures import REFERENCE, Figure, Spot, Style, method_trace, plain_layout, rounded
from prunebench.stats.intervals import Interval

Styles = Mapping[str, Style]


@dataclass(frozen=True)
class Chart:
    """A figure and the part of the page it stands in."""

    part: str
    figure: Figure


@dataclass(frozen=True)
class Reading:
    """A cell's value as drawn, and what it says on hovering."""

    cell: Cell
    estimate: Estimate
    text: str


def charts_of(analysis: TaskAnalysis, styles: Styles) -> list[Chart]:
    """The figures that have anything to draw; maps of attributes are apart."""
    found = [
        Chart("sparsity", measure_figure(analysis, styles, measure))
        for measure in analysis.measures
        if stills.drawable(analysis, measure)
    ]
    found += [
        Chart("together", scatter_figure(analysis, styles, *pair)) for pair in stills.scatter_pairs(analysis)
    ]
    found += [Chart("exemplars", figure) for figure in _exemplar_figures(analysis, styles)]
    found += [Chart("foretelling", figure) for figure in _foretelling_figures(analysis, styles)]
    found += [Chart("splits", figure) for figure in _split_figures(analysis, styles)]
    return [chart for chart in found if chart.figure.plot["data"]]


def measure_figure(analysis: TaskAnalysis, styles: Styles, measure: Measure) -> Figure:
    """A measure against sparsity: a line a method, a star for native sparsity, dense as a line in its band."""
    scale, decimals = looks.scale_of(measure), looks.decimals_of(measure)

    def reading(cell: Cell) -> Reading:
        estimate = cell.values.get(measure.key)
        return Reading(cell, looks.scaled(estimate, scale), looks.with_half_width(estimate, scale, decimals))

    readings = [reading(cell) for cell in analysis.cells]
    plot = sparsity_plot(analysis, styles, readings, looks.axis_title(measure))
    return Figure(measure.key, measure.title, f"{measure.help}.", plot)


def sparsity_plot(
    analysis: TaskAnalysis, styles: Styles, readings: Iterable[Reading], y_title: str
) -> dict[str, Any]:
    """Readings over sparsity, by method; those of dense cells as references."""
    axis, dodges = looks.sparsity_axis(analysis), looks.dodges_of(analysis)
    by_method: dict[str, list[Reading]] = {}
    references = []
    for reading in readings:
        if reading.cell.dense:
            references += _reference(reading, axis)
        else:
            by_method.setdefault(reading.cell.method, []).append(reading)
    lines = []
    for method in sorted(by_method):
        found = sorted(by_method[method], key=lambda r: looks.place_of(r.cell))
        asked = [r for r in found if r.cell.sparsity is not None]
        native = [r for r in found if r.cell.sparsity is None]
        if asked:
            lines.append(_line(method, styles[method], asked, dodges[method]) | {"mode": "lines+markers"})
        if native:
            lines.append(_line(method, styles[method], native, 0.0) | {"mode": "markers"})
            lines[-1]["marker"] |= {"symbol": "star", "size": 12}
    known = [line for line in lines if any(map(math.isfinite, line["y"]))]
    layout = plain_layout(y_title) | {"xaxis": _sparsity_axis(axis)}
    return rounded({"data": [*references, *known] if known else [], "layout": layout})


def _sparsity_axis(axis: looks.SparsityAxis) -> dict[str, Any]:
    return {
        "title": {"text": "Sparsity (scale: log of density)"},
        "tickvals": [place for place, _ in axis.ticks],
        "ticktext": [label for _, label in axis.ticks],
        "range": [axis.start, axis.end],
        "zeroline": False,
    }


def _line(method: str, style: Style, readings: list[Reading], shift: float) -> dict[str, Any]:
    spots = [
        Spot(
            looks.place_of(reading.cell) + shift,
            _as_interval(reading.estimate),
            f"sparsity {looks.place_text(reading.cell)}<br>{reading.text}",
        )
        for reading in readings
    ]
    trace = method_trace(method, style, spots)
    trace["error_y"] |= {"symmetric": False, "arrayminus": [_below(reading.estimate) for reading in readings]}
    return trace


def _as_interval(estimate: Estimate) -> Interval:
    """The mean and how far the interval reaches above it."""
    if estimate.mean is None:
        return Interval(math.nan, math.nan, estimate.n)
    above = math.nan if estimate.high is None else estimate.high - estimate.mean
    return Interval(estimate.mean, above, estimate.n)


def _below(estimate: Estimate) -> float:
    return math.nan if estimate.mean is None or estimate.low is None else estimate.mean - estimate.low


def _reference(reading: Reading, axis: looks.SparsityAxis) -> list[dict[str, Any]]:
    """The dense model: a band of its interval below a dashed line."""
    estimate, ends = reading.estimate, [axis.start, axis.end]
    if estimate.mean is None:
        return []
    text = f"dense<br>{reading.text}"
    spots = [Spot(x, _as_interval(estimate), text) for x in ends]
    line = method_trace(reading.cell.method, REFERENCE, spots) | {"mode": "lines", "meta": "reference"}
    del line["error_y"]
    if estimate.low is None or estimate.high is None:
        return [line]
    band = {
        "type": "scatter", "mode": "lines", "meta": "reference", "x": [*ends, *ends[::-1]],
        "y": [estimate.low] * 2 + [estimate.high] * 2, "fill": "toself", "fillcolor": "rgba(127,127,127,.2)",
        "line": {"width": 0}, "hoverinfo": "skip",
    }  # fmt: skip
    return [band, line]


def _exemplar_figures(analysis: TaskAnalysis, styles: Styles) -> list[Figure]:
    """Exemplars, with the control as a line where all share one; and how many the pruned models get right."""
    matched = any(row.matched_share is not None for row in analysis.exemplars)
    title = f"Exemplars, {'equal populations' if matched else 'all seeds'}"
    caption = "Share of samples whose most frequent label differs, dense against pruned."
    plot = _exemplar_plot(analysis, styles, "matched_share" if matched else "share")
    controls = {row.control_share for row in analysis.exemplars if row.control_share is not None}
    if len(controls) == 1 and plot["data"]:
        level, axis = 100 * controls.pop(), looks.sparsity_axis(analysis)
        control = Interval(level, math.nan, 1)
        spots = [Spot(x, control, f"control {level:.1f} %") for x in (axis.start, axis.end)]
        line = method_trace("seeds alone", REFERENCE, spots) | {"mode": "lines", "meta": "reference"}
        del line["error_y"]
        plot = {**plot, "data": [rounded(line), *plot["data"]]}
        caption += " Dashed: the control, what other seeds alone change."
    right = _exemplar_plot(analysis, styles, "right_share")
    words = "Of the exemplars, those that the most frequent label over pruned seeds gets right."
    return [Figure("exemplars", title, caption, plot), Figure("right", "Right when pruned", words, right)]


def _exemplar_plot(analysis: TaskAnalysis, styles: Styles, key: str) -> dict[str, Any]:
    shares = {(row.method, row.sparsity): getattr(row, key) for row in analysis.exemplars}
    readings = [
        Reading(cell, looks.scaled(looks.alone(share), 100), f"{looks.in_percent(share)} %")
        for cell in analysis.cells
        if not cell.dense and (share := shares.get((cell.method, cell.sparsity))) is not None
    ]
    return sparsity_plot(analysis, styles, readings, "Share, %")


def _foretelling_figures(analysis: TaskAnalysis, styles: Styles) -> list[Figure]:
    cells = {(cell.method, cell.sparsity): cell for cell in analysis.cells if not cell.dense}
    found = []
    for event in dict.fromkeys(row.event for row in analysis.sample_foretelling):
        readings = [
            Reading(cells[place], row.area_under_curve, looks.with_interval(row.area_under_curve, 1, 3))
            for row in analysis.sample_foretelling
            if row.event == event and (place := (row.method, row.sparsity)) in cells
        ]
        title = f"Foretelling: {event}"
        plot = sparsity_plot(analysis, styles, readings, "AUROC")
        found.append(Figure(f"auc-{event}", title, "0.5 is guessing; bars: 95 % interval.", plot))
    return found


def _split_figures(analysis: TaskAnalysis, styles: Styles) -> list[Figure]:
    cells = {(cell.method, cell.sparsity): cell for cell in analysis.cells}
    found = []
    for key, title, caption in (
        ("bias_squared", "Bias squared of the loss", "What the mean prediction over seeds gets wrong."),
        ("variance", "Variance of the loss", "How far the seeds scatter about their mean."),
    ):
        readings = [
            Reading(cells[place], looks.alone(getattr(row, key)), looks.written(getattr(row, key), 1, 3))
            for row in analysis.splits
            if (place := (row.method, row.sparsity)) in cells
        ]
        found.append(Figure(key, title, caption, sparsity_plot(analysis, styles, readings, title)))
    return found
