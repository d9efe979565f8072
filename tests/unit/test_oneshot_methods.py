"""One-shot, second-order and 2:4 methods against their formulas, worked out by hand or entry by entry in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_experiment import fitted, tiny_experiment
from torch import Tensor, nn

from prunebench.methods.second_order import FisherBlocks, largest_so_far
from prunebench.methods.semi_structured import RefinedPattern, straight_through, two_four
from prunebench.methods.taylor import taylor
from prunebench.methods.wanda import ranks_within_outputs, wanda
from prunebench.models import build_model
from prunebench.pruning.distribution import allocate
from prunebench.pruning.masks import keep_count, make_masks, prunable
from prunebench.training.loop import Batch
from prunebench.training.losses import task_loss

F64 = torch.float64


@pytest.mark.parametrize("name", ["wanda", "lamp", "taylor", "woodfisher", "cap"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_sparsity_is_exact_and_masks_hold(name: str, sparsity: float) -> None:
    experiment, _ = fitted(name, sparsity)
    measured = {"taylor": 8, "wanda": -(-8 // 3), "woodfisher": 1024 // 16, "cap": 1024 // 16}
    assert experiment.training_steps == 30 + 10 + measured.get(name, 0)


# Wanda


def test_ranks_by_hand() -> None:
    values = torch.tensor([[0.3, 0.1, 0.2], [5.0, 7.0, 5.0]])
    assert ranks_within_outputs(values).tolist() == [[2, 0, 1], [1, 2, 0]], (
        "of equals the later one goes first"
    )


def test_every_output_keeps_its_best_by_weight_times_input_norm() -> None:
    """The rule of the authors' code: in each row the floor(in * s) smallest |W| * sqrt(sum x^2) go."""
    experiment = tiny_experiment("wanda")
    model = experiment.dense_model()
    scores = experiment.scores(wanda, model)
    mask = make_masks({"head.weight": scores["head.weight"]}, 0.5, allocation="uniform")["head.weight"]
    inputs = []
    hook = model.head.register_forward_pre_hook(lambda _, x: inputs.append(x[0].double()))
    model.eval()
    with torch.no_grad():
        for x, _ in experiment._some_batches("statistics", 8):
            model(x)
    hook.remove()
    metric = model.head.weight.detach().double().abs() * torch.cat(inputs).square().sum(0).sqrt()
    width = metric.shape[1]
    for row, kept in zip(metric, mask):
        assert abs(int(kept.sum()) - width / 2) <= 1
        assert set(row.argsort(descending=True)[: int(kept.sum())].tolist()) == set(
            kept.nonzero().flatten().tolist()
        )


# LAMP


def test_lamp_by_hand() -> None:
    """Scores 1/14, 4/13, 9/9 of (1, 2, 3) and 16/41, 25/25 of (4, 5): two go, both of the first layer."""
    weights = {"a": torch.tensor([[1.0, -2.0, 3.0]]), "b": torch.tensor([[4.0, 5.0]])}
    scores = {name: weight.abs() for name, weight in weights.items()}
    assert allocate("lamp", scores, weights, 3) == {"a": 1, "b": 2}
    assert allocate("lamp", scores, weights, 2) == {"a": 1, "b": 1}


def test_lamp_keeps_the_highest_lamp_scores_of_all() -> None:
    """The scores of the authors' formula, one weight at a time."""
    experiment = tiny_experiment("lamp")
    weights = {name: one.detach() for name, one in prunable(experiment.dense_model()).items()}
    scores = {name: one.abs() for name, one in weights.items()}
    masks = make_masks(scores, 0.8, allocation="lamp", weights=weights)
    lamp = {
        name: torch.stack([one.double().square()[one.abs() >= value.abs()].sum() for value in one.flatten()])
        for name, one in weights.items()
    }
    flat = torch.cat([weights[name].double().flatten().square() / lamp[name] for name in weights])
    kept = torch.cat([masks[name].flatten() for name in weights])
    assert flat[kept].min() >= flat[~kept].max()
    assert int(kept.sum()) == keep_count(len(flat), 0.8)


# Taylor


def test_taylor_is_weight_times_gradient() -> None:
    experiment = tiny_experiment("taylor")
    model = experiment.dense_model()
    scores, gradients = experiment.scores(taylor, model), experiment.gradients(model)
    for name, weight in prunable(model).items():
        assert torch.equal(scores[name], (weight.detach() * gradients[name]).abs())


# WoodFisher and CAP


def some_blocks(numel: int = 17, size: int = 6, damp: float = 1e-3) -> tuple[FisherBlocks, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(numel, 1, generator=generator, dtype=F64)
    gradients = torch.randn(40, numel, generator=generator, dtype=F64)
    padded = nn.functional.pad(gradients, (0, -numel % size)).unflatten(1, (-1, size))
    fisher = torch.einsum("nbi,nbj->bij", padded, padded) / 40
    return FisherBlocks.of(weight, fisher, damp), gradients


def test_the_inverse_is_that_of_the_authors_recursion() -> None:
    """F_n+1^-1 = F_n^-1 - F_n^-1 g g^T F_n^-1 / (N + g^T F_n^-1 g), from I / damp (Singh & Alistarh, equation 3)."""
    blocks, gradients = some_blocks()
    for number in range(2):
        inverse = torch.eye(6, dtype=F64) / 1e-3
        for gradient in gradients[:, 6 * number : 6 * number + 6]:
            column = inverse @ gradient
            inverse -= torch.outer(column, column) / (40 + gradient @ column)
        assert torch.allclose(blocks.inverse[number], inverse, rtol=1e-9)


def test_saliency_and_compensation_entry_by_entry() -> None:
    blocks, _ = some_blocks()
    gone = torch.zeros(3, 6, dtype=torch.bool)
    gone[0, 1] = gone[0, 4] = gone[2, 0] = True
    found = blocks.compensated(gone)
    expected = blocks.weights.clone()
    for block, at in ((0, 1), (0, 4), (2, 0)):
        inverse, w = blocks.inverse[block], blocks.weights[block, at]
        assert blocks.saliency()[block, at] == pytest.approx(float(w**2 / (2 * inverse[at, at])), rel=1e-12)
        expected[block] -= w / inverse[at, at] * inverse[:, at]
    assert torch.allclose(found, expected, rtol=1e-12)
    assert found[2, 0] == pytest.approx(0, abs=1e-12), "the one that goes alone goes to zero"
    assert torch.equal(found[1], blocks.weights[1])


def test_elimination_is_the_best_answer_of_the_quadratic() -> None:
    """After n removals the weights minimise dw^T F dw / 2 with those at zero, and the costs sum to its value."""
    blocks, _ = some_blocks()
    when, costs = blocks.eliminate()
    for count in (1, 3, 5):
        weights = blocks.compensated_together(when < count)
        for block in range(2):
            fisher, start = torch.linalg.inv(blocks.inverse[block]), blocks.weights[block]
            gone, free = when[block] < count, when[block] >= count
            assert int(gone.sum()) == count
            best = start.clone()
            best[gone] = 0
            best[free] += torch.linalg.solve(fisher[free][:, free], fisher[free][:, gone] @ start[gone])
            assert torch.allclose(weights[block], best, rtol=1e-8, atol=1e-10)
            change = best - start
            value = float(change @ fisher @ change / 2)
            assert float(costs[block][gone].sum()) == pytest.approx(value, rel=1e-8)


def test_the_first_to_go_is_the_least_and_padding_never_goes() -> None:
    blocks, _ = some_blocks()
    when, _ = blocks.eliminate()
    assert (when == 0).nonzero().tolist() == [
        [block, int(blocks.saliency()[block][blocks.real[block]].argmin())] for block in range(3)
    ]
    assert torch.isinf(when[2, 5])
    assert not blocks.real[2, 5]
    assert blocks.unblocked(when).shape == (17, 1)


def test_costs_so_far_by_hand() -> None:
    when, costs = torch.tensor([[2.0, 0, 1]]), torch.tensor([[4.0, 5, 1]])
    assert largest_so_far(when, costs).tolist() == [[5, 5, 5]]


def test_correlations_taken_together_cost_less() -> None:
    """On a Fisher matrix with strong correlations, CAP's weights are nearer to the dense ones in its norm."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(60, 1, generator=generator, dtype=F64) + 0.5 * torch.randn(
        60, 12, generator=generator, dtype=F64
    )
    blocks = FisherBlocks.of(
        torch.randn(12, generator=generator, dtype=F64), (gradients.T @ gradients / 60).unsqueeze(0), 1e-6
    )
    fisher = torch.linalg.inv(blocks.inverse[0])

    def cost(weights: Tensor) -> float:
        change = (weights - blocks.weights)[0]
        return float(change @ fisher @ change / 2)

    gone = blocks.saliency().argsort().argsort() < 6
    alone = torch.where(gone, 0, blocks.compensated(gone))
    assert (
        cost(blocks.compensated_together(blocks.eliminate()[0] < 6))
        < cost(alone)
        < cost(torch.where(gone, 0, blocks.weights))
    )


# 2:4


def fours(weight: Tensor) -> Tensor:
    return (weight != 0).movedim(1, -1).reshape(-1, 4).sum(1)


@pytest.mark.parametrize("name", ["magnitude-2-4", "sr-ste"])
def test_two_of_four_stay_wherever_four_divides_the_inputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiny_experiment.MODEL", "convnet-small@0.25")
    experiment, pruned = fitted(name, None)
    halved = [one for one in prunable(pruned.model).values() if one.shape[1] % 4 == 0]
    whole = [one for one in prunable(pruned.model).values() if one.shape[1] % 4]
    assert halved
    assert whole
    assert all((fours(weight) == 2).all() for weight in halved)
    assert all((weight != 0).all() for weight in whole)
    assert experiment.training_steps == 30 + 10


def test_refined_straight_through_gradients_by_hand() -> None:
    """dL/dw at the masked weights, plus decay * w where masked (Zhou et al., equation 9)."""
    net: Any = build_model("convnet-small@0.25", 3, seed=0).double()
    batch = Batch(torch.rand(6, 3, 16, 16, dtype=F64), torch.arange(6) % 3, torch.arange(6), 0)
    masks, dense = two_four(net), {name: one.detach().clone() for name, one in prunable(net).items()}
    loss = straight_through(0.1)(RefinedPattern(net), batch)
    found = dict(zip(prunable(net), torch.autograd.grad(loss, list(prunable(net).values()))))
    with torch.no_grad():
        for name, weight in prunable(net).items():
            assert torch.equal(weight, dense[name]), "the weights themselves stay dense"
            weight.mul_(masks[name])
    slopes = torch.autograd.grad(task_loss(net(batch.x), batch.y), list(prunable(net).values()))
    for (name, gradient), slope in zip(found.items(), slopes):
        assert torch.allclose(gradient, slope + 0.1 * dense[name] * ~masks[name], rtol=1e-4, atol=1e-7)
    assert any((~mask).any() for mask in masks.values())
