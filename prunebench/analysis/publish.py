"""Records and stored analyses in, board and pages out: what commands leave to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.analysis.pages import links_of, write_pages
from prunebench.analysis.stored import stored_analyses
from prunebench.analysis.values import TaskAnalysis
from prunebench.errors import PruneBenchError
from prunebench.leaderboard import Leaderboard, write_board
from prunebench.leaderboard.build import extend_manifest
from prunebench.results.record import RunRecord


@dataclass(frozen=True)
class Published:
    """The board that was written, and the analyses that it links to."""

    board: Leaderboard
    analyses: list[TaskAnalysis]


def publish(
    records: list[RunRecord], results: Sequence[Path], out: Path, *, redraw: bool = False
) -> Published:
    """Write the board of these records under `out`, and the pages of the analyses stored in some results folders.

    Still figures are drawn where they are missing or show other numbers or colours, with `redraw` all. Raises
    StoreError for an analysis that cannot be read and where `out` cannot be written, UsageError for two analyses of one
    section.
    """
    stored = [stored_analyses(folder) for folder in results]
    analyses = [analysis for found, _ in stored for analysis in found]
    grids = {slug: path for _, images in stored for slug, path in images.items()}
    return _write(records, analyses, grids, out, redraw=redraw)


def publish_run(records: list[RunRecord], results: Path, out: Path) -> str | None:
    """Write the board after a run, and the pages that an earlier analysis left under `out`, in the board's colours.

    Where the analyses cannot be read, which is no reason to fail after hours of training, there are no links to them,
    and the reason is returned.
    """
    problem = None
    analyses: list[TaskAnalysis] = []
    grids: dict[str, Path] = {}
    try:
        found, grids = stored_analyses(results)
        pages = {link.slug: out / "site" / link.page for link in links_of(found)}
        analyses = [analysis for analysis in found if pages[analysis.slug].is_file()]
    except PruneBenchError as error:
        problem = str(error)
    _write(records, analyses, grids, out)
    return problem


def _write(
    records: list[RunRecord],
    analyses: list[TaskAnalysis],
    grids: Mapping[str, Path],
    out: Path,
    *,
    redraw: bool = False,
) -> Published:
    board = write_board(records, out, links_of(analyses))
    if analyses:
        pages = write_pages(analyses, grids, out, board_methods=board.labels, redraw=redraw)
        # The bytes of figures by matplotlib depend on the machine.
        drawn = out / "analysis" / "figures"
        extend_manifest(out, [path for path in pages if path.parent != drawn])
    return Published(board, analyses)
