"""The consoles: text as it is, on any encoding and at any width."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prunebench.report.format import visible
from prunebench.results.spec import number_text

PIPE_WIDTH = 140
"""Columns of what is piped or logged, unless COLUMNS says otherwise; a terminal keeps its own width."""


GAP = 2
"""Columns of the terminal between two of a listing."""

PLAIN_SIGNS = {
    "\N{PLUS-MINUS SIGN}": "+-", "\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-", "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{RIGHTWARDS ARROW}": "->", "\N{BULLET}": "*",
}  # fmt: skip
"""What stands for a sign that a terminal's encoding lacks."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Signs that cannot be encoded in ASCII: the last words of a run must not be a traceback."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(PLAIN_SIGNS.get(sign, "?") for sign in signs), error.end


def speak_plainly(*streams: object) -> None:
    """Let streams replace what their encoding lacks, such as a terminal's in ASCII or cp437."""
    codecs.register_error("prunebench-plain", _plainly)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="prunebench-plain")


class SteadyConsole(Console):
    """A console that no text steers: what a stranger named is shown, and nothing in it is a command to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich's text of a string, its own line breaks kept."""
        return super().render_str(visible(text, kept="\n\t"), **options)


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is; where there is no terminal, as wide as COLUMNS says or PIPE_WIDTH."""
    speak_plainly(sys.stderr if stderr else sys.stdout)
    plain = SteadyConsole(stderr=stderr, markup=False, highlight=False)
    if plain.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return plain
    return SteadyConsole(stderr=stderr, markup=False, highlight=False, width=PIPE_WIDTH)


console = make_console()
errors = make_console(stderr=True)


@dataclass(frozen=True)
class Field:
    """A column of a listing. Where the width is short, those of the highest `drop` go first; 0 always stays.

    `whole`: never broken over lines (names that are copied, numbers).
    """

    heading: str
    drop: int = 0
    right: bool = False
    whole: bool = True
    least: int = 24
    """The fewest columns of a text that may be broken."""


def fitting_table(
    fields: Sequence[Field], rows: Sequence[Sequence[str]], title: str | None = None, width: int | None = None
) -> tuple[Table, list[str]]:
    """A table without rules that fits the width, and the headings that were left out for it.

    Where even the columns that always stay do not fit, whole ones are broken too: nothing is cut.
    """
    width = width or console.width
    longest = [
        max(map(len, (field.heading, *column))) for field, column in zip(fields, _columns(fields, rows))
    ]
    least = [size if field.whole else min(size, field.least) for field, size in zip(fields, longest)]
    places, out = list(range(len(fields))), []
    while not (fits := sum(least[place] for place in places) + GAP * (len(places) - 1) <= width):
        last = max(places, key=lambda place: (fields[place].drop, place))
        if not fields[last].drop:
            break
        places.remove(last)
        out.append(fields[last].heading)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, title=title)
    table.title_justify = "left"
    for place in places:
        field = fields[place]
        table.add_column(
            field.heading,
            justify="right" if field.right else "left",
            no_wrap=field.whole and fits,
            overflow="fold",
            min_width=least[place] if fits and not field.whole else None,
        )
    for row in rows:
        table.add_row(*(row[place] for place in places))
    return table, out


def _columns(fields: Sequence[Field], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[row[place] for row in rows] for place in range(len(fields))]


def print_fitting(fields: Sequence[Field], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a listing at the width there is, and what the width left no room for."""
    table, out = fitting_table(fields, rows, title)
    console.print(table)
    if out:
        console.print(f"no room for: {', '.join(out)} (--json shows all)", style="dim", soft_wrap=True)


def sparsity_text(sparsity: float | None) -> str:
    """A sparsity as people write it; `native` where the method chooses it."""
    return "native" if sparsity is None else number_text(sparsity)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
