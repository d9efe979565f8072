"""Excerpts of the leaderboard in the project's README, between markers, so that no number is typed."""

from __future__ import annotations

import re
from pathlib import Path

from prunebench.errors import UsageError
from prunebench.leaderboard.answers import SPARSITY
from prunebench.leaderboard.columns import summary_table
from prunebench.leaderboard.controls import SHUFFLED
from prunebench.leaderboard.values import Leaderboard, MethodRow, Track
from prunebench.report.format import plural
from prunebench.report.markdown import escape, markdown_table, picture
from prunebench.results.ranking import DEFERRED
from prunebench.results.store import write_atomically
from prunebench.results.tracks import REFERENCE

MOST_ROWS = 8
BASELINE = "magnitude"
EXAMPLE, EXAMPLE_SPARSITIES = "channel-relative", (0.5, 0.9, 0.98)


def update_readme(
    board: Leaderboard, readme: Path, hypotheses: str = "", *, figures: str = "leaderboard/figures"
) -> None:
    """Replace what stands between `<!-- board:begin -->` / `end`, and the same for `hypotheses` and `example`.

    A part whose markers the file lacks is left out; the board's must be there.

    Args:
        board: where the numbers come from.
        readme: the file.
        hypotheses: what the cards say.
        figures: the folder of the board's figures, as the file sees it.

    Raises:
        UsageError: there is no file, or no `board` marker in it.
    """
    if not readme.is_file():
        raise UsageError(f"no file {readme}")
    text = readme.read_text(encoding="utf-8")
    excerpts = {
        "board": board_excerpt(board, figures),
        "hypotheses": hypotheses,
        "example": example_excerpt(board),
    }
    for name, content in excerpts.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        parts = re.split(pattern, text, flags=re.DOTALL)
        if len(parts) < 4 and name != "board":
            continue
        if len(parts) < 4:
            raise UsageError(f"{readme} has no <!-- board:begin --> ... <!-- board:end --> to fill")
        text = f"{parts[0]}<!-- {name}:begin -->\n{content}<!-- {name}:end -->{''.join(parts[3:])}"
    write_atomically(readme, text.encode())


def board_excerpt(board: Leaderboard, figures: str) -> str:
    """A short table at one sparsity and the curves of the task with the most methods; the others are named."""
    finished = [track for track in board.tracks if track.finished]
    if not finished:
        return ""
    track = max(finished, key=lambda track: len({row.method for row in track.rows}))
    rows, left = shown_rows(track)
    more = (
        f"; the best by bias-conflicting accuracy and the baseline, {left} more on the board" if left else ""
    )
    parts = [
        f"**{escape(track.title)}**, sparsity {SPARSITY:g}: accuracy in % over {plural(len(track.seeds), 'seed')} ± "
        f"the half-width of its 95 % interval{more}. {_reference_words(track)}",
        markdown_table(summary_table(track, rows)),
        picture(f"Accuracy over sparsity, {track.title}", f"{figures}/{track.slug}.svg"),
    ]
    others = [escape(other.title) for other in finished if other is not track]
    if others:
        parts.append(f"On the board too: {', '.join(others)}.")
    return "".join(f"{part}\n\n" for part in parts)


def _reference_words(track: Track) -> str:
    if track.reference is None:
        return " ".join(escape(note) for note in track.notes if REFERENCE in note)
    return (
        f"Changes, and training as a multiple, are from {escape(track.reference)}: the dense network with the steps of "
        "a pruned one; * where paired tests tell them apart at a false discovery rate of 5 %."
    )


def shown_rows(track: Track) -> tuple[list[MethodRow], int]:
    """The reference, the dense row, the best at a sparsity and the baseline, in order; and how many more there are."""
    rows = [row for row in track.rows if row.dense or row.sparsity in (SPARSITY, None)]
    kept = [row for row in rows if row.dense and row.method in (track.reference, "dense")]
    kept += [row for row in rows if row.method == BASELINE and not row.dense]
    others = (row for row in rows if not row.dense and row not in kept)
    best = [row for row in others if not row.method.startswith(SHUFFLED) and DEFERRED not in row.unranked]
    kept += best[: MOST_ROWS - len(kept)]
    return [row for row in rows if row in kept], len(rows) - len(kept)


def example_excerpt(board: Leaderboard) -> str:
    """The example method's rows beside the baseline's; empty if the board has none."""
    for track in board.tracks:
        if any(row.method == EXAMPLE for row in track.rows):
            both = [row for row in track.rows if row.method in (EXAMPLE, BASELINE)]
            table = summary_table(track, [row for row in both if row.sparsity in EXAMPLE_SPARSITIES])
            return f"On {escape(track.title)}:\n\n{markdown_table(table)}\n\n"
    return ""
