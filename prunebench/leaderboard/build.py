"""Leaderboard files: records in, Markdown, figures, the site and a manifest out, byte for byte the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError
from prunebench.leaderboard import columns, words
from prunebench.leaderboard.aggregate import build_board
from prunebench.leaderboard.plots import group_maps, method_styles, still_title, track_grid, track_plots
from prunebench.leaderboard.values import Leaderboard, Track
from prunebench.report.format import listed, plural
from prunebench.report.html import Switch, page_figures, plotly_script, reference, render, script_json, switch
from prunebench.report.markdown import bullets, escape, link, markdown_table, page, picture
from prunebench.report.plot import Plot, Style
from prunebench.report.svg import svg
from prunebench.report.table import Table
from prunebench.results.record import RunRecord
from prunebench.results.standing import NOTHING, Standing
from prunebench.results.store import write_atomically

TEMPLATES = Path(__file__).parent / "templates"
MANIFEST = "MANIFEST.sha256"
PLOTLY = "site/plotly.min.js"
ANALYSIS = "Bias under pruning"


@dataclass(frozen=True)
class AnalysisLink:
    """An analysis of a track: `analysis/<slug>.md` and `site/<slug>-analysis.html` beside the board."""

    slug: str
    task: str
    name: str

    @property
    def page(self) -> str:
        """Its file in `site`."""
        return f"{self.slug}-analysis.html"


Links = Sequence[AnalysisLink]


def write_board(
    records: list[RunRecord], out: Path, analyses: Links = (), standing: Standing = NOTHING
) -> Leaderboard:
    """Write README.md, `figures/*.svg`, `site/` and MANIFEST.sha256 under `out`; returns what they show.

    Raises StoreError where `out` cannot be written.
    """
    board = build_board(records, standing)
    files = board_files(board, analyses)
    write_files(
        out, {name: text.encode() for name, text in files.items()} | {PLOTLY: plotly_script().encode()}
    )
    write_manifest(out, files)
    return board


def board_files(board: Leaderboard, analyses: Links = ()) -> dict[str, str]:
    """The text of each file by its name; the site wants plotly's script beside it, too."""
    styles = method_styles(board)
    figures = {f"figures/{t.slug}.svg": svg(track_grid(t, styles)) for t in board.tracks if t.finished}
    return figures | {
        "README.md": board_markdown(board, analyses),
        "site/index.html": page_html(board, analyses),
    }


def write_files(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files below a folder, by name. Raises StoreError where that cannot be."""
    for name, content in sorted(files.items()):
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"cannot write {path}: {reason}; choose another folder for the board") from error
        write_atomically(path, content)
    return [out / name for name in sorted(files)]


def write_manifest(out: Path, names: Iterable[str]) -> Path:
    """MANIFEST.sha256: the SHA-256 of each of these files, as `sha256sum --check` reads it.

    plotly's script is left out: it is that of the package which is installed.
    """
    digests = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in sorted({*names} - {PLOTLY})
    }
    text = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    write_atomically(out / MANIFEST, text.encode())
    return out / MANIFEST


def extend_manifest(out: Path, paths: Iterable[Path]) -> None:
    """Add files below `out` to its manifest."""
    lines = (out / MANIFEST).read_text(encoding="utf-8").splitlines()
    known = [line.partition("  ")[2] for line in lines]
    write_manifest(out, [*known, *(path.relative_to(out).as_posix() for path in paths)])


def link_of(track: Track, links: Links) -> AnalysisLink | None:
    """The analysis of a track, if there is one."""
    return next((found for found in links if (found.slug, found.task) == (track.slug, track.task)), None)


# Sentences


def facts_line(board: Leaderboard) -> str:
    """How much the board rests on, in one or two sentences."""
    line = (
        f"{board.ok} of {board.runs} recorded runs finished; {plural(len(board.labels), 'pruning method')}, "
        f"{listed('seed', board.seeds)}."
    )
    if board.duplicates:
        line += f" {board.duplicates} further records of the same runs were left out: the latest finished one counts."
    return line


def track_lines(track: Track) -> list[str]:
    """What sets a track apart; task version, data, model and training budget; and what to know before comparing."""
    recipe = dict(track.recipe)
    settings = ", ".join(
        f"{name.replace('_', ' ')} {recipe[name]}"
        for name in sorted(recipe)
        if name not in ("steps", "finetune_steps")
    )
    apart = f"Not averaged with the other tracks of {track.task}: here {track.differs}."
    return [
        *([apart] if track.differs is not None else []),
        f"Model {track.model}; {recipe.get('steps')} training steps and {recipe.get('finetune_steps')} of fine-tuning "
        f"for every method ({settings}). Task version {track.task_version}, data {track.data_fingerprint}.",
        *track.notes,
    ]


def how_to_read() -> list[tuple[str, str]]:
    """Terms and what they mean; of the metrics, what the registry says."""
    return [(term, text or columns.metric_words(attributes=False)) for term, text in words.HOW_TO_READ]


@dataclass(frozen=True)
class BoardPart:
    """A heading below a track, its words, and a table; `lead` is a sentence in bold."""

    title: str
    words: str
    table: Table[Any]
    lead: str | None = None


def parts_of(track: Track) -> list[BoardPart]:
    """The tables of a track, for Markdown and the page alike."""
    machines = (
        f" Latencies: {'; '.join(machine.label for machine in track.machines)}." if track.machines else ""
    )
    attributes, mining = columns.attributes_table(track), columns.mining_table(track)
    attribute_words = f"{words.ATTRIBUTE_WORDS} {columns.metric_words(attributes=True)}"
    cost_words = f"{words.COST_WORDS}{machines}"
    found = [BoardPart("Accuracy", words.ACCURACY_WORDS, columns.accuracy_table(track))]
    found += [BoardPart("Attributes", attribute_words, attributes)] if attributes is not None else []
    found.append(BoardPart("Cost", cost_words, columns.cost_table(track), columns.speed_summary(track)))
    return found + ([BoardPart("Mining", words.MINING_WORDS, mining)] if mining is not None else [])


# Markdown


def board_markdown(board: Leaderboard, analyses: Links = ()) -> str:
    """The whole board. The figures are beside it, in `figures/<slug>.svg`."""
    parts = ["# PruneBench leaderboard", words.INTRODUCTION]
    if not board.tracks:
        return page([*parts, words.EMPTY_WORDS])
    parts.append(f"{facts_line(board)} {words.SITE_WORDS}")
    parts.append(bullets(link(track.title, f"#{track.slug}") for track in board.tracks))
    if analyses:
        names = ", ".join(link(one.name, f"analysis/{one.slug}.md") for one in analyses)
        parts.append(f"[{ANALYSIS}](analysis/README.md): {names}.")
    parts += ["## How to read this", bullets(f"**{term}.** {text}" for term, text in how_to_read())]
    for track in board.tracks:
        parts += _track_markdown(track, link_of(track, analyses))
    parts += ["## Methods", words.SUPERVISION_WORDS, markdown_table(columns.methods_table(board))]
    if board.history:
        parts += ["## History", words.HISTORY_WORDS, bullets(map(escape, board.history))]
    parts += ["## Where the numbers were made", *map(markdown_table, columns.origin_tables(board))]
    return page(parts)


def _track_markdown(track: Track, analysis: AnalysisLink | None) -> list[str]:
    parts = [f'<a id="{track.slug}"></a>', f"## {escape(track.title)}", *map(escape, track_lines(track))]
    if analysis is not None:
        parts.append(link(f"{ANALYSIS}: the analysis of this task", f"analysis/{analysis.slug}.md"))
    parts.append(picture(still_title(track), f"figures/{track.slug}.svg") if track.finished else "")
    for part in parts_of(track):
        lead = f"**{part.lead}**" if part.lead else ""
        parts += [f"### {part.title}", escape(part.words), lead, markdown_table(part.table)]
        if part.title == "Accuracy" and track.problems:
            parts += ["Missing or failed runs:", bullets(map(escape, track.problems))]
    return parts


# The page


@dataclass(frozen=True)
class TrackView:
    """A track as the template shows it."""

    track: Track
    lines: Sequence[str]
    legend: Sequence[Switch]
    plots: Sequence[Plot]
    parts: Sequence[BoardPart]
    tags: Sequence[str]
    groups: dict[str, Any]
    analysis: AnalysisLink | None


def page_html(board: Leaderboard, analyses: Links = ()) -> str:
    """`index.html` of the board; it wants `plotly.min.js`, and the pages of analyses, in its own folder."""
    styles = method_styles(board)
    views = [_view(track, styles, link_of(track, analyses)) for track in board.tracks]
    data = {view.track.slug: {"figures": page_figures(view.plots), "heat": view.groups} for view in views}
    return render(
        "index.html.j2",
        TEMPLATES,
        words=words,
        reading=how_to_read(),
        facts=facts_line(board) if views else words.EMPTY_WORDS,
        views=views,
        methods=columns.methods_table(board),
        history=board.history,
        origins=columns.origin_tables(board),
        dense=reference("dense"),
        data=script_json(data) if views else None,
        analyses=analyses,
        analysis_words=ANALYSIS,
    )


def _view(track: Track, styles: Mapping[str, Style], analysis: AnalysisLink | None) -> TrackView:
    lines_of = {row.method for row in track.pruned}
    names = sorted({row.method for row in track.rows if not row.dense})
    return TrackView(
        track,
        track_lines(track),
        [switch(name, styles[name], line=name in lines_of) for name in names],
        track_plots(track, styles),
        parts_of(track),
        list(
            dict.fromkeys(
                row.tag for row in (*sorted(track.pruned, key=lambda r: r.sparsity or 0), *track.native)
            )
        ),
        group_maps(track),
        analysis,
    )
