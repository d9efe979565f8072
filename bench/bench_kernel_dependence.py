"""Co-occurrence, correlation and interdependence over the shared shapes, against eager torch and scikit-learn.

On a CPU with two threads, on the shapes that fit; on a GPU synchronised. Compare times of one run only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from cases import OUTPUTS, LogitsCase
from prunebench_kernels import cooccurrence, correlation, interdependence
from prunebench_kernels import reference as oracle
from prunebench_kernels.measured import torch_threads
from pytest_benchmark.fixture import BenchmarkFixture
from sklearn.linear_model import LinearRegression
from timing import compiled, synchronised
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


def real(case: LogitsCase) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.randn(case.shape, generator=generator, device=DEVICE) + 3


def binary(case: LogitsCase) -> Tensor:
    """0/1 columns with a common part, so that they depend on each other."""
    outputs = real(case)
    return (outputs + outputs[..., :1] > 6.5).to(torch.uint8)


def eager_correlation(outputs: Tensor) -> Tensor:
    """Two passes in float32."""
    centred = outputs - outputs.mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred
    deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance / (deviation.unsqueeze(-1) * deviation.unsqueeze(-2))


def eager_counts(predictions: Tensor) -> Tensor:
    values = predictions.float()
    return (values.transpose(-1, -2) @ values).to(torch.int64)


def by_scikit_learn(predictions: np.ndarray) -> list[float]:
    """One regression a column, as the released code of the bias study has it; constant columns are nan."""
    scores = []
    for column in range(predictions.shape[1]):
        rest, target = np.delete(predictions, column, axis=1), predictions[:, column]
        constant = np.ptp(target) == 0
        scores.append(math.nan if constant else LinearRegression().fit(rest, target).score(rest, target))
    return scores


CORRELATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ours": correlation,
    "eager float32": eager_correlation,
    "eager float64": oracle.correlation,
}
if DEVICE.type == "cuda":  # a CPU would time its C++ compiler
    CORRELATIONS["torch.compile"] = compiled(eager_correlation)  # type: ignore[assignment]
COUNTS: dict[str, Callable[[Tensor], Tensor]] = {"ours": cooccurrence, "eager float32": eager_counts}


@pytest.mark.parametrize("who", CORRELATIONS)
@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case.name)
def test_correlation(case: LogitsCase, who: str, benchmark: BenchmarkFixture) -> None:
    outputs, function = real(case), CORRELATIONS[who]
    matrix = benchmark(synchronised(lambda: function(outputs), DEVICE))
    assert matrix.shape == (case.models, case.classes, case.classes)


@pytest.mark.parametrize("who", COUNTS)
@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case.name)
def test_cooccurrence(case: LogitsCase, who: str, benchmark: BenchmarkFixture) -> None:
    predictions, function = binary(case), COUNTS[who]
    counts = benchmark(synchronised(lambda: function(predictions), DEVICE))
    assert counts.shape == (case.models, case.classes, case.classes)


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case.name)
def test_interdependence(case: LogitsCase, benchmark: BenchmarkFixture) -> None:
    predictions = binary(case)
    shares = benchmark(synchronised(lambda: interdependence(predictions), DEVICE))
    assert shares.shape == (case.models, case.classes)


def test_interdependence_against_scikit_learn(capsys: pytest.CaptureFixture[str]) -> None:
    """The target: equal to 1e-6 and 200 times faster on two CPU cores for 19,962 x 40.

    In turns, one call of scikit-learn and nine of ours, medians: its threads keep spinning for a while after a call,
    and one call of ours right then would time them.
    """
    predictions = binary(OUTPUTS[0])[0].cpu()
    values = predictions.double().numpy()
    difference = np.abs(np.array(by_scikit_learn(values)) - interdependence(predictions).numpy()).max()
    samples: dict[str, list[float]] = {"ours": [], "scikit-learn": []}
    for _ in range(5):
        for name, call, calls in (
            ("scikit-learn", lambda: by_scikit_learn(values), 1),
            ("ours", lambda: interdependence(predictions), 9),
        ):
            for _ in range(calls):
                begun = time.perf_counter()
                call()
                samples[name].append((time.perf_counter() - begun) * 1e3)
    ours, theirs = (statistics.median(samples[name]) for name in ("ours", "scikit-learn"))
    with capsys.disabled():
        print(
            f"\nscikit-learn {theirs:.0f} ms, ours {ours:.2f} ms: {theirs / ours:.0f} times; "
            f"largest difference {difference:.1e}"
        )
    assert difference < 1e-6
