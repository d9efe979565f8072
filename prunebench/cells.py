"""A suite becomes cells; the plan is those that the store does not hold yet.

suite -> expand -> [Cell] -> plan -> launcher.map(execute) -> store
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prunebench.errors import UsageError
from prunebench.methods.catalog import resolve_method
from prunebench.models import build_model, identify_model
from prunebench.pruning.masks import check_feasible, prunable
from prunebench.registry import Method
from prunebench.spec import RunSpec
from prunebench.store import Store
from prunebench.suite import Suite
from prunebench.tasks import Task, resolve_task


@dataclass(frozen=True)
class Cell:
    """A run, how to find its task and method again (`disent:PATH`, `my_method.py`), and what the method is."""

    spec: RunSpec
    task: str
    method: str
    dense_id: str
    facts: tuple[tuple[str, str], ...]

    @property
    def is_dense(self) -> bool:
        return self.spec.run_id == self.dense_id


@dataclass(frozen=True)
class Workplace:
    """Where cells run: the results folder, the data, the device; and whether pruned weights are kept.

    `crowded` says why latencies would mean little (many cells on one GPU): sparse inference is then not measured.
    """

    out: Path
    data_root: Path | None = None
    device: str = "cpu"
    keep_models: bool = True
    crowded: str | None = None


def expand(suite: Suite, data_root: Path | None) -> list[Cell]:
    """All cells of a suite, dense models first. Raises UsageError before anything is trained.

    Cells of one method and seed stand apart, so that workers do not wait for each other's shared stages.
    """
    methods = choose_methods(suite)
    tasks = {name: resolve_task(name, data_root) for name in suite.tasks}
    if len({task.name for task in tasks.values()}) != len(tasks):
        raise UsageError("two of the tasks share one name; rename a folder or run them into different --out")
    cells: list[Cell] = []
    for name, task in tasks.items():
        _check_labels(task, methods)
        base = _dense_spec(suite, task, data_root)
        cells += _cells_of_task(name, base, methods, suite)
        net = build_model(base.model, task.num_outputs, seed=0, data_root=data_root)
        sizes = {layer: weight.numel() for layer, weight in prunable(net).items()}
        for sparsity in suite.sparsities:
            check_feasible(sizes, sparsity)
    return cells


def choose_methods(suite: Suite) -> dict[str, Method]:
    """The suite's methods with its settings, by the name or file they were asked for with."""
    methods = {asked: resolve_method(asked) for asked in suite.methods}
    names = {method.name for method in methods.values()}
    if len(names) != len(methods):
        raise UsageError("two of the methods share one name; rename yours")
    for name in suite.params:
        if name not in names:
            resolve_method(name)
    methods = {
        asked: method.with_params(suite.params.get(method.name, {})) for asked, method in methods.items()
    }
    for method in methods.values():
        try:
            method.build(**method.params)
        except (TypeError, ValueError) as error:
            raise UsageError(f"settings of {method.name}: {error}") from error
    return methods


def _check_labels(task: Task, methods: Mapping[str, Method]) -> None:
    """Raise UsageError for a method that needs class labels where the task has attributes."""
    unfit = [method.name for method in methods.values() if not method.multi_label]
    if task.attributes is not None and unfit:
        raise UsageError(
            f"{task.name} is multi-label, but {', '.join(unfit)} need{'s' * (len(unfit) == 1)} class labels: leave "
            "them out, or declare multi_label=True in @method(...) if y `[N, K]` is handled"
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


def _cells_of_task(name: str, base: RunSpec, methods: Mapping[str, Method], suite: Suite) -> Iterator[Cell]:
    baseline = facts_of(resolve_method("dense"))
    dense = {seed: replace(base, seed=seed) for seed in suite.seeds}
    for spec in dense.values():
        yield Cell(spec, name, "dense", spec.run_id, baseline)
    for sparsity in (None, *sorted(suite.sparsities)):
        for asked, method in methods.items():
            if method.dense or method.native != (sparsity is None):
                continue
            for seed in suite.seeds:
                spec = replace(
                    dense[seed],
                    method=method.name,
                    method_version=method.version,
                    params=tuple(sorted(method.params.items())),
                    sparsity=sparsity,
                )
                yield Cell(spec, name, asked, dense[seed].run_id, facts_of(method))


def facts_of(method: Method) -> tuple[tuple[str, str], ...]:
    """What a record says of its method."""
    return ("name", method.name), ("supervision", method.supervision), ("cite", method.cite)


def plan(cells: Sequence[Cell], store: Store) -> list[Cell]:
    """The cells still to run: all but those whose record says ok. Failed ones are tried again.

    A dense model that is needed but no longer there (records travel without weights) is trained again.
    """
    open_cells = {cell.spec.run_id for cell in cells if store.status(cell.spec.run_id) != "ok"}
    needed = {cell.dense_id for cell in cells if cell.spec.run_id in open_cells}
    open_cells |= {run_id for run_id in needed if not store.has_model(run_id)}
    return [cell for cell in cells if cell.spec.run_id in open_cells]


def is_done(cell: Cell, store: Store) -> bool:
    """Whether a planned cell has been finished meanwhile, by another process."""
    ok = store.status(cell.spec.run_id) == "ok"
    return ok and (not cell.is_dense or store.has_model(cell.spec.run_id))
