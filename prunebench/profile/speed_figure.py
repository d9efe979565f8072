"""Speed-up over sparsity, a panel a layer, with ceilings, break-even and what `auto` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prunebench.profile.drawing import (
    AXIS,
    DARK,
    GRID,
    LETTER,
    SOFT,
    TIMES,
    Canvas,
    LogScale,
    Scale,
    Spot,
    draw_key,
    log_range,
    log_ticks,
)
from prunebench.profile.results import (
    COMPILED,
    EAGER,
    SHRUNK,
    LayerResult,
    Profile,
    break_even,
    series,
    shown_layers,
)

# Okabe and Ito's palette; each family of layouts keeps its colour and its symbol in every figure.
STYLES = {
    "block": ("#0072B2", "circle"),
    "direct": ("#D55E00", "triangle"),
    "semi_structured": ("#009E73", "square"),
    SHRUNK: ("#B0568C", "cross"),
    COMPILED: ("#6B7280", "circle"),
}
OTHER = ("#8C6D46", "square")
LEAST_WIDTH, PANEL_WIDTH, PANEL_HEIGHT = 460, 330, 250
TOP_SPARSITY = 0.9999


@dataclass(frozen=True)
class Curve:
    """Speed-ups of a family on a panel: (place, median, at p80, at p20), and the medians with a cold cache."""

    family: str
    hot: tuple[tuple[float, float, float, float], ...]
    cold: tuple[Spot, ...]


@dataclass(frozen=True)
class Panel:
    """Speed-up over places on a horizontal axis (sparsities of a layer, or layers)."""

    title: str
    subtitle: str
    ticks: tuple[tuple[float, str], ...]
    axis: str
    joined: bool
    curves: tuple[Curve, ...]
    block_ceiling: tuple[Spot, ...]
    free_ceiling: tuple[Spot, ...]
    break_evens: tuple[tuple[str, float | None, str], ...]
    taken: tuple[Spot, ...]


def position(sparsity: float) -> float:
    """Where a sparsity stands on the axis: decades of density below 1."""
    return -math.log10(1 - min(sparsity, TOP_SPARSITY))


def panels(profile: Profile, pattern: str) -> list[Panel]:
    """One panel a layer; or one over all layers, if the pattern was measured at one sparsity only."""
    found = [result for result in profile.layers if result.pattern == pattern and result.timings]
    layers = list(dict.fromkeys(result.layer for result in found))
    if len({result.sparsity for result in found}) == 1:
        numbers = {layer: index + 1 for index, layer in enumerate(shown_layers(profile))}
        places = {id(result): float(numbers[result.layer]) for result in found}
        sparsity = found[0].sparsity
        words = pattern if sparsity is None or pattern == "2:4" else f"{pattern}, sparsity {sparsity:g}"
        ticks = tuple((float(numbers[layer]), str(numbers[layer])) for layer in layers)
        subtitle = "layers by their numbers in the roofline"
        return [_panel(found, places, words, subtitle, ticks, "layer", pattern)]
    result_panels = []
    for layer in layers:
        mine = [result for result in found if result.layer == layer]
        places = {id(result): position(_sparsity(result)) for result in mine}
        ticks = tuple((position(_sparsity(result)), f"{_sparsity(result):.3g}") for result in mine)
        result_panels.append(
            _panel(mine, places, layer, mine[0].shape, ticks, "sparsity (scale: log of density)", pattern)
        )
    return result_panels


def _sparsity(result: LayerResult) -> float:
    """The share of zeros that the mask has: blocks and filters cannot meet every sparsity."""
    return result.achieved or 0.0


def _panel(
    found: list[LayerResult],
    places: dict[int, float],
    title: str,
    subtitle: str,
    ticks: tuple[tuple[float, str], ...],
    axis: str,
    pattern: str,
) -> Panel:
    joined = axis != "layer"
    families = sorted({family for result in found for family in result.families()}, key=_order)
    curves = [_curve(found, places, family) for family in families]
    if any(result.speed_up(COMPILED) for result in found):
        curves.append(_curve(found, places, COMPILED))
    evens = []
    for family in families if joined else ():
        even = break_even(series(found, found[0].layer, pattern, family))
        place = None if even.at_most else even.sparsity
        evens.append((family, place, even.words.replace("at most", "\u2264").replace(" measured", "")))
    taken = []
    for result in found:
        speed = 1.0 if result.auto == "dense" else result.speed_up(result.auto or "")
        if speed:
            taken.append((places[id(result)], speed))
    roofs = [(places[id(result)], result.roof) for result in found if result.roof]
    return Panel(
        title, subtitle, tuple(sorted(set(ticks))), axis, joined, tuple(curves),
        tuple((place, roof.block_ceiling) for place, roof in roofs),
        tuple((place, roof.free_ceiling) for place, roof in roofs),
        tuple(evens), tuple(taken),
    )  # fmt: skip


def _curve(found: list[LayerResult], places: dict[int, float], family: str) -> Curve:
    hot, cold = [], []
    for result in found:
        for cache in ("hot", "cold"):
            best = result.timing(family) if family == COMPILED else result.fastest(cache, family)
            base = result.timing(EAGER)
            times = (best.hot_ms if cache == "hot" else best.cold_ms) if best else None
            dense = base.p50(cache) if base else None
            if times is None or dense is None:
                continue
            place = places[id(result)]
            if cache == "hot":
                hot.append((place, dense / times.p50, dense / times.p80, dense / times.p20))
            else:
                cold.append((place, dense / times.p50))
    return Curve(family, tuple(sorted(hot)), tuple(sorted(cold)))


def panel_canvas(panel: Panel) -> Canvas:
    """A panel as a picture of its own."""
    lines = _wrap([f"{family} {words}" for family, _, words in panel.break_evens], "break-even: ")
    canvas = Canvas(PANEL_WIDTH, PANEL_HEIGHT + 15 * len(lines), f"Speed-up: {panel.title}")
    speeds = [value for curve in panel.curves for _, *values in curve.hot for value in values]
    speeds += [value for curve in panel.curves for _, value in curve.cold]
    top = max([*speeds, 1.0])
    roofs = [min(value, 3 * top) for _, value in (*panel.block_ceiling, *panel.free_ceiling)]
    low, high = log_range([*speeds, *roofs, 1.0], 4)
    places = [place for place, _ in panel.ticks]
    margin = 0.08 * (max(places) - min(places)) or 0.5
    left = 8 + 1.2 * LETTER * max(len(f"{tick:g}{TIMES}") for tick in log_ticks(low, high))
    x = Scale(min(places) - margin, max(places) + margin, max(46, left), PANEL_WIDTH - 10)
    y = LogScale(low, high, PANEL_HEIGHT - 44, 46)
    canvas.text(8, 17, panel.title, size=13, style="bold")
    canvas.text(8, 33, panel.subtitle, style="soft")
    for tick in log_ticks(low, high):
        canvas.line([(x.start, y(tick)), (x.end, y(tick))], GRID)
        canvas.text(x.start - 6, y(tick) + 4, f"{tick:g}{TIMES}", anchor="end", style="soft")
    last = -math.inf
    for place, words in panel.ticks:
        canvas.line([(x(place), y.start), (x(place), y.start + 4)], AXIS)
        if x(place) - last >= LETTER * len(words) + 6:
            canvas.text(x(place), y.start + 17, words, anchor="middle", style="soft")
            last = x(place)
    canvas.text((x.start + x.end) / 2, y.start + 34, panel.axis, anchor="middle", style="soft")
    canvas.line([(x.start, y(1)), (x.end, y(1))], DARK, width=1.4)
    _draw_ceilings(canvas, panel, x, y)
    for curve in panel.curves:
        _draw_curve(canvas, curve, panel.joined, x, y)
    apart = (x.end - x.start) / max(len(places), 1)
    for place, speed in panel.taken:
        size = min(7.5, max(4.5, 0.48 * apart))
        canvas.marker("ring", (x(place), y(speed)), DARK, size=size, hint="taken by auto")
    for family, sparsity, words in panel.break_evens:
        if sparsity is not None:
            spot = (x(position(sparsity)), y(1))
            canvas.marker(
                "diamond", spot, style(family)[0], size=4.5, hollow=True, hint=f"{family}: break-even {words}"
            )
    for index, line in enumerate(lines):
        canvas.text(8, PANEL_HEIGHT + 8 + 15 * index, line, size=11.5)
    return canvas


def style(family: str) -> tuple[str, str]:
    """Colour and symbol of a family of layouts."""
    return STYLES.get(family, OTHER)


def _draw_ceilings(canvas: Canvas, panel: Panel, x: Scale, y: LogScale) -> None:
    """Lines (or, where places are layers, short bars), cut off at the picture's upper edge."""
    for spots, dash in ((panel.free_ceiling, "1.5 3"), (panel.block_ceiling, "6 3")):
        if panel.joined:
            for piece in _below(sorted(spots), y.high):
                canvas.line([(x(place), y(value)) for place, value in piece], AXIS, width=1.6, dash=dash)
            continue
        for place, value in spots:
            if y.holds(value):
                canvas.line(
                    [(x(place - 0.3), y(value)), (x(place + 0.3), y(value))], AXIS, width=1.8, dash=dash
                )


def _below(spots: Sequence[Spot], top: float) -> list[list[Spot]]:
    """The parts of a line (straight in the logarithm of the value) that lie below `top`."""
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(spots):
        if min(y0, y1) >= top:
            continue
        ends = [(x0, y0), (x1, y1)]
        if max(y0, y1) > top:
            share = math.log(top / y0) / math.log(y1 / y0)
            ends[0 if y0 > top else 1] = (x0 + share * (x1 - x0), top)
        pieces.append(ends)
    return pieces


def _draw_curve(canvas: Canvas, curve: Curve, joined: bool, x: Scale, y: LogScale) -> None:
    colour, symbol = style(curve.family)
    if joined and len(curve.cold) > 1:
        canvas.line(
            [(x(place), y(value)) for place, value in curve.cold], colour, width=1.2, dash="3 3", opacity=0.7
        )
    if joined and len(curve.hot) > 1:
        canvas.line([(x(place), y(value)) for place, value, *_ in curve.hot], colour, width=2)
    for place, value, low, high in curve.hot:
        canvas.line([(x(place), y(low)), (x(place), y(high))], colour, opacity=0.5)
        canvas.marker(
            symbol,
            (x(place), y(value)),
            colour,
            size=3.6,
            hint=f"{curve.family}: {value:.2f}{TIMES}, hot cache",
        )


def _wrap(words: Sequence[str], lead: str) -> list[str]:
    """`lead` and the words, joined by middle dots, in lines that fit a panel."""
    most = int((PANEL_WIDTH - 16) / (1.08 * LETTER))
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 3 <= most:
            lines[-1] += f" \u00b7 {word}"
        else:
            lines.append(word if lines else lead + word)
    return lines


def _order(family: str) -> tuple[int, str]:
    """Families in the order of STYLES, others after them."""
    names = list(STYLES)
    return (names.index(family) if family in names else len(names)), family


def has_sparse(profile: Profile, pattern: str) -> bool:
    """Whether any sparse layout was measured at this pattern."""
    return any(result.families() for result in profile.layers if result.pattern == pattern)


def legend(profile: Profile, pattern: str) -> list[tuple[str, str, str]]:
    """(Kind, colour, words) of what the panels of a pattern show."""
    drawn = panels(profile, pattern)
    families = sorted({curve.family for panel in drawn for curve in panel.curves}, key=_order)
    entries = [(style(family)[1], style(family)[0], family) for family in families]
    joined = any(panel.joined for panel in drawn)
    entries.append(("line", DARK, f"1{TIMES}: {EAGER} channels_last, dense"))
    entries.append(("dash", AXIS, "ceiling: zero 64 x 64 blocks skipped"))
    entries.append(("dot", AXIS, "ceiling: every zero free"))
    entries.append(("upright", SOFT, "p20 to p80, hot cache"))
    if joined:
        entries.append(("thin", SOFT, "dashed in colour: cold cache"))
        entries.append(("diamond", DARK, "break-even, hot cache"))
    if any(panel.taken for panel in drawn):
        entries.append(("ring", DARK, "taken by auto"))
    return entries


def speed_up_svg(profile: Profile, pattern: str) -> str:
    """All panels of a pattern in one picture, two side by side, with the legend above."""
    pictures = [panel_canvas(panel) for panel in panels(profile, pattern)]
    columns = min(2, len(pictures))
    width = max(columns * (PANEL_WIDTH + 20), LEAST_WIDTH) + 10
    keys = legend(profile, pattern)
    head = Canvas(width, 0, "")
    head.text(10, 22, f"Speed-up over sparsity: {pattern} zeros", size=15, style="bold")
    left, top = 18.0, 46.0
    for kind, colour, words in keys:
        if left + 38 + LETTER * len(words) > width:
            left, top = 18.0, top + 19
        draw_key(head, kind, colour, (left, top))
        head.text(left + 18, top + 4, words)
        left += 52 + LETTER * len(words)
    height = top + 22
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    whole = Canvas(
        width, height + sum(max(p.height for p in row) + 12 for row in rows), f"Speed-up, {pattern}"
    )
    whole.put(head, 0, 0)
    for row in rows:
        for index, picture in enumerate(row):
            whole.put(picture, 6 + index * (PANEL_WIDTH + 20), height)
        height += max(picture.height for picture in row) + 12
    return whole.svg()
