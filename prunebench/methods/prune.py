"""Score, distribute, schedule: the procedure behind every pruning criterion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prunebench.errors import UsageError, unknown
from prunebench.methods.api import Method, defaults_of, literals_of
from prunebench.methods.channels import remove_channels
from prunebench.methods.criteria import Criterion, check_name
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.distribution import ALLOCATIONS, Distribution
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable, whole_masks
from prunebench.pruning.pattern import PATTERNS, check_structure, largest_masks, least_sparsity, n_and_m
from prunebench.pruning.schedule import SCHEDULES, exponential_targets, pruning_steps, pruning_targets
from prunebench.results.spec import LR_SCHEDULES, OPTIMIZERS

ALIASES = {"distribution": "allocation"}
"""Other names of settings."""
CHOICES = {"allocation": ALLOCATIONS, "structure": (*PATTERNS, "channel"), "schedule": SCHEDULES}
CHANNEL = "channel"
"""The structure whose result is a narrower network; its sparsity is the share of multiply-accumulates removed."""
STARTS = ("dense", "init")
BUDGETS = ("steps", "finetune_steps")


@dataclass(frozen=True)
class Prune:
    """Prune by a criterion, at once, in rounds or gradually.

    From the dense model (`start="dense"`) the budget is the fine-tuning steps; from initialisation it is the
    training and fine-tuning steps together. `cubic` prunes `events` times between the `begin` and `end` shares
    of the budget; 8 events from 1/10 to 4/5 is the Iofinova et al. protocol (epochs 10, 20, ... 80 of 100).
    `exponential` scores and prunes in `rounds` before training. `structure` is the pattern of the masks
    (`pruning.pattern`): `N:M`, `block`, `block:ROWSxCOLUMNS` or `filter`; a `native` method with N:M has the pattern's
    own sparsity. Of filters that are pruned whole, BatchNorm's weight and bias are held at zero too, so that their
    channels are gone in inference. `channel` removes channels: the result is a narrower network.

    The settings that are None follow from the others or from the recipe, and name no run: `structure`; `recalibrate`,
    the training batches from which BatchNorm's statistics are taken anew at the end; `span`, the length of the
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
    rounds: int = 100
    structure: str | None = None
    recalibrate: int | None = None
    span: float | None = None
    budget: str | None = None
    optimizer: str | None = None
    lr_schedule: str | None = None
    weight_decay: float | None = None
    criterion: Criterion | None = None
    distribution: Distribution | None = None
    """A function that stands for `allocation`, which has its name."""

    def __post_init__(self) -> None:
        allocations = ALLOCATIONS if self.distribution is None else (self.allocation,)
        checks = (("allocation", allocations), ("schedule", SCHEDULES), ("start", STARTS))
        if self.structure == CHANNEL:
            if self.schedule != "one-shot" or self.allocation not in ("global", "uniform"):
                raise UsageError(
                    "structure 'channel' goes with schedule one-shot and distribution global or uniform"
                )
        elif self.structure is not None:
            check_structure(self.structure)
        unset = (("budget", BUDGETS), ("optimizer", OPTIMIZERS), ("lr_schedule", LR_SCHEDULES))
        for kind, known in (*checks, *((kind, (*known, None)) for kind, known in unset)):
            if getattr(self, kind) not in known:
                raise unknown(kind, str(getattr(self, kind)), filter(None, known))
        if not 0 <= self.begin <= self.end <= 1 or not 0 <= self.initial < 1 or self.events < 1:
            raise ValueError("want 0 <= begin <= end <= 1, 0 <= initial < 1 and events >= 1")
        if self.rounds < 1 or (self.recalibrate is not None and self.recalibrate < 1):
            raise ValueError("want rounds and recalibrate of at least 1")
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
        if self.structure == CHANNEL:
            return self._finished(experiment, self._remove_channels(experiment, model, sparsity, steps, lr))
        if self.schedule == "cubic":
            return self._finished(experiment, self._prune_gradually(experiment, model, sparsity, steps, lr))
        if self.schedule == "exponential":
            masks = self._prune_in_rounds(experiment, model, sparsity)
        else:
            masks = self._masks(experiment, model, sparsity)
        apply_masks(model, masks)
        name = f"{self.start}/sparse"
        experiment.train(model, steps=steps, lr=lr, name=name, masks=masks, **self._optimisation())
        return self._finished(experiment, Pruned(model, masks))

    def _remove_channels(
        self, experiment: Experiment, model: Classifier, sparsity: float, steps: int, lr: float
    ) -> Pruned:
        """A narrower network, trained."""
        assert self.criterion is not None
        scores = experiment.scores(self.criterion, model)
        narrow = remove_channels(experiment, model, scores, sparsity, uniform=self.allocation == "uniform")
        experiment.train(narrow, steps=steps, lr=lr, name=f"{self.start}/sparse", **self._optimisation())
        return Pruned(narrow, whole_masks(narrow), structured=True)

    def _finished(self, experiment: Experiment, pruned: Pruned) -> Pruned:
        if self.recalibrate is not None:
            experiment.recalibrate(pruned.model, batches=self.recalibrate)
        return pruned

    def _optimisation(self) -> dict[str, Any]:
        """What the sparse phase changes of the recipe; and whether BatchNorm is held with the filters."""
        chosen = {
            "optimizer": self.optimizer,
            "schedule": self.lr_schedule,
            "weight_decay": self.weight_decay,
        }
        changes = {name: value for name, value in chosen.items() if value is not None}
        return changes | ({"dead_filters": True} if self.structure == "filter" else {})

    def _masks(self, experiment: Experiment, model: nn.Module, sparsity: float) -> Masks:
        assert self.criterion is not None
        scores = experiment.scores(self.criterion, model)  # type: ignore[arg-type]
        return self._masks_of(experiment, scores, model, sparsity)

    def _masks_of(
        self, experiment: Experiment, scores: Mapping[str, Tensor], model: nn.Module, sparsity: float
    ) -> Masks:
        if self.structure is not None:
            final = experiment.spec.sparsity
            if final is None:
                return largest_masks(self.structure, scores)
            if sparsity < final:  # on the way there, N:M begins with what it takes at once
                sparsity = max(sparsity, min(final, least_sparsity(self.structure, scores)))
        return make_masks(
            scores,
            sparsity,
            allocation=self.distribution or self.allocation,
            structure=self.structure,
            weights=prunable(model),
        )

    def _prune_in_rounds(self, experiment: Experiment, model: nn.Module, sparsity: float) -> Masks:
        """Score, prune, and score what is left; nothing is trained, and what went does not come back."""
        masks: Masks = {}
        for target in exponential_targets(self.rounds, sparsity):
            assert self.criterion is not None
            scores = experiment.scores(self.criterion, model)  # type: ignore[arg-type]
            lowest = min(float(values.min()) for values in scores.values()) - 1
            for (
                name,
                mask,
            ) in masks.items():  # finite: a group of which a part is left has a mean above those gone
                scores[name] = scores[name].masked_fill(~mask, lowest)
            masks = self._masks_of(experiment, scores, model, target)
            apply_masks(model, masks)
        return masks

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
    criterion: Criterion,
    name: str = "",
    *,
    cite: str = "",
    unpruned: bool = False,
    native: bool = False,
    **settings: Any,
) -> Method:
    """The method that prunes by `criterion` with other settings, under another name.

    Args:
        criterion: what scores.
        name: the method's; that of the criterion where none is given.
        cite: its source; that of the criterion where none is given.
        unpruned: takes the very steps of the pruned one at sparsity 0, and is a reference: not ranked.
        native: has the sparsity of its structure, N:M, and none is asked of it.
        settings: `distribution` (or `allocation`; a name or a function), `structure`, `schedule`, `start` and the other
            settings of `Prune`, and options of the criterion.

    Raises:
        UsageError: for an unknown setting, or a value that cannot be.
    """
    chosen = {**criterion.prunes, **settings}
    native = chosen.pop("native", native)
    fields = {"criterion", "distribution"}
    defaults = {key: value for key, value in defaults_of(Prune).items() if key not in fields}
    for key in criterion.options:
        if key in defaults or key in ALIASES:
            raise UsageError(f"criterion {criterion.name!r}: {key} is a setting of pruning; rename its own")
    defaults |= {"start": criterion.at, **criterion.options}
    function = next(
        (chosen[key] for key in ("distribution", "allocation") if callable(chosen.get(key))), None
    )
    if function is not None:
        chosen.pop("distribution", None)
        check_name("distribution", function.__name__)
        chosen["allocation"] = function.__name__

    def build(**params: Any) -> Prune:
        options = {key: params.pop(key, value) for key, value in criterion.options.items()}
        own = function if params.get("allocation") == chosen.get("allocation") else None
        return Prune(criterion=replace(criterion, options=options), distribution=own, **params)

    entry = Method(
        name or criterion.name,
        cite or criterion.cite,
        "none",
        criterion.version,
        build,
        defaults,
        native=native,
        relevant=relevant,
        multi_label=True,
        unpruned=unpruned,
        ranked=not unpruned,
        aliases=ALIASES,
    )
    entry = entry.with_params(chosen)
    if not native:
        entry = replace(entry, choices=_that_fit(entry, {**CHOICES, **literals_of(criterion.score)}))
    built = entry.build(**entry.params)
    if native and n_and_m(built.structure or "") is None:  # type: ignore[attr-defined]
        raise UsageError(
            f"method {entry.name!r}: native=True needs structure='N:M', which fixes the sparsity"
        )
    return entry


def _that_fit(method: Method, choices: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The values that go with the method's other settings: channels are not removed gradually."""

    def fits(key: str, value: object) -> bool:
        try:
            method.build(**{**method.params, key: value})
        except UsageError:
            return False
        return True

    return {key: tuple(value for value in values if fits(key, value)) for key, values in choices.items()}


OF_SCHEDULE = {
    "one-shot": (),
    "cubic": ("initial", "events", "begin", "end", "span"),
    "exponential": ("rounds",),
}
"""The settings that matter for one schedule alone."""


def relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that matter: one-shot pruning has no gradual ones, and what is None changes nothing."""
    others = {key for keys in OF_SCHEDULE.values() for key in keys}
    idle = others - set(OF_SCHEDULE.get(settings["schedule"], others))
    plain = {"structure": "unstructured"}
    return {
        key: value
        for key, value in settings.items()
        if value is not None and key not in idle and plain.get(key) != value
    }
