"""Losses and sampling that debias, against plain computations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.data.images import draw_batches
from prunebench.training import Batch
from prunebench.training.losses import (
    RelativeDifficulty,
    confident_cross_entropy,
    contrastive_loss,
    cross_entropy,
    gce_objective,
    generalised_cross_entropy,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("q", [0.7, 0.3, 1.0])
def test_gce_is_the_formula(q: float) -> None:
    logits, y = 2 * torch.randn(12, 4, generator=seeded()), torch.arange(12) % 4
    probability = logits.softmax(1)[torch.arange(12), y]
    expected = q * probability**q * -probability.log()
    torch.testing.assert_close(generalised_cross_entropy(logits, y, q), expected)


def test_gce_default_is_q_07() -> None:
    logits, y = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0])  # p = 3/4
    expected = 0.7 * 0.75**0.7 * -math.log(0.75)
    assert generalised_cross_entropy(logits, y).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("q", [0.7, 0.3])
def test_gce_gradient_is_q_times_that_of_the_bounded_loss(q: float) -> None:
    logits, y = torch.randn(6, 3, generator=seeded(), dtype=torch.float64), torch.arange(6) % 3
    leaf = logits.clone().requires_grad_()
    generalised_cross_entropy(leaf, y, q).sum().backward()

    def bounded(values: Tensor) -> Tensor:
        probability = values.softmax(1)[torch.arange(6), y]
        return (1 - probability**q) / q

    step, slope = 1e-6, torch.empty_like(logits)
    for column in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[column] = step
        slope[:, column] = (bounded(logits + shift) - bounded(logits - shift)) / (2 * step)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, q * slope, rtol=1e-4, atol=1e-6)


def test_gce_of_hopeless_and_certain_samples_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = generalised_cross_entropy(logits, torch.tensor([0, 0]))
    assert loss.tolist() == [0.0, 0.0]  # p log p tends to 0 on both ends
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_confident_cross_entropy_by_hand() -> None:
    """Probabilities .5, .2 and .04 of the label: above .05 stand two, above .6 none."""
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.04, 0.96]]))
    y = torch.zeros(3, dtype=torch.int64)
    wanted = -(math.log(0.5) + math.log(0.2)) / 2
    assert float(confident_cross_entropy(logits, y, 0.05)) == pytest.approx(wanted)
    assert float(confident_cross_entropy(logits, y, 0.6)) == 0.0


def test_objectives_are_batch_means() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(5, 3), torch.randn(8, 5), torch.arange(8) % 3
    batch = Batch(x, y, torch.arange(8), 0)
    expected = -net(x).log_softmax(1)[torch.arange(8), y].mean()
    torch.testing.assert_close(cross_entropy(net, batch), expected)
    torch.testing.assert_close(gce_objective(net, batch), generalised_cross_entropy(net(x), y).mean())


def naive_contrastive(z: Tensor, y: list[int], conflicting: list[bool], t: float, released: bool) -> float:
    """Anchor by anchor, pair by pair."""
    z, count, losses = z.double(), len(y), []
    for i in range(count):
        cosine = [float(z[i] @ z[a] / (z[i].norm() * z[a].norm())) for a in range(count)]
        others = sum(math.exp(cosine[a] / t) for a in range(count) if a != i)
        positives = [
            p
            for p in range(count)
            if p != i and y[p] == y[i] and (conflicting[p] or (not released and conflicting[i]))
        ]
        if positives:
            losses.append(
                -sum(math.log(math.exp(cosine[p] / t) / others) for p in positives) / len(positives)
            )
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_contrastive_loss_against_a_double_loop(released: bool, temperature: float, seed: int) -> None:
    generator = seeded(seed)
    z = 3 * torch.randn(14, 6, generator=generator)
    y = torch.randint(3, (14,), generator=generator)
    conflicting = torch.rand(14, generator=generator) < 0.3
    loss = contrastive_loss(z, y, conflicting, temperature=temperature, released=released)
    expected = naive_contrastive(z, y.tolist(), conflicting.tolist(), temperature, released)
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_released_and_intended_positives_differ() -> None:
    """One conflicting sample: as released it is nobody's anchor, as intended it is anchor and positive."""
    z = torch.randn(5, 4, generator=seeded())
    y, conflicting = torch.zeros(5, dtype=torch.int64), torch.tensor([True, False, False, False, False])
    released, intended = (contrastive_loss(z, y, conflicting, released=flag) for flag in (True, False))
    for value, flag in ((released, True), (intended, False)):
        expected = naive_contrastive(z, y.tolist(), conflicting.tolist(), 0.07, flag)
        assert value.item() == pytest.approx(expected, rel=1e-4)
    assert released.item() != pytest.approx(intended.item(), rel=1e-2)


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize(
    ("y", "conflicting"),
    [
        ([0, 0, 1, 1], [False, False, False, False]),
        ([0, 1, 2, 3], [True, True, True, True]),
        ([0, 1], [True, False]),
        ([0], [True]),
    ],
    ids=["nothing mined", "all classes differ", "two samples", "one sample"],
)
def test_contrastive_loss_without_positives_is_zero(
    y: list[int], conflicting: list[bool], released: bool
) -> None:
    z = torch.randn(len(y), 4, generator=seeded(), requires_grad=True)
    loss = contrastive_loss(z, torch.tensor(y), torch.tensor(conflicting), released=released)
    assert loss.item() == 0.0
    loss.backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_contrastive_loss_gradient_is_finite_for_equal_and_zero_features() -> None:
    z = torch.zeros(4, 3)
    z[:2] = 1.0
    z.requires_grad_()
    contrastive_loss(z, torch.tensor([0, 0, 0, 0]), torch.tensor([True] * 4)).backward()
    assert torch.isfinite(z.grad).all()  # type: ignore[arg-type]


class PlainDifficulty:
    """LfF's bookkeeping with dictionaries."""

    def __init__(self, y: list[int]) -> None:
        self.y, self.smoothed = y, ({}, {})  # type: tuple[list[int], tuple[dict[int, float], dict[int, float]]]

    def update(self, index: list[int], biased: list[float], debiased: list[float]) -> list[float]:
        for table, losses in zip(self.smoothed, (biased, debiased)):
            for sample, loss in zip(index, losses):
                table[sample] = 0.7 * table[sample] + 0.3 * loss if sample in table else loss
        return [self.weight(sample) for sample in index]

    def weight(self, sample: int) -> float:
        if sample not in self.smoothed[0]:
            return 0.5
        scaled = [
            table[sample] / max(value for other, value in table.items() if self.y[other] == self.y[sample])
            for table in self.smoothed
        ]
        return scaled[0] / (scaled[0] + scaled[1])


def test_relative_difficulty_against_plain_bookkeeping() -> None:
    generator = seeded()
    y = torch.randint(3, (20,), generator=generator)
    difficulty, plain = RelativeDifficulty(y, 3), PlainDifficulty(y.tolist())
    for step in range(6):
        index = torch.randperm(18, generator=generator)[:7]  # samples 18 and 19 are never drawn
        losses = torch.rand(2, 7, generator=generator) * (step + 1) + 0.05
        weights = difficulty.update(index, losses[0], losses[1])
        expected = plain.update(index.tolist(), losses[0].tolist(), losses[1].tolist())
        assert weights.tolist() == pytest.approx(expected, rel=1e-4)
        every = difficulty.all_weights().tolist()
        assert every == pytest.approx([plain.weight(sample) for sample in range(20)], rel=1e-4)
    assert every[18:] == [0.5, 0.5]


def test_relative_difficulty_by_hand() -> None:
    difficulty = RelativeDifficulty(torch.tensor([0, 0, 1]), 2)
    first = difficulty.update(torch.tensor([0, 1]), torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0]))
    assert first.tolist() == pytest.approx([0.25 / 1.25, 0.5])  # 1/4 against 1; 1 against 1
    second = difficulty.update(torch.tensor([0]), torch.tensor([11.0]), torch.tensor([2.0]))
    # m_b = 0.7 * 1 + 0.3 * 11 = 4, now level with sample 1
    assert second.tolist() == pytest.approx([0.5])


def test_relative_difficulty_carries_no_gradient() -> None:
    losses = torch.rand(2, 3, requires_grad=True)
    weights = RelativeDifficulty(torch.tensor([0, 0, 1]), 2).update(torch.arange(3), losses[0], losses[1])
    assert not weights.requires_grad


def test_draw_batches_goes_through_whole_epochs() -> None:
    batches = draw_batches(10, steps=10, batch_size=3, generator=seeded())
    assert batches.shape == (10, 3)
    assert batches.dtype == torch.int64
    epochs = batches.flatten().view(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3


@pytest.mark.parametrize("weight", [None, torch.ones(50)], ids=["epochs", "weighted"])
def test_draw_batches_follows_the_generator(weight: Tensor | None) -> None:
    first, again, other = (
        draw_batches(50, steps=4, batch_size=8, generator=seeded(seed), sample_weight=weight)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_batch_never_exceeds_the_data(weighted: bool) -> None:
    weight = torch.ones(5) if weighted else None
    batches = draw_batches(5, steps=3, batch_size=64, generator=seeded(), sample_weight=weight)
    assert batches.shape == (3, 5)


def test_weighted_frequencies() -> None:
    weight, draws = torch.tensor([1.0, 80.0, 0.0, 19.0]), 60_000
    batches = draw_batches(4, steps=draws // 4, batch_size=4, generator=seeded(), sample_weight=weight)
    counts = torch.bincount(batches.flatten(), minlength=4).tolist()
    assert sum(counts) == draws
    assert counts[2] == 0
    for count, share in zip(counts, (0.01, 0.8, 0.0, 0.19)):
        five_deviations = 5 * math.sqrt(draws * share * (1 - share))  # missed once in two million draws
        assert abs(count - draws * share) <= five_deviations


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(3),
        torch.ones(4, 1),
        torch.tensor([1.0, -1.0, 1.0, 1.0]),
        torch.tensor([1.0, math.nan, 1.0, 1.0]),
        torch.tensor([1.0, math.inf, 1.0, 1.0]),
        torch.zeros(4),
    ],
    ids=["short", "two-dimensional", "negative", "nan", "infinite", "all zero"],
)
def test_wrong_sample_weights(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"sample_weight: want \[4\]"):
        draw_batches(4, steps=2, batch_size=2, generator=seeded(), sample_weight=weight)


def test_cross_entropy_is_torch_s_in_float32() -> None:
    net, x = nn.Linear(3, 4).bfloat16(), torch.randn(5, 3).bfloat16()
    y = torch.tensor([0, 1, 2, 3, 0])
    loss = cross_entropy(net, Batch(x, y, torch.arange(5), 0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, functional.cross_entropy(net(x).float(), y))
