"""One planned run becomes a record: the page that tells the whole story.

task splits -> dense model (its own run, shared) -> method.fit -> masks verified -> logits of val and test
-> latency, memory -> record and outputs
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from prunebench_kernels.measured import torch_threads
from torch import nn

from prunebench.errors import MaskError, PruneBenchError, UsageError
from prunebench.inference.cascade import TEST_NOTE, Cascade, Deferral
from prunebench.inference.latency import reset_peak_memory
from prunebench.methods.api import Method
from prunebench.methods.experiment import Experiment, ExperimentContext, Pruned, VisibleSplit
from prunebench.methods.fitting import check_returned, ending_raises, warm_up
from prunebench.methods.isolation import kept
from prunebench.models import Classifier, narrowed
from prunebench.models.checkpoints import checkpoint_digest, load_checkpoint
from prunebench.models.nets import ModelName
from prunebench.pruning.masks import count_zeros, verify, whole_masks
from prunebench.pruning.wrapped import state_of
from prunebench.report import format as fmt
from prunebench.results.record import SCHEMA_VERSION, RunRecord, SparsityReport
from prunebench.results.store import Store
from prunebench.runner.described import find_method, is_users
from prunebench.runner.environment import describe_code, describe_environment
from prunebench.runner.evaluate import (
    TaskData,
    measure_cost,
    measure_deferral,
    measure_fit,
    measure_mining,
    measure_outputs,
    measure_removal,
)
from prunebench.runner.fitted import CPU_NOTE, Fitted, Progress, cpu_steps, fit_apart, run_apart
from prunebench.runner.plan import PlannedRun, RunContext
from prunebench.tasks.base import data_withheld
from prunebench.training.loop import resolve_precision

OUTSIDE_NOTE = "trained_outside"
"""The note of a dense run whose weights come from a checkpoint."""
MISSING_NOTE = "val_groups_missing"
"""The note of how many (label, bias) groups a method that was given balanced validation could not see in it."""
LONGEST_REASON, LONGEST_TRACEBACK = 1500, 15_000
"""Characters that a record keeps of an error."""


def execute(
    run: PlannedRun, context: RunContext, data: TaskData, progress: Progress | None = None
) -> RunRecord:
    """Run one run and write its record, whatever happens inside it.

    Raises StoreError only when the record itself cannot be written.
    """
    store = Store(context.out)
    dense = None if run.is_dense else store.find(run.dense_id)
    problem = None if run.is_dense else _dense_problem(run, context, dense)
    if problem is not None:
        return store.write(replace(begin_record(run, context), status="skipped", reason=problem))
    try:
        with one_thread(data.device):
            return _fit_and_measure(run, context, data, dense, progress)
    except Exception as error:
        return record_failure(run, context, error)


def record_failure(run: PlannedRun, context: RunContext, error: Exception | str) -> RunRecord:
    """Record that a run failed, with the traceback if there is one."""
    record = begin_record(run, context)
    if isinstance(error, Exception):
        trace = getattr(error, "trace", None) or "".join(traceback.format_exception(error))
        reason = str(error) if isinstance(error, PruneBenchError) else f"{type(error).__name__}: {error}"
        record = replace(record, reason=shortened(reason), traceback=shortened(trace, LONGEST_TRACEBACK))
    else:
        record = replace(record, reason=shortened(error))
    return Store(context.out).write(record)


def shortened(text: str, most: int = LONGEST_REASON) -> str:
    """The text without control characters that steer a terminal, and of long ones the beginning and the end."""
    text = fmt.visible(text, kept="\n\t")
    if len(text) <= most:
        return text
    cut = f" ... ({len(text) - most} characters left out) ... "
    half = (most - len(cut)) // 2
    return text[:half] + cut + text[-half:]


def begin_record(run: PlannedRun, context: RunContext) -> RunRecord:
    """A record with all that is known before anything has run."""
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run.spec.run_id,
        status="failed",
        spec=run.spec.to_dict(),
        method=dict(run.metadata),
        started_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        environment=describe_environment(context.device, run.spec.recipe.precision)
        | _confinement(run, context),
        code=describe_code(),
    )


def _confinement(run: PlannedRun, context: RunContext) -> dict[str, str | int | None]:
    """What a record says of how a user's method was kept from what is withheld."""
    if not is_users(run.method):
        return {}
    return {
        "isolation": "own process" if run_apart(run) else "none",
        "sandbox": "yes" if context.sandbox and run_apart(run) else "no",
    }


def _dense_problem(run: PlannedRun, context: RunContext, dense: RunRecord | None) -> str | None:
    """Why the dense model cannot be used, if so."""
    if dense is None or dense.status != "ok":
        return f"its dense model (run {run.dense_id}) is not done"
    there = dense.environment.get("precision")
    here = resolve_precision(run.spec.recipe.precision, torch.device(context.device))
    if there != here:
        return f"its dense model was trained in {there}, this machine trains in {here}: use another --out"
    return None


def _current_method(run: PlannedRun, context: RunContext) -> Method:
    method = find_method(run.method, sandbox=context.sandbox)
    if (method.name, method.version) != (run.spec.method, run.spec.method_version):
        raise UsageError(f"{run.method} changed since the run was planned; run the same command again")
    return method.with_params(dict(run.spec.params))


def _fit_and_measure(
    run: PlannedRun,
    context: RunContext,
    data: TaskData,
    dense: RunRecord | None,
    progress: Progress | None,
) -> RunRecord:
    """A run from its method to its record; `dense` is the record of its dense model, unless it is one itself."""
    method, record = _current_method(run, context), begin_record(run, context)
    seconds: dict[str, float] = {"data": data.seconds}
    store, spec, device = Store(context.out), run.spec, data.device
    reset_peak_memory(device)
    dense_state = functools.partial(_dense_state, store, run)
    balanced = data.visible_balanced(method.supervision)
    experiment = Experiment(
        spec,
        data.task.num_outputs,
        data.visible("train", method.supervision),
        data.visible("val", method.supervision),
        ExperimentContext(store, dense_state, context.data_root, progress),
        conflicting_share=data.conflicting_share(method.supervision),
        supervision=method.supervision,
        val_balanced=balanced,
    )
    with _timed(seconds, "fit"):
        if run_apart(run):
            fitted = fit_apart(run, context, data, experiment, dense_state, progress)
        else:
            fitted = _fit_here(run, context, data, method, experiment)
    with _timed(seconds, "verify"):
        model = _as_the_tasks_network(experiment, fitted)
        masks = {name: mask.to(device) for name, mask in fitted.masks.items()}
        report = verify(model, masks, None if method.native or fitted.structured else spec.sparsity)
        report = report if method.dense or method.unpruned else count_zeros(model, report)
        removed: dict[str, float] = {}
        if fitted.structured:
            report, removed = measure_removal(experiment.harness_model(), model, report, spec.sparsity, data)
    with _timed(seconds, "evaluate"):
        measured, deferred = _with_deferral(experiment, model, fitted.threshold, data)
        outputs, tables, metrics, validation = measure_outputs(measured, data)
        learned = measure_fit(measured, data)
    with _timed(seconds, "cost"):
        spent = cpu_steps(dense, fitted, record.environment, experiment.cost.own_steps)
        steps = (experiment.training_steps, spec.recipe.steps)
        share = deferred.get(TEST_NOTE, 0.0)
        cost = measure_cost(
            experiment.harness_model(),
            measured,
            data,
            *steps,
            deferred_share=share,
            latency_skipped=context.latency_skipped,
        )
    record = replace(
        record,
        status="ok",
        phase_seconds=seconds,
        splits_hash=data.labels.splits_hash,
        sparsity=SparsityReport(**asdict(report)),
        groups=tables,
        metrics=metrics,
        validation=validation,
        mining=measure_mining(fitted.mined, data),
        cost=cost,
        notes={
            **fitted.notes,
            **spent,
            **learned,
            **deferred,
            **removed,
            **_remarkable(run, experiment, balanced),
        },
    )
    keep = run.is_dense or context.keep_models
    return store.write(record, outputs, model=state_of(model) if keep else None)


def _remarkable(run: PlannedRun, experiment: Experiment, balanced: VisibleSplit | None) -> dict[str, float]:
    """Notes that the weights come from outside, and how many groups balanced validation has no image of."""
    missing = 0 if balanced is None else len(balanced.missing_groups)
    given = run.is_dense and experiment.trained_outside
    return {**({OUTSIDE_NOTE: 1.0} if given else {}), **({MISSING_NOTE: float(missing)} if missing else {})}


def _fit_here(
    run: PlannedRun, context: RunContext, data: TaskData, method: Method, experiment: Experiment
) -> Fitted:
    """Fit a built-in method in this process, with torch's state kept and no task to be loaded."""
    spec = run.spec
    given = run.is_dense and experiment.trained_outside
    warm_up()
    start = time.process_time()
    with data_withheld(), kept(spec.seed), ending_raises(method.name):
        fit = functools.partial(_take_checkpoint, context) if given else method.fit
        pruned = check_returned(method, fit(experiment, spec.sparsity or 0.0))
        if not data.intact:
            raise PruneBenchError(
                f"method {method.name!r} changed the images in place; other runs share them: change a copy"
            )
    fitted = Fitted.of(pruned, experiment)
    spent = round(time.process_time() - start, 3)
    return replace(fitted, notes={**fitted.notes, CPU_NOTE: spent})


def _take_checkpoint(context: RunContext, experiment: Experiment, _: float) -> Pruned:
    """The dense model as it was trained outside, in no step here. Raises UsageError for another file than planned."""
    planned = ModelName.parse(experiment.spec.model).outside
    if context.dense is None or checkpoint_digest(context.dense) != planned:
        raise UsageError(
            f"the dense model is a checkpoint (its hash begins with {planned}): give that file with --dense PATH"
        )
    model = load_checkpoint(context.dense, experiment.new_model())
    return Pruned(model, whole_masks(model))


def _as_the_tasks_network(experiment: Experiment, fitted: Fitted) -> Classifier:
    """The returned weights in a fresh network of the task: what is measured holds nothing else.

    Of a structured result the network has the channels that are left.
    """
    net, state = experiment.harness_model(), fitted.state
    if fitted.structured:
        narrowed(net, state)
    try:
        net.load_state_dict({name: value.to(experiment.device) for name, value in state.items()})
        return net
    except RuntimeError as error:
        raise MaskError(
            "fit must return the task's network with its own layers (one with fewer channels as "
            f"Pruned(model, masks, structured=True)): {error}"
        ) from error


def _with_deferral(
    experiment: Experiment, model: Classifier, threshold: float | None, data: TaskData
) -> tuple[nn.Module, dict[str, float]]:
    """What answers: the model, or the model with the shared dense one behind it (then charged); and notes of it."""
    if threshold is None:
        return model, {}
    multi_label = data.task.attributes is not None
    deferral = Deferral(threshold)  # a number is all that comes from the method
    dense = experiment.dense_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stages = Cascade(model, dense, deferral, multi_label=multi_label)
    return stages, measure_deferral(stages, data)


def _dense_state(store: Store, run: PlannedRun) -> dict[str, torch.Tensor]:
    return store.read_tensors(run.dense_id, "model")


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One torch thread on a CPU: with more, the same spec sometimes gave other bits (seen with bf16 and two)."""
    with torch_threads(1) if device.type == "cpu" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = round(time.perf_counter() - start, 3)
