"""Still figures by matplotlib: a small panel for each method, on shared axes, with the others behind it in grey."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.analysis import looks
from prunebench.analysis.values import Estimate, TaskAnalysis
from prunebench.leaderboard.figures import DENSE_COLOUR, Style, position
from prunebench.leaderboard.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
"""Inches; a repository's page shows about 90 pixels for each."""
DOTS_PER_INCH = 130
COLUMNS, PANEL_HEIGHT = 4, 1.75
INK, FAINT, RULE, BEHIND = "#1f2328", "#57606a", "#d8dee4", "#cdd3d9"
LINES = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1.4)), "dashdot": (0, (5, 1.6, 1, 1.6))}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}
LONGEST_NAME = 34
MARGIN = 0.03
"""Decades of density beyond the ends of the axis, for the widths of marks."""
TICK_ROOM = 0.17
"""Decades of density between two labels of an axis of sparsity."""
SETTINGS = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.edgecolor": FAINT,
    "axes.labelcolor": INK, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
    "axes.unicode_minus": True, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelsize": 7.5,
    "ytick.labelsize": 8, "legend.frameon": False, "legend.fontsize": 8.5, "figure.facecolor": "white",
    "grid.color": RULE, "grid.linewidth": 0.6, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A point on the axis of sparsity; `native` ones are stars. Values are scaled as drawn."""

    x: float
    estimate: Estimate
    native: bool = False

    @property
    def y(self) -> float:
        return math.nan if self.estimate.mean is None else self.estimate.mean


@dataclass(frozen=True)
class Series:
    """Spots of one method, drawn as a line where they follow one another."""

    spots: tuple[Spot, ...]

    @property
    def known(self) -> list[Spot]:
        return [spot for spot in self.spots if spot.estimate.mean is not None]


def as_png(
    draw: Callable[[Figure], None], height: float, width: float = WIDTH, *, every_colour: bool = False
) -> bytes:
    """A figure as PNG without dates or versions; the same values give the same bytes on one machine."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", SETTINGS], after_reset=True), warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; the tables have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue() if every_colour else _with_fewer_colours(buffer)


def _with_fewer_colours(png: io.BytesIO) -> bytes:
    """The same in 256 colours: a quarter of the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(png) as image:
        palette = image.convert("RGB").quantize(
            256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    palette.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def short(text: str, length: int = LONGEST_NAME) -> str:
    """On one line and cut to a length."""
    plain = " ".join(text.split())
    return plain if len(plain) <= length else plain[: length - 1] + "…"


def heading(figure: Figure, title: str, keys: Sequence[Any] = (), note: str = "") -> None:
    """The title at the top left, a line of words and a legend below it, outside all panels."""
    height = figure.get_size_inches()[1]
    figure.text(0.012, 1 - 0.16 / height, title, ha="left", va="top", fontsize=11.5, fontweight="bold")
    if note:
        figure.text(0.012, 1 - 0.40 / height, note, ha="left", va="top", fontsize=8.5, color=FAINT)
    if keys:
        figure.legend(
            handles=list(keys), labels=[_label(key) for key in keys],
            loc="upper left", bbox_to_anchor=(0.004, 1 - 0.52 / height), ncols=len(keys),
            handlelength=2.2, columnspacing=1.6, borderaxespad=0, handletextpad=0.6,
        )  # fmt: skip


def _label(key: Any) -> str:
    return str((key[-1] if isinstance(key, tuple) else key).get_label())


@dataclass(frozen=True)
class Grid:
    """Panels by method, those at the left and bottom edges, and the figure's words."""

    axes: Mapping[str, Axes]
    left: frozenset[str]
    bottom: frozenset[str]


def grid_height(methods: Sequence[str]) -> float:
    """Inches of a figure with a panel for each method."""
    rows = math.ceil(len(methods) / COLUMNS)
    return 1.0 + 0.5 + rows * (PANEL_HEIGHT if rows > 1 else 2.4)


def panel_grid(figure: Figure, methods: Sequence[str]) -> Grid:
    """One panel a method, sharing both axes, below the heading."""
    columns = min(COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    height = figure.get_size_inches()[1]
    spaces = figure.add_gridspec(
        rows,
        columns,
        left=0.068,
        right=0.99,
        top=1 - 1.05 / height,
        bottom=0.5 / height,
        hspace=0.32,
        wspace=0.07,
    )
    axes: dict[str, Axes] = {}
    first = None
    for index, method in enumerate(methods):
        panel = figure.add_subplot(spaces[divmod(index, columns)], sharex=first, sharey=first)
        first = first or panel
        panel.set_title(short(method), pad=3)
        panel.grid(True)
        panel.tick_params(
            length=2, labelleft=index % columns == 0, labelbottom=index + columns >= len(methods)
        )
        axes[method] = panel
    names = list(methods)
    return Grid(axes, frozenset(names[::columns]), frozenset(names[-columns:]))


def label_axes(figure: Figure, y_title: str, x_title: str = "Sparsity (scale: log of density)") -> None:
    """Titles of the axes that all panels share."""
    height = figure.get_size_inches()[1]
    figure.text(0.53, 0.1 / height, x_title, ha="center", va="bottom", color=FAINT)
    middle = 0.5 - 0.3 / height
    figure.text(0.010, middle, y_title, ha="left", va="center", rotation=90, color=FAINT)


def set_sparsity_axis(panel: Axes, analysis: TaskAnalysis) -> None:
    """Ticks where there is room for their labels: those asked for before native ones, sparser before denser."""
    axis = looks.sparsity_axis(analysis)
    asked = {position(sparsity) for sparsity in looks.sparsities_of(analysis)}
    room = TICK_ROOM * max(1.0, (axis.end - axis.start) / 2.2)
    kept: list[tuple[float, str]] = []
    for place, text in sorted(axis.ticks, key=lambda tick: (tick[0] not in asked, -tick[0])):
        if all(abs(place - other) >= room for other, _ in kept):
            kept.append((place, text.removeprefix("0") if text.startswith("0.") else text))
    panel.set_xticks([place for place, _ in kept], [text for _, text in kept])
    panel.set_xlim(axis.start - MARGIN, axis.end + MARGIN)


def draw_series(panel: Axes, series: Series, style: Style, note: str = "") -> None:
    """A line with its intervals, as the board draws it; stars for native sparsity, with a note beside."""
    line: dict[str, Any] = {"color": style.colour, "linestyle": LINES[style.dash], "linewidth": 1.8}
    for piece in _pieces(series):
        x, y = [spot.x for spot in piece], [spot.y for spot in piece]
        star = piece[0].native
        look: dict[str, Any] = (
            {"marker": "*", "markersize": 11}
            if star
            else {"marker": MARKERS[style.symbol], "markersize": 4.2}
        )
        panel.plot(x, y, **line, **look, zorder=4)
        for spot in piece:
            low, high = spot.estimate.low, spot.estimate.high
            if low is not None and high is not None:
                panel.plot([spot.x] * 2, [low, high], color=style.colour, linewidth=1.1, alpha=0.6, zorder=3)
        if star and note:
            panel.annotate(
                note, (piece[0].x, piece[0].y), (7, 0), textcoords="offset points", va="center", fontsize=7.5
            )


def draw_behind(panel: Axes, series: Series) -> None:
    """The same, small and grey, as background."""
    for piece in _pieces(series):
        x, y = [spot.x for spot in piece], [spot.y for spot in piece]
        look: dict[str, Any] = {"marker": "*", "markersize": 4} if piece[0].native else {}
        panel.plot(x, y, color=BEHIND, linewidth=0.8, zorder=1, **look)


def draw_dense(panel: Axes, estimate: Estimate | None) -> None:
    """The dense model as a dashed line in a band of its interval."""
    if estimate is None or estimate.mean is None:
        return
    if estimate.low is not None and estimate.high is not None:
        panel.axhspan(estimate.low, estimate.high, color=DENSE_COLOUR, alpha=0.22, linewidth=0, zorder=1.5)
    panel.axhline(estimate.mean, color=DENSE_COLOUR, linestyle=(0, (4, 2)), linewidth=1.2, zorder=2)


def _pieces(series: Series) -> list[list[Spot]]:
    """Unbroken runs of known spots; stars stand alone."""
    pieces: list[list[Spot]] = [[]]
    for spot in series.spots:
        if spot.estimate.mean is None:
            pieces.append([])
        elif spot.native:
            pieces += [[spot], []]
        else:
            pieces[-1].append(spot)
    return [piece for piece in pieces if piece]


def value_limits(
    estimates: Iterable[Estimate], smallest: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Ends of the axis of values: all means, and of the intervals as much as leaves the means legible.

    Spans at least `smallest` and stays within bounds, with a margin.
    """
    known = [e for e in estimates if e.mean is not None]
    means = [e.mean for e in known if e.mean is not None]
    if not means:
        return (0.0, 1.0)
    span = max(max(means) - min(means), smallest)
    reach = 0.4 * span
    low = min(max(e.low if e.low is not None else min(means), min(means) - reach) for e in known)
    high = max(min(e.high if e.high is not None else max(means), max(means) + reach) for e in known)
    low, high = min(low, min(means)), max(high, max(means))
    missing = max(0.0, smallest - (high - low)) / 2
    low, high = low - missing, high + missing
    margin = 0.05 * (high - low)
    return max(low - margin, bounds[0] - margin), min(high + margin, bounds[1] + margin)


def key_line(
    label: str, colour: str, dashes: Any = "-", marker: str = "", *, width: float = 1.8, size: float = 5
) -> Any:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    look = {"color": colour, "linestyle": dashes, "linewidth": width}
    return Line2D([], [], label=label, marker=marker, markersize=9 if marker == "*" else size, **look)


def background_keys(analysis: TaskAnalysis, *, dense: bool = True) -> list[Any]:
    """Legend of what stands behind a method's own line, as far as it is drawn."""
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if dense:
        banded = len(analysis.seeds) > 1
        words = "dense with its 95 % interval" if banded else "dense"
        line = key_line(words, DENSE_COLOUR, (0, (4, 2)), width=1.2)
        band = Patch(color=DENSE_COLOUR, alpha=0.22, linewidth=0)
        keys.append((band, line) if banded else line)
    if len(looks.methods_of(analysis)) > 1:
        keys.append(key_line("other methods", BEHIND, width=1.2))
    if any(not cell.dense and cell.sparsity is None for cell in analysis.cells):
        keys.append(key_line("native sparsity", INK, "", "*"))
    return keys


def seeds_note(analysis: TaskAnalysis, *, bars: bool = True) -> str:
    """What a point and its bar are."""
    count = len(analysis.seeds)
    if count == 1:
        return "One seed: no intervals"
    line = f"Mean over {count} seeds"
    return f"{line}; bars: 95 % t-interval, cut where it leaves the panel" if bars else line


def native_note(analysis: TaskAnalysis, method: str) -> str:
    """The sparsity that a method chose, to stand beside its star."""
    chosen = [cell.achieved for cell in looks.cells_of(analysis, method) if cell.sparsity is None]
    return number(chosen[0], 2) if chosen else ""
