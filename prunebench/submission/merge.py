"""Merging of verified submissions into committed results: runs, badges, and a line of history for what they replace."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError, UsageError
from prunebench.results.convert import export_results
from prunebench.results.record import json_text
from prunebench.results.standing import STAGES, Badge, Retired, Standing, read_standing, retire, write_badges
from prunebench.results.store import Document, open_results
from prunebench.results.tracks import is_reference_of
from prunebench.submission.folder import Submission
from prunebench.submission.reevaluation import RECOMPUTED
from prunebench.submission.report import VerificationReport, read_verdict
from prunebench.submission.verify import verify

KEPT = "submissions"
"""Beside the results: card, manifest, list of objects and source of every version, `submissions/NAME/VERSION/`."""


@dataclass(frozen=True)
class Merged:
    """What came of a submission: how many runs are new or there already, conflicts, notes, or the refusing report."""

    name: str
    new: int = 0
    same: int = 0
    badge: str | None = None
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: VerificationReport | None = None

    @property
    def done(self) -> bool:
        """Whether it stands in the results now."""
        return self.refused is None and not self.conflicts


def merge(folder: Path, into: Path, report: Path | None = None, beside: Sequence[Path] = ()) -> Merged:
    """Merge one submission. Nothing is written where it is not consistent, or where a run is there with other numbers.

    Dense models that are there stay as they are. A report gives its badge if it is of exactly this folder. Raises
    StoreError or UsageError where folder, results or report cannot be read.
    """
    verdict = None if report is None else read_verdict(report)
    found, submission = verify(folder, into, beside=beside)
    if submission is None or not found.passed:
        return Merged(folder.name, refused=found)
    method, version = submission.manifest.method, submission.manifest.version
    badge = _badge(found, verdict, predictions=submission.manifest.kind == "predictions")
    notes: list[str] = []
    theirs = _documents(submission.results)
    ours = _documents(into) if into.is_dir() and any(into.glob("*/context.json")) else {}
    if (method, version) in read_standing(into).retired:
        raise UsageError(
            f"{method} {version} was {read_standing(into).retired[method, version].event}: hand in a new version"
        )
    conflicts = {
        run_id: _difference(ours[run_id].values, theirs[run_id])
        for run_id in sorted(theirs.keys() & ours.keys())
        if json_text(ours[run_id].values) != json_text(theirs[run_id].values)
    }
    own = [line for run_id, line in conflicts.items() if not is_reference_of(theirs[run_id].record, method)]
    if own:
        return Merged(method, badge=badge, conflicts=tuple(own))
    if len(conflicts) > len(own):
        notes.append(
            f"{len(conflicts)} references are there with other numbers, within what a machine explains: those stay"
        )
    done = export_results(submission.results, into)
    standing = read_standing(into)
    known = {
        run.record.spec["method_version"] for run in ours.values() if run.record.spec["method"] == method
    }
    notes += _supersede(into, standing, submission, known)
    tasks = sorted({entry.record.spec["task"] for entry in theirs.values()})
    added = {entry.record.spec["task"] for run_id, entry in theirs.items() if run_id not in ours}
    badges = []
    for task in tasks:
        before = standing.badges.get((task, method, version))
        if before is None or _replaces(before.badge, badge, more=task in added):
            badges.append(Badge(task, method, version, badge, found.utc, found.machine, submission.digest))
    write_badges(into, read_standing(into), badges)
    notes += _keep(submission, into / KEPT / method / version)
    return Merged(method, done.new, done.same, badge, notes=tuple(notes))


def withdraw(into: Path, method: str, version: str | None, reason: str) -> Retired:
    """Take a version of a method off the board; its runs stay, and a line of history says why.

    Raises UsageError where there is no such version, or several and none is named.
    """
    versions = {
        entry.record.spec["method_version"]
        for entry in _documents(into).values()
        if entry.record.spec["method"] == method
    }
    versions -= {known for name, known in read_standing(into).retired if name == method}
    if not versions or (version is not None and version not in versions):
        raise UsageError(
            f"{method} {version or ''} is not listed; listed: {', '.join(sorted(versions)) or 'none'}"
        )
    if version is None and len(versions) > 1:
        raise UsageError(f"{method} has versions {', '.join(sorted(versions))}: name one with --version")
    if not reason.isprintable() or not 0 < len(reason) <= 200:
        raise UsageError("--reason: want one line of at most 200 characters")
    line = Retired(method, version or versions.pop(), "withdrawn", _now(), reason)
    retire(into, read_standing(into), line)
    return line


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _documents(folder: Path) -> dict[str, Document]:
    """The runs of results by id. Raises StoreError for a line that is wrong."""
    found: dict[str, Document] = {}
    for entry in open_results(folder).documents():
        if not isinstance(entry, Document):
            raise StoreError(f"{folder}: mend these results first: {entry.reason}")
        found[entry.record.run_id] = entry
    return found


def _badge(found: VerificationReport, verdict: Mapping[str, Any] | None, *, predictions: bool) -> str:
    """The badge of a report of exactly this submission, else what was verified just now."""
    assert found.badge is not None
    if verdict is None and predictions:
        raise UsageError(
            "predictions are merged with the report of `verify --artifacts`, which recomputes their metrics"
        )
    if verdict is None:
        return found.badge
    if (verdict["method"], verdict["version"], verdict["digest"]) != (
        found.method,
        found.version,
        found.digest,
    ):
        raise UsageError(
            "the report is of another submission, or of this one before it changed: verify it again"
        )
    if (
        not verdict["passed"]
        or verdict["badge"] not in STAGES
        or (predictions and verdict["badge"] != RECOMPUTED)
    ):
        raise UsageError("the report refuses this submission: mend it and verify it again")
    return str(verdict["badge"])


def _replaces(before: str, badge: str, *, more: bool) -> bool:
    """Whether a badge takes the place of another: the higher one, or the lower where runs were added."""
    higher = STAGES.index(badge) - STAGES.index(before)
    return higher < 0 if more else higher >= 0


def _difference(ours: Mapping[str, Any], document: Document) -> str:
    """Where two records of one run differ, the numbers of both for a few."""
    lines, theirs = [], document.values
    for field in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(field), theirs.get(field)
        if one != other and field == "metrics" and isinstance(one, dict) and isinstance(other, dict):
            names = [
                name for name in ("unbiased", "conflicting", "plain") if one.get(name) != other.get(name)
            ]
            lines += [f"{name} {one.get(name)} here, {other.get(name)} there" for name in names]
        elif one != other:
            lines.append(field)
    return f"{document.record.run_spec.label} ({document.record.run_id}): {', '.join(lines)}"


def _supersede(into: Path, standing: Standing, submission: Submission, known: set[str]) -> list[str]:
    """Retire the version that the card names, or any other that is listed, in favour of this one."""
    method, version = submission.manifest.method, submission.manifest.version
    older = sorted(known - {version} - {gone for name, gone in standing.retired if name == method})
    for old in older:
        standing = retire(into, standing, Retired(method, old, "superseded", _now(), f"by {version}"))
    return [f"version {old} is superseded: its runs stay, the board lists {version}" for old in older]


def _keep(submission: Submission, folder: Path) -> list[str]:
    """Copy what a submission holds besides its runs. The first card of a version stays."""
    if folder.is_dir():
        return [f"{folder} is there already: its card stays"]
    shutil.copytree(submission.root, folder, ignore=lambda _, names: {"results"} & {*names})
    return []
