"""Debiasing methods against their formulas, worked out by hand or by another way in float64."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment

from prunebench.errors import UsageError
from prunebench.methods.debiased import debiased, find_weighting
from prunebench.methods.discovery import builtin_methods, resolve_method
from prunebench.methods.pw_loss import (
    PerformanceWeighted,
    as_probabilities,
    corrected_labels,
    performance_weight,
)
from prunebench.training.loop import Batch

F64 = torch.float64


@pytest.mark.parametrize("name", ["pw-loss"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_sparsity_is_exact_and_masks_hold(name: str, sparsity: float) -> None:
    experiment, _ = fitted(name, sparsity)
    assert experiment.training_steps == 30 + 10


@pytest.mark.parametrize("name", ["pw-loss"])
def test_the_unpruned_form_keeps_every_weight(name: str) -> None:
    entry = builtin_methods()[f"{name}-dense"]
    assert entry.unpruned
    assert entry.settings == builtin_methods()[name].settings
    _, pruned = fitted(f"{name}-dense", 0.0)
    assert all(bool(mask.all()) for mask in pruned.masks.values())


@pytest.mark.parametrize("debiaser", ["pw-loss"])
def test_pruners_take_the_debiaser(debiaser: str) -> None:
    experiment = tiny_experiment(debiaser, 0.8)
    plain = resolve_method("magnitude").fit(experiment, 0.8)
    composed = resolve_method(f"magnitude+{debiaser}").fit(tiny_experiment(debiaser, 0.8), 0.8)
    assert any(not torch.equal(a, b) for a, b in zip(plain.model.parameters(), composed.model.parameters()))


# Performance-weighted loss


def test_performance_weights_by_hand() -> None:
    """p = 1/2, 4/5 and 1/5: w = .75 + .25 (1 - p)^5 is .7578125, .75008 and .83192."""
    logits = torch.tensor([[0.0, 0.0], [math.log(4), 0.0], [math.log(4), 0.0]], dtype=F64)
    weight = performance_weight(logits, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(weight, torch.tensor([0.7578125, 0.75008, 0.83192], dtype=F64))
    attributes = performance_weight(logits[1:2, :1].expand(1, 2), torch.tensor([[1, 0]]))
    torch.testing.assert_close(attributes, torch.tensor([[0.75008, 0.83192]], dtype=F64))


def test_labels_are_corrected_where_the_dense_model_is_wrong() -> None:
    logits = torch.tensor([[math.log(4), 0.0], [math.log(4), 0.0]], dtype=F64)
    expected = torch.tensor([[0.8, 0.2], [0.0, 1.0]], dtype=F64)
    torch.testing.assert_close(corrected_labels(logits, torch.tensor([0, 1])), expected)
    attributes = corrected_labels(logits[:1, :1].expand(1, 2), torch.tensor([[1, 0]]))
    torch.testing.assert_close(attributes, torch.tensor([[0.8, 0.0]], dtype=F64))


@pytest.mark.parametrize("soft", [True, False])
def test_performance_weighted_loss_is_the_formula(soft: bool) -> None:
    experiment = tiny_experiment("pw-loss")
    model, split = experiment.dense_model(), experiment.train_split
    index = torch.tensor([3, 7, 7, 40])
    batch = Batch(split.images.batch(index), split.y[index], index, 0)
    logits = experiment.predict(experiment.dense_model()).double()
    answers = model.train()(batch.x).detach().double()
    found = PerformanceWeighted(soft_labels=soft).objective(experiment)(
        experiment.dense_model().train(), batch
    )
    target = (corrected_labels if soft else as_probabilities)(logits, split.y)
    expected = 0.0
    for row, at in enumerate(index.tolist()):
        p = math.exp(float(logits[at, split.y[at]] - logits[at].logsumexp(0)))
        logs = answers[row] - answers[row].logsumexp(0)
        expected -= (0.75 + 0.25 * (1 - p) ** 5) * float((target[at] * logs).sum()) / len(index)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_settings_that_cannot_be_are_found_before_training() -> None:
    for settings in ({"pw-loss_least": 1.5}, {"pw-loss_gamma": -1.0}):
        entry = debiased(resolve_method("magnitude"), "pw-loss").with_params(settings)
        with pytest.raises(ValueError, match="least"):
            entry.build(**entry.params)
    with pytest.raises(UsageError, match="no pruner to debias"):
        debiased(resolve_method("pw-loss-dense"), "lff")
    weighting = find_weighting(tiny_experiment("pw-loss"), "pw-loss", {})
    assert weighting.state is None
    assert weighting.objective is not None
