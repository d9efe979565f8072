"""Group accuracies by hand, against plain Python, and where they are undefined."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics import GroupTable, evaluated, group_accuracy, group_tables, summarize_runs
from prunebench.metrics.dependence import interdependence, mean_absolute_correlation, output_correlation
from prunebench.metrics.uncertainty import uncertain_share, uncertainty_summaries

SAMPLES = [  # label, bias, prediction
    (0, 0, 0),
    (0, 0, 0),
    (0, 0, 1),
    (0, 1, 0),
    (0, 1, 1),
    (1, 0, 0),
    (1, 1, 1),
    (1, 1, 1),
    (1, 1, 0),
    (1, 1, 1),
]


def table_of(samples: list[tuple[int, int, int]], aligned_pair: Tensor | None = None) -> GroupTable:
    columns = torch.tensor(samples, dtype=torch.int64).reshape(-1, 3).T
    return group_accuracy(columns[2], columns[0], columns[1], aligned_pair=aligned_pair)


def test_by_hand() -> None:
    table = table_of(SAMPLES)
    assert table.count.tolist() == [[3, 2], [1, 4]]
    assert table.correct.tolist() == [[2, 1], [0, 3]]
    assert table.accuracy.dtype == torch.float64
    assert table.accuracy.flatten().tolist() == pytest.approx([2 / 3, 1 / 2, 0, 3 / 4])
    expected = {
        "plain": 0.6,
        "unbiased": (2 / 3 + 1 / 2 + 0 + 3 / 4) / 4,
        "aligned": (2 / 3 + 3 / 4) / 2,
        "conflicting": 1 / 4,
        "worst_group": 0.0,
        "bias_gap": (2 / 3 + 3 / 4) / 2 - 1 / 4,
    }
    assert table.summary() == pytest.approx(expected)


def test_empty_groups_are_nan_and_skipped() -> None:
    table = table_of([sample for sample in SAMPLES if sample[:2] != (1, 0)])
    assert table.count[1, 0] == 0
    assert torch.isnan(table.accuracy).tolist() == [[False, False], [True, False]]
    assert table.unbiased == pytest.approx((2 / 3 + 1 / 2 + 3 / 4) / 3)
    assert table.conflicting == pytest.approx(1 / 2)
    assert table.worst_group == pytest.approx(1 / 2)


def test_no_conflicting_sample() -> None:
    table = table_of([(0, 0, 0), (1, 1, 0)])
    assert (table.aligned, table.unbiased, table.worst_group) == (0.5, 0.5, 0.0)
    assert math.isnan(table.conflicting)
    assert math.isnan(table.bias_gap)


def test_no_sample_at_all() -> None:
    summary = table_of([]).summary()
    assert len(summary) == 6
    assert all(math.isnan(value) for value in summary.values())


def test_a_prediction_outside_the_labels_is_a_miss() -> None:
    table = table_of([(0, 0, 7), (1, 1, 1)])
    assert table.correct.tolist() == [[0, 0], [0, 1]]


def test_custom_aligned_pair() -> None:
    aligned_pair = torch.tensor([[False, True, True], [True, False, False]])
    samples = [(0, 0, 1), (0, 1, 0), (0, 2, 1), (1, 0, 1), (1, 2, 1)]
    table = table_of(samples, aligned_pair)
    assert table.count.shape == (2, 3)
    assert table.aligned == pytest.approx(2 / 3)  # (0, 1) right, (0, 2) wrong, (1, 0) right
    assert table.conflicting == pytest.approx(1 / 2)  # (0, 0) wrong, (1, 1) empty, (1, 2) right
    assert table.unbiased == pytest.approx(3 / 5)


def test_biases_may_outnumber_labels() -> None:
    assert table_of([(0, 3, 0)]).count.shape == (4, 4)


MANY = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(MANY)
def test_against_plain_python(samples: list[tuple[int, int, int]]) -> None:
    groups: dict[tuple[int, int], list[bool]] = {}
    for label, bias, prediction in samples:
        groups.setdefault((label, bias), []).append(label == prediction)
    accuracy = {group: sum(hits) / len(hits) for group, hits in groups.items()}
    aligned = [value for (label, bias), value in accuracy.items() if label == bias]
    conflicting = [value for (label, bias), value in accuracy.items() if label != bias]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    expected = {
        "plain": mean([float(hit) for hits in groups.values() for hit in hits]),
        "unbiased": mean(list(accuracy.values())),
        "aligned": mean(aligned),
        "conflicting": mean(conflicting),
        "worst_group": min(accuracy.values()),
        "bias_gap": mean(aligned) - mean(conflicting),
    }
    assert table_of(samples).summary() == pytest.approx(expected, nan_ok=True)


@given(MANY, st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(samples: list[tuple[int, int, int]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(samples)
    random.shuffle(shuffled)
    for one, other in zip(astuple(table_of(samples)), astuple(table_of(shuffled))):
        assert torch.equal(one, other)


def test_numpy_arrays_are_taken() -> None:
    columns = np.array(SAMPLES).T
    found = group_accuracy(columns[2], columns[0], columns[1])
    assert found.summary() == table_of(SAMPLES).summary()


def test_labels_that_are_no_integers_are_named() -> None:
    whole, halves = torch.tensor([0, 1]), torch.tensor([0.0, 0.5])
    with pytest.raises(MetricError, match=r"^label: want integers"):
        group_accuracy(whole, halves, whole)
    with pytest.raises(MetricError, match=r"^bias: want integers"):
        group_accuracy(whole, whole, halves)


def test_autocast_changes_no_count() -> None:
    label = torch.zeros(999, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = group_accuracy(label, label, label)
    assert table.correct.tolist() == [[999]]


def test_labels_as_bytes_do_not_wrap_around() -> None:
    label = torch.arange(20).repeat(3)
    bias = label.flip(0)
    expected = group_accuracy(label, label, bias)
    found = group_accuracy(label.to(torch.uint8), label.to(torch.uint8), bias.to(torch.uint8))
    assert torch.equal(found.count, expected.count)
    assert torch.equal(found.correct, expected.correct)


def test_one_sample_is_named() -> None:
    with pytest.raises(MetricError, match=r"^prediction: want at least two samples"):
        interdependence(np.zeros((1, 3)))
    with pytest.raises(MetricError, match=r"^logits: want at least two samples"):
        output_correlation(np.zeros((1, 3)))


def test_range_errors() -> None:
    one, pair = torch.tensor([1]), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"label: values outside 0\.\.1"):
        group_accuracy(one, torch.tensor([2]), one, aligned_pair=pair)
    with pytest.raises(ValueError, match=r"bias: values outside 0\.\.2"):
        group_accuracy(one, one, torch.tensor([3]), aligned_pair=pair)
    for name, label, bias in (("label", -one, one), ("bias", one, -one)):
        with pytest.raises(ValueError, match=f"{name}: values outside"):
            group_accuracy(one, label, bias)


def test_shape_errors() -> None:
    two, three = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="label: want shape"):
        group_accuracy(two, three, two)
    with pytest.raises(ValueError, match="bias: want shape"):
        group_accuracy(two, two, three)
    with pytest.raises(ValueError, match="prediction: want shape"):
        group_accuracy(two.view(1, 2), two.view(1, 2), two.view(1, 2))
    for pair in (torch.ones(2, dtype=torch.bool), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="aligned_pair: want bool"):
            group_accuracy(two, two, two, aligned_pair=pair)


def test_uncertainty_summaries_by_hand() -> None:
    logits = torch.tensor(
        [[0.0, 0.0, 0.0, 0.0], [math.log(7.0), 0.0, 0.0, 0.0]]
    )  # 1/4 each; 0.7, 0.1, 0.1, 0.1
    (summary,) = uncertainty_summaries(logits.unsqueeze(0), torch.tensor([2, 0]))
    surprise = -0.7 * math.log(0.7) - 0.3 * math.log(0.1)
    assert summary == pytest.approx(
        {
            "entropy": (1 + surprise / math.log(4)) / 2,
            "confidence": (0.25 + 0.7) / 2,
            "margin": 0.6 / 2,
            "negative_log_likelihood": (math.log(4) - math.log(0.7)) / 2,
        }
    )


def test_uncertainty_summaries_of_a_sure_model() -> None:
    (summary,) = uncertainty_summaries(torch.tensor([[[50.0, -50.0]] * 3]), torch.tensor([0, 0, 1]))
    assert summary == pytest.approx(
        {"entropy": 0.0, "confidence": 1.0, "margin": 1.0, "negative_log_likelihood": 100 / 3}, abs=1e-6
    )


def test_uncertain_share_by_hand() -> None:
    border = math.log(9)  # sigmoid = 0.9
    logits = torch.tensor([[0.0, 3.0], [border - 1e-6, -3.0], [border + 1e-6, 0.1], [-border - 1e-6, 9.0]])
    assert uncertain_share(logits).tolist() == [0.5, 0.25]
    with pytest.raises(MetricError, match=r"^band"):
        uncertain_share(logits, band=0.5)


def test_output_correlation_and_interdependence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    logits[:, 3] = 1.0
    expected = np.corrcoef(logits[:, :3].numpy().T)
    found = output_correlation(logits)
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-12)
    assert torch.isnan(found[3]).all()
    mean = mean_absolute_correlation(logits.unsqueeze(0))
    assert float(mean) == pytest.approx(np.abs(expected[np.triu_indices(3, 1)]).mean())
    predictions = torch.stack([logits[:, 0] > 0, logits[:, 0] <= 0, logits[:, 1] > 0], dim=1)
    assert interdependence(predictions).tolist() == pytest.approx(
        [1, 1, LinearRegression().fit(predictions[:, :2].numpy(), predictions[:, 2].numpy()).score(
            predictions[:, :2].numpy(), predictions[:, 2].numpy())], abs=1e-9
    )  # fmt: skip


def test_many_runs_are_summarised_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 200, 3, generator=generator)
    label, bias = (torch.randint(0, 3, (200,), generator=generator) for _ in range(2))
    together = summarize_runs(logits, label, bias)
    monkeypatch.setattr(evaluated, "ELEMENTS_AT_A_TIME", 2 * 200 * 3)
    for found in (together, summarize_runs(logits, label, bias)):
        for run, (table, metrics) in zip(logits, found):
            alone = group_accuracy(run.argmax(1), label, bias)
            assert (table.correct == alone.correct).all()
            probability = torch.softmax(run.double(), 1)
            assert metrics["plain"] == float((run.argmax(1) == label).double().mean())
            entropy = stats.entropy(probability.numpy(), axis=1).mean() / math.log(3)
            assert metrics["entropy"] == pytest.approx(entropy, rel=1e-6)
            pairs = np.abs(np.corrcoef(run.numpy().T))[np.triu_indices(3, 1)]
            assert metrics["logit_correlation"] == pytest.approx(pairs.mean(), abs=1e-6)


def test_many_models_at_once_are_counted_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 4, (7, 500), generator=generator)
    label, bias = (torch.randint(0, 4, (500,), generator=generator) for _ in range(2))
    tables = group_tables(predictions, label, bias)
    assert len(tables) == 7
    for prediction, table in zip(predictions, tables):
        for y in range(4):
            for b in range(4):
                members = (label == y) & (bias == b)
                assert table.count[y, b] == members.sum()
                assert table.correct[y, b] == (members & (prediction == y)).sum()


def test_wrong_shapes_of_many_models_are_named() -> None:
    with pytest.raises(ValueError, match="predictions: want shape"):
        group_tables(torch.zeros(3, dtype=torch.int64), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="label: want shape"):
        group_tables(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2), torch.zeros(3))
