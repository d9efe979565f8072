"""Still figures of all cells at once: bias against uncertainty, and changes by attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.analysis import looks, stills
from prunebench.analysis.panels import INK, MARKERS, as_png, heading, key_line, short
from prunebench.analysis.values import Measure, TaskAnalysis
from prunebench.leaderboard.figures import DENSE_COLOUR, Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Styles = Mapping[str, Style]


def draw_scatter(analysis: TaskAnalysis, styles: Styles) -> bytes:
    """Bias against uncertainty and dependence, a mark a cell; the methods' marks in a legend beside."""
    pairs = stills.scatter_pairs(analysis)
    methods = looks.methods_of(analysis)
    height = max(4.6, 1.2 + 0.21 * (len(methods) + 3))

    def draw(figure: Figure) -> None:
        against = " and ".join(x.title.lower() for x, _ in pairs)
        title = f"Bias against {against}: {short(looks.page_name(analysis), 50)}"
        heading(
            figure,
            title,
            (),
            "A mark is a method at a sparsity, mean over seeds; larger for sparser. Above: Spearman's rho",
        )
        spaces = figure.add_gridspec(
            1, len(pairs), left=0.075, right=0.785, top=1 - 1.18 / height, bottom=0.55 / height, wspace=0.09
        )
        first = None
        for index, (x, y) in enumerate(pairs):
            panel = figure.add_subplot(spaces[0, index], sharey=first)
            first = first or panel
            _scatter(panel, analysis, styles, (x, y))
            told = looks.rho_words(analysis, x.key, y.key)
            panel.set_title(told.replace("; ", "\n"), fontweight="normal", fontsize=8.5)
            panel.set_xlabel(looks.axis_title(x), color=INK)
            panel.tick_params(labelleft=index == 0, length=2)
            if index == 0:
                panel.set_ylabel(looks.axis_title(y), color=INK)
        native = {cell.method for cell in analysis.cells if not cell.dense and cell.sparsity is None}
        keys = [
            key_line(short(m, 24), styles[m].colour, "", "*" if m in native else MARKERS[styles[m].symbol])
            for m in methods
        ]
        keys.append(key_line("dense", DENSE_COLOUR, "", "X", size=7))
        figure.legend(handles=keys, loc="center left", bbox_to_anchor=(0.79, 0.5), handlelength=1.2)

    return as_png(draw, height)


def _scatter(panel: Any, analysis: TaskAnalysis, styles: Styles, pair: tuple[Measure, Measure]) -> None:
    """One panel of the scatter figure."""
    x, y = pair
    panel.grid(True)

    def spot(cell: Any) -> tuple[float, float] | None:
        values = [looks.scaled(cell.values.get(m.key), looks.scale_of(m)).mean for m in (x, y)]
        return None if values[0] is None or values[1] is None else (values[0], values[1])

    for method in looks.methods_of(analysis):
        found = [(cell, spot(cell)) for cell in looks.cells_of(analysis, method)]
        known = [(cell, point) for cell, point in found if point is not None]
        if not known:
            continue
        points = [point for _, point in known]
        style = styles[method]
        panel.plot(*zip(*points), color=style.colour, linewidth=0.7, alpha=0.45, zorder=2)
        for cell, point in known:
            star = cell.sparsity is None
            size = 110 if star else 12 + 26 * looks.place_of(cell)
            panel.scatter(
                *point, s=size, marker="*" if star else MARKERS[style.symbol], color=style.colour,
                edgecolors="white", linewidths=0.5, zorder=3,
            )  # fmt: skip
    for cell in looks.dense_cells(analysis):
        reference = spot(cell)
        if reference is not None:
            panel.scatter(*reference, s=80, marker="X", color=DENSE_COLOUR, edgecolors="white", zorder=5)


def draw_heat(analysis: TaskAnalysis, styles: Styles) -> bytes:
    """Change of a measure from dense, attributes by cells; a block a method, sparser to the right."""
    measure = looks.heat_measure(analysis)
    assert measure is not None
    names, columns, table = attribute_changes(analysis, measure)
    head = 0.85 + 0.035 * max(len(short(method, 22)) for method, _ in columns)
    height = head + 0.15 + max(1.6, 0.2 * len(names))
    known = [abs(value) for row in table for value in row if value is not None]
    limit = max([*known, 1e-9])

    def draw(figure: Figure) -> None:
        import numpy as np
        from matplotlib.colors import LinearSegmentedColormap

        unit = looks.UNITS["points" if measure.unit == "percent" else measure.unit]
        title = f"Change of {measure.title.lower()} from dense: {short(looks.page_name(analysis), 60)}"
        heading(
            figure, title, (), "A block is a method, its columns sparser to the right; crossed: undefined"
        )
        longest = max(len(short(name, 20)) for name in names)
        panel = figure.add_axes(
            (0.03 + 0.0075 * longest, 0.15 / height, 0.9 - 0.0075 * longest, 1 - (head + 0.15) / height)
        )
        values = np.array([[np.nan if v is None else v for v in row] for row in table], dtype=float)
        colours = LinearSegmentedColormap.from_list("change", looks.HEAT_COLOURS)
        shown = panel.imshow(
            np.ma.masked_invalid(values),
            cmap=colours,
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            interpolation="nearest",
        )
        for y, x in np.argwhere(np.isnan(values)):
            panel.plot(x, y, marker="x", color="#9aa4ae", markersize=3)
        panel.set_yticks(range(len(names)), [short(name, 20) for name in names])
        panel.tick_params(length=0)
        panel.set_xticks([])
        for spine in panel.spines.values():
            spine.set_visible(False)
        _blocks(panel, columns)
        bar = figure.colorbar(
            shown, cax=figure.add_axes((0.945, 0.15 / height, 0.012, 1 - (head + 0.15) / height))
        )
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.ax.set_title(
            unit.replace("percentage ", ""), fontsize=7.5, fontweight="normal", loc="center", pad=4
        )

    return as_png(draw, height)


def _blocks(panel: Any, columns: Sequence[tuple[str, float | None]]) -> None:
    """White rules between methods, and their names above."""
    methods = list(dict.fromkeys(method for method, _ in columns))
    for method in methods:
        places = [index for index, (name, _) in enumerate(columns) if name == method]
        panel.axvline(places[-1] + 0.5, color="white", linewidth=2.5)
        panel.text(
            sum(places) / len(places), -0.62, short(method, 22), rotation=28, ha="left", va="bottom", fontsize=8,
            rotation_mode="anchor",
        )  # fmt: skip


def attribute_changes(
    analysis: TaskAnalysis, measure: Measure
) -> tuple[list[str], list[tuple[str, float | None]], list[list[float | None]]]:
    """Names, cells and, by both, the change of a measure from the dense model, scaled as drawn."""
    scale = looks.scale_of(measure)
    dense = {row.name: row.values.get(measure.key) for row in analysis.attributes if row.dense}
    values = {
        (row.method, row.sparsity, row.name): row.values.get(measure.key)
        for row in analysis.attributes
        if not row.dense
    }
    columns = [
        (cell.method, cell.sparsity)
        for method in looks.methods_of(analysis)
        for cell in looks.cells_of(analysis, method)
    ]

    def change(name: str, method: str, sparsity: float | None) -> float | None:
        before, after = dense.get(name), values.get((method, sparsity, name))
        return None if before is None or after is None else scale * (after - before)

    names = list(analysis.outputs)
    return names, columns, [[change(name, *column) for column in columns] for name in names]
