"""Difference of two leaderboards: rows that are new, gone or changed, and where another method is now the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from prunebench.leaderboard.answers import answer_of, lead_of, shown_sparsity
from prunebench.leaderboard.columns import interval_text
from prunebench.leaderboard.values import Leaderboard, MethodRow, Track
from prunebench.report import format as fmt
from prunebench.report.markdown import escape, markdown_table, page
from prunebench.report.table import Column, Table, simple_table, text_column

Place = tuple[str, str, str]
"""Title of a track, method, and sparsity as it is written."""


@dataclass(frozen=True)
class RowChange:
    """A row before and after, its accuracy and rank as they are written; empty where there was or is none."""

    task: str
    method: str
    sparsity: str
    before: str = ""
    after: str = ""
    rank_before: str = ""
    rank_after: str = ""


@dataclass(frozen=True)
class BoardChanges:
    """What changed from one board to another."""

    added: tuple[RowChange, ...]
    gone: tuple[RowChange, ...]
    changed: tuple[RowChange, ...]
    best: tuple[RowChange, ...]
    """Tasks whose best method, at the sparsity that is shown first, is another one."""

    @property
    def words(self) -> str:
        """One sentence."""
        if not (self.added or self.gone or self.changed):
            return "Nothing changed."
        counts = (("new", self.added), ("gone", self.gone), ("changed", self.changed))
        told = ", ".join(f"{fmt.plural(len(rows), 'row')} {word}" for word, rows in counts)
        return f"{told}; the best method is another one on {fmt.plural(len(self.best), 'task')}."

    @property
    def tables(self) -> list[Table[RowChange]]:
        """Those that have rows."""
        kinds = (("Another best method", self.best), ("New rows", self.added), ("Rows that are gone", self.gone),
                 ("Changed rows", self.changed))  # fmt: skip
        return [simple_table(COLUMNS, rows, title).without_empty() for title, rows in kinds if rows]


COLUMNS: tuple[Column[RowChange], ...] = (
    text_column("task", "Task", value=attrgetter("task")),
    text_column("method", "Method", value=attrgetter("method"), lead=True),
    text_column("sparsity", "Sparsity", value=attrgetter("sparsity")),
    Column("before", "Before", "Accuracy of the minorities ±, %", value=attrgetter("before")),
    Column("after", "After", "Accuracy of the minorities ±, %", value=attrgetter("after")),
    Column("rank_before", "Rank before", value=attrgetter("rank_before")),
    Column("rank_after", "Rank after", value=attrgetter("rank_after")),
)


def diff_boards(old: Leaderboard, new: Leaderboard) -> BoardChanges:
    """What changed from `old` to `new`. A row changed where its accuracy or rank is written otherwise."""
    before, after = _rows(old), _rows(new)
    changed = (
        RowChange(*place, before[place][0], after[place][0], before[place][1], after[place][1])
        for place in sorted(before.keys() & after.keys())
        if before[place] != after[place]
    )
    added = (
        RowChange(*place, "", after[place][0], "", after[place][1])
        for place in sorted(after.keys() - before.keys())
    )
    gone = (
        RowChange(*place, before[place][0], "", before[place][1])
        for place in sorted(before.keys() - after.keys())
    )
    return BoardChanges(tuple(added), tuple(gone), tuple(changed), tuple(_best(old, new)))


def _rows(board: Leaderboard) -> dict[Place, tuple[str, str]]:
    """Accuracy and rank of each row, as they are written."""
    return {
        (track.title, row.method, row.tag): _written(row, track)
        for track in board.tracks
        for row in track.rows
    }


def _written(row: MethodRow, track: Track) -> tuple[str, str]:
    lead = lead_of(track)
    rank = row.ranks.get(lead.name)
    return interval_text(row.metric(lead.name), lead), "" if rank is None else str(rank)


def _best(old: Leaderboard, new: Leaderboard) -> Iterable[RowChange]:
    before = _answers(old)
    for title, (sparsity, method) in _answers(new).items():
        if title in before and before[title][1] != method:
            yield RowChange(title, method, sparsity, before[title][1], method)


def _answers(board: Leaderboard) -> Mapping[str, tuple[str, str]]:
    """By track: the sparsity that is shown first, and its best method."""
    found = {}
    for track in board.tracks:
        shown = shown_sparsity(track)
        answer = None if shown is None else answer_of(track, shown)
        if answer is not None:
            found[track.title] = fmt.sparsity(answer.sparsity), answer.best.method
    return found


def changes_markdown(changes: BoardChanges) -> str:
    """`CHANGES.md` beside the board."""
    parts = ["# What changed", "[Leaderboard](README.md).", escape(changes.words)]
    for table in changes.tables:
        parts += [f"## {table.title}", markdown_table(table)]
    return page(parts)


def changes_data(changes: BoardChanges) -> dict[str, Any]:
    """The same for the site."""
    tables = [
        {
            "title": table.title,
            "columns": [{"title": column.title, "numeric": column.numeric} for column in table.columns],
            "rows": table.texts(),
        }
        for table in changes.tables
    ]
    return {"words": changes.words, "tables": tables}
