"""Plots as values: marks, lines, bands, rules, bars and heat maps on linear or logarithmic axes, and grids of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from prunebench.report.format import sparsity_place, sparsity_ticks

# Okabe and Ito's palette without its yellow and black, which vanish on a white or a dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6D46")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "x", "ring")
INK, GREY, BEHIND = "#1f2328", "#7F7F7F", "#cdd3d9"
DIVERGING = ("#08306b", "#6baed6", "#eeeeee", "#f4a582", "#8c2d04")
"""From a fall over no change to a rise: told apart with any colour vision."""
MOST_TICKS = 7
OTHERS = "others"


@dataclass(frozen=True)
class Style:
    """How a series looks: a colour, one of DASHES, and one of SYMBOLS (empty: no symbol)."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"


REFERENCE = Style(GREY, "dash", "")


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """A look for each name, in order: seven colours, then the same with other dashes and symbols."""
    found = {}
    for index, name in enumerate(names):
        turn = index // len(PALETTE) % len(DASHES)
        found[name] = Style(PALETTE[index % len(PALETTE)], DASHES[turn], SYMBOLS[turn])
    return found


@dataclass(frozen=True)
class Axis:
    """A title and a scale.

    Args:
        title: what stands along it, with its unit.
        log: a logarithmic scale; values that are not positive are not drawn.
        low, high: its ends; where one is None, both are found from the values.
        ticks: (place, label); None for ticks at 1, 2 and 5 times powers of ten.
        suffix: written after the labels of ticks that are found.
        least: what it spans at least, so that small differences look small; on a log scale a factor.
        bounds: where ends that are found may not go beyond.
        reach: so much of the span of the means are intervals followed beyond them; what is longer is cut.
    """

    title: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[tuple[float, str], ...] | None = None
    suffix: str = ""
    least: float = 0.0
    bounds: tuple[float, float] = (-math.inf, math.inf)
    reach: float = math.inf


@dataclass(frozen=True)
class Mark:
    """A point, the ends of its interval, what it says on hovering (lines), and a label beside it.

    A `y` that is None or not finite is a gap.
    """

    x: float
    y: float | None
    low: float | None = None
    high: float | None = None
    hint: str = ""
    label: str = ""
    size: float | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw."""
        return self.y is not None and math.isfinite(self.y) and math.isfinite(self.x)

    def moved(self, by: float) -> Mark:
        """The same, further along the x axis."""
        return Mark(self.x + by, self.y, self.low, self.high, self.hint, self.label, self.size)


@dataclass(frozen=True)
class Series:
    """Marks of one look, joined by a line where they follow one another.

    Args:
        line: whether they are joined.
        width, size: of the line, and of the symbols (radius), in pixels.
        hollow: symbols with a white inside.
        key: what a page's legend switches it by, the name by default.
        legend: whether a legend names it.
        end_label: whether a plot with `end_labels` names it at its last mark.
    """

    name: str
    marks: tuple[Mark, ...]
    style: Style = Style(PALETTE[0])
    line: bool = True
    width: float = 2.0
    size: float = 3.2
    hollow: bool = False
    opacity: float = 1.0
    key: str = ""
    legend: bool = True
    end_label: bool = True

    @property
    def pieces(self) -> list[list[Mark]]:
        """Unbroken runs of marks."""
        return [list(run) for drawn, run in groupby(self.marks, lambda mark: mark.drawn) if drawn]


@dataclass(frozen=True)
class Rule:
    """A horizontal line across the plot."""

    value: float
    name: str = ""
    style: Style = REFERENCE
    width: float = 1.4
    hint: str = ""


@dataclass(frozen=True)
class Band:
    """An area across the plot between two heights."""

    low: float
    high: float
    name: str = ""
    colour: str = GREY


@dataclass(frozen=True)
class Bars:
    """Bars of one colour: (x, bottom, top); stacked where a bottom is another's top."""

    name: str
    bars: tuple[tuple[float, float, float], ...]
    colour: str = PALETTE[0]
    width: float = 0.75


@dataclass(frozen=True)
class Callout:
    """A few letters above the plot, with a line down to a point."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Plot:
    """A pair of axes with everything on it; what is first is drawn first.

    Args:
        title, subtitle: above it; the subtitle may have several lines.
        width, height: of the area between the axes, in pixels.
        end_labels: series are named at their ends, at the right, instead of in a legend.
        foot: lines below it.
        caption: a sentence for the page it stands on.
        key: a name for the page and its script.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    bands: tuple[Band, ...] = ()
    rules: tuple[Rule, ...] = ()
    bars: tuple[Bars, ...] = ()
    callouts: tuple[Callout, ...] = ()
    subtitle: str = ""
    width: float = 330.0
    height: float = 250.0
    end_labels: bool = False
    foot: tuple[str, ...] = ()
    caption: str = ""
    key: str = ""

    @property
    def empty(self) -> bool:
        """Whether no series and no bar has anything to draw."""
        return not any(mark.drawn for series in self.series for mark in series.marks) and not any(
            group.bars for group in self.bars
        )


@dataclass(frozen=True)
class PlotGrid:
    """Plots side by side under one heading and legend; `shared` ones have the same axes, labelled at the edges."""

    title: str
    plots: tuple[Plot, ...]
    columns: int = 2
    subtitle: str = ""
    legend: bool = True
    shared: bool = False
    foot: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Colours by row and column; None is undefined, and crossed.

    Args:
        groups: names of neighbouring columns with how many there are; written instead of `columns`, if given.
        unit: beside the scale of colours.
        decimals: of the values on hovering.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    unit: str = ""
    decimals: int = 3
    subtitle: str = ""
    caption: str = ""
    key: str = ""

    @property
    def reach(self) -> float:
        """The value at the end of the scale of colours; positive."""
        values = (abs(value) for row in self.values for value in row if value is not None)
        return max([v for v in values if math.isfinite(v)], default=0.0) or 1.0

    @property
    def headings(self) -> tuple[tuple[str, float], ...]:
        """Names of columns or groups, and where their middles stand: 0 is the first column's middle."""
        if not self.groups:
            return tuple((name, float(index)) for index, name in enumerate(self.columns))
        found, start = [], 0
        for name, size in self.groups:
            found.append((name, start + (size - 1) / 2))
            start += size
        return tuple(found)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where one group of columns ends and the next begins."""
        ends, start = [], 0
        for _, size in self.groups[:-1]:
            start += size
            ends.append(start - 0.5)
        return tuple(ends)

    def colour(self, value: float) -> str:
        """The colour of a value, between those given."""
        last = len(DIVERGING) - 1
        place = min(max((value / self.reach + 1) / 2, 0.0), 1.0) * last
        index = min(int(place), last - 1)
        low, high = (_channels(colour) for colour in DIVERGING[index : index + 2])
        mixed = (round(a + (place - index) * (b - a)) for a, b in zip(low, high))
        return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def sparsity_axis(asked: Iterable[float], achieved: Iterable[float] = (), margin: float = 0.12) -> Axis:
    """The axis of sparsity: decades of density below 1, with ticks at what was asked for and what was achieved.

    It reaches beyond every achieved one, also where there is no room for its tick.
    """
    asked, achieved = list(asked), list(achieved)
    places = [sparsity_place(sparsity) for sparsity in (*asked, *achieved)] or [0.0]
    title = "Sparsity (scale: log of density)"
    ticks = sparsity_ticks(asked, achieved)
    return Axis(title, low=min(places) - margin, high=max(places) + margin, ticks=ticks)


def dodged(series: Sequence[Series], room: float) -> tuple[Series, ...]:
    """The same, shifted sideways within `room` so that intervals at one place can be told apart."""
    shifts = [room * ((index + 0.5) / len(series) - 0.5) for index in range(len(series))]
    return tuple(
        replace(one, marks=tuple(mark.moved(shift) for mark in one.marks))
        for one, shift in zip(series, shifts)
    )


def small_multiples(plot: Plot, names: Sequence[str], columns: int = 4, others: str = OTHERS) -> PlotGrid:
    """A plot for each name, with the series of that name, and the other names' small and grey behind it.

    Series of names that are not listed, rules, bands and bars stand in every plot.
    """
    grey = Style(BEHIND, "solid", "")

    def faded(series: Series) -> Series:
        marks = tuple(replace(mark, low=None, high=None, hint="", label="") for mark in series.marks)
        style = grey if series.line else Style(BEHIND, "solid", series.style.symbol)
        return replace(series, name=others, marks=marks, style=style, width=0.8, size=3.0, hollow=False)

    def panel(name: str) -> Plot:
        behind = [faded(series) for series in plot.series if series.name in names and series.name != name]
        own = [
            replace(series, legend=series.name not in names)
            for series in plot.series
            if series.name == name or series.name not in names
        ]
        return replace(plot, title=name, subtitle="", series=(*behind, *own), end_labels=False)

    panels = tuple(panel(name) for name in names)
    return PlotGrid(
        plot.title, panels, min(columns, max(1, len(names))), plot.subtitle, True, True, plot.foot
    )


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of [low, high] to [start, end] pixels; values outside go beyond them."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.low <= value <= self.high


@dataclass
class _Extent:
    """Values along one axis: means, which always fit, and the ends of intervals."""

    means: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


def limits(plots: Sequence[Plot], axis: str) -> tuple[float, float]:
    """The ends of the "x" or "y" axis that plots share, as their first one asks for."""
    asked: Axis = getattr(plots[0], axis)
    if asked.low is not None and asked.high is not None:
        return asked.low, asked.high
    found = _Extent()
    for plot in plots:
        _gather(plot, axis, found)
    found.means = [value for value in found.means if math.isfinite(value) and (value > 0 or not asked.log)]
    found.ends = [value for value in found.ends if math.isfinite(value) and (value > 0 or not asked.log)]
    if not found.means:
        return (1.0, 10.0) if asked.log else (0.0, 1.0)
    if asked.log:
        return log_limits([*found.means, *found.ends], max(asked.least, 2.0))
    return _linear_limits(found, asked)


def _gather(plot: Plot, axis: str, found: _Extent) -> None:
    asked: Axis = getattr(plot, axis)
    found.means += [place for place, _ in asked.ticks or ()]
    if axis == "y":
        found.means += [rule.value for rule in plot.rules]
        found.ends += [end for band in plot.bands for end in (band.low, band.high)]
    for series in plot.series:
        for mark in series.marks:
            if mark.y is None or not mark.drawn:
                continue
            found.means.append(mark.y if axis == "y" else mark.x)
            if axis == "y":
                found.ends += [end for end in (mark.low, mark.high) if end is not None]
    for group in plot.bars:
        for x, bottom, top in group.bars:
            found.means += [bottom, top] if axis == "y" else [x - group.width / 2, x + group.width / 2]


def _linear_limits(found: _Extent, axis: Axis) -> tuple[float, float]:
    """Around all means and the near ends of intervals; ends of an axis without own ticks are ticks themselves."""
    low, high = min(found.means), max(found.means)
    reach = axis.reach * max(high - low, axis.least) if math.isfinite(axis.reach) else math.inf
    low, high = max(min([low, *found.ends]), low - reach), min(max([high, *found.ends]), high + reach)
    low, high = max(low, axis.bounds[0]), min(high, axis.bounds[1])
    missing = max(0.0, axis.least - (high - low)) or (abs(low) or 1.0) * (high == low)
    low, high = low - missing / 2, high + missing / 2
    shift = max(0.0, axis.bounds[0] - low) or min(0.0, axis.bounds[1] - high)
    low, high = low + shift, high + shift
    if axis.ticks is not None:
        margin = 0.04 * (high - low)
        return low - margin, high + margin
    step = tick_step(low, high)
    return step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)


def tick_step(low: float, high: float, most: int = MOST_TICKS - 1) -> float:
    """The smallest of 1, 2 and 5 times powers of ten that divides [low, high] into at most so many steps."""
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    return next(step * base for step in (1, 2, 5, 10) if step * base >= rough * (1 - 1e-9))


def ticks_of(axis: Axis, low: float, high: float) -> list[tuple[float, str]]:
    """Places and labels of an axis between two ends: its own, or round ones."""
    if axis.ticks is not None:
        return [(place, text) for place, text in axis.ticks if low <= place <= high]
    if axis.log:
        return [(place, f"{place:g}{axis.suffix}") for place in log_ticks(low, high)]
    step = tick_step(low, high)
    places = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(place, f"{place:.6g}{axis.suffix}".replace("-", "\u2212")) for place in places]


def log_limits(values: Iterable[float], least_factor: float) -> tuple[float, float]:
    """Round ends (1, 2 or 5 times a power of ten) around positive values, spanning at least `least_factor`."""
    found = list(values)
    low, high = _round_down(min(found)), _round_up(max(found))
    while high / low < least_factor:
        low, high = _round_down(low * 0.99), _round_up(high * 1.01)
    return low, high


def log_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Ticks at 1, 2, 5 times powers of ten, at 1 and 3, or at powers of ten alone: as many as fit into `most`."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = (step * 10.0**exponent for exponent in exponents for step in steps)
        ticks = [tick for tick in every if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= most:
            break
    return ticks


def _round_down(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return max(step * base for step in (1, 2, 5) if step * base <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return min(step * base for step in (1, 2, 5, 10) if step * base >= value * (1 - 1e-9))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to at least `gap`, in their order, within [low, high] as far as they fit."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = limit = min(moved[index], limit)
        limit -= gap
    result = [0.0] * len(places)
    for index, place in zip(order, moved):
        result[index] = max(place, low)
    return result
