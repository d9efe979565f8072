"""The harness's own cost: what is left of a worker's time beside the phases of its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from overhead import PHASES, instant_suite, measure, seconds_of

from prunebench.results.record import RunRecord
from prunebench.runner.plan import expand
from prunebench.runner.worker import DRAWS_KEPT


def test_the_suite_has_the_runs_that_are_asked_for() -> None:
    """And data that a worker keeps: what is loaded twice would be counted as the harness's own."""
    runs = expand(instant_suite(2000), None)
    assert len({run.spec.run_id for run in runs}) == 2000
    assert len({run.draw for run in runs}) <= DRAWS_KEPT


def test_a_draw_is_counted_once_and_the_first_run_not_at_all(make_record: Callable[..., RunRecord]) -> None:
    record = replace(make_record(), phase_seconds={"data": 1.0, "fit": 2.0})
    other = replace(record, spec={**record.spec, "seed": 1}, phase_seconds={"data": 4.0, "fit": 8.0})
    assert seconds_of([record, record, other, other]) == {"fit": 18.0, "data": 4.0}


@pytest.mark.slow
def test_phases_fit_into_the_time_of_one_process() -> None:
    costs = measure(20, 0)
    assert costs.runs == 19
    assert set(costs.phases) == set(PHASES)
    assert costs.own > 0
    assert costs.start_seconds > 0
