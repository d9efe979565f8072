"""Plots as SVG text: the same values give the same bytes. Dark on white, in the reader's own fonts, no scripts."""

from __future__ import annotations

import functools
import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from prunebench.report.format import cut, number, significant
from prunebench.report.plot import (
    INK,
    HeatMap,
    Mark,
    Plot,
    PlotGrid,
    Scale,
    Series,
    Style,
    limits,
    spread,
    ticks_of,
)

FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
SOFT = "#57606a"
LETTER, WIDE = 0.56, 1.0
"""Width to allow for a letter, and for a wide one, as a share of the size of the font."""
NORMAL = 12.5
STROKES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "8 3 2 3"}
"""SVG's dash arrays of the dashes of a style."""
CORNERS = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle-up": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    "diamond": ((0, -1.4), (1.2, 0), (0, 1.4), (-1.2, 0)),
    "star": tuple(
        (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5))
        for i, radius in enumerate((2.0, 0.8) * 5)
    ),
}
GRID, EDGE, CROSS = "#e4e7eb", "#8c959f", "#9aa4ae"
SMALL, LARGE = 11.5, 15.0
LINE, GAP, EDGE_ROOM = 16.0, 18.0, 12.0
CALLOUT_ROOM, CALLOUT_GAP = 30.0, 17.0
LABEL_GAP, LABEL_LEAD = 15.0, 39.0
LONGEST_LABEL = 40
Spot = tuple[float, float]


def svg(picture: Plot | PlotGrid | HeatMap, *, hints: bool = False) -> str:
    """The text of an SVG file; with `hints`, marks say on hovering what they are."""
    if isinstance(picture, HeatMap):
        return _heat_map(picture, hints)
    return _grid(picture if isinstance(picture, PlotGrid) else alone(picture), hints)


def alone(plot: Plot) -> PlotGrid:
    """A grid of one plot, which gives its title, subtitle and lines below to the grid."""
    inner = replace(plot, title="", subtitle="", foot=())
    named = not plot.end_labels and len(legend_of([plot])) > 1
    return PlotGrid(plot.title, (inner,), 1, plot.subtitle, named, False, plot.foot, plot.caption)


@dataclass
class Key:
    """An entry of a legend: signs that are drawn over each other."""

    name: str
    colour: str = ""
    band: str = ""
    bar: str = ""
    style: Style | None = None
    dash: str = ""
    width: float = 2.0
    size: float = 4.0
    hollow: bool = False


def legend_of(plots: Iterable[Plot]) -> list[Key]:
    """An entry for each name among bands, rules, series and bars, in the order of drawing."""
    found: dict[str, Key] = {}
    for plot in plots:
        for band in plot.bands:
            found.setdefault(band.name, Key(band.name)).band = band.colour
        for rule in plot.rules:
            key = found.setdefault(rule.name, Key(rule.name))
            key.colour, key.dash, key.width = rule.style.colour, rule.style.dash, rule.width
        for group in plot.bars:
            found.setdefault(group.name, Key(group.name)).bar = group.colour
        for series in plot.series:
            if series.legend and series.name not in found:
                found[series.name] = key_of(series)
    found.pop("", None)
    return list(found.values())


def key_of(series: Series) -> Key:
    """The entry of a series."""
    style, size = series.style, min(max(series.size, 3.2), 5.0)
    dash = style.dash if series.line else ""
    return Key(series.name, style.colour, "", "", style, dash, series.width, size, series.hollow)


def draw_key(canvas: Canvas, key: Key, spot: Spot) -> None:
    """The sign of an entry, 26 pixels wide, with its left middle at a spot."""
    x, y = spot
    if key.band:
        canvas.box((x, y - 6), (x + 26, y + 6), key.band, 0.3)
    if key.bar:
        canvas.box((x + 7, y - 6), (x + 19, y + 6), key.bar)
    if key.dash:
        canvas.line([(x, y), (x + 26, y)], key.colour, min(key.width, 2.5), key.dash)
    if key.style is not None and key.style.symbol:
        canvas.symbol(key.style.symbol, (x + 13, y), key.colour, key.size, hollow=key.hollow)


def key_svg(key: Key) -> str:
    """The sign of an entry as a picture to stand in a page, which hides it from screen readers: the name is beside."""
    canvas = Canvas()
    draw_key(canvas, key, (1, 8))
    return f'<svg width="28" height="16" aria-hidden="true">{"".join(canvas.parts)}</svg>'


def _draw_legend(canvas: Canvas, keys: Sequence[Key], top: float, width: float) -> float:
    """Entries from left to right in as many lines as they need; gives where they end."""
    x, y = EDGE_ROOM, top + LINE / 2
    for key in keys:
        name = cut(key.name, LONGEST_LABEL)
        needed = 32 + text_width(name, NORMAL)
        if x > EDGE_ROOM and x + needed > width:
            x, y = EDGE_ROOM, y + LINE + 2
        draw_key(canvas, key, (x, y))
        canvas.text((x + 31, y + 4.5), name)
        x += needed + GAP
    return y + LINE / 2 if keys else top


@dataclass(frozen=True)
class _Frame:
    """What surrounds the area of a plot: pixels at each side, and which of its labels are written."""

    left: float
    right: float
    top: float
    bottom: float
    x_labels: bool = True
    y_labels: bool = True
    titles: bool = True


def _frame(plot: Plot, y_range: Spot, grid: PlotGrid, index: int) -> _Frame:
    column, shared = index % grid.columns, grid.shared
    y_labels, x_labels = not shared or column == 0, not shared or index + grid.columns >= len(grid.plots)
    ticks = max((text_width(text, SMALL) for _, text in ticks_of(plot.y, *y_range)), default=0)
    left = ticks + 12 + (22 if plot.y.title else 0) if y_labels else 6.0
    right = 8.0
    if plot.end_labels:
        names = (cut(one.name, LONGEST_LABEL) for one in _ended(plot))
        rules = (cut(rule.name, LONGEST_LABEL) for rule in plot.rules)
        right = LABEL_LEAD + max((text_width(name, NORMAL) for name in (*names, *rules)), default=0) + 8
    lines = bool(plot.title) + len(plot.subtitle.splitlines())
    top = lines * LINE + (8 if lines else 2) + (CALLOUT_ROOM if plot.callouts else 0)
    bottom = 24.0 if x_labels else 12.0
    bottom += (20 if plot.x.title and not shared else 0) + (4 + LINE * len(plot.foot) if plot.foot else 0)
    return _Frame(left, right, top, bottom, x_labels, y_labels, not shared)


def _grid(grid: PlotGrid, hints: bool) -> str:
    plots = grid.plots
    columns = max(1, min(grid.columns, len(plots)))
    grid = replace(grid, columns=columns)
    together = (limits(plots, "x"), limits(plots, "y")) if grid.shared and plots else None
    ranges = [together or (limits([plot], "x"), limits([plot], "y")) for plot in plots]
    frames = [_frame(plot, y_range, grid, i) for i, (plot, (_, y_range)) in enumerate(zip(plots, ranges))]
    rows = [range(i, min(i + columns, len(plots))) for i in range(0, len(plots), columns)]
    lefts, rights = ([max(getattr(f, side) for f in frames[i::columns]) for i in range(columns)] if plots else [0.0]
                     for side in ("left", "right"))  # fmt: skip
    inner = max((plot.width for plot in plots), default=0)
    pitches = [left + inner + right + 8 for left, right in zip(lefts, rights)]
    words = [grid.title, *grid.subtitle.splitlines(), *grid.foot]
    sizes = [LARGE, *[NORMAL] * (len(words) - 1)]
    width = max(
        sum(pitches) + 2 * 6, *(text_width(text, size) + 2 * EDGE_ROOM for text, size in zip(words, sizes))
    )

    canvas = Canvas()
    y = 8.0
    if grid.title:
        canvas.text((EDGE_ROOM, y + 15), grid.title, "bold", size=LARGE)
        y += 24
    for line in grid.subtitle.splitlines():
        canvas.text((EDGE_ROOM, y + 12), line, "soft")
        y += LINE + 1
    if grid.legend:
        y = _draw_legend(canvas, legend_of(plots), y + 4, width)
    y += 8
    start = y
    for row in rows:
        tallest = max(frames[i].top for i in row)
        height = tallest + max(plots[i].height + frames[i].bottom for i in row)
        for i in row:
            left = 6 + sum(pitches[: i - row[0]]) + lefts[i - row[0]]
            area = (left, y + tallest, left + plots[i].width, y + tallest + plots[i].height)
            _Panel(canvas, plots[i], frames[i], ranges[i], area, hints).draw()
        y += height + (4 if grid.shared else GAP)
    if grid.shared and plots:
        canvas.text((width / 2, y + 12), plots[0].x.title, "soft middle")
        canvas.text((18, (start + y) / 2), plots[0].y.title, "soft middle", turn=-90)
        y += 20
    for line in grid.foot:
        canvas.text((EDGE_ROOM, y + 10), line, "soft")
        y += LINE
    return canvas.document((width, y + 8), grid.title or "Plot", grid.description or grid.subtitle)


def _ended(plot: Plot) -> list[Series]:
    """The series that are named at their ends: those with a last mark."""
    return [one for one in plot.series if one.end_label and one.name and one.pieces]


class _Panel:
    """A plot's area on a canvas."""

    def __init__(
        self,
        canvas: Canvas,
        plot: Plot,
        frame: _Frame,
        ranges: tuple[Spot, Spot],
        area: tuple[float, float, float, float],
        hints: bool,
    ) -> None:
        self.canvas, self.plot, self.frame, self.hints = canvas, plot, frame, hints
        self.left, self.top, self.right, self.bottom = area
        self.x = Scale(*ranges[0], self.left, self.right, plot.x.log)
        self.y = Scale(*ranges[1], self.bottom, self.top, plot.y.log)

    def draw(self) -> None:
        """Everything, from the back to the front."""
        self.words()
        for band in self.plot.bands:
            self.bar((self.x.low, band.low), (self.x.high, band.high), band.colour, opacity=0.22)
        self.axes()
        for group in self.plot.bars:
            for x, bottom, top in group.bars:
                corners = (x - group.width / 2, bottom), (x + group.width / 2, top)
                hint = f"{group.name}: {significant(top - bottom)}" if self.hints else ""
                self.bar(*corners, group.colour, hint=hint)
        for rule in self.plot.rules:
            if self.y.holds(rule.value):
                self.canvas.line(self.across(rule.value), rule.style.colour, rule.width, rule.style.dash)
        for series in self.plot.series:
            self.series(series)
        self.callouts()
        if self.plot.end_labels:
            self.end_labels()

    def across(self, value: float) -> list[Spot]:
        """The ends of a line across the area."""
        return [(self.left, self.y(value)), (self.right, self.y(value))]

    def words(self) -> None:
        """Title and subtitle above, lines below."""
        lines = self.plot.subtitle.splitlines()
        y = self.top - (CALLOUT_ROOM if self.plot.callouts else 0) - 8 - LINE * len(lines)
        if self.plot.title:
            room = int((self.right - self.left + 40) / (13 * LETTER))
            self.canvas.text((self.left, y), cut(self.plot.title, room), "bold", size=13)
        for index, line in enumerate(lines):
            self.canvas.text((self.left, y + LINE * (index + 1)), line, "soft", size=SMALL)
        y = self.bottom + self.frame.bottom - LINE * len(self.plot.foot) + 8
        for index, line in enumerate(self.plot.foot):
            self.canvas.text((self.left - self.frame.left + 12, y + LINE * index), line, size=SMALL)

    def axes(self) -> None:
        """Ticks, their labels as far as there is room, and titles."""
        for place, text in ticks_of(self.plot.y, self.y.low, self.y.high):
            self.canvas.line(self.across(place), GRID)
            if self.frame.y_labels:
                self.canvas.text((self.left - 6, self.y(place) + 4), text, "soft end", size=SMALL)
        self.canvas.line([(self.left, self.bottom), (self.right, self.bottom)], EDGE)
        taken: list[tuple[float, float]] = []
        ticks = ticks_of(self.plot.x, self.x.low, self.x.high)
        for place, text in sorted(ticks, key=lambda tick: (len(tick[1]) > 4, tick[0])):
            at, half = self.x(place), text_width(text, SMALL) / 2 + 2
            self.canvas.line([(at, self.bottom), (at, self.bottom + 4)], EDGE)
            if self.frame.x_labels and all(abs(at - other) >= half + room for other, room in taken):
                self.canvas.text((at, self.bottom + 17), text, "soft middle", size=SMALL)
                taken.append((at, half))
        if self.frame.titles:
            middle = (self.left + self.right) / 2, (self.top + self.bottom) / 2
            self.canvas.text((middle[0], self.bottom + 36), self.plot.x.title, "soft middle")
            side = self.left - self.frame.left + 12
            self.canvas.text((side, middle[1]), self.plot.y.title, "soft middle", turn=-90)

    def bar(self, corner: Spot, opposite: Spot, colour: str, opacity: float = 1, hint: str = "") -> None:
        """A box between two corners in values, as far as its height is within the axes."""
        ends = corner[1], opposite[1]
        low, high = max(min(ends), self.y.low), min(max(ends), self.y.high)
        if low < high:
            spots = (self.x(corner[0]), self.y(low)), (self.x(opposite[0]), self.y(high))
            self.canvas.box(*spots, colour, opacity, hint)

    def spot(self, mark: Mark) -> Spot | None:
        """Where a mark stands; None where a logarithmic axis has no place for it."""
        assert mark.y is not None
        if (self.x.log and mark.x <= 0) or (self.y.log and mark.y <= 0):
            return None
        return self.x(mark.x), self.y(mark.y)

    def within(self, spot: Spot) -> bool:
        """Whether a spot lies in the area, half a pixel about it included."""
        return (
            self.left - 0.5 <= spot[0] <= self.right + 0.5 and self.top - 0.5 <= spot[1] <= self.bottom + 0.5
        )

    def series(self, series: Series) -> None:
        """Intervals, then the line, then symbols; what lies outside the axes is cut off."""
        colour = series.style.colour
        for piece in series.pieces:
            placed = [(mark, spot) for mark in piece if (spot := self.spot(mark)) is not None]
            for mark, (x, _) in placed:
                self.interval(mark, x, colour)
            if series.line:
                spots = [spot for _, spot in placed]
                for run in clipped(spots, (self.left, self.top, self.right, self.bottom)):
                    self.canvas.line(run, colour, series.width, series.style.dash, series.opacity)
            for mark, spot in placed:
                if self.within(spot):
                    self.mark(series, mark, spot)

    def interval(self, mark: Mark, x: float, colour: str) -> None:
        """The part of a mark's interval that is within the axes."""
        ends = [mark.y if end is None or not math.isfinite(end) else end for end in (mark.low, mark.high)]
        low, high = (min(max(end, self.y.low), self.y.high) for end in ends if end is not None)
        if low < high and self.left - 0.5 <= x <= self.right + 0.5:
            self.canvas.line([(x, self.y(low)), (x, self.y(high))], colour, opacity=0.5)

    def mark(self, series: Series, mark: Mark, spot: Spot) -> None:
        """The symbol of a mark with its hint and label."""
        size = mark.size or series.size
        hint = f"{series.name}: {mark.hint}".removesuffix(": ") if self.hints else ""
        if series.style.symbol:
            style = series.style
            self.canvas.symbol(style.symbol, spot, style.colour, size, hollow=series.hollow, hint=hint)
        if mark.label:
            room = text_width(mark.label, SMALL) + size + 6
            right = spot[0] + room <= self.right + 4
            x = spot[0] + size + 4 if right else spot[0] - size - 4
            self.canvas.text((x, spot[1] + 4), mark.label, "" if right else "end", size=SMALL)

    def callouts(self) -> None:
        """Letters above the area, each with a line down to its point; in two rows where one has no room."""
        points = [(self.x(one.x), self.y(one.y)) for one in self.plot.callouts]
        gap = min(CALLOUT_GAP, (self.right - self.left) / max(len(points) - 1, 1))
        places = spread([x for x, _ in points], gap, self.left, self.right)
        ranks = {place: rank for rank, place in enumerate(sorted(places))}
        for one, (x, y), place in zip(self.plot.callouts, points, places):
            raised = 12 * (ranks[place] % 2) if gap < CALLOUT_GAP else 0
            self.canvas.text((place, self.top - 11 - raised), one.text, "bold middle", size=SMALL)
            self.canvas.line([(place, self.top - 8), (x, self.top), (x, y)], EDGE, 0.8, opacity=0.7)

    def end_labels(self) -> None:
        """Names at the right, each joined to the end of its line or rule by a thin line."""
        ends: list[tuple[Key, Spot]] = []
        for rule in self.plot.rules:
            if rule.name:
                key = Key(rule.name, rule.style.colour, dash=rule.style.dash)
                ends.append((key, (self.right, self.y(rule.value))))
        for one in _ended(self.plot):
            spot = self.spot(one.pieces[-1][-1])
            if spot is not None:
                ends.append((replace(key_of(one), size=3.2), spot))
        inside = [min(max(spot[1], self.top), self.bottom) for _, spot in ends]
        above = LABEL_GAP * max(0.0, len(ends) - (self.bottom - self.top) / LABEL_GAP)
        places = spread(inside, LABEL_GAP, self.top - above, self.bottom + 4)
        for (key, (x, _)), y, place in zip(ends, inside, places):
            self.canvas.line([(x + 4, y), (self.right + 8, place)], key.colour, opacity=0.4)
            draw_key(self.canvas, key, (self.right + 8, place))
            self.canvas.text((self.right + LABEL_LEAD, place + 4.5), cut(key.name, LONGEST_LABEL))


def clipped(spots: Sequence[Spot], area: tuple[float, float, float, float]) -> list[list[Spot]]:
    """The parts of a line that lie within (left, top, right, bottom), by Liang and Barsky's method."""
    left, top, right, bottom = area
    runs: list[list[Spot]] = []
    for (x0, y0), (x1, y1) in pairwise(spots):
        dx, dy, start, end = x1 - x0, y1 - y0, 0.0, 1.0
        for step, room in ((-dx, x0 - left), (dx, right - x0), (-dy, y0 - top), (dy, bottom - y0)):
            if step == 0:
                end = end if room >= 0 else -1.0
            elif step < 0:
                start = max(start, room / step)
            else:
                end = min(end, room / step)
        if start >= end:
            continue
        first, last = (x0 + start * dx, y0 + start * dy), (x0 + end * dx, y0 + end * dy)
        if runs and start == 0 and runs[-1][-1] == first:
            runs[-1].append(last)
        else:
            runs.append([first, last])
    return runs


CELL = 19.0
"""Pixels of a row of a heat map."""


def _heat_map(heat: HeatMap, hints: bool) -> str:
    """Rows downwards; names of columns, or of groups, slanting above; the scale of colours at the right."""
    canvas = Canvas()
    names = [cut(name, 24) for name in heat.rows]
    side = min(34.0, max(9.0, 760.0 / max(len(heat.columns), 1)))
    left = EDGE_ROOM + max((text_width(name, SMALL) for name in names), default=0) + 8
    canvas.text((EDGE_ROOM, 23), heat.title, "bold", size=LARGE)
    for index, line in enumerate(heat.subtitle.splitlines()):
        canvas.text((EDGE_ROOM, 42 + LINE * index), line, "soft")
    longest = max((text_width(cut(name, 24), SMALL) for name, _ in heat.headings), default=0)
    top = 40 + LINE * len(heat.subtitle.splitlines()) + 0.5 * longest + 10
    right, bottom = left + side * len(heat.columns), top + CELL * len(heat.rows)
    for y, (name, row) in enumerate(zip(names, heat.values)):
        canvas.text((left - 6, top + CELL * (y + 0.5) + 4), name, "end", size=SMALL)
        for x, value in enumerate(row):
            corner = left + side * x, top + CELL * y
            if value is None or not math.isfinite(value):
                canvas.symbol("x", (corner[0] + side / 2, corner[1] + CELL / 2), CROSS, 2)
                continue
            hint = f"{heat.rows[y]}, {heat.columns[x]}: {number(value, heat.decimals)}" if hints else ""
            canvas.box(corner, (corner[0] + side, corner[1] + CELL), heat.colour(value), hint=hint)
    for place in heat.breaks:
        at = left + side * (place + 0.5)
        canvas.line([(at, top), (at, bottom)], "#ffffff", 3)
    for name, place in heat.headings:
        canvas.text((left + side * (place + 0.5), top - 6), cut(name, 24), size=SMALL, turn=-28)
    steps, bar, height = 24, right + 26, max(bottom - top, 96.0)
    for step in range(steps):
        value = heat.reach * (1 - 2 * (step + 0.5) / steps)
        upper = top + height * step / steps
        canvas.box((bar, upper), (bar + 12, upper + height / steps + 0.3), heat.colour(value))
    for share, value in ((0.0, heat.reach), (0.5, 0.0), (1.0, -heat.reach)):
        canvas.text((bar + 17, top + height * share + 4), significant(value), "soft", size=SMALL)
    canvas.text((bar - 4, top + height + 20), heat.unit, "soft", size=SMALL)
    slant = max((left + side * (place + 0.5) + 0.9 * text_width(cut(name, 24), SMALL) for name, place in heat.headings),
                default=0)  # fmt: skip
    words = max(
        text_width(heat.title, LARGE), *(text_width(w, NORMAL) for w in (heat.subtitle.splitlines() or [""]))
    )
    width = max(bar + 30 + text_width(heat.unit, SMALL), slant + 8, words + 2 * EDGE_ROOM)
    return canvas.document(
        (width, max(bottom, top + height + 14) + 12), heat.title, heat.caption or heat.subtitle
    )


# The canvas


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Pixels to allow for a text."""
    return size * sum(WIDE if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in text)


def escaped(text: str) -> str:
    """Text for XML; letters that XML forbids are replaced."""
    return html.escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


@dataclass
class Canvas:
    """Elements of a picture in pixels, from the upper left corner."""

    parts: list[str] = field(default_factory=list)

    def line(
        self, spots: Sequence[Spot], colour: str, width: float = 1, dash: str = "solid", opacity: float = 1
    ) -> None:
        """A line through the spots."""
        extra = f' stroke-dasharray="{STROKES[dash]}"' if STROKES[dash] else ""
        extra += f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"{extra}/>'
        )

    def box(self, corner: Spot, opposite: Spot, colour: str, opacity: float = 1, hint: str = "") -> None:
        """A filled rectangle between two corners."""
        (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(corner, opposite))
        extra = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        shape = f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="{colour}"{extra}'
        self.parts.append(f"{shape}>{title_element(hint)}</rect>" if hint else f"{shape}/>")

    def text(self, spot: Spot, words: str, look: str = "", *, size: float = NORMAL, turn: float = 0) -> None:
        """Words at a spot; `look` is any of bold, soft, middle and end. `turn`: degrees, clockwise."""
        x, y = spot
        extra = ' font-weight="600"' if "bold" in look else ""
        anchor = next((anchor for anchor in ("middle", "end") if anchor in look), "")
        extra += f' text-anchor="{anchor}"' if anchor else ""
        extra += f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{SOFT if "soft" in look else INK}"{extra}>'
            f"{escaped(words)}</text>"
        )

    def symbol(
        self, kind: str, spot: Spot, colour: str, size: float, *, hollow: bool = False, hint: str = ""
    ) -> None:
        """One of the symbols of a style; `size` is its radius."""
        (x, y), inner = spot, title_element(hint)
        paint = f'fill="#ffffff" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
        if kind in ("ring", "x"):
            paint = f'fill="none" stroke="{colour}" stroke-width="2"'
        if kind in ("circle", "ring"):
            shape, place = "circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{size:g}"'
        elif kind == "x":
            arms = f"M{x - size:.1f} {y - size:.1f}L{x + size:.1f} {y + size:.1f}"
            shape, place = "path", f'd="{arms}M{x - size:.1f} {y + size:.1f}L{x + size:.1f} {y - size:.1f}"'
        else:
            corners = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in CORNERS[kind])
            shape, place = "polygon", f'points="{corners}"'
        self.parts.append(
            f"<{shape} {place} {paint}>{inner}</{shape}>" if inner else f"<{shape} {place} {paint}/>"
        )

    def document(self, size: Spot, title: str, description: str = "") -> str:
        """The file's text."""
        width, height = (math.ceil(side) for side in size)
        head = title_element(title) + (f"<desc>{escaped(description)}</desc>" if description else "")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{FONT}">\n{head}\n'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def title_element(text: str) -> str:
    return f"<title>{escaped(text)}</title>" if text else ""
