"""Interactive figures of all cells at once: bias against uncertainty, and changes by attribute."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from prunebench.analysis import looks
from prunebench.analysis.map_pictures import attribute_changes
from prunebench.analysis.values import Cell, Measure, TaskAnalysis
from prunebench.leaderboard.figures import REFERENCE, Figure, Spot, Style, method_trace, plain_layout, rounded
from prunebench.stats.intervals import Interval

Styles = Mapping[str, Style]


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
    told = looks.rho_words(analysis, x.key, y.key)
    told = f" Spearman's rho: {told}." if told else ""
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
        place = "dense" if cell.dense else f"sparsity {looks.place_text(cell)}"
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
        "colorscale": [[index / 4, colour] for index, colour in enumerate(looks.HEAT_COLOURS)],
        "zmin": -limit, "zmax": limit, "zmid": 0,
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
