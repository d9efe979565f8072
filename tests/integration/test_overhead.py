"""The harness's own cost: phases of its runs do not exceed the time that they took together."""

from __future__ import annotations

import math

import pytest
from overhead import PHASES, SPARSITIES, instant_suite, measure


def test_the_suite_has_the_runs_that_are_asked_for() -> None:
    suite = instant_suite(2000)
    assert len(suite.seeds) * (len(SPARSITIES) + 1) >= 2000
    assert max(suite.seeds) < 100


@pytest.mark.slow
def test_phases_fit_into_the_time_of_one_process() -> None:
    runs, wall, start, phases = measure(20, 0)
    assert runs == len(SPARSITIES) + 1
    assert set(phases) == set(PHASES)
    assert start > 0
    assert 0 < runs * math.fsum(phases.values()) < wall
