"""Correction for how much is looked at: false discovery rate, family-wise error, and ranks with intervals.

Within one table that a reader scans, Benjamini and Hochberg's q bounds the expected share of false ones among what is
called different. Holm's p bounds the chance of a single false one; with three seeds no pair of a board could reach it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from prunebench.stats.tests import SIGNIFICANCE, paired_p_values


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p (q) of each test: those with q <= level have an expected share of false ones of at most the level.

    q of the k-th smallest of m is the least of m p_j / j over j >= k. Tests that are nan are no part of m and stay nan.
    Source: Benjamini & Hochberg, 1995.
    """
    import numpy as np

    given = np.asarray(p_values, dtype=float)
    defined = np.flatnonzero(~np.isnan(given))
    order = defined[np.argsort(given[defined], kind="stable")]
    adjusted = np.full(len(given), math.nan)
    scaled = given[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return list(adjusted.tolist())


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each test; nan ones are left out and stay nan. Source: Holm, 1979."""
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = min(1.0, max(largest, p_values[index] * (len(order) - place)))
        adjusted[index] = largest
    return adjusted


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
    competing = finite.keys() - {reference} if ranked is None else {*ranked}
    ranks = [name for name in finite if name in competing and len(finite[name]) >= fewest]
    pairs = [*itertools.combinations(ranks, 2)]
    if reference in finite:
        known = {*ranks} if reference in ranks else set()
        pairs += [(name, reference) for name in finite if name != reference and name not in known]
    alike = len({frozenset(by_seed) for by_seed in finite.values()}) == 1
    if alike:
        shared = pairs if len(next(iter(finite.values()))) >= fewest else []
    else:
        shared = [pair for pair in pairs if len(finite[pair[0]].keys() & finite[pair[1]].keys()) >= fewest]
    p_values = paired_p_values(finite, shared)
    tested = zip(shared, benjamini_hochberg(p_values), strict=True)
    q_values = {pair: q for pair, q in tested if q == q}  # nan is not itself
    totals = {name: math.fsum(by_seed.values()) for name, by_seed in finite.items()}
    decided = [pair for pair, q in q_values.items() if q <= false_discovery_rate]
    beats = frozenset(
        (one, other)
        if (totals[one] > totals[other] if alike else _total_difference(finite[one], finite[other]) > 0)
        else (other, one)
        for one, other in decided
    )
    within = {name: [0, 0] for name in ranks}
    for winner, loser in beats:
        if winner in within and loser in within:
            within[loser][0] += 1
            within[winner][1] += 1
    intervals = {name: RankInterval(1 + lost, len(ranks) - won) for name, (lost, won) in within.items()}
    return Verdicts(q_values, beats, {name: intervals.get(name) for name in values})


def _total_difference(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    return math.fsum(first[seed] - second[seed] for seed in first.keys() & second.keys())
