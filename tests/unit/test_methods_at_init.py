"""Methods that prune at initialisation, against their formulas worked out by hand or entry by entry in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.discovery import builtin_methods
from prunebench.methods.force import ForesightPruning
from prunebench.methods.grasp import grasp
from prunebench.methods.synflow import flow_scores, synflow
from prunebench.pruning.distribution import layer_counts
from prunebench.pruning.masks import make_masks, prunable
from prunebench.pruning.schedule import exponential_targets


def test_random_erk_has_the_counts_of_erk_from_initialisation() -> None:
    experiment, pruned = fitted("random-erk", 0.9)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(pruned.model).items()}
    keep = sum(int(mask.sum()) for mask in pruned.masks.values())
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == layer_counts("erk", shapes, keep)
    assert experiment.training_steps == 30 + 10


# SynFlow


def test_the_flow_of_two_layers_by_hand() -> None:
    """R = |a| |w|: sums over the paths from each input to each output, negative weights as if positive."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))  # type: ignore[union-attr]
        net[2].weight.copy_(torch.tensor([[-4.0, 1.0]]))  # type: ignore[union-attr]
    scores = flow_scores(net, (2,))
    assert scores["0.weight"].tolist() == [[4.0, 8.0], [3.0, 0.5]]
    assert scores["2.weight"].tolist() == [[12.0, 3.5]]
    assert scores["0.weight"].dtype == torch.float64


def test_the_flow_is_conserved_and_ignores_signs_and_running_statistics_signs() -> None:
    """With no biases each layer's scores sum to R (Tanaka et al., theorem 2); BatchNorm's buffers are absolute."""
    experiment = tiny_experiment("synflow")
    model = experiment.new_model().eval()
    with torch.no_grad():
        model.head.bias.zero_()
    scores = flow_scores(copy.deepcopy(model), (3, 8, 8))
    sums = [float(values.sum()) for values in scores.values()]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-12)
    flipped = copy.deepcopy(model)
    with torch.no_grad():
        for weight in prunable(flipped).values():
            weight.neg_()
    again = flow_scores(flipped, (3, 8, 8))
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    held = experiment.scores(synflow, model)
    assert all(torch.equal(scores[name], held[name]) for name in scores)
    assert all((weight < 0).any() for weight in prunable(model).values()), "the model itself is left alone"


def test_synflow_has_a_hundred_rounds_and_no_layer_collapses() -> None:
    method = builtin_methods()["synflow"]
    assert method.params == {
        "allocation": "global",
        "schedule": "exponential",
        "start": "init",
        "rounds": 100,
    }
    targets = exponential_targets(100, 0.99)
    assert targets[49] == pytest.approx(1 - 0.01**0.5, abs=1e-12), "densities 0.01^(k / 100), not sparsities"
    experiment, pruned = fitted("synflow", 0.99)
    assert min(int(mask.sum()) for mask in pruned.masks.values()) > 1
    one, _ = fitted("synflow", 0.99, rounds=1)
    assert experiment.training_steps == one.training_steps + 99


@pytest.mark.parametrize("settings", [{"structure": "filter", "rounds": 10}, {"schedule": "cubic"}])
def test_what_went_does_not_come_back_in_other_structures_and_schedules(settings: dict) -> None:
    fitted("synflow", 0.98, **settings)


# GraSP


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    """The Hessian entry by entry in float64, of the mean of the batches' losses of logits / 200."""
    experiment = tiny_experiment("grasp")
    model = experiment.new_model()
    found = experiment.scores(grasp, model)["head.weight"]
    batches = list(experiment._some_batches("statistics", 8))
    net = copy.deepcopy(model).double().eval()
    rest = {name: value.detach() for name, value in net.named_parameters()}
    names = list(prunable(net))

    def loss(*weights: Tensor) -> Tensor:
        given = {**rest, **dict(zip(names, weights))}
        each = [
            functional.cross_entropy(torch.func.functional_call(net, given, (x.double(),)) / 200, y)
            for x, y in batches
        ]
        return torch.stack(each).mean()

    weights = tuple(rest[name] for name in names)
    last = len(names) - 1
    slopes = torch.func.grad(loss, argnums=tuple(range(len(names))))(*weights)

    def slope_along(last_weight: Tensor) -> Tensor:
        parts = torch.func.grad(loss, argnums=tuple(range(len(names))))(*weights[:last], last_weight)
        return sum((part * slope.detach()).sum() for part, slope in zip(parts, slopes))  # type: ignore[return-value]

    flat, want, step = weights[last].flatten(), [], 1e-4
    for at in range(0, flat.numel(), 7):  # H g by differences of g . grad
        change = torch.zeros_like(flat)
        change[at] = step
        up, down = (slope_along((flat + sign * change).view_as(weights[last])) for sign in (1, -1))
        want.append(float(flat[at] * (up - down) / (2 * step)))
    got = found.flatten()[::7].double()
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), rtol=2e-3, atol=1e-9)


def test_what_grasp_removes_is_what_hurts_the_flow_of_gradients_least() -> None:
    """The sign, on a quadratic by hand: L = (3 a^2 + b^2) / 2 at (1, -1): g = (3, -1), w (Hg) = (9, 1)."""
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([3.0, 1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad((scale * weight**2).sum() / 2, weight, create_graph=True)
    (product,) = torch.autograd.grad(slope, weight, slope.detach())
    score = weight * product
    assert score.tolist() == [9.0, 1.0]
    kept = make_masks({"w": score}, 0.5)["w"]
    assert kept.tolist() == [True, False], "without a, the squared gradient is 1; without b it is 9"


def test_grasp_holds_its_masks() -> None:
    experiment, _ = fitted("grasp", 0.9)
    assert experiment.training_steps == 30 + 10 + 3 * 8


# FORCE


def test_force_scores_masked_weights_by_their_initial_values() -> None:
    """Two rounds by hand: the second takes the gradient under the first's masks, and all initial weights."""
    experiment, other = tiny_experiment("force"), tiny_experiment("force")
    found = ForesightPruning(rounds=2)._skeleton(experiment, 0.84)
    initial = {name: weight.detach() for name, weight in prunable(other.new_model()).items()}
    first, second = other.batches(other.new_model(), steps=2, name="force")
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in initial.items()}
    came_back = 0
    for batch, density in ((first, math.sqrt(0.16)), (second, 0.16)):
        net = other.new_model().train()
        with torch.no_grad():
            for name, weight in prunable(net).items():
                weight.mul_(masks[name])
        functional.cross_entropy(net(batch.x), batch.y).backward()
        scores = {
            name: (initial[name] * weight.grad).abs()  # type: ignore[operator]
            for name, weight in prunable(net).items()
        }
        before, masks = masks, make_masks(scores, 1 - density)
        came_back += sum(int((masks[name] & ~before[name]).sum()) for name in masks)
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert came_back > 0, "weights that were masked may return"


def test_force_holds_its_masks_and_its_rounds_are_charged() -> None:
    experiment, pruned = fitted("force", 0.9)
    assert experiment.training_steps == 30 + 10 + 60
    assert min(int(mask.sum()) for mask in pruned.masks.values()) >= 1
