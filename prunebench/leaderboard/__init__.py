"""Records in, leaderboard out: a pure function, byte for byte the same whatever the records' order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunebench.errors import StoreError
from prunebench.leaderboard.board import Board, build_board
from prunebench.leaderboard.links import AnalysisLink
from prunebench.results.record import RunRecord
from prunebench.results.store import write_atomically

__all__ = ["AnalysisLink", "Board", "build_board", "write_board"]


def write_board(records: list[RunRecord], out: Path, analyses: Sequence[AnalysisLink] = ()) -> Board:
    """Write `README.md`, `figures/*.svg` and `site/` under `out`; returns what they show.

    The site is `index.html` with `plotly.min.js` beside it. Both link to the analyses, which `analysis.pages` writes.
    Raises StoreError where `out` cannot be written.
    """
    from prunebench.leaderboard.curves import curves_svg
    from prunebench.leaderboard.figures import method_styles
    from prunebench.leaderboard.markdown import board_markdown
    from prunebench.leaderboard.site import page_html, plotly_script

    board = build_board(records)
    styles = method_styles(board)
    files = {
        f"figures/{section.slug}.svg": curves_svg(section, styles)
        for section in board.sections
        if section.finished
    }
    files |= {
        "site/plotly.min.js": plotly_script(),
        "site/index.html": page_html(board, analyses),
        "README.md": board_markdown(board, analyses),
    }
    for name, text in files.items():
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror or error}; choose another folder for the board"
            ) from error
        write_atomically(path, text.encode())
    return board
