"""Texts of strangers in Markdown, on the terminal and in comments: shown as they are, and nothing but text."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from board_records import failed, full_records, run

from prunebench.cli.console import SteadyConsole
from prunebench.leaderboard import build_board, columns
from prunebench.leaderboard.build import board_markdown, methods_markdown, task_markdown
from prunebench.leaderboard.readme import board_excerpt
from prunebench.metrics.registry import metric_named
from prunebench.report.format import visible
from prunebench.report.markdown import escape, markdown_table
from prunebench.report.table import Column, simple_table, terminal_table
from prunebench.submission.records import Finding
from prunebench.submission.report import LARGEST_COMMENT, Stage, VerificationReport, comment

HOSTILE = {
    "script": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "link": "[a](javascript:alert(1)) ![b](https://example.org/pixel.png) <https://example.org>",
    "table": "a | b | c \\| d",
    "lines": "a\n# heading\n\n- list\n| --- |\r\n***",
    "fence": "``` `code` ~~~ $x$ **bold** _so_",
    "comment": "<!-- board:end --> <details> &lt;b&gt;",
    "terminal": "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b1m\x00",
    "right to left": "safe \u202egnp.exe \u2066x\u2069 \u200b\u2028\ufeff",
    "surrogate": "\ud800 lone",
    "long": "long " * 2000,
}
STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def inert_markdown(text: str) -> None:
    assert not STEERING.search(text)
    assert not re.search(r"<(script|img|details|b\b|https)", text)
    assert "<!-- board:end -->" not in text
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not re.search(r"(?<!\\)!\[b", text)
    assert "\n# heading" not in text
    assert "\n- list" not in text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_markdown_tables_hold_one_cell_a_text(text: str) -> None:
    table = simple_table([Column("k", text, text, value=lambda row: row)], [text, "after"])
    lines = markdown_table(table).splitlines()
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {2}
    inert_markdown("\n".join(lines))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_steers_the_terminal(text: str) -> None:
    written = io.StringIO()
    console = SteadyConsole(file=written, force_terminal=True, color_system=None, width=200, markup=False)
    table = simple_table([Column("k", text, text, value=lambda row: row)], [text], title=text)
    console.print(terminal_table(table, caption=text))
    console.print(text, soft_wrap=True)
    shown = written.getvalue()
    assert not STEERING.search(shown)
    assert visible(text).split()[0][:20] in shown


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_boards_and_read_me_are_inert(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, sources, reasons and processors of records, and the words of users' metrics."""
    metric = dataclasses.replace(metric_named("unbiased"), help=text, title=text, short=text)
    shown = tuple(metric if known.name == metric.name else known for known in columns.board_metrics())
    facts = {"name": text, "supervision": text, "cite": text}
    records = [*full_records(), run("alpha", 0.5, 0, method=facts), failed(text, 0.5, 0, text)]
    board = build_board(records)
    monkeypatch.setattr(columns, "board_metrics", lambda: shown)
    pages = [board_markdown(board), methods_markdown(board), board_excerpt(board, "figures")]
    pages += [task_markdown(track, None) for track in board.tracks]
    for page in pages:
        inert_markdown(page)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_comment_of_a_verification_is_inert(text: str) -> None:
    stage = Stage("consistent", (Finding(text, False, text), Finding(text, True)), (text,))
    written = comment(VerificationReport(text, text, text, text, text, (stage,)))
    assert len(written) <= LARGEST_COMMENT
    assert not STEERING.search(written)
    outside = re.sub(r"`[^`\n]*`", "", written)
    assert not re.search(r"<script|<img|javascript|# heading|board:end|example\.org|bold|\$x\$", outside)
    for line in written.splitlines():
        assert line.count("`") % 2 == 0, line
        if line.startswith("|"):
            assert line.count("|") == 4, line


def test_what_is_harmless_stays() -> None:
    assert visible("Größe ± 3, 日本語 é") == "Größe ± 3, 日本語 é"
    assert visible("a\tb\nc", kept="\n") == "a b\nc"
    assert escape("plain words, 0.5") == "plain words, 0.5"
