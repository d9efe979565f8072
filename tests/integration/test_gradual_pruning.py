"""Gradual pruning as Iofinova et al. do it, and that its settings name no run that does not use them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunebench.errors import UsageError
from prunebench.methods.discovery import builtin_methods, resolve_method
from prunebench.models import build_model
from prunebench.pruning.masks import keep_count, prunable
from prunebench.pruning.schedule import cubic_sparsity, pruning_steps, pruning_targets
from prunebench.results.spec import Recipe
from prunebench.suites import load_suite
from prunebench.tasks.celeba import CelebA

NEW = {"span", "budget", "optimizer", "lr_schedule", "weight_decay"}


def test_the_published_sequence_for_95_percent() -> None:
    targets = pruning_targets([10, 20, 30, 40, 50, 60, 70, 80], span=71, final=0.95, initial=0.05)
    assert [round(value, 3) for value in targets.values()] == [
        0.05,
        0.379,
        0.616,
        0.777,
        0.875,
        0.927,
        0.947,
        0.95,
    ]
    assert targets[80] == 0.95, "exactly"
    assert list(targets) == [10, 20, 30, 40, 50, 60, 70, 80]


def test_without_a_span_the_cubic_ends_at_the_last_event() -> None:
    times = [3, 7, 20, 31]
    expected = {step: cubic_sparsity(step, begin=3, end=31, final=0.9, initial=0.1) for step in times}
    assert pruning_targets(times, span=0, final=0.9, initial=0.1) == expected
    assert pruning_targets([5], span=0, final=0.9, initial=0.1) == {5: 0.9}


@pytest.mark.parametrize(
    ("method", "steps", "epochs", "events"),
    [("gmp-ri", "steps", 100, range(10, 81, 10)), ("gmp-pt", "finetune_steps", 80, range(1, 60, 4))],
)
def test_events_fall_on_the_paper_s_epochs(method: str, steps: str, epochs: int, events: range) -> None:
    params, total = load_suite("iofinova-celeba").params[method], getattr(CelebA.recipe, steps)
    times = pruning_steps(total, begin=params["begin"], end=params["end"], events=params["events"])
    assert len(times) == len(events)
    assert [time * epochs / total for time in times] == pytest.approx(list(events), abs=1e-3)
    # The released code divides by the (exclusive) end of the range less its beginning.
    assert params["span"] * epochs == pytest.approx(events.stop - events.start)


class Recorder:
    """Stands in for an experiment: what the method trains with, and the density after every event."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.calls: list[dict[str, Any]] = []
        self.kept: dict[int, int] = {}

    def new_model(self) -> torch.nn.Module:
        return build_model("convnet-small", 4, seed=0)

    dense_model = new_model

    def scores(self, criterion: object, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: weight.detach().abs() for name, weight in prunable(model).items()}

    def train(self, model: torch.nn.Module, **arguments: Any) -> None:
        self.calls.append({key: value for key, value in arguments.items() if key != "after_step"})
        for step in range(1, arguments["steps"] + 1):
            masks = arguments["after_step"](step) if "after_step" in arguments else None
            if masks is not None:
                self.kept[step] = sum(int(mask.sum()) for mask in masks.values())


def fit(method: str, params: dict[str, Any], sparsity: float = 0.95) -> Recorder:
    recorder = Recorder(
        Recipe(100, 80, 8, optimizer="sgd", lr=0.2, finetune_lr=1e-4, schedule="warmup-cosine")
    )
    entry = resolve_method(method).with_params(params)
    pruned = entry.build(**entry.params).fit(recorder, sparsity)  # type: ignore[arg-type]
    total = sum(mask.numel() for mask in pruned.masks.values())
    assert sum(int(mask.sum()) for mask in pruned.masks.values()) == keep_count(total, sparsity)
    return recorder


def test_gmp_ri_has_the_training_steps_alone_and_the_recipe_s_optimiser() -> None:
    recorder = fit("gmp-ri", dict(load_suite("iofinova-celeba").params["gmp-ri"]))
    assert recorder.calls == [{"steps": 100, "lr": 0.2, "name": "init/gradual"}]
    total = sum(weight.numel() for weight in prunable(recorder.new_model()).values())
    sparsities = [round(1 - kept / total, 3) for kept in recorder.kept.values()]
    assert sparsities == [0.05, 0.379, 0.616, 0.777, 0.875, 0.927, 0.947, 0.95]
    assert list(recorder.kept) == [10, 20, 30, 40, 50, 60, 70, 80]


def test_gmp_pt_has_a_constant_adam() -> None:
    recorder = fit("gmp-pt", dict(load_suite("iofinova-celeba").params["gmp-pt"]))
    changed = {"optimizer": "adam", "schedule": "constant", "weight_decay": 0.0}
    assert recorder.calls == [{"steps": 80, "lr": 1e-4, "name": "dense/gradual", **changed}]
    assert list(recorder.kept) == list(range(1, 58, 4))


def test_a_span_may_be_that_of_the_events() -> None:
    assert 0.8 - 0.1 > 0.7, "but for rounding"
    times = {"begin": 0.1, "end": 0.8, "events": 8}
    assert fit("gmp-ri", {**times, "span": 0.7}).kept == fit("gmp-ri", times).kept


def test_one_shot_pruning_takes_the_optimiser_too() -> None:
    recorder = fit("magnitude", {"optimizer": "adam", "budget": "steps"})
    call = recorder.calls[0]
    assert (call["steps"], call["optimizer"], call["name"]) == (100, "adam", "dense/sparse")


def test_settings_left_alone_change_nothing() -> None:
    assert fit("gmp-ri", {}).calls == [{"steps": 180, "lr": 0.2, "name": "init/gradual"}]
    assert fit("gmp-pt", {}).calls == [{"steps": 80, "lr": 1e-4, "name": "dense/gradual"}]
    for entry in builtin_methods().values():
        if set(entry.settings) >= NEW:
            assert not NEW & set(entry.params), entry.name


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("budget", "step", "unknown budget 'step': did you mean steps"),
        ("optimizer", "lamb", "unknown optimizer 'lamb'"),
        ("lr_schedule", "cosin", "did you mean cosine"),
    ],
)
def test_unknown_choices(setting: str, value: str, message: str) -> None:
    entry = resolve_method("gmp-ri").with_params({setting: value})
    with pytest.raises(UsageError, match=message):
        entry.build(**entry.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"span": 0.5}, r"span: want at least end - begin, 0\.7, got 0\.5"),
        ({"weight_decay": -1.0}, "weight_decay: want a number of at least 0"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, float], message: str) -> None:
    entry = resolve_method("gmp-ri").with_params(changes)
    with pytest.raises(ValueError, match=message):
        entry.build(**entry.params)


@pytest.mark.parametrize("span", [float("nan"), float("inf")])
def test_a_setting_that_is_not_finite_is_refused_by_name(span: float) -> None:
    with pytest.raises(UsageError, match="setting span of gmp-ri: want a finite number"):
        resolve_method("gmp-ri").with_params({"span": span})
