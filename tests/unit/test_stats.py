"""Intervals, paired tests and ranks against values worked by hand and against scipy."""

from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from prunebench.stats.intervals import Interval, mean_interval
from prunebench.stats.tests import paired_p_value


def seeds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


# Intervals


def test_three_seeds_by_hand() -> None:
    """Mean 2, s = 1; for 2 degrees of freedom t(0.975) = 0.95 sqrt(2 / (1 - 0.95^2)) = 4.302653."""
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3), rel=1e-10)
    assert interval.n == 3


def test_two_seeds_by_hand() -> None:
    """s = 0.1 sqrt(2); for 1 degree of freedom t(0.975) = tan(0.475 pi) = 12.7062."""
    interval = mean_interval([0.4, 0.6])
    assert interval.mean == pytest.approx(0.5)
    assert interval.half_width == pytest.approx(0.1 * math.tan(0.475 * math.pi), rel=1e-10)


def test_one_seed_has_a_mean_and_no_half_width() -> None:
    interval = mean_interval([0.25])
    assert (interval.mean, interval.n) == (0.25, 1)
    assert math.isnan(interval.half_width)


@pytest.mark.parametrize("values", [[], [0.5, None], [0.5, math.nan, 0.7], [None]])
def test_an_undefined_value_makes_the_mean_undefined(values: list[float | None]) -> None:
    interval = mean_interval(values)
    assert math.isnan(interval.mean)
    assert math.isnan(interval.half_width)
    assert interval.n == len(values)


def test_equal_values_have_half_width_zero() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.0, 3)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_intervals_agree_with_scipy(values: list[float]) -> None:
    ours = mean_interval(values)
    spread = numpy.std(values, ddof=1)
    theirs = scipy_stats.t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values))
    assert ours.half_width == pytest.approx(theirs, rel=1e-6, abs=1e-9)


# Paired tests


def test_p_with_two_degrees_of_freedom_by_hand() -> None:
    """Differences 1, 2, 3: t = 2 sqrt(3); for 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)."""
    assert paired_p_value(seeds(2, 4, 6), seeds(1, 2, 3)) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-10)


def test_p_with_one_degree_of_freedom_by_hand() -> None:
    """Differences 1, 3: t = 2; for 1 degree of freedom p = 1 - 2 atan(t) / pi."""
    by_hand = 1 - 2 * math.atan(2) / math.pi
    assert paired_p_value(seeds(1, 3), seeds(0, 0)) == pytest.approx(by_hand, rel=1e-10)


def test_only_shared_seeds_count() -> None:
    first = {0: 9.0, 1: 2.0, 2: 4.0, 3: 6.0}
    second = {1: 1.0, 2: 2.0, 3: 3.0, 4: -50.0}
    assert paired_p_value(first, second) == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-10)


@pytest.mark.parametrize("second", [{}, {1: 0.5}, {7: 0.5, 8: 0.5}])
def test_fewer_than_two_shared_seeds_give_no_p(second: dict[int, float]) -> None:
    assert math.isnan(paired_p_value(seeds(0.1, 0.2, 0.3), second))


def test_constant_differences() -> None:
    """p = 0 would be a certainty that no three seeds give."""
    assert math.isnan(paired_p_value(seeds(2, 3, 4), seeds(1, 2, 3)))
    assert math.isnan(paired_p_value(seeds(0.4, 0.5, 0.6), seeds(0.1, 0.2, 0.3))), "equal but for rounding"
    assert paired_p_value(seeds(2, 3, 4), seeds(2, 3, 4)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=8))
def test_p_agrees_with_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = ([value / 1000 for value in values] for values in zip(*pairs, strict=True))
    differences = {a - b for a, b in pairs}
    if len(differences) == 1:
        return
    theirs = scipy_stats.ttest_rel(first, second).pvalue
    assert paired_p_value(seeds(*first), seeds(*second)) == pytest.approx(theirs, rel=1e-6, abs=1e-9)
