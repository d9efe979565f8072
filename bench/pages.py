"""Pages of the documentation whose tables are made here: each stands between the markers of its part."""

from __future__ import annotations

from pathlib import Path

from prunebench.report.markdown import fill_part
from prunebench.results.store import write_atomically


def write_part(page: Path, part: str, text: str) -> None:
    """Put a text between the markers of a part. Raises UsageError for a page that does not have each once."""
    write_atomically(page, fill_part(page.read_text(encoding="utf-8"), part, text).encode())
