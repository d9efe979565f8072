"""The committed form of results: a folder a task, in it a file a method that can be reviewed line by line.

    <task>/context.json     what runs of several methods share, one entry a line, by a short hash
    <task>/<method>.jsonl   one JSON object a line:
        {"id": ..., "variant" | "code" | "timed_on": {...}}      what runs of this method share
        {"runs": "all" | [run_id, ...], "stamp": {...}}          schema of the record, and what scored it last
        {"run": {...}}                                           one a run, by sparsity and seed
        {"metric": name, "split": ..., "values": [...]}          one a metric and split, in the order of the runs
        {"correct_by_group": [...], "run_id": ...}               one a run
        {"latency": {...}, "run_id": ...}                        one a run

Nothing is lost: the JSON values of a record, of whatever schema, come back as they were, to the last bit of a float. A
new method is one new file, a new metric two new lines a file. The text depends on the records alone, not on their
order. Names of folders and files are made of the task's and method's names, which are inside; no path is ever taken
from what a file says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunebench.errors import StoreError
from prunebench.results.record import parse_json
from prunebench.results.spec import hash_of

FORMAT = 1
CONTEXT = "context.json"
LARGEST_FILE = 1 << 26
LONGEST_NAME = 120
RESERVED = frozenset({"runs", "shared", "locks", "leaderboard", "analysis", "submissions"})
"""Folders that other results have beside those of tasks."""

SPLITS = {"metrics": "test", "validation": "validation"}
ABSENT = "absent"
"""Stands in a metric's values for a run that does not have it; null is one that has it, undefined."""

DEFAULTS: dict[str, tuple[int, Any]] = {
    "status": (0, "ok"),
    "reason": (0, None),
    "traceback": (0, None),
    "mining": (0, None),
    "cost": (0, None),
    "sparsity": (0, None),
    "groups": (0, []),
    "metrics": (0, {}),
    "validation": (0, {}),
    "notes": (1, {}),
    "scored_on": (3, {}),
    "model_sha256": (4, None),
}
"""Fields that a run's line leaves out where they have this value; the schema that brought them."""

OWN_SPEC = ("method", "method_version", "params")
TIMED_RUN, TIMED_CODE = ("utc", "load_average"), ("commit", "dirty")
GROUP = ("label", "bias", "aligned", "count")

Values = dict[str, Any]
Entries = dict[str, Values]
"""What runs share: `{kind: value}` by its short hash."""


@dataclass(frozen=True)
class Entry:
    """The JSON values of one record, and the line that it comes from."""

    values: Values
    path: Path
    line: int

    @property
    def source(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line of the committed form; line 0 is the file as a whole."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}" if self.line else f"{self.path}: {self.reason}"


def safe_name(name: str) -> str:
    """A file name for a task or method: `/` becomes `~`, what is unsafe somewhere `%` and its code point."""
    text = re.sub(r"[^A-Za-z0-9_.+@=/-]", lambda found: f"%{ord(found[0]):02X}", name).replace("/", "~")
    if text in RESERVED or text.startswith((".", "-")):
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if text.endswith("."):
        text = f"{text[:-1]}%2E"
    if len(text) > LONGEST_NAME:
        text = f"{text[:100]}%{hash_of({'name': name})}"
    return text


def is_committed(root: Path) -> bool:
    """Whether a folder holds results in the committed form."""
    return any(True for _ in root.glob(f"*/{CONTEXT}"))


# Writing


def encode_task(task: str, records: Iterable[Values]) -> dict[str, str]:
    """The files of a task's folder, by name: `context.json` first. Raises StoreError where something would be lost."""
    methods: dict[str, list[Values]] = {}
    for values in records:
        methods.setdefault(values["spec"]["method"], []).append(values)
    shared: Entries = {}
    files = {safe_name(method) + ".jsonl": encode_method(runs, shared) for method, runs in methods.items()}
    return {CONTEXT: encode_context(task, shared), **dict(sorted(files.items()))}


def encode_context(task: str, shared: Entries) -> str:
    """The text of `context.json`: entries by hash, one a line, the last line the same whatever is added."""
    lines = [f"{json.dumps(key)}: {dump(shared[key])}," for key in sorted(shared)]
    return "\n".join(["{", *lines, f'"format": {FORMAT},', f'"task": {json.dumps(task)}', "}"]) + "\n"


def encode_method(records: Sequence[Values], shared: Entries) -> str:
    """The text of a method's file; what it shares with others is added to `shared`."""
    runs = [_Parts.of(values, shared) for values in sorted(records, key=_order)]
    own: Entries = {}
    for parts in runs:
        _add(own, parts.own)
    lines: list[Values] = [{"id": key, **own[key]} for key in sorted(own)]
    stamps: dict[str, list[_Parts]] = {}
    for parts in runs:
        stamps.setdefault(dump(parts.stamp), []).append(parts)
    for text in sorted(stamps):
        some = [parts.run["run_id"] for parts in stamps[text]]
        lines.append({"stamp": json.loads(text), "runs": "all" if len(some) == len(runs) else sorted(some)})
    lines += [{"run": parts.run} for parts in runs]
    for name, split in sorted({key for parts in runs for key in parts.metrics}):
        column = [parts.metrics.get((name, split), ABSENT) for parts in runs]
        lines.append({"metric": name, "split": split, "values": column})
    for kind in ("correct_by_group", "latency"):
        lines += [
            {kind: parts.lines[kind], "run_id": parts.run["run_id"]} for parts in runs if kind in parts.lines
        ]
    return "".join(dump(line) + "\n" for line in lines)


def _order(values: Values) -> tuple[bool, float, int, str]:
    sparsity = values["spec"]["sparsity"]
    return sparsity is None, sparsity or 0.0, values["spec"]["seed"], values["run_id"]


dump = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""The canonical text of a JSON value, in one line."""


def _refer(entries: Entries, kind: str, value: Any) -> str:
    """Keep a shared value; gives its short hash."""
    text = dump({kind: value})
    key = _short_hash(text)
    _add(entries, {key: _entry(text)})
    return key


@functools.lru_cache(maxsize=1 << 12)
def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.lru_cache(maxsize=1 << 12)
def _entry(text: str) -> Values:
    """A shared entry of its canonical text: one object, however many runs share it; nobody changes it."""
    entry: Values = json.loads(text)
    return entry


def _add(entries: Entries, more: Entries) -> None:
    for key, entry in more.items():
        known = entries.setdefault(key, entry)
        if known is not entry and dump(known) != dump(entry):
            raise StoreError(f"two shared entries have the short hash {key}: lengthen the hash")


@dataclass
class _Parts:
    """One record taken apart: its own line, and what stands elsewhere in its file."""

    run: Values
    stamp: Values
    metrics: dict[tuple[str, str], Any] = field(default_factory=dict)
    lines: dict[str, Any] = field(default_factory=dict)
    own: Entries = field(default_factory=dict)

    @classmethod
    def of(cls, values: Values, shared: Entries) -> _Parts:
        """Take a record apart. Raises StoreError unless it can be put together again to the same values."""
        parts = cls({}, {})
        try:
            parts._take(dict(values), shared)
            again = parts.values({**shared, **parts.own}.__getitem__)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"run {values.get('run_id')}: not the values of a record ({error!r})") from error
        if again != values:  # numbers and texts are the same objects: only what stands where can differ
            raise StoreError(
                f"run {values['run_id']}: the committed form cannot hold its record without loss"
            )
        return parts

    def _take(self, rest: Values, shared: Entries) -> None:
        version, spec, run = rest["schema_version"], dict(rest.pop("spec")), self.run
        absent = [name for name, (since, _) in DEFAULTS.items() if since <= version and name not in rest]
        if absent:
            run["absent"] = sorted(absent)
        run["sparsity"], run["seed"] = spec.pop("sparsity"), spec.pop("seed")
        variant = {"spec": {name: spec.pop(name) for name in OWN_SPEC}, "method": rest.pop("method")}
        run["variant"] = _refer(self.own, "variant", variant)
        run["setting"] = _refer(shared, "setting", spec)
        run["environment"] = _refer(shared, "environment", rest.pop("environment", {}))
        run["code"] = _refer(self.own, "code", rest.pop("code", {}))
        self.stamp = {name: rest.pop(name) for name in ("schema_version", "scored_on") if name in rest}
        for name, split in SPLITS.items():
            found = rest.pop(name, {})
            self.metrics |= {(metric, split): value for metric, value in found.items()}
        if rest.get("groups"):
            rows = rest.pop("groups")
            run["groups"] = _refer(shared, "groups", [[row[name] for name in GROUP] for row in rows])
            self.lines["correct_by_group"] = [row["correct"] for row in rows]
        if rest.get("cost"):
            cost = rest.pop("cost")
            run["cost"] = {name: value for name, value in cost.items() if not _is_latency(name)}
            self.lines["latency"] = self._latency({n: v for n, v in cost.items() if _is_latency(n)}, shared)
        if rest.get("sparsity"):
            zeros = dict(rest.pop("sparsity"))
            layers = zeros.pop("by_layer")
            run["layers"] = _refer(shared, "layers", sorted(layers))
            run["zeros"] = {**zeros, "by_layer": [layers[name] for name in sorted(layers)]}
            if dump(zeros.get("asked")) == dump(run["sparsity"]):
                run["zeros"].pop("asked")
        for name, value in rest.items():
            if name not in DEFAULTS or DEFAULTS[name][0] > version or DEFAULTS[name][1] != value:
                run[name] = value

    def _latency(self, latency: Values, shared: Entries) -> Values:
        timed = dict(latency.pop("timed_on", {}))
        if timed:
            here = {name: timed.pop(name) for name in TIMED_RUN if name in timed}
            code = {name: timed.pop(name) for name in TIMED_CODE if name in timed}
            refs = _refer(shared, "environment", timed), _refer(self.own, "timed_on", code)
            return {**latency, "timed_on": {**here, "environment": refs[0], "code": refs[1]}}
        return latency

    def values(self, look: Callable[[str], Values]) -> Values:
        """The values of the record; `look` gives a shared entry by its hash, or raises KeyError."""

        def shared(kind: str, key: str) -> Any:
            return look(key)[kind]

        run = dict(self.run)
        version = self.stamp["schema_version"]
        absent = set(run.pop("absent", ()))
        values: Values = dict(self.stamp)
        sparsity, variant = run.pop("sparsity"), shared("variant", run.pop("variant"))
        own = {"sparsity": sparsity, "seed": run.pop("seed")}
        values["spec"] = {**shared("setting", run.pop("setting")), **variant["spec"], **own}
        values["method"] = variant["method"]
        values["environment"] = shared("environment", run.pop("environment"))
        values["code"] = shared("code", run.pop("code"))
        for name, split in SPLITS.items():
            if name not in absent:
                values[name] = {metric: value for (metric, of), value in self.metrics.items() if of == split}
        if "groups" in run:
            layout, correct = shared("groups", run.pop("groups")), self.lines["correct_by_group"]
            if len(layout) != len(correct):
                raise ValueError(f"{len(correct)} counts of correct samples for {len(layout)} groups")
            values["groups"] = [
                {**dict(zip(GROUP, row, strict=True)), "correct": hits} for row, hits in zip(layout, correct)
            ]
        if "cost" in run:
            latency = dict(self.lines["latency"])
            if "timed_on" in latency:
                timed = dict(latency["timed_on"])
                machine = shared("environment", timed.pop("environment"))
                latency["timed_on"] = {**machine, **shared("timed_on", timed.pop("code")), **timed}
            elif version >= 2:
                latency["timed_on"] = {}
            values["cost"] = {**run.pop("cost"), **latency}
        if "zeros" in run:
            layers, zeros = shared("layers", run.pop("layers")), run.pop("zeros")
            shares = dict(zip(layers, zeros["by_layer"], strict=True))
            values["sparsity"] = {"asked": sparsity, **zeros, "by_layer": shares}
        values |= run
        for name, (since, default) in DEFAULTS.items():
            if since <= version and name not in absent:
                values.setdefault(name, type(default)() if isinstance(default, list | dict) else default)
        return values


def _is_latency(name: str) -> bool:
    return name.startswith("latency_") or name in ("removed_channels", "timed_on")


# Reading


def read_committed(root: Path) -> tuple[list[Entry], list[Problem]]:
    """All records of a folder in the committed form, in order of run_id, and every line that is wrong.

    A run that a wrong line leaves incomplete is left out.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    for found, wrong in read_tasks(root):
        entries += found
        problems += wrong
    return sorted(entries, key=_run_id), problems


def read_tasks(
    root: Path, wanted: Collection[Path] | None = None
) -> Iterator[tuple[list[Entry], list[Problem]]]:
    """`read_committed` a task at a time, which are in memory one after another; of some files alone, if told so."""
    seen: set[str] = set()
    for context in sorted(root.glob(f"*/{CONTEXT}")):
        entries, problems = read_task(context.parent, wanted)
        once: list[Entry] = []
        for entry in entries:
            if _run_id(entry) in seen:
                problems.append(
                    Problem(entry.path, entry.line, f"run {_run_id(entry)} stands elsewhere, too")
                )
            else:
                seen.add(_run_id(entry))
                once.append(entry)
        yield once, problems


def _run_id(entry: Entry) -> str:
    return str(entry.values["run_id"])


def read_task(folder: Path, wanted: Collection[Path] | None = None) -> tuple[list[Entry], list[Problem]]:
    """The records of one task's folder, by file, and what is wrong; of some files alone, if told so."""
    try:
        task, shared = read_context(folder / CONTEXT)
    except _LineError as error:
        return [], [Problem(folder / CONTEXT, error.line, error.reason)]
    entries: list[Entry] = []
    problems: list[Problem] = []
    if folder.name != safe_name(task):
        problems.append(
            Problem(folder / CONTEXT, 0, f"of task {task!a:.80}, whose folder is {safe_name(task)}")
        )
    for path in sorted(folder.iterdir()):
        if wanted is not None and path.suffix == ".jsonl" and path not in wanted:
            continue
        if path.suffix == ".jsonl":
            reader = _Reader(path, task, shared)
            entries += reader.entries()
            problems += reader.problems
        elif path.name != CONTEXT and not path.name.endswith(".tmp"):
            problems.append(Problem(path, 0, "no file of the committed form; remove it"))
    return entries, problems


def read_method(path: Path) -> tuple[str, Entries, list[Entry]]:
    """One method's file: its task, what its context holds, its records. Raises StoreError if anything is wrong."""
    context = path.with_name(CONTEXT)
    try:
        task, shared = read_context(context)
    except _LineError as error:
        raise StoreError(str(Problem(context, error.line, error.reason))) from error
    reader = _Reader(path, task, shared)
    entries = reader.entries()
    if reader.problems:
        raise StoreError(str(reader.problems[0]))
    return task, shared, entries


class _LineError(ValueError):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def read_context(path: Path) -> tuple[str, Entries]:
    """The task's name and the shared entries. Raises ValueError that says what is wrong in which line."""
    return parse_context(_lines_of(path))


def parse_context(lines: Sequence[str]) -> tuple[str, Entries]:
    """`read_context` of its lines."""
    try:
        values = parse_json("\n".join(lines))
        task, found = values.pop("task"), values.pop("format")
    except json.JSONDecodeError as error:
        raise _LineError(error.lineno, f"not valid JSON ({error.msg})") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _LineError(0, f"no context of a task ({error})") from error
    if type(found) is not int or found > FORMAT or not isinstance(task, str):
        raise _LineError(
            0, f"format {found!r:.20} of results; this PruneBench reads up to {FORMAT}: upgrade it"
        )
    for key, entry in values.items():
        if not isinstance(entry, dict) or hash_of(entry)[:8] != key:
            number = next((n for n, line in enumerate(lines, 1) if line.startswith(json.dumps(key))), 0)
            raise _LineError(number, f"entry {key!a:.20} does not match its hash")
    return task, values


def _lines_of(path: Path) -> list[str]:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_FILE:
            raise _LineError(0, f"a link, no plain file, or larger than {LARGEST_FILE >> 20} MiB")
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _LineError(0, f"cannot be read: {error}") from error


class _Reader:
    """One method's file as it is read: lines by kind, and what is wrong with them."""

    def __init__(self, path: Path, task: str, shared: Entries) -> None:
        self.path, self.task, self.known = path, task, dict(shared)
        self.problems: list[Problem] = []
        self._runs: dict[str, tuple[int, _Parts]] = {}
        self._columns: list[tuple[int, Values]] = []
        self._later: list[tuple[int, str, Values]] = []

    def entries(self) -> list[Entry]:
        try:
            lines = _lines_of(self.path)
        except _LineError as error:
            self._wrong(error.line, error.reason)
            return []
        for number, text in enumerate(lines, start=1):
            self._try(number, self._take_text, text)
        for number, column in self._columns:
            self._try(number, self._spread, column)
        for number, kind, line in self._later:
            self._try(number, self._attach, kind, line)
        return list(self._whole())

    def _wrong(self, line: int, reason: str) -> None:
        self.problems.append(Problem(self.path, line, reason))

    def _try(self, number: int, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(number, *arguments)
        except KeyError as error:
            self._wrong(number, f"lacks or refers to nothing: {error}")
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            self._wrong(number, str(error))

    def _take_text(self, number: int, text: str) -> None:
        line = parse_json(text)
        if not isinstance(line, dict):
            raise ValueError("want a JSON object")
        if "run" in line:
            run = line["run"]
            if not isinstance(run["run_id"], str):
                raise ValueError("run_id: want a text")
            if run["run_id"] in self._runs:
                raise ValueError(f"run {run['run_id']} stands there twice")
            self._runs[run["run_id"]] = number, _Parts(run, {})
        elif "id" in line:
            key = line.pop("id")
            if hash_of(line)[:8] != key:
                raise ValueError(f"entry {key!a:.20} does not match its hash")
            self.known[key] = line
        elif "metric" in line:
            self._columns.append((number, line))
        else:
            kind = next((kind for kind in ("stamp", "correct_by_group", "latency") if kind in line), None)
            if kind is None:
                raise ValueError(f"a line of no known kind: {', '.join(map(ascii, line))[:80]}")
            self._later.append((number, kind, line))

    def _spread(self, number: int, column: Values) -> None:
        name, split, values = column["metric"], column["split"], column["values"]
        if not isinstance(name, str):
            raise ValueError("metric: want a name")
        if not isinstance(values, list) or len(values) != len(self._runs):
            raise ValueError(f"metric {name!a:.60}: want a value for each of {len(self._runs)} runs")
        if split not in SPLITS.values():
            raise ValueError(
                f"metric {name!a:.60}: split {split!a:.20} is not one of {', '.join(SPLITS.values())}"
            )
        for (_, parts), value in zip(self._runs.values(), values):
            if (name, split) in parts.metrics:
                raise ValueError(f"metric {name!a:.60} of {split} stands there twice")
            if value != ABSENT:
                parts.metrics[name, split] = value

    def _attach(self, number: int, kind: str, line: Values) -> None:
        if kind == "stamp":
            for run_id in self._runs if line["runs"] == "all" else line["runs"]:
                parts = self._runs[run_id][1]
                if parts.stamp:
                    raise ValueError(f"run {run_id} has two stamps")
                parts.stamp = line["stamp"]
        else:
            lines = self._runs[line["run_id"]][1].lines
            if kind in lines:
                raise ValueError(f"{kind} of run {line['run_id']} stands there twice")
            lines[kind] = line[kind]

    def _whole(self) -> Iterator[Entry]:
        for number, parts in self._runs.values():
            try:
                values = parts.values(self.known.__getitem__)
                spec = values["spec"]
                if spec["task"] != self.task or f"{safe_name(spec['method'])}.jsonl" != self.path.name:
                    raise ValueError(f"a run of {spec['method']} on {spec['task']}: not of this file")
            except KeyError as error:
                self._wrong(number, f"lacks or refers to nothing: {error}")
            except (AttributeError, TypeError, ValueError) as error:
                self._wrong(number, str(error))
            else:
                yield Entry(values, self.path, number)
