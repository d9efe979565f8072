"""Made-up results of any size: planned runs of made-up methods and tasks, and records as large as real ones."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from prunebench.methods.discovery import resolve_method
from prunebench.metrics.registry import metrics
from prunebench.results.record import (
    SCHEMA_VERSION,
    CostReport,
    GroupRow,
    Percentiles,
    RunRecord,
    SparsityReport,
    to_json,
)
from prunebench.results.spec import RunSpec
from prunebench.runner import plan as planning
from prunebench.runner.plan import PlannedRun
from prunebench.suites import Suite
from prunebench.tasks.registry import resolve_task

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
LAYERS = ("conv1.weight", "conv2.weight", "head.weight")
SEEDS = (0, 1, 2, 3, 4)
MACHINE = {
    "cpu": "Processor One", "cuda": None, "device": "cpu", "driver": None, "gpu": None, "kernels": "auto",
    "numpy": "2.3.5", "precision": "fp32", "python": "3.11.7", "system": "Linux x86_64", "threads": 1,
    "torch": "2.15.0", "torchvision": "0.29.2", "triton": "3.9.0",
}  # fmt: skip


def made_up_plan(methods: int, tasks: int) -> list[PlannedRun]:
    """All runs of made-up methods and tasks, by the planner itself: each method at 7 sparsities with 5 seeds.

    Of the planner only what looks names up is stood in for: each method is magnitude pruning and each task
    colored-digits, under another name.
    """
    base, task = resolve_method("magnitude"), resolve_task("colored-digits@2pct")
    named = {f"method-{k:02}": dataclasses.replace(base, name=f"method-{k:02}") for k in range(methods)}

    def found(name: str, _: Path | None) -> object:
        twin = type(task).__new__(type(task))
        twin.__dict__ = {**task.__dict__, "name": name}
        return twin

    suite = Suite("made-up", tuple(f"task-{k:02}" for k in range(tasks)), tuple(named), SPARSITIES, SEEDS)
    with (
        mock.patch.object(planning, "choose_methods", return_value=list(named.items())),
        mock.patch.object(planning, "resolve_task", found),
    ):
        return planning.expand(suite, None)


def made_up_records(specs: Sequence[RunSpec], seed: int = 0) -> Iterator[tuple[str, str]]:
    """The id and the JSON text of an ok record for each run: every metric of the registry on both splits, random."""
    names = [entry.name for entry in metrics()]
    draw = np.random.default_rng(seed).random
    pattern = re.compile(r'"@(\w+)@"')
    pieces = pattern.split(to_json(_template(specs[0], names)))
    texts, keys = pieces[::2], pieces[1::2]
    for spec in specs:
        values = iter(draw(len(keys)).tolist())
        known = {
            "id": json.dumps(spec.run_id), "task": json.dumps(spec.task), "method": json.dumps(spec.method),
            "sparsity": json.dumps(spec.sparsity), "seed": str(spec.seed),
            "params": json.dumps(dict(spec.params)), "version": json.dumps(spec.method_version),
        }  # fmt: skip
        filled = [known.get(key) or repr(next(values)) for key in keys]
        yield spec.run_id, "".join(text + value for text, value in zip(texts, [*filled, ""]))


def write_made_up(specs: Sequence[RunSpec], out: Path) -> None:
    """Write a made-up record for each run, as a store has them, without logits and weights."""
    for name in ("runs", "shared", "locks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for run_id, text in made_up_records(specs):
        (out / "runs" / run_id).mkdir(exist_ok=True)
        (out / "runs" / run_id / "record.json").write_text(text)


def _template(spec: RunSpec, names: Sequence[str]) -> RunRecord:
    """A record with `@word@` where another run has another value."""
    other = dict.fromkeys(names, "@value@")
    own = {"task": "task", "method": "method", "method_version": "version", "params": "params"}
    values = spec.to_dict() | {key: f"@{word}@" for key, word in own.items()}
    values |= {"sparsity": "@sparsity@", "seed": "@seed@"}
    time = Percentiles("@value@", "@value@", "@value@")  # type: ignore[arg-type]
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id="@id@",
        status="ok",
        spec=values,
        method={"name": "@method@", "supervision": "none", "cite": "Nobody, 2020 (made up)"},
        started_utc="2026-01-01T00:00:00Z",
        phase_seconds=dict.fromkeys(("data", "fit", "verify", "evaluate", "cost"), 0.5),
        environment=dict(MACHINE),
        code={"commit": "abcdef0123456789", "dirty": False, "version": "0.1.0"},
        splits_hash="0123456789abcdef",
        sparsity=SparsityReport("@sparsity@", "@value@", dict.fromkeys(LAYERS, "@value@")),  # type: ignore[arg-type]
        groups=[GroupRow(i, j, i == j, 100, 90) for i in range(2) for j in range(2)],
        metrics=dict(other),  # type: ignore[arg-type]
        validation=dict(other),  # type: ignore[arg-type]
        cost=CostReport(
            167114, 33789, 1148160, 285919, 64, time, time, 1074.5, 500, 400, "sparsify: auto", {"dense": 3},
            0.0, {}, time, "CPU time of the thread", 1.5,
        ),
        outputs_sha256="0" * 64,
    )  # fmt: skip
