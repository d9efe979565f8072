"""Tables in a terminal, by rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunebench.report.table import Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable


def terminal_table(table: Table[Any], caption: str = "") -> RichTable:
    """A table for rich to print, with short headings and a line where a group or the rows' class changes."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        title=Text(table.title) if table.title else None,
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
    )
    for column in table.columns:
        shown.add_column(
            Text(column.short or column.title),
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
            shown.add_row(*(Text(cell.text) for cell in table.cells(row)))
            previous = place
    return shown
