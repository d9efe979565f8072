"""Geometric means of ratios and their bootstrap intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunebench.inference.busy import MachineLoad, machine_load
from prunebench.stats.ratios import ratio_interval


def test_the_mean_is_geometric() -> None:
    assert ratio_interval([0.5, 2.0]).mean == pytest.approx(1)
    assert ratio_interval([1.0, 2.0, 4.0]).mean == pytest.approx(2)


def test_reciprocal_ratios_give_the_reciprocal_interval() -> None:
    ratios = [1.1, 1.3, 1.2, 1.6]
    one, other = ratio_interval(ratios), ratio_interval([1 / ratio for ratio in ratios])
    assert one.mean * other.mean == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1, rel=0.01)
    assert one.high * other.low == pytest.approx(1, rel=0.01)


def test_one_outlier_among_five_does_not_make_a_difference() -> None:
    """What the mean of ratios called 3.02 times as fast, from medians of 1.75 and 1.68 ms."""
    found = ratio_interval([1.02, 0.98, 1.04, 11.0, 1.03])
    assert found.mean < 2
    assert not found.differs


@pytest.mark.parametrize(
    ("ratios", "differs"), [([1.3, 1.31, 1.29], True), ([0.7, 0.71], True), ([1.5], False)]
)
def test_what_differs_from_one(ratios: list[float], differs: bool) -> None:
    assert ratio_interval(ratios).differs == differs


def test_equal_ratios_have_no_width() -> None:
    found = ratio_interval([1.25] * 4)
    assert (found.low, found.mean, found.high) == pytest.approx((1.25,) * 3)
    assert found.half_width == pytest.approx(0)


@pytest.mark.parametrize("ratios", [[], [1.0, math.nan], [1.0, 0.0], [1.0, math.inf], [-1.0]])
def test_what_is_undefined_is_not_dropped(ratios: list[float]) -> None:
    found = ratio_interval(ratios)
    assert math.isnan(found.mean)
    assert not found.differs
    assert found.n == len(ratios)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    """Five runs of a ratio of 1.2 with a deviation of 10 %, 400 times: at least 90 % cover, fewer than all."""
    rng = np.random.default_rng(1)
    drawn = np.exp(rng.normal(math.log(1.2), 0.1, (400, 5)))
    found = [ratio_interval(list(row)) for row in drawn]
    covered = np.mean([one.low <= 1.2 <= one.high for one in found])
    assert 0.90 <= covered < 0.99


@pytest.mark.parametrize(
    ("load", "cores", "threads", "busy"),
    [
        (None, 2, 1, False),
        (0.3, 2, 1, False),
        (1.4, 2, 1, False),
        (1.6, 2, 1, True),
        (0.3, 2, 2, False),
        (0.6, 2, 2, True),
        (0.6, 2, 64, True),
        (7.5, 16, 1, False),
    ],
)
def test_a_machine_is_busy_where_no_core_is_free(
    load: float | None, cores: int, threads: int, busy: bool
) -> None:
    problem = MachineLoad(load, cores).problem(threads)
    assert (problem is not None) == busy
    assert not busy or f"load average {load:g} on 2 cores" in str(problem)


def test_the_load_of_this_machine() -> None:
    here = machine_load()
    assert here.cores >= 1
    assert here.load_average is None or here.load_average >= 0
