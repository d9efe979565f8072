"""Paired tests between methods, over seeds and over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunebench.errors import MetricError
from prunebench.stats.intervals import sample_deviation

SIGNIFICANCE = 0.05
ROUNDING = 1e-12
"""A spread of differences below so small a part of their mean is rounding."""
MOST_FLIPPED = 40
"""Differences whose signs are flipped in all ways, as two halves of 2^20 sums."""


def paired_p_value(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Two-sided p of the paired t-test over the seeds that both have; nan with fewer than two.

    Differences that are all 0 give 1. Where they are equal and not 0 the seeds show no spread to weigh them by: nan,
    for p = 0 would claim a certainty that no data give.
    """
    from scipy.special import stdtr

    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    n = len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return math.nan
    mean = math.fsum(differences) / n
    deviation = sample_deviation(differences, mean)
    if deviation <= ROUNDING * abs(mean):
        return 1.0 if mean == 0 else math.nan
    statistic = mean * math.sqrt(n) / deviation
    return 2 * float(stdtr(n - 1, -abs(statistic)))


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


def sign_flip_p_value(differences: Sequence[float | None]) -> float:
    """Two-sided p of the paired permutation test: how many of the 2^n ways to flip signs give a sum as far from 0.

    Exact. Of n differences p is at least 2^(1 - n) (`least_sign_flip_p_value`): 1 of one, 0.25 of three. nan without
    differences or with an undefined one. Raises MetricError for more than 40. Source: Fisher, 1935.
    """
    import numpy as np

    numbers = np.array([math.nan if value is None else value for value in differences], dtype=np.float64)
    n = len(numbers)
    if n == 0 or not np.isfinite(numbers).all():
        return math.nan
    if n > MOST_FLIPPED:
        raise MetricError(f"differences: want at most {MOST_FLIPPED} to flip in all ways, got {n}")
    halves = []
    for half in (numbers[: n // 2], numbers[n // 2 :]):
        sums = np.zeros(1)
        for number in half:
            sums = np.concatenate([sums + number, sums - number])
        halves.append(np.sort(sums))
    # Equal sums of shares are not always equal numbers.
    reached = abs(numbers.sum()) - 1e-10 * np.abs(numbers).sum()
    if reached <= 0:
        return 1.0
    below = np.searchsorted(halves[1], reached - halves[0], side="left")
    return 2 * int((len(halves[1]) - below).sum()) / 2**n  # sums of one sign, and their mirror


def least_sign_flip_p_value(differences: int) -> float:
    """The smallest p that a sign-flip test of so many differences can give: 2^(1 - n)."""
    return 2.0 ** (1 - differences)


def mcnemar_p_value(first_only: int, second_only: int) -> float:
    """Two-sided p of McNemar's exact test, from the samples that only the first or only the second got right.

    p = min(1, 2 P(X <= min(b, c))) with X binomial of b + c trials and 1/2; 1 where the two never differ. Raises
    MetricError on negative counts. Source: McNemar, 1947, in its exact form.
    """
    from scipy.special import bdtr

    if first_only < 0 or second_only < 0:
        raise MetricError(f"first_only, second_only: want counts, got {first_only} and {second_only}")
    trials = first_only + second_only
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), trials, 0.5))) if trials else 1.0


def pooled_mcnemar_p_value(net: Sequence[int]) -> float:
    """McNemar's exact test of several pairs of models on the same samples, each sample counted as a whole.

    net: by sample, how many pairs only the first got right, minus how many only the second did. Adding up the
    discordant counts of the pairs would take a sample that is hard for every pair for as many independent ones. Here
    the signs of whole samples are flipped: p = P(|sum of +- |net|| >= |sum of net|), every sign with probability
    1/2, exactly, by convolving k times a binomial for every size k. Of one pair it is `mcnemar_p_value`.
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
