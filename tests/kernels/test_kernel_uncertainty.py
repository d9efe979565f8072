"""The operation `uncertainty`: both backends against the float64 oracle, and the oracle's fields against scipy."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import compiled as machine_code
import numpy as np
import prunebench_kernels
import pytest
import torch
from cases import ODD_LOGITS, LogitsCase
from gpu import tiles
from kernel_tolerances import TOLERANCE
from prunebench_kernels import ArgumentError, explain, reference
from prunebench_kernels.uncertainty import (
    IN_A_LOOP,
    LARGEST_ROW,
    LARGEST_VOTE,
    OVER_MODELS,
    PER_MODEL,
    RowTile,
    Uncertainty,
    launch,
    rule,
    uncertainty,
)
from scipy import special, stats
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

module = importlib.import_module("prunebench_kernels.uncertainty")  # the package's attribute is the function
# What a row leaves in numpy, below Triton's interpreter, where differences overflow or correlation is 0 / 0.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
BACKENDS = ("torch", "triton")
HALF_AND_SINGLE = (torch.float32, torch.float16)


def draw(
    case: LogitsCase, scale: float = 3.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and dense logits of a case."""
    generator = torch.Generator().manual_seed(case.samples * case.classes)
    logits = (scale * torch.randn(case.shape, generator=generator)).to(dtype)
    labels = torch.randint(case.classes, (case.samples,), generator=generator)
    dense = (scale * torch.randn(case.samples, case.classes, generator=generator)).to(dtype)
    return logits, labels, dense


def expected_of(
    logits: Tensor, labels: Tensor | None, dense: Tensor | None, band: float = 0.4
) -> Uncertainty:
    dense = None if dense is None else dense.double()
    return reference.uncertainty(logits.double(), labels=labels, dense_logits=dense, band=band)


def assert_same(actual: Uncertainty, expected: Uncertainty, dtype: torch.dtype = torch.float32) -> None:
    """Every field: None, shape, dtype and values within the tolerance."""
    for field in dataclasses.fields(Uncertainty):
        ours, theirs = getattr(actual, field.name), getattr(expected, field.name)
        assert (ours is None) == (theirs is None), field.name
        if theirs is None:
            continue
        assert ours.shape == theirs.shape, field.name
        if field.name == "vote":
            assert ours.dtype == torch.int64
            assert torch.equal(ours, theirs)
            continue
        assert ours.dtype == torch.promote_types(dtype, torch.float32), field.name
        torch.testing.assert_close(
            ours.double(),
            theirs,
            equal_nan=True,
            msg=lambda text, name=field.name: f"{name}: {text}",  # type: ignore[misc]
            **TOLERANCE["uncertainty", dtype],  # type: ignore[arg-type]
        )


def poisoned(logits: Tensor, *, labels: bool = True, dense: bool = True) -> list[Tensor]:
    """Outputs for logits `[M, N, C]` that hold nan, or a class that is not there."""
    outputs = module.allocate(logits, labels, dense, True, torch.float32)
    return [output.fill_(torch.nan if output.is_floating_point() else -7) for output in outputs]


def as_uncertainty(outputs: list[Tensor]) -> Uncertainty:
    return Uncertainty(**dict(zip((*PER_MODEL, *OVER_MODELS), outputs)))


@pytest.mark.parametrize("dtype", [*HALF_AND_SINGLE, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("case", ODD_LOGITS, ids=lambda case: case.name)
def test_against_the_oracle(case: LogitsCase, scale: float, backend: str, dtype: torch.dtype) -> None:
    logits, labels, dense = draw(case, scale, dtype)
    values = uncertainty(logits, labels=labels, dense_logits=dense, backend=backend)
    assert_same(values, expected_of(logits, labels, dense), dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("with_dense", [False, True])
@pytest.mark.parametrize("models", [0, 2])
def test_what_was_not_asked_is_none(models: int, with_dense: bool, with_labels: bool, backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", models, 5, 7))
    asked = {"labels": labels if with_labels else None, "dense_logits": dense if with_dense else None}
    values = uncertainty(logits, **asked, backend=backend)  # type: ignore[arg-type]
    assert_same(values, expected_of(logits, asked["labels"], asked["dense_logits"]))


@pytest.mark.parametrize("in_rows_from", [1, 1 << 20], ids=["rows", "transposed"])
@pytest.mark.parametrize("chunk", [1, 64, 1 << 18])
@pytest.mark.parametrize("dtype", [*HALF_AND_SINGLE, torch.float64])
@pytest.mark.parametrize("case", [ODD_LOGITS[1], ODD_LOGITS[4], ODD_LOGITS[5]], ids=lambda case: case.name)
def test_module_in_every_layout_and_chunk(
    case: LogitsCase, dtype: torch.dtype, chunk: int, in_rows_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CLASSES_IN_ROWS_FROM", in_rows_from)
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def dirty(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return new_empty(self, *args, **kwargs).fill_(77)  # type: ignore[call-overload]

    monkeypatch.setattr(Tensor, "new_empty", dirty)
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: empty_like(*args, **kwargs).fill_(77))
    logits, labels, dense = draw(case, 3.0, dtype)
    before = logits.clone()
    values = uncertainty(logits, labels=labels, dense_logits=dense, backend="torch")
    assert_same(values, expected_of(logits, labels, dense), dtype)
    assert torch.equal(logits, before)


def test_threads_that_call_at_once_have_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, dense = draw(LogitsCase("", 3, 4000, 50))
    alone = uncertainty(logits, labels=labels, dense_logits=dense, backend="torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", None)  # the number is the process's, not a call's
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(uncertainty, logits, labels=labels, dense_logits=dense, backend="torch")
            for _ in range(6)
        ]
        for call in calls:
            for name in (*PER_MODEL, *OVER_MODELS):
                torch.testing.assert_close(getattr(call.result(), name), getattr(alone, name))


SMALL = LogitsCase("", 3, 5, 13)
TILES = (
    *(RowTile(width, early=early) for width in (2, 4, 16) for early in (True, False)),
    RowTile(1, rows=4, warps=4),
    RowTile(8, rows=2, models=2, warps=2),
    RowTile(2, rows=32, models=4, warps=4, early=False),
    RowTile(4, rows=2, steps=2),
    RowTile(16, rows=1, steps=8, early=False),
    RowTile(32, rows=1, models=2, steps=3),
    *(RowTile(width, warps=4, early=False, whole_rows=False) for width in (8, 32)),
)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_every_tile_writes_everything(tile: RowTile, dtype: torch.dtype) -> None:
    logits, labels, dense = draw(SMALL, 3.0, dtype)
    logits[:, 1] = logits[:, :1, 5:6].expand(3, 1, 13)[:, 0]  # one constant row per model
    logits[0, 2, 4] = logits[0, 2].max()  # and one tie at the top
    outputs = launch(logits, labels, dense, 0.4, True, tile=tile, outputs=poisoned(logits))
    assert_same(as_uncertainty(outputs), expected_of(logits, labels, dense), dtype)


SHAPES = [
    (models, classes)
    for models in (1, 2, 5, LARGEST_VOTE + 1, 70)
    for classes in (2, 3, 10, 16, 17, 40, 101, 200, 1000)
    if models * classes < 10_000
]


@pytest.mark.slow
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize(("models", "classes"), SHAPES)
def test_the_tile_of_every_shape(models: int, classes: int, compared: bool) -> None:
    logits, labels, dense = draw(LogitsCase("", models, 3, classes))
    other = dense if compared else None
    outputs = launch(logits, labels, other, 0.4, True, outputs=poisoned(logits, dense=compared))
    expected = expected_of(logits, labels, other)
    for name, value in zip((*PER_MODEL, *OVER_MODELS), outputs):
        wanted = getattr(expected, name)
        if wanted is not None:
            torch.testing.assert_close(value.to(wanted.dtype), wanted, rtol=1e-6, atol=1e-6)


def test_tiles_hold_a_row_and_use_every_lane() -> None:
    for models in (1, 2, 30, 1000):
        for classes in (2, 3, 10, 40, 129, 1000, 4096, 5000, 30_000):
            for compared in (False, True):
                for dtype in (torch.float32, torch.float16):
                    found = tiles.of_uncertainty(models, classes, dtype, compared)
                    assert found[0] == rule(models, classes, dtype, compared)
                    for tile in found:
                        sizes = (tile.models, tile.rows, tile.width, tile.warps)
                        assert all(size & (size - 1) == 0 and size > 0 for size in sizes)
                        assert tile.models < 2 * models
                        assert tile.whole_rows == (classes <= LARGEST_ROW)
                        lanes = tile.models * tile.rows * tile.width
                        assert not tile.whole_rows or lanes >= 32 * tile.warps
    assert 6 <= len(tiles.of_uncertainty(2, 1000, torch.float32)) <= 12


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[RowTile]:
    """The tiles that run, as they run."""
    seen: list[RowTile] = []
    run = module._run_kernel
    monkeypatch.setattr(
        module, "_run_kernel", lambda tile, *arguments: seen.append(tile) or run(tile, *arguments)
    )
    return seen


def test_a_row_longer_than_a_tile_goes_through_the_loop(launched: list[RowTile]) -> None:
    logits, labels, dense = draw(LogitsCase("", 2, 1, LARGEST_ROW + 1))
    values = uncertainty(logits, labels=labels, dense_logits=dense, backend="triton")
    assert_same(values, expected_of(logits, labels, dense))
    assert launched == [IN_A_LOOP]


def test_only_rows_that_overflow_run_a_second_time(launched: list[RowTile]) -> None:
    logits, labels, dense = draw(SMALL)
    logits[1, 2] = 7.0
    dense[3] = -2.0  # constant rows have no correlation, and nothing to repeat
    values = uncertainty(logits, labels=labels, dense_logits=dense, backend="triton")
    assert_same(values, expected_of(logits, labels, dense))
    assert [tile.whole_rows for tile in launched] == [True]
    for place, value in (((0, 0, 3), 3e38), ((1, 1, 12), -3e38), ((2, 4, 0), -1e38)):
        extreme = logits.clone()
        extreme[place] = value
        extreme[2, 3] = -2e38  # all below what stands behind the last class
        launched.clear()
        values = uncertainty(extreme, labels=labels, backend="triton")
        assert_same(values, expected_of(extreme, labels, None))
        assert [tile.whole_rows for tile in launched] == [True, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [3, 41, 49, 107])
def test_the_share_of_all_is_one(count: int, backend: str) -> None:
    everywhere = uncertainty(torch.zeros(count, 1, count), backend=backend)
    assert (everywhere.in_band_share == 1).all()
    assert everywhere.agreement is not None
    assert everywhere.agreement.item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_scipy(backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", 4, 11, 9))
    values = uncertainty(logits, labels=labels, dense_logits=dense, backend=backend)
    z, y, sample = logits.double().numpy(), dense.double().numpy(), np.arange(11)
    p, q = special.softmax(z, -1), special.softmax(y, -1)
    ordered = np.sort(p, -1)
    correlation = [[stats.pearsonr(z[m, n], y[n]).statistic for n in range(11)] for m in range(4)]
    vote, count = stats.mode(z.argmax(-1), axis=0)
    predictive = stats.entropy(p.mean(0), axis=-1)
    wanted = {
        "max_probability": ordered[..., -1],
        "margin": ordered[..., -1] - ordered[..., -2],
        "entropy": stats.entropy(p, axis=-1),
        "negative_log_likelihood": -special.log_softmax(z, -1)[:, sample, labels.numpy()],
        "in_band_share": (np.abs(special.expit(z) - 0.5) < 0.4).mean(-1),
        "kl_to_dense": stats.entropy(p, np.broadcast_to(q, p.shape), axis=-1),
        "correlation_to_dense": np.array(correlation),
        "mean_probability": p.mean(0),
        "predictive_entropy": predictive,
        "mutual_information": predictive - stats.entropy(p, axis=-1).mean(0),
        "vote": vote,
        "agreement": count / 4,
    }
    assert set(wanted) == {field.name for field in dataclasses.fields(Uncertainty)}
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(values, name), value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_model_equals_plain_logits(backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", 0, 9, 10))
    plain = uncertainty(logits, labels=labels, dense_logits=dense, backend=backend)
    stacked = uncertainty(logits[None], labels=labels, dense_logits=dense, backend=backend)
    for name in PER_MODEL:
        assert torch.equal(getattr(stacked, name), getattr(plain, name)[None])
    assert stacked.mean_probability is not None
    assert stacked.mutual_information is not None
    assert stacked.vote is not None
    assert stacked.agreement is not None
    torch.testing.assert_close(stacked.mean_probability, logits.softmax(-1), rtol=1e-6, atol=1e-7)
    assert stacked.mutual_information.abs().max() < 1e-6
    assert torch.equal(stacked.vote, logits.argmax(-1))
    assert torch.equal(stacked.agreement, torch.ones(9))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_constant_rows(backend: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[2.0, 5.0, 5.0, 1.0], [5.0, 5.0, 5.0, 5.0], [9.0, -9.0, 0.0, 8.0]], dtype=dtype)
    values = uncertainty(logits, dense_logits=torch.arange(12.0).view(3, 4), backend=backend)
    assert values.margin[:2].tolist() == [0.0, 0.0]
    assert values.max_probability[1].item() == 0.25
    assert values.entropy[1].item() == pytest.approx(math.log(4), rel=1e-6)
    assert values.correlation_to_dense is not None
    assert values.correlation_to_dense.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "value", [0.1, -3.3, 1e4 + 0.1]
)  # the mean of seven times such a number is not the number
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_row_has_no_correlation(backend: str, value: float) -> None:
    logits, _, dense = draw(LogitsCase("", 0, 4, 7))
    logits[1], dense[3] = value, value
    values = uncertainty(logits, dense_logits=dense, backend=backend)
    assert values.correlation_to_dense is not None
    assert values.correlation_to_dense.isnan().tolist() == [False, True, False, True]
    assert_same(values, expected_of(logits, None, dense))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [200.0, 1e4, 6e4])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_extreme_logits(size: float, backend: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[size, -size, 0.0], [-size, size, size], [-size, -size, -size]], dtype=dtype)
    labels, dense = torch.tensor([0, 1, 2]), -logits
    values = uncertainty(logits[None], labels=labels, dense_logits=dense, backend=backend)
    assert values.max_probability[0].tolist() == pytest.approx([1.0, 0.5, 1 / 3], rel=1e-6)
    assert values.margin.tolist() == [[1.0, 0.0, 0.0]]
    assert values.negative_log_likelihood is not None
    expected = [[0.0, math.log(2), math.log(3)]]
    for ours in (values.entropy, values.negative_log_likelihood):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    for field in dataclasses.fields(values):
        wanted = 1 if field.name == "correlation_to_dense" else 0  # the constant row's
        assert getattr(values, field.name).isnan().sum() == wanted, field.name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e-25, 1e15, 1e30, 1e38, 3e38])
def test_scales_at_the_ends_of_float32(size: float, backend: str) -> None:
    logits = size * torch.tensor([[[1.0, -1.0, 0.25], [0.5, 1.0, -1.0]]])
    dense = size * torch.tensor([[-1.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    values = uncertainty(logits, labels=torch.tensor([0, 1]), dense_logits=dense, backend=backend)
    expected = expected_of(logits, torch.tensor([0, 1]), dense)
    for name in ("max_probability", "margin", "entropy", "negative_log_likelihood", "correlation_to_dense"):
        if name == "correlation_to_dense" and size > 1e38:
            continue  # the logits' differences are beyond float32
        np.testing.assert_allclose(getattr(values, name), getattr(expected, name), atol=1e-6, err_msg=name)
    assert values.kl_to_dense is not None
    assert not values.kl_to_dense.isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e17, 3e19, 1e22, 1e30])
def test_correlation_where_only_one_sum_of_squares_overflows(size: float, backend: str) -> None:
    logits, _, dense = draw(LogitsCase("", 2, 3, 7))
    for ours, theirs in ((size * logits, dense), (logits, size * dense)):
        values = uncertainty(ours, dense_logits=theirs, backend=backend)
        found, expected = values.correlation_to_dense, expected_of(ours, None, theirs).correlation_to_dense
        assert found is not None
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("band", [0.4, 0.25, 0.01])
def test_band_edges_are_strict(band: float, backend: str, dtype: torch.dtype) -> None:
    edge = special.logit(0.5 + band)
    at = torch.tensor(edge).to(dtype)
    below, above = torch.nextafter(at, at * 0), torch.nextafter(at, at * 2)
    points = torch.stack([below, at, above, -below, -at, -above])
    inside = [abs(float(point)) < edge for point in points]
    assert 2 <= sum(inside) <= 4
    for point, is_inside in zip(points, inside):
        row = torch.stack([point, torch.full_like(point, 30.0), torch.full_like(point, -30.0)])
        share = uncertainty(row[None], band=band, backend=backend).in_band_share
        assert share.item() == pytest.approx(is_inside / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vote_ties_go_to_the_lowest_class(backend: str) -> None:
    first = torch.tensor(
        [[2, 2, 0], [1, 2, 1], [2, 0, 3], [1, 3, 2]]
    )  # the first class of each model and sample
    logits = 4 * torch.nn.functional.one_hot(first, 4).float()
    logits[3, 2, 3] = logits[3, 2, 2] = 4.0  # a model that has two first classes votes for the lower
    values = uncertainty(logits, backend=backend)
    assert values.vote is not None
    assert values.agreement is not None
    assert values.vote.tolist() == [1, 2, 0]
    assert values.agreement.tolist() == [0.5, 0.5, 0.25]


def test_many_models_keep_the_precision() -> None:
    logits, labels, _ = draw(LogitsCase("", 3000, 3, 10))
    values = uncertainty(logits, labels=labels, backend="torch")
    assert_same(values, expected_of(logits, labels, None))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "view", ["every second sample", "transposed", "every second class", "expanded models"]
)
def test_logits_of_any_strides(view: str, backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", 3, 5, 11))
    strided = {
        "every second sample": torch.repeat_interleave(logits, 2, 1)[:, ::2],
        "transposed": logits.transpose(0, 2).contiguous().transpose(0, 2),
        "every second class": torch.repeat_interleave(logits, 2, 2)[..., ::2],
        "expanded models": logits[:1].expand(3, 5, 11),
    }[view]
    assert not strided.is_contiguous()
    expected = expected_of(strided, labels, dense)
    values = uncertainty(strided, labels=labels, dense_logits=dense.t().contiguous().t(), backend=backend)
    assert_same(values, expected)


def test_float64_and_auto_on_a_cpu_run_in_torch_and_say_why() -> None:
    logits = torch.zeros(2, 3)
    assert explain("uncertainty", logits, backend="torch").reason == "backend torch was asked for"
    assert explain("uncertainty", logits, backend="triton").is_triton
    assert "float64" in explain("uncertainty", logits.double(), backend="triton").reason
    assert (
        "need a GPU"
        in explain(uncertainty, logits, labels=torch.zeros(2, dtype=torch.int64), backend="auto").reason
    )
    with pytest.raises(ArgumentError, match=r"^band"):
        explain("uncertainty", logits, band=0.5)


LOGITS, LABELS = torch.zeros(2, 4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("logits", {"logits": torch.zeros(3)}),
        ("logits", {"logits": torch.zeros(1, 2, 3, 4)}),
        ("logits", {"logits": torch.zeros(4, 1)}),
        ("logits", {"logits": torch.zeros(0, 3)}),
        ("logits", {"logits": torch.zeros(0, 4, 3)}),
        ("logits", {"logits": torch.zeros(4, 3, dtype=torch.int64)}),
        ("logits", {"logits": [[0.0, 1.0]]}),
        ("labels", {"labels": LABELS[:3]}),
        ("labels", {"labels": LABELS[None]}),
        ("labels", {"labels": LABELS.float()}),
        ("labels", {"labels": LABELS.to("meta")}),
        ("labels", {"labels": LABELS + 3}),
        ("labels", {"labels": LABELS - 1}),
        ("dense_logits", {"dense_logits": LOGITS}),
        ("dense_logits", {"dense_logits": torch.zeros(4, 4)}),
        ("dense_logits", {"dense_logits": LABELS[:, None].expand(4, 3)}),
        ("dense_logits", {"dense_logits": torch.zeros(4, 3, device="meta")}),
        ("band", {"band": 0.0}),
        ("band", {"band": 0.5}),
        ("band", {"band": math.nan}),
        ("backend", {"backend": "cuda"}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_name_the_argument(name: str, arguments: dict[str, object], backend: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        uncertainty(**{"logits": LOGITS, "backend": backend, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["logits", "dense_logits"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 4, 12)])
def test_values_that_are_not_finite(
    place: tuple[int, int, int], value: float, name: str, backend: str
) -> None:
    logits, labels, dense = draw(LogitsCase("", 2, 5, 13))
    (logits if name == "logits" else dense[None].expand(2, 5, 13))[place] = value
    with pytest.raises(ArgumentError, match=f"^{name}: contains values that are not finite"):
        uncertainty(logits, labels=labels, dense_logits=dense, backend=backend)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["logits", "dense_logits", "labels"])
def test_the_loop_over_columns_raises_too(name: str, value: float) -> None:
    logits, labels, dense = draw(LogitsCase("", 2, 2, 13))
    {"logits": logits[1], "dense_logits": dense, "labels": labels[:, None].expand(2, 13)}[name][1, 12] = (
        value if name != "labels" else 13
    )
    with pytest.raises(ArgumentError, match=f"^{name}: "):
        launch(logits, labels, dense, 0.4, True, tile=RowTile(8, warps=4, early=False, whole_rows=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_logits_beyond_float32(backend: str) -> None:
    logits, _, dense = draw(LogitsCase("", 2, 5, 13))
    with pytest.raises(ArgumentError, match=r"^dense_logits: contains values that are not finite"):
        uncertainty(logits, dense_logits=dense.double() * 1e300, backend=backend)


def test_a_default_device_elsewhere_does_not_matter() -> None:
    logits, labels, dense = draw(LogitsCase("", 2, 5, 13))
    with torch.device("meta"):
        values = uncertainty(logits, labels=labels, dense_logits=dense, backend="torch")
    assert_same(values, expected_of(logits, labels, dense))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_other_integers(dtype: torch.dtype, backend: str) -> None:
    logits, labels, _ = draw(LogitsCase("", 0, 6, 5))
    values = uncertainty(logits, labels=labels.to(dtype), backend=backend)
    assert_same(values, expected_of(logits, labels, None))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_requires_a_gradient(backend: str) -> None:
    logits, labels, _ = draw(LogitsCase("", 2, 4, 5))
    values = uncertainty(logits.requires_grad_(), labels=labels, backend=backend)
    assert not any(getattr(values, name).requires_grad for name in (*PER_MODEL[:4], *OVER_MODELS))


@pytest.mark.parametrize("inference", [False, True])
def test_under_inference_mode(inference: bool) -> None:
    with torch.inference_mode(inference):
        logits, labels, dense = draw(ODD_LOGITS[3])
        values = uncertainty(logits, labels=labels, dense_logits=dense, backend="torch")
    assert_same(values, expected_of(logits, labels, dense))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("over_models", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_opcheck(complete: bool, over_models: bool, backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", 2 if over_models else 1, 5, 7))
    rest = (labels, dense) if complete else (None, None)
    arguments = (logits, *rest, 0.4, over_models, backend)
    torch.library.opcheck(torch.ops.prunebench.uncertainty.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("models", [0, 2])
def test_under_torch_compile(models: int, backend: str) -> None:
    logits, labels, dense = draw(LogitsCase("", models, 5, 7))

    def summary(logits: Tensor) -> list[Tensor | None]:
        values = uncertainty(2 * logits, labels=labels, dense_logits=dense, backend=backend)
        return [getattr(values, name) for name in (*PER_MODEL, *OVER_MODELS)]

    torch._dynamo.reset()
    compiled = torch.compile(summary, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(compiled(logits), summary(logits)):
        assert (ours is None) == (eager is None)
        if ours is not None and eager is not None:
            torch.testing.assert_close(ours, eager, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_traced_call_is_the_operator(mode: Literal["real", "fake", "symbolic"]) -> None:
    logits, _, _ = draw(LogitsCase("", 2, 5, 7))
    graph = make_fx(lambda x: uncertainty(x).entropy, tracing_mode=mode)(logits)
    assert torch.ops.prunebench.uncertainty.default in [node.target for node in graph.graph.nodes]
    other = logits.flip(0)
    torch.testing.assert_close(graph(other), uncertainty(other).entropy, rtol=0, atol=0)


def test_tensors_without_data_have_shapes() -> None:
    logits, labels, _ = draw(LogitsCase("", 2, 5, 7))
    on_meta = uncertainty(logits.to("meta"), labels=labels.to("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        in_fake_mode = uncertainty(logits, labels=labels)
    for values in (on_meta, in_fake_mode):
        assert values.entropy.shape == (2, 5)
        assert values.vote is not None
        assert values.vote.dtype == torch.int64


@pytest.mark.slow
@pytest.mark.parametrize("first", ["reference", "uncertainty"])
def test_the_package_exports_the_function_whatever_is_imported_first(first: str) -> None:
    lines = (
        f"import prunebench_kernels.{first}",
        "import prunebench_kernels.uncertainty",
        "from prunebench_kernels import uncertainty as u",
        "from prunebench_kernels.uncertainty import uncertainty as v",
        "assert callable(u) and u is v and prunebench_kernels.uncertainty is u",
    )
    program = "; ".join(lines)
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_exports_this_operation() -> None:
    assert prunebench_kernels.uncertainty is uncertainty
    assert prunebench_kernels.Uncertainty is Uncertainty


# --- what auto decides by ----------------------------------------------------------------------------------


def test_what_auto_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    select = module.select

    def record(*arguments: Any, **options: Any) -> object:
        told.update(options)
        return select(*arguments, **options)

    monkeypatch.setattr(module, "select", record)
    logits, labels, dense = draw(LogitsCase("", 3, 70, 5))
    expected = uncertainty(logits, labels=labels, dense_logits=dense)
    assert told["certain"] is None
    key = told["contest"].key
    assert key == (2, 7, 3, "torch.float32", True, True, True)
    calls = told["contest"].calls()
    assert list(calls) == ["torch", "triton"]
    for call in calls.values():
        values = as_uncertainty(call())
        for name in (*PER_MODEL, *OVER_MODELS):
            torch.testing.assert_close(getattr(values, name), getattr(expected, name), rtol=1e-6, atol=1e-6)

    explain(uncertainty, logits[0])
    assert told["contest"].key == (0, 7, 3, "torch.float32", False, False, False)
    explain(uncertainty, torch.zeros(1, 1).expand(1024, 1024))
    assert "26 times" in told["certain"]
    for too_few in ((1023, 2000), (1025, 1000)):
        explain(uncertainty, torch.zeros(1, 1).expand(too_few))
        assert told["certain"] is None


# --- machine code ------------------------------------------------------------------------------------------


def calls() -> dict[str, Callable[[], object]]:
    """What is compiled, by "models x classes", with 0 models for `[N, C]`."""
    found: dict[str, Callable[[], object]] = {}

    def add(models: int, classes: int, dtype: torch.dtype = torch.float32, compared: bool = False) -> None:
        # An odd number of samples: the models' stride is no multiple of 16, and loads are vectors all the same.
        case = LogitsCase("", models, 33, classes)
        logits = torch.zeros(()).to(dtype).new_empty(case.shape)
        arguments = {"labels": torch.zeros(33, dtype=torch.int64)}
        if compared:
            arguments["dense_logits"] = logits.new_empty(33, classes)
        name = f"{models} x {classes} {str(dtype)[6:]}" + " compared" * compared
        found[name] = functools.partial(uncertainty, logits, **arguments, backend="triton")

    for models, classes in BUDGETS:
        add(models, classes)
    for dtype in (torch.float16, torch.bfloat16):
        add(2, 1000, dtype)
        add(2, 1000, dtype, compared=True)
    for models, classes in COMPARED:
        add(models, classes, compared=True)
    return found


# Instructions a logit of the whole kernel, a loop over models once through. For 2 models of 1000 float32 classes on
# sm_90 that loop is 705 of 1,142, for 31 logits in each lane: 30 a logit and model in all, so that 100 M logits
# need 92 M warp instructions, 100 us of an H100's issue slots, against 201 us for 602 MB at 3 TB/s (arithmetic). For
# 1000 models of 10 classes the loop is 349 of 964, for the 10 logits of a lane: 35 a logit and model.
BUDGETS: dict[tuple[int, int], float] = {
    **{(0, 10): 30, (0, 16): 24, (0, 40): 28, (0, 100): 28, (0, 1000): 24, (0, 4096): 25},
    **{(1, 10): 55, (1, 40): 40, (1, 1000): 38, (2, 1000): 40, (1000, 10): 110},
}
COMPARED = (
    *((1, 2), (3, 7), (1000, 7), (1000, 10), (2, 40), (8, 100), (2, 101), (1000, 101)),
    *((3, 200), (2, 1000), (1000, 1000), (8, 2048), (3, 4096), (2, 10_000)),
)


@pytest.mark.slow
@pytest.mark.parametrize("capability", machine_code.CAPABILITIES)
def test_machine_code(capability: int) -> None:
    """No spills, loads of 16 bytes where rows allow them, and not many more instructions than there are."""
    figures = machine_code.figures("test_kernel_uncertainty", capability)
    broken = [line for name, rows in figures.items() for line in machine_code.check(name, rows, capability)]
    for (models, classes), budget in BUDGETS.items():
        (row,) = figures[f"{models} x {classes} float32"]
        tile = rule(max(1, models), classes, torch.float32)
        spent = row.instructions / (tile.models * tile.rows * classes / (32 * tile.warps))
        if spent > budget:
            broken.append(f"{models} x {classes}: {spent:.1f} instructions a logit, budget {budget}")
        if classes % 4 == 0 and not row.vector_loads:
            broken.append(f"{models} x {classes}: no 128-bit loads")
    for name in ("2 x 1000 float16", "2 x 1000 bfloat16", "2 x 1000 float32 compared"):
        if not figures[name][0].vector_loads:
            broken.append(f"{name}: no 128-bit loads")
    assert not broken


def test_one_model_costs_one_models_work() -> None:
    """No place of a tile for `[N, C]` belongs to a second model, and fewer than `width` to no class."""
    for classes in (2, 10, 40):
        tile = rule(1, classes, torch.float32)
        assert tile.models == 1
        assert tile.width * math.ceil(classes / tile.width) - classes < tile.width
