"""The self-test that compares kernels with torch: it runs every operation, and it catches a wrong kernel."""

from __future__ import annotations

import pytest
import torch
from prunebench_kernels import self_test
from prunebench_kernels.dispatch import is_interpreted

# The interpreter divides in rows beyond the last sample too, whose results are not stored.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")


@pytest.fixture(scope="module")
def found() -> list[self_test.Agreement]:
    assert is_interpreted()
    return list(self_test.agreements(torch.device("cpu")))


@pytest.mark.slow
def test_every_operation_runs_its_kernel_and_agrees(found: list[self_test.Agreement]) -> None:
    assert {entry.operation.split(",")[0] for entry in found} == {
        "masked_conv2d", "apply_masks", "sample_masks", "uncertainty", "cooccurrence", "correlation", "interdependence",
        "sparse_conv2d",
    }  # fmt: skip
    for entry in found:
        assert entry.choice.is_triton, entry
        assert entry.holds, entry
    assert len(found) >= 20


def test_a_wrong_kernel_is_caught(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = self_test.sparse_conv2d

    def wrong(*args: object, backend: str, **kwargs: object) -> torch.Tensor:
        return right(*args, backend="torch", **kwargs) * (1.001 if backend == "triton" else 1)  # type: ignore[arg-type]

    calls = self_test._calls
    monkeypatch.setattr(self_test, "sparse_conv2d", wrong)
    monkeypatch.setattr(
        self_test, "_calls", lambda device: {k: v for k, v in calls(device).items() if "direct" in k}
    )
    assert self_test.main() == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_a_nan_on_one_side_is_a_difference() -> None:
    whole, holed = torch.ones(3), torch.tensor([1.0, float("nan"), 1.0])
    assert self_test._difference(holed, whole) == float("inf")
    assert self_test._difference(holed, holed) == 0
