"""Plots as values for plotly: `data` and `layout`, rounded; the page adds its own colours of text and grid."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from prunebench.report.plot import DIVERGING, Axis, Band, Bars, HeatMap, Mark, Plot, Rule, Series, limits

SYMBOLS = {"ring": "circle-open", "": "circle"}
REFERENCE_KEY = "reference"
"""The `meta` of rules and bands, which a page's legend does not switch off."""
HOVER = "%{fullData.name}<br>%{hovertext}<extra></extra>"


def plotly_figure(picture: Plot | HeatMap) -> dict[str, Any]:
    """`{"data": ..., "layout": ...}`; no data where there is nothing to draw.

    Each trace has its series' key as `meta`, so that a page can switch it. Names and hints are escaped: plotly reads
    some HTML in them.
    """
    if isinstance(picture, HeatMap):
        return rounded(_heat_map(picture))
    if picture.empty:
        return {"data": [], "layout": _layout(picture)}
    ends = limits([picture], "x")
    data = [_band(band, ends) for band in picture.bands]
    data += [_bars(group) for group in picture.bars]
    data += [_rule(rule, ends) for rule in picture.rules]
    data += [_series(one) for one in picture.series if one.pieces]
    return rounded({"data": data, "layout": _layout(picture)})


def rounded(value: Any) -> Any:
    """The same with floats at four decimals and undefined ones as None."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) + 0.0 if math.isfinite(value) else None
    return value


def _words(text: str) -> str:
    return "<br>".join(html.escape(line) for line in text.splitlines())


def _name(text: str) -> str:
    return html.escape(" ".join(text.split()))


def _series(series: Series) -> dict[str, Any]:
    colour, marks = series.style.colour, series.marks
    symbol = SYMBOLS.get(series.style.symbol, series.style.symbol)
    mode = "+".join(["lines"] * series.line + ["markers"] * bool(series.style.symbol)) or "none"
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "name": _name(series.name),
        "meta": series.key or series.name,
        "x": [float(mark.x) for mark in marks],
        "y": [float(mark.y) if mark.drawn and mark.y is not None else None for mark in marks],
        "hovertext": [_words(mark.hint) for mark in marks],
        "line": {"color": colour, "dash": series.style.dash, "width": series.width},
        "marker": {
            "color": colour,
            "symbol": f"{symbol}-open" if series.hollow and not symbol.endswith("-open") else symbol,
            "size": [2 * (mark.size or series.size) for mark in marks],
        },
        "hovertemplate": HOVER,
    }
    if series.opacity < 1:
        trace["opacity"] = series.opacity
    if any(mark.label for mark in marks):
        trace |= {"text": [_words(mark.label) for mark in marks], "textposition": "middle right"}
        trace["mode"] = f"{mode}+text".removeprefix("none+")
    if any(_reach(mark, sign) for mark in marks for sign in (1, -1)):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [_reach(mark, 1) for mark in marks],
            "arrayminus": [_reach(mark, -1) for mark in marks],
            "thickness": 1,
            "width": 2,
            "color": colour,
        }
    return trace


def _reach(mark: Mark, sign: int) -> float | None:
    """How far a mark's interval reaches above (1) or below (-1) it."""
    end = mark.high if sign > 0 else mark.low
    return None if end is None or mark.y is None or not math.isfinite(end - mark.y) else sign * (end - mark.y)


def _rule(rule: Rule, ends: tuple[float, float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _name(rule.name),
        "meta": REFERENCE_KEY,
        "x": list(ends),
        "y": [float(rule.value)] * 2,
        "line": {"color": rule.style.colour, "dash": rule.style.dash, "width": rule.width},
        "hovertext": [_words(rule.hint)] * 2,
        **({"hovertemplate": HOVER} if rule.hint else {"hoverinfo": "skip"}),
    }


def _band(band: Band, ends: tuple[float, float]) -> dict[str, Any]:
    red, green, blue = (int(band.colour[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _name(band.name),
        "meta": REFERENCE_KEY,
        "x": [*ends, *ends[::-1]],
        "y": [band.low, band.low, band.high, band.high],
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.22)",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _bars(group: Bars) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": _name(group.name),
        "meta": group.name,
        "x": [float(x) for x, _, _ in group.bars],
        "base": [float(bottom) for _, bottom, _ in group.bars],
        "y": [float(top - bottom) for _, bottom, top in group.bars],
        "width": group.width,
        "marker": {"color": group.colour},
        "hovertemplate": "%{fullData.name}<br>%{y:.3g}<extra></extra>",
    }


def _axis(axis: Axis) -> dict[str, Any]:
    values: dict[str, Any] = {"title": {"text": _words(axis.title)}, "zeroline": False}
    if axis.log:
        values |= {"type": "log", "dtick": "D2"}
    if axis.suffix:
        values["ticksuffix"] = axis.suffix
    if axis.ticks is not None:
        values["tickvals"] = [float(place) for place, _ in axis.ticks]
        values["ticktext"] = [_words(text) for _, text in axis.ticks]
        values.pop("dtick", None)
    if axis.low is not None and axis.high is not None:
        ends = [axis.low, axis.high]
        values["range"] = [math.log10(end) for end in ends] if axis.log else ends
    return values


def _layout(plot: Plot) -> dict[str, Any]:
    layout = {**bare_layout(), "xaxis": _axis(plot.x), "yaxis": _axis(plot.y) | {"automargin": True}}
    if plot.bars:
        layout["barmode"] = "overlay"
    if plot.callouts:
        layout["annotations"] = [
            {"text": _words(c.text), "x": math.log10(c.x) if plot.x.log else c.x,
             "y": math.log10(c.y) if plot.y.log else c.y, "ay": -24, "ax": 0, "arrowwidth": 0.8}
            for c in plot.callouts
        ]  # fmt: skip
    return rounded(layout)


def bare_layout() -> dict[str, Any]:
    """A layout without a legend or colours of its own."""
    return {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "height": 340,
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def _heat_map(heat: HeatMap) -> dict[str, Any]:
    last = len(DIVERGING) - 1
    known = any(value is not None and math.isfinite(value) for row in heat.values for value in row)
    trace = {
        "type": "heatmap",
        "name": _name(heat.title),
        "z": heat.values,
        "x": list(range(len(heat.columns))),
        "y": list(range(len(heat.rows))),
        "text": [[f"{_words(row)}<br>{_words(column)}" for column in heat.columns] for row in heat.rows],
        "hovertemplate": f"%{{text}}<br>%{{z:.{heat.decimals}f}}<extra></extra>",
        "colorscale": [[index / last, colour] for index, colour in enumerate(DIVERGING)],
        "zmin": -heat.reach,
        "zmax": heat.reach,
        "hoverongaps": False,
        "xgap": 0.5,
        "ygap": 0.5,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "title": {"text": _words(heat.unit)}},
    }
    layout = bare_layout() | {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 110},
        "yaxis": {
            "autorange": "reversed", "automargin": True, "showgrid": False, "zeroline": False,
            "tickvals": list(range(len(heat.rows))), "ticktext": list(map(_words, heat.rows)),
        },
        "xaxis": {
            "tickvals": [place for _, place in heat.headings], "ticktext": [_words(n) for n, _ in heat.headings],
            "tickangle": -40, "showgrid": False, "zeroline": False,
        },
        "shapes": [
            {"type": "line", "xref": "x", "yref": "paper", "x0": place, "x1": place, "y0": 0, "y1": 1,
             "line": {"color": "rgba(127,127,127,.9)", "width": 1.5}}
            for place in heat.breaks
        ],
    }  # fmt: skip
    return {"data": [trace] if known else [], "layout": layout}
