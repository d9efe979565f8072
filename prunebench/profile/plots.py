"""Plots of a profile: dense layers beneath the roofline, and speed-up over sparsity with ceilings and break-even."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunebench.profile.results import (
    COMPILED,
    DENSE_LAYOUT,
    EAGER,
    PATTERNS,
    SHRUNK,
    LayerResult,
    Profile,
    break_even,
    network_points,
    operating_points,
    pareto_front,
    speed_up_points,
)
from prunebench.pruning.structure import BLOCK
from prunebench.report import format as fmt
from prunebench.report.plot import (
    DASHES,
    GREY,
    INK,
    PALETTE,
    Axis,
    Callout,
    Mark,
    Plot,
    PlotGrid,
    Rule,
    Series,
    Style,
    log_limits,
    sparsity_axis,
)

# Each family of layouts keeps its colour and its symbol in every plot.
STYLES = {
    "block": Style(PALETTE[0]),
    "direct": Style(PALETTE[1], symbol="triangle-up"),
    "semi_structured": Style(PALETTE[2], symbol="square"),
    SHRUNK: Style("#B0568C", symbol="x"),
    COMPILED: Style("#6B7280"),
}
OTHER = Style(PALETTE[6], symbol="square")
HOT, COLD = "hot cache", "cold cache"
DENSE_LINE = f"1{fmt.TIMES}: {EAGER} channels_last, dense"
NETWORK_EVEN, SYMBOLS = "break-even", ("circle", "triangle-up", "square", "diamond", "x")
BREAK_EVEN, TAKEN = "break-even, hot cache", "taken by auto"
BLOCK_CEILING = f"ceiling: zero {BLOCK[0]} x {BLOCK[1]} blocks skipped"
INTERVALS = "Vertical lines: p20 to p80, hot cache"
FREE_CEILING = "ceiling: every zero free"
FRONT = "front: no point beats these in both"
WIDTH, HEADROOM, NEAR = 300.0, 3.0, 5e-4
"""Pixels of a panel; how far above the speed-ups ceilings are shown; sparsities that are written as the same."""
FOOT_WIDTH = 52
"""Letters of a line below a panel."""


def roofline_plot(profile: Profile) -> Plot | None:
    """Attained FLOP/s of each dense layer over its FLOP per byte, hot and cold; None without measurements.

    A layer was timed dense once for every pattern and sparsity; drawn is the fastest median.
    """
    if profile.machine is None or not profile.layer_names:
        return None
    bandwidth, peak = profile.machine.copy_gb_per_s, profile.machine.gflop_per_s
    unit, scale = ("TFLOP/s", 1e-3) if peak >= 1e4 else ("GFLOP/s", 1.0)
    hot: list[Mark] = []
    cold: list[Mark] = []
    joins, callouts, names = [], [], []
    for index, name in enumerate(profile.layer_names):
        found = [result for result in profile.layers if result.layer == name and result.timings]
        roof, shape = found[0].roof, found[0].shape
        assert roof is not None
        marks = []
        for cache, series in (("hot", hot), ("cold", cold)):
            medians = [latency.p50 for result in found if (latency := result.latency(EAGER, cache))]
            rate = scale * roof.gflop / min(medians) * 1e3 if medians else None
            marks.append(
                Mark(roof.flop_per_byte, rate, hint=f"{name} {shape}: {fmt.significant(rate)} {unit}")
            )
            series.append(marks[-1])
        rates = [mark.y for mark in marks if mark.y is not None]
        joins.append(
            Series("", tuple(marks), Style(PALETTE[0], symbol=""), width=1, opacity=0.5, legend=False)
        )
        callouts.append(Callout(str(index + 1), roof.flop_per_byte, max(rates)))
        names.append(f"{index + 1}  {name}  {shape}")
    ridge = peak / bandwidth
    low, high = log_limits([*(mark.x for mark in hot), ridge / 2, ridge * 2], 20)
    ends = [scale * peak, scale * min(bandwidth * low, peak)]
    y_low, y_high = log_limits([*(mark.y for mark in (*hot, *cold) if mark.y is not None), *ends], 10)
    ceilings = f"{fmt.significant(bandwidth)} GB/s, {fmt.significant(peak * scale)} {unit}"
    corners = ((low, ends[1]), (ridge, ends[0]), (high, ends[0]))
    roof_line = Series(ceilings, tuple(Mark(*corner) for corner in corners), Style(INK, symbol=""))
    return Plot(
        "Dense layers beneath the roofline",
        Axis("FLOP per byte (each operand moved once)", log=True, low=low, high=high),
        Axis(f"attained {unit}", log=True, low=y_low, high=y_high),
        (
            roof_line,
            *joins,
            Series(HOT, tuple(hot), Style(PALETTE[0]), line=False, size=4),
            Series(COLD, tuple(cold), Style(PALETTE[1]), line=False, size=4, hollow=True),
        ),
        callouts=tuple(callouts),
        subtitle=f"{EAGER} channels_last, fastest median; roofs measured on this machine",
        width=384,
        foot=tuple(names),
        key="roofline",
    )


def network_plot(profile: Profile) -> Plot | None:
    """Speed-up of the whole sparse network over sparsity, a line a pattern, break-even marked; None without any.

    Over the fastest dense network that was timed in the same turns.
    """
    found = {pattern: network_points(profile, pattern) for pattern in PATTERNS}
    found = {pattern: points for pattern, points in found.items() if points}
    if not found:
        return None
    series, evens, words = [], [], []
    for number, (pattern, points) in enumerate(found.items()):
        style = Style(PALETTE[number % len(PALETTE)], symbol=SYMBOLS[number % len(SYMBOLS)])
        marks = tuple(
            Mark(fmt.sparsity_place(zeros), speed, hint=f"{pattern}, {zeros:.3f} zeros: {fmt.times(speed)}")
            for zeros, speed in points
        )
        series.append(Series(pattern, marks, style, len(points) > 1, size=4))
        even = break_even(points)
        words.append(f"{pattern} {even.words}".replace(" ", "\u00a0"))
        if even.sparsity is not None and not even.at_most:
            mark = Mark(fmt.sparsity_place(even.sparsity), 1.0, hint=f"{pattern} {even.words}")
            evens.append(
                Series(
                    NETWORK_EVEN,
                    (mark,),
                    Style(style.colour, symbol="diamond"),
                    line=False,
                    size=5,
                    hollow=True,
                )
            )
    speeds = [speed for points in found.values() for _, speed in points]
    low, high = log_limits([*speeds, 1.0], 4)
    return Plot(
        "Whole network: speed-up over sparsity",
        sparsity_axis(round(zeros, 3) for points in found.values() for zeros, _ in points),
        Axis("", log=True, low=low, high=high, suffix=fmt.TIMES),
        (*series, *evens),
        rules=(Rule(1.0, "1\u00d7: the fastest dense network", Style(INK, symbol="")),),
        subtitle="each layer in its fastest layout, over the fastest dense network of the same turns",
        width=384,
        foot=tuple(
            textwrap.wrap("break-even: " + " \u00b7 ".join(words), FOOT_WIDTH, break_on_hyphens=False)
        ),
        key="speed-up-network",
    )


def sweep_plot(profile: Profile) -> Plot | None:
    """Throughput over latency, a line a network and number of threads, a point a batch; None without a sweep.

    Drawn beneath them, with the batches beside its points: the front, which no other point beats in both.
    """
    points = operating_points(profile.sweep)
    if not points:
        return None
    networks = list(dict.fromkeys(point.network for point in points))
    threads = sorted({point.threads for point in points})
    best = pareto_front(points)
    series = []
    for name, count in itertools.product(networks, threads):
        own = [point for point in points if (point.network, point.threads) == (name, count)]
        own.sort(key=lambda point: point.batch)
        marks = (
            Mark(
                point.latency_ms,
                point.images_per_second,
                hint=f"batch {point.batch}, {fmt.plural(count, 'thread')}: "
                f"{fmt.significant(point.latency_ms)} ms, {fmt.significant(point.images_per_second)} images/s",
                label=str(point.batch) if point in best else "",
            )
            for point in own
        )
        place, turn = networks.index(name), threads.index(count)
        look = Style(PALETTE[place % len(PALETTE)], DASHES[turn % len(DASHES)], SYMBOLS[place % len(SYMBOLS)])
        words = f"{name}, {fmt.plural(count, 'thread')}" if len(threads) > 1 else name
        series.append(Series(words, tuple(marks), look, len(own) > 1, size=3.6, hollow=turn > 0))
    front = Series(
        FRONT,
        tuple(Mark(point.latency_ms, point.images_per_second) for point in best),
        Style(GREY, symbol=""),
        width=6,
        opacity=0.35,
    )
    x = log_limits([point.latency_ms for point in points], 4)
    y = log_limits([point.images_per_second for point in points], 4)
    return Plot(
        "Batches and threads: throughput over latency",
        Axis("latency of a batch, ms (left is better)", log=True, low=x[0], high=x[1]),
        Axis("images a second (up is better)", log=True, low=y[0], high=y[1]),
        (front, *series),
        subtitle="medians; numbers: images of a batch on the front",
        width=384,
        height=300,
        key="sweep",
    )


def speed_up_plots(profile: Profile, pattern: str) -> PlotGrid | None:
    """A panel a layer, or one over all layers if the pattern was measured at one sparsity; None without sparse layouts.

    Speed-ups are over eager torch, hot with p20 to p80, and cold; panels over layers show the hot ones alone.
    """
    found = [result for result in profile.layers if result.pattern == pattern and result.timings]
    if not any(result.families() for result in found):
        return None
    if len({result.sparsity for result in found}) == 1:
        plots = [_over_layers(found, {name: i + 1 for i, name in enumerate(profile.layer_names)})]
    else:
        layers = dict.fromkeys(result.layer for result in found)
        plots = [_over_sparsity([result for result in found if result.layer == layer]) for layer in layers]
    return PlotGrid(f"Speed-up over sparsity: {pattern} zeros", tuple(plots), min(2, len(plots)), INTERVALS)


def _over_sparsity(found: Sequence[LayerResult]) -> Plot:
    """The panel of a layer, at the zeros that its masks have: blocks and filters cannot meet every sparsity."""
    places = {id(result): fmt.sparsity_place(result.achieved or 0.0) for result in found}
    cold, evens, words = [], [], []
    for family in _families(found):
        colour = style_of(family).colour
        marks = tuple(_speed_ups(found, places, family, "cold"))
        look = Style(colour, "dash", "")
        cold.append(Series(f"dashed in colour: {COLD}", marks, look, width=1.2, opacity=0.7))
        if family == COMPILED:
            continue
        even = break_even(speed_up_points(found, family))
        words.append(f"{family} {even.words}".replace(" ", "\u00a0"))
        if even.sparsity is not None and not even.at_most:
            mark = Mark(fmt.sparsity_place(even.sparsity), 1.0, hint=f"{family} {even.words}")
            look = Style(colour, symbol="diamond")
            evens.append(Series(BREAK_EVEN, (mark,), look, line=False, size=4.5, hollow=True))
    axis = sparsity_axis(map(_written_sparsity, found))
    foot = textwrap.wrap("break-even: " + " \u00b7 ".join(words), FOOT_WIDTH, break_on_hyphens=False)
    plot = _panel(found, places, axis, joined=True)
    return replace(
        plot,
        title=found[0].layer,
        subtitle=found[0].shape,
        series=(*cold, *plot.series, *evens),
        foot=tuple(foot if words else ()),
    )


def _over_layers(found: Sequence[LayerResult], numbers: Mapping[str, int]) -> Plot:
    """The panel of all layers at one sparsity, by their numbers in the roofline."""
    places = {id(result): float(numbers[result.layer]) for result in found}
    ticks = tuple((place, f"{place:g}") for place in sorted(places.values()))
    axis = Axis(
        "layer (its number in the roofline)", low=ticks[0][0] - 0.5, high=ticks[-1][0] + 0.5, ticks=ticks
    )
    return replace(_panel(found, places, axis, joined=False), title=found[0].point)


def _written_sparsity(result: LayerResult) -> float:
    """The sparsity at a tick: the one asked for, or the achieved one where they differ visibly."""
    achieved = result.achieved or 0.0
    near = result.sparsity is not None and abs(result.sparsity - achieved) < NEAR
    return result.sparsity if near and result.sparsity is not None else round(achieved, 3)


def _panel(found: Sequence[LayerResult], places: Mapping[int, float], x: Axis, *, joined: bool) -> Plot:
    """Ceilings, hot speed-ups of every family and what `auto` takes; ceilings far above the speed-ups are cut."""
    marks = {
        (family, cache): _speed_ups(found, places, family, cache)
        for family in _families(found)
        for cache in ("hot", "cold")
    }
    families = [
        Series(family, tuple(curve), style_of(family), joined, size=3.6)
        for (family, cache), curve in marks.items()
        if cache == "hot"
    ]
    ends = [(mark.y, mark.low, mark.high) for curve in marks.values() for mark in curve]
    speed_ups = [value for values in ends for value in values if value is not None]
    roofs = [(places[id(result)], result.roof) for result in found if result.roof]
    ceilings = [
        (BLOCK_CEILING, "dash", [(place, roof.block_ceiling) for place, roof in roofs]),
        (FREE_CEILING, "dot", [(place, roof.free_ceiling) for place, roof in roofs]),
    ]
    top = HEADROOM * max([*speed_ups, 1.0])
    reached = [min(value, top) for *_, spots in ceilings for _, value in spots]
    low, high = log_limits([*speed_ups, *reached, 1.0], 4)
    auto = [
        (places[id(one)], 1.0 if one.auto == DENSE_LAYOUT else one.speed_up(one.auto or "")) for one in found
    ]
    taken = tuple(Mark(place, speed) for place, speed in auto if speed)
    size = min(7.5, max(4.5, 0.48 * WIDTH / len(found)))
    return Plot(
        "",
        x,
        Axis("", log=True, low=low, high=high, suffix=fmt.TIMES),
        (
            *(_ceiling(name, dash, spots, joined) for name, dash, spots in ceilings),
            *families,
            Series(TAKEN, taken, Style(INK, symbol="ring"), line=False, size=size, legend=bool(taken)),
        ),
        rules=(Rule(1.0, DENSE_LINE, Style(INK, symbol="")),),
        width=WIDTH,
        height=190,
    )


def _ceiling(name: str, dash: str, spots: Sequence[tuple[float, float]], joined: bool) -> Series:
    """A line through the spots, or a short bar at each."""
    marks = [Mark(place, value) for place, value in sorted(spots)]
    if not joined:
        marks = [
            Mark(place + shift, value if shift else None)
            for place, value in spots
            for shift in (-0.3, 0.3, 0)
        ]
    return Series(name, tuple(marks), Style(GREY, dash, ""), width=1.7)


def _speed_ups(
    found: Sequence[LayerResult], places: Mapping[int, float], family: str, cache: str
) -> list[Mark]:
    """Medians of a family, from left to right, hot ones with the ends at p20 and p80."""
    marks = []
    for result in found:
        best = result.timing(family) if family == COMPILED else result.fastest(cache, family)
        times, dense = best.latency(cache) if best else None, result.latency(EAGER, cache)
        if times is None or dense is None:
            continue
        speed = dense.p50 / times.p50
        low, high = (dense.p50 / times.p80, dense.p50 / times.p20) if cache == "hot" else (None, None)
        marks.append(Mark(places[id(result)], speed, low, high, hint=f"{fmt.times(speed)}, {cache} cache"))
    return sorted(marks, key=lambda mark: mark.x)


def style_of(family: str) -> Style:
    """Colour and symbol of a family of layouts."""
    return STYLES.get(family, OTHER)


def _families(found: Sequence[LayerResult]) -> list[str]:
    """Families of layouts with any time, in the order of their styles, others after them; torch.compile if measured."""
    names = {family for result in found for family in result.families()}
    names |= {COMPILED for result in found if result.speed_up(COMPILED)}
    order = list(STYLES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order) - 1.5, name))
