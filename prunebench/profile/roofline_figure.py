"""The dense layers of a profile beneath the roofline, hot and cold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.profile.drawing import AXIS, DARK, GRID, Canvas, LogScale, log_range, log_ticks, short, spread
from prunebench.profile.results import EAGER, Profile, shown_layers

HOT, COLD = "#0072B2", "#D55E00"
WIDTH = 460
GAP = 17
"""Pixels from one layer's number to the next; where that is too much for all, they stand in two rows."""


def roofline_svg(profile: Profile) -> str | None:
    """Attained FLOP/s of each dense layer over its FLOP per byte, hot and cold; None without measurements.

    A layer was timed dense once for every pattern and sparsity; drawn is the fastest median.
    """
    if profile.machine is None or not shown_layers(profile):
        return None
    points = [_attained(profile, layer) for layer in shown_layers(profile)]
    bandwidth, peak = profile.machine.copy_gb_per_s, profile.machine.gflop_per_s
    ridge = peak / bandwidth
    low_x, high_x = log_range([p.intensity for p in points] + [ridge / 2, ridge * 2], 20)
    rates = [rate for p in points for rate in (p.hot, p.cold)]
    low_y, high_y = log_range([*rates, peak, min(bandwidth * low_x, peak)], 10)
    x = LogScale(low_x, high_x, 62, WIDTH - 14)
    top = 66 if GAP * (len(points) - 1) <= x.end - x.start else 78
    y = LogScale(low_y, high_y, top + 252, top)
    canvas = Canvas(WIDTH, top + 346 + 17 * len(points), "Roofline: dense layers")
    unit, scale = ("TFLOP/s", 1e-3) if peak >= 1e4 else ("GFLOP/s", 1.0)
    canvas.text(10, 20, "Dense layers beneath the roofline", size=15, style="bold")
    canvas.text(
        10, 37, f"{EAGER} channels_last, fastest median; roofs measured on this machine", style="soft"
    )
    for tick in log_ticks(low_y * scale, high_y * scale):
        canvas.line([(x.start, y(tick / scale)), (x.end, y(tick / scale))], GRID)
        canvas.text(x.start - 6, y(tick / scale) + 4, f"{tick:g}", anchor="end", style="soft")
    for tick in log_ticks(low_x, high_x):
        canvas.line([(x(tick), y.start), (x(tick), y.start + 5)], AXIS)
        canvas.text(x(tick), y.start + 18, f"{tick:g}", anchor="middle", style="soft")
    canvas.text(
        (x.start + x.end) / 2,
        y.start + 36,
        "FLOP per byte (each operand moved once)",
        anchor="middle",
        style="soft",
    )
    canvas.text(14, (y.start + y.end) / 2, f"attained {unit}", anchor="middle", style="soft turned")
    foot = max(low_x, low_y / bandwidth)
    roof = [(x(foot), y(bandwidth * foot)), (x(ridge), y(peak)), (x(high_x), y(peak))]
    canvas.line(roof, DARK, width=2)
    _roof_points(canvas, points, x, y, unit, scale)
    base = y.start + 58
    for place, colour, words in ((62, HOT, "hot cache"), (150, COLD, "cold cache")):
        canvas.marker("circle", (place, base), colour, hollow=colour == COLD)
        canvas.text(place + 9, base + 4, words)
    canvas.line([(242, base), (264, base)], DARK, width=2)
    canvas.text(270, base + 4, f"{short(bandwidth)} GB/s, {short(peak * scale)} {unit}")
    for index, point in enumerate(points):
        canvas.text(28, base + 24 + 17 * index, f"{index + 1}", anchor="end", style="bold")
        canvas.text(36, base + 24 + 17 * index, f"{point.name}  {point.shape}")
    return canvas.svg()


@dataclass(frozen=True)
class RoofPoint:
    """A dense layer: FLOP per byte, and GFLOP/s hot and cold."""

    name: str
    shape: str
    intensity: float
    hot: float
    cold: float


def _attained(profile: Profile, layer: str) -> RoofPoint:
    found = [result for result in profile.layers if result.layer == layer and result.timings]
    roof = found[0].roof
    assert roof is not None
    rates = []
    for cache in ("hot", "cold"):
        times = [
            time for r in found if (t := r.timing(EAGER)) is not None and (time := t.p50(cache)) is not None
        ]
        rates.append(roof.gflop / min(times) * 1e3)
    return RoofPoint(layer, found[0].shape, roof.flop_per_byte, rates[0], rates[1])


def _roof_points(
    canvas: Canvas, points: Sequence[RoofPoint], x: LogScale, y: LogScale, unit: str, scale: float
) -> None:
    """Hot and cold joined by a line; the layers' numbers stand above the plot, each with a line to its point."""
    gap = min(GAP, (x.end - x.start) / max(len(points) - 1, 1))
    places = spread([x(p.intensity) for p in points], gap, x.start, x.end)
    ranks = {place: rank for rank, place in enumerate(sorted(places))}
    for index, (point, place) in enumerate(zip(points, places)):
        spots = [(x(point.intensity), y(rate)) for rate in (point.hot, point.cold)]
        row = 12 * (ranks[place] % 2) if gap < GAP else 0
        canvas.text(place, y.end - 12 - row, f"{index + 1}", anchor="middle", size=11, style="bold")
        canvas.line(
            [(place, y.end - 8), (spots[0][0], y.end), (spots[0][0], min(s[1] for s in spots))],
            AXIS,
            width=0.8,
            opacity=0.7,
        )
        canvas.line(spots, HOT, opacity=0.5)
        for spot, rate, cache, colour in zip(spots, (point.hot, point.cold), ("hot", "cold"), (HOT, COLD)):
            hint = f"{point.name} {point.shape}: {rate * scale:.3g} {unit}, {cache} cache"
            canvas.marker("circle", spot, colour, hollow=cache == "cold", hint=hint)
