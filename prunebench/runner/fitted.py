"""The result of a fit, as evaluation takes it: plain tensors and numbers; and the two ways to it, here or apart.

A built-in method fits in this process. A user's file fits in a process of its own (`apart`), which is sent what the
method declared; what comes back is judged here: steps by what was counted, the use of the dense model by whether it was
asked for, CPU seconds by the kernel.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunebench.data.images import Images, StreamedImages
from prunebench.data.transforms import TRIGGERS
from prunebench.errors import UsageError
from prunebench.inference.cascade import NOTES
from prunebench.methods.experiment import Experiment, Pruned, VisibleSplit
from prunebench.models.names import GROUP
from prunebench.models.nets import PRETRAINED, ModelName, find_imagenet_weights
from prunebench.plugins.files import source_files
from prunebench.plugins.plain import file_of
from prunebench.pruning.masks import Masks
from prunebench.pruning.wrapped import state_of
from prunebench.results.record import FITTED_NOTE, OVERSPENT_NOTE, REMOVED_NOTE, RunRecord
from prunebench.results.spec import hash_of
from prunebench.results.store import Store
from prunebench.runner.apart import ApartError, Request, ask, can_run_apart, jail_of
from prunebench.runner.described import absolute, files_of, is_users
from prunebench.runner.evaluate import TaskData
from prunebench.runner.exchange import (
    GarbledError,
    anonymous_file,
    closing_all,
    put_tensors,
    share_bytes,
    take_tensors,
)
from prunebench.runner.plan import PlannedRun, RunContext

Progress = Callable[[str, int, int, float], None]

CPU_NOTE = "fit_cpu_seconds"
"""Seconds of processor time that a method's process and all its children spent, by the kernel's account."""
STEPS_NOTE = "cpu_steps"
"""Those seconds in steps of the dense model, as they cost on this machine."""
DECLARED_NOTE = "declared_steps"
"""The steps that a method said it took, where more were counted."""
OVERSPENT, SLACK_STEPS = 3.0, 50
"""A run is noted whose processor time is that of more steps than this multiple of its own, and some more."""
MOST_NOTES = 200
LARGEST_STAGE = 8 << 30
ROOM = 64 << 20
"""Bytes that a result may have beyond four times the network's."""


@dataclass(frozen=True)
class Fitted:
    """What is evaluated: weights, masks, the threshold of a deferral; and what was reported with them."""

    state: Mapping[str, Tensor]
    masks: Masks
    threshold: float | None
    structured: bool
    notes: Mapping[str, float] = field(default_factory=dict)
    mined: Tensor | None = None

    @classmethod
    def of(cls, pruned: Pruned, experiment: Experiment) -> Fitted:
        """The result of a fit in this process."""
        deferral = pruned.deferral
        threshold = None if deferral is None else float(deferral.threshold)
        state = state_of(pruned.model)
        return cls(
            state, dict(pruned.masks), threshold, pruned.structured, experiment.notes, experiment.mined
        )


def run_apart(run: PlannedRun) -> bool:
    """Whether a run's method fits in a process of its own: a user's, where the system can fork."""
    return is_users(run.method) and can_run_apart()


def fit_apart(
    run: PlannedRun,
    context: RunContext,
    data: TaskData,
    experiment: Experiment,
    dense: Callable[[], dict[str, Tensor]],
    progress: Progress | None,
) -> Fitted:
    """Fit a user's method in a process of its own; its cost is charged to `experiment`.

    Raises ApartError where that process ends, hangs or answers nonsense, and the method's own error.
    """
    network = experiment.harness_model().state_dict().values()
    size = sum(value.numel() * value.element_size() for value in network)
    serve = _Service(run, context, dense, progress)
    with closing_all([]) as files, contextlib.closing(serve):
        message = _message(run, context, data, experiment, files)
        request = Request(message, files, context.timeout, serve.answer, 4 * size + ROOM)
        answer = ask(request)
    return _judged(
        answer.message, answer.tensors, answer.cpu_seconds, experiment, uses_dense=serve.gave_dense
    )


def _message(
    run: PlannedRun, context: RunContext, data: TaskData, experiment: Experiment, files: list[int]
) -> dict[str, Any]:
    """What the child is told, and the files with its images and labels."""
    supervision, gpu = dict(run.metadata)["supervision"], data.device.type != "cpu"
    own, weights, base = files_of(run.method), [], ModelName.parse(run.spec.model).base
    plain = file_of(GROUP, base)
    if plain is not None:
        own = [*own, *map(str, source_files(plain))]
    if base == PRETRAINED:
        weights = [str(find_imagenet_weights(context.data_root))]
    labels: dict[str, Tensor] = {}
    files.append(anonymous_file())
    seen = {
        "train": experiment.train_split,
        "val": experiment.val_split,
        "val_balanced": experiment._val_balanced,
    }
    splits = {name: split and _share(name, split, data, labels, files) for name, split in seen.items()}
    return splits | {
        "kind": "fit",
        "method": absolute(run.method),
        "method_files": own,
        "model_file": None if plain is None else str(plain),
        "jail": jail_of(own, sandbox=context.sandbox, weights=weights, gpu=gpu),
        "spec": run.spec.to_dict(),
        "device": data.device.type,
        "outputs": data.task.num_outputs,
        "labels": put_tensors(files[0], labels),
        "supervision": supervision,
        "conflicting_share": data.conflicting_share(supervision),
        "weights": weights,
    }


def _share(
    name: str, split: VisibleSplit, data: TaskData, labels: dict[str, Tensor], files: list[int]
) -> dict[str, Any]:
    """A split as the method sees it: labels into `labels`, images into a file of their own."""
    images: Images = split.images
    labels[f"{name}.y"] = split.y
    if split._bias is not None:
        labels[f"{name}.bias"] = split._bias
    overlay = data.overlays.get(name)
    if overlay is not None:
        labels[f"{name}.chosen"] = overlay.chosen
    view = images._view
    return share_bytes(images._bytes, files) | {
        "overlay": None
        if overlay is None
        else next(key for key, paint in TRIGGERS.items() if paint is overlay.paint),
        "streamed": isinstance(images, StreamedImages),
        "mean": list(data.task.mean),
        "std": list(data.task.std),
        "view": None if view is None else asdict(view),
        "needs": split._needs,
        "missing_groups": split.missing_groups,
    }


class _Service:
    """What a child may ask for: the dense model, and stages that the method's own runs share."""

    def __init__(
        self,
        run: PlannedRun,
        context: RunContext,
        dense: Callable[[], dict[str, Tensor]],
        progress: Progress | None,
    ) -> None:
        self.gave_dense = False
        self._dense, self._progress, self._store = dense, progress, Store(context.out)
        self._owner = run.spec.method_version.partition("-shuffled")[0]
        self._open: list[tuple[str, contextlib.ExitStack]] = []

    def close(self) -> None:
        """Give back the locks of stages that were never computed."""
        while self._open:
            self._open.pop()[1].close()

    def answer(self, message: Mapping[str, Any], out: int) -> dict[str, Tensor] | str | None:
        """Tensors, a word, or nothing; `out` is where the child wrote what it computed."""
        if message["kind"] == "progress":
            self._tell(message)
            return None
        if message["kind"] == "dense":
            self.gave_dense = True
            return self._dense()
        if message["kind"] == "stage":
            return self._stage(str(message.get("stage"))[:64])
        if message["kind"] == "computed" and self._open:
            stage, lock = self._open.pop()
            with lock:
                return self._store.keep_stage(stage, take_tensors(out, message.get("size"), LARGEST_STAGE))
        raise GarbledError(f"asked for {message['kind']!a:.40}, which is nothing that there is")

    def _stage(self, name: str) -> dict[str, Tensor] | str:
        """A stage of this file alone, under its lock: nobody reads or writes another method's."""
        stage, lock = hash_of({"file": self._owner, "stage": name}), contextlib.ExitStack()
        lock.enter_context(self._store.lock(f"stage-{stage}"))
        found = self._store.find_stage(stage)
        if found is None:
            self._open.append((stage, lock))
            return "compute"
        lock.close()
        return found

    def _tell(self, message: Mapping[str, Any]) -> None:
        if self._progress is None:
            return
        try:
            step, steps, loss = int(message["step"]), int(message["steps"]), float(message["loss"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise GarbledError("told of a progress that is none") from error
        self._progress(ascii(message.get("phase"))[1:-1][:40], step, steps, loss)


def _judged(
    message: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    cpu_seconds: float,
    experiment: Experiment,
    *,
    uses_dense: bool,
) -> Fitted:
    """What came back, held against what may come back; the cost, by what was counted."""
    declared, counted = (_whole(message.get(name)) for name in ("own_steps", "counted"))
    experiment.cost.own_steps = max(declared, counted, 0)
    experiment.cost.uses_dense = uses_dense or message.get("uses_dense") is True
    notes = _notes(message.get("notes"))
    notes[CPU_NOTE] = round(cpu_seconds, 3)
    if declared < counted:
        notes[DECLARED_NOTE] = float(declared)
    threshold = message.get("threshold")
    if threshold is not None and not (isinstance(threshold, float) and math.isfinite(threshold)):
        raise ApartError("the method returned a threshold that is no number")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "mask": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind in parts:
            parts[kind][rest] = value
    mined = tensors.get("mined")
    if mined is not None and (mined.dtype != torch.bool or mined.shape != (len(experiment.train_split),)):
        raise ApartError(f"the method reported mining of {tuple(mined.shape)} {mined.dtype}")
    return Fitted(parts["model"], parts["mask"], threshold, message.get("structured") is True, notes, mined)


def cpu_steps(
    dense: RunRecord | None, fitted: Fitted, environment: Mapping[str, Any], own_steps: int
) -> dict[str, float]:
    """The note of a method's processor time in steps, where the dense model was trained here; and if it is too much."""
    spent = fitted.notes.get(CPU_NOTE)
    if dense is None or spent is None:
        return {}
    steps = 0 if dense.cost is None else dense.cost.training_steps
    seconds = dense.notes.get(CPU_NOTE)
    same = all(dense.environment.get(name) == environment.get(name) for name in ("cpu", "device", "torch"))
    if not steps or not seconds or not same or environment.get("device") != "cpu":
        return {}
    equal = spent * steps / seconds
    over = (
        {OVERSPENT_NOTE: round(equal / max(own_steps, 1), 2)}
        if equal > OVERSPENT * own_steps + SLACK_STEPS
        else {}
    )
    return {STEPS_NOTE: round(equal, 1), **over}


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) > 1 << 53:
        raise ApartError(f"the method counted {value!a:.40} steps")
    return value


def _notes(values: Any) -> dict[str, float]:
    """What the method logged: numbers by short names, none of those that the harness writes."""
    if not isinstance(values, dict) or len(values) > MOST_NOTES:
        raise ApartError(f"the method logged more than {MOST_NOTES} numbers")
    reserved = (*NOTES, FITTED_NOTE, REMOVED_NOTE, CPU_NOTE, STEPS_NOTE, OVERSPENT_NOTE, DECLARED_NOTE)
    for name, value in values.items():
        if name in reserved:
            raise UsageError(f"log: {name} is written by the harness; choose another name")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApartError(f"the method logged {value!a:.40}, which is no number")
    return {name: float(value) for name, value in values.items()}
