"""Correction for how much is looked at: false discovery rate, family-wise error, and ranks with intervals.

Within one table that a reader scans, Benjamini and Hochberg's q bounds the expected share of false ones among what is
called different. Holm's p bounds the chance of a single false one; with three seeds no pair of a board could reach it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunebench.stats.tests import SIGNIFICANCE, paired_p_value


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p (q) of each test: those with q <= level have an expected share of false ones of at most the level.

    q of the k-th smallest of m is the least of m p_j / j over j >= k. Tests that are nan are no part of m and stay nan.
    Source: Benjamini & Hochberg, 1995.
    """
    order = _defined_order(p_values)
    adjusted, least = [math.nan] * len(p_values), 1.0
    for place in range(len(order), 0, -1):
        index = order[place - 1]
        least = min(least, p_values[index] * len(order) / place)
        adjusted[index] = least
    return adjusted


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each test; nan ones are left out and stay nan. Source: Holm, 1979."""
    order = _defined_order(p_values)
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = min(1.0, max(largest, p_values[index] * (len(order) - place)))
        adjusted[index] = largest
    return adjusted


def _defined_order(p_values: Sequence[float]) -> list[int]:
    """Where the defined ones stand, smallest first."""
    return sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])


@dataclass(frozen=True)
class RankInterval:
    """The places, 1 for the best, that agree with the decided pairs. Reads as `1` or `2-4`.

    `best` is 1 + how many methods beat it, `worst` the number of methods minus how many it beats.
    """

    best: int
    worst: int

    def __str__(self) -> str:
        return str(self.best) if self.best == self.worst else f"{self.best}-{self.worst}"


def rank_intervals(
    values: Mapping[str, Mapping[int, float]], false_discovery_rate: float = SIGNIFICANCE
) -> dict[str, RankInterval | None]:
    """Rank intervals of methods by paired t-tests of all pairs, with the false discovery rate controlled over them.

    A method beats another where its mean over the shared seeds is higher and q is at most the rate. The family is all
    pairs that are given: call it for one track, sparsity and metric. Intervals may overlap without a tie being meant.

    Args:
        values: by method, by seed; higher is better. Undefined ones are left out.
        false_discovery_rate: over the pairs.

    Returns:
        By method, in the given order; None with fewer than two values, or fewer than two seeds in common with some
        other ranked method.
    """
    finite = {
        name: {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
        for name, by_seed in values.items()
    }
    several = [name for name, by_seed in finite.items() if len(by_seed) > 1]
    apart = {
        name
        for pair in itertools.combinations(several, 2)
        if len(finite[pair[0]].keys() & finite[pair[1]].keys()) < 2
        for name in pair
    }
    ranked = [name for name in several if name not in apart]
    beats = decided_pairs({name: finite[name] for name in ranked}, false_discovery_rate)
    return {
        name: RankInterval(
            1 + sum(loser == name for _, loser in beats),
            len(ranked) - sum(winner == name for winner, _ in beats),
        )
        if name in ranked
        else None
        for name in values
    }


def decided_pairs(
    values: Mapping[str, Mapping[int, float]], false_discovery_rate: float = SIGNIFICANCE
) -> set[tuple[str, str]]:
    """The pairs (better, worse) that paired t-tests tell apart at this false discovery rate over all pairs."""
    pairs = list(itertools.combinations(values, 2))
    q_values = benjamini_hochberg([paired_p_value(values[one], values[other]) for one, other in pairs])
    return {
        (one, other) if _total_difference(values[one], values[other]) > 0 else (other, one)
        for (one, other), q in zip(pairs, q_values)
        if q <= false_discovery_rate
    }


def _total_difference(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    return math.fsum(first[seed] - second[seed] for seed in first.keys() & second.keys())
