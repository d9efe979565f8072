"""The plan of a suite: its runs, and those that the store does not hold yet.

suite -> expand -> [PlannedRun] -> plan -> launcher.map(execute) -> store
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.errors import UsageError
from prunebench.methods.api import Method
from prunebench.methods.discovery import resolve_method
from prunebench.models import build_model, identify_model
from prunebench.models.checkpoints import checkpoint_digest, load_checkpoint
from prunebench.models.nets import ModelName
from prunebench.pruning.masks import check_feasible, prunable
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store
from prunebench.results.tracks import SeedPlan
from prunebench.runner.described import find_method, find_names
from prunebench.suites import Suite, load_suite, suite_names
from prunebench.tasks import Task, resolve_task

Draw = tuple[str, int]
"""The data of a run: the task, as it was asked for, and the seed."""


@dataclass(frozen=True)
class PlannedRun:
    """A run, how to find its task and method again (`disent:PATH`, `my_method.py`), and what the method is."""

    spec: RunSpec
    task: str
    method: str
    dense_id: str
    metadata: tuple[tuple[str, str], ...]

    @property
    def is_dense(self) -> bool:
        return self.spec.run_id == self.dense_id

    @property
    def draw(self) -> Draw:
        """The data that it needs."""
        return self.task, self.spec.seed

    @property
    def row(self) -> tuple[object, ...]:
        """What it shares with the runs that differ in the seed alone."""
        return self.task, self.method, self.spec.model, self.spec.params, self.spec.sparsity

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in ("task", "method", "dense_id")}
        return {**values, "spec": self.spec.to_dict(), "metadata": dict(self.metadata)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlannedRun:
        """The inverse of `to_dict`."""
        spec, metadata = RunSpec.from_dict(values["spec"]), tuple(values["metadata"].items())
        return cls(spec, values["task"], values["method"], values["dense_id"], metadata)


@dataclass(frozen=True)
class RunContext:
    """Where runs run: the results folder, the data, the device; and whether pruned weights are kept.

    `latency_skipped` says why latencies would mean little (many runs on one GPU): sparse inference
    is then not measured. `dense` is a checkpoint that stands for the dense model, trained outside. Methods of users'
    files are ended after `timeout` seconds, and see nothing of the machine in a `sandbox` (`jail`).
    """

    out: Path
    data_root: Path | None = None
    device: str = "cpu"
    keep_models: bool = True
    latency_skipped: str | None = None
    dense: Path | None = None
    sandbox: bool = False
    timeout: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunContext:
        """The inverse of `to_dict`."""
        given = {name: values.get(name) for name in ("out", "data_root", "dense")}
        return cls(
            **{**values, **{name: None if path is None else Path(path) for name, path in given.items()}}
        )


def expand(
    suite: Suite, data_root: Path | None, dense: Path | None = None, *, sandbox: bool = False
) -> list[PlannedRun]:
    """All runs of a suite: the dense models, then method by method. Raises UsageError before anything is trained.

    `dense` is a checkpoint that stands for the dense model of the one task, for every seed; its hash becomes part of
    the model's name. A suite that is stopped has whole rows of its first methods; within one, runs of a seed stand
    apart, so that workers do not wait for each other's shared stages.
    """
    methods = choose_methods(suite, sandbox=sandbox)
    tasks = {name: resolve_task(name, data_root) for name in suite.tasks}
    if len({task.name for task in tasks.values()}) != len(tasks):
        raise UsageError("two of the tasks share one name; rename a folder or run them into different --out")
    runs: list[PlannedRun] = []
    for name, task in tasks.items():
        _check_labels(task, methods)
        base = _dense_spec(suite, task, data_root)
        if dense is not None:
            base = replace(base, model=_trained_outside(suite, base.model, dense))
        runs += _runs_of_task(name, base, methods, suite)
        net = build_model(base.model, task.num_outputs, seed=0, data_root=data_root)
        if dense is not None:
            load_checkpoint(dense, net)
        sizes = {layer: weight.numel() for layer, weight in prunable(net).items()}
        for sparsity in suite.sparsities:
            check_feasible(sizes, sparsity)
    return runs


def choose_methods(suite: Suite, *, sandbox: bool = False) -> list[tuple[str, Method]]:
    """The suite's methods with its settings, each after the name or file that it was asked for with.

    A file with several methods stands for all of them, a method with settings to sweep for one of each combination.
    """
    asked = list(dict.fromkeys(name for each in suite.methods for name in find_names(each, sandbox=sandbox)))
    methods = [(name, find_method(name, sandbox=sandbox)) for name in asked]
    names = {method.name for _, method in methods}
    if len(names) != len(methods):
        raise UsageError("two of the methods share one name; rename yours")
    for name in (*suite.params, *suite.sweep):
        if name not in names:
            resolve_method(name)
    chosen = [
        (name, method.with_params({**suite.params.get(method.name, {}), **settings}))
        for name, method in methods
        for settings in suite.swept(method.name)
    ]
    for _, method in chosen:
        try:
            method.build(**method.params)
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings of {method.name}: {error}") from error
    if len({(method.name, str(sorted(method.params.items()))) for _, method in chosen}) != len(chosen):
        raise UsageError("two values of a sweep are the same, or change nothing")
    return chosen


def _trained_outside(suite: Suite, model: str, dense: Path) -> str:
    """The name of a model whose dense weights come from a checkpoint."""
    if len(suite.tasks) > 1:
        raise UsageError(
            f"--dense is a network for one task, the suite has {len(suite.tasks)}: choose one with --task"
        )
    return str(replace(ModelName.parse(model), outside=checkpoint_digest(dense)))


def _check_labels(task: Task, methods: Sequence[tuple[str, Method]]) -> None:
    """Raise UsageError for a method that needs class labels where the task has attributes."""
    unfit = sorted({method.name for _, method in methods if not method.multi_label})
    if task.attributes is not None and unfit:
        raise UsageError(
            f"{task.name} is multi-label, but {', '.join(unfit)} need{'s' * (len(unfit) == 1)} class labels: leave "
            "them out, or declare multi_label=True in @method(...) if y `[N, K]` is handled"
        )


def board_plans() -> tuple[SeedPlan, ...]:
    """The seeds that the suites of the board plan, by task, model and whole recipe: shorter runs are not theirs."""
    suites = [suite for suite in map(load_suite, suite_names()) if suite.board]
    return tuple(
        SeedPlan(
            task.name,
            suite.seeds,
            suite.model or task.model,
            tuple(sorted(asdict(task.recipe.replace(suite.recipe)).items())),
        )
        for suite in suites
        for task in map(resolve_task, suite.tasks)
    )


def _dense_spec(suite: Suite, task: Task, data_root: Path | None) -> RunSpec:
    dense = resolve_method("dense")
    try:
        recipe = task.recipe.replace(suite.recipe)
    except (TypeError, ValueError) as error:
        raise UsageError(f"suite {suite.name!r}: {error}") from error
    return RunSpec(
        task=task.name,
        task_version=task.version,
        data_fingerprint=task.fingerprint(data_root),
        model=identify_model(suite.model or task.model, data_root),
        method=dense.name,
        method_version=dense.version,
        params=(),
        sparsity=0.0,
        seed=0,
        recipe=recipe,
    )


def _runs_of_task(
    name: str, base: RunSpec, methods: Sequence[tuple[str, Method]], suite: Suite
) -> Iterator[PlannedRun]:
    baseline = resolve_method("dense").metadata
    dense = {seed: replace(base, seed=seed) for seed in suite.seeds}
    for spec in dense.values():
        yield PlannedRun(spec, name, "dense", spec.run_id, baseline)
    for asked, method in methods:
        for sparsity in () if method.dense else method.sparsities(suite.sparsities):
            for seed in suite.seeds:
                spec = replace(
                    dense[seed],
                    method=method.name,
                    method_version=method.version,
                    params=tuple(sorted(method.params.items())),
                    sparsity=sparsity,
                )
                yield PlannedRun(spec, name, asked, dense[seed].run_id, method.metadata)


def plan(
    runs: Sequence[PlannedRun], store: Store, statuses: Mapping[str, str] | None = None
) -> list[PlannedRun]:
    """The runs still to run: all but those whose record says ok. Failed ones are tried again.

    `statuses` are the store's, where they are at hand. A dense model that is needed but no longer there (records travel
    without weights) is trained again.
    """
    found = store.statuses()[0] if statuses is None else statuses
    unfinished = {run.spec.run_id for run in runs if found.get(run.spec.run_id) != "ok"}
    needed = {run.dense_id for run in runs if run.spec.run_id in unfinished}
    unfinished |= {run_id for run_id in needed if not store.has_model(run_id)}
    return [run for run in runs if run.spec.run_id in unfinished]


def is_done(run: PlannedRun, store: Store) -> bool:
    """Whether a planned run has been finished meanwhile, by another process."""
    ok = store.status(run.spec.run_id) == "ok"
    return ok and (not run.is_dense or store.has_model(run.spec.run_id))
