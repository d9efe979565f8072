"""Shared by all tests: one thread, repeatable property tests, and records to store."""

from __future__ import annotations

import os

os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # before Triton is imported: kernels run on the CPU when asked for

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from prunebench.results.record import (
    SCHEMA_VERSION,
    CostReport,
    GroupRow,
    Percentiles,
    RunRecord,
    SparsityReport,
)
from prunebench.results.spec import Recipe, RunSpec

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("repeatable")


FOLDERS = ("unit", "kernels", "integration", "results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test has the marker of its folder: `pytest -m unit`, `-m "results and not slow"`."""
    for item in items:
        folder = item.path.parent.name
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture(scope="session", autouse=True)
def _own_choices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Layouts that tests measure are not remembered in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEBENCH_CACHE", str(tmp_path_factory.mktemp("choices")))
        yield


@pytest.fixture(scope="session")
def spec() -> RunSpec:
    """One fixed cell."""
    return RunSpec(
        task="colored-digits@2pct",
        task_version=1,
        data_fingerprint="47dade0da6438e64",
        model="convnet-small",
        method="magnitude",
        method_version="1",
        params=(("allocation", "global"), ("start", "dense")),
        sparsity=0.9,
        seed=0,
        recipe=Recipe(steps=400, finetune_steps=100, batch_size=128, lr=2e-3, schedule="cosine"),
    )


@pytest.fixture(scope="session")
def make_record(spec: RunSpec) -> Callable[..., RunRecord]:
    """Make a valid ok record of the fixed cell; keyword arguments replace its fields."""

    def make(cell: RunSpec = spec, **changes: Any) -> RunRecord:
        times = Percentiles(1.0, 1.5, 2.0)
        fields: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_id": cell.run_id,
            "status": "ok",
            "spec": cell.to_dict(),
            "method": {"name": cell.method, "supervision": "none", "cite": "Han et al., 2015"},
            "sparsity": SparsityReport(0.9, 0.9, {"head.weight": 0.9}),
            "groups": [GroupRow(0, 0, True, 4, 3), GroupRow(0, 1, False, 5, 1)],
            "metrics": {"plain": 4 / 9, "aligned": 0.75, "conflicting": 0.2},
            "cost": CostReport(100, 10, 1000, 100, 64, times, times, 12.5, 30, 20),
        }
        return RunRecord(**{**fields, **changes})

    return make
