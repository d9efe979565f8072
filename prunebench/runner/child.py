"""A method's process: it holds what the method declared, runs the user's file, and sends back plain tensors.

It runs after `forkserver` forked it. What it says of itself (steps, notes) is a claim; `apart` judges it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunebench.data.images import Images, StreamedImages
from prunebench.data.transforms import TRIGGERS, ImageTransform
from prunebench.errors import PruneBenchError, SupervisionError, UsageError
from prunebench.methods.api import Method
from prunebench.methods.counting import watching_engine
from prunebench.methods.discovery import SHUFFLED, file_methods, resolve_method
from prunebench.methods.experiment import Experiment, ExperimentContext, Pruned, TrainingCost, VisibleSplit
from prunebench.methods.fitting import check_returned, ending_raises
from prunebench.methods.isolation import kept
from prunebench.plugins.plain import use_file
from prunebench.pruning.wrapped import state_of
from prunebench.results.spec import RunSpec, View
from prunebench.runner.exchange import Channel, map_bytes, put_tensors, take_tensors

LARGEST = 1 << 40
"""Bytes of tensors that a method takes from the harness: any."""


class WithheldTasks(MetaPathFinder):
    """Refuses the import of tasks: they could draw what is withheld."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raises SupervisionError for a module of `prunebench.tasks`; leaves others to the next finder."""
        if fullname == "prunebench.tasks" or fullname.startswith("prunebench.tasks."):
            raise SupervisionError(
                "the test split and the bias labels are withheld from methods: "
                "work with the `experiment` that `fit` receives instead of loading the task"
            )


class Ledger(TrainingCost):
    """A training cost that remembers all that was ever added: what is subtracted stays spent."""

    spent = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "own_steps":
            super().__setattr__("spent", self.spent + max(value - getattr(self, name, 0), 0))
        super().__setattr__(name, value)


class Harness:
    """The way to the process that holds the rest: dense model, shared stages, progress."""

    def __init__(self, talk: Channel, file: int) -> None:
        self._talk, self._file = talk, file

    def dense(self) -> dict[str, Tensor]:
        """The weights of the dense model of this task and seed."""
        return self._ask({"kind": "dense"})[1]

    def shared(self, stage_id: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """As `Store.shared`: the stage as it is kept, or computed here and kept there."""
        answer, tensors = self._ask({"kind": "stage", "stage": stage_id})
        if answer == "compute":
            size = put_tensors(self._file, compute())
            tensors = self._ask({"kind": "computed", "size": size})[1]
        return tensors

    def progress(self, phase: str, step: int, steps: int, loss: float) -> None:
        """Tell how far a training is."""
        self._talk.send({"kind": "progress", "phase": phase, "step": step, "steps": steps, "loss": loss})

    def give(self, message: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """The last message, with tensors."""
        size = 0 if tensors is None else put_tensors(self._file, tensors)
        self._talk.send({**message, "size": size})

    def _ask(self, message: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
        self._talk.send(message)
        answer = self._talk.receive()
        if answer is None:
            os._exit(1)
        values, files = answer
        if values["kind"] == "problem":
            raise PruneBenchError(values["reason"])
        tensors = take_tensors(files[0], values["size"], LARGEST) if files else {}
        for file in files:
            os.close(file)
        return values["kind"], tensors


def run_child(request: Mapping[str, Any], talk: Channel, out: int, shared: Sequence[int]) -> None:
    """Do what is asked and send the answer: `described`, `fitted` or `failed`."""
    harness = Harness(talk, out)
    jobs: dict[str, Callable[[], tuple[dict[str, Any], dict[str, Tensor] | None]]] = {
        "describe": lambda: (_describe(request), None),
        "names": lambda: (_names(request), None),
        "fit": lambda: _fit(request, harness, shared),
    }
    try:
        answer = jobs[request["kind"]]()
    except BaseException as error:  # whatever the method raises becomes the reason of its failure
        trace = "".join(traceback.format_exception(error))
        ours = isinstance(error, PruneBenchError)
        reason = str(error) if ours else f"{type(error).__name__}: {error}"
        answer = (
            {"kind": "failed", "reason": reason[:20_000], "trace": trace[-40_000:], "error": _name(error)},
            None,
        )
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    harness.give(*answer)


def _name(error: BaseException) -> str:
    return type(error).__name__ if isinstance(error, PruneBenchError) else ""


def _describe(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a method declares, with some settings changed, and that it can be built with them."""
    method = resolve_method(request["method"])
    facts = method.facts()
    method = method.with_params(request["changes"] or {})
    try:
        method.build(**method.params)
    except (TypeError, ValueError) as error:
        raise UsageError(f"settings of {method.name}: {error}") from error
    return {"kind": "described", "facts": facts, "params": method.params}


def _names(request: Mapping[str, Any]) -> dict[str, Any]:
    """The methods that a file holds."""
    place = request["method"].removeprefix(SHUFFLED)
    return {"kind": "described", "names": list(file_methods(Path(place)))}


def _fit(
    request: Mapping[str, Any], harness: Harness, shared: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    spec, device = RunSpec.from_dict(request["spec"]), torch.device(request["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    labels = take_tensors(shared[0], request["labels"], LARGEST)
    waiting = iter(shared[1:])
    train, val, balanced = (
        _split(request[name], labels, name, next(waiting), device) if request[name] else None
        for name in ("train", "val", "val_balanced")
    )
    assert train is not None and val is not None  # noqa: PT018
    for file in shared:
        os.close(file)
    sys.meta_path.insert(0, WithheldTasks())
    if request.get("model_file"):
        use_file(Path(request["model_file"]))
    with kept(spec.seed), ending_raises(spec.method):
        method = _planned(request["method"], spec)
        experiment = Experiment(
            spec,
            request["outputs"],
            train,
            val,
            ExperimentContext(harness, harness.dense, _place_weights(request["weights"]), harness.progress),
            conflicting_share=request["conflicting_share"],
            supervision=request["supervision"],
            val_balanced=balanced,
        )
        written = _writes(train, val)
        ledger = experiment.cost = Ledger()
        with watching_engine() as runs:
            pruned = check_returned(method, method.fit(experiment, spec.sparsity or 0.0))
        if _writes(train, val) != written:
            raise PruneBenchError(
                f"method {method.name!r} changed the images in place; other runs share them: change a copy"
            )
        unseen = max(runs.count - experiment._backward.total, 0)
        return _result(experiment, pruned, ledger.spent + unseen), _tensors(experiment, pruned)


def _place_weights(weights: Sequence[str]) -> Path | None:
    """Let a pretrained network find its weights, in the `weights` of a data root or in torch's own folder."""
    for path in map(Path, weights):
        if path.parent.name == "weights":
            return path.parent.parent
        os.environ["TORCH_HOME"] = str(path.parent.parent.parent)
    return None


def _planned(name: str, spec: RunSpec) -> Method:
    method = resolve_method(name)
    if (method.name, method.version) != (spec.method, spec.method_version):
        raise PruneBenchError(f"{name} changed since the run was planned; run the same command again")
    return method.with_params(dict(spec.params))


def _split(
    values: Mapping[str, Any], labels: Mapping[str, Tensor], name: str, file: int, device: torch.device
) -> VisibleSplit:
    pixels = map_bytes(file, values["shape"], values["offset"])
    overlay = None
    if values["overlay"] is not None:
        overlay = ImageTransform(labels[f"{name}.chosen"], TRIGGERS[values["overlay"]])
    kind = StreamedImages if values["streamed"] else Images
    images = kind(
        pixels.permute(0, 3, 1, 2),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        device=device,
        view=None if values["view"] is None else View(**values["view"]),
        overlay=overlay,
    )
    bias = labels.get(f"{name}.bias")
    missing = tuple((label, kind) for label, kind in values["missing_groups"])
    return VisibleSplit(
        images, labels[f"{name}.y"], bias, name=name, needs=values["needs"], missing_groups=missing
    )


def _writes(*splits: VisibleSplit) -> list[int]:
    return [split.images._bytes._version for split in splits]


def _result(experiment: Experiment, pruned: Pruned, counted: int) -> dict[str, Any]:
    deferral = pruned.deferral
    return {
        "kind": "fitted",
        "own_steps": experiment.cost.own_steps,
        "uses_dense": bool(experiment.cost.uses_dense),
        "counted": counted,
        "notes": experiment.notes,
        "threshold": None if deferral is None else float(deferral.threshold),
        "structured": bool(pruned.structured),
    }


def _tensors(experiment: Experiment, pruned: Pruned) -> dict[str, Tensor]:
    mined = {} if experiment.mined is None else {"mined": experiment.mined}
    return (
        {f"model/{name}": value for name, value in state_of(pruned.model).items()}
        | {f"mask/{name}": mask for name, mask in pruned.masks.items()}
        | mined
    )
