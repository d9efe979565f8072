"""Unbiased and conflicting accuracy over sparsity as a small SVG, for pages where scripts do not run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from prunebench.leaderboard.board import Section
from prunebench.leaderboard.figures import DENSE_COLOUR, Style, dodges, places, position, ticks
from prunebench.leaderboard.rows import Row
from prunebench.leaderboard.templating import render
from prunebench.stats.intervals import Interval

HEIGHT, TOP, BOTTOM = 500, 62, 414
MARGIN, PANEL_WIDTH = 58, 330
LABEL_GAP = 15
LETTER = 7.6
"""Width in pixels to allow for a letter of a label."""
SMALLEST_RANGE = 10
"""Percentage points that an axis spans at least, so that small differences look small."""
STROKES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "8 3 2 3"}
DENSE_DASHES = "6 4"
METRICS = (("unbiased", "Unbiased accuracy, %"), ("conflicting", "Conflicting accuracy, %"))


@dataclass(frozen=True)
class Point:
    """A mean and the ends of its interval, in pixels; no ends without an interval."""

    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """Unbroken runs of points of one method; `dashes` is an SVG dash array."""

    colour: str
    dashes: str
    pieces: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True)
class Label:
    """A name, where it is written, and the end of the line that it names."""

    text: str
    colour: str
    dashes: str
    y: float
    x_from: float
    y_from: float


@dataclass(frozen=True)
class Mark:
    """A star for native sparsity."""

    text: str
    colour: str
    point: Point


@dataclass(frozen=True)
class Panel:
    """One metric, laid out in pixels."""

    title: str
    left: float
    right: float
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    references: tuple[float, ...]
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]


def curves_svg(section: Section, styles: Mapping[str, Style]) -> str:
    """The SVG text of a section's two panels."""
    longest = max(len(row.method) for row in section.rows)
    pitch = MARGIN + PANEL_WIDTH + 45 + round(LETTER * longest)
    panels = [
        _panel(section, styles, metric, title, MARGIN + index * pitch)
        for index, (metric, title) in enumerate(METRICS)
    ]
    return render(
        "curves.svg.j2",
        title=f"Unbiased and conflicting accuracy over sparsity, {section.title}",
        heading=section.task,
        subtitle=section.title.removeprefix(section.task).strip(" ()"),
        seeds=len(section.seeds),
        width=len(panels) * pitch,
        height=HEIGHT,
        top=TOP,
        bottom=BOTTOM,
        panels=panels,
        dense_colour=DENSE_COLOUR,
        dense_dashes=DENSE_DASHES,
    )


@dataclass(frozen=True)
class Frame:
    """Where a panel's values stand in pixels: places on the sparsity axis, a metric's percent upwards."""

    metric: str
    left: float
    start: float
    end: float
    low: float
    high: float

    def x(self, place: float) -> float:
        return self.left + PANEL_WIDTH * (place - self.start) / (self.end - self.start)

    def y(self, percent: float) -> float:
        inside = min(max(percent, self.low), self.high)
        return BOTTOM - (BOTTOM - TOP) * (inside - self.low) / (self.high - self.low)

    def point(self, row: Row, place: float) -> Point | None:
        """The row's mean with the ends of its interval; None where it has no mean."""
        mean, half = (
            100 * value for value in (row.metric(self.metric).mean, row.metric(self.metric).half_width)
        )
        if not math.isfinite(mean):
            return None
        ends = (self.y(mean - half), self.y(mean + half)) if math.isfinite(half) else (None, None)
        return Point(self.x(place), self.y(mean), *ends)


def _panel(section: Section, styles: Mapping[str, Style], metric: str, title: str, left: float) -> Panel:
    low, high, step = value_range([row.metric(metric) for row in section.rows])
    frame = Frame(metric, left, min(places(section)) - 0.1, max(places(section)) + 0.1, low, high)
    right = left + PANEL_WIDTH
    lines = _lines(section, styles, frame)
    levels = {row.method: point.y for row in section.dense if (point := frame.point(row, 0)) is not None}
    ends = [Label(name, DENSE_COLOUR, DENSE_DASHES, y, right, y) for name, y in levels.items()]
    for name, line in lines.items():
        last = line.pieces[-1][-1]
        ends.append(Label(name, line.colour, line.dashes, last.y, last.x, last.y))
    steps = range(round((high - low) / step) + 1)
    return Panel(
        title=title,
        left=left,
        right=right,
        x_ticks=tuple((frame.x(place), text) for place, text in ticks(section)),
        y_ticks=tuple((frame.y(low + i * step), f"{low + i * step:g}") for i in steps),
        references=tuple(levels.values()),
        lines=tuple(lines.values()),
        marks=tuple(
            Mark(row.method, styles[row.method].colour, point)
            for row in section.native
            if (point := frame.point(row, position(row.achieved.mean))) is not None
        ),
        labels=tuple(spread_labels(ends)),
    )


def _lines(section: Section, styles: Mapping[str, Style], frame: Frame) -> dict[str, Line]:
    """Lines by method; a missing mean breaks the line."""
    lines = {}
    for method, dodge in dodges(section).items():
        rows = {row.sparsity: row for row in section.pruned if row.method == method}
        pieces: list[list[Point]] = [[]]
        for sparsity in section.sparsities:
            place = position(sparsity) + dodge
            point = frame.point(rows[sparsity], place) if sparsity in rows else None
            if point is not None:
                pieces[-1].append(point)
            else:
                pieces.append([])
        drawn = tuple(tuple(piece) for piece in pieces if piece)
        if drawn:
            lines[method] = Line(styles[method].colour, STROKES[styles[method].dash], drawn)
    return lines


def value_range(intervals: Sequence[Interval]) -> tuple[float, float, float]:
    """Lowest and highest percent of the axis and its tick step, around means and intervals, within 0-100."""
    edges = []
    for interval in intervals:
        if math.isfinite(interval.mean):
            half = interval.half_width if math.isfinite(interval.half_width) else 0.0
            edges += [100 * (interval.mean - half), 100 * (interval.mean + half)]
    low, high = (max(0.0, min(edges)), min(100.0, max(edges))) if edges else (0.0, 100.0)
    if high - low < SMALLEST_RANGE:
        low = min(max(0.0, (low + high - SMALLEST_RANGE) / 2), 100.0 - SMALLEST_RANGE)
        high = low + SMALLEST_RANGE
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 6 or step == 20)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    return low, high, step


def spread_labels(labels: Sequence[Label]) -> list[Label]:
    """The same labels moved up or down so that no two overlap, in the order of their lines' ends."""
    placed = sorted(labels, key=lambda label: (label.y, label.text))
    heights = [label.y for label in placed]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + LABEL_GAP)
    floor = BOTTOM + 4.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], floor)
        floor = heights[index] - LABEL_GAP
    return [replace(label, y=height) for label, height in zip(placed, heights, strict=True)]
