"""The interactive page of one task: it opens from disk, with plotly's script beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunebench.analysis import charts, map_charts, sections, sheets
from prunebench.analysis.looks import cells_of, methods_of, page_name, sparsities_of
from prunebench.analysis.values import TaskAnalysis
from prunebench.leaderboard.curves import STROKES
from prunebench.leaderboard.figures import DENSE_COLOUR, Style
from prunebench.leaderboard.site import Swatch, as_script_json
from prunebench.leaderboard.templating import render

TEMPLATES = Path(__file__).parent / "templates"


def task_page(
    analysis: TaskAnalysis, styles: dict[str, Style], *, siblings: Sequence[TaskAnalysis], grid: bool
) -> str:
    """`<slug>-analysis.html`; it wants `plotly.min.js` beside it, and with `grid` the samples' image."""
    figures = charts.charts_of(analysis, styles)
    maps = map_charts.attribute_maps(analysis)
    plots = {chart.figure.key: chart.figure.plot for chart in figures}
    plots |= {figure.key: figure.plot for figure in maps}
    native = any(not cell.dense and cell.sparsity is None for cell in analysis.cells)
    return render(
        "analysis.html.j2",
        folder=TEMPLATES,
        analysis=analysis,
        words=sections,
        name=page_name(analysis),
        siblings=[(other.slug, page_name(other)) for other in siblings],
        claims=[
            (claim, sheets.relations_sheet(claim), sheets.claim_sheet(claim)) for claim in analysis.claims
        ],
        parts=sections.parts_of(analysis),
        charts=figures,
        maps=maps,
        legend=[_swatch(analysis, method, styles[method]) for method in methods_of(analysis)],
        sparsities=(
            *(f"{sparsity:g}" for sparsity in sparsities_of(analysis)),
            *(("native",) if native else ()),
        ),
        measures=dict(sheets.measure_words((*analysis.measures, *analysis.attribute_measures))),
        grid=grid,
        data=as_script_json({"analysis": {"figures": plots}}),
        dense_colour=DENSE_COLOUR,
    )


def _swatch(analysis: TaskAnalysis, method: str, style: Style) -> Swatch:
    native = all(cell.sparsity is None for cell in cells_of(analysis, method))
    return Swatch(method, style.colour, STROKES[style.dash], native)
