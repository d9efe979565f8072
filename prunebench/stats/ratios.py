"""Mean of ratios: geometric, with a bootstrap interval over runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunebench.stats.intervals import widening

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


@functools.lru_cache(maxsize=64)
def _draws(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The draws from n runs, the same for all ratios of so many: how much each run weighs, and how often it was drawn.

    Returns:
        Weights float64 `[K, n]` of the different draws (126 of five runs), and counts int64 `[K]`, `DRAWS` in all.
    """
    drawn = np.random.default_rng(SEED).integers(n, size=(DRAWS, n))
    times = np.zeros((DRAWS, n))
    np.add.at(times, (np.arange(DRAWS)[:, None], drawn), 1)
    different, counts = np.unique(times, axis=0, return_counts=True)
    return different / n, counts


@functools.lru_cache(maxsize=4096)
def _interval(ratios: tuple[float, ...], confidence: float) -> RatioInterval:
    n, logs = len(ratios), np.log(np.asarray(ratios))
    mean = float(np.add.reduce(logs)) / n
    if n == 1:
        return RatioInterval(math.exp(mean), math.nan, math.nan, 1)
    weights, counts = _draws(n)
    tail = (1 - confidence) / 2
    wider = widening(n, confidence)
    low, high = (mean + wider * (end - mean) for end in _quantiles(weights @ logs, counts, (tail, 1 - tail)))
    return RatioInterval(math.exp(mean), math.exp(low), math.exp(high), n)


def _quantiles(values: np.ndarray, counts: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Values at each share, each value as often as counted, between two in proportion (as `numpy.quantile`)."""
    places = [share * (DRAWS - 1) for share in shares]
    below = [min(int(place), DRAWS - 2) for place in places]
    order = values.argsort()
    at = counts[order].cumsum().searchsorted([k + step for k in below for step in (0, 1)], side="right")
    ends = values[order[at]].tolist()
    return [
        low + (place - k) * (high - low)
        for k, place, low, high in zip(below, places, ends[::2], ends[1::2], strict=True)
    ]


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
