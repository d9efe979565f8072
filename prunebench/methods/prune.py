"""Score, allocate, schedule: the procedure behind every pruning criterion."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunebench.errors import unknown
from prunebench.experiment import Experiment, Pruned
from prunebench.pruning.allocation import ALLOCATIONS
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable
from prunebench.pruning.schedule import SCHEDULES, cubic_sparsity, pruning_steps
from prunebench.registry import Criterion, Method, defaults_of

STARTS = ("dense", "init")


@dataclass(frozen=True)
class Prune:
    """Prune by a criterion, at once or gradually.

    From the dense model (`start="dense"`) the budget is the fine-tuning steps; from initialisation it is the
    training and fine-tuning steps together. `cubic` prunes `events` times between the `begin` and `end` shares
    of the budget; 8 events from 1/8 to 4/5 is the Iofinova et al. protocol (epochs 10, 20, ... 80 of 100).
    """

    allocation: str = "global"
    schedule: str = "one-shot"
    start: str = "dense"
    initial: float = 0.05
    events: int = 8
    begin: float = 0.1
    end: float = 0.8
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        checks = (("allocation", ALLOCATIONS), ("schedule", SCHEDULES), ("start", STARTS))
        for kind, known in checks:
            if getattr(self, kind) not in known:
                raise unknown(kind, str(getattr(self, kind)), known)
        if not 0 <= self.begin <= self.end <= 1 or not 0 <= self.initial < 1 or self.events < 1:
            raise ValueError("want 0 <= begin <= end <= 1, 0 <= initial < 1 and events >= 1")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        from_init = self.start == "init"
        model = experiment.new_model() if from_init else experiment.dense_model()
        recipe = experiment.recipe
        steps = recipe.finetune_steps + (recipe.steps if from_init else 0)
        lr = recipe.lr if from_init else recipe.finetune_lr
        if self.schedule == "cubic":
            return self._prune_gradually(experiment, model, sparsity, steps, lr)
        masks = self._masks(experiment, model, sparsity)
        apply_masks(model, masks)
        experiment.train(model, steps=steps, lr=lr, name=f"{self.start}/sparse", masks=masks)
        return Pruned(model, masks)

    def _masks(self, experiment: Experiment, model: nn.Module, sparsity: float) -> Masks:
        assert self.criterion is not None
        scores = experiment.scores(self.criterion, model)  # type: ignore[arg-type]
        return make_masks(scores, sparsity, allocation=self.allocation, weights=prunable(model))

    def _prune_gradually(
        self, experiment: Experiment, model: nn.Module, sparsity: float, steps: int, lr: float
    ) -> Pruned:
        times = pruning_steps(steps, begin=self.begin, end=self.end, events=self.events)
        initial = min(self.initial, sparsity)
        current: Masks = {}

        def prune(step: int) -> Mapping[str, Tensor] | None:
            if step not in times:
                return None
            target = cubic_sparsity(step, begin=times[0], end=times[-1], final=sparsity, initial=initial)
            current.update(self._masks(experiment, model, target))
            return current

        experiment.train(model, steps=steps, lr=lr, name=f"{self.start}/gradual", after_step=prune)
        return Pruned(model, current)  # type: ignore[arg-type]


def prune_by(criterion: Criterion, name: str = "", *, cite: str = "", **settings: Any) -> Method:
    """The method that prunes by `criterion` with other settings, under another name.

    `allocation`, `schedule` and `start` are chosen by name; see `Prune`.
    """
    defaults = {key: value for key, value in defaults_of(Prune).items() if key != "criterion"}
    defaults["start"] = criterion.at
    build = functools.partial(Prune, criterion=criterion)
    cite = cite or criterion.cite
    entry = Method(
        name or criterion.name,
        cite,
        "none",
        criterion.version,
        build,
        defaults,
        relevant=relevant,
        multi_label=True,
    )
    entry = entry.with_params(settings)
    entry.build(**entry.params)
    return entry


def relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter: one-shot pruning has no gradual ones."""
    gradual = ("initial", "events", "begin", "end")
    return {
        key: value
        for key, value in settings.items()
        if settings["schedule"] != "one-shot" or key not in gradual
    }
