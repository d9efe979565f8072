"""Reproduction of committed runs: the suite that makes them again, and how what it made compares."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.results.record import RunRecord

LEAST_POINTS = 0.02
"""Another processor sums otherwise: means of a row were within the larger of this and two standard errors."""
METRICS = ("unbiased", "conflicting", "attribute_accuracy", "plain")


@dataclass(frozen=True)
class Row:
    """`TASK/METHOD/SPARSITY[/SEED]`, or the beginning of a run's id."""

    task: str
    method: str
    sparsity: float | None
    seed: int | None = None

    @classmethod
    def parse(cls, text: str) -> Row | None:
        """The row that the text names; None for one that is no row. A task's own name may hold slashes."""
        parts = text.split("/")
        for end, seed in ((len(parts) - 1, parts[-1]), (len(parts), None)):
            if end < 3 or (seed is not None and not seed.isdigit()):
                continue
            level = _sparsity(parts[end - 1])
            if level is not None:
                task, method = "/".join(parts[: end - 2]), parts[end - 2]
                return cls(task, method, level[0], None if seed is None else int(seed))
        return None

    def holds(self, record: RunRecord) -> bool:
        """Whether a run is of this row."""
        spec = record.run_spec
        same = spec.sparsity == self.sparsity or (spec.method == "dense" and self.sparsity == 0)
        return (
            (spec.task, spec.method) == (self.task, self.method) and same and self.seed in (None, spec.seed)
        )


def _sparsity(text: str) -> tuple[float | None] | None:
    """A sparsity in brackets (`native`: the method's own); None for another word."""
    if text == "native":
        return (None,)
    try:
        value = float(text)
    except ValueError:
        return None
    return (value,) if 0 <= value < 1 else None


def find_rows(text: str, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The finished runs that a row or an id names, by seed. Raises UsageError with what there is instead."""
    row = Row.parse(text)
    done = [record for record in records if record.status == "ok"]
    if row is None:
        found = [record for record in done if text and record.run_id.startswith(text)]
        if len(found) != 1:
            raise UsageError(
                f"{text!r} is neither TASK/METHOD/SPARSITY[/SEED] nor the beginning of one run's id "
                f"({len(found)} fit); `prunebench ls runs` shows both"
            )
        return found
    for kind, name in (("task", row.task), ("method", row.method)):
        known = {record.spec[kind] for record in done if kind == "task" or record.spec["task"] == row.task}
        if name not in known:
            raise unknown(kind, name, known)
    found = sorted(filter(row.holds, done), key=lambda record: record.spec["seed"])
    if not found:
        kept = {record.spec["sparsity"] for record in done if record.spec["method"] == row.method}
        raise UsageError(f"{text}: no such run; its sparsities are {', '.join(sorted(map(str, kept)))}")
    return found


def suite_of(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The values of a suite that plans exactly these runs (and their dense models)."""
    spec = records[0].run_spec
    methods = ["dense"] if spec.method == "dense" else ["dense", spec.method]
    return {
        "description": f"Reproduces {spec.label}",
        "tasks": [spec.task],
        "methods": methods,
        "sparsities": [spec.sparsity or 0.5],
        "seeds": [record.run_spec.seed for record in records],
        "model": spec.model,
        "recipe": {name: value for name, value in records[0].spec["recipe"].items() if value is not None},
        "params": {spec.method: dict(spec.params)} if spec.params else {},
    }


def suite_toml(values: dict[str, Any]) -> str:
    """The suite as TOML."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if not isinstance(value, dict)]
    params = {f"params.{json.dumps(method)}": settings for method, settings in values["params"].items()}
    for name, table in {"recipe": values["recipe"], **params}.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def check_versions(records: Sequence[RunRecord]) -> None:
    """Raise UsageError where task or method are not those that made the runs."""
    from prunebench.methods.discovery import check_method_name, resolve_method
    from prunebench.tasks import resolve_task

    spec = records[0].run_spec
    task = resolve_task(spec.task)
    if spec.method_version.startswith("file-"):
        raise UsageError(f"{spec.method} is a user's file: `prunebench run` with that file makes it again")
    check_method_name(spec.method)
    for kind, here, there in (
        (f"task {spec.task}", str(task.version), str(spec.task_version)),
        (f"method {spec.method}", resolve_method(spec.method).version, spec.method_version),
    ):
        if here != there:
            commit = records[0].code.get("commit")
            at = f": git checkout {commit}" if commit else ""
            raise UsageError(f"{kind} is version {here} here, the run was made with version {there}{at}")


def what_changed(record: RunRecord, planned: Sequence[Any]) -> str:
    spec = record.run_spec
    for entry in planned:
        if (entry.spec.method, entry.spec.seed) == (spec.method, spec.seed):
            ours, theirs = entry.spec.to_dict(), record.spec
            return ", ".join(
                f"{key} {theirs.get(key)} -> {ours[key]}" for key in ours if ours[key] != theirs.get(key)
            )
    return "none of this method and seed"


Pairs = Sequence[tuple[RunRecord, RunRecord]]


def same_logits(pairs: Pairs) -> int:
    """In how many pairs the stored logits are the same, bit for bit."""
    return sum(
        there.outputs_sha256 is not None and there.outputs_sha256 == here.outputs_sha256
        for there, here in pairs
    )


@dataclass(frozen=True)
class RowDifference:
    """The mean of a row there and here, and how far apart they may be."""

    metric: str
    there: float
    here: float
    room: float

    @property
    def close(self) -> bool:
        return abs(self.here - self.there) <= self.room


def row_differences(pairs: Pairs) -> list[RowDifference]:
    """Of each metric that all runs have: means may differ by two points or two standard errors of the difference."""
    found = []
    for name in METRICS:
        values = [(there.metrics.get(name), here.metrics.get(name)) for there, here in pairs]
        if any(value is None or math.isnan(value) for pair in values for value in pair):
            continue
        there, here = (statistics.fmean(side) for side in zip(*values))
        differences = [after - before for before, after in values]  # type: ignore[operator]
        error = statistics.stdev(differences) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
        found.append(RowDifference(name, there, here, max(LEAST_POINTS, 2 * error)))
    return found
