"""What the dense model alone says: samples by uncertainty, attributes by four criteria and their mean rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics import (
    bias_amplification,
    bias_risk,
    bias_risks,
    bias_variance,
    entropy,
    evaluate_predictability,
    margin,
    margin_uncertainty,
    one_hot,
    rank_correlation,
    uncertain_share,
)

CRITERIA = ["uncertainty", "amplification", "identity_imbalance", "class_imbalance", "combined"]


def attributes(seed: int, samples: int = 600, columns: int = 5) -> dict[str, Tensor]:
    """Labels whose rates depend on the identity, more in later columns, and logits that know them a little."""
    generator = torch.Generator().manual_seed(seed)

    def split() -> tuple[Tensor, Tensor]:
        identity = (torch.rand(samples, generator=generator) < 0.4).long()
        tie = torch.linspace(0.1, 0.35, columns)
        rate = 0.45 + tie * (2 * identity.unsqueeze(1) - 1)
        return (torch.rand(samples, columns, generator=generator) < rate).long(), identity

    label, identity = split()
    train_label, train_identity = split()
    noise = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    logits = noise * torch.linspace(1, 4, columns) + 2 * label - 1 + 0.5 * identity.unsqueeze(1)
    return {
        "dense_logits": logits,
        "label": label,
        "identity": identity,
        "train_label": train_label,
        "train_identity": train_identity,
    }


def risks_of(data: dict[str, Tensor]) -> dict[str, Tensor]:
    positional = [data[name] for name in ("dense_logits", "label", "identity")]
    return bias_risks(*positional, train_label=data["train_label"], train_identity=data["train_identity"])


def test_every_criterion_by_its_formula() -> None:
    data = attributes(0)
    found = risks_of(data)
    assert list(found) == CRITERIA
    logits, train, group = data["dense_logits"], data["train_label"].double(), data["train_identity"]
    amplified = bias_amplification(
        (logits > 0).long(),
        data["label"],
        data["identity"],
        train_label=data["train_label"],
        train_identity=data["train_identity"],
    )
    expected = {
        "uncertainty": ((torch.sigmoid(logits) - 0.5).abs() < 0.4).double().mean(0),
        "amplification": amplified.value,
        "identity_imbalance": (train[group == 1].mean(0) - train[group == 0].mean(0)).abs(),
        "class_imbalance": (train.mean(0) - (1 - train).mean(0)).abs(),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
    ranks = np.mean([stats.rankdata(values) / 5 for values in expected.values()], axis=0)
    assert found["combined"].tolist() == pytest.approx(ranks.tolist())


def test_one_criterion_by_name() -> None:
    data = attributes(1)
    found = risks_of(data)
    assert torch.equal(bias_risk(**data), found["combined"])
    for name in CRITERIA:
        assert torch.equal(bias_risk(**data, criterion=name), found[name])
    with pytest.raises(MetricError, match=r"^criterion: want one of uncertainty, .*, got 'luck'"):
        bias_risk(**data, criterion="luck")


def test_the_identity_itself_has_no_risk_and_no_rank() -> None:
    data = attributes(2)
    data["label"][:, 1], data["train_label"][:, 1] = data["identity"], data["train_identity"]
    found = risks_of(data)
    undefined = [False, True, False, False, False]
    for name in ("amplification", "identity_imbalance", "combined"):
        assert found[name].isnan().tolist() == undefined
    kept = [0, 2, 3, 4]
    others = {name: data[name][:, kept] for name in ("dense_logits", "label", "train_label")}
    torch.testing.assert_close(found["combined"][kept], risks_of({**data, **others})["combined"])


def test_without_one_of_the_groups_nothing_is_defined() -> None:
    data = attributes(3)
    data["train_identity"] = torch.zeros_like(data["train_identity"])
    found = risks_of(data)
    for name in ("amplification", "identity_imbalance", "combined"):
        assert found[name].isnan().all()


def test_risk_of_classes() -> None:
    generator = torch.Generator().manual_seed(4)
    label, train_label = (torch.randint(0, 3, (600,), generator=generator) for _ in range(2))
    colour, train_colour = (
        torch.where(torch.rand(600, generator=generator) < 0.5, y, y.flip(0)) for y in (label, train_label)
    )
    logits = torch.randn(600, 3, generator=generator) + one_hot(label, 3) + one_hot(colour, 3)
    identity, train_identity = one_hot(colour, 3), one_hot(train_colour, 3)
    data = {"dense_logits": logits, "label": label, "identity": identity}
    found = risks_of({**data, "train_label": train_label, "train_identity": train_identity})
    likely = torch.softmax(logits.double(), 1)
    torch.testing.assert_close(found["uncertainty"], ((likely - 0.5).abs() < 0.4).double().mean(0))
    amplified = bias_amplification(
        logits.argmax(1), label, identity, train_label=train_label, train_identity=train_identity
    )
    torch.testing.assert_close(found["amplification"], amplified.value)
    assert not found["combined"].isnan().any()


@given(seed=st.integers(0, 1000))
def test_order_of_samples_and_names_of_the_identity_change_no_risk(seed: int) -> None:
    data = attributes(seed, samples=300)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    moved = {name: values[order] for name, values in data.items()}
    for name in ("identity", "train_identity"):
        moved[name] = 1 - moved[name]
    before, after = risks_of(data), risks_of(moved)
    for name in CRITERIA:
        torch.testing.assert_close(after[name], before[name], equal_nan=True)


def test_risk_names_wrong_arguments() -> None:
    data = attributes(5)
    for name, wrong, message in (
        ("label", data["label"][:, :2], "^label: has 2 columns"),
        ("train_label", data["train_label"][:, :2], "^train_label: has 2 columns"),
        ("train_label", data["train_label"] * 2, "^train_label: want 0 and 1"),
        ("identity", data["identity"][:9], "^identity: has 9 samples"),
        ("identity", torch.stack([data["identity"]] * 2, dim=1), "^identity: has 2 columns"),
        ("train_identity", data["train_identity"][:9], "^train_identity: has 9 samples"),
        ("dense_logits", data["dense_logits"] * math.inf, "^dense_logits: contains"),
    ):
        with pytest.raises(MetricError, match=message):
            bias_risk(**{**data, name: wrong})


def test_entropy_and_margin_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4, and of the attributes 1/2 and 4/5."""
    logits = torch.log(torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64))
    assert entropy(logits).tolist() == pytest.approx([1.5 * math.log(2) / math.log(3)])
    assert margin(logits).tolist() == pytest.approx([0.25])
    binary = torch.tensor([[0.0, math.log(4.0)]], dtype=torch.float64)
    two = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    assert entropy(binary, multi_label=True)[0].tolist() == pytest.approx([1, two])
    assert margin(binary, multi_label=True)[0].tolist() == pytest.approx([0, 0.6])
    assert entropy(binary[0]).tolist() == pytest.approx([1, two])
    assert entropy(torch.tensor([1e4, -1e4])).tolist() == [0, 0]


def test_a_binary_output_reads_the_same_as_one_or_two_logits() -> None:
    binary = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    two = torch.stack([torch.zeros_like(binary), binary], dim=1)
    for metric in (entropy, margin, margin_uncertainty):
        torch.testing.assert_close(metric(binary), metric(two))
        assert torch.equal(metric(binary.unsqueeze(1)), metric(binary))
        assert torch.equal(torch.as_tensor(metric(binary.numpy())), metric(binary))


def test_susceptibility_of_attributes_is_their_mean() -> None:
    logits = 3 * torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).double()
    found = margin_uncertainty(logits, multi_label=True)
    expected = (1 - 2 * (torch.sigmoid(logits) - 0.5).abs()).mean(1)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, margin_uncertainty(logits))
    with pytest.raises(MetricError, match=r"^dense_logits: want 2 dimensions"):
        margin_uncertainty(logits[:, 0], multi_label=True)
    with pytest.raises(MetricError, match=r"^dense_logits: contains"):
        margin_uncertainty(logits / 0)


@pytest.mark.parametrize("band", [0.1, 0.4, 0.49])
def test_uncertain_share_of_many_models(band: float) -> None:
    logits = 3 * torch.randn(3, 200, 4, generator=torch.Generator().manual_seed(2))
    expected = ((torch.sigmoid(logits.double()) - 0.5).abs() < band).double().mean(1)
    torch.testing.assert_close(uncertain_share(logits, band), expected)
    torch.testing.assert_close(uncertain_share(logits[1], band), expected[1])


def test_recall_of_four_samples_by_hand() -> None:
    """The 5 % are one place: the highest score, which happened, of two that did. AUROC: 3 of 4 pairs."""
    result = evaluate_predictability([0.9, 0.2, 0.5, 0.1], [1, 1, 0, 0])
    assert (result.recall_at_5_percent, result.area_under_curve) == (0.5, 0.75)
    assert result.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (result.events, result.samples) == (2, 4)


def test_a_correlation_names_what_no_interval_can_come_from() -> None:
    with pytest.raises(MetricError, match=r"^draws: want at least one"):
        rank_correlation(np.arange(5), np.arange(5), draws=0)
    with pytest.raises(MetricError, match=r"^confidence: want a share"):
        rank_correlation(np.arange(5), np.arange(5), confidence=95)
    with pytest.raises(MetricError, match=r"^second: has 4 values, first 5"):
        rank_correlation(np.arange(5), np.arange(4))


def test_logits_are_no_probabilities() -> None:
    with pytest.raises(MetricError, match=r"^probabilities: found values outside 0\.\.1"):
        bias_variance(torch.randn(3, 20, 4), torch.zeros(20, dtype=torch.int64))


@given(seed=st.integers(0, 1000))
def test_order_and_names_change_no_bias_and_no_variance(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities, label = generator.dirichlet(np.ones(4), (3, 20)), generator.integers(0, 4, 20)
    order, names = generator.permutation(20), generator.permutation(4)
    moved = np.empty_like(probabilities)
    moved[..., names] = probabilities
    before, after = bias_variance(probabilities, label), bias_variance(moved[:, order], names[label][order])
    assert after.bias_squared == pytest.approx(before.bias_squared)
    assert after.variance == pytest.approx(before.variance)
