"""Group tables against fairlearn, weighted by the training split, and under other names for the groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from prunebench.errors import MetricError
from prunebench.metrics import GroupTable, group_accuracy, recall_change


def draw(seed: int, samples: int, classes: int = 3, biases: int = 3) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    label, bias = generator.integers(0, classes, samples), generator.integers(0, biases, samples)
    prediction = np.where(generator.random(samples) < 0.7, label, generator.integers(0, classes, samples))
    return prediction, label, bias


@pytest.mark.parametrize("samples", [4, 12, 500])  # the small ones leave groups empty
@pytest.mark.parametrize("seed", range(3))
def test_groups_against_fairlearn(seed: int, samples: int) -> None:
    prediction, label, bias = draw(seed, samples)
    frame = MetricFrame(
        metrics={"accuracy": accuracy_score, "count": lambda truth, _: len(truth)},
        y_true=label,
        y_pred=prediction,
        sensitive_features={"label": label, "bias": bias},
    )
    table = group_accuracy(prediction, label, bias, aligned_pair=torch.eye(3, dtype=torch.bool))
    assert table.plain == pytest.approx(frame.overall["accuracy"])
    assert table.worst_group == pytest.approx(frame.group_min()["accuracy"])
    assert table.unbiased == pytest.approx(frame.by_group["accuracy"].mean())
    for y in range(3):
        for b in range(3):
            row = frame.by_group.loc[(y, b)] if (y, b) in frame.by_group.index else {"accuracy": math.nan}
            assert float(table.accuracy[y, b]) == pytest.approx(row["accuracy"], nan_ok=True)
            if table.count[y, b]:
                assert int(table.count[y, b]) == row["count"]


def four_samples() -> GroupTable:
    """(0, 0) right; (0, 1) wrong; (1, 1) right and wrong; (1, 0) empty."""
    return group_accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]))


def test_train_weighted_by_hand() -> None:
    table = four_samples()
    assert (table.plain, table.unbiased) == (0.5, 0.5)
    assert table.train_weighted(np.array([[90, 5], [0, 10]])) == pytest.approx((90 + 0 + 5) / 105)
    assert table.train_weighted(table.count) == pytest.approx(table.plain)
    assert table.train_weighted(torch.tensor([[7, 7], [0, 7]])) == pytest.approx(table.unbiased)


def test_a_training_group_without_test_samples_has_no_weighted_mean() -> None:
    assert math.isnan(four_samples().train_weighted(np.array([[90, 5], [1, 10]])))
    assert math.isnan(four_samples().train_weighted(np.zeros((2, 2), dtype=int)))


def test_train_counts_of_another_shape_or_below_zero_are_named() -> None:
    with pytest.raises(MetricError, match=r"^train_count: want shape \(2, 2\), got \(2, 3\)"):
        four_samples().train_weighted(np.ones((2, 3)))
    with pytest.raises(MetricError, match=r"^train_count: want 2 dimensions"):
        four_samples().train_weighted(np.ones(4))
    with pytest.raises(MetricError, match=r"^train_count: want counts"):
        four_samples().train_weighted(np.array([[1, 1], [-1, 1]]))
    with pytest.raises(MetricError, match=r"^train_count: contains values that are not finite"):
        four_samples().train_weighted(np.array([[1, 1], [math.nan, 1]]))


def test_predictions_that_are_no_classes_are_named() -> None:
    """Probabilities in place of predictions would match no label: an accuracy of 0."""
    label = torch.tensor([0, 1])
    with pytest.raises(MetricError, match=r"^prediction: want integers, got torch.float32"):
        group_accuracy(torch.tensor([0.2, 0.9]), label, label)


@given(seed=st.integers(0, 10_000))
def test_other_names_for_classes_and_biases_move_the_groups_only(seed: int) -> None:
    prediction, label, bias = draw(seed, 60, biases=4)
    generator = np.random.default_rng(seed)
    aligned = torch.as_tensor(generator.random((3, 4)) < 0.4)
    classes, biases = generator.permutation(3), generator.permutation(4)
    renamed = torch.zeros_like(aligned)
    renamed[np.ix_(classes, biases)] = aligned
    weight = generator.integers(0, 9, (3, 4))
    moved = np.zeros_like(weight)
    moved[np.ix_(classes, biases)] = weight
    before = group_accuracy(prediction, label, bias, aligned_pair=aligned)
    after = group_accuracy(classes[prediction], classes[label], biases[bias], aligned_pair=renamed)
    assert torch.equal(after.count[np.ix_(classes, biases)], before.count)
    assert torch.equal(after.correct[np.ix_(classes, biases)], before.correct)
    assert after.summary() == pytest.approx(before.summary(), nan_ok=True)
    assert after.train_weighted(moved) == pytest.approx(before.train_weighted(weight), nan_ok=True)


@given(seed=st.integers(0, 10_000))
def test_other_names_for_groups_move_their_recall_changes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    label, group = generator.integers(0, 3, 40), generator.permutation(np.arange(40) % 4)
    dense, sparse = generator.integers(0, 3, (4, 40)), generator.integers(0, 3, (3, 40))
    names, order = generator.permutation(4), generator.permutation(40)
    before = recall_change(dense, sparse, label, group)
    after = recall_change(dense[:, order], sparse[:, order], label[order], names[group][order])
    torch.testing.assert_close(after.change[names], before.change)
    torch.testing.assert_close(after.p_value[names], before.p_value)
    torch.testing.assert_close(after.corrected_p[names], before.corrected_p)
