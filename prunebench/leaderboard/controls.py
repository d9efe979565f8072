"""Controls of masks: a method beside its own masks shuffled within layers, and beside its unpruned form.

A learned mask is worth what it adds to as many weights at random places of the same layers; a method that also fights
the bias is worth, as pruning, what it adds to itself without pruning. Differences are of bias-conflicting accuracy,
paired by seed; each kind is corrected for its number within a sparsity (Benjamini & Hochberg).
"""

from __future__ import annotations

from prunebench.leaderboard.values import Difference, MaskValue
from prunebench.results.ranking import FEWEST_SEEDS, TrackRanking, paired_differences
from prunebench.results.tracks import REFERENCE, Place, is_unpruned
from prunebench.stats.intervals import mean_interval
from prunebench.stats.multiplicity import benjamini_hochberg
from prunebench.stats.tests import SIGNIFICANCE, paired_p_value

SHUFFLED, UNPRUNED = "shuffled:", "-dense"


def mask_values(ranking: TrackRanking, metric: str) -> dict[Place, MaskValue]:
    """By row that has its shuffled control or an unpruned form of its own: what its mask adds by a metric."""
    shuffled = {
        place: _place(ranking, place[0], f"{SHUFFLED}{_method(ranking, place)}") for place in ranking.rows
    }
    unpruned = {place: _unpruned(ranking, place) for place in ranking.rows}
    against_shuffled, against_unpruned = (
        _differences(
            ranking, metric, {place: control for place, control in pairs.items() if control is not None}
        )
        for pairs in (shuffled, unpruned)
    )
    own_form = {
        place
        for place, control in unpruned.items()
        if place in against_unpruned and control is not None and _method(ranking, control) != REFERENCE
    }
    return {
        place: MaskValue(against_shuffled.get(place), against_unpruned.get(place))
        for place in ranking.rows
        if place in against_shuffled or place in own_form
    }


def _method(ranking: TrackRanking, place: Place) -> str:
    method: str = ranking.rows[place][0].spec["method"]
    return method


def _place(ranking: TrackRanking, asked: float | None, method: str) -> Place | None:
    """The row of a method at a sparsity; None where there is none, or where settings leave a choice."""
    found = ranking.named.get((asked, method), ())
    return found[0] if len(found) == 1 else None


def _unpruned(ranking: TrackRanking, place: Place) -> Place | None:
    """The unpruned form of a row's method: `NAME-dense` by its name or what it begins with, else the reference."""
    name = _method(ranking, place).removeprefix(SHUFFLED)
    if is_unpruned(ranking.rows[place][0]) or name != _method(ranking, place):
        return None
    for base in (name, name.split("-")[0]):
        found = _place(ranking, 0.0, f"{base}{UNPRUNED}")
        if found is not None:
            return found
    return ranking.reference


def _differences(ranking: TrackRanking, metric: str, pairs: dict[Place, Place]) -> dict[Place, Difference]:
    """Each row minus its control, paired by seed, with q within the sparsity."""
    values = {place: ranking.values(place, metric) for place in {*pairs, *pairs.values()}}
    sound = {
        place: control
        for place, control in pairs.items()
        if not (ranking.failed[place] or ranking.failed[control])
        and ranking.finished[place]
        and ranking.finished[control]
    }
    found = {}
    for asked in {place[0] for place in sound}:
        cell = [place for place in sorted(sound, key=lambda place: place[1]) if place[0] == asked]
        shared = [len(values[place].keys() & values[sound[place]].keys()) for place in cell]
        p_values = [
            paired_p_value(values[place], values[sound[place]]) if count >= FEWEST_SEEDS else float("nan")
            for place, count in zip(cell, shared, strict=True)
        ]
        for place, q in zip(cell, benjamini_hochberg(p_values), strict=True):
            interval = mean_interval(paired_differences(values[place], values[sound[place]]))
            found[place] = Difference(sound[place][1], interval, q, q <= SIGNIFICANCE)
    return found
