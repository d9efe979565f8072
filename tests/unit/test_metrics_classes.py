"""Multi-class tasks in the metrics of binary attributes: every class against the rest."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics import (
    area_under_curve,
    bias_amplification,
    calibrated_thresholds,
    directional_bias_amplification,
    expected_calibration_error,
    one_hot,
    one_vs_rest,
    rare_value_underprediction,
    uncertain_share,
)


def draw(seed: int, samples: int = 300, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits that know something of the labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (samples,), generator=generator)
    noise = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    return 2 * noise + 2 * torch.nn.functional.one_hot(label, classes), label


def test_one_hot_by_hand() -> None:
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(torch.tensor([[1], [0]]), 2).tolist() == [[[0, 1]], [[1, 0]]]


def test_one_hot_names_wrong_arguments() -> None:
    with pytest.raises(MetricError, match=r"^labels: values outside 0\.\.2"):
        one_hot(np.array([0, 3]), 3)
    with pytest.raises(MetricError, match=r"^classes: want at least one"):
        one_hot(np.array([0]), 0)


def test_one_vs_rest_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4: the odds are 1, 1/3, 1/3. Two classes: the difference of the logits."""
    logits = torch.log(torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64))
    assert one_vs_rest(logits)[0].tolist() == pytest.approx([0, -math.log(3), -math.log(3)])
    assert one_vs_rest(np.array([[1.0, 4.0]]))[0].tolist() == pytest.approx([-3, 3])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("classes", [2, 10])
def test_one_vs_rest_is_the_logit_of_the_softmax(scale: float, classes: int) -> None:
    logits = scale * torch.randn(3, 50, classes, generator=torch.Generator().manual_seed(0)).double()
    logits[0, 0] = 1.0  # all tie
    found = one_vs_rest(logits)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(torch.sigmoid(found), torch.softmax(logits, -1), rtol=1e-12, atol=1e-300)
    for column in range(classes):
        others = torch.cat([logits[..., :column], logits[..., column + 1 :]], dim=-1)
        expected = logits[..., column] - others.logsumexp(-1)
        torch.testing.assert_close(found[..., column], expected, rtol=1e-12, atol=1e-12)


def test_a_sure_class_keeps_its_order() -> None:
    """Both probabilities round to 1; the logits still tell them apart."""
    found = one_vs_rest(torch.tensor([[60.0, 0.0, 0.0], [50.0, 0.0, 0.0]]))
    assert found[:, 0].tolist() == pytest.approx([60 - math.log(2), 50 - math.log(2)])


def test_class_labels_stand_for_one_vs_rest_columns() -> None:
    logits, label = draw(0)
    columns, truth = one_vs_rest(logits), one_hot(label, 4)
    for metric in (area_under_curve, calibrated_thresholds, expected_calibration_error):
        torch.testing.assert_close(metric(logits, label), metric(columns, truth))
        torch.testing.assert_close(
            torch.as_tensor(metric(logits.numpy(), label.numpy())), metric(columns, truth)
        )


def test_area_of_classes_against_scikit_learn() -> None:
    logits, label = draw(1)
    probability = torch.softmax(logits, 1).numpy()
    expected = [roc_auc_score(label.numpy() == c, probability[:, c]) for c in range(4)]
    assert area_under_curve(logits, label).tolist() == pytest.approx(expected)


def test_calibration_error_of_classes_by_loops() -> None:
    logits, label = draw(2)
    probability = torch.softmax(logits, 1).tolist()
    for column, found in enumerate(expected_calibration_error(logits, label, 5).tolist()):
        total = 0.0
        for b in range(5):
            inside = [i for i, row in enumerate(probability) if min(math.floor(5 * row[column]), 4) == b]
            gap = sum(probability[i][column] - float(label[i] == column) for i in inside)
            total += abs(gap) / len(label)
        assert found == pytest.approx(total)


def test_thresholds_of_classes_predict_each_as_often_as_it_occurs() -> None:
    logits, label = draw(3)
    label[label == 3] = 2
    threshold = calibrated_thresholds(logits, label)
    assert (one_vs_rest(logits) > threshold).sum(0).tolist() == torch.bincount(label, minlength=4).tolist()
    assert math.isnan(threshold[3])


def test_rare_values_of_classes_by_hand() -> None:
    """Class 0 is half of the predictions, a quarter of the labels, and common in training: its rest is rare."""
    shares = rare_value_underprediction(
        np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]), np.array([0, 0, 0, 1, 2])
    )
    assert shares.tolist() == pytest.approx([0.5 / 0.75, 0.25 / 0.5, 1.0])
    absent = rare_value_underprediction(np.array([0, 1]), np.array([0, 0]), np.array([0, 0, 3]))
    assert np.isnan(absent).tolist() == [True, True, True, True]


def test_amplification_of_classes_with_an_identity_for_each() -> None:
    """Colours that go with the class: as many calls with one attribute and one identity."""
    generator = torch.Generator().manual_seed(4)
    label = torch.randint(0, 4, (2000,), generator=generator)
    colour = torch.where(
        torch.rand(2000, generator=generator) < 0.6,
        label,
        torch.randint(0, 4, (2000,), generator=generator),
    )
    prediction = torch.where(torch.rand(2000, generator=generator) < 0.7, label, colour)
    has_colour = one_hot(colour, 4)
    together = bias_amplification(prediction, label, has_colour, train_label=label, train_identity=has_colour)
    assert together.reason == (None,) * 4
    assert (together.value > 0).all()  # the prediction follows the colour
    for column in range(4):
        truth = (label == column).long().unsqueeze(1)
        one = bias_amplification(
            (prediction == column).unsqueeze(1),
            truth,
            has_colour[:, column],
            train_label=truth,
            train_identity=has_colour[:, column],
        )
        assert float(one.value) == float(together.value[column])


def test_directional_amplification_of_classes_and_without_attribute_predictions() -> None:
    generator = torch.Generator().manual_seed(5)
    t_hat, t, a_hat, a = (torch.randint(0, 3, (100,), generator=generator) for _ in range(4))
    train = {"train_task": t, "train_attribute": torch.where(torch.arange(100) < 50, t, a)}
    columns = {name: one_hot(values, 3) for name, values in train.items()}
    by_index = directional_bias_amplification(t_hat, t, a_hat, a, **train)
    by_column = directional_bias_amplification(*(one_hot(x, 3) for x in (t_hat, t, a_hat, a)), **columns)
    torch.testing.assert_close(astuple(by_index), astuple(by_column))
    alone = directional_bias_amplification(t_hat, t, None, a, **train)
    assert alone.attribute_to_task == by_index.attribute_to_task
    assert math.isnan(alone.task_to_attribute)
    assert alone.task_to_attribute_pairs.isnan().all()


@given(seed=st.integers(0, 10_000))
def test_other_names_for_classes_move_their_columns(seed: int) -> None:
    logits, label = draw(seed, samples=40)
    train_label = label.flip(0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    names = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(logits)
    moved[:, names] = logits
    moved, renamed = moved[order], names[label][order]
    for metric in (area_under_curve, calibrated_thresholds, expected_calibration_error):
        torch.testing.assert_close(metric(moved, renamed)[names], metric(logits, label), equal_nan=True)
    torch.testing.assert_close(
        uncertain_share(one_vs_rest(moved))[names], uncertain_share(one_vs_rest(logits))
    )
    before = rare_value_underprediction(logits.argmax(1), label, train_label)
    after = rare_value_underprediction(moved.argmax(1), renamed, names[train_label])
    torch.testing.assert_close(after[names], before, equal_nan=True)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0, 4, 1]), r"^label: values outside 0\.\.3"),
        (np.array([0, -1, 1]), "^label: want indices from 0"),
        (np.array([0.0, 1.0, 2.0]), "^label: want indices from 0"),
        (np.array([0, 1]), "^label: has 2 samples, logits 3"),
        (np.array([[0, 1], [1, 0], [1, 1]]), "^label: has 2 columns, logits 4"),
        (np.array(1), "^label: want 1 or 2 dimensions"),
    ],
)
def test_labels_that_do_not_fit_the_classes_are_named(label: np.ndarray, message: str) -> None:
    for metric in (area_under_curve, expected_calibration_error):
        with pytest.raises(MetricError, match=message):
            metric(np.zeros((3, 4)), label)


def test_one_column_of_logits_takes_no_class_labels() -> None:
    with pytest.raises(MetricError, match=r"^label: one column of logits .* as \[N, 1\]"):
        expected_calibration_error(np.zeros((3, 1)), np.array([0, 1, 0]))
    with pytest.raises(MetricError, match=r"^logits: want at least two classes"):
        one_vs_rest(np.zeros((3, 1)))
    with pytest.raises(MetricError, match=r"^label: has shape \(2, 1\), prediction \(2,\)"):
        rare_value_underprediction(np.zeros(2, dtype=int), np.zeros((2, 1)), np.zeros(2, dtype=int))
