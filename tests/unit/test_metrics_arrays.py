"""One door for arrays: every kind gives the same numbers or is refused by its name, and NumPy comes back as NumPy."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from prunebench import metrics
from prunebench.errors import MetricError

GENERATOR = np.random.default_rng(0)
SAMPLES, CLASSES = 60, 3
LOGITS = GENERATOR.normal(size=(SAMPLES, CLASSES)).round(3)
LABEL, BIAS, PREDICTION = GENERATOR.integers(0, CLASSES, (3, SAMPLES))
BINARY, IDENTITY = GENERATOR.integers(0, 2, (SAMPLES, CLASSES)), GENERATOR.integers(0, 2, SAMPLES)
MODELS = GENERATOR.integers(0, CLASSES, (4, SAMPLES))

CALLS: dict[str, Callable[[Callable[[np.ndarray], Any]], Any]] = {
    "group_accuracy": lambda to: metrics.group_accuracy(to(PREDICTION), to(LABEL), to(BIAS)),
    "bias_amplification": lambda to: metrics.bias_amplification(
        to(BINARY), to(BINARY), to(IDENTITY), train_label=to(BINARY), train_identity=to(IDENTITY)
    ),
    "calibrated_thresholds": lambda to: metrics.calibrated_thresholds(to(LOGITS), to(LABEL)),
    "expected_calibration_error": lambda to: metrics.expected_calibration_error(to(LOGITS), to(LABEL)),
    "rare_value_underprediction": lambda to: metrics.rare_value_underprediction(
        to(PREDICTION), to(LABEL), to(LABEL)
    ),
    "area_under_curve": lambda to: metrics.area_under_curve(to(LOGITS), to(LABEL)),
    "uncertain_share": lambda to: metrics.uncertain_share(to(LOGITS)),
    "entropy": lambda to: metrics.entropy(to(LOGITS)),
    "margin": lambda to: metrics.margin(to(LOGITS)),
    "interdependence": lambda to: metrics.interdependence(to(BINARY)),
    "output_correlation": lambda to: metrics.output_correlation(to(LOGITS)),
    "margin_uncertainty": lambda to: metrics.margin_uncertainty(to(LOGITS)),
    "evaluate_predictability": lambda to: metrics.evaluate_predictability(to(LOGITS[:, 0]), to(IDENTITY)),
    "rank_correlation": lambda to: metrics.rank_correlation(to(LOGITS[:, 0]), to(LOGITS[:, 1]), draws=20),
    "one_hot": lambda to: metrics.one_hot(to(LABEL), CLASSES),
    "one_vs_rest": lambda to: metrics.one_vs_rest(to(LOGITS)),
    "compression_identified_exemplars": lambda to: metrics.compression_identified_exemplars(
        to(MODELS), to(MODELS[::-1])
    ),
    "expected_disagreement": lambda to: metrics.expected_disagreement(to(MODELS), to(MODELS[::-1])),
    "recall_change": lambda to: metrics.recall_change(to(MODELS), to(MODELS[:2]), to(LABEL)),
    "bias_risks": lambda to: metrics.bias_risks(
        to(LOGITS), to(BINARY), to(IDENTITY), train_label=to(BINARY), train_identity=to(IDENTITY)
    ),
    "attribute_table": lambda to: metrics.attribute_table(
        to(LOGITS), to(BINARY), train_label=to(BINARY), identities=[0], thresholds=to(LOGITS[0])
    ),
    "holm": lambda to: metrics.holm(to(np.array([0.01, 0.04, math.nan]))),
    "uncertainty_summaries": lambda to: metrics.uncertainty_summaries(to(LOGITS[None]), to(LABEL)),
    "summarize_runs": lambda to: metrics.summarize_runs(to(LOGITS[None]), to(LABEL), to(BIAS)),
}


def read_only(values: np.ndarray) -> np.ndarray:
    copy = values.copy()
    copy.setflags(write=False)
    return copy


def unsigned(width: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values if values.dtype.kind == "f" else values.astype(f"u{width}")


def column(values: np.ndarray) -> Any:
    """A pandas column (or table) that was filtered and shuffled: its index says nothing."""
    index = np.random.default_rng(1).permutation(len(values)) * 3
    if values.ndim == 1:
        return pd.Series(values, index=index)
    return pd.DataFrame(values, index=index) if values.ndim == 2 else values


def nullable(values: np.ndarray) -> Any:
    if values.dtype.kind == "i" and values.ndim == 1:
        return pd.Series(values, dtype="Int64")
    return column(values)


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "negative strides": lambda values: values[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray,
    "every other": lambda values: np.repeat(values, 2, axis=0)[::2],
    "read only": read_only,
    "big-endian": lambda values: values.astype(values.dtype.newbyteorder(">")),
    "uint8": unsigned(1),
    "uint16": unsigned(2),
    "uint32": unsigned(4),
    "uint64": unsigned(8),
    "object": lambda values: values.astype(object),
    "longdouble": lambda values: values.astype(np.longdouble) if values.dtype.kind == "f" else values,
    "masked array without a mask": np.ma.asarray,
    "pandas": column,
    "pandas, nullable": nullable,
    "polars": lambda values: pl.Series(values) if values.ndim == 1 else values,
}


def flat(value: Any) -> list[float]:
    """All numbers of a result, in order."""
    if dataclasses.is_dataclass(value):
        return flat([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return flat(list(value.values()))
    if isinstance(value, list | tuple):
        return [number for entry in value for number in flat(entry)]
    if isinstance(value, torch.Tensor | np.ndarray):
        return flat(value.tolist())
    return [float(value)] if isinstance(value, int | float) else []


def arrays_in(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        return arrays_in([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return arrays_in(list(value.values()))
    if isinstance(value, list | tuple):
        return [array for entry in value for array in arrays_in(entry)]
    return [value] if isinstance(value, torch.Tensor | np.ndarray) else []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_every_kind_of_array_gives_the_same_numbers(name: str, kind: str) -> None:
    expected = flat(CALLS[name](lambda values: torch.from_numpy(values.copy())))
    assert flat(CALLS[name](KINDS[kind])) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_arrays_come_back_as_they_were_given(name: str) -> None:
    """The README's `logits > threshold` is a comparison of two NumPy arrays."""
    for to, kind in (
        (torch.from_numpy, torch.Tensor),
        (lambda values: values, np.ndarray),
        (column, np.ndarray),
    ):
        assert all(isinstance(array, kind) for array in arrays_in(CALLS[name](lambda v, to=to: to(v.copy()))))
    assert all(isinstance(a, torch.Tensor) for a in arrays_in(CALLS[name](lambda values: values.tolist())))


def test_the_threshold_of_the_readme_with_numpy() -> None:
    threshold = metrics.calibrated_thresholds(LOGITS, BINARY)
    predicted = LOGITS > threshold  # noqa: SIM300 - as the README writes it
    assert predicted.sum(0).tolist() == BINARY.sum(0).tolist()
    table = metrics.group_accuracy(PREDICTION, LABEL, BIAS)
    weight = np.ones((CLASSES, CLASSES))
    assert table.train_weighted(weight) == pytest.approx(np.nanmean(table.accuracy))
    assert table.unbiased == pytest.approx(np.nanmean(table.accuracy))


NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "pandas NA": (pd.Series([0, 1, None, 1], dtype="Int64"), "bias: 1 values are missing"),
    "None among objects": (np.array([0, None, 1, 1], dtype=object), "bias: 1 values are missing"),
    "nan among floats": (np.array([0, math.nan, 1, 1]), "bias: 1 values are missing"),
    "nan in polars": (pl.Series([0, None, 1, 1]), "bias: 1 values are missing"),
    "a mask": (np.ma.array([0, 1, 1, 1], mask=[0, 1, 1, 0]), "bias: 2 values are missing"),
    "text": (np.array(list("mfmf")), r"bias: want numbers, got text; .*np\.unique\(bias"),
    "text as objects": (np.array(list("mfmf"), dtype=object), "bias: want numbers, got objects of type str"),
    "categories": (pd.Series(list("mfmf"), dtype="category"), "bias: want numbers"),
    "dates": (np.array(["2020-01-01"] * 4, dtype="M8[D]"), "bias: want numbers, got dates"),
    "whole floats": (np.array([0.0, 1.0, 1.0, 0.0]), "bias: want integers, got"),
    "ragged": ([[0], [1, 2]], "bias: want one array of numbers"),
    "beyond int64": (np.array([0, 1, 1, 2**64 - 1], dtype=np.uint64), "bias: holds 18446744073709551615"),
    "a big Python number": (np.array([0, 1, 1, 10**30], dtype=object), "bias: "),
    "nothing": (None, "bias: "),
    "a mapping": ({"bias": [0, 1, 1, 1]}, "bias: "),
    "negative": (np.array([0, -1, 1, 1]), r"bias: values outside 0\.\.1"),
    "records": (np.zeros(4, dtype=[("a", "i4")]), "bias: want numbers"),
}


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_what_is_no_numbers_is_refused_by_name(case: str) -> None:
    values, message = NO_NUMBERS[case]
    with pytest.raises(MetricError, match=rf"^{message}"):
        metrics.group_accuracy([0, 1, 1, 0], [0, 1, 1, 0], values)


def test_torch_types_that_hardly_compute() -> None:
    expected = flat(metrics.group_accuracy(*map(torch.from_numpy, (PREDICTION, LABEL, BIAS))))
    for kind in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        given = [torch.from_numpy(values).to(kind) for values in (PREDICTION, LABEL, BIAS)]
        assert flat(metrics.group_accuracy(*given)) == expected
    logits = torch.from_numpy(LOGITS).requires_grad_()
    assert metrics.entropy(logits.to_sparse()).tolist() == metrics.entropy(LOGITS).tolist()


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, int, torch.tensor])
def test_counts_of_numpy_are_counts(kind: Callable[[int], Any]) -> None:
    wanted = metrics.expected_calibration_error(LOGITS, LABEL, 7).tolist()
    assert metrics.expected_calibration_error(LOGITS, LABEL, kind(7)).tolist() == wanted
    assert metrics.one_hot(LABEL, kind(4)).shape == (SAMPLES, 4)
    assert metrics.rank_correlation(LOGITS[:, 0], LOGITS[:, 1], draws=kind(5)).pairs == SAMPLES


@pytest.mark.parametrize("value", [0, -1, 2.0, True, np.float64(3), "3", None])
def test_other_counts_are_named(value: Any) -> None:
    with pytest.raises(MetricError, match=r"^bins: want at least one"):
        metrics.expected_calibration_error(LOGITS, LABEL, value)
    with pytest.raises(MetricError, match=r"^classes: want at least one"):
        metrics.one_hot(LABEL, value)


@pytest.mark.parametrize("pairs", [np.eye(3, dtype=bool), np.eye(3, dtype=bool).tolist(), np.eye(3) > 0])
def test_aligned_pairs_of_numpy_and_lists(pairs: Any) -> None:
    expected = metrics.group_accuracy(PREDICTION, LABEL, BIAS, aligned_pair=torch.eye(3, dtype=torch.bool))
    assert metrics.group_accuracy(PREDICTION, LABEL, BIAS, aligned_pair=pairs).summary() == expected.summary()


@pytest.mark.parametrize("largest", [60_000, 10**9, 2**62])
@pytest.mark.parametrize("which", ["label", "bias", "both"])
def test_memory_grows_with_the_groups_that_occur(largest: int, which: str) -> None:
    label, bias = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1])
    prediction = np.array([0, 0, 1, 0, 1])
    small = metrics.group_accuracy(prediction, label, bias)
    stretch = np.array([0, largest])  # 1 becomes the largest: names change, accuracies do not
    tracemalloc.start()
    table = metrics.group_accuracy(
        stretch[prediction] if which != "bias" else prediction,
        stretch[label] if which != "bias" else label,
        stretch[bias] if which != "label" else bias,
        aligned_pair=None,
    )
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert table.count.size < 1 << 10
    assert (table.plain, table.unbiased, table.worst_group) == (
        small.plain,
        small.unbiased,
        small.worst_group,
    )
    if which == "both":
        assert table.summary() == small.summary()
        assert (table.labels.tolist(), table.biases.tolist()) == ([0, largest], [0, largest])


def test_many_groups_are_counted_as_few() -> None:
    generator = np.random.default_rng(0)
    label, bias = generator.integers(0, 100, (2, 5000))
    predictions = np.stack([np.where(generator.random(5000) < share, label, 0) for share in (0.3, 0.9)])
    tables = metrics.group_tables(predictions, label, bias)
    for prediction, table in zip(predictions, tables):
        wanted = np.zeros((100, 100), dtype=int)
        np.add.at(wanted, (label, bias), prediction == label)
        assert np.array_equal(table.correct, wanted)


def test_exemplars_of_labels_that_are_ids() -> None:
    names = np.array([3, 70_000, 10**9])
    few = metrics.compression_identified_exemplars(MODELS, MODELS[:2])
    ids = metrics.compression_identified_exemplars(names[MODELS], names[MODELS[:2]])
    assert flat(ids) == flat(few)


def test_a_table_with_a_column_an_id_is_refused() -> None:
    label = np.array([0, 1, 10**9])
    for call in (
        lambda: metrics.rare_value_underprediction(label, label, label),
        lambda: metrics.recall_change(np.stack([label] * 2), np.stack([label] * 2), label),
    ):
        with pytest.raises(MetricError, match=r"codes from 0: np\.unique\(\w+, return_inverse=True\)"):
            call()
    codes = np.unique(label, return_inverse=True)[1]
    assert metrics.rare_value_underprediction(codes, codes, codes).tolist() == [1.0, 1.0, 1.0]
