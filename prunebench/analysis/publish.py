"""Results folders in, board and pages out: what every command does that leaves something to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.analysis.pages import links_of, write_pages
from prunebench.analysis.stored import stored_analyses
from prunebench.analysis.values import TaskAnalysis
from prunebench.errors import StoreError
from prunebench.leaderboard import Board, write_board
from prunebench.record import RunRecord
from prunebench.store import Damaged, Store


@dataclass(frozen=True)
class Published:
    """What was read and what it became."""

    board: Board
    records: list[RunRecord]
    damaged: list[Damaged]
    analyses: list[TaskAnalysis]


def publish(results: Sequence[Path], out: Path, *, redraw: bool = False) -> Published:
    """Write the board of some results folders under `out`, and the pages of the analyses stored beside the records.

    Still figures of analyses are drawn where missing, with `redraw` all. Raises StoreError for a folder without
    results and where `out` cannot be written.
    """
    records: list[RunRecord] = []
    damaged: list[Damaged] = []
    for folder in results:
        found, broken = read_results(folder)
        records += found
        damaged += broken
    stored = [stored_analyses(folder) for folder in results]
    analyses = [analysis for found, _ in stored for analysis in found]
    grids = {slug: path for _, images in stored for slug, path in images.items()}
    board = write_board(records, out, links_of(analyses))
    if analyses:
        write_pages(analyses, grids, out, board_methods=board.labels, redraw=redraw)
    return Published(board, records, damaged, analyses)


def read_results(results: Path) -> tuple[list[RunRecord], list[Damaged]]:
    """Records and damaged ones of a folder. Raises StoreError if it holds no results."""
    if not (results / "runs").is_dir():
        raise StoreError(f"{results}: no results here (no folder `runs`); pass --results DIR")
    return Store(results).records()
