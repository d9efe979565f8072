"""Equivalence of paired differences: two one-sided tests (TOST).

A p-value above 0.05 does not show that two methods are alike; it may be that too few seeds were run. Here the burden is
turned round: the mean difference is taken to be as far off as the margins until the data say otherwise.

Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", 1987.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prunebench.errors import MetricError
from prunebench.stats.intervals import sample_deviation

MOST_SEEDS = 1000


@dataclass(frozen=True)
class Equivalence:
    """What n paired differences say of the margins: all nan where they are undefined or fewer than two.

    `low` and `high` bound the 1 - 2 significance interval: it lies within the margins exactly where `p_value` is below
    the significance. `p_below` is of the mean being no higher than the lower margin, `p_above` of its being no lower
    than the upper one.
    """

    mean: float
    low: float
    high: float
    p_below: float
    p_above: float
    n: int

    @property
    def p_value(self) -> float:
        """Of the two, the larger: both must be refused."""
        return max(self.p_below, self.p_above) if math.isfinite(self.p_below) else math.nan


def equivalence_test(
    differences: Sequence[float | None], margins: tuple[float, float], significance: float = 0.05
) -> Equivalence:
    """Whether the mean of paired differences lies between two margins.

    Args:
        differences: one a seed.
        margins: the lower and the upper; an infinite one makes the test one of no loss, or of no gain.
        significance: of each one-sided test, and so of both together.

    Raises:
        MetricError: margins that do not enclose 0, or a significance outside 0..0.5.
    """
    from scipy.special import stdtr, stdtrit

    lower, upper = margins
    if not lower < 0 < upper:
        raise MetricError(f"margins: want one below 0 and one above, got {lower:g} and {upper:g}")
    if not 0 < significance < 0.5:
        raise MetricError(f"significance: want a number between 0 and 0.5, got {significance}")
    numbers = [math.nan if value is None else float(value) for value in differences]
    n = len(numbers)
    if n < 2 or not all(map(math.isfinite, numbers)):
        return Equivalence(math.nan, math.nan, math.nan, math.nan, math.nan, n)
    mean = math.fsum(numbers) / n
    error = sample_deviation(numbers, mean) / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - significance)) * error

    def p_beyond(distance: float) -> float:
        """Of a mean that is this far within a margin."""
        if error == 0 or math.isinf(distance):
            return 0.0 if distance > 0 else 1.0
        return float(stdtr(n - 1, -distance / error))

    return Equivalence(mean, mean - half, mean + half, p_beyond(mean - lower), p_beyond(upper - mean), n)


def seeds_needed(differences: Sequence[float], margin: float, significance: float = 0.05) -> int | None:
    """Seeds from which an interval around 0 is narrower than the margin, at the deviation of these differences.

    With fewer, not even equal methods could be shown to be equivalent. None where more than 1,000 would be needed, or
    fewer than two differences are at hand.
    """
    from scipy.special import stdtrit

    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return None
    deviation = sample_deviation(differences, math.fsum(differences) / n)
    for seeds in range(2, MOST_SEEDS + 1):
        if float(stdtrit(seeds - 1, 1 - significance)) * deviation / math.sqrt(seeds) < margin:
            return seeds
    return None
