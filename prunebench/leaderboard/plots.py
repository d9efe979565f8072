"""Still figures of the leaderboard: metrics over sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from prunebench.leaderboard.columns import interval_text
from prunebench.leaderboard.values import Leaderboard, MethodRow, Track
from prunebench.metrics.registry import Metric, metric_named
from prunebench.report import format as fmt
from prunebench.report.plot import (
    REFERENCE,
    Axis,
    Mark,
    Plot,
    PlotGrid,
    Rule,
    Series,
    Style,
    dodged,
    sparsity_axis,
    styles_of,
)
from prunebench.stats.intervals import Interval, share_bounds

STILL = ("unbiased", "conflicting")
"""The metrics that are drawn over sparsity in the figure of a page without scripts."""
DODGE = 0.12
"""Decades of density over which the methods at one sparsity are spread, so that bars can be told apart."""
SMALLEST_SPAN = {"%": 10.0, "points": 5.0}
"""What an axis spans at least, so that small differences look small."""


def method_styles(board: Leaderboard) -> dict[str, Style]:
    """A fixed look for each method of the board."""
    return styles_of(board.labels)


def track_grid(track: Track, styles: Mapping[str, Style]) -> PlotGrid:
    """The still figure of a track, with the names of methods at the ends of their lines."""
    plots = [
        replace(curve_plot(track, styles, metric_named(name)), height=330.0, end_labels=True, caption="")
        for name in STILL
    ]
    words = (
        f"Mean over {fmt.plural(len(track.seeds), 'seed')}; bars: 95 % t-interval. Dashed: dense, reference."
    )
    stars = ", ".join(row.method for row in track.native if row.has_means)
    foot = (words, f"Stars: {stars}, at the sparsity that the method chose.") if stars else (words,)
    return PlotGrid(
        track.task,
        tuple(plots),
        subtitle=track.title.removeprefix(track.task).strip(" ()"),
        legend=False,
        foot=foot,
        description=still_title(track),
    )


def still_title(track: Track) -> str:
    """The words that stand for the still figure of a track."""
    names = [metric_named(name).title for name in STILL]
    return f"{' and '.join([names[0], *(name.lower() for name in names[1:])])} over sparsity, {track.title}"


def curve_plot(track: Track, styles: Mapping[str, Style], shown: Metric) -> Plot:
    """A metric over sparsity: a line a method, a star for native sparsity, dense as a horizontal line."""
    scale = shown.scale

    def mark(place: float, row: MethodRow | None) -> Mark:
        if row is None:
            return Mark(place, None)
        found = row.metric(shown.name)
        hint = f"{_place_words(row)}\n{interval_text(found, shown)}"
        return _interval_mark(place, found.mean, found.half_width, hint, scale, shown.range)

    lines = []
    by_method: dict[str, dict[float | None, MethodRow]] = {}
    for row in track.pruned:
        by_method.setdefault(row.method, {})[row.sparsity] = row
    for method, rows in sorted(by_method.items()):
        marks = (mark(fmt.sparsity_place(asked), rows.get(asked)) for asked in track.sparsities)
        lines.append(Series(method, tuple(marks), styles[method]))
    native = [row for row in track.native if row.has_means]
    stars = (
        Series(row.method, (mark(fmt.sparsity_place(row.achieved.mean), row),),
               replace(styles[row.method], symbol="star"), line=False, size=4.0, end_label=False)
        for row in native
    )  # fmt: skip
    unpruned = (row for row in track.dense if row.method in (track.reference, "dense"))
    dense = [(row, row.metric(shown.name)) for row in unpruned]
    rules = (
        Rule(scale * found.mean, row.method, REFERENCE, hint=interval_text(found, shown))
        for row, found in dense if math.isfinite(found.mean)
    )  # fmt: skip
    bounds = (0.0, 100.0) if shown.unit == "%" else (-math.inf, math.inf)
    return Plot(
        shown.title,
        sparsity_axis(track.sparsities, (row.achieved.mean for row in native), DODGE),
        Axis(shown.title_with_unit, least=SMALLEST_SPAN.get(shown.unit, 0.0), bounds=bounds),
        series=(*dodged(lines, DODGE), *stars),
        rules=tuple(rules),
        caption=f"{shown.help}. Dashed: the dense model, and the reference with the steps of a pruned one.",
        key=shown.name,
    )


def _interval_mark(
    x: float,
    mean: float,
    half_width: float,
    hint: str,
    scale: float = 1,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> Mark:
    """A mark with its interval, cut at what is possible."""
    if not math.isfinite(half_width):
        return Mark(x, scale * mean, hint=hint)
    low, high = share_bounds(Interval(mean, half_width, 0), *possible)
    return Mark(x, scale * mean, scale * low, scale * high, hint)


def _place_words(row: MethodRow) -> str:
    return f"sparsity {fmt.sparsity(row.sparsity, row.achieved.mean, dense=row.dense)}"
