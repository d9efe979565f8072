"""Conversion between a store, where runs are made, and the committed form, where they are reviewed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError
from prunebench.results.committed import (
    CONTEXT,
    Problem,
    encode_task,
    is_committed,
    safe_name,
)
from prunebench.results.record import json_text
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.store import (
    CommittedStore,
    CorruptRecord,
    Document,
    Store,
    narrowed,
    open_results,
    write_atomically,
    write_files,
    writing,
)

MOST_SHOWN = 20


@dataclass(frozen=True)
class Converted:
    """How many runs were new at the destination, replaced, the same, or kept though they differ; what was left out."""

    new: int
    replaced: int
    same: int
    kept: tuple[str, ...] = ()
    left_out: tuple[CorruptRecord, ...] = ()
    files: tuple[Path, ...] = ()


def export_results(
    source: Path,
    destination: Path,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    replace: bool = False,
) -> Converted:
    """Write the runs of a folder, or those of some tasks and methods, into the committed form at another.

    Runs that stand there stay; one that the source has with another record is kept as it is there, or replaced if told
    to. A folder exported onto itself comes out in canonical form. Records that cannot be read are left out, with the
    reason. Raises StoreError where the destination holds a store, or lines that are wrong, and where a record cannot be
    kept without loss.
    """
    if (destination / "runs").is_dir():
        raise StoreError(f"{destination} is a store (it has `runs`): export into another folder")
    documents, damaged = _chosen(open_results(source), tasks, methods)
    tuning = [document for document in documents if document.record.spec["seed"] >= TUNE_SEEDS]
    if tuning:
        raise StoreError(
            f"{source}: {len(tuning)} runs have seeds from {TUNE_SEEDS}, which are for choosing budgets and no "
            "results: run them with another --out"
        )
    with Store(destination).lock("committed"):
        before, wrong = _chosen(CommittedStore(destination))
        if wrong:
            raise StoreError(
                _listed(f"{destination}: mend these lines first", [entry.reason for entry in wrong])
            )
        there = {document.record.run_id: document.values for document in before}
        new = {d.record.run_id: d.values for d in documents if d.record.run_id not in there}
        other = {
            d.record.run_id: d.values
            for d in documents
            if d.record.run_id in there and json_text(d.values) != json_text(there[d.record.run_id])
        }
        there |= new | (other if replace else {})
        written: dict[Path, None] = {}
        for task, runs in _by_task(there.values()).items():
            written |= dict.fromkeys(
                write_files(destination / safe_name(task), task, encode_task(task, runs))
            )
    return Converted(
        len(new),
        len(other) if replace else 0,
        len(documents) - len(new) - len(other),
        kept=() if replace else tuple(other),
        left_out=tuple(damaged),
        files=tuple(written),
    )


def import_results(
    source: Path, destination: Path, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> Converted:
    """Write the runs of the committed form, or those of some tasks and methods, as a store: a folder a run.

    Everything is verified first: ids, hashes, schema, duplicates, references, order. A run that the store has with
    another record is kept as it is there, and named. Raises StoreError, before anything is written, with file and line
    of what is wrong.
    """
    if not is_committed(source):
        raise StoreError(f"{source}: no results in the committed form (no task's `{CONTEXT}`)")
    documents, damaged = _chosen(CommittedStore(source), tasks, methods)
    problems = [entry.reason for entry in damaged] or form_problems(source)
    if problems:
        raise StoreError(_listed(f"{source}: nothing was imported", problems))
    store = Store(destination)
    store.prepare()
    same, kept, written = 0, [], []
    for document in documents:
        path, text = store.where(document.record), json_text(document.values)
        if not path.is_file():
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
            written.append(path)
        elif path.read_bytes() == text.encode():
            same += 1
        else:
            kept.append(document.record.run_id)
    return Converted(len(written), 0, same, kept=tuple(kept), files=tuple(written))


def form_problems(folder: Path) -> list[str]:
    """What is wrong with the committed form of a folder, each with file and line: also order and spacing."""
    documents, damaged = _chosen(CommittedStore(folder))
    if damaged:
        return [entry.reason for entry in damaged]
    wanted = _wanted(folder, [document.values for document in documents])
    found = [_first_difference(path, text) for path, text in wanted.items()]
    return [str(problem) for problem in found if problem is not None]


def _wanted(folder: Path, records: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The text that each file has in canonical form; none where there is no run of its task."""
    wanted = {path: "" for pattern in (CONTEXT, "*.jsonl") for path in sorted(folder.glob(f"*/{pattern}"))}
    for task, runs in _by_task(records).items():
        wanted |= {folder / safe_name(task) / name: text for name, text in encode_task(task, runs).items()}
    return wanted


def _by_task(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for values in records:
        found.setdefault(values["spec"]["task"], []).append(values)
    return dict(sorted(found.items()))


def _first_difference(path: Path, text: str) -> Problem | None:
    found = path.read_bytes().decode()  # line ends as they are
    if found == text:
        return None
    if not text:
        return Problem(path, 0, "holds no run; remove it")
    pairs = zip([*text.split("\n"), None], [*found.split("\n"), None])
    line = next((number for number, (one, other) in enumerate(pairs, 1) if one != other), 0)
    return Problem(path, line, "not in canonical form: `prunebench results export` it onto itself")


def _chosen(
    store: Store, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> tuple[list[Document], list[CorruptRecord]]:
    """The records of some tasks and methods (of all, where none is named), and what cannot be read."""
    found = list(store.documents())
    documents = [entry for entry in found if isinstance(entry, Document)]
    chosen = {record.run_id for record in narrowed([d.record for d in documents], tasks, methods)}
    return (
        [document for document in documents if document.record.run_id in chosen],
        [entry for entry in found if isinstance(entry, CorruptRecord)],
    )


def _listed(heading: str, problems: Sequence[Any]) -> str:
    """The first problems, a line each."""
    more = len(problems) - MOST_SHOWN
    lines = [heading, *map(str, problems[:MOST_SHOWN]), *([f"and {more} more"] if more > 0 else [])]
    return "\n  ".join(lines)
