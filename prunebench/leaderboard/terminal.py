"""The board in a terminal: one narrow table a section."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.rows import Row
from prunebench.leaderboard.words import MISSING, TIMES, in_percent, number, sparsity_words

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("Zeros", "Method", "Unbiased", "Conflicting", "Worst", "Gap", "MACs", "Speed", "Seeds")
CAPTION = (
    "Zeros: sparsity asked for. Accuracy in %, mean over seeds ± half-width of its 95 % t-interval; worst "
    "group and bias gap: means. MACs: non-zero share, %. Speed: dense / pruned latency, measured. "
    f"{MISSING}: a seed is missing."
)


def terminal_table(board: Board) -> list[Table]:
    """One table a section, for rich to print."""
    return [_table(section) for section in board.sections]


def _table(section: Section) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(section.title),
        caption=Text(CAPTION),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "Method" else "right", no_wrap=name != "Method")
    previous = None
    for row in section.rows:
        block = "dense" if row.dense else sparsity_words(row.sparsity)
        if previous is not None and block != previous:
            table.add_section()
        table.add_row(*(Text(text) for text in (block, row.method, *_numbers(row))))
        previous = block
    return table


def _numbers(row: Row) -> list[str]:
    texts = [in_percent(row.metric(name)) for name in ("unbiased", "conflicting")]
    texts += [number(100 * row.metric(name).mean, 1) for name in ("worst_group", "bias_gap")]
    seeds = f"{len(row.seeds)}/{len(row.planned)}"
    if row.cost is None:
        return [*texts, MISSING, MISSING, seeds]
    speeds = ", ".join(f"{number(speed.speed_up.mean, 2)}{TIMES}" for speed in row.cost.speeds)
    return [*texts, number(100 / row.cost.theoretical_speed_up, 1), speeds, seeds]
