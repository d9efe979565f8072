"""Facts of a record's task and model, known without training: labels, layers, parameters, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from prunebench.errors import PruneBenchError
from prunebench.inference.cost import count_macs, count_parameters
from prunebench.models import build_model
from prunebench.pruning.masks import keep_count, prunable
from prunebench.runner.ground_truth import GroundTruth
from prunebench.tasks import Task, resolve_task


class TaskFacts:
    """A task that is known here; its labels, and the shape that a network sees, where its data are at hand."""

    def __init__(self, task: Task, data_root: Path | None) -> None:
        self._task, self._root = task, data_root
        self.name, self.version, self.outputs = task.name, task.version, task.num_outputs
        self._labels: dict[int, GroundTruth | None] = {}
        self.shape: tuple[int, ...] | None = None
        self.labels(0)
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str | None:
        """The hash of its data; None where they are not at hand."""
        try:
            return self._task.fingerprint(self._root)
        except PruneBenchError:
            return None

    def labels(self, seed: int) -> GroundTruth | None:
        """The labels of a draw; None where the data are not at hand."""
        if seed not in self._labels:
            try:
                splits = self._task.splits(self._root, seed)
            except PruneBenchError:
                self._labels[seed] = None
            else:
                view = self._task.view
                self.shape = tuple(splits.test.x.shape[1:]) if view is None else (3, view.crop, view.crop)
                self._labels[seed] = GroundTruth.of(self._task, splits)
        return self._labels[seed]


@dataclass(frozen=True)
class ModelFacts:
    """Weights of each prunable layer, and all parameters."""

    sizes: Mapping[str, int]
    parameters: int

    def keep(self, sparsity: float) -> int:
        """How many weights a sparsity leaves."""
        return keep_count(sum(self.sizes.values()), sparsity)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image, in all and by prunable layer; `rest` is what no sparsity saves."""

    total: int
    by_layer: Mapping[str, int] = field(default_factory=dict)
    rest: int = 0

    def left(self, alive: Mapping[str, int], sizes: Mapping[str, int]) -> int:
        """What the non-zero weights take: each is used equally often within its layer."""
        return self.rest + sum(self.by_layer[name] * alive[name] // sizes[name] for name in self.by_layer)


class RecordFacts:
    """Facts of tasks and models, each worked out once."""

    def __init__(self, data_root: Path | None) -> None:
        self._root = data_root
        self._tasks: dict[str, TaskFacts | None] = {}
        self._models: dict[tuple[str, int], ModelFacts | None] = {}
        self._macs: dict[tuple[str, str], Macs] = {}

    def task(self, name: str) -> TaskFacts | None:
        """The task of this name; None where it is unknown here, as somebody's own folder is."""
        if name not in self._tasks:
            try:
                task = resolve_task(name, self._root)
                self._tasks[name] = TaskFacts(task, self._root) if task.name == name else None
            except (PruneBenchError, OSError, ValueError):
                self._tasks[name] = None
        return self._tasks[name]

    def model(self, name: str, task: TaskFacts) -> ModelFacts | None:
        """The layers of a model with the task's outputs; None where it is unknown."""
        key = (name, task.outputs)
        if key not in self._models:
            try:
                net = build_model(_untrained(name), task.outputs, seed=0)
            except PruneBenchError:
                self._models[key] = None
            else:
                sizes = {layer: weight.numel() for layer, weight in prunable(net).items()}
                self._models[key] = ModelFacts(sizes, count_parameters(net)[0])
        return self._models[key]

    @torch.no_grad()
    def macs(self, name: str, task: TaskFacts) -> Macs:
        """The multiply-accumulates of a model on the task's images."""
        assert task.shape is not None
        key = (name, task.name)
        if key not in self._macs:
            net, image = build_model(_untrained(name), task.outputs, seed=0), torch.zeros(1, *task.shape)
            weights = prunable(net)
            for weight in weights.values():
                weight.zero_()
            total, rest = count_macs(net, image)
            by_layer = {}
            for layer, weight in weights.items():
                weight.fill_(1)
                by_layer[layer] = count_macs(net, image)[1] - rest
                weight.zero_()
            self._macs[key] = Macs(total, by_layer, rest)
        return self._macs[key]


def _untrained(name: str) -> str:
    """The same network without pretrained weights, which need a file."""
    return "resnet18-imagenet" if name.startswith("resnet18-pretrained") else name
