"""Intervals over seeds, paired tests between methods, and ranks that admit ties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width of its confidence interval; nan where undefined."""

    mean: float
    half_width: float
    n: int


@dataclass(frozen=True)
class Rank:
    """A place, 1 for the best; `tied` if another method holds it too. Reads as `1` or `1=`."""

    place: int
    tied: bool

    def __str__(self) -> str:
        return f"{self.place}=" if self.tied else str(self.place)


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
    return Interval(mean, quantile * _deviation(numbers, mean) / math.sqrt(n), n)


def paired_p_value(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Two-sided p of the paired t-test over the seeds that both have; nan with fewer than two.

    Where all differences are equal the statistic is infinite: p is 0, or 1 if the differences are 0.
    """
    from scipy.special import stdtr

    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean = math.fsum(differences) / n
    deviation = _deviation(differences, mean)
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    statistic = mean * math.sqrt(n) / deviation
    return 2 * float(stdtr(n - 1, -abs(statistic)))


def rank_by_paired_tests(
    values: Mapping[str, Mapping[int, float]], significance: float = SIGNIFICANCE
) -> dict[str, Rank | None]:
    """Rank methods by value, higher is better: 1 + the number of methods that beat it.

    values: by method, by seed. One method beats another if its mean over the shared seeds is higher and the
    two-sided paired t-test gives p < significance (uncorrected for the number of comparisons). Methods with
    fewer than two defined values, or that share fewer than two seeds with another ranked method, get None.
    """
    finite = {name: _defined(by_seed) for name, by_seed in values.items()}
    beaten: dict[str, int | None] = {name: 0 if len(runs) > 1 else None for name, runs in finite.items()}
    competing = [name for name, count in beaten.items() if count is not None]
    for name in competing:
        for rival in competing:
            if rival == name:
                continue
            p = paired_p_value(finite[name], finite[rival])
            count = beaten[name]
            if math.isnan(p):
                beaten[name] = None
            elif count is not None and p < significance and _better(finite[rival], finite[name]):
                beaten[name] = count + 1
    counts = list(beaten.values())
    return {
        name: None if count is None else Rank(1 + count, counts.count(count) > 1)
        for name, count in beaten.items()
    }


def _better(first: Mapping[int, float], second: Mapping[int, float]) -> bool:
    shared = first.keys() & second.keys()
    return math.fsum(first[seed] for seed in shared) > math.fsum(second[seed] for seed in shared)


def _defined(by_seed: Mapping[int, float]) -> dict[int, float]:
    return {seed: value for seed, value in by_seed.items() if math.isfinite(value)}


def _deviation(numbers: Sequence[float], mean: float) -> float:
    """Sample standard deviation, ddof = 1."""
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))
