"""The order in which workers take runs: that of the plan, but within a row a worker stays with the data that it has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunebench.results.spec import RunSpec
from prunebench.runner.local import RunQueue
from prunebench.runner.plan import PlannedRun

pytestmark = pytest.mark.unit


def rows(spec: RunSpec, *sparsities: float, seeds: int = 5) -> list[PlannedRun]:
    """Runs of one method whose dense models are done."""
    return [
        PlannedRun(replace(spec, seed=seed, sparsity=sparsity), spec.task, spec.method, f"dense {seed}", ())
        for sparsity in sparsities
        for seed in range(seeds)
    ]


def test_without_data_at_hand_the_plan_is_followed(spec: RunSpec) -> None:
    runs = rows(spec, 0.5, 0.9)
    queue = RunQueue(runs)
    assert [queue.take() for _ in runs] == runs
    assert queue.take() is None


def test_data_at_hand_go_first_within_a_row_and_never_beyond_it(spec: RunSpec) -> None:
    queue, draw = RunQueue(rows(spec, 0.5, 0.9)), (spec.task, 3)
    taken = [queue.take(draws=[draw]) for _ in range(6)]
    assert [(run.spec.sparsity, run.spec.seed) for run in taken if run] == [
        (0.5, 3), (0.5, 0), (0.5, 1), (0.5, 2), (0.5, 4), (0.9, 3),
    ]  # fmt: skip


def test_two_workers_keep_to_seeds_of_their_own(spec: RunSpec) -> None:
    """With five seeds, more than a worker keeps, each loads two or three of them once."""
    queue, kept = RunQueue(rows(spec, 0.5, 0.7, 0.8, 0.9)), ([], [])
    loads = 0
    for turn in range(20):
        own = kept[turn % 2]
        run = queue.take(draws=own)
        assert run is not None
        loads += run.draw not in own
        own[:] = [*(draw for draw in own if draw != run.draw), run.draw][-4:]
    assert loads <= 8
