"""Bias amplification, thresholds and calibration: by hand, against independent computations, and undefined cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prunebench.errors import MetricError
from prunebench.metrics.bias import bias_amplification, directional_bias_amplification
from prunebench.metrics.calibration import (
    area_under_curve,
    calibrated_thresholds,
    expected_calibration_error,
    rare_value_underprediction,
)


def draw(seed: int, rows: int, columns: int, rate: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, columns)) < rate).astype(np.int64)


def slow_amplification(prediction, label, identity, train_label, train_identity, column) -> float:  # type: ignore[no-untyped-def]
    """The formula, one attribute at a time, in plain Python."""
    one = [row[column] for row, g in zip(train_label, train_identity) if g]
    zero = [row[column] for row, g in zip(train_label, train_identity) if not g]
    chosen = 1 if sum(one) / len(one) > sum(zero) / len(zero) else 0
    members = [i for i, g in enumerate(identity) if g == chosen]
    predicted = sum(prediction[i][column] for i in members) / sum(row[column] for row in prediction)
    return predicted - sum(label[i][column] for i in members) / sum(row[column] for row in label)


def tied_labels(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[rows, 3]` whose rates depend on the identity `[rows]`: more, fewer, far more."""
    generator = np.random.default_rng(seed)
    identity = (generator.random(rows) < 0.4).astype(np.int64)
    rates = np.where(identity[:, None] == 1, [0.6, 0.2, 0.9], [0.3, 0.5, 0.1])
    return (generator.random((rows, 3)) < rates).astype(np.int64), identity


def test_amplification_against_plain_python() -> None:
    train_label, train_identity = tied_labels(0, 2000)
    label, identity = tied_labels(1, 1000)
    flips = draw(2, 1000, 3, 0.2)
    prediction = label ^ flips
    result = bias_amplification(
        prediction, label, identity, train_label=train_label, train_identity=train_identity
    )
    assert result.reason == (None, None, None)
    for column in range(3):
        expected = slow_amplification(prediction, label, identity, train_label, train_identity, column)
        assert float(result.value[column]) == pytest.approx(expected, abs=1e-12)


def test_perfect_predictions_amplify_nothing() -> None:
    label, identity = tied_labels(3, 500)
    result = bias_amplification(label, label, identity, train_label=label, train_identity=identity)
    assert result.value.tolist() == pytest.approx([0, 0, 0], abs=1e-15)


def test_by_hand_with_twenty_positives_a_group() -> None:
    """20 positives in each group; the prediction loses 10 of g = 0 only: BA = 20 / 30 - 20 / 40."""
    identity = torch.tensor([1] * 40 + [0] * 40)
    label = torch.tensor([1] * 20 + [0] * 20 + [1] * 20 + [0] * 20).unsqueeze(1)
    prediction = label.clone()
    prediction[40:50] = 0
    train_label = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).unsqueeze(1)
    train_identity = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    result = bias_amplification(
        prediction, label, identity, train_label=train_label, train_identity=train_identity
    )
    assert result.value.tolist() == pytest.approx([2 / 3 - 1 / 2])
    turned = bias_amplification(
        prediction, label, identity, train_label=train_label, train_identity=1 - train_identity
    )
    assert turned.value.tolist() == pytest.approx([1 / 3 - 1 / 2])


def test_every_undefined_case_says_why() -> None:
    label, identity = tied_labels(4, 400)
    flat = draw(5, 400, 1)
    rare = np.zeros((400, 1), dtype=np.int64)
    rare[:9] = 1
    columns = np.concatenate([label[:, :1], identity[:, None], flat, rare, label[:, 2:]], axis=1)
    prediction = columns.copy()
    prediction[:, 4] = 0
    train = columns.copy()
    train[:, 2] = 1  # the same rate in both groups
    train[:, 3] = identity & draw(6, 400, 1)[:, 0]
    result = bias_amplification(prediction, columns, identity, train_label=train, train_identity=identity)
    assert result.reason[0] is None
    for column, words in (
        (1, "identity itself"),
        (2, "differ by less than 10%"),
        (3, "fewer than 10"),
        (4, "nothing is predicted"),
    ):
        assert words in str(result.reason[column])
        assert math.isnan(result.value[column])
    alone = bias_amplification(
        prediction, columns, identity, train_label=train, train_identity=np.ones(400, dtype=np.int64)
    )
    assert "lacks one" in str(alone.reason[0])


def test_disagreeing_shapes_and_other_values_are_named() -> None:
    label, identity = tied_labels(7, 50)
    train = {"train_label": label, "train_identity": identity}
    with pytest.raises(MetricError, match=r"^identity: has 49 samples"):
        bias_amplification(label, label, identity[:49], **train)
    with pytest.raises(MetricError, match=r"^label: has 2 columns"):
        bias_amplification(label, label[:, :2], identity, **train)
    with pytest.raises(MetricError, match=r"^prediction: want 0 and 1"):
        bias_amplification(label * 2, label, identity, **train)
    with pytest.raises(MetricError, match=r"^prediction: is empty"):
        bias_amplification(label[:0], label[:0], identity[:0], **train)


def test_directional_amplification_against_loops() -> None:
    arrays = [draw(seed, 300, columns) for seed, columns in ((0, 2), (1, 2), (2, 3), (3, 3))]
    train_task, train_attribute = draw(4, 500, 2, 0.4), draw(5, 500, 3, 0.4)
    train_task[:, 0] |= train_attribute[:, 0]
    result = directional_bias_amplification(*arrays, train_task=train_task, train_attribute=train_attribute)
    t_hat, t, a_hat, a = arrays
    kept = (train_task.sum(1) + train_attribute.sum(1)) > 0
    tt, ta = train_task[kept], train_attribute[kept]
    forward, backward = [], []
    for i in range(3):
        for j in range(2):
            sign = np.sign((ta[:, i] & tt[:, j]).mean() - ta[:, i].mean() * tt[:, j].mean())
            has_a, has_t = a[:, i] == 1, t[:, j] == 1
            forward.append(sign * (t_hat[has_a, j].mean() - t[has_a, j].mean()))
            backward.append(sign * (a_hat[has_t, i].mean() - a[has_t, i].mean()))
    assert result.attribute_to_task == pytest.approx(np.mean(forward))
    assert result.task_to_attribute == pytest.approx(np.mean(backward))
    assert result.attribute_to_task_pairs.shape == (3, 2)


def test_exact_independence_has_no_direction() -> None:
    """P(a) = 5 / 15, P(t) = 9 / 15, P(a, t) = 3 / 15: in floating point the product is not their product."""
    train_attribute = np.array([1] * 5 + [0] * 10)[:, None]
    train_task = np.array([[1, 1]] * 3 + [[0, 1]] * 2 + [[1, 1]] * 6 + [[0, 1]] * 4)
    t, a = draw(0, 50, 2), draw(1, 50, 1)
    result = directional_bias_amplification(
        1 - t, t, 1 - a, a, train_task=train_task, train_attribute=train_attribute
    )
    assert (result.attribute_to_task, result.task_to_attribute) == (0, 0)


def test_training_labels_that_are_all_zero_are_named() -> None:
    labels = draw(0, 20, 2)
    nothing = np.zeros((10, 2), dtype=np.int64)
    with pytest.raises(MetricError, match=r"^train_task: no training sample"):
        directional_bias_amplification(
            *(labels, labels, labels, labels), train_task=nothing, train_attribute=nothing
        )


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 30), rate=st.floats(0, 1))
def test_thresholds_give_exactly_as_many_positives(seed: int, rows: int, rate: float) -> None:
    logits = np.random.default_rng(seed).standard_normal((rows, 3))
    label = draw(seed + 1, rows, 3, rate)
    threshold = calibrated_thresholds(logits, label)
    assert (logits > threshold).sum(0).tolist() == label.sum(0).tolist()
    released = calibrated_thresholds(logits, label, official=True)
    for column, count in enumerate(label.sum(0).tolist()):
        if count == 0:
            assert math.isnan(released[column])
        else:
            assert (torch.as_tensor(logits[:, column]) > released[column]).sum() == count - 1


def test_thresholds_of_neighbouring_floats_are_exact() -> None:
    low = 1.0
    high = math.nextafter(low, 2)
    threshold = calibrated_thresholds(np.array([[low], [high], [0.0]]), np.array([[1], [0], [0]]))
    assert threshold.tolist() == [low]


def test_tied_logits_predict_the_fewer() -> None:
    threshold = calibrated_thresholds(np.array([[2.0], [1.0], [1.0], [0.0]]), np.array([[1], [1], [0], [0]]))
    assert threshold.tolist() == [1.0]


def test_calibration_error_by_hand() -> None:
    """p = 0.05, 0.05, 0.95, 1.0 with labels 0, 1, 1, 1: bins 0 and 9, gaps |0.1 - 1| and |1.95 - 2|, over 4."""
    probability = torch.tensor([0.05, 0.05, 0.95], dtype=torch.float64)
    logits = torch.cat([torch.logit(probability), torch.tensor([1000.0])]).unsqueeze(1)
    label = torch.tensor([[0], [1], [1], [1]])
    assert expected_calibration_error(logits, label).tolist() == pytest.approx([(0.9 + 0.05) / 4])


def test_no_bins_are_named() -> None:
    with pytest.raises(MetricError, match=r"^bins: want at least one"):
        expected_calibration_error(np.zeros((2, 1)), np.zeros((2, 1)), bins=0)


def test_views_and_read_only_arrays_are_taken() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 3))
    label = draw(1, 20, 3)
    expected = area_under_curve(logits, label)
    turned, fixed = logits[::-1], label[::-1].copy()
    fixed.flags.writeable = False
    torch.testing.assert_close(area_under_curve(turned, fixed), expected)


def test_rare_values_by_hand() -> None:
    prediction = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]])
    label = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]])
    train_label = np.array([[0, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    shares = rare_value_underprediction(prediction, label, train_label).tolist()
    assert shares[:2] == pytest.approx([0.25 / 0.5, 0.0])
    assert math.isnan(shares[2])


def test_area_against_scikit_learn() -> None:
    logits = np.random.default_rng(0).integers(0, 6, (200, 3)).astype(float)
    label = draw(1, 200, 3, 0.3)
    area = area_under_curve(logits, label)
    for column in range(3):
        assert float(area[column]) == pytest.approx(roc_auc_score(label[:, column], logits[:, column]))
    absent = area_under_curve(logits, np.zeros_like(label))
    assert np.isnan(absent).all()


@given(seed=st.integers(0, 1000))
def test_permuting_samples_changes_nothing(seed: int) -> None:
    label, identity = tied_labels(seed, 300)
    prediction = label ^ draw(seed, 300, 3, 0.2)
    order = np.random.default_rng(seed).permutation(300)
    train = {"train_label": label, "train_identity": identity}
    before = bias_amplification(prediction, label, identity, **train)
    after = bias_amplification(prediction[order], label[order], identity[order], **train)
    torch.testing.assert_close(before.value, after.value, equal_nan=True)
    assert before.reason == after.reason
