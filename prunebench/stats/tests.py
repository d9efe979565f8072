"""Paired tests between methods, over seeds and over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.stats.intervals import sample_deviation

SIGNIFICANCE = 0.05
ROUNDING = 1e-12
"""A spread of differences below so small a part of their mean is rounding."""


def paired_p_value(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Two-sided p of the paired t-test over the seeds that both have; nan with fewer than two.

    Differences that are all 0 give 1. Where they are equal and not 0 the seeds show no spread to weigh them by: nan,
    for p = 0 would claim a certainty that no data give.
    """
    return mean_p_value([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def mean_p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the t-test of a mean of 0; nan with fewer than two, or an undefined one."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean = math.fsum(differences) / n
    deviation = sample_deviation(differences, mean)
    if deviation <= ROUNDING * abs(mean):
        return 1.0 if mean == 0 else math.nan
    statistic = mean * math.sqrt(n) / deviation
    return 2 * float(stdtr(n - 1, -abs(statistic)))


def interval_p_value(mean: float, half_width: float, n: int, confidence: float = 0.95) -> float:
    """Two-sided p of a mean of 0 from its t interval over n values; nan with fewer than two, or equal ones."""
    from scipy.special import stdtr, stdtrit

    if n < 2 or not (math.isfinite(mean) and math.isfinite(half_width)):
        return math.nan
    if half_width <= ROUNDING * abs(mean):
        return 1.0 if mean == 0 else math.nan
    quantile = float(stdtrit(n - 1, 1 - (1 - confidence) / 2))
    return 2 * float(stdtr(n - 1, -abs(mean) * quantile / half_width))


def paired_p_values(
    values: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]
) -> list[float]:
    """`paired_p_value` of many pairs of names; those over the same seeds at once. All values are finite."""
    import numpy as np
    from scipy.special import stdtr

    found = [math.nan] * len(pairs)
    for seeds, places in _by_shared_seeds(values, pairs).items():
        n = len(seeds)
        if n < 2 or not places:
            continue
        rows = {name: place for place, name in enumerate(sorted({name for k in places for name in pairs[k]}))}
        table = np.array([[values[name][seed] for seed in seeds] for name in rows])
        first, second = (np.array([rows[pairs[k][side]] for k in places]) for side in (0, 1))
        differences = table[first] - table[second]
        mean = differences.mean(1)
        deviation = differences.std(1, ddof=1)
        alike = deviation <= ROUNDING * np.abs(mean)
        statistic = np.abs(mean) * math.sqrt(n) / np.where(alike, 1.0, deviation)
        p_values = np.where(alike, np.where(mean == 0, 1.0, math.nan), 2 * stdtr(n - 1, -statistic))
        for k, p_value in zip(places, p_values.tolist(), strict=True):
            found[k] = p_value
    return found


def _by_shared_seeds(
    values: Mapping[str, Mapping[int, float]], pairs: Sequence[tuple[str, str]]
) -> dict[tuple[int, ...], list[int]]:
    """Places of pairs by the seeds that both of a pair have."""
    seeds = {name: tuple(sorted(by_seed)) for name, by_seed in values.items()}
    if len(set(seeds.values())) == 1:
        return {next(iter(seeds.values())): [*range(len(pairs))]}
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, (one, other) in enumerate(pairs):
        groups.setdefault(tuple(sorted({*seeds[one]} & {*seeds[other]})), []).append(k)
    return groups


def greater_p_value(differences: Sequence[float]) -> float:
    """One-sided p of the paired t-test, of a mean of at most 0; nan with fewer than two, or an undefined one."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean = math.fsum(differences) / n
    deviation = sample_deviation(differences, mean)
    if deviation == 0:
        return 0.0 if mean > 0 else 1.0
    return float(stdtr(n - 1, -mean * math.sqrt(n) / deviation))


def least_sign_flip_p_value(differences: int) -> float:
    """The smallest p that a sign-flip test of so many differences can give: 2^(1 - n)."""
    return 2.0 ** (1 - differences)


def pooled_mcnemar_p_value(net: Sequence[int]) -> float:
    """McNemar's exact test of several pairs of models on the same samples, each sample counted as a whole.

    net: by sample, how many pairs only the first got right, minus how many only the second did. Adding up the
    discordant counts of the pairs would take a sample that is hard for every pair for as many independent ones. Here
    the signs of whole samples are flipped: p = P(|sum of +- |net|| >= |sum of net|), every sign with probability
    1/2, exactly, by convolving k times a binomial for every size k. Of one pair it is McNemar's exact test.
    Source: McNemar, 1947, in its exact form; Fisher, 1935.
    """
    import numpy as np

    values = np.asarray(net, dtype=np.int64)
    sizes = np.bincount(np.abs(values)) if len(values) else np.zeros(1, dtype=np.int64)
    chance = np.ones(1)  # of each sum of the sizes whose sign is +
    for size in range(1, len(sizes)):
        times = _coin_flips(int(sizes[size]))
        wider = np.zeros(len(chance) + size * (len(times) - 1))
        for phase in range(min(size, len(chance))):
            wider[phase::size][: len(chance[phase::size]) + len(times) - 1] = np.convolve(
                chance[phase::size], times
            )
        chance = wider
    lower = (len(chance) - 1 - abs(int(values.sum()))) // 2
    return min(1.0, 2 * math.fsum(chance[: lower + 1]))


def _coin_flips(count: int) -> Any:
    """Chance of 0 to `count` heads: float64 `[count + 1]`."""
    import numpy as np
    from scipy.special import gammaln

    heads = np.arange(count + 1)
    ways = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1)
    return np.exp(ways - count * math.log(2))
