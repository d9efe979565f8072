"""Still figures against sparsity: a panel a method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunebench.analysis import looks
from prunebench.analysis.panels import (
    INK,
    LINES,
    MARKERS,
    Series,
    Spot,
    as_png,
    background_keys,
    draw_behind,
    draw_dense,
    draw_series,
    grid_height,
    heading,
    key_line,
    label_axes,
    native_note,
    panel_grid,
    seeds_note,
    set_sparsity_axis,
    short,
    value_limits,
)
from prunebench.analysis.values import Measure, TaskAnalysis
from prunebench.leaderboard.figures import DENSE_COLOUR, PALETTE, Style, position

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Styles = Mapping[str, Style]
SMALLEST_SPAN = {"percent": 10.0, "points": 5.0, "number": 0.05}
"""What an axis spans at least, so that small differences look small."""


def draw_measure(analysis: TaskAnalysis, styles: Styles, measure: Measure) -> bytes:
    """A measure against sparsity: a panel a method, the others behind it, dense as a band."""
    scale = looks.scale_of(measure)
    lines = {
        method: Series(
            tuple(
                Spot(
                    looks.place_of(cell),
                    looks.scaled(cell.values.get(measure.key), scale),
                    cell.sparsity is None,
                )
                for cell in looks.cells_of(analysis, method)
            )
        )
        for method in looks.methods_of(analysis)
    }
    dense = [looks.scaled(cell.values.get(measure.key), scale) for cell in looks.dense_cells(analysis)]
    bounds = (0.0, 100.0) if measure.unit == "percent" else (-math.inf, math.inf)
    every = [spot.estimate for series in lines.values() for spot in series.spots] + dense
    limits = value_limits(every, SMALLEST_SPAN[measure.unit], bounds)

    def draw(figure: Figure) -> None:
        heading(
            figure,
            f"{measure.title} against sparsity: {short(looks.page_name(analysis), 60)}",
            background_keys(analysis),
            seeds_note(analysis),
        )
        grid = panel_grid(figure, list(lines))
        for method, panel in grid.axes.items():
            for other, series in lines.items():
                if other != method:
                    draw_behind(panel, series)
            for estimate in dense:
                draw_dense(panel, estimate)
            draw_series(panel, lines[method], styles[method], native_note(analysis, method))
            set_sparsity_axis(panel, analysis)
            panel.set_ylim(*limits)
        label_axes(figure, looks.axis_title(measure))

    return as_png(draw, grid_height(list(lines)))


def draw_exemplars(analysis: TaskAnalysis, styles: Styles) -> bytes:
    """The share of exemplars between equal populations, and the control; all seeds where there is no control."""
    matched = any(row.matched_share is not None for row in analysis.exemplars)
    lines: dict[str, Series] = {}
    controls: dict[str, Series] = {}
    for method in looks.methods_of(analysis):
        rows = {row.sparsity: row for row in analysis.exemplars if row.method == method}
        found = [(cell, rows.get(cell.sparsity)) for cell in looks.cells_of(analysis, method)]
        for target, name in ((lines, "matched_share" if matched else "share"), (controls, "control_share")):
            target[method] = Series(
                tuple(
                    Spot(
                        looks.place_of(cell),
                        looks.scaled(None if row is None else looks.alone(getattr(row, name)), 100),
                        cell.sparsity is None,
                    )
                    for cell, row in found
                )
            )
    every = [s.estimate for group in (lines, controls) for series in group.values() for s in series.spots]
    limits = value_limits(every, SMALLEST_SPAN["percent"], (0.0, 100.0))
    what = (
        "Populations of equal size, dense and pruned"
        if matched
        else "All seeds; one dense seed has no control"
    )

    def draw(figure: Figure) -> None:
        control = key_line("control: dense and other dense", INK, (0, (2, 1.5)), width=1.2)
        keys = [*background_keys(analysis, dense=False), *([control] if matched else [])]
        title = f"Share of compression-identified exemplars: {short(looks.page_name(analysis), 60)}"
        heading(figure, title, keys, what)
        for method, panel in panel_grid(figure, list(lines)).axes.items():
            for other, series in lines.items():
                if other != method:
                    draw_behind(panel, series)
            draw_series(panel, lines[method], styles[method], native_note(analysis, method))
            seeds_alone = controls[method].known
            ends = [position(0), position(1)] if len(seeds_alone) == 1 else []
            panel.plot(
                ends or [spot.x for spot in seeds_alone],
                [spot.y for spot in seeds_alone] * (2 if ends else 1),
                color=INK, linestyle=(0, (2, 1.5)), linewidth=1.2, zorder=3.5,
            )  # fmt: skip
            set_sparsity_axis(panel, analysis)
            panel.set_ylim(*limits)
        label_axes(figure, "Share of test samples, %")

    return as_png(draw, grid_height(list(lines)))


def draw_foretelling(analysis: TaskAnalysis, styles: Styles) -> bytes:
    """AUROC of the dense models' uncertainty against sparsity: a panel a method, a line an event."""
    events = list(dict.fromkeys(row.event for row in analysis.sample_foretelling))
    looks_of = {
        event: Style(
            PALETTE[index % 3],
            ("solid", "dash", "dot")[index % 3],
            ("circle", "square", "diamond")[index % 3],
        )
        for index, event in enumerate(events)
    }
    rows = {(row.method, row.sparsity, row.event): row for row in analysis.sample_foretelling}
    methods = looks.methods_of(analysis)
    limits = value_limits([row.area_under_curve for row in rows.values()], 0.2, (0.0, 1.0))

    def draw(figure: Figure) -> None:
        keys = [
            key_line(event, look.colour, LINES[look.dash], MARKERS[look.symbol])
            for event, look in looks_of.items()
        ]
        keys.append(key_line("guessing", DENSE_COLOUR, (0, (4, 2)), width=1.2))
        title = f"The dense models' uncertainty foretells which samples change: {short(looks.page_name(analysis), 50)}"
        heading(figure, title, keys, "AUROC with its 95 % interval; stars: native sparsity")
        for method, panel in panel_grid(figure, methods).axes.items():
            panel.axhline(0.5, color=DENSE_COLOUR, linestyle=(0, (4, 2)), linewidth=1.2)
            cells = looks.cells_of(analysis, method)
            for index, event in enumerate(events):
                shift = 0.05 * (index - (len(events) - 1) / 2)
                spots = [(cell, rows.get((method, cell.sparsity, event))) for cell in cells]
                series = Series(
                    tuple(
                        Spot(
                            looks.place_of(cell) + shift,
                            looks.alone(None) if row is None else row.area_under_curve,
                            cell.sparsity is None,
                        )
                        for cell, row in spots
                    )
                )
                draw_series(panel, series, looks_of[event])
            set_sparsity_axis(panel, analysis)
            panel.set_ylim(min(limits[0], 0.48), limits[1])
        label_axes(figure, "AUROC")

    return as_png(draw, grid_height(methods))


def draw_splits(analysis: TaskAnalysis, styles: Styles) -> bytes:
    """Bias squared and variance as stacked bars: a panel a method, dense first, then by sparsity."""
    from matplotlib.patches import Patch

    rows = {(row.method, row.sparsity): row for row in analysis.splits if not row.dense}
    dense = [row for row in analysis.splits if row.dense]
    sparsities = looks.sparsities_of(analysis)
    methods = looks.methods_of(analysis)
    below, above = "#0072B2", "#E69F00"
    names = ["dense", *(f"{sparsity:g}".removeprefix("0") for sparsity in sparsities)]

    def draw(figure: Figure) -> None:
        keys = [Patch(color=below, label="bias squared"), Patch(color=above, label="variance")]
        title = f"Squared loss over seeds: {short(looks.page_name(analysis), 60)}"
        heading(
            figure,
            title,
            keys,
            f"{seeds_note(analysis, bars=False)}; native: at the sparsity that the method chose",
        )
        for method, panel in panel_grid(figure, methods).axes.items():
            found = [*dense[:1], *(rows.get((method, sparsity)) for sparsity in sparsities)]
            found += [None] * (not dense)
            bars = list(enumerate(found))
            native = rows.get((method, None))
            if native is not None:
                bars = [*bars[:1], (1, native)]
                panel.text(
                    1.6, 0.02, "native", transform=panel.get_xaxis_transform(), fontsize=7.5, va="bottom"
                )
            for place, row in bars:
                if row is not None and row.bias_squared is not None and row.variance is not None:
                    panel.bar(place, row.bias_squared, 0.75, color=below)
                    panel.bar(place, row.variance, 0.75, row.bias_squared, color=above)
            panel.set_xticks(range(len(names)), names)
            panel.grid(False, axis="x")
        label_axes(figure, "Squared loss", "Sparsity")

    return as_png(draw, grid_height(methods))
