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


def test_what_waits_for_a_dense_model_is_looked_through_once(spec: RunSpec) -> None:
    """Idle workers ask at every event; with 10^5 waiting runs each look took 70 ms."""
    unpruned = replace(spec, method="dense", sparsity=0.0)
    dense = PlannedRun(unpruned, spec.task, "dense", unpruned.run_id, ())
    waiting = [replace(run, dense_id=dense.dense_id) for run in rows(spec, 0.5, 0.9, seeds=3)]
    queue = RunQueue([dense, *waiting])
    looks: list[PlannedRun] = []
    asked = queue.lacks_dense
    queue.lacks_dense = lambda run: (looks.append(run), asked(run))[1]  # type: ignore[method-assign]
    assert queue.take() == dense
    assert [queue.take() for _ in range(5)] == [None] * 5
    assert len(looks) == len(waiting)
    queue.finish(dense)
    assert queue.take() == waiting[0]


def test_a_run_that_was_put_back_comes_when_its_pause_is_over(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("prunebench.runner.local.time.monotonic", lambda: now[0])
    (run,) = rows(spec, 0.5, seeds=1)
    queue = RunQueue([run])
    assert queue.take() == run
    queue.put_back(run, 2.0)
    assert queue.take() is None
    now[0] = 1.9
    assert queue.take() is None
    now[0] = 2.0
    assert queue.take() == run
