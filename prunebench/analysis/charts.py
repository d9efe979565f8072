"""Interactive figures as plotly values, in the board's look."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prunebench.analysis import looks, stills
from prunebench.analysis.map_pictures import attribute_changes
from prunebench.analysis.values import Cell, Estimate, Measure, TaskAnalysis
from prunebench.leaderboard.figures import (
    REFERENCE,
    Figure,
    Spot,
    Style,
    method_trace,
    plain_layout,
    rounded,
)
from prunebench.stats import Interval

Styles = Mapping[str, Style]
HEAT_COLOURS = "RdBu"


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
            f"sparsity {_sparsity(reading.cell)}<br>{reading.text}",
        )
        for reading in readings
    ]
    trace = method_trace(method, style, spots)
    trace["error_y"] |= {"symmetric": False, "arrayminus": [_below(reading.estimate) for reading in readings]}
    return trace


def _sparsity(cell: Cell) -> str:
    return f"{cell.sparsity:g}" if cell.sparsity is not None else f"native, {cell.achieved:.3f}"


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


def scatter_figure(analysis: TaskAnalysis, styles: Styles, x: Measure, y: Measure) -> Figure:
    """Bias against another measure: a mark a cell, larger for sparser, in order of sparsity."""
    traces = []
    for method in looks.methods_of(analysis):
        cells = [cell for cell in looks.cells_of(analysis, method) if _known(cell, x) and _known(cell, y)]
        native = all(cell.sparsity is None for cell in cells)
        trace = _scatter_trace(method, styles[method], cells, (x, y)) | {"mode": "lines+markers"}
        trace["line"] |= {"width": 0.8, "dash": "solid"}
        trace["marker"] |= {"size": [6 + 3.5 * looks.place_of(cell) for cell in cells], "line": {"width": 0}}
        if native:
            trace["marker"] |= {"symbol": "star", "size": 13}
        traces += [trace] if cells else []
    for cell in looks.dense_cells(analysis):
        if _known(cell, x) and _known(cell, y):
            trace = _scatter_trace(cell.method, REFERENCE, [cell], (x, y)) | {
                "mode": "markers",
                "meta": "reference",
            }
            trace["marker"] |= {"symbol": "x", "size": 11}
            traces.append(trace)
    layout = plain_layout(looks.axis_title(y))
    layout["xaxis"] = {"title": {"text": looks.axis_title(x)}, "zeroline": False}
    rho = {(c.first, c.second): c.rho for c in analysis.correlations if c.method is None}
    found = rho.get((x.key, y.key)) or rho.get((y.key, x.key))
    told = "" if found is None else f" Spearman's rho over all runs {looks.with_interval(found)}."
    caption = f"A mark is a method at a sparsity, mean over seeds; larger for sparser.{told}"
    return Figure(
        f"{x.key}-{y.key}",
        f"{y.title} against {x.title.lower()}",
        caption,
        rounded({"data": traces, "layout": layout}),
    )


def _known(cell: Cell, measure: Measure) -> bool:
    return looks.scaled(cell.values.get(measure.key), 1).mean is not None


def _scatter_trace(
    method: str, style: Style, cells: list[Cell], pair: tuple[Measure, Measure]
) -> dict[str, Any]:
    x, y = pair
    spots = []
    for cell in cells:
        values = [looks.scaled(cell.values.get(m.key), looks.scale_of(m)).mean for m in pair]
        texts = [f"{html.escape(m.title)} {_reading(cell, m)}" for m in (y, x)]
        place = "dense" if cell.dense else f"sparsity {_sparsity(cell)}"
        spots.append(
            Spot(values[0] or 0.0, Interval(values[1] or 0.0, math.nan, 1), "<br>".join([place, *texts]))
        )
    trace = method_trace(method, style, spots)
    del trace["error_y"]
    return trace


def _reading(cell: Cell, measure: Measure) -> str:
    return looks.with_half_width(
        cell.values.get(measure.key), looks.scale_of(measure), looks.decimals_of(measure)
    )


def attribute_maps(analysis: TaskAnalysis) -> list[Figure]:
    """Changes from dense, attributes by cells: a map a measure, that of the bias first."""
    first = looks.heat_measure(analysis)
    ordered = sorted(analysis.attribute_measures, key=lambda measure: measure != first)
    found = []
    for measure in ordered:
        names, columns, table = attribute_changes(analysis, measure)
        known = [abs(value) for row in table for value in row if value is not None]
        if not known:
            continue
        found.append(
            Figure(
                f"map-{measure.key}",
                measure.title,
                f"{measure.help}.",
                _heat(names, columns, table, max(known)),
            )
        )
    return found


def _heat(
    names: list[str], columns: list[tuple[str, float | None]], table: list[list[float | None]], limit: float
) -> dict[str, Any]:
    labels = [html.escape(looks.cell_name(method, sparsity)) for method, sparsity in columns]
    rows = [html.escape(name) for name in names]
    methods = list(dict.fromkeys(method for method, _ in columns))
    middles = [[i for i, (name, _) in enumerate(columns) if name == method] for method in methods]
    trace = {
        "type": "heatmap", "z": table, "x": list(range(len(columns))), "y": rows,
        "text": [labels] * len(rows), "hovertemplate": "%{y}<br>%{text}<br>%{z:.3f}<extra></extra>",
        "colorscale": HEAT_COLOURS, "reversescale": False, "zmin": -limit, "zmax": limit, "zmid": 0,
        "hoverongaps": False, "xgap": 0.5, "ygap": 0.5, "colorbar": {"thickness": 10, "outlinewidth": 0},
    }  # fmt: skip
    layout = plain_layout("")
    layout["margin"] = {"l": 56, "r": 12, "t": 8, "b": 110}
    layout["yaxis"] = {"autorange": "reversed", "type": "category", "automargin": True, "showgrid": False}
    layout["xaxis"] = {
        "tickvals": [sum(places) / len(places) for places in middles],
        "ticktext": [html.escape(method) for method in methods],
        "tickangle": -40, "showgrid": False, "zeroline": False,
    }  # fmt: skip
    layout["shapes"] = [
        {"type": "line", "xref": "x", "yref": "paper", "x0": places[-1] + 0.5, "x1": places[-1] + 0.5, "y0": 0, "y1": 1,
         "line": {"color": "rgba(127,127,127,.9)", "width": 1.5}}
        for places in middles[:-1]
    ]  # fmt: skip
    return rounded({"data": [trace], "layout": layout})


def _exemplar_figures(analysis: TaskAnalysis, styles: Styles) -> list[Figure]:
    cells = {(cell.method, cell.sparsity): cell for cell in analysis.cells if not cell.dense}
    found = []
    for key, title, caption in (
        (
            "matched_share",
            "Exemplars, equal populations",
            "Share of samples whose most frequent label differs.",
        ),
        (
            "control_share",
            "Control",
            "The same between dense models of other seeds: what seeds alone change.",
        ),
    ):
        readings = [
            Reading(
                cells[place],
                looks.scaled(looks.alone(getattr(row, key)), 100),
                looks.in_percent(getattr(row, key)),
            )
            for row in analysis.exemplars
            if (place := (row.method, row.sparsity)) in cells
        ]
        found.append(
            Figure(key, title, caption, sparsity_plot(analysis, styles, readings, "Share of samples, %"))
        )
    return found


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
        plot = sparsity_plot(analysis, styles, readings, "AUROC of the dense models' uncertainty")
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
