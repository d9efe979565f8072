"""Pages of analyses beside the leaderboard: an index, and a page a task in Markdown and an interactive one."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from prunebench.analysis import tables, words
from prunebench.analysis.card_pages import cards_data, cards_html, cards_json, cards_markdown
from prunebench.analysis.cards import HypothesisCards, cards_of, cards_table
from prunebench.analysis.exploratory import exploratory_lines
from prunebench.analysis.plots import (
    PagePlot,
    Styles,
    analysis_styles,
    lead_measures,
    plots_of,
)
from prunebench.analysis.preregistered import HypothesisCard
from prunebench.analysis.seed_numbers import read_seed_numbers
from prunebench.analysis.values import FOLDER, TaskAnalysis, stored_analyses
from prunebench.errors import PruneBenchError, StoreError, UsageError
from prunebench.leaderboard import AnalysisLink, Leaderboard, build_board
from prunebench.leaderboard.build import board_files, write_pages
from prunebench.leaderboard.diff import diff_boards
from prunebench.report import format as fmt
from prunebench.report import html, markdown
from prunebench.report.plot import HeatMap, Plot
from prunebench.report.svg import svg
from prunebench.report.table import Table, simple_table
from prunebench.results.record import RunRecord
from prunebench.results.standing import NOTHING, Standing, read_standing

TEMPLATES = Path(__file__).parent / "templates"
SHORT, LONG = 12, 20
"""On a Markdown page, tables of more rows than SHORT are folded, and those of more than LONG stand on the interactive
page alone, or in part."""


@dataclass(frozen=True)
class PageTable:
    """A table with its words; of a long one a Markdown page shows the columns `lead`, or the `first` rows."""

    table: Table[Any]
    words: str = ""
    lead: tuple[str, ...] = ()
    first: int = 0


@dataclass(frozen=True)
class PagePart:
    """A heading, words, and tables; plots belong to it by `anchor`."""

    anchor: str
    title: str
    words: str
    tables: tuple[PageTable, ...]


def analysis_files(
    analyses: Sequence[TaskAnalysis],
    grids: Mapping[str, Path],
    board_methods: Sequence[str] = (),
    cards: HypothesisCards | None = None,
) -> dict[str, bytes]:
    """All generated files by path below the leaderboard's folder: a pure function of analyses and cards.

    `analysis/README.md`, with cards `analysis/cards.json`, `analysis/<slug>.md` with `analysis/figures/*.svg`,
    `site/<slug>-analysis.html`, which wants `plotly.min.js` beside it.

    Args:
        analyses: in any order.
        grids: by slug, the image of the susceptible samples, which is copied beside both pages.
        board_methods: the leaderboard's methods, so that colours agree.
        cards: of the board's records.

    Raises:
        StoreError: an image cannot be read. UsageError: two analyses have the same slug.
    """
    pages = {link.slug: link.page for link in links_of(analyses)}
    ordered = sorted(analyses, key=lambda analysis: analysis.slug)
    styles = analysis_styles(ordered, board_methods)
    files = {"analysis/README.md": index_markdown(ordered, cards).encode()}
    if cards is not None:
        files["analysis/cards.json"] = cards_json(cards).encode()
    for analysis in ordered:
        slug, grid = analysis.slug, analysis.slug in grids
        plots = plots_of(analysis, styles)
        own = () if cards is None else cards.tracks.get(slug, ())
        files[f"analysis/{slug}.md"] = task_markdown(analysis, plots, grid=grid, cards=own).encode()
        page = task_page(analysis, styles, plots, siblings=ordered, grid=grid, cards=own)
        files[f"site/{pages[slug]}"] = page.encode()
        for plot in plots:
            if plot.static:
                files[f"analysis/figures/{slug}-{plot.name}.svg"] = svg(plot.picture).encode()
        if grid:
            image = _read(grids[slug])
            files |= {f"{folder}/{analysis.grid_name}": image for folder in ("analysis/figures", "site")}
    return files


def links_of(analyses: Sequence[TaskAnalysis]) -> list[AnalysisLink]:
    """What the leaderboard links to, by slug. Raises UsageError if two analyses would share their pages."""
    slugs = sorted(analysis.slug for analysis in analyses)
    for slug, following in pairwise(slugs):
        if slug == following:
            raise UsageError(f"two analyses are named {slug}: pass one results folder that holds it")
    found = (AnalysisLink(analysis.slug, analysis.task, words.page_name(analysis)) for analysis in analyses)
    return sorted(found, key=lambda link: link.slug)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}; analyze again") from error


# Parts


def parts_of(analysis: TaskAnalysis) -> list[PagePart]:
    """Everything below the cards; tables without rows are dropped, parts without anything too."""
    leads = tuple(measure.key for measure in lead_measures(analysis))
    place = ("sparsity", "method")
    changed, unlisted = tables.changed_groups_table(analysis)
    more = f" {unlisted} more are in the JSON." if unlisted else ""
    kind = ("By attribute", words.ATTRIBUTES) if analysis.multi_label else ("By class", words.CLASSES)
    by_output = [
        PageTable(tables.outputs_table(analysis, measure), words.sentence(measure.help))
        for measure in analysis.attribute_measures
    ]
    lines = exploratory_lines(analysis)
    parts = (
        PagePart("exploratory", "Exploratory lines", f"{words.EXPLORATORY} {words.found_lines(lines)}",
                 (PageTable(tables.exploratory_table(analysis, lines), first=LONG),)),
        PagePart("sparsity", "Against sparsity", words.PLUS_MINUS, (
            PageTable(tables.measures_table(analysis), words.PLUS_MINUS, (*place, *leads, "seeds")),
            PageTable(tables.changes_table(analysis), words.CHANGES),
            PageTable(tables.sampled_table(analysis), words.SAMPLED),
        )),
        PagePart("together", "What goes with bias", words.CORRELATIONS,
                 (PageTable(tables.correlation_table(analysis), words.CORRELATIONS),)),
        PagePart("attributes", *kind, tuple(by_output)),
        PagePart("groups", "By group", words.GROUPS, (
            PageTable(tables.group_summary_table(analysis)),
            PageTable(changed, f"Those with corrected p < {tables.ALPHA:g}.{more}"),
        )),
        PagePart("exemplars", "Disagreement and exemplars", words.EXEMPLARS, (
            PageTable(tables.exemplar_table(analysis), words.EXEMPLARS,
                      (*place, "disagreement", "control", "added", "right_share")),
        )),
        PagePart("predictability", "What the dense model predicts", words.SAMPLES, (
            PageTable(tables.sample_table(analysis)),
            PageTable(tables.criterion_table(analysis), words.OUTPUTS.format(names=analysis.output_noun)),
            PageTable(tables.susceptible_table(analysis), words.SUSCEPTIBLE),
        )),
        PagePart("splits", "Bias and variance over seeds", words.SPLITS,
                 (PageTable(tables.split_table(analysis), words.SPLITS),)),
    )  # fmt: skip
    kept = []
    for part in parts:
        filled = tuple(entry for entry in part.tables if entry.table.rows)
        if filled:
            kept.append(PagePart(part.anchor, part.title, part.words, filled))
    return kept


# Markdown


def index_markdown(analyses: Sequence[TaskAnalysis], cards: HypothesisCards | None = None) -> str:
    """`README.md`: the cards, then a link a task to its exploratory page."""
    parts = [f"# {words.TITLE}", words.LEAD]
    if cards is not None and cards.tracks:
        parts += ["## Hypotheses", words.CARDS, cards_markdown(cards)]
    if not analyses:
        return markdown.page([*parts, "There are no analyses yet: run `prunebench analyze RESULTS`."])
    parts.append("## By task")
    pages = (
        f"{markdown.link(words.page_name(analysis), f'{analysis.slug}.md')}: "
        f"{markdown.escape(words.coverage(analysis))} {words.found_lines(exploratory_lines(analysis))}"
        for analysis in analyses
    )
    return markdown.page([*parts, words.EXPLORATORY, markdown.bullets(pages), words.SOURCE])


def task_markdown(
    analysis: TaskAnalysis, plots: Sequence[PagePlot], *, grid: bool, cards: Sequence[HypothesisCard] = ()
) -> str:
    """`<slug>.md`; plots are in `figures/` (`grid`: the samples' image too), the interactive page in `../site/`."""
    slug = analysis.slug
    parts = [f"# {words.TITLE}: {markdown.escape(words.page_name(analysis))}", words.LEAD]
    parts.append(
        f"{markdown.escape(words.coverage(analysis))} Interactive plots and all tables: "
        f"`site/{slug}-analysis.html`, which `prunebench leaderboard` writes. [All tasks](README.md). "
        "[Leaderboard](../README.md)."
    )
    parts.append(markdown.escape(f"{words.sentence(analysis.title)} {words.setting(analysis)}"))
    parts.append(_terms(words.HOW_TO_READ))
    if analysis.left_out:
        lines = markdown.bullets(map(markdown.escape, analysis.left_out))
        parts.append(_folded(f"Runs left out ({len(analysis.left_out)})", lines))
    parts += ["## Hypotheses", words.CARDS if cards else words.NO_CARDS]
    parts.append(markdown.markdown_table(cards_table(cards)) if cards else "")
    for part in parts_of(analysis):
        parts += _part(analysis, part, [plot for plot in plots if plot.static], grid)
    parts += ["## What the measures mean", _terms(words.measure_terms(analysis))]
    return markdown.page([*parts, words.SOURCE, markdown.escape(words.origin(analysis))])


def _part(analysis: TaskAnalysis, part: PagePart, plots: Iterable[PagePlot], grid: bool) -> list[str]:
    parts = [f"## {part.title}", markdown.escape(part.words)]
    for plot in plots:
        if plot.part == part.anchor:
            title = plot.picture.title
            parts.append(markdown.picture(title, f"figures/{analysis.slug}-{plot.name}.svg"))
            parts.append(f"*{markdown.escape(plot.caption)}*")
    parts += _tables(part.tables, hide=part.words)
    if grid and part.anchor == "predictability":
        parts.append(markdown.picture("The most susceptible samples", f"figures/{analysis.grid_name}"))
        parts.append(f"*{words.SUSCEPTIBLE}*")
    return parts


def _tables(entries: Sequence[PageTable], hide: str = "") -> list[str]:
    """Short tables, longish ones folded, of long ones the leading columns, and which stand on the other page alone."""
    parts, elsewhere = [], []
    for entry in entries:
        table, rows = entry.table, len(entry.table.rows)
        said = "" if entry.words == hide else markdown.escape(entry.words)
        title = f"{table.title} ({fmt.plural(rows, 'row')})"
        if rows > LONG and not entry.lead and not entry.first:
            elsewhere.append(markdown.escape(title))
            continue
        if rows > LONG and entry.first:
            table = simple_table(table.columns, table.rows[: entry.first], table.title)
            title += f", the first {entry.first}"
        elif rows > LONG and table.keys != entry.lead:
            table = table.choose(*entry.lead)
            title += ", the leading columns"
        text = markdown.markdown_table(table)
        parts += (
            [f"### {table.title}", said, text]
            if rows <= SHORT
            else [_folded(title, f"{said}\n\n{text}".strip())]
        )
    return [*parts, f"On the interactive page: {'; '.join(elsewhere)}." if elsewhere else ""]


def _terms(entries: Mapping[str, str]) -> str:
    lines = (f"**{markdown.escape(term)}.** {markdown.escape(text)}" for term, text in entries.items())
    return markdown.bullets(lines)


def _folded(summary: str, body: str) -> str:
    return f"<details>\n<summary>{markdown.escape(summary)}</summary>\n\n{body}\n\n</details>"


# Interactive page


def task_page(
    analysis: TaskAnalysis,
    styles: Styles,
    plots: Sequence[PagePlot],
    *,
    siblings: Sequence[TaskAnalysis],
    grid: bool,
    cards: Sequence[HypothesisCard] = (),
) -> str:
    """`<slug>-analysis.html`; it wants `plotly.min.js` beside it, and with `grid` the samples' image."""
    shown = [plot for plot in plots if not plot.static]
    pictures = [plot.picture for plot in shown if isinstance(plot.picture, Plot | HeatMap)]
    with_lines = {row.method for row in analysis.conditions if row.sparsity is not None}
    return html.render(
        "analysis.html.j2",
        folder=TEMPLATES,
        analysis=analysis,
        words=words,
        name=words.page_name(analysis),
        siblings=[(other.slug, words.page_name(other)) for other in siblings],
        cards=html.trusted(cards_html(cards)) if cards else None,
        parts=parts_of(analysis),
        plots=[(plot.part, plot.picture) for plot in shown if isinstance(plot.picture, Plot)],
        maps=[picture for picture in pictures if isinstance(picture, HeatMap)],
        legend=[html.switch(name, styles[name], line=name in with_lines) for name in analysis.methods],
        reference=html.reference(analysis.reference),
        sparsities=[*map(fmt.sparsity, analysis.sparsities), *["native"] * bool(analysis.native)],
        grid=grid,
        data=html.script_json({"analysis": {"figures": html.page_figures(pictures)}}),
    )


# Files


@dataclass(frozen=True)
class BuiltPages:
    """The leaderboard that was written, and the analyses that it links to."""

    board: Leaderboard
    analyses: list[TaskAnalysis]
    cards: HypothesisCards


def build_pages(
    records: list[RunRecord], results: Sequence[Path], out: Path, earlier: Leaderboard | None = None
) -> BuiltPages:
    """Write the leaderboard of these records under `out`, the cards, and the pages of the analyses stored in results.

    `earlier`: the board also says what changed since this one.

    Raises StoreError for an analysis that cannot be read and where `out` cannot be written, UsageError for two
    analyses of one track.
    """
    stored = [stored_analyses(folder) for folder in results]
    analyses = [analysis for found, _ in stored for analysis in found]
    grids = {slug: path for _, images in stored for slug, path in images.items()}
    standing = functools.reduce(Standing.merged, map(read_standing, results), NOTHING)
    cards = cards_of(standing.listed(records), read_seed_numbers([folder / FOLDER for folder in results]))
    return BuiltPages(_write(records, (analyses, grids), out, standing, cards, earlier), analyses, cards)


def build_after_run(records: list[RunRecord], results: Path, out: Path) -> str | None:
    """Write the leaderboard after a run, and the pages that an earlier analysis left under `out`, in its colours.

    Cards are made anew where there are such pages; a run alone makes none, as most need stored outputs looked at.

    Where the analyses cannot be read, which is no reason to fail after hours of training, there are no links to them,
    and the reason is returned.
    """
    problem, standing, cards = None, NOTHING, None
    analyses: list[TaskAnalysis] = []
    grids: dict[str, Path] = {}
    try:
        standing = read_standing(results)
        found, grids = stored_analyses(results)
        pages = {link.slug: out / "site" / link.page for link in links_of(found)}
        analyses = [analysis for analysis in found if pages[analysis.slug].is_file()]
        if analyses:
            cards = cards_of(standing.listed(records), read_seed_numbers([results / FOLDER]))
    except PruneBenchError as error:
        problem = str(error)
    _write(records, (analyses, grids), out, standing, cards, whole=problem is None)
    return problem


def _write(
    records: list[RunRecord],
    stored: tuple[list[TaskAnalysis], Mapping[str, Path]],
    out: Path,
    standing: Standing,
    cards: HypothesisCards | None,
    earlier: Leaderboard | None = None,
    *,
    whole: bool = True,
) -> Leaderboard:
    analyses, grids = stored
    board = build_board(records, standing)
    changes = None if earlier is None else diff_boards(earlier, board)
    shown = {} if cards is None else cards_data(cards)
    files = board_files(board, links_of(analyses), changes, shown)
    pages = analysis_files(analyses, grids, board.labels, cards) if analyses or cards is not None else {}
    write_pages(out, files | pages, whole=whole)
    return board
