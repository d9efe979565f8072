"""All that shows analyses: Markdown with still figures, and interactive pages of the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from prunebench.analysis.looks import page_name
from prunebench.analysis.values import TaskAnalysis
from prunebench.errors import StoreError, UsageError
from prunebench.leaderboard import AnalysisLink
from prunebench.results.store import write_atomically


def write_pages(
    analyses: Sequence[TaskAnalysis],
    grids: Mapping[str, Path],
    out: Path,
    *,
    board_methods: Sequence[str] = (),
    redraw: bool = True,
) -> list[Path]:
    """Write the pages of these analyses under `out`, the board's folder; returns them, by name.

    `analysis/README.md` and `analysis/<slug>.md` with `analysis/figures/*.png`, `site/<slug>-analysis.html` with
    `plotly.min.js`. grids: by slug, the image of the susceptible samples, which is copied beside both.
    board_methods: the board's methods (`Board.labels`), so that colours agree. Without `redraw` only still figures
    that are missing or show other numbers or colours are drawn. Raises StoreError where `out` cannot be written,
    UsageError for equal slugs.
    """
    from prunebench.analysis.looks import analysis_styles
    from prunebench.analysis.markdown import index_markdown, task_markdown
    from prunebench.analysis.page import task_page
    from prunebench.analysis.pictures import draw_pictures, inputs_of, shown_in
    from prunebench.leaderboard.site import plotly_script

    pages = {link.slug: link.page for link in links_of(analyses)}
    ordered = sorted(analyses, key=lambda analysis: analysis.slug)
    styles = analysis_styles(ordered, board_methods)
    shown = {analysis.slug for analysis in ordered if analysis.slug in grids}
    files = {"analysis/README.md": index_markdown(ordered).encode()}
    if ordered:
        files["site/plotly.min.js"] = plotly_script().encode()
    for analysis in ordered:
        slug = analysis.slug
        files[f"analysis/{slug}.md"] = task_markdown(analysis, grid=slug in shown).encode()
        page = task_page(analysis, styles, siblings=ordered, grid=slug in shown)
        files[f"site/{pages[slug]}"] = page.encode()
        if slug in shown:
            image = _read(grids[slug])
            files |= {f"{place}/{analysis.grid_name}": image for place in ("analysis/figures", "site")}
        inputs = inputs_of(analysis, styles)
        for name, draw in draw_pictures(analysis, styles, inputs).items():
            path = f"analysis/figures/{slug}-{name}.png"
            if redraw or shown_in(out / path) != inputs:
                files[path] = draw()
    return [_write(out / name, content) for name, content in sorted(files.items())]


def links_of(analyses: Sequence[TaskAnalysis]) -> list[AnalysisLink]:
    """What the board links to, by slug. Raises UsageError if two analyses would share their pages."""
    slugs = sorted(analysis.slug for analysis in analyses)
    for slug, following in pairwise(slugs):
        if slug == following:
            raise UsageError(f"two analyses are named {slug}: pass one results folder that holds it")
    found = (AnalysisLink(analysis.slug, analysis.task, page_name(analysis)) for analysis in analyses)
    return sorted(found, key=lambda link: link.slug)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}; analyze again") from error


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write {path}: {reason}; choose another folder for the pages") from error
    write_atomically(path, content)
    return path
