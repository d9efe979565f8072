"""The page of `prunebench show`: one run as a reader asks of it, or the record as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.cli.console import Field, console, duration, fitting_table, sparsity_text
from prunebench.cli.listing import default_results
from prunebench.errors import UsageError
from prunebench.results.record import RunRecord, plain
from prunebench.results.speed import disturbance, noise_floor, speed_up

if TYPE_CHECKING:
    from prunebench.metrics.registry import Metric

WORST = 5
"""So many groups are named, the worst first."""
BAR = 20
"""Columns of the longest bar of a phase."""


def show_run(run_id: str, results: Path | None, *, as_json: bool = False) -> None:
    """Print one run. Raises UsageError unless the text begins exactly one run's id."""
    record = find_run(run_id, results or default_results())
    if as_json:
        console.file.write(json.dumps(plain(record), indent=1) + "\n")
        return
    spec = record.run_spec
    console.print(f"{spec.label}: {record.status}", style="bold", soft_wrap=True)
    for line in _facts(record):
        console.print(line, soft_wrap=True)
    if record.reason:
        console.print(f"reason     {record.reason}", style="red", soft_wrap=True)
    _print_metrics(record)
    _print_groups(record)
    _print_cost(record)
    _print_phases(record)
    if record.traceback:
        console.print(f"\n{record.traceback}", soft_wrap=True)
    console.print(f"\nall of it: prunebench show {record.run_id} --json", style="dim", soft_wrap=True)


def find_run(run_id: str, results: Path) -> RunRecord:
    """The one run whose id begins so. Raises UsageError that says which there are."""
    from prunebench.results.store import open_results

    records, _ = open_results(results).records()
    matches = [record for record in records if record.run_id.startswith(run_id)]
    if len(matches) != 1:
        some = ", ".join(record.run_id for record in matches[:5])
        found = f"{len(matches)} runs begin with it: {some}" if matches else "see `prunebench ls runs`"
        raise UsageError(f"no single run {run_id!r} in {results}: {found}")
    return matches[0]


def _facts(record: RunRecord) -> Iterator[str]:
    spec, facts, code = record.run_spec, record.environment, record.code
    settings = ", ".join(f"{name} {value}" for name, value in spec.params) or "none"
    recipe = spec.recipe
    yield f"run        {record.run_id}"
    yield f"task       {spec.task}, version {spec.task_version}, data {spec.data_fingerprint}"
    yield f"method     {spec.method}, version {spec.method_version}, supervision {record.method.get('supervision')}"
    yield f"settings   {settings}"
    yield f"model      {spec.model}; {recipe.steps} + {recipe.finetune_steps} steps of {recipe.batch_size} images"
    if record.sparsity is not None:
        zeros = record.sparsity
        layers = ", ".join(f"{name} {value:.3f}" for name, value in zeros.by_layer.items())
        yield f"sparsity   {sparsity_text(zeros.asked)} asked, {zeros.achieved:.4f} achieved ({layers})"
    machine = facts.get("gpu") or facts.get("cpu")
    commit = str(code.get("commit") or "unknown")[:12] + (" with changes" if code.get("dirty") else "")
    yield f"made       {record.started_utc} on {machine}, torch {facts.get('torch')}, commit {commit}"
    if record.scored_on:
        yield f"scored     {record.scored_on.get('utc')}, again from its logits"


def _print_metrics(record: RunRecord) -> None:
    from prunebench.metrics.registry import metrics

    known = [entry for entry in metrics() if entry.name in record.metrics]
    if not known:
        return
    fields = (
        Field("metric", whole=False),
        Field("test", right=True),
        Field("validation", drop=1, right=True),
    )
    rows = [
        (entry.title_with_unit, _number(entry, record.metrics), _number(entry, record.validation))
        for entry in sorted(known, key=lambda entry: not entry.board)
    ]
    console.print(fitting_table(fields, rows)[0])


def _number(metric: Metric, values: dict[str, float | None]) -> str:
    value = values.get(metric.name)
    if value is None or math.isnan(value):
        return "-"
    return f"{value * metric.scale:.{metric.decimals}f}"


def _print_groups(record: RunRecord) -> None:
    """The groups that the run has most wrong, and how many there are."""
    worst = sorted(record.groups, key=lambda row: (row.correct / row.count, -row.count))[:WORST]
    if not worst:
        return
    fields = (
        Field("worst groups"), Field("right", right=True), Field("of", right=True), Field("accuracy", right=True),
        Field("", drop=1),
    )  # fmt: skip
    rows = [
        (
            f"label {row.label}, bias {row.bias}", str(row.correct), str(row.count), f"{row.correct / row.count:.1%}",
            "aligned" if row.aligned else "conflicting",
        )
        for row in worst
    ]  # fmt: skip
    console.print(fitting_table(fields, rows)[0])
    console.print(
        f"test accuracy by group: {len(worst)} of {len(record.groups)} groups", style="dim", soft_wrap=True
    )


def _print_cost(record: RunRecord) -> None:
    cost = record.cost
    if cost is None:
        return
    floor, problem = noise_floor(cost), disturbance(cost)
    times = f"{cost.latency_dense_ms.p50:.2f} / {cost.latency_pruned_ms.p50:.2f} ms"
    console.print("\ncost", style="bold")
    left, more = (
        cost.nonzero_parameters / cost.parameters,
        cost.training_steps / max(cost.dense_training_steps, 1),
    )
    how = f"batch of {cost.latency_batch}, {cost.latency_path}"
    for line in (
        f"weights    {cost.nonzero_parameters:,} of {cost.parameters:,} ({left:.1%})",
        f"MACs       {cost.nonzero_macs:,} of {cost.macs:,} an image ({cost.nonzero_macs / cost.macs:.1%})",
        f"speed      {speed_up(cost):.2f}x measured: dense / pruned {times}, {how}",
        "noise      " + ("not measured" if floor is None else f"the dense network against itself {floor:.2f}x")
        + (f"; {problem}" if problem else ""),
        f"training   {cost.training_steps:,} steps, {more:.2f}x dense",
        f"memory     {cost.peak_memory_mb:,.0f} MB at the peak",
    ):  # fmt: skip
        console.print(line, soft_wrap=True)


def _print_phases(record: RunRecord) -> None:
    """Seconds of each phase with its share as a bar."""
    phases = record.phase_seconds
    total = math.fsum(phases.values())
    if not total:
        return
    rows = [
        (
            name,
            duration(value) if value >= 60 else f"{value:.1f} s",
            f"{value / total:.0%}",
            "#" * round(BAR * value / total),
        )
        for name, value in phases.items()
    ]
    fields = (Field("phase"), Field("time", right=True), Field("share", right=True), Field("", drop=1))
    console.print(fitting_table(fields, rows)[0])
