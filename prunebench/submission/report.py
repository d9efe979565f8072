"""The report of a verification: stages with their findings, changed rows of the board; as JSON and as a comment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError, UsageError
from prunebench.leaderboard.aggregate import build_board
from prunebench.leaderboard.values import Leaderboard, MethodRow
from prunebench.report import format as fmt
from prunebench.report.markdown import pipe_table
from prunebench.results.record import RunRecord, parse_json
from prunebench.results.store import write_atomically
from prunebench.submission.records import Finding

REPORT, COMMENT = "report.json", "comment.md"
LONGEST = 300
LARGEST_COMMENT = 60_000
"""A comment on GitHub has at most 65,536 characters."""
MOST_ROWS = 60


@dataclass(frozen=True)
class Stage:
    """One stage of verification: the badge that it gives, its findings, and what a reader must know."""

    badge: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(finding.ok for finding in self.findings)


@dataclass(frozen=True)
class ChangedRow:
    """A row that the board would gain, or whose rank would change: texts."""

    task: str
    method: str
    sparsity: str
    change: str
    unbiased: str
    conflicting: str
    worst_group: str


@dataclass(frozen=True)
class VerificationReport:
    """What was verified of which submission, where and when. `digest` is of the folder that was read."""

    method: str
    version: str
    digest: str
    utc: str
    machine: str
    stages: tuple[Stage, ...]
    rows: tuple[ChangedRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every stage that was asked for passed."""
        return all(stage.passed for stage in self.stages)

    @property
    def badge(self) -> str | None:
        """The furthest stage that passed with all before it; None if not even the first did."""
        badge = None
        for stage in self.stages:
            if not stage.passed:
                break
            badge = stage.badge
        return badge


def write_report(report: VerificationReport, folder: Path) -> None:
    """Write report.json and comment.md. Raises StoreError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror}") from error
    text = json.dumps(
        {**dataclasses.asdict(report), "badge": report.badge, "passed": report.passed},
        indent=1,
        sort_keys=True,
    )
    write_atomically(folder / REPORT, (text + "\n").encode())
    write_atomically(folder / COMMENT, comment(report).encode())


def read_verdict(path: Path) -> dict[str, Any]:
    """`method`, `version`, `digest`, `badge` and `passed` of a report. Raises UsageError if it is none."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        found = {name: values[name] for name in ("method", "version", "digest", "badge", "passed")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: no report of `prunebench submission verify` ({error})") from error
    if type(found["passed"]) is not bool or not isinstance(found["badge"], str | None):
        raise UsageError(f"{path}: no report of `prunebench submission verify`")
    return found


# Changed rows


def changed_rows(board: Sequence[RunRecord], submitted: Sequence[RunRecord]) -> tuple[ChangedRow, ...]:
    """The rows that the submission adds to the board, or moves."""
    before, after = _rows(build_board(board)), _rows(build_board([*board, *submitted]))
    found = []
    for key, row in after.items():
        old = before.get(key)
        if old is None:
            found.append(_changed(key[0], row, f"new, rank {_rank(row)}"))
        elif _rank(old) != _rank(row):
            found.append(_changed(key[0], row, f"rank {_rank(old)} to {_rank(row)}"))
        elif (old.complete, old.metric("unbiased")) != (row.complete, row.metric("unbiased")):
            found.append(_changed(key[0], row, "changed"))
    return tuple(found)


def _rows(board: Leaderboard) -> dict[tuple[str, str, str], MethodRow]:
    return {(track.title, row.method, row.tag): row for track in board.tracks for row in track.rows}


def _rank(row: MethodRow) -> str:
    rank = row.ranks.get("unbiased")
    return str(rank) if rank is not None else fmt.MISSING


def _changed(task: str, row: MethodRow, change: str) -> ChangedRow:
    values = (
        fmt.with_half_width(row.metric(name), 1, 100) for name in ("unbiased", "conflicting", "worst_group")
    )
    return ChangedRow(task, row.method, row.tag, change, *values)


# The comment


def comment(report: VerificationReport) -> str:
    """Markdown that CI posts. Every text that a stranger wrote stands in a code span: no markup, link, mention."""
    badge = report.badge or "refused"
    parts = [
        f"## Submission {code(report.method)}: {badge}",
        f"Version {code(report.version)}, verified {code(report.utc)} on {code(report.machine)}; "
        f"folder {code(report.digest[:16])}.",
        pipe_table(("stage", "", "rules that hold"), map(_stage_line, report.stages)),
    ]
    for stage in report.stages:
        wrong = [finding for finding in stage.findings if not finding.ok]
        parts += [f"**Not {stage.badge}:**"] if wrong else []
        parts += ["\n".join(f"- {code(finding.what)}: {code(finding.why, 600)}" for finding in wrong)]
        parts += ["\n".join(f"- {code(note, 600)}" for note in stage.notes)]
    parts += [_next(report)]
    if report.rows:
        head = ("task", "method", "sparsity", "change", "unbiased, %", "conflicting, %", "worst group, %")
        shown = [list(map(code, dataclasses.astuple(row))) for row in report.rows[:MOST_ROWS]]
        more = len(report.rows) - MOST_ROWS
        parts += ["### Rows of the board that would change", pipe_table(head, shown)]
        parts += [f"and {more} more" if more > 0 else ""]
    return "\n\n".join(part for part in parts if part)[:LARGEST_COMMENT] + "\n"


def _stage_line(stage: Stage) -> Iterable[str]:
    good = sum(finding.ok for finding in stage.findings)
    return stage.badge, "passed" if stage.passed else "**failed**", f"{good} of {len(stage.findings)}"


def _next(report: VerificationReport) -> str:
    """What comes next on the road."""
    if not report.passed:
        return "Mend what is named above, `prunebench submission pack` again, and push."
    badges = {stage.badge for stage in report.stages}
    if badges == {"consistent"}:
        return "Next: `prunebench submission verify DIR --artifacts ADDRESS` re-evaluates its weights."
    if "re-evaluated" in badges and "re-trained" not in badges:
        return "Next: `prunebench submission verify DIR --artifacts ADDRESS --retrain 1 --draw-seed TEXT`, or merge it."
    return "Next: `prunebench submission merge DIR --into leaderboard/results --report REPORT`."


def code(text: object, most: int = LONGEST) -> str:
    """A text as an inline code span of one line, in which nothing is markup."""
    plain = " ".join(fmt.visible(text).split()).replace("`", "'").replace("|", "\u00a6")
    return f"`{plain[:most]}{'...' if len(plain) > most else ''}`" if plain else ""
