"""The consoles: text as it is, on any encoding and at any width."""

from __future__ import annotations

import codecs
import io
import sys

from rich.console import Console
from rich.table import Table

from prunebench.results.spec import number_text

PIPE_WIDTH = 140
"""Columns of what is piped or logged; a terminal keeps its own width."""


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


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is, and does not cut tables at 80 columns where there is no terminal."""
    speak_plainly(sys.stderr if stderr else sys.stdout)
    plain = Console(stderr=stderr, markup=False, highlight=False)
    return (
        plain
        if plain.is_terminal
        else Console(stderr=stderr, markup=False, highlight=False, width=max(plain.width, PIPE_WIDTH))
    )


console = make_console()
errors = make_console(stderr=True)


def run_table(*columns: str, title: str | None = None) -> Table:
    """A table whose first column is a run id, never cut."""
    table = Table(title=title)
    table.add_column("run", no_wrap=True)
    for column in columns:
        table.add_column(column)
    return table


def sparsity_text(sparsity: float | None) -> str:
    """A sparsity as people write it; `native` where the method chooses it."""
    return "native" if sparsity is None else number_text(sparsity)
