"""Class offsets: predicted frequencies are the labels', and the border is as far from the samples as it can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.calibration import calibrated_thresholds, class_offsets


def drawn(seed: int, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits that favour class 0, and labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(samples), label] += 1
    logits[:, 0] += 2
    return logits, label


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 7))
def test_predicted_frequencies_are_the_labels(seed: int, samples: int, classes: int) -> None:
    logits, label = drawn(seed, samples, classes)
    offsets = class_offsets(logits, label)
    prediction = (logits + offsets).argmax(1)
    assert torch.equal(prediction.bincount(minlength=classes), label.bincount(minlength=classes))
    present = label.bincount(minlength=classes) > 0
    assert float(offsets[present].mean()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_has_the_largest_sum_of_logits(seed: int) -> None:
    """Against scipy's assignment of samples to places, each class having as many places as labels."""
    logits, label = drawn(seed, 40, 5)
    rows, places = linear_sum_assignment(logits[:, label].numpy(), maximize=True)
    expected = label[torch.from_numpy(places)]
    assert np.array_equal(rows, np.arange(40))
    assert torch.equal((logits + class_offsets(logits, label)).argmax(1), expected)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_are_the_calibrated_threshold_of_their_difference(seed: int) -> None:
    logits, label = drawn(seed, 31, 2)
    offsets = class_offsets(logits, label)
    threshold = calibrated_thresholds((logits[:, 1] - logits[:, 0]).unsqueeze(1), label.unsqueeze(1))
    assert float(offsets[0] - offsets[1]) == pytest.approx(float(threshold), abs=1e-9)


def test_three_samples_by_hand() -> None:
    """All are predicted as 0. The second loses least as 1 (1 against 2), the third as 2 (1.5 against 3)."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [3.0, 0.0, 1.5]], dtype=torch.float64)
    label = torch.tensor([0, 1, 2])
    shifted = logits + class_offsets(logits, label)
    assert shifted.argmax(1).tolist() == [0, 1, 2]
    first, second = shifted.topk(2, dim=1).values.unbind(1)
    assert float((first - second).min()) == pytest.approx(0.5), (
        "half-way between the losses 1 and 2 of class 1"
    )


def test_calibrated_logits_are_left_as_they_are_predicted() -> None:
    logits, label = drawn(0, 50, 4)
    calibrated = logits + class_offsets(logits, label)
    again = (calibrated + class_offsets(calibrated, label)).argmax(1)
    assert torch.equal(again, calibrated.argmax(1))


def test_a_class_without_labels_is_only_ever_lowered() -> None:
    logits, _ = drawn(1, 30, 4)
    label = torch.arange(30) % 2 + 1
    offsets = class_offsets(logits, label)
    counts = (logits + offsets).argmax(1).bincount(minlength=4)
    assert counts.tolist() == [0, 15, 15, 0]
    assert offsets[0] < 0, "it was predicted most often"
    never = logits.clone()
    never[:, 3] = -50
    assert float(class_offsets(never, label)[3]) == 0
    one = class_offsets(logits, torch.zeros(30, dtype=torch.int64))
    assert (logits + one).argmax(1).bincount(minlength=4).tolist() == [30, 0, 0, 0]
    assert float(one[0]) == 0


def test_samples_that_tie_cannot_be_told_apart() -> None:
    offsets = class_offsets(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    assert offsets.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("logits", "label", "complaint"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), "val_label"),
        (torch.zeros(3, 1), torch.tensor([0, 0, 0]), "val_label"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "val_label"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -1]), "val_label"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), "val_logits"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "val_logits"),
        (torch.zeros(4), torch.tensor([0, 1, 0, 1]), "val_logits"),
    ],
)
def test_bad_input_is_named(logits: Tensor, label: Tensor, complaint: str) -> None:
    with pytest.raises(MetricError, match=complaint):
        class_offsets(logits, label)
