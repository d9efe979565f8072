"""The index beside a store's runs: what each record said when it was read or written, by the stamp of its file.

index/status.tsv   a head, then one line a record: run_id, stamp, status; the last line of a run counts

A cache, never a source: an entry counts only while the record's file has the same stamp (times of change, size, inode),
whatever else is read from the record itself. It may be deleted at any time; lines that are torn are left out.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from prunebench.results.record import SCHEMA_VERSION

FOLDER, NAME = "index", "status.tsv"
HEAD = f"prunebench index 1, records {SCHEMA_VERSION}\n"
WORTHWHILE = 200
"""So many records must be read anew before a reader writes down what they said."""
SETTLED_SECONDS = 2.0
"""A file younger than this may still change within one tick of the file system's clock: readers do not index it."""

Stamps = dict[str, str]
"""The stamp of each run's record, by run_id."""


def stamp_of(path: str | Path) -> str | None:
    """What changes when a file does: both times in nanoseconds, size, inode. None where there is no such file."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a third of Path's time, and there may be a million)
    except OSError:
        return None
    return f"{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_size}-{found.st_ino}"


def stamps_in(runs: Path) -> Stamps:
    """The stamps of all records of a store, in order of run_id: one look at each file, none is opened."""
    try:
        with os.scandir(runs) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return {}
    found = ((name, stamp_of(f"{runs}/{name}/record.json")) for name in names)
    return {name: stamp for name, stamp in found if stamp is not None}


def read_index(root: Path) -> dict[str, tuple[str, str]]:
    """Stamp and status of each run that was indexed; nothing where the index is absent or another version's."""
    try:
        text = (root / FOLDER / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    if not text.startswith(HEAD):
        return {}
    lines = (line.split("\t") for line in text[len(HEAD) :].splitlines())
    return {line[0]: (line[1], line[2]) for line in lines if len(line) == 4 and not line[3]}


def note(root: Path, run_id: str, status: str) -> None:
    """Add what was just written of a run, under its lock; nothing is said where that fails."""
    path = root / FOLDER / NAME
    with contextlib.suppress(OSError):
        stamp = stamp_of(root / "runs" / run_id / "record.json")
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as stream:
            head = HEAD if stream.tell() == 0 else ""
            stream.write(f"{head}{_line(run_id, stamp or '', status)}".encode())


def index_text(stamps: Mapping[str, str], statuses: Mapping[str, str]) -> str:
    """The whole index, of those records that have settled."""
    runs = (run_id for run_id in statuses if is_settled(stamps[run_id]))
    return HEAD + "".join(_line(run_id, stamps[run_id], statuses[run_id]) for run_id in runs)


def is_settled(stamp: str) -> bool:
    """Whether a file was last changed long enough ago for its stamp to tell the next change."""
    changed = max(map(int, stamp.split("-")[:2]))
    return changed < (time.time() - SETTLED_SECONDS) * 1e9


def _line(run_id: str, stamp: str, status: str) -> str:
    return f"{run_id}\t{stamp}\t{status}\t\n"
