"""The board as one page that opens from disk: no network, plotly's script beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.leaderboard import words
from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.curves import STROKES
from prunebench.leaderboard.figures import (
    DENSE_COLOUR,
    Figure,
    Style,
    group_heat,
    method_styles,
    section_figures,
)
from prunebench.leaderboard.layout import (
    Sheet,
    accuracy_sheet,
    attributes_sheet,
    cost_sheet,
    methods_sheet,
    mining_sheet,
    origin_sheets,
    speed_summary,
)
from prunebench.leaderboard.links import WORDS, AnalysisLink, link_of
from prunebench.leaderboard.markdown import describe_section, difference_line, facts_line, machine_line
from prunebench.leaderboard.templating import render


@dataclass(frozen=True)
class Swatch:
    """A method in a section's shared legend."""

    method: str
    colour: str
    dashes: str
    native: bool


@dataclass(frozen=True)
class SectionView:
    """A section as the template shows it."""

    section: Section
    lines: tuple[str, ...]
    legend: tuple[Swatch, ...]
    figures: tuple[Figure, ...]
    accuracy: Sheet
    attributes: Sheet | None
    cost: Sheet
    mining: Sheet | None
    speed_summary: str | None
    machines: str | None
    sparsities: tuple[str, ...]
    heat: dict[str, Any]
    analysis: AnalysisLink | None


def page_html(board: Board, analyses: Sequence[AnalysisLink] = ()) -> str:
    """`index.html` of the board; it wants `plotly.min.js`, and the pages of analyses, in its own folder."""
    styles = method_styles(board)
    views = [_view(section, styles, link_of(section, analyses)) for section in board.sections]
    data = {
        view.section.slug: {
            "figures": {figure.key: figure.plot for figure in view.figures},
            "heat": view.heat,
        }
        for view in views
    }
    return render(
        "index.html.j2",
        words=words,
        facts=facts_line(board) if views else words.EMPTY_WORDS,
        views=views,
        methods=methods_sheet(board),
        origins=origin_sheets(board),
        data=as_script_json(data),
        dense_colour=DENSE_COLOUR,
        analyses=analyses,
        analysis_words=WORDS,
    )


def plotly_script() -> str:
    """plotly's library, as the installed package carries it."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().rstrip("\n") + "\n"


def as_script_json(values: Any) -> Any:
    """JSON that may stand inside a script element whatever its strings hold."""
    from markupsafe import Markup

    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _view(section: Section, styles: dict[str, Style], analysis: AnalysisLink | None) -> SectionView:
    lines = (difference_line(section), describe_section(section), *section.notes)
    methods = sorted({row.method for row in section.rows if not row.dense})
    lines_of = {row.method for row in section.pruned}
    native = ("native",) if section.native else ()
    return SectionView(
        section=section,
        lines=tuple(line for line in lines if line),
        legend=tuple(
            Swatch(name, styles[name].colour, STROKES[styles[name].dash], name not in lines_of)
            for name in methods
        ),
        figures=tuple(section_figures(section, styles)),
        accuracy=accuracy_sheet(section),
        attributes=attributes_sheet(section),
        cost=cost_sheet(section),
        mining=mining_sheet(section),
        speed_summary=speed_summary(section),
        machines=machine_line(section) if section.machines else None,
        sparsities=(*(f"{sparsity:g}" for sparsity in section.sparsities), *native),
        heat=group_heat(section),
        analysis=analysis,
    )
