"""Time and disk that a plan will take, from runs that this processor has measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.cli.console import duration
from prunebench.cli.listing import COMMITTED
from prunebench.results.store import open_results

if TYPE_CHECKING:
    from prunebench.api import SuitePlan
    from prunebench.results.record import RunRecord
    from prunebench.runner.plan import PlannedRun

START_SECONDS = 3.0
"""Of a worker, before its first run: it imports torch."""
RECORD_BYTES = 20_000
"""A record with the group table of a hundred groups."""
AFTER = ("verify", "evaluate", "cost")
"""Phases behind the training, in seconds of a run."""


@dataclass(frozen=True)
class Rates:
    """Measured seconds: of training a step by (task, model, method), of the rest of a run and of loading by task."""

    step: Mapping[tuple[str, str, str], float]
    rest: Mapping[str, float]
    load: Mapping[str, float]

    @classmethod
    def of(cls, records: Iterator[RunRecord]) -> Rates:
        """Medians of finished runs."""
        step: dict[tuple[str, str, str], list[float]] = {}
        rest: dict[str, list[float]] = {}
        load: dict[str, list[float]] = {}
        for record in records:
            spec, phases = record.run_spec, record.phase_seconds
            steps = spec.recipe.steps + spec.recipe.finetune_steps
            if "fit" in phases and steps:
                step.setdefault((spec.task, spec.model, spec.method), []).append(phases["fit"] / steps)
                rest.setdefault(spec.task, []).append(math.fsum(phases.get(name, 0.0) for name in AFTER))
                load.setdefault(spec.task, []).append(phases.get("data", 0.0))
        by_step = {key: statistics.median(values) for key, values in step.items()}
        return cls(by_step, *({k: statistics.median(v) for k, v in of.items()} for of in (rest, load)))

    def seconds(self, run: PlannedRun) -> float | None:
        """Of one run: as its method took, or as the task's others did (their median); None without any of the task."""
        spec = run.spec
        own = self.step.get((spec.task, spec.model, spec.method))
        others = [rate for key, rate in self.step.items() if key[:2] == (spec.task, spec.model)]
        if own is None and not others:
            return None
        rate = statistics.median(others) if own is None else own
        return rate * (spec.recipe.steps + spec.recipe.finetune_steps) + self.rest[spec.task]


def measured_here(folders: list[Path], device: str) -> Iterator[RunRecord]:
    """Finished runs of these folders that were made on this processor or accelerator."""
    from prunebench.runner.environment import describe_environment

    here = describe_environment(device)
    name = "gpu" if device == "cuda" else "cpu"
    for folder in folders:
        for record in open_results(folder).records()[0]:
            facts = record.environment
            if record.status == "ok" and (facts.get("device"), facts.get(name)) == (
                here["device"],
                here[name],
            ):
                yield record


def time_words(plan: SuitePlan, workers: int) -> str:
    """How long the plan will take, in words; of what nothing is known, how much."""
    folders = [plan.context.out] if (plan.context.out / "runs").is_dir() else []
    rates = Rates.of(
        measured_here([*folders, *([COMMITTED] if COMMITTED.is_dir() else [])], plan.context.device)
    )
    known = [(run, seconds) for run in plan.todo if (seconds := rates.seconds(run)) is not None]
    unknown = Counter(run.spec.task for run in plan.todo) - Counter(run.spec.task for run, _ in known)
    words = []
    if known:
        draws = {(run.spec.task, run.spec.seed) for run, _ in known}
        loading = math.fsum(rates.load[task] for task, _ in draws)
        total = math.fsum(seconds for _, seconds in known) / workers + loading + START_SECONDS
        words.append(f"about {duration(total)} with {workers} workers, as measured on this processor")
    if unknown:
        tasks = ", ".join(f"{task} ({count})" for task, count in sorted(unknown.items()))
        words.append(f"unknown for {tasks}: no finished run of this processor")
    return "; ".join(words) or "nothing to run"


def disk_bytes(plan: SuitePlan, logits: Mapping[str, int]) -> int:
    """Bytes that the plan will write: float16 logits (`logits`: how many of a task), float32 weights, records."""
    from prunebench.models import build_model
    from prunebench.tasks import resolve_task

    weights: dict[tuple[str, str], int] = {}
    total = 0
    for run in plan.todo:
        key = run.task, run.spec.model
        if key not in weights:
            outputs = resolve_task(run.task, plan.context.data_root).num_outputs
            net = build_model(run.spec.model, outputs, seed=0, data_root=plan.context.data_root)
            weights[key] = 4 * sum(value.numel() for value in net.state_dict().values())
        kept = weights[key] if run.is_dense or plan.context.keep_models else 0
        total += 2 * logits[run.task] + kept + RECORD_BYTES
    return total
