"""The public face of the metrics: names, signatures, cost of the import, and every kind of bad input in one table."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from prunebench import metrics
from prunebench.errors import MetricError

SIGNATURES = {
    "group_accuracy": ["prediction", "label", "bias"],
    "bias_amplification": ["prediction", "label", "identity", "train_label", "train_identity"],
    "calibrated_thresholds": ["val_logits", "val_label", "official"],
    "uncertain_share": ["logits", "band"],
    "interdependence": ["prediction"],
    "output_correlation": ["logits"],
    "expected_calibration_error": ["logits", "label", "bins"],
    "rare_value_underprediction": ["prediction", "label", "train_label"],
    "area_under_curve": ["logits", "label"],
    "compression_identified_exemplars": ["dense_prediction", "sparse_prediction"],
    "expected_disagreement": ["dense_prediction", "sparse_prediction"],
    "margin_uncertainty": ["dense_logits"],
    "evaluate_predictability": ["score", "event"],
    "bias_variance": ["probabilities", "label"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_by_place_and_name(name: str) -> None:
    assert (
        list(inspect.signature(getattr(metrics, name)).parameters)[: len(SIGNATURES[name])]
        == SIGNATURES[name]
    )


def test_every_public_name_is_there_and_documented() -> None:
    for name in metrics.__all__:
        assert (getattr(metrics, name).__doc__ or "").strip(), name


def test_the_import_leaves_the_heavy_libraries_alone() -> None:
    code = (
        "import sys, prunebench.metrics; print(*{'scipy', 'sklearn', 'polars', 'triton'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_options_by_place() -> None:
    logits, label = np.array([[2.0], [1.0], [0.0], [-1.0]]), np.array([[1], [0], [1], [0]])
    assert metrics.calibrated_thresholds(logits, label).tolist() == [0.5]
    assert metrics.calibrated_thresholds(logits, label, True).tolist() == [1.0]
    wide = metrics.expected_calibration_error(logits, label, 1)
    assert wide.tolist() == pytest.approx([abs(float((1 / (1 + np.exp(-logits)) - label).mean()))])
    assert metrics.uncertain_share(logits, 0.1).tolist() == [0.25]


def test_calibrated_amplification_of_four_kinds_of_samples_by_hand() -> None:
    """Ten samples each of (g, y, z): (1, 1, 3), (1, 0, 2), (0, 1, 1), (0, 0, 0).

    z > 0 predicts 30 positives, 20 of them in g = 1: BA = 2 / 3 - 1 / 2. The threshold that predicts 20 lies half-way
    between 2 and 1, and then all are in g = 1: TCBA = 1 - 1 / 2.
    """
    identity, label, logits = (
        torch.tensor(values).repeat(10) for values in ([1, 1, 0, 0], [1, 0, 1, 0], [3.0, 2.0, 1.0, 0.0])
    )
    label, logits = label.unsqueeze(1), logits.unsqueeze(1)
    train = {
        "train_label": torch.tensor([[1], [1], [1], [0]]),
        "train_identity": torch.tensor([1, 1, 0, 0]),
    }
    plain = metrics.bias_amplification(logits > 0, label, identity, **train)
    threshold = metrics.calibrated_thresholds(logits, label)
    calibrated = metrics.bias_amplification(logits > threshold, label, identity, **train)
    assert threshold.tolist() == [1.5]
    assert plain.value.tolist() == pytest.approx([2 / 3 - 1 / 2])
    assert calibrated.value.tolist() == pytest.approx([1 / 2])


@given(seed=st.integers(0, 10_000))
def test_names_of_the_identity_change_no_amplification(seed: int) -> None:
    generator = np.random.default_rng(seed)
    identity = (generator.random(200) < 0.5).astype(int)
    label = (generator.random((200, 3)) < np.where(identity[:, None] == 1, 0.6, 0.3)).astype(int)
    prediction = label ^ (generator.random((200, 3)) < 0.2)
    one, other = (
        metrics.bias_amplification(prediction, label, g, train_label=label, train_identity=g)
        for g in (identity, 1 - identity)
    )
    torch.testing.assert_close(one.value, other.value, equal_nan=True)
    assert one.reason == other.reason


def test_interdependence_against_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((2, 400, 1))
    prediction = (hidden + generator.standard_normal((2, 400, 6)) > 0).astype(int)
    prediction[:, :, 5] = 1
    expected = np.full((2, 6), math.nan)
    for model in range(2):
        for column in range(5):
            rest = np.delete(prediction[model], column, axis=1)
            fit = LinearRegression().fit(rest, prediction[model, :, column])
            expected[model, column] = fit.score(rest, prediction[model, :, column])
    np.testing.assert_allclose(metrics.interdependence(prediction), expected, atol=1e-6)
    for as_type in (bool, np.uint8, np.float32):
        np.testing.assert_allclose(
            metrics.interdependence(prediction[0].astype(as_type)), expected[0], atol=1e-6
        )


@given(seed=st.integers(0, 10_000))
def test_interdependence_of_moved_and_turned_columns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prediction = (generator.random((60, 4)) < 0.4).astype(int)
    columns, rows = generator.permutation(4), generator.permutation(60)
    turned = prediction[rows][:, columns] ^ generator.integers(0, 2, 4)
    before = metrics.interdependence(prediction)[columns]
    torch.testing.assert_close(metrics.interdependence(turned), before, equal_nan=True, atol=1e-9, rtol=0)


def test_many_models_correlate_as_one_by_one() -> None:
    logits = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    for model, matrix in zip(logits, metrics.output_correlation(logits)):
        np.testing.assert_allclose(matrix, np.corrcoef(model.double().numpy().T), atol=1e-12)


Z = np.linspace(-2, 2, 12).reshape(4, 3)
Y = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
G = np.array([1, 0, 1, 0])
CLASS = np.array([0, 1, 2, 1])
POPULATION = np.stack([CLASS, CLASS[::-1]])
CHANCE = np.full((2, 4, 3), 1 / 3)
VALID: dict[str, dict[str, Any]] = {
    "group_accuracy": {"prediction": CLASS, "label": CLASS, "bias": G},
    "bias_amplification": {
        "prediction": Y,
        "label": Y,
        "identity": G,
        "train_label": Y,
        "train_identity": G,
    },
    "directional_bias_amplification": {
        "task_prediction": Y,
        "task_label": Y,
        "attribute_prediction": Y,
        "attribute_label": Y,
        "train_task": Y,
        "train_attribute": Y,
    },
    "calibrated_thresholds": {"val_logits": Z, "val_label": Y},
    "expected_calibration_error": {"logits": Z, "label": Y},
    "area_under_curve": {"logits": Z, "label": Y},
    "rare_value_underprediction": {"prediction": Y, "label": Y, "train_label": Y},
    "uncertain_share": {"logits": Z},
    "entropy": {"logits": Z},
    "margin": {"logits": Z},
    "interdependence": {"prediction": Y},
    "output_correlation": {"logits": Z},
    "one_hot": {"labels": CLASS, "classes": 3},
    "one_vs_rest": {"logits": Z},
    "compression_identified_exemplars": {"dense_prediction": POPULATION, "sparse_prediction": POPULATION},
    "expected_disagreement": {"dense_prediction": POPULATION, "sparse_prediction": POPULATION},
    "recall_change": {
        "dense_prediction": POPULATION,
        "sparse_prediction": POPULATION,
        "label": CLASS,
        "group": G,
    },
    "margin_uncertainty": {"dense_logits": Z},
    "evaluate_predictability": {"score": Z[:, 0], "event": G},
    "rank_correlation": {"first": Z[:, 0], "second": Z[:, 1]},
    "bias_variance": {"probabilities": CHANCE, "label": CLASS},
    "bias_risk": {
        "dense_logits": Z,
        "label": Y,
        "identity": G,
        "train_label": Y,
        "train_identity": G,
    },
}
LOGITS = ("logits", "val_logits", "dense_logits", "score", "probabilities")
BINARY = ("event", "identity", "train_identity")
WHOLE = ("bias", "group", "dense_prediction", "sparse_prediction", "labels")
NO_ROWS = ("train_label", "train_identity", "train_task", "train_attribute")
"""Training arrays: as many samples as each other, not as the test ones."""


def bad_values(function: str, name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """What no argument of this name may hold."""
    wrong = {"a dimension more": value[None, None, None], "a scalar": np.array(1), "nothing": value[:0]}
    if function == "group_accuracy":
        del wrong["nothing"]  # an empty split has an empty table
        wrong["nothing alone"] = value[:0]
    if name in LOGITS:
        wrong |= {"nan": value * math.nan, "infinity": value + math.inf}
    elif name in BINARY or (value.ndim == 2 and name not in WHOLE and name not in ("first", "second")):
        wrong |= {"a value of 2": value + 1, "halves": value + 0.5, "below zero": value - 1}
    elif name not in ("first", "second"):
        wrong |= {"halves": value + 0.5}
        if name != "prediction":  # of group_accuracy: a prediction outside the classes is a miss
            wrong |= {"below zero": value - 1}
    alone = len([other for other in VALID[function] if other not in NO_ROWS]) == 1 and name not in NO_ROWS
    if not alone and function != "one_hot":
        if name in ("dense_prediction", "sparse_prediction", "probabilities"):
            wrong |= {"a sample less": value[:, :-1]}
        else:
            wrong |= {"a sample less": value[:-1]}
    return wrong


TABLE = [
    pytest.param(function, name, wrong, id=f"{function}-{name}-{kind}")
    for function, arguments in VALID.items()
    for name, value in arguments.items()
    if isinstance(value, np.ndarray)
    for kind, wrong in bad_values(function, name, value).items()
    if not (kind == "a sample less" and function == "rare_value_underprediction" and name == "train_label")
]


@pytest.mark.parametrize("function", VALID)
def test_valid_arguments_are_taken_from_numpy_and_torch(function: str) -> None:
    call = getattr(metrics, function)
    arguments = VALID[function]
    call(**arguments)
    call(**{name: torch.as_tensor(np.array(v)) if name != "classes" else v for name, v in arguments.items()})


@pytest.mark.parametrize(("function", "name", "wrong"), TABLE)
def test_bad_values_are_errors(function: str, name: str, wrong: np.ndarray) -> None:
    with pytest.raises(MetricError) as raised:
        getattr(metrics, function)(**{**VALID[function], name: wrong})
    named = str(raised.value).split(":")[0]
    assert named in {*VALID[function], "predictions"}


UNDEFINED: dict[str, Callable[[], Any]] = {
    "no positive to calibrate": lambda: metrics.calibrated_thresholds(Z, 0 * Y)[0],
    "no positive, the released rule": lambda: metrics.calibrated_thresholds(Z, 0 * Y, True)[0],
    "a class absent from validation": lambda: metrics.calibrated_thresholds(Z, 0 * CLASS)[2],
    "no positive to rank": lambda: metrics.area_under_curve(Z, 0 * Y)[0],
    "no negative to rank": lambda: metrics.area_under_curve(Z, 0 * Y + 1)[0],
    "a rare value that never occurs": lambda: metrics.rare_value_underprediction(Y, 0 * Y, Y)[0],
    "a constant column": lambda: metrics.interdependence(0 * Y)[0],
    "a constant output": lambda: metrics.output_correlation(np.c_[Z, 0 * G])[3, 0],
    "an empty group": lambda: metrics.group_accuracy(G, G, G).accuracy[0, 1],
    "no conflicting sample": lambda: metrics.group_accuracy(G, G, G).conflicting,
    "a training group that the test split lacks": lambda: metrics.group_accuracy(G, G, G).train_weighted(
        np.ones((2, 2))
    ),
    "a group of four": lambda: metrics.bias_amplification(Y, Y, G, train_label=Y, train_identity=G).value[1],
    "an attribute without members": lambda: (
        metrics.directional_bias_amplification(
            Y, Y, Y, 0 * Y, train_task=Y, train_attribute=Y
        ).attribute_to_task
    ),
    "one dense model: no control": lambda: metrics.expected_disagreement(CLASS[None], CLASS[None]).control,
    "two seeds: no interval": lambda: metrics.expected_disagreement(POPULATION[:2], POPULATION[:2]).low,
    "a group without samples": lambda: metrics.recall_change(POPULATION, POPULATION, CLASS, 2 * G).p_value[1],
    "nothing happened": lambda: metrics.evaluate_predictability(Z[:, 0], 0 * G).area_under_curve,
    "two pairs": lambda: metrics.rank_correlation(Z[:2, 0], Z[:2, 1]).rho,
    "a side that is constant": lambda: metrics.rank_correlation(Z[:, 0], 0 * G).rho,
    "a risk of four samples": lambda: metrics.bias_risk(Z, Y, G, train_label=Y, train_identity=G)[0],
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_what_is_undefined_is_nan_and_never_zero(case: str) -> None:
    assert math.isnan(float(UNDEFINED[case]()))


def test_a_threshold_that_all_exceed_is_below_all() -> None:
    assert metrics.calibrated_thresholds(Z, 0 * Y + 1).tolist() == [-math.inf] * 3


@pytest.mark.parametrize("call", [metrics.recall_change, metrics.bias_variance])
def test_a_single_seed_is_no_population(call: Callable[..., Any]) -> None:
    one = [POPULATION[:1], POPULATION, CLASS] if call is metrics.recall_change else [CHANCE[:1], CLASS]
    with pytest.raises(MetricError, match="want at least two"):
        call(*one)


def test_former_names_are_the_same_functions() -> None:
    assert metrics.susceptibility is metrics.margin_uncertainty
    assert metrics.evaluate_susceptibility is metrics.evaluate_predictability
