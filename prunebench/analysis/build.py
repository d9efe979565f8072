"""Build of leaderboard and analysis pages: records and stored analyses in, files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.analysis.report import analysis_files, links_of
from prunebench.analysis.storage import stored_analyses
from prunebench.analysis.values import TaskAnalysis
from prunebench.errors import PruneBenchError
from prunebench.leaderboard import Leaderboard, write_board
from prunebench.leaderboard.build import extend_manifest, write_files
from prunebench.results.record import RunRecord


@dataclass(frozen=True)
class BuiltPages:
    """The leaderboard that was written, and the analyses that it links to."""

    board: Leaderboard
    analyses: list[TaskAnalysis]


def build_pages(records: list[RunRecord], results: Sequence[Path], out: Path) -> BuiltPages:
    """Write the leaderboard of these records under `out`, and the pages of the analyses stored in results folders.

    Raises StoreError for an analysis that cannot be read and where `out` cannot be written, UsageError for two
    analyses of one track.
    """
    stored = [stored_analyses(folder) for folder in results]
    analyses = [analysis for found, _ in stored for analysis in found]
    grids = {slug: path for _, images in stored for slug, path in images.items()}
    return _write(records, analyses, grids, out)


def build_after_run(records: list[RunRecord], results: Path, out: Path) -> str | None:
    """Write the leaderboard after a run, and the pages that an earlier analysis left under `out`, in its colours.

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
    records: list[RunRecord], analyses: list[TaskAnalysis], grids: Mapping[str, Path], out: Path
) -> BuiltPages:
    board = write_board(records, out, links_of(analyses))
    if analyses:
        extend_manifest(out, write_files(out, analysis_files(analyses, grids, board.labels)))
    return BuiltPages(board, analyses)
