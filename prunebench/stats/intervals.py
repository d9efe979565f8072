"""Intervals over seeds."""

from __future__ import annotations

import functools
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
    n = len(values)
    numbers = [math.nan if value is None else float(value) for value in values]
    if n == 0 or not all(map(math.isfinite, numbers)):
        return Interval(math.nan, math.nan, n)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Interval(mean, math.nan, 1)
    quantile = t_quantile(n - 1, 1 - (1 - confidence) / 2)
    return Interval(mean, quantile * sample_deviation(numbers, mean) / math.sqrt(n), n)


@functools.lru_cache(maxsize=1024)
def t_quantile(degrees: int, share: float) -> float:
    """The value below which a share of Student's t distribution lies."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, share))


def widening(n: int, confidence: float) -> float:
    """What deviations of resampled means of n values are multiplied by: sqrt(n / (n - 1)) t(n - 1) / z.

    See `stats.bootstrap`: percentiles of so few are too near to each other.
    """
    from scipy.special import ndtri

    level = 1 - (1 - confidence) / 2
    return math.sqrt(n / (n - 1)) * (t_quantile(n - 1, level) / float(ndtri(level)))


def sample_deviation(numbers: Sequence[float], mean: float) -> float:
    """Sample standard deviation, ddof = 1."""
    squares = [(number - mean) * (number - mean) for number in numbers]
    return math.sqrt(math.fsum(squares) / (len(numbers) - 1))


def share_bounds(interval: Interval, lowest: float = 0.0, highest: float = 1.0) -> tuple[float, float]:
    """Lower and upper end of a t interval of shares, cut where no share can be; nan without a half-width.

    Cutting at the edge of what is possible loses no coverage, and the mean stays the mean that the board shows. The
    logit, the other way to stay within, is undefined at 0 and 1, where worst groups and aligned accuracies often are.
    Source: Mandelkern, "Setting confidence intervals for bounded parameters", 2002.
    """
    if not math.isfinite(interval.half_width):
        return math.nan, math.nan
    low, high = interval.mean - interval.half_width, interval.mean + interval.half_width
    return max(lowest, low), min(highest, high)
