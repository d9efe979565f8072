"""Conversion between a store, where runs are made, and the committed form, where they are reviewed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError, unknown
from prunebench.results.committed import (
    CONTEXT,
    Problem,
    dump,
    encode_task,
    is_committed,
    safe_name,
)
from prunebench.results.record import json_text, parse_again
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.store import (
    CommittedStore,
    CorruptRecord,
    Store,
    open_results,
    several_at_a_time,
    write_files,
    write_run,
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
    tuning: list[str] = []
    runs, damaged = _texts(open_results(source), tasks, methods, tuning)
    if tuning:
        raise StoreError(
            f"{source}: {len(tuning)} runs have seeds from {TUNE_SEEDS}, which are for choosing budgets and no "
            "results: run them with another --out"
        )
    counts = dict.fromkeys(("new", "replaced", "same"), 0)
    kept: list[str] = []
    written: dict[Path, None] = {}
    with Store(destination).lock("committed"):
        before, wrong = _texts(CommittedStore(destination))
        if wrong:
            raise StoreError(
                _listed(f"{destination}: mend these lines first", [entry.reason for entry in wrong])
            )
        for task in sorted({*runs, *before}):
            there = before.pop(task, {})
            for run_id, text in runs.pop(task, {}).items():
                how = "new" if run_id not in there else "same" if _same(there[run_id], text) else "replaced"
                if how == "replaced" and not replace:
                    kept.append(run_id)
                    continue
                counts[how] += 1
                there[run_id] = text
            files = encode_task(task, map(parse_again, there.values()))
            written |= dict.fromkeys(write_files(destination / safe_name(task), task, files))
    return Converted(**counts, kept=tuple(kept), left_out=tuple(damaged), files=tuple(written))


def import_results(
    source: Path, destination: Path, tasks: Sequence[str] = (), methods: Sequence[str] = ()
) -> Converted:
    """Write the runs of the committed form, or those of some tasks and methods, as a store: a folder a run.

    Everything is verified first: ids, hashes, schema, duplicates, references, order. A run that the store has with
    another record, or that a process is at work on, is kept as it is there, and named. Raises StoreError, before
    anything is written, with file and line of what is wrong.
    """
    if not is_committed(source):
        raise StoreError(f"{source}: no results in the committed form (no task's `{CONTEXT}`)")
    runs, damaged = _texts(CommittedStore(source), tasks, methods)
    problems = [entry.reason for entry in damaged] or form_problems(source)
    if problems:
        raise StoreError(_listed(f"{source}: nothing was imported", problems))
    store = Store(destination)
    store.prepare()

    def bring(run: tuple[str, str]) -> str:
        path, data = store.folder(run[0]) / "record.json", _record_text(run[1])
        with store.lock(run[0], wait=False) as mine:
            if not path.is_file() and mine:
                write_run(path.parent, {path.name: data})
                return "new"
            return "same" if path.is_file() and path.read_bytes() == data else "kept"

    wanted = sorted((run_id, text) for found in runs.values() for run_id, text in found.items())
    ends = list(zip((run_id for run_id, _ in wanted), several_at_a_time(bring, wanted)))
    new, kept = ([run_id for run_id, end in ends if end == how] for how in ("new", "kept"))
    files = tuple(store.folder(run_id) / "record.json" for run_id in new)
    return Converted(len(new), 0, len(ends) - len(new) - len(kept), kept=tuple(kept), files=files)


def _same(one: str, other: str) -> bool:
    """Whether two JSON texts hold the same values."""
    return one == other or dump(json.loads(one)) == dump(json.loads(other))


def _record_text(text: str) -> bytes:
    """What `record.json` holds of a record that was written otherwise."""
    return json_text(json.loads(text)).encode()


def form_problems(folder: Path) -> list[str]:
    """What is wrong with the committed form of a folder, each with file and line: also order and spacing."""
    runs, damaged = _texts(CommittedStore(folder))
    if damaged:
        return [entry.reason for entry in damaged]
    others = {path: "" for pattern in (CONTEXT, "*.jsonl") for path in sorted(folder.glob(f"*/{pattern}"))}
    found = []
    for task in sorted(runs):
        for name, text in encode_task(task, map(parse_again, runs.pop(task).values())).items():
            path = folder / safe_name(task) / name
            others.pop(path, None)
            found.append(_first_difference(path, text))
    found += [_first_difference(path, text) for path, text in others.items()]
    return [str(problem) for problem in found if problem is not None]


def _first_difference(path: Path, text: str) -> Problem | None:
    found = path.read_bytes().decode()  # line ends as they are
    if found == text:
        return None
    if not text:
        return Problem(path, 0, "holds no run; remove it")
    pairs = zip([*text.split("\n"), None], [*found.split("\n"), None])
    line = next((number for number, (one, other) in enumerate(pairs, 1) if one != other), 0)
    return Problem(path, line, "not in canonical form: `prunebench results export` it onto itself")


def _texts(
    store: Store, tasks: Sequence[str] = (), methods: Sequence[str] = (), tuning: list[str] | None = None
) -> tuple[dict[str, dict[str, str]], list[CorruptRecord]]:
    """The JSON text of each record, by task and run_id, and what cannot be read: a tenth of what values take in memory.

    Of some tasks and methods, or of all where none is named; to `tuning` those of them are added that only choose
    budgets. Raises UsageError for unknown names.
    """
    found: dict[str, dict[str, str]] = {}
    damaged: list[CorruptRecord] = []
    known: dict[str, set[str]] = {"task": set(), "method": set()}
    for entry in store.documents():
        if isinstance(entry, CorruptRecord):
            damaged.append(entry)
            continue
        spec = entry.values["spec"]
        for kind, names in known.items():
            names.add(spec[kind])
        if spec["task"] in (tasks or known["task"]) and spec["method"] in (methods or known["method"]):
            if tuning is not None and spec["seed"] >= TUNE_SEEDS:
                tuning.append(entry.record.run_id)
            found.setdefault(spec["task"], {})[entry.record.run_id] = entry.text or dump(entry.values)
    for kind, asked in (("task", tasks), ("method", methods)):
        for name in asked:
            if name not in known[kind]:
                raise unknown(kind, name, known[kind])
    return found, damaged


def _listed(heading: str, problems: Sequence[Any]) -> str:
    """The first problems, a line each."""
    more = len(problems) - MOST_SHOWN
    lines = [heading, *map(str, problems[:MOST_SHOWN]), *([f"and {more} more"] if more > 0 else [])]
    return "\n  ".join(lines)
