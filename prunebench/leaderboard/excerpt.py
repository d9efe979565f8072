"""The part of the board that stands in the project's README, between markers, so that no number is typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from prunebench.errors import UsageError
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.markdown import escape
from prunebench.leaderboard.rows import Row
from prunebench.leaderboard.words import MISSING, TIMES, in_percent, number, with_half_width
from prunebench.results.store import write_atomically

SPARSITY = 0.9
SHOWN_SECTIONS = 2
EXAMPLE, EXAMPLE_SPARSITIES = "channel-relative", (0.5, 0.9, 0.98)
COLUMNS = (
    "Method",
    "Supervision",
    "Unbiased",
    "Conflicting",
    "Worst group",
    "Bias gap",
    "Speed-up in theory",
    "Speed-up measured",
    "Training",
)


def update_readme(
    board: Board, readme: Path, claims: str = "", *, figures: str = "leaderboard/figures"
) -> None:
    """Replace what stands between `<!-- board:begin -->` / `end`, and the same for `claims` and `example`.

    claims: what analyses say, as `analysis.markdown.claims_excerpt` writes it. Raises UsageError if the file or a
    marker is missing.
    """
    if not readme.is_file():
        raise UsageError(f"no file {readme}")
    text = readme.read_text(encoding="utf-8")
    excerpts = {
        "board": board_excerpt(board, figures),
        "claims": claims,
        "example": example_excerpt(board),
    }
    for name, content in excerpts.items():
        pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
        if not re.search(pattern, text, flags=re.DOTALL):
            raise UsageError(f"{readme} has no <!-- {name}:begin --> ... <!-- {name}:end --> to fill")
        before, after = re.split(pattern, text, flags=re.DOTALL)[::3]
        text = f"{before}<!-- {name}:begin -->\n{content}<!-- {name}:end -->{after}"
    write_atomically(readme, text.encode())


def board_excerpt(board: Board, figures: str) -> str:
    """A table at one sparsity and the curves, for the tasks with the most methods; the others are named."""
    finished = [section for section in board.sections if section.finished]
    largest = sorted(finished, key=lambda section: -len({row.method for row in section.rows}))[
        :SHOWN_SECTIONS
    ]
    parts = []
    for section in finished:
        if section in largest:
            parts += [
                f"**{escape(section.title)}**, sparsity {SPARSITY:g}: accuracy in % over {len(section.seeds)} seeds "
                f"± the half-width of its 95 % interval.",
                _table([row for row in section.rows if row.dense or row.sparsity in (SPARSITY, None)]),
                f"![Accuracy over sparsity, {escape(section.title)}]({figures}/{section.slug}.svg)",
            ]
    others = [escape(section.title) for section in finished if section not in largest]
    if others:
        parts.append(f"On the board too: {', '.join(others)}.")
    return "".join(f"{part}\n\n" for part in parts)


def example_excerpt(board: Board) -> str:
    """The example method's rows beside magnitude's; empty if the board has none."""
    for section in board.sections:
        if any(row.method == EXAMPLE for row in section.rows):
            rows = [row for row in section.rows if row.method in (EXAMPLE, "magnitude")]
            rows = [row for row in rows if row.sparsity in EXAMPLE_SPARSITIES]
            titles = [f"{row.method}, sparsity {row.sparsity:g}" for row in rows if row.sparsity is not None]
            return f"On {escape(section.title)}:\n\n{_table(rows, titles)}\n\n"
    return ""


def _table(rows: Sequence[Row], titles: Sequence[str] | None = None) -> str:
    names = titles or [f"{row.method} (native)" if row.sparsity is None else row.method for row in rows]
    body = [[escape(name), *map(escape, _cells(row))] for name, row in zip(names, rows, strict=True)]
    align = ["left", "left", *["right"] * (len(COLUMNS) - 2)]
    return tabulate(body, headers=COLUMNS, tablefmt="pipe", disable_numparse=True, colalign=align)


def _cells(row: Row) -> list[str]:
    accuracies = [in_percent(row.metric(n)) for n in ("unbiased", "conflicting", "worst_group", "bias_gap")]
    if row.cost is None:
        return [row.supervision, *accuracies, MISSING, MISSING, MISSING]
    measured = ", ".join(with_half_width(speed.speed_up, 1, 2) + TIMES for speed in row.cost.speeds)
    theory, training = number(row.cost.theoretical_speed_up, 1), number(row.cost.training, 2)
    return [row.supervision, *accuracies, theory + TIMES, measured, training + TIMES]
