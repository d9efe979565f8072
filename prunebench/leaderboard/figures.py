"""Figures as plain plotly values (`data`, `layout`); the page adds its own colours of text and grid."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.rows import Row
from prunebench.leaderboard.words import TIMES, number, sparsity_words, with_half_width
from prunebench.stats.intervals import UNDEFINED, Interval

# Okabe and Ito's palette without its yellow and black, which vanish on a white or a dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6D46")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
DENSE_COLOUR = "#7F7F7F"
LEAST_DENSITY = 1e-4
"""Where a sparsity of 1 would stand on the density scale."""
DODGE = 0.12
"""Decades of density over which the methods at one sparsity are spread, so that bars can be told apart."""


@dataclass(frozen=True)
class Style:
    """How a method looks, in every figure."""

    colour: str
    dash: str
    symbol: str


REFERENCE = Style(DENSE_COLOUR, "dash", "circle")


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its words."""

    key: str
    title: str
    caption: str
    plot: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A metric that is drawn over sparsity: values are multiplied by `scale` and written with `decimals`."""

    metric: str
    title: str
    unit: str
    scale: float
    decimals: int
    caption: str


@dataclass(frozen=True)
class Spot:
    """A point of a figure: its height with an interval (undefined: a gap), and what it says on hovering."""

    x: float
    interval: Interval
    text: str


CURVES = (
    Curve(
        "unbiased", "Unbiased accuracy", "%", 100, 1,
        "Mean over all groups, by sparsity. Dashed: the dense model.",
    ),
    Curve(
        "conflicting", "Conflicting accuracy", "%", 100, 1,
        "Mean over the minorities, by sparsity. Dashed: the dense model.",
    ),
    Curve(
        "bias_gap", "Bias gap", "percentage points", 100, 1,
        "Aligned minus conflicting accuracy; at 0 the bias is not used.",
    ),
    Curve(
        "entropy", "Entropy", "share of log C", 1, 3,
        "Mean entropy of the outputs over C classes: higher is less certain.",
    ),
)  # fmt: skip


def method_styles(board: Board) -> dict[str, Style]:
    """A fixed look for each method of the board."""
    return styles_of(board.labels)


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """A look for each label, in order: seven colours, then other dashes and symbols."""
    styles = {}
    for index, label in enumerate(labels):
        turn = index // len(PALETTE) % len(DASHES)
        styles[label] = Style(PALETTE[index % len(PALETTE)], DASHES[turn], SYMBOLS[turn])
    return styles


def section_figures(section: Section, styles: Mapping[str, Style]) -> list[Figure]:
    """The figures of a section that have anything to draw."""
    figures = [
        Figure(curve.metric, curve.title, curve.caption, curve_plot(section, styles, curve))
        for curve in CURVES
    ]
    speed = Figure(
        "speed",
        "Theoretical and measured speed-up",
        "A point a method and sparsity. Dashed: where zeros would be free. At 1 nothing was gained.",
        speed_plot(section, styles),
    )
    return [figure for figure in [*figures, speed] if figure.plot["data"]]


def position(sparsity: float) -> float:
    """Where a sparsity stands on the axis: decades of density below 1."""
    return -math.log10(max(LEAST_DENSITY, 1 - sparsity))


def places(section: Section) -> list[float]:
    """Where the rows of a section stand on the sparsity axis."""
    native = [position(row.achieved.mean) for row in section.native if row.complete]
    return [*map(position, section.sparsities), *native] or [0.0]


def ticks(section: Section) -> list[tuple[float, str]]:
    """Places and labels of the sparsity axis: those asked for, and native ones where there is room."""
    found = [(position(sparsity), f"{sparsity:g}") for sparsity in section.sparsities]
    for row in section.native:
        if row.complete:
            place = position(row.achieved.mean)
            if all(abs(place - other) > DODGE for other, _ in found):
                found.append((place, number(row.achieved.mean, 2)))
    return sorted(found)


def dodges(section: Section) -> dict[str, float]:
    """How far each method's points are shifted along the sparsity axis."""
    methods = sorted({row.method for row in section.pruned})
    return {method: DODGE * ((index + 0.5) / len(methods) - 0.5) for index, method in enumerate(methods)}


def curve_plot(section: Section, styles: Mapping[str, Style], curve: Curve) -> dict[str, Any]:
    """A metric over sparsity: a line a method, a star for native sparsity, dense as a horizontal line."""
    start, end = min(places(section)) - DODGE, max(places(section)) + DODGE
    traces = []
    for method, dodge in dodges(section).items():
        rows = {row.sparsity: row for row in section.pruned if row.method == method}
        spots = [
            _spot(position(sparsity) + dodge, rows.get(sparsity), curve) for sparsity in section.sparsities
        ]
        traces.append(method_trace(method, styles[method], spots, curve.scale) | {"mode": "lines+markers"})
    for row in section.native:
        spots = [_spot(position(row.achieved.mean), row, curve)] if row.complete else []
        traces.append(method_trace(row.method, styles[row.method], spots, curve.scale) | {"mode": "markers"})
        traces[-1]["marker"] |= {"symbol": "star", "size": 12}
    for row in section.dense:
        spots = [_spot(x, row, curve) for x in (start, end)]
        traces.append(
            method_trace(row.method, REFERENCE, spots, curve.scale) | {"mode": "lines", "meta": "reference"}
        )
        del traces[-1]["error_y"]
    layout = plain_layout(f"{curve.title}, {curve.unit}") | {
        "xaxis": {
            "title": {"text": "Sparsity (scale: log of density)"},
            "tickvals": [place for place, _ in ticks(section)],
            "ticktext": [label for _, label in ticks(section)],
            "range": [start, end],
            "zeroline": False,
        }
    }
    return rounded(
        {"data": [trace for trace in traces if any(map(math.isfinite, trace["y"]))], "layout": layout}
    )


def speed_plot(section: Section, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Measured against theoretical speed-up, both axes logarithmic, with the diagonal of free zeros."""
    spots: dict[str, list[Spot]] = {}
    for row in (*section.pruned, *section.native):
        for speed in row.cost.speeds if row.cost is not None else ():
            ideal = row.cost.theoretical_speed_up if row.cost is not None else math.nan
            text = (
                f"sparsity {sparsity_text(row)}<br>measured {with_half_width(speed.speed_up, 1, 2)}{TIMES}, "
                f"theoretical {number(ideal, 1)}{TIMES}<br>{html.escape(speed.machine.label)}"
            )
            if math.isfinite(ideal) and math.isfinite(speed.speed_up.mean):
                spots.setdefault(row.method, []).append(Spot(ideal, speed.speed_up, text))
    traces = [
        method_trace(method, styles[method], spots[method]) | {"mode": "markers"} for method in sorted(spots)
    ]
    if traces:
        limit = 1.2 * max(max(spot.x, spot.interval.mean) for found in spots.values() for spot in found)
        diagonal = Spot(1, Interval(1, math.nan, 0), ""), Spot(limit, Interval(limit, math.nan, 0), "")
        reference = method_trace("zeros for free", REFERENCE, diagonal) | {
            "mode": "lines",
            "meta": "reference",
        }
        traces.append(reference | {"hoverinfo": "skip", "hovertemplate": None})
    layout = plain_layout(f"Measured speed-up, {TIMES}")
    layout["yaxis"] |= {"type": "log", "dtick": "D2"}
    layout["xaxis"] = {
        "title": {"text": f"Theoretical speed-up (MACs dense / non-zero), {TIMES}"},
        "type": "log",
        "dtick": "D2",
    }
    return rounded({"data": traces, "layout": layout})


def group_heat(section: Section) -> dict[str, Any]:
    """Accuracy (%) by label and bias of every finished row, aligned groups, and which map to show first."""
    rows = [row for row in section.rows if row.groups]
    maps = [
        {
            "name": "dense" if row.dense else f"{row.method}, sparsity {sparsity_text(row)}",
            "z": [[None if value is None else 100 * value for value in line] for line in row.groups],
        }
        for row in rows
    ]
    pruned = [index for index, row in enumerate(rows) if not row.dense]
    return {
        **rounded({"maps": maps}),
        "aligned": section.aligned,
        "start": pruned[len(pruned) // 2] if pruned else 0,
    }


def sparsity_text(row: Row) -> str:
    """`0.9`, or `native, 0.424` with what was achieved."""
    if row.dense or row.sparsity is not None:
        return sparsity_words(row.sparsity)
    return f"native, {number(row.achieved.mean, 3)}"


def _spot(x: float, row: Row | None, curve: Curve) -> Spot:
    interval = UNDEFINED if row is None else row.metric(curve.metric)
    reading = with_half_width(interval, curve.scale, curve.decimals)
    return Spot(x, interval, "" if row is None else f"sparsity {sparsity_text(row)}<br>{reading}")


def method_trace(name: str, style: Style, spots: Sequence[Spot], scale: float = 1) -> dict[str, Any]:
    """A method's points with their intervals; `meta` names it for the page's legend."""
    intervals = [spot.interval for spot in spots]
    return {
        "type": "scatter",
        "name": html.escape(name),
        "meta": name,
        "x": [spot.x for spot in spots],
        "y": [scale * interval.mean for interval in intervals],
        "text": [spot.text for spot in spots],
        "error_y": {
            "type": "data",
            "array": [scale * interval.half_width for interval in intervals],
            "thickness": 1,
            "width": 2,
            "color": style.colour,
        },
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 7},
        "hovertemplate": "%{fullData.name}<br>%{text}<extra></extra>",
    }


def plain_layout(y_title: str) -> dict[str, Any]:
    """A layout without a legend or colours of its own."""
    return {
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "height": 340,
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "yaxis": {"title": {"text": y_title}, "zeroline": False, "automargin": True},
    }


def rounded(value: Any) -> Any:
    """The same value with floats at four decimals and undefined ones as None."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) + 0.0 if math.isfinite(value) else None
    return value
