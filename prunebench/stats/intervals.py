"""Intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its confidence interval; nan where undefined."""

    mean: float
    half_width: float
    n: int


UNDEFINED = Interval(math.nan, math.nan, 0)


def mean_interval(values: Sequence[float | None], confidence: float = 0.95) -> Interval:
    """Mean over seeds and the half-width of its Student t interval.

    half_width = t(1 - (1 - confidence) / 2, n - 1) * s / sqrt(n), with s the sample deviation (ddof = 1).
    With one value the half-width is nan; with an undefined value (None or nan) among them the mean is nan
    too: values are never dropped.
    """
    from scipy.special import stdtrit

    n = len(values)
    numbers = [math.nan if value is None else float(value) for value in values]
    if n == 0 or not all(map(math.isfinite, numbers)):
        return Interval(math.nan, math.nan, n)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Interval(mean, math.nan, 1)
    quantile = float(stdtrit(n - 1, 1 - (1 - confidence) / 2))
    return Interval(mean, quantile * sample_deviation(numbers, mean) / math.sqrt(n), n)


def sample_deviation(numbers: Sequence[float], mean: float) -> float:
    """Sample standard deviation, ddof = 1."""
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))
