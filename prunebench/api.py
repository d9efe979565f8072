"""PruneBench from Python: run a suite, load results."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.errors import StoreError, UsageError
from prunebench.plugins.plain import use_model
from prunebench.results.store import CorruptRecord, Store, open_results
from prunebench.suites import Suite, load_suite

if TYPE_CHECKING:
    import polars

    from prunebench.runner.local import Event, InlineLauncher, LocalLauncher
    from prunebench.runner.plan import PlannedRun, RunContext
    from prunebench.runner.ray import Cluster, RayLauncher
    from prunebench.runner.shard import Shard

    Launcher = LocalLauncher | InlineLauncher | RayLauncher


@dataclass(frozen=True)
class SuitePlan:
    """What a run would do: all runs, those still to run, and records that cannot be read."""

    suite: Suite
    context: RunContext
    runs: list[PlannedRun]
    todo: list[PlannedRun]
    damaged: list[CorruptRecord]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: counts of this call, and where the results are."""

    out: Path
    planned: int
    reused: int
    ok: int
    failed: int
    problem: str | None = None
    """Why the board links to no analysis, where one is stored that cannot be read."""


def make_plan(  # noqa: PLR0913
    suite: str | Suite,
    *,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    keep_models: bool = True,
    dense: str | Path | None = None,
    sandbox: bool = False,
    timeout: float | None = None,
    cluster: Cluster | None = None,
    shard: Shard | None = None,
) -> SuitePlan:
    """Expand a suite and see what is left to do; trains nothing, writes nothing but a large folder's index.

    `dense` is a checkpoint (`.safetensors`) that stands for the dense model of the suite's one task. Methods of users'
    files run in a `sandbox` if asked for, and are ended after `timeout` seconds. Raises UsageError where it cannot be.
    `cluster` says where the device is looked for; of a `shard`, its part of the runs is planned alone.
    Names are checked before torch is imported: a misspelt one is answered at once. A suite's model may be of your own
    file, `my_net.py:FUNCTION`, which then stands for a package in this process and its children.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    if suite.model is not None:
        suite = replace(suite, model=use_model(suite.model))
    check_names(suite)
    _start_early(suite)
    from prunebench.runner.environment import requested_kernels
    from prunebench.runner.jail import check_sandbox
    from prunebench.runner.plan import RunContext, expand, plan

    requested_kernels()
    root = data_root or os.environ.get("PRUNEBENCH_DATA") or None
    context = RunContext(
        Path(out) if out is not None else Path("results") / suite.name,
        None if root is None else Path(root),
        choose_device(device) if cluster is None else cluster.choose_device(device),
        keep_models,
        dense=None if dense is None else Path(dense).absolute(),
        sandbox=sandbox,
        timeout=timeout,
    )
    if sandbox:
        check_sandbox()
    store = Store(context.out)
    runs = expand(suite, context.data_root, context.dense, sandbox=sandbox)
    runs = runs if shard is None else shard.part(runs)
    statuses, damaged = store.statuses()
    for entry in damaged:
        if entry.newer:
            raise StoreError(f"{entry.reason}, or choose another --out")
    return SuitePlan(suite, context, runs, plan(runs, store, statuses), damaged)


def _start_early(suite: Suite) -> None:
    """Start the fork server of users' files, if there are any, while torch is imported here."""
    from prunebench.runner.apart import can_run_apart, fork_server

    if can_run_apart() and any(method.endswith(".py") or Path(method).is_dir() for method in suite.methods):
        fork_server()


def check_names(suite: Suite) -> None:
    """Raise UsageError, with a suggestion, for a task, method or model that does not exist. Imports none of them."""
    from prunebench.methods.discovery import check_method_name
    from prunebench.models.names import ModelName
    from prunebench.tasks.registry import find_family

    for task in suite.tasks:
        find_family(task)
    for method in suite.methods:
        check_method_name(method)
    if suite.model is not None:
        ModelName.parse(suite.model)


def choose_device(device: str) -> str:
    """`auto` is the GPU if there is one. Raises UsageError for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}: use auto, cpu or cuda") from error
    if device not in ("cpu", "cuda"):
        raise UsageError(
            f"device {device!r} is not supported: use auto, cpu or cuda (CUDA_VISIBLE_DEVICES picks GPUs)"
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return device


def make_launcher(
    context: RunContext, workers: int | None, *, cluster: Cluster | None = None, cells_per_gpu: int = 1
) -> Launcher:
    """Worker processes: by default one a core, or `cells_per_gpu` a GPU; `workers=0` runs in this process.

    With a `cluster`, its tasks: as many at a time as it has room for.
    """
    import torch

    from prunebench.inference.busy import count_cores
    from prunebench.runner.local import InlineLauncher, LocalLauncher

    if cluster is not None:
        from prunebench.runner.ray import RayLauncher

        return RayLauncher(cluster, context.device)
    if workers == 0:
        return InlineLauncher()
    gpus = torch.cuda.device_count() if context.device == "cuda" else 0
    return LocalLauncher(workers or gpus * cells_per_gpu or count_cores(), gpus=gpus)


def execute_plan(
    plan: SuitePlan,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    launcher: Launcher | None = None,
) -> Outcome:
    """Run what is left of a plan, by a `launcher` or in `workers` processes.

    Raises StoreError when results cannot be written.
    """
    Store(plan.context.out).prepare()
    ok = failed = 0
    if plan.todo:
        launcher = launcher or make_launcher(plan.context, workers)
        for event in launcher.map(plan.todo, plan.context):
            if event.kind == "fatal":
                raise StoreError(event.values["reason"])
            if event.kind == "done":
                ok += event.values["status"] == "ok"
                failed += event.values["status"] != "ok"
            if on_event is not None:
                on_event(event)
    return Outcome(plan.context.out, len(plan.runs), len(plan.runs) - len(plan.todo), ok, failed)


def run_plan(
    plan: SuitePlan,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    launcher: Launcher | None = None,
) -> Outcome:
    """Run what is left of a plan and write the board of the whole folder; `on_event` hears of everything."""
    from prunebench.analysis.report import build_after_run

    outcome = execute_plan(plan, workers=workers, on_event=on_event, launcher=launcher)
    records = Store(outcome.out).records()[0]
    return replace(outcome, problem=build_after_run(records, outcome.out, outcome.out / "leaderboard"))


def run(  # noqa: PLR0913
    suite: str | Suite,
    *,
    out: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    tasks: Sequence[str] = (),
    methods: Sequence[str] = (),
    sparsities: Sequence[float] = (),
    seeds: Sequence[int] = (),
    settings: Sequence[str] = (),
    on_event: Callable[[Event], None] | None = None,
) -> Outcome:
    """Run a suite (a packaged name, a TOML path or a `Suite`) and write its leaderboard.

    Calling it again resumes. `tasks`, `methods`, `sparsities` and `seeds` replace the suite's own lists;
    `settings` are `method.key=value`, as behind `--set`. Raises
    `prunebench.errors.PruneBenchError` with a message that names the fix.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    suite = suite.narrowed(tasks=tasks, methods=methods, sparsities=sparsities, seeds=seeds)
    suite = suite.with_settings(settings)
    plan = make_plan(suite, out=out, data_root=data_root, device=device)
    outcome = run_plan(plan, workers=workers, on_event=on_event)
    if outcome.problem is not None:
        warnings.warn(f"the board links to no analysis: {outcome.problem}", stacklevel=2)
    return outcome


def load_results(path: str | Path) -> polars.DataFrame:
    """Results as a polars frame, one row a run: spec, status, metrics, sparsity, cost. Empty if there are none.

    Metrics of failed runs are null. A damaged record is left out with a warning that names it. Raises StoreError
    for a folder without results.
    """
    from prunebench.results.frame import load_frame

    frame, damaged = load_frame(open_results(Path(path)))
    for entry in damaged:
        warnings.warn(f"left out: {entry.reason}", stacklevel=2)
    return frame
