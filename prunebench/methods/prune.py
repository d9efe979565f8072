"""Score, allocate, schedule: the procedure behind every pruning criterion."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunebench.errors import unknown
from prunebench.methods.api import Method, defaults_of
from prunebench.methods.criteria import Criterion
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.distribution import ALLOCATIONS
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable
from prunebench.pruning.schedule import SCHEDULES, pruning_steps, pruning_targets
from prunebench.results.spec import LR_SCHEDULES, OPTIMIZERS

STARTS = ("dense", "init")
BUDGETS = ("steps", "finetune_steps")


@dataclass(frozen=True)
class Prune:
    """Prune by a criterion, at once or gradually.

    From the dense model (`start="dense"`) the budget is the fine-tuning steps; from initialisation it is the
    training and fine-tuning steps together. `cubic` prunes `events` times between the `begin` and `end` shares
    of the budget; 8 events from 1/10 to 4/5 is the Iofinova et al. protocol (epochs 10, 20, ... 80 of 100).

    The settings that are None follow from the others or from the recipe, and name no run: `span`, the length of the
    cubic as a share of the budget (else end - begin; the last event reaches the asked sparsity all the same);
    `budget`, `steps` or `finetune_steps` of the recipe alone; `optimizer`, `lr_schedule` and `weight_decay` of the
    sparse phase.
    """

    allocation: str = "global"
    schedule: str = "one-shot"
    start: str = "dense"
    initial: float = 0.05
    events: int = 8
    begin: float = 0.1
    end: float = 0.8
    span: float | None = None
    budget: str | None = None
    optimizer: str | None = None
    lr_schedule: str | None = None
    weight_decay: float | None = None
    criterion: Criterion | None = None

    def __post_init__(self) -> None:
        checks = (("allocation", ALLOCATIONS), ("schedule", SCHEDULES), ("start", STARTS))
        unset = (("budget", BUDGETS), ("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES))
        for kind, known in (*checks, *((kind, (*known, None)) for kind, known in unset)):
            if getattr(self, kind) not in known:
                raise unknown(kind, str(getattr(self, kind)), filter(None, known))
        if not 0 <= self.begin <= self.end <= 1 or not 0 <= self.initial < 1 or self.events < 1:
            raise ValueError("want 0 <= begin <= end <= 1, 0 <= initial < 1 and events >= 1")
        if self.span is not None and not self.span >= self.end - self.begin - 1e-9:
            raise ValueError(f"span: want at least end - begin, {self.end - self.begin:g}, got {self.span:g}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: want a number of at least 0, got {self.weight_decay:g}")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        from_init = self.start == "init"
        model = experiment.new_model() if from_init else experiment.dense_model()
        recipe = experiment.recipe
        steps = recipe.finetune_steps + (recipe.steps if from_init else 0)
        if self.budget is not None:
            steps = getattr(recipe, self.budget)
        lr = recipe.lr if from_init else recipe.finetune_lr
        if self.schedule == "cubic":
            return self._prune_gradually(experiment, model, sparsity, steps, lr)
        masks = self._masks(experiment, model, sparsity)
        apply_masks(model, masks)
        experiment.train(
            model, steps=steps, lr=lr, name=f"{self.start}/sparse", masks=masks, **self._optimisation()
        )
        return Pruned(model, masks)

    def _optimisation(self) -> dict[str, Any]:
        """What the sparse phase changes of the recipe."""
        chosen = {
            "optimizer": self.optimizer,
            "schedule": self.lr_schedule,
            "weight_decay": self.weight_decay,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def _masks(self, experiment: Experiment, model: nn.Module, sparsity: float) -> Masks:
        assert self.criterion is not None
        scores = experiment.scores(self.criterion, model)  # type: ignore[arg-type]
        return make_masks(scores, sparsity, allocation=self.allocation, weights=prunable(model))

    def _prune_gradually(
        self, experiment: Experiment, model: nn.Module, sparsity: float, steps: int, lr: float
    ) -> Pruned:
        targets = pruning_targets(
            pruning_steps(steps, begin=self.begin, end=self.end, events=self.events),
            span=0.0 if self.span is None else self.span * steps,
            final=sparsity,
            initial=min(self.initial, sparsity),
        )
        current: Masks = {}

        def prune(step: int) -> Mapping[str, Tensor] | None:
            if step not in targets:
                return None
            current.update(self._masks(experiment, model, targets[step]))
            return current

        name = f"{self.start}/gradual"
        experiment.train(model, steps=steps, lr=lr, name=name, after_step=prune, **self._optimisation())
        return Pruned(model, current)  # type: ignore[arg-type]


def prune_by(
    criterion: Criterion, name: str = "", *, cite: str = "", unpruned: bool = False, **settings: Any
) -> Method:
    """The method that prunes by `criterion` with other settings, under another name.

    `allocation`, `schedule` and `start` are chosen by name; see `Prune`. An `unpruned` one takes the very steps of the
    pruned one at sparsity 0, and is a reference: not ranked.
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
        unpruned=unpruned,
        ranked=not unpruned,
    )
    entry = entry.with_params(settings)
    entry.build(**entry.params)
    return entry


def relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter: one-shot pruning has no gradual ones, and what is None changes nothing."""
    gradual = ("initial", "events", "begin", "end", "span")
    return {
        key: value
        for key, value in settings.items()
        if value is not None and (settings["schedule"] != "one-shot" or key not in gradual)
    }
