"""Co-occurrence, correlation and interdependence: the kernel in the interpreter, its machine code, the torch paths."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import compiled as machine_code
import numpy as np
import pytest
import torch
from cases import ODD_OUTPUTS, LogitsCase
from gpu import tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from kernel_tolerances import TOLERANCE
from prunebench_kernels import dependence, dispatch, explain
from prunebench_kernels import reference as oracle
from prunebench_kernels.dependence import ColumnTile, cooccurrence, correlation, interdependence
from prunebench_kernels.dispatch import ArgumentError, Choice
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

BACKENDS = ("torch", "triton")
ONE_TILE = [case for case in ODD_OUTPUTS if case.classes <= 64]
BYTES = [torch.bool, torch.uint8, torch.int8]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Correlated columns, float64."""
    generator = seeded(seed)
    columns = shape[-1]
    mixing = torch.eye(columns, dtype=torch.float64)
    mixing += 0.4 * torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) @ mixing


def binary(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return mixed(shape, seed) > 0.3


def by_scikit_learn(predictions: Tensor) -> list[float]:
    """R2 of each column on the others; constant columns are nan."""
    values = predictions.double().numpy()
    scores = []
    for column in range(values.shape[1]):
        rest = np.delete(values, column, axis=1)
        if np.ptp(values[:, column]) == 0:
            scores.append(math.nan)
        elif rest.shape[1] == 0:
            scores.append(0.0)  # the intercept alone
        else:
            scores.append(LinearRegression().fit(rest, values[:, column]).score(rest, values[:, column]))
    return scores


def by_numpy(columns: Tensor) -> list[float]:
    """R2 by least squares that keep every direction float64 resolves; scikit-learn 1.9 drops those below 1e-6."""
    values = columns.double().numpy()
    values = values - values.mean(0)
    scores = []
    for column in range(values.shape[1]):
        rest, target = np.delete(values, column, axis=1), values[:, column]
        left = target - rest @ np.linalg.lstsq(rest, target, rcond=None)[0]
        scores.append(1 - (left @ left) / (target @ target))
    return scores


def assert_correlation(actual: Tensor, outputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Near the float64 oracle of the same values, symmetric, with an exact diagonal."""
    expected = oracle.correlation(outputs.double())
    torch.testing.assert_close(actual, expected, **TOLERANCE["correlation", dtype], equal_nan=True)
    torch.testing.assert_close(actual, actual.mT, rtol=0, atol=0, equal_nan=True)
    diagonal = actual.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal == 1) | diagonal.isnan()).all()


# --- against the oracles, over odd shapes ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", ONE_TILE, ids=lambda case: case.name)
def test_correlation(case: LogitsCase, dtype: torch.dtype, backend: str) -> None:
    outputs = mixed(case.shape).to(dtype)
    assert_correlation(correlation(outputs, backend=backend), outputs, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*BYTES, torch.float32, torch.float16])
@pytest.mark.parametrize("case", ODD_OUTPUTS, ids=lambda case: case.name)
def test_cooccurrence(case: LogitsCase, dtype: torch.dtype, backend: str) -> None:
    predictions = binary(case.shape).to(dtype)
    counts = cooccurrence(predictions, backend=backend)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, oracle.cooccurrence(predictions))
    values = predictions.double().numpy()
    np.testing.assert_array_equal(counts, np.swapaxes(values, -1, -2) @ values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ODD_OUTPUTS, ids=lambda case: case.name)
def test_interdependence(case: LogitsCase, backend: str) -> None:
    predictions = binary(case.shape)
    shares = interdependence(predictions, backend=backend)
    assert shares.dtype == torch.float64
    expected = oracle.interdependence(predictions)
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-6, equal_nan=True)


def kernel_correlation(outputs: Tensor, tile: ColumnTile | None = None) -> Tensor | None:
    """What the kernel and its finish make of `[M, N, K]`, without a way out to float64."""
    return dependence.finish(dependence.sums(outputs, tile=tile), outputs.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize("rows_per_split", [64, 320])
@pytest.mark.parametrize("columns", [5, 40])
def test_poisoned_workspaces(columns: int, rows_per_split: int) -> None:
    tile = ColumnTile(16, 64, warps=4)
    splits = -(-300 // rows_per_split)
    outputs = mixed((2, 300, columns)).float() + 50
    outputs[1, :, columns - 2] = 4.0
    partial = torch.full((2, splits, columns + 2, columns), math.nan)
    total = dependence.sums(outputs, tile=tile, filled=(partial, rows_per_split))
    assert not partial.isnan().any()
    matrix = dependence.finish(total, 300)
    assert matrix is not None
    assert_correlation(matrix, outputs)

    predictions = binary((2, 300, columns)).to(torch.uint8)
    total = dependence.sums(predictions, binary=True, tile=tile, filled=(partial.fill_(7.5), rows_per_split))
    assert torch.equal(total[:, :-2].long(), oracle.cooccurrence(predictions))
    assert not total[:, -2:].any()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [10, 32, 64, 70])
def test_every_tile(columns: int) -> None:
    outputs = mixed((2, 700, columns)).float() - 9
    predictions = outputs > -9
    for tile in tiles.of_dependence(columns):
        matrix = kernel_correlation(outputs, tile)
        assert matrix is not None
        assert_correlation(matrix, outputs)
        counts = dependence.sums(predictions, binary=True, tile=tile)[:, :-2]
        assert torch.equal(counts.long(), oracle.cooccurrence(predictions))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("offset", "scale"), [(0, 1), (10, 1), (1000, 1), (0, 2.0**-10), (10, 2.0**-10), (-3, 30)]
)
def test_error_of_the_kernel(offset: float, scale: float, dtype: torch.dtype) -> None:
    outputs = ((mixed((2, 3000, 24)) + offset) * scale).to(dtype)
    matrix = kernel_correlation(outputs)
    assert matrix is not None
    torch.testing.assert_close(matrix, oracle.correlation(outputs), rtol=0, atol=1e-6)


def test_splits_fill_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = torch.empty(1).expand(2, 50_000, 64)
    tile = dependence.default_tile(64)
    for multiprocessors, splits in ((132, 66), (78, 39), (16, 8)):
        monkeypatch.setattr(dependence, "limits", lambda _, number=multiprocessors: (number, 0))
        partial, rows = dependence.workspace(outputs, tile)
        assert partial.shape == (2, partial.shape[1], 66, 64)
        assert splits - 2 < partial.shape[1] <= splits  # rows are rounded up
        assert rows % tile.rows == 0
        assert 50_000 <= partial.shape[1] * rows < 50_000 + rows
    assert dependence.workspace(outputs[:, :300], tile)[1] == 256  # the sample is not read for fewer rows
    assert dependence.workspace(torch.empty(1).expand(1, 1 << 24, 8), tile)[1] == dependence.LONGEST_SPLIT


# --- against other libraries -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_correlation_against_numpy_and_scipy(backend: str) -> None:
    outputs = mixed((200, 6), seed=3).float()
    matrix = correlation(outputs, backend=backend)
    np.testing.assert_allclose(matrix, np.corrcoef(outputs.double().numpy(), rowvar=False), atol=1e-6)
    expected = stats.pearsonr(outputs[:, 0].double(), outputs[:, 4].double()).statistic
    assert float(matrix[0, 4]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["binary", "real"])
def test_interdependence_against_scikit_learn(kind: str, backend: str) -> None:
    predictions = binary((300, 12)) if kind == "binary" else mixed((300, 12)).float() + 7
    shares = interdependence(predictions, backend=backend)
    expected = by_scikit_learn(predictions)
    assert min(expected) < 0.9
    np.testing.assert_allclose(shares, expected, atol=1e-9)


def _collinear(kind: str) -> Tensor:
    values = (torch.rand(200, 7, generator=seeded(4)) < 0.4).double()
    values[:, 6] = ((values[:, 4] + torch.rand(200, generator=seeded(5), dtype=torch.float64)) > 0.9).double()
    if kind == "duplicate":
        values[:, 3] = values[:, 0]
    elif kind == "complement":
        values[:, 3] = 1 - values[:, 0]
    elif kind == "sum":
        values[:, 1] *= 1 - values[:, 0]
        values[:, 3] = values[:, 0] + values[:, 1]
    elif kind == "two dependencies":
        values[:, 3], values[:, 2] = values[:, 0], 1 - values[:, 1]
    elif kind == "constant":
        values[:, 3] = 1
    elif kind == "constant and duplicate":
        values[:, 3], values[:, 2] = 0, values[:, 1]
    elif kind == "one row apart":
        values[:, 3] = values[:, 0]
        values[17, 3] = 1 - values[17, 3]
    else:
        assert kind == "more columns than rows"
        values = values[:5, :]
        values = torch.cat([values, binary((5, 4), seed=9).double()], 1)
    return values


COLLINEAR = [
    "duplicate", "complement", "sum", "two dependencies", "constant", "constant and duplicate",
    "one row apart", "more columns than rows",
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", COLLINEAR)
def test_interdependence_of_collinear_columns(kind: str, backend: str) -> None:
    predictions = _collinear(kind)
    shares = interdependence(predictions.to(torch.uint8), backend=backend)
    np.testing.assert_allclose(shares, by_scikit_learn(predictions), atol=1e-8)
    if kind not in ("one row apart", "constant"):
        assert (shares == 1).any()
    if kind != "more columns than rows":
        assert float(shares[5]) < 0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6, 1e-3])
def test_interdependence_of_nearly_collinear_real_columns(noise: float, backend: str) -> None:
    predictions = mixed((150, 6))
    generator = seeded(8)
    extra = noise * torch.randn(150, generator=generator, dtype=torch.float64)
    predictions[:, 5] = predictions[:, 0] + 1e-4 * predictions[:, 1] + extra
    shares = interdependence(predictions + 3, backend=backend)
    np.testing.assert_allclose(shares, by_numpy(predictions + 3), atol=1e-6)


@pytest.mark.parametrize("part", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_weak_part_in_a_dependency_is_found(part: float, noise: float) -> None:
    predictions = mixed((150, 4))
    extra = noise * torch.randn(150, generator=seeded(8), dtype=torch.float64)
    predictions[:, 3] = predictions[:, 0] + part * (predictions[:, 1] + extra)
    shares = interdependence(predictions)
    np.testing.assert_allclose(shares, by_numpy(predictions), atol=2e-6)
    assert (shares[1] == 1) == (noise == 0)


@settings(max_examples=200)
@given(
    arrays(np.int64, st.tuples(st.integers(2, 9), st.integers(1, 7)), elements=st.integers(0, 3)),
    st.sampled_from([torch.float64, torch.float32, torch.int64, torch.uint8]),
)
def test_interdependence_of_small_integers(values: np.ndarray, dtype: torch.dtype) -> None:
    shares = interdependence(torch.from_numpy(values).to(dtype))
    varying = np.ptp(values, axis=0) > 0
    assert shares.isnan().tolist() == (~varying).tolist()
    if varying.any():
        expected = by_numpy(torch.from_numpy(values[:, varying]))
        np.testing.assert_allclose(shares[torch.from_numpy(varying)], expected, atol=1e-9)


# --- the traps of one-pass correlation ---------------------------------------------------------------------


def _trap(kind: str) -> Tensor:
    outputs = mixed((300, 5), seed=2)
    if kind == "offset 1e8":
        return (64 * outputs + 1e8).float()
    if kind == "tiny":
        return (outputs * 1e-20).float()
    if kind == "huge":
        return (outputs * 1e25).float()
    if kind == "mean 100 deviations":
        return (outputs + 100).float()
    if kind == "half, mean 100 deviations":
        return (outputs + 100).half()
    if kind == "sorted":
        return (outputs.sort(0).values + torch.arange(300).unsqueeze(-1)).float()
    if kind == "one outlier":
        outputs[250] *= 1e6
        return outputs.float()
    if kind == "grows by 1e10":
        return (outputs * torch.logspace(-10, 0, 300, dtype=torch.float64).unsqueeze(-1)).float()
    if kind == "one row apart by one unit":
        outputs[:, 1] = 1.0
        outputs[77, 1] = 1.0 + 2**-23
        return outputs.float()
    assert kind == "constant until late"
    outputs[:260, 1] = 5.0
    return outputs.float()


TRAPS = [
    "offset 1e8", "tiny", "huge", "mean 100 deviations", "half, mean 100 deviations", "sorted", "one outlier",
    "grows by 1e10", "one row apart by one unit", "constant until late",
]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [64, 320])
@pytest.mark.parametrize("kind", TRAPS)
def test_traps(kind: str, rows: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = _trap(kind)
    if backend == "triton":
        partial = torch.empty(1, -(-300 // rows), 7, 5)
        monkeypatch.setattr(dependence, "workspace", lambda *_: (partial, rows))
        monkeypatch.setattr(dependence, "correlation_in_torch", None)  # the kernel itself must hold
    matrix = correlation(outputs, backend=backend)
    assert not matrix.isnan().any()
    assert_correlation(matrix, outputs, outputs.dtype)


def test_a_sample_far_from_the_mean_holds_up_to_the_limit() -> None:
    outputs = mixed((1, 15 * 256, 4)).float()
    outputs[0, ::15] += 1e3 * torch.randn(4, generator=seeded())  # square sums are 15 variances, the limit 16
    matrix = kernel_correlation(outputs)
    assert matrix is not None
    assert_correlation(matrix, outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("kind", ["far outlier", "far sample", "rare and tiny", "one row off by a little"])
def test_a_sample_that_is_none_is_noticed(kind: str) -> None:
    outputs = mixed((1, 5120, 3)).float()  # sampled: every twentieth row
    if kind == "far outlier":
        outputs[0, 301] *= 1e6
    elif kind == "far sample":
        outputs[0, ::20, 1] += 1e4
    elif kind == "rare and tiny":
        outputs[0, :, 1] = 0
        outputs[0, 301:303, 1] = 1e-12
    else:
        outputs[0, :, 1] = 1
        outputs[0, 301, 1] += 2**-23
    assert kernel_correlation(outputs) is None
    assert_correlation(correlation(outputs, backend="triton"), outputs)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-36, 1e36])
def test_beyond_the_kernels_range_float64_takes_over(scale: float, backend: str) -> None:
    outputs = (mixed((70, 4)) * scale).float()
    assert_correlation(correlation(outputs, backend=backend), outputs)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e200, 1e307])
def test_extreme_scales_in_float64(scale: float) -> None:
    outputs = mixed((50, 4))
    outputs[:, 2] = 0.1
    outputs = outputs / outputs.abs().max() * scale
    expected = correlation(outputs / scale)
    torch.testing.assert_close(correlation(outputs), expected, rtol=0, atol=1e-12, equal_nan=True)
    assert correlation(outputs).isnan().sum() == 7


def test_a_constant_column_in_float64_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = mixed((50, 4))
    outputs[:, 2] = 0.1
    monkeypatch.setattr(dependence, "_scaled_to_one", None)
    assert_correlation(correlation(outputs), outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, -2.5, 1e8, 12345679.0])
def test_constant_column(value: float, backend: str) -> None:
    outputs = mixed((2, 137, 4)).float()
    outputs[0, :, 2] = value
    matrix = correlation(outputs, backend=backend)
    assert_correlation(matrix, outputs)
    assert matrix.isnan().sum() == 7
    assert matrix[0, 2].isnan().all()
    shares = interdependence(outputs, backend=backend)
    without = interdependence(outputs[0][:, [0, 1, 3]], backend=backend)
    torch.testing.assert_close(shares[0, [0, 1, 3]], without)
    assert shares.isnan().sum() == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*BYTES, torch.float32, torch.float16])
def test_correlation_of_binary_columns_is_exact(dtype: torch.dtype, backend: str) -> None:
    predictions = binary((1, 333, 6)).double()
    predictions[..., 4], predictions[..., 5] = predictions[..., 0], 1 - predictions[..., 0]
    matrix = correlation(predictions.to(dtype), backend=backend)[0]
    n, ones = 333, predictions[0].sum(0)
    counts = predictions[0].T @ predictions[0]
    covariance = n * counts - torch.outer(ones, ones)
    own = covariance.diagonal()
    torch.testing.assert_close(matrix, covariance / torch.outer(own, own).sqrt(), rtol=0, atol=1e-14)
    assert float(matrix[0, 4]) == 1
    assert float(matrix[0, 5]) == -1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64])
def test_correlation_of_integers(dtype: torch.dtype, backend: str) -> None:
    outputs = torch.randint(0, 120, (90, 5), generator=seeded()).to(dtype)
    expected = oracle.correlation(outputs.double())
    torch.testing.assert_close(correlation(outputs, backend=backend), expected, rtol=0, atol=1e-12)


# --- properties --------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    st.integers(2, 40),
    st.integers(1, 9),
    st.integers(0, 1000),
    st.floats(1e-3, 1e3),
    st.sampled_from(BACKENDS),
)
def test_permutation_and_scaling(rows: int, columns: int, seed: int, scale: float, backend: str) -> None:
    outputs = mixed((rows, columns), seed).float()
    order = torch.randperm(columns, generator=seeded(seed))
    matrix = correlation(outputs, backend=backend)
    permuted = correlation(outputs[:, order], backend=backend)
    torch.testing.assert_close(permuted, matrix[order][:, order], rtol=0, atol=1e-6)
    scaled = correlation((outputs.double() * scale).float(), backend=backend)
    torch.testing.assert_close(scaled, matrix, rtol=0, atol=2e-6)
    negated = correlation(torch.cat([-outputs[:, :1], outputs[:, 1:]], 1), backend=backend)
    torch.testing.assert_close(negated[0, 1:], -matrix[0, 1:], rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 1000), st.sampled_from(BACKENDS))
def test_interdependence_is_that_of_scikit_learn(rows: int, columns: int, seed: int, backend: str) -> None:
    predictions = binary((rows, columns), seed)
    order = torch.randperm(columns, generator=seeded(seed))
    shares = interdependence(predictions, backend=backend)
    np.testing.assert_allclose(shares, by_scikit_learn(predictions), atol=1e-8)
    permuted = interdependence(predictions[:, order], backend=backend)
    torch.testing.assert_close(permuted, shares[order], rtol=0, atol=1e-9, equal_nan=True)
    flipped = interdependence(~predictions, backend=backend)
    torch.testing.assert_close(flipped, shares, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_smallest_inputs(backend: str) -> None:
    two = torch.tensor([[1.0, 5.0, 2.0], [2.0, 4.0, 2.0]])
    nan = math.nan
    expected = torch.tensor([[1, -1, nan], [-1, 1, nan], [nan, nan, nan]], dtype=torch.float64)
    torch.testing.assert_close(correlation(two, backend=backend), expected, rtol=0, atol=0, equal_nan=True)
    assert interdependence(two, backend=backend).tolist()[:2] == [1, 1]
    assert correlation(two[:, :1], backend=backend).tolist() == [[1]]
    assert interdependence(two[:, :1], backend=backend).tolist() == [0]
    assert math.isnan(interdependence(two[:, 2:], backend=backend).item())
    assert cooccurrence(torch.tensor([[True]]), backend=backend).tolist() == [[1]]
    assert cooccurrence(torch.tensor([[True, False]]), backend=backend).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_that_is_not_contiguous(backend: str) -> None:
    outputs = mixed((5, 60, 3)).float()
    turned = outputs.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    expected = correlation(outputs, backend=backend)
    torch.testing.assert_close(correlation(turned, backend=backend), expected, rtol=0, atol=1e-12)
    ones = turned > 0
    assert torch.equal(cooccurrence(ones, backend=backend), oracle.cooccurrence(ones))


def test_pieces_cover_every_row_once() -> None:
    for shape in ((1, 70_000, 3), (3, 100_000, 4), (400, 900, 5), (2, 1, 1), (1, 3, 100_000)):
        seen = torch.zeros(shape[:2], dtype=torch.int64)
        for model, row in dependence.pieces(torch.empty(1).expand(shape)):
            seen[model, row] += 1
        assert (seen == 1).all()


# --- errors, registration, explanation ---------------------------------------------------------------------


@pytest.mark.parametrize("operation", [cooccurrence, correlation, interdependence])
def test_wrong_arguments(operation: Callable[..., Tensor]) -> None:
    name = "outputs" if operation is correlation else "predictions"
    for shape in ((3,), (0, 4), (4, 0), (0, 4, 2), (1, 2, 3, 4)):
        with pytest.raises(ArgumentError, match=f"^{name}: want .N, K."):
            operation(torch.zeros(shape))
    with pytest.raises(ArgumentError, match=f"^{name}: dtype torch.complex64"):
        operation(torch.zeros(3, 2, dtype=torch.complex64))
    with pytest.raises(ArgumentError, match=f"^{name}: want a torch tensor"):
        operation([[0.0, 1.0]])
    with pytest.raises(ArgumentError, match="backend: want one of"):
        operation(torch.zeros(3, 2), backend="cuda")


def test_one_row_is_too_few() -> None:
    for operation, name in ((correlation, "outputs"), (interdependence, "predictions")):
        with pytest.raises(ArgumentError, match=f"^{name}: want .* N >= 2"):
            operation(torch.zeros(1, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, math.nan, math.inf])
def test_values_other_than_zero_and_one(value: float, backend: str) -> None:
    predictions = binary((2, 400, 20)).float()
    predictions[1, 399, 18] = value
    with pytest.raises(ArgumentError, match=r"^predictions: want only 0 and 1"):
        cooccurrence(predictions, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_bytes_other_than_zero_and_one(dtype: torch.dtype, backend: str) -> None:
    predictions = binary((300, 3)).to(dtype)
    predictions[290, 1] = 3
    with pytest.raises(ArgumentError, match=r"^predictions: want only 0 and 1"):
        cooccurrence(predictions, backend=backend)
    shares = interdependence(predictions, backend=backend)  # real-valued after all
    np.testing.assert_allclose(shares, by_scikit_learn(predictions), atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy, in the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 150])
def test_values_that_are_not_finite(row: int, value: float, backend: str) -> None:
    outputs = mixed((2, 151, 3)).float()
    outputs[1, row, 1] = value
    with pytest.raises(ArgumentError, match=r"^outputs: contains values that are not finite"):
        correlation(outputs, backend=backend)
    with pytest.raises(ArgumentError, match=r"^predictions: contains values that are not finite"):
        interdependence(outputs, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["cooccurrence", "correlation", "interdependence"])
def test_registration(name: str, backend: str) -> None:
    operator = getattr(torch.ops.prunebench, name).default
    torch.library.opcheck(operator, (binary((2, 40, 3)).float(), backend))
    function = getattr(dependence, name)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for shape in ((40, 3), (2, 40, 3)):
        predictions = binary(shape).float()
        torch.testing.assert_close(
            compiled(predictions, backend=backend), function(predictions, backend=backend), equal_nan=True
        )


@pytest.mark.parametrize("operation", [cooccurrence, correlation, interdependence])
def test_a_traced_call_is_the_operator(operation: Callable[..., Tensor]) -> None:
    predictions = binary((2, 40, 3)).float()
    graph = make_fx(lambda x: operation(x))(predictions)
    operator = getattr(torch.ops.prunebench, operation.__name__).default
    assert operator in [node.target for node in graph.graph.nodes]
    assert torch.equal(graph(predictions.flip(0)), operation(predictions.flip(0)))
    assert operation(predictions.to("meta")).shape == operation(predictions).shape


def test_kernels_are_launched_on_the_gpu_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Tensor] = []
    launched: list[bool] = []

    @contextlib.contextmanager
    def on_device(tensor: Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.clear()

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            assert entered
            return lambda *arguments, **options: launched.append(options["BINARY"])

    monkeypatch.setattr(dependence, "on_device", on_device)
    monkeypatch.setattr(dependence, "sums_kernel", Kernel())
    dependence.sums(mixed((1, 20, 3)).float())
    dependence.sums(binary((1, 20, 3)), binary=True)
    assert launched == [False, True]


def test_autocast_changes_no_count() -> None:
    predictions = binary((999, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counts = cooccurrence(predictions)
    assert torch.equal(counts, oracle.cooccurrence(predictions))


def test_results_carry_no_gradient() -> None:
    outputs = mixed((20, 3)).requires_grad_()
    assert not correlation(outputs).requires_grad
    assert not interdependence(outputs).requires_grad


def test_explain() -> None:
    real, ones = mixed((50, 3)).float(), binary((50, 3))
    assert explain(correlation, real, backend="triton").is_triton
    assert explain("cooccurrence", ones, backend="triton").is_triton
    assert explain(interdependence, ones, backend="triton").is_triton
    assert explain(interdependence, ones.float(), backend="triton").is_triton
    assert "real-valued" in explain(interdependence, real, backend="triton").reason
    assert "float64" in explain(correlation, real.double(), backend="triton").reason
    assert "8192 columns" in explain(cooccurrence, torch.zeros(2, 8193), backend="triton").reason
    assert "need a GPU" in explain(correlation, real).reason
    assert "bfloat16" in explain(correlation, real.bfloat16(), backend="triton").reason
    with pytest.raises(ArgumentError, match=r"^outputs: want"):
        explain(correlation, real[:1])


# --- what auto takes on a GPU ------------------------------------------------------------------------------


def test_auto_takes_the_kernel_only_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hands a contest of both implementations as called, and no bound; interdependence none for real columns."""
    asked: dict[str, Any] = {}

    def select(operation: str, *_: object, refusal: str | None, contest: dispatch.Contest) -> Choice:
        asked[operation] = (refusal, contest)
        return Choice("torch", "")

    monkeypatch.setattr(dependence, "select", select)
    real, ones = mixed((50, 300)).float(), binary((50, 3)).float()
    expected = correlation(real)
    refusal, contest = asked["correlation"]
    assert refusal is None
    assert contest.key == (0, 6, 9, "torch.float32")
    monkeypatch.undo()
    calls = contest.calls()
    assert list(calls) == ["torch", "triton"]
    torch.testing.assert_close(calls["torch"]()[0], expected)
    torch.testing.assert_close(calls["triton"]()[0], expected, rtol=0, atol=1e-5)

    monkeypatch.setattr(dependence, "select", select)
    interdependence(ones)
    assert asked.pop("interdependence")[0] is None
    interdependence(real[:, :5])
    assert "interdependence" not in asked
    explain(interdependence, real[:, :5])
    assert "real-valued" in asked["interdependence"][0]


# --- machine code ------------------------------------------------------------------------------------------


def calls() -> dict[str, Callable[[], object]]:
    """What is compiled: every dtype, one and several tiles, the counts; and the tiles that a GPU run times."""

    def one(
        columns: int, dtype: torch.dtype, tile: ColumnTile | None = None, *, binary: bool = False
    ) -> None:
        dependence.sums(torch.zeros(2, 2000, columns, dtype=dtype), binary=binary, tile=tile)

    found: dict[str, Callable[[], object]] = {}
    for columns in (10, 40, 64, 100):
        found[f"float32 {columns}"] = functools.partial(one, columns, torch.float32)
        found[f"counts uint8 {columns}"] = functools.partial(one, columns, torch.uint8, binary=True)
    found["float16 64"] = functools.partial(one, 64, torch.float16)
    found["bfloat16 40"] = functools.partial(one, 40, torch.bfloat16)
    found["counts bfloat16 64"] = functools.partial(one, 64, torch.bfloat16, binary=True)
    for number, tile in enumerate(tiles.of_dependence(64)[1:]):
        found[f"candidate {number}"] = functools.partial(one, 64, torch.float32, tile)
    return found


# Instructions of the whole kernel, once through. With 64 float32 columns on sm_90 its loop is 348 of 1,347: 22 for
# each of the 16 values of a thread, so that 6.4 M values need 4.4 M warp instructions, 4.7 us of an H100's issue
# slots, against 8.5 us for 25.6 MB at 3 TB/s (arithmetic); the sample's loop is 178, in 4 steps a program.
BUDGETS = {
    "float32 10": 1000,
    "float32 40": 1600,
    "float32 64": 1550,
    "float32 100": 2600,
    "float16 64": 1700,
    "bfloat16 40": 1800,
    "counts uint8 10": 650,
    "counts uint8 40": 1100,
    "counts uint8 64": 1050,
    "counts uint8 100": 1250,
    "counts bfloat16 64": 1100,
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", machine_code.CAPABILITIES)
def test_machine_code(capability: int) -> None:
    figures = machine_code.figures("test_kernel_dependence", capability)
    broken = [line for name, rows in figures.items() for line in machine_code.check(name, rows, capability)]
    for name, budget in BUDGETS.items():
        (row,) = figures[name]
        if row.instructions > budget:
            broken.append(f"{name}: {row.instructions} instructions on sm_{capability}, budget {budget}")
        if " 64" in name and capability < 100 and not row.hgmma + row.hmma:
            broken.append(f"{name}: no tensor cores on sm_{capability}")
        if name in ("float32 40", "float32 64", "float16 64") and not row.vector_loads:
            broken.append(f"{name}: no 128-bit loads on sm_{capability}")
    assert not broken
