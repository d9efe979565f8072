"""Markdown: tables in pipes, text that shows as it is, lists and pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

from prunebench.errors import UsageError
from prunebench.report.format import visible
from prunebench.report.table import Table

_SPECIAL = re.compile(r"([\\`*_\[\]|~#!$])")
_MARKUP = re.compile(r"[\\`*_\[\]|~#!$<>&]")
_CHANGED = re.compile(rf"{_MARKUP.pattern}|^ | $|  ")


def markdown_table(table: Table[Any]) -> str:
    """A table in GitHub's pipes, cells unpadded, so that one changed number changes one line."""
    width = len(table.columns)
    lines = [_pipes(escape(column.title) for column in table.columns)]
    lines.append(_pipes("--:" if column.numeric else ":--" for column in table.columns))
    for group in table.groups:
        if group.heading:
            place = next((i for i, c in enumerate(table.columns) if not c.numeric), 0)
            words = [f"*{escape(group.heading)}*" if i == place else "" for i in range(width)]
            lines.append(_pipes(words))
        lines += (_pipes([escape(column.text(row)) for column in table.columns]) for row in group.rows)
    return "\n".join(lines)


def pipe_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of texts that are Markdown already."""
    titles = list(head)
    return "\n".join([_pipes(titles), _pipes([":--"] * len(titles)), *map(_pipes, rows)])


def _pipes(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line, without signs that turn it round."""
    if text.isprintable() and not _CHANGED.search(text):
        return text
    plain = " ".join(visible(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(plain, quote=False)) if _MARKUP.search(plain) else plain


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def link(text: str, address: str) -> str:
    """A link; the text is escaped, the address is not."""
    return f"[{escape(text)}]({address})"


def picture(text: str, address: str) -> str:
    """A picture with its words."""
    return f"![{escape(text)}]({address})"


def page(parts: Iterable[str]) -> str:
    """Paragraphs with a blank line between them; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


def fill_part(text: str, name: str, content: str) -> str:
    """A page with this between its `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises UsageError for a page that does not have each once.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, *rest = text.split(begin)
    if len(rest) != 1 or rest[0].count(end) != 1:
        raise UsageError(f"the page needs one {begin} ... {end} to fill")
    return f"{head}{begin}\n{content.rstrip()}\n{end}{rest[0].partition(end)[2]}"
