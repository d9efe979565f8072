"""SVG by hand: a canvas, logarithmic scales, markers. Text is dark on white and stands in the page's own fonts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
DARK, SOFT, GRID, AXIS = "#1f2328", "#4b535d", "#e4e7eb", "#8c959f"
LETTER = 6.4
"""Width in pixels to allow for a letter at 12 pixels."""

CORNERS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    "diamond": ((0, -1.5), (1.2, 0), (0, 1.5), (-1.2, 0)),
}
TIMES = "\u00d7"

Spot = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] to [start, end] pixels; values outside stay at the edges."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class LogScale:
    """The same for logarithms; low must be positive."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inner = Scale(math.log(self.low), math.log(self.high), self.start, self.end)
        return inner(math.log(max(value, self.low)))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def log_range(values: Iterable[float], least_factor: float) -> tuple[float, float]:
    """Round ends (1, 2 or 5 times a power of ten) around positive values, spanning at least `least_factor`."""
    found = sorted(values)
    low, high = _round_down(found[0]), _round_up(found[-1])
    while high / low < least_factor:
        low, high = _round_down(low * 0.99), _round_up(high * 1.01)
    return low, high


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Ticks at 1, 2, 5 times powers of ten, at 1 and 3, or at powers of ten alone: as many as fit into `most`."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= most:
            break
    return ticks


def _round_down(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return max(step * base for step in (1, 2, 5) if step * base <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    base = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return min(step * base for step in (1, 2, 5, 10) if step * base >= value * (1 - 1e-9))


def short(value: float) -> str:
    """A figure without an exponent: `1,024`, `86.1`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart to at least `gap`, in their order, within [low, high] as far as they fit."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    limit = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    result = [0.0] * len(places)
    for index, place in zip(order, moved):
        result[index] = max(place, low)
    return result


@dataclass
class Canvas:
    """Elements of a picture `width` pixels wide; `svg` gives the file's text."""

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)

    def line(
        self, points: Sequence[Spot], colour: str, *, width: float = 1, dash: str = "", opacity: float = 1
    ) -> None:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        extra += f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{extra}/>'
        )

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", size: float = 12, style: str = ""
    ) -> None:
        """Words at a point; `style` is any of `bold`, `soft` and `turned` (upwards)."""
        extra = ' font-weight="600"' if "bold" in style else ""
        extra += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if "turned" in style else ""
        colour = SOFT if "soft" in style else DARK
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" fill="{colour}"{extra}>'
            f"{html.escape(words)}</text>"
        )

    def marker(
        self, symbol: str, spot: Spot, colour: str, *, size: float = 4, hollow: bool = False, hint: str = ""
    ) -> None:
        """circle, ring, square, triangle, diamond or cross; `hint` shows on hovering."""
        x, y = spot
        paint = f'fill="{colour}"'
        if hollow:
            paint = f'fill="#ffffff" stroke="{colour}" stroke-width="1.6"'
        if symbol in ("ring", "cross"):
            paint = f'fill="none" stroke="{colour}" stroke-width="2"'
        inner = f"<title>{html.escape(hint)}</title>" if hint else ""
        if symbol in ("circle", "ring"):
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" {paint}>{inner}</circle>')
        elif symbol == "cross":
            side = f"{2 * size:g}"
            path = f"M{x - size:.1f} {y - size:.1f}l{side} {side}m0 -{side}l-{side} {side}"
            self.parts.append(f'<path d="{path}" {paint}>{inner}</path>')
        else:
            corners = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in CORNERS[symbol])
            self.parts.append(f'<polygon points="{corners}" {paint}>{inner}</polygon>')

    def put(self, other: Canvas, x: float, y: float) -> None:
        """Another picture with its upper left corner here."""
        self.parts.append(f'<g transform="translate({x:.1f} {y:.1f})">{"".join(other.parts)}</g>')

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" height="{self.height:g}" role="img" font-family="{FONT}">\n'
            f"<title>{html.escape(self.title)}</title>\n"
            f'<rect width="{self.width:g}" height="{self.height:g}" fill="#ffffff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def draw_key(canvas: Canvas, kind: str, colour: str, spot: Spot) -> None:
    """The sign of a legend's entry, about 24 pixels wide, centred on `spot`."""
    x, y = spot
    dashes = {"line": "", "dash": "6 3", "dot": "1.5 3", "thin": "3 3"}
    if kind in dashes:
        canvas.line([(x - 11, y), (x + 12, y)], colour, width=1.6, dash=dashes[kind])
    elif kind == "upright":
        canvas.line([(x, y - 7), (x, y + 7)], colour, width=1.6)
    else:
        canvas.marker(kind, spot, colour, size=5, hollow=kind == "diamond")
