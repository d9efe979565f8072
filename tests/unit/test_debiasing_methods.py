"""Debiasing methods against their formulas, worked out by hand or by another way in float64."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_experiment import InMemory, fitted, tiny_experiment

from prunebench.errors import UsageError
from prunebench.methods import ceag as ceag_module
from prunebench.methods import shuffled as shuffled_module
from prunebench.methods.ceag import ConstrainedGaps, ExcessGaps, lagrangian
from prunebench.methods.debiased import debiased, find_weighting
from prunebench.methods.dfr import balanced_draw, fit_head, standardising
from prunebench.methods.discovery import builtin_methods, resolve_method
from prunebench.methods.disent import Disentangled, TwoEncoders
from prunebench.methods.fairgrape import fair_choice, round_targets
from prunebench.methods.fairprune import FairPrune, unprivileged
from prunebench.methods.groupdro import WEIGHTS, GroupDRO, RobustLoss
from prunebench.methods.modad import AnomalyDebiasing, changed
from prunebench.methods.pw_loss import (
    PerformanceWeighted,
    as_probabilities,
    corrected_labels,
    performance_weight,
)
from prunebench.training.loop import Batch
from prunebench.training.losses import RelativeDifficulty, cross_entropy

F64 = torch.float64


@pytest.mark.parametrize("name", ["pw-loss", "dfr", "groupdro", "modad", "disent", "larreg"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_sparsity_is_exact_and_masks_hold(name: str, sparsity: float) -> None:
    experiment, _ = fitted(name, sparsity)
    steps = {"modad": 30 + 30 + 3 * 10, "disent": 2 * 30 + 10, "larreg": 3 * 30 + 3 * 30 + 10}
    assert experiment.training_steps == steps.get(name, 30 + 10)


@pytest.mark.parametrize("name", ["pw-loss", "dfr", "groupdro", "modad", "disent", "larreg"])
def test_the_unpruned_form_keeps_every_weight(name: str) -> None:
    entry = builtin_methods()[f"{name}-dense"]
    assert entry.unpruned
    assert entry.settings == builtin_methods()[name].settings
    _, pruned = fitted(f"{name}-dense", 0.0)
    assert all(bool(mask.all()) for mask in pruned.masks.values())


@pytest.mark.parametrize("debiaser", ["pw-loss", "dfr", "groupdro", "modad", "disent", "larreg"])
def test_pruners_take_the_debiaser(debiaser: str) -> None:
    experiment = tiny_experiment(debiaser, 0.8)
    plain = resolve_method("magnitude").fit(experiment, 0.8)
    composed = resolve_method(f"magnitude+{debiaser}").fit(tiny_experiment(debiaser, 0.8), 0.8)
    assert any(not torch.equal(a, b) for a, b in zip(plain.model.parameters(), composed.model.parameters()))


@pytest.mark.parametrize(
    "name",
    [
        "groupdro",
        "magnitude+lff",
        "magnitude+groupdro",
        "magnitude+modad",
        "magnitude+larreg",
        "magnitude+ceag",
    ],
)
def test_the_control_of_a_composition_trains_by_the_very_same_calls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its masks as they are, every bit is the method's, also where a loss changes as it is used."""
    monkeypatch.setattr(shuffled_module, "shuffled", lambda masks, generator: dict(masks))
    base = name.rpartition("+")[2]
    own = resolve_method(name).fit(tiny_experiment(base), 0.8).model.state_dict()
    control = resolve_method(f"shuffled:{name}").fit(tiny_experiment(base), 0.8).model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in control.items())


@pytest.mark.parametrize("debiaser", ["groupdro", "modad", "ceag"])
def test_a_loss_that_changes_as_it_is_used_does_not_tell_which_stages_were_kept(
    debiaser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept are the stages of all runs before; of other sparsities, so those of the first rounds alone."""
    kept: dict[str, dict[str, torch.Tensor]] = {}

    def shared(
        _: InMemory, key: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        if key not in kept:
            kept[key] = compute()
        return dict(kept[key])

    def fit(sparsity: float) -> dict[str, torch.Tensor]:
        entry = resolve_method(f"imp+{debiaser}")
        return entry.fit(tiny_experiment(debiaser, steps=10), sparsity).model.state_dict()

    monkeypatch.setattr(InMemory, "shared", shared)
    anew = fit(0.5)
    rounds = dict(kept)
    again = fit(0.5)
    fit(0.3)
    assert kept.keys() == rounds.keys()
    kept.clear()
    fit(0.3)
    assert 0 < len(kept) < len(rounds)
    after_fewer = fit(0.5)
    for name, value in anew.items():
        assert torch.equal(again[name], value), name
        assert torch.equal(after_fewer[name], value), name


def test_a_base_shares_its_stages_with_itself_under_the_same_debiaser_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`lff` and `jtt` have one version: their names and settings tell the pruned networks apart."""
    seen: dict[str, set[str]] = {}
    for name in ("lff", "jtt"):
        for base in ("magnitude-calibrated", "magnitude-deferred"):
            entry, experiment = resolve_method(f"{base}+{name}"), tiny_experiment("magnitude")
            params = tuple(sorted(entry.params.items()))
            experiment.spec = replace(
                experiment.spec, method=entry.name, method_version=entry.version, params=params
            )
            found = seen[entry.name] = set()
            monkeypatch.setattr(
                InMemory, "shared", lambda _, key, compute, found=found: (found.add(key), compute())[1]
            )
            entry.fit(experiment, 0.8)
    assert seen["magnitude-calibrated+lff"] == seen["magnitude-deferred+lff"]
    assert not seen["magnitude-calibrated+lff"] & seen["magnitude-calibrated+jtt"]


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


# Deep feature reweighting


def test_heads_minimise_the_penalised_loss() -> None:
    """The optimality conditions of |w|_1 + |b| + C * sum log(1 + exp(-y (wx + b))), class by class.

    liblinear penalises the bias as a weight.
    """
    generator = np.random.default_rng(0)
    x, y, strength = generator.normal(size=(90, 4)), np.arange(90) % 3, 0.3
    x[:, :3] += np.eye(3)[y]
    kept = np.ones((3, 4), dtype=bool)
    kept[0, 1] = kept[2] = False
    weight, bias = fit_head(x, y, kept, strength)
    assert not weight[~kept].any()
    assert bias[2] == pytest.approx(math.log(30.5 / 60.5)), "no feature: the class's frequency"
    for label in (0, 1):
        sign = np.where(y == label, 1.0, -1.0)
        pull = strength * sign / (1 + np.exp(sign * (x @ weight[label] + bias[label])))
        for value, slope in [
            *zip(weight[label][kept[label]], x[:, kept[label]].T @ pull),
            (bias[label], pull.sum()),
        ]:
            if value == 0:
                assert abs(slope) <= 1 + 2e-2
            else:
                assert slope == pytest.approx(np.sign(value), abs=2e-2)


def test_two_classes_have_the_fitted_probability() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(60, 2)), np.arange(60) % 2
    weight, bias = fit_head(x + y[:, None], y, np.ones((2, 2), dtype=bool), 1.0)
    np.testing.assert_allclose(weight[0], -weight[1], atol=1e-3)
    odds = (x + y[:, None]) @ (weight[1] - weight[0]) + bias[1] - bias[0]
    pull = np.where(y == 1, 1.0, -1.0) / (1 + np.exp(np.where(y == 1, 1.0, -1.0) * odds))
    assert ((x + y[:, None]).T @ pull)[0] == pytest.approx(np.sign(weight[1, 0]), abs=2e-2)


def test_balanced_draws_by_hand() -> None:
    group = np.array([0, 0, 0, 4, 2, 2, 0, 2])
    drawn = group[balanced_draw(group, np.random.default_rng(0))]
    assert sorted(drawn.tolist()) == [0, 2, 4]


def test_reweighting_touches_the_head_alone_and_uses_the_pruned_features() -> None:
    experiment, pruned = fitted("dfr", 0.5)
    plain = tiny_experiment("dfr", 0.5)
    model = plain.dense_model()
    before = plain.finetune(model, plain.prune(model, 0.5))
    assert torch.equal(before.masks["head.weight"], pruned.masks["head.weight"])
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, pruned.model.state_dict()[name]) != name.startswith("head."), name
    split, kept = experiment.val_balanced, pruned.masks["head.weight"].numpy()
    x = experiment.features(before.model, split).double().numpy()
    centre, scale = standardising(experiment.features(before.model, experiment.train_split).double().numpy())
    weight, bias = fit_head((x - centre) / scale, split.y.numpy(), kept, experiment.notes["dfr_strength"])
    expected = (x - centre) / scale @ weight.T + bias
    found = experiment.predict_balanced(pruned.model).double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_what_a_composition_must_know() -> None:
    assert resolve_method("magnitude+dfr").supervision == "val-groups"
    assert resolve_method("magnitude+lff").supervision == "none"
    with pytest.raises(UsageError, match="head is learned after"):
        resolve_method("shuffled:magnitude+dfr")
    entry = resolve_method("magnitude+dfr").with_params({"dfr_refits": 0})
    with pytest.raises(ValueError, match="strengths"):
        entry.build(**entry.params)


# GroupDRO


def test_robust_loss_by_hand() -> None:
    """Groups 7, 9 and 12 of 1, 3 and 1 samples; two batches, the first without group 12."""
    group = torch.tensor([7, 9, 9, 12, 9])
    robust = RobustLoss(group, step_size=0.1, adjustment=0.5)
    found = robust(torch.tensor([2.0, 1.0, 3.0], requires_grad=True), torch.tensor([0, 1, 2]))
    q = [math.exp(0.1 * (loss + 0.5 / math.sqrt(count))) for loss, count in ((2, 1), (2, 3), (0, 1))]
    q = [value / sum(q) for value in q]
    assert found.item() == pytest.approx(2 * q[0] + 2 * q[1])
    torch.testing.assert_close(robust.weights, torch.tensor(q))
    losses = torch.tensor([4.0, 5.0], requires_grad=True)
    loss = robust(losses, torch.tensor([3, 4]))
    q = [
        value * math.exp(0.1 * (mean + 0.5 / math.sqrt(count)))
        for value, mean, count in zip(q, (0, 5, 4), (1, 3, 1))
    ]
    q = [value / sum(q) for value in q]
    assert loss.item() == pytest.approx(5 * q[1] + 4 * q[2])
    loss.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([q[2], q[1]]), msg="q is a constant of the step")
    torch.testing.assert_close(robust.sample_weight(), torch.tensor([1.0, 1 / 3, 1 / 3, 1.0, 1 / 3]))


def test_fine_tuning_goes_on_with_the_weights_of_training() -> None:
    experiment = tiny_experiment("groupdro")
    state, robust = GroupDRO(step_size=0.5).trained(experiment)
    assert WEIGHTS not in state
    assert float(robust.weights.sum()) == pytest.approx(1)
    assert float(robust.weights.max() - robust.weights.min()) > 1e-3
    assert resolve_method("magnitude+groupdro").supervision == "train-groups"


# FairGRAPE


def test_fair_choice_by_hand() -> None:
    """Shares before are .5 and .5: after weight 0 for the first group, the second takes its best, 3; then 6 < 7."""
    importance = np.array([[6.0, 5.0, 1.0, 0.0], [0.0, 0.0, 5.0, 7.0]])
    assert fair_choice(importance, 1).tolist() == [0], "equal gaps: the first group"
    assert fair_choice(importance, 3).tolist() == [0, 3, 1]
    assert sorted(fair_choice(importance, 4).tolist()) == [0, 1, 2, 3]
    rare = np.array([[9.0, 8.0, 7.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert fair_choice(rare, 2).tolist() == [0, 3], (
        "a group with a twenty-fifth of the importance has its weight"
    )
    assert fair_choice(np.zeros((2, 3)), 2).tolist() == [0, 1]


def test_rounds_keep_nine_tenths_each() -> None:
    assert round_targets(0.9, 0.9)[:2] == pytest.approx([0.1, 0.19])
    assert len(round_targets(0.9, 0.9)) == 22
    assert round_targets(0.19, 0.9) == pytest.approx([0.1, 0.19])
    assert round_targets(0.0, 0.9) == [0.0]


def test_group_importance_is_the_formula() -> None:
    experiment = tiny_experiment("fairgrape")
    model, split = experiment.dense_model(), experiment.train_split
    found = experiment.group_importance(model, split.bias, batches=2)
    expected = torch.zeros(2, *model.head.weight.shape, dtype=F64)
    for row in experiment._draw("gradients", 2):
        for bias in (0, 1):
            own = row[split.bias[row] == bias]
            features = model.eval().features(split.images.batch(own)).detach().double()
            weight, shift = (value.detach().double() for value in (model.head.weight, model.head.bias))
            error = (features @ weight.T + shift).softmax(1) - torch.eye(3, dtype=F64)[split.y[own]]
            expected[bias] += (weight * (error.T @ features / len(own))).square()
    torch.testing.assert_close(found["head.weight"].double(), expected, rtol=1e-3, atol=1e-9)


def test_fairgrape_spends_the_fine_tuning_over_its_rounds() -> None:
    experiment, _ = fitted("fairgrape", 0.5, batches=1)
    assert experiment.training_steps == 30 + 10 + 7, "a batch is measured in each of seven rounds"


# CEAG


def small_gaps(*, alike: bool = False) -> ExcessGaps:
    """Groups 3 and 8 of 3 and 1 samples; the dense network is right in 2/3 and 1 of them, 3/4 of all."""
    group, right = torch.tensor([3, 3, 3, 8]), torch.tensor([True, True, False, True])
    return ExcessGaps(group, right, tolerance=0.1, step_size=0.5, memory=2, alike=alike)


def test_excess_gaps_by_hand() -> None:
    gaps = small_gaps()
    found = gaps(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]), torch.tensor([0, 1, 2]))
    assert found.item() == 3, "no group loses more than the whole, which group 8 is no part of yet"
    assert gaps.full.tolist() == [True, False]
    losses = torch.tensor([4.0, 1.0], requires_grad=True)
    loss = gaps(losses, torch.tensor([False, True]), torch.tensor([3, 0]))
    torch.testing.assert_close(gaps.gaps(), torch.tensor([-1 / 3, 1.0]), msg="the oldest of group 3 is gone")
    torch.testing.assert_close(gaps.multipliers, torch.tensor([0, 0.5 * (1 - 0.1)]))
    assert loss.item() == pytest.approx(2.5 + 0.45 * (4 - 2.5))
    loss.backward()
    torch.testing.assert_close(losses.grad, torch.tensor([0.5 + 0.45 * 0.5, 0.5 - 0.45 * 0.5]))
    loss = gaps(torch.tensor([7.0]), torch.tensor([True]), torch.tensor([1]))
    assert loss.item() == 7, "of a group that the batch lacks, the multiplier moves alone"
    torch.testing.assert_close(gaps.multipliers, torch.tensor([0, 0.9]))


def test_as_released_the_groups_weigh_alike_in_the_overall_accuracy() -> None:
    """Accuracies 1 and 0 have the mean 1/2, beside the 3/4 of the dense network: the whole has lost 1/4."""
    gaps = small_gaps(alike=True)
    gaps(torch.ones(3), torch.tensor([True, True, False]), torch.tensor([0, 1, 3]))
    torch.testing.assert_close(gaps.gaps(), torch.tensor([-1 / 3 - 1 / 4, 1 - 1 / 4]))


@pytest.mark.parametrize("alike", [False, True])
def test_constraints_are_the_formula_over_many_batches(alike: bool) -> None:
    """Against buffers that drop their oldest entry, in float64."""
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(5, (60,), generator=generator) * 7
    group[:2] = 99
    dense = torch.rand(60, generator=generator) < 0.7
    gaps = ExcessGaps(group, dense, tolerance=0.05, step_size=0.3, memory=6, alike=alike)
    names = sorted(set(group.tolist()))
    sizes = {name: int((group == name).sum()) for name in names}
    buffers = {name: deque[float](maxlen=min(6, sizes[name])) for name in names}
    multipliers = dict.fromkeys(names, 0.0)
    for _ in range(40):
        index = torch.randint(60, (24,), generator=generator)
        losses, right = (torch.rand(24, generator=generator) for _ in range(2))
        found = gaps(losses, right < 0.5, index)
        for sample, value in zip(index.tolist(), (right < 0.5).tolist()):
            buffers[int(group[sample])].append(float(value))
        full = [name for name in names if len(buffers[name]) == buffers[name].maxlen]
        accuracy = {name: sum(buffers[name]) / len(buffers[name]) for name in full}
        share = {name: 1 / len(full) if alike else sizes[name] / sum(sizes[n] for n in full) for name in full}
        own = {name: float(dense[group == name].double().mean()) for name in names}
        whole = float(dense.double().mean()) if alike else sum(share[name] * own[name] for name in full)
        whole -= sum(share[name] * accuracy[name] for name in full)
        for name in full:
            multipliers[name] += 0.3 * (own[name] - accuracy[name] - whole - 0.05)
            multipliers[name] = max(multipliers[name], 0.0)
        expected = float(losses.double().mean())
        for name in names:
            of = losses[group[index] == name].double()
            if len(of):
                expected += multipliers[name] * float(of.mean() - losses.double().mean())
        torch.testing.assert_close(gaps.multipliers, torch.tensor(list(multipliers.values())))
        assert found.item() == pytest.approx(expected, rel=1e-4)
    assert max(multipliers.values()) > 0.5


def test_a_wide_tolerance_leaves_naive_fine_tuning_and_a_narrow_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide, pruned = fitted("ceag", 0.95, tolerance=2.0)
    assert wide.training_steps == 30 + 10
    assert wide.notes["largest_multiplier"] == 0
    layers = {float(mask.float().mean()) for mask in pruned.masks.values()}
    assert max(layers) - min(layers) < 0.02, "all layers alike"
    narrow, other = fitted("ceag", 0.95, tolerance=0.0, step_size=1.0)
    assert narrow.notes["largest_multiplier"] > 0
    monkeypatch.setattr(ceag_module, "lagrangian", lambda gaps: cross_entropy)
    _, naive = fitted("ceag", 0.95)
    states = [one.model.state_dict() for one in (naive, pruned, other)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(states[2][name], value, atol=1e-4) for name, value in states[0].items())


def test_weights_go_by_the_cubic_over_the_first_three_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1, 2 and 3 of 10: 0, 7/8 of the sparsity, all of it."""
    asked: list[float] = []
    make = ceag_module.make_masks
    monkeypatch.setattr(
        ceag_module,
        "make_masks",
        lambda scores, sparsity, **settings: (asked.append(sparsity), make(scores, sparsity, **settings))[1],
    )
    fitted("ceag", 0.8)
    assert asked == pytest.approx([0, 0.7, 0.8])


def test_each_training_begins_with_multipliers_of_zero() -> None:
    experiment = tiny_experiment("ceag")
    gaps = ConstrainedGaps().constraints(experiment)
    split, net, loss = experiment.train_split, experiment.dense_model().train(), lagrangian(gaps)
    index = torch.arange(16)
    batch = Batch(split.images.batch(index), split.y[index], index, 1)
    gaps.multipliers.fill_(5.0)
    loss(net, batch)
    assert float(gaps.multipliers.max()) == 5
    loss(net, replace(batch, step=0))
    assert float(gaps.multipliers.max()) < 1


def test_ceag_composes_and_has_a_control() -> None:
    entry = resolve_method("magnitude+ceag")
    assert entry.supervision == "train-groups"
    assert "ceag_pruning" not in entry.settings
    bad = entry.with_params({"ceag_tolerance": -1.0})
    with pytest.raises(ValueError, match="tolerance"):
        bad.build(**bad.params)
    settings = [{"ceag_tolerance": 2.0}, {"ceag_tolerance": 0.0, "ceag_step_size": 1.0}]
    wide, narrow = (
        entry.with_params(one).fit(tiny_experiment("ceag", 0.95), 0.95).model.head.weight for one in settings
    )
    assert not torch.allclose(wide, narrow, atol=1e-4)
    resolve_method("shuffled:ceag").fit(tiny_experiment("ceag", 0.8), 0.8)


# FairPrune


def test_the_unprivileged_by_hand() -> None:
    """Groups 5, 2 and 7 have mean losses 1, 3 and 2.2; all together 2."""
    losses = torch.tensor([1.0, 3.0, 2.2, 1.0, 2.8, 2.0])
    group = torch.tensor([5, 2, 7, 5, 5, 7])
    losses[4] = 1.0
    losses[5] = 2.4
    assert unprivileged(losses, group).tolist() == [False, True, True, False, False, True]


def test_fair_saliency_is_the_formula() -> None:
    """Of the last layer, with the mean squared gradient of a sample, from the softmax's error in float64."""
    experiment = tiny_experiment("fairprune")
    model, split = experiment.dense_model(), experiment.train_split
    found = FairPrune(beta=0.4, batches=2, curvature="fisher").saliency(experiment, model)["head.weight"]
    losses = torch.nn.functional.cross_entropy(experiment.predict(model), split.y, reduction="none")
    below = unprivileged(losses, split.group)
    assert experiment.notes["unprivileged_share"] == pytest.approx(float(below.float().mean()))
    weight, shift = (value.detach().double() for value in (model.head.weight, model.head.bias))
    curvature = []
    for of in (below, ~below):
        rows = experiment._draw("statistics", 2, of.float()).flatten()
        assert bool(of[rows].all())
        features = model.eval().features(split.images.batch(rows)).detach().double()
        error = (features @ weight.T + shift).softmax(1) - torch.eye(3, dtype=F64)[split.y[rows]]
        curvature.append((error.square().T @ features.square()) / len(rows))
    expected = weight.square() / 2 * (curvature[0] - 0.4 * curvature[1])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-9)


def test_fairprune_charges_what_it_measures() -> None:
    assert fitted("fairprune", curvature="fisher")[0].training_steps == 30 + 10 + 2 * 8
    assert fitted("fairprune", batches=1)[0].training_steps == 30 + 10 + 2 * (1 + 4)
    with pytest.raises(ValueError, match="curvature"):
        FairPrune(curvature="second")  # type: ignore[arg-type]


# MoDAD


def test_outliers_are_half_of_the_error_rate_and_lie_outside() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 3))
    right = np.ones(200, dtype=bool)
    features[:40] += 6
    right[:40] = False
    found = AnomalyDebiasing().outliers(features, right, generator)
    assert found.sum() == 20, "half of 20 %"
    assert found[:40].sum() == 20
    assert not AnomalyDebiasing().outliers(features, np.ones(200, dtype=bool), generator).any()
    assert not AnomalyDebiasing().outliers(features, np.arange(200) == 0, generator).any(), (
        "one sample is no class"
    )
    assert AnomalyDebiasing(scaled_scores=True).outliers(features, right, generator).sum() >= 20


@pytest.mark.parametrize("augmented", [True, False])
def test_anomaly_loss_by_hand(augmented: bool) -> None:
    """Two of five are conflicting: they weigh 2/5, with three copies each, the others 3/5."""
    experiment = tiny_experiment("modad")
    mined = torch.zeros(48, dtype=torch.bool)
    mined[[1, 2]] = True
    index = torch.tensor([0, 1, 2, 3, 4])
    batch = Batch(experiment.train_split.images.batch(index), experiment.train_split.y[index], index, 0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    found = AnomalyDebiasing(augmented=augmented).objective(experiment, mined)(net, batch)
    x, y, weight = batch.x, batch.y, torch.tensor([0.6, 0.4, 0.4, 0.6, 0.6])
    if augmented:
        x = torch.cat([x, changed(x[1:3], experiment.rng("modad/augment"))])
        y, weight = torch.cat([y, *[y[1:3]] * 3]), torch.cat([weight, *[weight[1:3]] * 3])
    each = torch.nn.functional.cross_entropy(net(x), y, reduction="none")
    torch.testing.assert_close(found, (weight * each).sum() / (11 if augmented else 5))


def test_changed_images() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    found = changed(x, torch.Generator().manual_seed(0))
    assert found.shape == (6, 1, 8, 8)
    assert torch.equal(found[0], found[1]), "a set is changed alike"
    middle = torch.nn.functional.interpolate(x[:1, :, 2:6, 2:6], (8, 8), mode="bilinear")
    torch.testing.assert_close(found[4], middle[0])
    assert float(found[:4].max()) <= 63


# DisEnt


def pair_and_batch() -> tuple[TwoEncoders, Batch, RelativeDifficulty]:
    experiment = tiny_experiment("disent")
    pair = TwoEncoders(
        experiment.new_model(), experiment.new_model("biased"), torch.Generator().manual_seed(0)
    ).eval()
    index = torch.tensor([0, 1, 5, 7])
    split = experiment.train_split
    return pair, Batch(split.images.batch(index), split.y[index], index, 29), RelativeDifficulty(split.y, 3)


@pytest.mark.parametrize("step", [5, 6])
def test_disentangling_loss_is_the_formula(step: int) -> None:
    """W CE(C_i[z_i, z_b], y) + 10 GCE(C_b[z_i, z_b], y), from step 6 of 30 also with z_b and its labels permuted."""
    experiment = tiny_experiment("disent")
    pair, batch, difficulty = pair_and_batch()
    batch = replace(batch, step=step)
    found = Disentangled().objective(difficulty, experiment)(pair, batch)
    own, other = (net.features(batch.x).detach().double() for net in (pair.intrinsic, pair.biased))

    def probability(head: int, bias_features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        layer = pair.heads[head]
        logits = torch.cat([own, bias_features], 1) @ layer.weight.double().T + layer.bias.double()
        return logits.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1).detach()

    def total(bias_features: torch.Tensor, bias_labels: torch.Tensor) -> torch.Tensor:
        p, b = probability(0, bias_features, batch.y), probability(1, bias_features, bias_labels)
        return (weight * -p.log()).mean() + 10 * (0.7 * b**0.7 * -b.log()).mean()

    losses = torch.stack([-probability(head, other, batch.y).log() for head in (1, 0)])
    largest = torch.stack([losses[:, batch.y == label].amax(1) for label in batch.y], 1)
    biased, debiased_ = losses / largest
    weight = biased / (biased + debiased_ + 1e-8)
    expected = total(other, batch.y)
    if step == 6:
        order = torch.randperm(4, generator=experiment.rng("disent/swaps"))
        expected = expected + total(other[order], batch.y[order])
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


def test_no_gradient_passes_to_the_other_encoder() -> None:
    pair, batch, _ = pair_and_batch()
    intrinsic, biased = pair.answers(pair.intrinsic.features(batch.x), pair.biased.features(batch.x))
    intrinsic.sum().backward()
    assert all(weight.grad is None for weight in pair.biased.parameters())
    assert any(weight.grad is not None for weight in pair.intrinsic.body.parameters())
    pair.zero_grad(set_to_none=True)
    biased.sum().backward()
    assert all(weight.grad is None for weight in pair.intrinsic.parameters())


def test_the_kept_network_answers_as_the_pair_with_mean_bias_features() -> None:
    pair, batch, _ = pair_and_batch()
    mean = torch.rand(pair.biased.head.in_features)
    with torch.no_grad():
        expected = pair.answers(pair.intrinsic.features(batch.x), mean.expand(4, -1))[0]
        torch.testing.assert_close(pair.kept(mean)(batch.x), expected)
