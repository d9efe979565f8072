"""Parts of a plan: together the whole, each with the dense models that it needs, the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import tiny_suite
from hypothesis import given
from hypothesis import strategies as st

from prunebench.errors import UsageError
from prunebench.runner.plan import PlannedRun, expand
from prunebench.runner.shard import Shard


@pytest.fixture(scope="module")
def runs() -> list[PlannedRun]:
    methods = ("dense", "magnitude", "random-layerwise", "snip")
    return expand(tiny_suite(*methods, sparsities=(0.5, 0.9), seeds=(0, 1, 2)), Path("none"))


@given(total=st.integers(1, 40))
def test_parts_are_the_plan_with_what_they_need(runs: list[PlannedRun], total: int) -> None:
    parts = [Shard(number, total).part(runs) for number in range(1, total + 1)]
    ids = [run.spec.run_id for run in runs]
    assert {run.spec.run_id for part in parts for run in part} == set(ids)
    for part in parts:
        there = [run.spec.run_id for run in part]
        assert {run.dense_id for run in part} <= set(there)
        assert there == [run_id for run_id in ids if run_id in there]  # in the plan's order
    pruned = [run.spec.run_id for part in parts for run in part if not run.is_dense]
    assert len(pruned) == len(set(pruned))  # no pruned run is made twice
    dense = sum(run.is_dense for part in parts for run in part)
    assert dense <= 3 + total - 1  # a dense model twice only where a cut goes through its runs
    own = [len([run for run in part if not run.is_dense]) for part in parts]
    assert max(own) - min(own) <= 2


def test_a_part_does_not_depend_on_the_plan_s_order(runs: list[PlannedRun]) -> None:
    mine = Shard(2, 3).part(runs)
    assert sorted(run.spec.run_id for run in Shard(2, 3).part(runs[::-1])) == sorted(
        r.spec.run_id for r in mine
    )


def test_a_shard_is_read_from_the_command_line() -> None:
    assert Shard.parse("2/5") == Shard(2, 5)
    for wrong in ("0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(UsageError, match="want I/N"):
            Shard.parse(wrong)
