"""Tables as values, and in a terminal: a column knows how its cells come from a row; renderers choose by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prunebench.errors import unknown
from prunebench.report.format import MISSING, visible

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Row = TypeVar("Row")


@dataclass(frozen=True)
class TableCell:
    """Text, what it sorts by (None: last), and a share between 0 and 1 for a bar behind it."""

    text: str
    order: float | str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A heading, its explanation, and the way from a row to a cell.

    Args:
        key: the name that renderers choose by.
        title: the heading; `short` stands for it where there is little room.
        help: one sentence, shown on hovering.
        value: what a row has in this column, by default in its field named `key`; None is undefined.
        format: how a value is written. A value that is None is an em dash and never reaches it.
        order: what a value sorts by; by default a number, the mean of an interval, or text without case.
        share: the part of a bar behind the number, or None.
        numeric: whether it stands at the right and sorts from high to low first.
        lead: whether it names the row, and stays in view.
    """

    key: str
    title: str
    help: str = ""
    value: Callable[[Row], Any] | None = None
    format: Callable[[Any], str] = str
    order: Callable[[Any], float | str | None] | None = None
    share: Callable[[Any], float | None] | None = None
    numeric: bool = True
    lead: bool = False
    short: str = ""

    def of(self, row: Row) -> Any:
        """What a row has in this column."""
        return getattr(row, self.key) if self.value is None else self.value(row)

    def text(self, row: Row) -> str:
        """The text of a row's cell."""
        value = self.of(row)
        return MISSING if value is None else self.format(value)

    def cell(self, row: Row) -> TableCell:
        """The cell of a row."""
        value = self.of(row)
        if value is None:
            return TableCell(MISSING)
        share = self.share(value) if self.share is not None else None
        order = self.order(value) if self.order is not None else natural_order(value)
        return TableCell(self.format(value), order, share)


def text_column(key: str, title: str, help: str = "", **options: Any) -> Column[Any]:
    """A column of words, at the left."""
    return Column(key, title, help, numeric=False, **options)


def natural_order(value: Any) -> float | str | None:
    """A number or the mean of an interval at six decimals, text without case; None if it is undefined."""
    if isinstance(value, str):
        return value.lower()
    value = getattr(value, "mean", value)
    if isinstance(value, int | float):
        return round(float(value), 6) if math.isfinite(value) else None
    return None


def bar_share(value: Any) -> float | None:
    """The share of a bar behind a fraction or the mean of an interval, kept between 0 and 1."""
    level = getattr(value, "mean", value)
    return min(1.0, max(0.0, level)) if math.isfinite(level) else None


@dataclass(frozen=True)
class RowGroup(Generic[Row]):
    """Rows under one heading, sorted among themselves."""

    rows: tuple[Row, ...]
    heading: str | None = None


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Columns and groups of rows; `tag` puts a row into a class that a page can filter by."""

    columns: tuple[Column[Row], ...]
    groups: tuple[RowGroup[Row], ...]
    title: str = ""
    tag: Callable[[Row], str] | None = None

    @property
    def rows(self) -> list[Row]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the columns."""
        return tuple(column.key for column in self.columns)

    def column(self, key: str) -> Column[Row]:
        """A column by key. Raises UsageError for one that the table does not have."""
        for column in self.columns:
            if column.key == key:
                return column
        raise unknown("column", key, self.keys)

    def choose(self, *keys: str) -> Table[Row]:
        """The same rows with these columns, in this order. Raises UsageError for an unknown key."""
        return replace(self, columns=tuple(map(self.column, keys)))

    def without_empty(self) -> Table[Row]:
        """The same without the columns that say nothing in any row."""
        kept = (c for c in self.columns if any(c.text(row) not in ("", MISSING) for row in self.rows))
        return replace(self, columns=tuple(kept))

    def where(self, keep: Callable[[Row], bool]) -> Table[Row]:
        """The same with fewer rows; groups that have none are gone."""
        groups = (replace(group, rows=tuple(filter(keep, group.rows))) for group in self.groups)
        return replace(self, groups=tuple(group for group in groups if group.rows))

    def cells(self, row: Row) -> list[TableCell]:
        """The cells of a row, by column."""
        return [column.cell(row) for column in self.columns]

    def texts(self) -> list[list[str]]:
        """The texts of all rows."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    def tag_of(self, row: Row) -> str:
        """The class of a row; empty without classes."""
        return self.tag(row) if self.tag is not None else ""


def simple_table(
    columns: Iterable[Column[Row]], rows: Iterable[Row], title: str = "", **options: Any
) -> Table[Row]:
    """A table with one group and no heading."""
    return Table(tuple(columns), (RowGroup(tuple(rows)),), title, **options)


def grouped_rows(pairs: Sequence[tuple[str | None, Iterable[Row]]]) -> tuple[RowGroup[Row], ...]:
    """Groups of (heading, rows), those without rows left out."""
    groups = (RowGroup(tuple(rows), heading) for heading, rows in pairs)
    return tuple(group for group in groups if group.rows)


def terminal_table(table: Table[Any], caption: str = "") -> RichTable:
    """A table for rich to print, with short headings and a line where a group or the rows' class changes."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        title=Text(visible(table.title)) if table.title else None,
        caption=Text(visible(caption)) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    for column in table.columns:
        shown.add_column(
            Text(visible(column.short or column.title)),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    previous: tuple[int, str] | None = None
    for index, group in enumerate(table.groups):
        for row in group.rows:
            place = (index, table.tag_of(row))
            if previous is not None and place != previous:
                shown.add_section()
            shown.add_row(*(Text(visible(cell.text)) for cell in table.cells(row)))
            previous = place
    return shown
