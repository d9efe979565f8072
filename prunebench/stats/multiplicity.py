"""Correction for how much is looked at: false discovery rate, family-wise error, and ranks with intervals.

Within one table that a reader scans, Benjamini and Hochberg's q bounds the expected share of false ones among what is
called different. Holm's p bounds the chance of a single false one; with three seeds no pair of a board could reach it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
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


@dataclass(frozen=True)
class Verdicts:
    """What paired tests of one family say: q by pair, who beats whom, and the rank interval of each name.

    A pair that could not be tested (too few shared seeds, an undefined value, no spread) is in no family and has no q.
    """

    q_values: Mapping[tuple[str, str], float]
    beats: frozenset[tuple[str, str]]
    """Pairs (better, worse)."""
    ranks: Mapping[str, RankInterval | None]

    def q(self, one: str, other: str) -> float:
        """Benjamini and Hochberg's q of a pair, in either order; nan where it was not tested."""
        return self.q_values.get((one, other), self.q_values.get((other, one), math.nan))

    def decided(self, one: str, other: str) -> bool:
        """Whether the data tell two apart, in either direction."""
        return (one, other) in self.beats or (other, one) in self.beats


def paired_verdicts(
    values: Mapping[str, Mapping[int, float]],
    *,
    ranked: Collection[str] | None = None,
    reference: str | None = None,
    fewest: int = 2,
    false_discovery_rate: float = SIGNIFICANCE,
) -> Verdicts:
    """Paired t-tests of all pairs of ranked names, and of every name with the reference, as one family.

    One beats another where its mean over the shared seeds is higher and q is at most the rate. Call it for one track,
    sparsity and metric: the board and `prunebench compare` both do. Rank intervals may overlap without a tie being
    meant.

    Args:
        values: by name, by seed; higher is better. Undefined ones are left out.
        ranked: who gets a rank; all but the reference where None.
        reference: whom all are compared with; it has a rank only if it is among the ranked.
        fewest: shared seeds that a pair needs to be tested.
        false_discovery_rate: over the family.

    Returns:
        q by pair; ranks in the given order, None for who is not ranked or has too few values.
    """
    finite = {
        name: {seed: value for seed, value in by_seed.items() if math.isfinite(value)}
        for name, by_seed in values.items()
    }
    competing = [name for name in finite if name != reference] if ranked is None else [*ranked]
    ranks = [name for name in finite if name in competing and len(finite[name]) >= fewest]
    pairs = [*itertools.combinations(ranks, 2)]
    if reference in finite:
        known = set(map(frozenset, pairs))
        others = (name for name in finite if name != reference)
        pairs += [(name, reference) for name in others if frozenset((name, reference)) not in known]
    shared = [pair for pair in pairs if len(finite[pair[0]].keys() & finite[pair[1]].keys()) >= fewest]
    p_values = [paired_p_value(finite[one], finite[other]) for one, other in shared]
    q_values = {
        pair: q for pair, q in zip(shared, benjamini_hochberg(p_values), strict=True) if not math.isnan(q)
    }
    beats = {
        (one, other) if _total_difference(finite[one], finite[other]) > 0 else (other, one)
        for (one, other), q in q_values.items()
        if q <= false_discovery_rate
    }
    found = {name: _rank(name, ranks, beats) if name in ranks else None for name in values}
    return Verdicts(q_values, frozenset(beats), found)


def _rank(name: str, ranked: Sequence[str], beats: Collection[tuple[str, str]]) -> RankInterval:
    beaten = sum(loser == name and winner in ranked for winner, loser in beats)
    beating = sum(winner == name and loser in ranked for winner, loser in beats)
    return RankInterval(1 + beaten, len(ranked) - beating)


def _total_difference(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    return math.fsum(first[seed] - second[seed] for seed in first.keys() & second.keys())
