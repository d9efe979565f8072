"""The standing of rows beside their results: how far each was verified, and versions that are no longer listed.

badges.jsonl     one line a task, method and version: the furthest stage that verification passed
history.jsonl    one line a version that was superseded or withdrawn: by what, when and why; lines are only added
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prunebench.errors import StoreError
from prunebench.results.record import RunRecord, parse_json
from prunebench.results.store import write_atomically

BADGES, HISTORY = "badges.jsonl", "history.jsonl"
STAGES = ("unverified weights", "consistent", "re-evaluated", "re-trained")
"""In rising order of what was done to believe a row."""
LARGEST = 1 << 22
LONGEST = 300


@dataclass(frozen=True)
class Badge:
    """How far the rows of one method version on one task were verified, when and on which processor."""

    task: str
    method: str
    version: str
    badge: str
    utc: str
    machine: str
    digest: str
    """SHA-256 of the submission that was verified."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Of which rows it speaks."""
        return self.task, self.method, self.version


@dataclass(frozen=True)
class Retired:
    """A version of a method that the board no longer lists, and why."""

    method: str
    version: str
    event: Literal["superseded", "withdrawn"]
    utc: str
    reason: str

    @property
    def words(self) -> str:
        """A line of history."""
        return f"{self.utc[:10]}: {self.method} {self.version} was {self.event}: {self.reason}"


@dataclass(frozen=True)
class Standing:
    """Badges by task, method and version; retired versions by method and version."""

    badges: Mapping[tuple[str, str, str], Badge] = field(default_factory=dict)
    retired: Mapping[tuple[str, str], Retired] = field(default_factory=dict)

    def badge(self, record: RunRecord) -> str:
        """How far a run's row was verified; empty where nobody has."""
        spec = record.spec
        found = self.badges.get((spec["task"], spec["method"], spec["method_version"]))
        return found.badge if found is not None else ""

    def listed(self, records: Iterable[RunRecord]) -> list[RunRecord]:
        """The records of versions that are not retired."""
        return [
            record
            for record in records
            if (record.spec["method"], record.spec["method_version"]) not in self.retired
        ]

    def merged(self, other: Standing) -> Standing:
        """Both; of two badges of the same rows, the other's."""
        return Standing({**self.badges, **other.badges}, {**self.retired, **other.retired})


NOTHING = Standing()


def read_standing(folder: Path) -> Standing:
    """The standing beside a folder of results; nothing where there is none. Raises StoreError with the line."""
    badges = [Badge(**values) for values in _lines(folder / BADGES, Badge)]
    retired = [Retired(**values) for values in _lines(folder / HISTORY, Retired)]
    for badge in badges:
        if badge.badge not in STAGES:
            raise StoreError(f"{folder / BADGES}: {badge.badge!a:.40} is none of {', '.join(STAGES)}")
    return Standing(
        {badge.key: badge for badge in badges}, {(line.method, line.version): line for line in retired}
    )


def write_badges(folder: Path, standing: Standing, more: Iterable[Badge]) -> Standing:
    """Add badges, in order of their rows. Raises StoreError where they cannot be written."""
    badges = {**standing.badges, **{badge.key: badge for badge in more}}
    _write(folder / BADGES, [badges[key] for key in sorted(badges)])
    return dataclasses.replace(standing, badges=badges)


def retire(folder: Path, standing: Standing, line: Retired) -> Standing:
    """Add a line of history. Raises StoreError where that version is retired already."""
    key = (line.method, line.version)
    if key in standing.retired:
        raise StoreError(f"{line.method} {line.version} was {standing.retired[key].event} already")
    retired = {**standing.retired, key: line}
    _write(folder / HISTORY, list(retired.values()))
    return dataclasses.replace(standing, retired=retired)


def _write(path: Path, lines: Iterable[Badge | Retired]) -> None:
    text = "".join(json.dumps(dataclasses.asdict(line), sort_keys=True) + "\n" for line in lines)
    write_atomically(path, text.encode())


def _lines(path: Path, kind: type[Badge | Retired]) -> Iterable[dict[str, Any]]:
    """The lines of a file, each with the fields of its kind. Raises StoreError with the line that has not."""
    if not path.is_file():
        return
    if path.is_symlink() or path.stat().st_size > LARGEST:
        raise StoreError(f"{path}: a link, or larger than {LARGEST >> 20} MiB")
    wanted = {entry.name for entry in dataclasses.fields(kind)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    for number, text in enumerate(lines, start=1):
        try:
            values = parse_json(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}:{number}: not valid JSON ({error})") from error
        sound = isinstance(values, dict) and values.keys() == wanted
        if not sound or not all(
            isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
            for value in values.values()
        ):
            raise StoreError(
                f"{path}:{number}: want one short line of text for each of {', '.join(sorted(wanted))}"
            )
        yield values
