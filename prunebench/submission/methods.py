"""The contract of a method file: it is run on a tiny budget and held to what it declares."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prunebench.errors import PruneBenchError
from prunebench.methods.discovery import SHUFFLED
from prunebench.pruning.masks import keep_count
from prunebench.results.record import REMOVED_NOTE, RunRecord
from prunebench.results.store import Store
from prunebench.runner.described import find_method, find_names
from prunebench.runner.evaluate import TaskData
from prunebench.runner.execute import execute
from prunebench.runner.plan import PlannedRun, RunContext, expand
from prunebench.submission.records import Finding
from prunebench.suites import Suite
from prunebench.tasks import resolve_task

TINY_TASK = "colored-digits@2pct"
TINY_RECIPE = {"steps": 12, "finetune_steps": 6, "batch_size": 32, "schedule": "constant"}
TINY_SETTINGS = {"mining_steps": 12, "mask_steps": 6, "rounds": 3}
"""Settings that learned-mask methods and rounds have, cut down; others keep their own."""
LONG_MODEL, LONG_BATCH = "convnet-small@0.25", 8
"""What lets a method take all the steps that the task has, in seconds."""
SPARSITIES = (0.5, 0.95)
UNTIMED = "its file is checked"
Runs = list[tuple[PlannedRun, RunRecord]]


def check_methods(name: str, *, thorough: bool = True) -> list[Finding]:
    """The contract of a method, or of each that a file holds: see `check_method`."""
    try:
        several = find_names(name)
    except PruneBenchError:
        several = [name]
    if len(several) == 1:
        return check_method(name, thorough=thorough)
    return [
        replace(finding, what=f"{each.rpartition(':')[2]}: {finding.what}")
        for each in several
        for finding in check_method(each, thorough=thorough)
    ]


def check_method(name: str, *, thorough: bool = True) -> list[Finding]:
    """The contract of a method (a name or a file), on a tiny budget and real digits.

    It declares itself, reaches the asked sparsity exactly, keeps its masks through training, is deterministic,
    and touches neither bias labels nor the test split beyond what it declares. It does so with every value of its
    settings that it declares (`Literal`), and through as many steps as a real run has (on a narrow network): masks
    that change every hundredth step do change. Beside that stands, to be read, what
    its masks are worth: the same masks shuffled. So few steps say little of it; `run` with `shuffled:NAME` does.
    Not `thorough`, it leaves out what takes minutes: the declared values and the steps of a real run.
    """
    findings: list[Finding] = []
    loaded = "it can be loaded, cites its source and declares its supervision"
    if not _rule(findings, loaded, lambda: find_method(name)):
        return findings
    method = find_method(name)
    with tempfile.TemporaryDirectory() as folder:
        runs: Runs = []

        def run_all() -> None:
            runs.extend(_tiny_runs(name, Path(folder) / "once"))

        _rule(
            findings, "it runs, touches nothing withheld, reaches its sparsity and holds its masks", run_all
        )
        if not findings[-1].ok:
            return findings
        if not method.native and not method.dense:
            _rule(findings, "its sparsity is exact by count", lambda: _exact(runs))
        _rule(findings, "the same spec twice gives the same numbers", lambda: _same(runs, name, Path(folder)))
        _rule(findings, "its training cost is counted", lambda: _cost(runs))
        if thorough and method.choices:
            _rule(
                findings, "every declared value of its settings works", lambda: _choices(name, Path(folder))
            )
        if thorough and not method.dense:
            _rule(
                findings,
                "it holds through all steps of a real run",
                lambda: _exact(_long_runs(name, Path(folder))),
            )
        if not (method.dense or method.unpruned or name.startswith(SHUFFLED)):
            findings.append(Finding(_beside_shuffled(name, runs, Path(folder) / "once"), True))
    return findings


def _rule(findings: list[Finding], what: str, test: Callable[[], object]) -> bool:
    try:
        test()
    except PruneBenchError as error:
        findings.append(Finding(what, False, str(error)))
    except Exception:
        findings.append(Finding(what, False, traceback.format_exc(limit=-4)))
    else:
        findings.append(Finding(what, True))
    return findings[-1].ok


def _beside_shuffled(name: str, runs: Sequence[tuple[PlannedRun, RunRecord]], out: Path) -> str:
    """Bias-conflicting accuracy with the method's masks and with the same ones shuffled within layers, in words."""
    try:
        control = _tiny_runs(f"{SHUFFLED}{name}", out, SPARSITIES[:1])
    except PruneBenchError as error:
        return f"for information: its masks were not shuffled ({str(error).splitlines()[0]})"
    method = find_method(name)
    own = [record for run, record in runs if run.spec.sparsity in (None, SPARSITIES[0]) and not run.is_dense]
    accuracy, beside = (record.metrics.get("conflicting") or 0.0 for record in (own[0], control[-1][1]))
    level = "its own sparsity" if method.native else f"sparsity {SPARSITIES[0]:g}"
    return (
        f"for information: {accuracy:.1%} of the conflicting images right at {level}, {beside:.1%} with its masks "
        "shuffled within layers (after few steps)"
    )


def _tiny_runs(
    name: str,
    out: Path,
    sparsities: tuple[float, ...] = SPARSITIES,
    changes: Mapping[str, Any] | None = None,
) -> Runs:
    """Dense and the method's runs at some sparsities, run here. Raises PruneBenchError if one fails."""
    method = find_method(name)
    chosen = method.with_params(changes or {})
    settings = {key: value for key, value in TINY_SETTINGS.items() if key in chosen.params}
    suite = _suite(name, sparsities, TINY_RECIPE, {method.name: {**settings, **(changes or {})}})
    return _run_here(suite, out, UNTIMED if changes else None)


def _choices(name: str, folder: Path) -> None:
    method = find_method(name)
    for key, values in method.choices.items():
        for value in values:
            if value != method.settings[key]:
                _exact(_tiny_runs(name, folder / "choices", SPARSITIES[1:], {key: value}))


def _long_runs(name: str, folder: Path) -> Runs:
    """At one sparsity, with the settings and as many steps as a real run has, of small batches on a narrow network."""
    suite = _suite(name, SPARSITIES[1:], {"batch_size": LONG_BATCH}, {})
    return _run_here(replace(suite, model=LONG_MODEL), folder / "long", UNTIMED)


def _suite(
    name: str,
    sparsities: tuple[float, ...],
    recipe: Mapping[str, Any],
    params: Mapping[str, Mapping[str, Any]],
) -> Suite:
    return Suite("check", (TINY_TASK,), (name,), sparsities, (0,), recipe=recipe, params=params)


def _run_here(suite: Suite, out: Path, untimed: str | None = None) -> Runs:
    store, context = Store(out), RunContext(out, latency_skipped=untimed)
    store.prepare()
    data = TaskData(resolve_task(TINY_TASK), None, 0, torch.device("cpu"))
    done = []
    for run in expand(suite, None):
        record = execute(run, context, data)
        if record.status != "ok":
            raise PruneBenchError(f"{run.spec.label}: {record.reason}\n{record.traceback or ''}".rstrip())
        done.append((run, record))
    return done


def _exact(runs: Runs) -> None:
    for run, record in runs:
        if run.is_dense or record.sparsity is None or run.spec.sparsity is None:
            continue
        if REMOVED_NOTE in record.notes:  # channels are whole: the run itself held them to what was asked
            continue
        sizes = _prunable_total(record)
        kept = round((1 - record.sparsity.achieved) * sizes)
        if kept != keep_count(sizes, run.spec.sparsity):
            raise PruneBenchError(f"{run.spec.label}: keeps {kept} of {sizes} weights")


def _prunable_total(record: RunRecord) -> int:
    from prunebench.models import build_model
    from prunebench.pruning.masks import prunable

    net = build_model(record.run_spec.model, resolve_task(TINY_TASK).num_classes, seed=0)
    return sum(weight.numel() for weight in prunable(net).values())


def _same(runs: Runs, name: str, folder: Path) -> None:
    for (run, before), (_, after) in zip(runs, _tiny_runs(name, folder / "twice")):
        if before.outputs_sha256 != after.outputs_sha256:
            raise PruneBenchError(
                f"{run.spec.label}: two runs differ; draw all randomness from experiment.rng(purpose)"
            )


def _cost(runs: Runs) -> None:
    for run, record in runs:
        if record.cost is None or record.cost.training_steps < 1:
            raise PruneBenchError(f"{run.spec.label}: no training step counted; train with experiment.train")
