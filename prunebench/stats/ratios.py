"""Mean of ratios: geometric, with a bootstrap interval over runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS, SEED = 2000, 0


@dataclass(frozen=True)
class RatioInterval:
    """A geometric mean of n ratios and the ends of its interval; nan where undefined."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1; False without an interval: no measurable difference."""
        return self.low > 1 or self.high < 1

    @property
    def half_width(self) -> float:
        """The distance from the mean to the farther end."""
        return max(self.mean - self.low, self.high - self.mean)


@functools.lru_cache(maxsize=4096)
def _interval(ratios: tuple[float, ...], confidence: float) -> RatioInterval:
    from scipy.special import ndtri, stdtrit

    n, logs = len(ratios), np.log(np.asarray(ratios))
    mean = float(logs.mean())
    if n == 1:
        return RatioInterval(math.exp(mean), math.nan, math.nan, 1)
    drawn = logs[np.random.default_rng(SEED).integers(n, size=(DRAWS, n))].mean(1)
    tail = (1 - confidence) / 2
    wider = math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 1 - tail)) / float(ndtri(1 - tail))
    low, high = (mean + wider * (float(end) - mean) for end in np.quantile(drawn, (tail, 1 - tail)))
    return RatioInterval(math.exp(mean), math.exp(low), math.exp(high), n)


def ratio_interval(ratios: Sequence[float], confidence: float = 0.95) -> RatioInterval:
    """Geometric mean of ratios over runs, with a percentile bootstrap of their logarithms.

    The interval is widened for few runs by sqrt(n / (n - 1)) t(n - 1) / z, as `stats.bootstrap` does: three resampled
    runs know too little of the fourth. With one run there is no interval; an undefined or non-positive ratio makes all
    nan: values are never dropped. Swapping numerators and denominators gives the reciprocals, but for the draws.
    """
    values = tuple(float(value) for value in ratios)
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        return RatioInterval(math.nan, math.nan, math.nan, len(values))
    return _interval(values, confidence)
