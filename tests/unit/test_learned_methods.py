"""Methods that learn which weights stay: forward passes, gradients and schedules against hand-worked numbers."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment
from torch import nn

from prunebench.methods.continuous import SoftMasks
from prunebench.methods.edge_popup import initial_scores
from prunebench.methods.experiment import Experiment
from prunebench.methods.movement import MovementPruning
from prunebench.methods.soft_threshold import SoftThreshold
from prunebench.methods.top_kast import AlwaysSparse
from prunebench.pruning.counts import keep_count, top_k
from prunebench.pruning.distribution import layer_counts
from prunebench.pruning.masks import prunable
from prunebench.pruning.reparametrised import ScoredMasks
from prunebench.results.spec import Recipe
from prunebench.training.beside import SideOptimizer
from prunebench.training.loop import Step, holds_known_layers_alone


def linear(*rows: list[float]) -> nn.Linear:
    """A layer with these weights, float64, no bias; its name is `weight`."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return layer


ONE = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)


def stage(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, dict]]:
    """Networks and settings of every training from now on."""
    seen: list[tuple[nn.Module, dict]] = []
    train = experiment.train

    def watched(model, **settings):  # type: ignore[no-untyped-def]
        seen.append((model, settings))
        return train(model, **settings)

    monkeypatch.setattr(experiment, "train", watched)
    return seen


# Straight-through masks: movement and edge-popup


def test_scores_gather_the_weight_times_the_gradient_of_the_masked_weight() -> None:
    layer = linear([0.5, -1.0, 2.0, -3.0])
    scores = {"weight": torch.tensor([[0.3, -0.9, 0.1, 0.2]], dtype=torch.float64)}
    learner = ScoredMasks(layer, scores)
    learner.counts = {"weight": 2}
    assert learner.masks()["weight"].tolist() == [[True, False, False, True]]
    out = learner(ONE)
    assert out.item() == 0.5 * 1 - 3.0 * 4
    out.backward()
    # dL/dw' = x; dL/ds = x w for all weights, dL/dw = x m
    assert learner.scores[0].grad.tolist() == [[0.5, -2.0, 6.0, -12.0]]
    assert layer.weight.grad.tolist() == [[1.0, 0.0, 0.0, 4.0]]


def test_absolute_scores_choose_and_learn_by_their_sign() -> None:
    layer = linear([0.5, -1.0, 2.0, -3.0])
    scores = {"weight": torch.tensor([[0.3, -0.9, 0.1, 0.2]], dtype=torch.float64)}
    learner = ScoredMasks(layer, scores, absolute=True)
    learner.counts = {"weight": 2}
    assert learner.masks()["weight"].tolist() == [[True, True, False, False]]
    learner(ONE).backward()
    assert learner.scores[0].grad.tolist() == [[0.5, 2.0, 6.0, -12.0]]


def test_movement_follows_the_cubic_and_keeps_masked_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 fine-tuning steps: density 1 until step 4, cubic until 32, every layer as dense."""
    experiment = tiny_experiment("movement", finetune_steps=40)
    seen = stage(experiment, monkeypatch)
    counts: dict[int, dict[str, int]] = {}
    dense = {name: weight.detach().clone() for name, weight in prunable(experiment.dense_model()).items()}
    seen.clear()
    original = ScoredMasks.weights

    def count(self: ScoredMasks) -> dict:
        counts[len(counts)] = dict(self.counts)
        return original(self)

    monkeypatch.setattr(ScoredMasks, "weights", count)
    pruned = MovementPruning().fit(experiment, 0.8)
    total = sum(weight.numel() for weight in dense.values())
    shapes = {name: tuple(weight.shape) for name, weight in dense.items()}
    for step in (1, 4, 5, 10, 20, 31, 32, 39):
        left = 1 - max(step - 4, 0) / 28 if step < 32 else 0.0
        keep = keep_count(total, 0.8 - 0.8 * left**3)
        assert counts[step] == layer_counts("uniform", shapes, keep), "what the pass after the step had"
    assert experiment.training_steps == 30 + 40
    ((learner, settings),) = [entry for entry in seen if entry[1]["name"] == "movement"]
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == counts[39]
    scores, kept = learner.scores[0].detach(), pruned.masks["body.0.weight"]
    assert scores[kept].min() >= scores[~kept].max()
    assert settings["lr"] == experiment.recipe.finetune_lr


def test_movement_prefers_weights_that_grow_over_large_ones_that_shrink() -> None:
    """L = x w with x > 0 draws w down: a positive weight moves to zero, a negative one away from it."""
    layer = linear([5.0, -0.1])
    learner = ScoredMasks(layer, {"weight": torch.zeros(1, 2, dtype=torch.float64)})
    sgd = torch.optim.SGD(learner.parameters(), lr=0.1)
    learner(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    sgd.step()
    learner.counts = {"weight": 1}
    assert learner.scores[0].tolist() == [[-0.5, 0.1 * 0.1]]
    assert learner.masks()["weight"].tolist() == [[False, True]]


def test_edge_popup_trains_scores_alone() -> None:
    experiment, pruned = fitted("edge-popup", 0.8)
    assert experiment.training_steps == 40
    weights = prunable(pruned.model)
    for name, weight in weights.items():
        mask = pruned.masks[name]
        density = int(mask.sum()) / mask.numel()
        scale = math.sqrt(2 / (weight[0].numel() * density))
        assert torch.allclose(weight[mask].detach().abs(), torch.tensor(scale)), "constants, by layer"
        initial = prunable(experiment.new_model())[name]
        assert torch.equal(weight[mask] < 0, initial[mask] < 0), "signs are those of the initial weights"
    sizes = {name: tuple(weight.shape) for name, weight in weights.items()}
    keep = sum(int(mask.sum()) for mask in pruned.masks.values())
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == layer_counts(
        "uniform", sizes, keep
    )
    for module in pruned.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (pruned.model.head.bias == 0).all()
    start = initial_scores(experiment.new_model(), experiment.rng("scores"))
    name = "body.3.weight"
    first = top_k(start[name].abs(), int(pruned.masks[name].sum()))
    assert not torch.equal(pruned.masks[name], first), "the scores have moved"


def test_steps_that_python_changes_are_not_captured() -> None:
    net = tiny_experiment("movement").new_model()
    assert holds_known_layers_alone(net)
    assert not holds_known_layers_alone(ScoredMasks(net, dict(prunable(net))))


# STR


def test_soft_thresholds_shrink_and_learn_by_hand() -> None:
    layer = linear([0.5, -1.0, 0.2, -3.0])
    learner = SoftThreshold(layer, math.log(0.25 / 0.75))  # sigmoid is 1/4
    learner.double()
    found = learner.weights()["weight"].tolist()[0]
    assert found == pytest.approx([0.25, -0.75, 0.0, -2.75], abs=1e-7)
    out = learner(ONE)
    assert out.item() == pytest.approx(0.25 - 0.75 * 2 - 2.75 * 4, abs=1e-6)
    out.backward()
    assert layer.weight.grad.tolist() == [[1.0, 2.0, 0.0, 4.0]]
    # dw'/ds = -sign(w) sigmoid'(s) of what survives: -(1 - 2 - 4) * 3/16
    assert learner.s.grad.item() == pytest.approx(5 * 3 / 16, abs=1e-6)


def test_a_shift_leaves_as_many_weights_as_asked_over_all_layers() -> None:
    net = tiny_experiment("str-swept").new_model()
    total = sum(weight.numel() for weight in prunable(net).values())
    learner = SoftThreshold(net, 0.0, keep=total)
    with torch.no_grad():
        learner.s.copy_(torch.tensor([0.5, -0.3, 0.2, 1.0]))
    assert all(torch.equal(value, prunable(net)[name]) for name, value in learner.weights().items())
    for keep in (total - 1, total // 2, total // 10):
        learner.keep = keep
        alive = {name: int((value != 0).sum()) for name, value in learner.weights().items()}
        assert abs(sum(alive.values()) - keep) <= 2, "float32 thresholds may meet a weight"
        thresholds = torch.sigmoid(learner.s + learner.shift())
        for (name, weight), threshold in zip(prunable(net).items(), thresholds):
            assert alive[name] == int((weight.abs() > threshold).sum())


def test_str_s_decay_draws_thresholds_up_as_published() -> None:
    """Without a gradient s shrinks by the closed form of SGD with momentum; weights are left to the loop."""
    s = nn.Parameter(torch.tensor([-3200.0], dtype=torch.float64))
    beside = SideOptimizer(
        [s], Recipe(10, 1, 1, schedule="cosine"), lr=0.256, momentum=0.875, weight_decay=0.01
    )
    want, speed = -3200.0, 0.0
    for number in range(1, 11):
        s.grad = torch.zeros_like(s)
        step = Step(number)
        step.of = 10
        beside.step(step)
        speed = 0.875 * speed + 0.01 * want
        want -= 0.256 * 0.5 * (1 + math.cos(math.pi * (number - 1) / 10)) * speed
        assert s.item() == pytest.approx(want, rel=1e-12)
    assert s.grad.item() == 0  # type: ignore[union-attr]


def test_str_chooses_its_sparsity_and_str_swept_meets_the_asked_one() -> None:
    experiment, pruned = fitted("str", None)
    assert experiment.training_steps == 40
    for name, weight in prunable(pruned.model).items():
        assert int(((weight != 0) & ~pruned.masks[name]).sum()) == 0
    experiment, _ = fitted("str-swept", 0.9)
    assert experiment.training_steps == 40


# Continuous sparsification


def test_soft_masks_by_hand_and_in_their_limit() -> None:
    layer = linear([0.5, -1.0, 2.0, -3.0])
    learner = SoftMasks(layer, -0.01).double()
    assert torch.allclose(learner.weights()["weight"], layer.weight, atol=1e-7), "at first w itself"
    with torch.no_grad():
        learner.s[0].copy_(torch.tensor([[0.02, -0.03, 0.0, -0.01]]))
    learner.beta = 100.0
    scale = 1 + math.exp(0.01)
    soft = [scale / (1 + math.exp(-100 * s)) for s in (0.02, -0.03, 0.0, -0.01)]
    assert learner.masks()["weight"].tolist()[0] == pytest.approx(soft, rel=1e-6)
    learner(ONE).backward()
    sharp = [100 * one * (1 - one / scale) for one in soft]
    want = [x * w * slope for x, w, slope in zip((1, 2, 3, 4), (0.5, -1.0, 2.0, -3.0), sharp)]
    assert learner.s[0].grad.tolist()[0] == pytest.approx(want, rel=1e-6)
    learner.harden()
    assert layer.weight.tolist()[0] == pytest.approx([0.5 * scale, 0.0, 2.0 * scale, 0.0], rel=1e-6)


def test_continuous_sparsification_anneals_and_holds_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    betas: list[float] = []
    original = SoftMasks.weights

    def look(self: SoftMasks) -> dict:
        betas.append(self.beta)
        return original(self)

    monkeypatch.setattr(SoftMasks, "weights", look)
    experiment, pruned = fitted("continuous-sparsification", None)
    assert betas[0] == 1
    assert betas[29] == pytest.approx(200)
    assert betas[10] == pytest.approx(200 ** (10 / 29))
    assert experiment.training_steps == 40
    assert sum(int(mask.sum()) for mask in pruned.masks.values()) > 0


# Top-KAST


def test_top_kast_answers_with_the_largest_and_trains_twice_as_many() -> None:
    layer = linear([0.5, -1.0, 2.0, -3.0], [0.1, 0.2, 0.3, 0.4])
    learner = AlwaysSparse(layer, 0.75, 2.0)
    assert learner.answering["weight"].tolist() == [[False, False, True, True], [False] * 4]
    out = learner(ONE)
    assert out.tolist() == [[2.0 * 3 - 3.0 * 4, 0.0]]
    out.sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0] * 4], "0.5 and -1 explore"
    layer.weight.grad = None
    loss = learner.exploration_loss()
    assert loss.item() == pytest.approx((4 + 9) / 2 + (0.25 + 1) / 0.25 / 2)
    loss.backward()
    assert layer.weight.grad.tolist() == [[2.0, -4.0, 2.0, -3.0], [0.0] * 4]


@pytest.mark.parametrize("name", ["movement", "top-kast", "edge-popup", "str-swept"])
def test_sparsity_is_exact_and_masks_hold(name: str) -> None:
    experiment, _ = fitted(name, 0.95)
    assert experiment.training_steps == 40
