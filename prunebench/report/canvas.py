"""Canvas for SVG: lines, boxes, words and symbols in pixels, with fixed decimals."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from prunebench.report.plot import INK

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
Spot = tuple[float, float]


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
