"""Ranking: which rows of a track have a rank, and the one test by which board and `compare` tell rows apart.

Within a track and a sparsity, two-sided paired t-tests over the shared seeds: of all pairs of ranked rows, and of every
row with the reference. Benjamini and Hochberg's correction at 5 % over all of them, for each metric by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunebench.report.format import listed, plural
from prunebench.results.record import RunRecord
from prunebench.results.tracks import (
    REFERENCE,
    Place,
    Rows,
    SeedPlan,
    finished_runs,
    is_ranked,
    is_unpruned,
    planned_seeds,
    rows_of_track,
)
from prunebench.stats.multiplicity import Verdicts, paired_verdicts

FEWEST_SEEDS = 5
"""A rank, and a verdict on a difference, needs at least so many seeds."""
ABOVE_CHANCE = 0.1
"""A network has collapsed where its accuracy is less than this share of the way from chance to 1."""
DEFERRAL_NOTE = "deferral_threshold"
"""The note of a run whose answers are in part the dense network's."""
DEFERRED = "needs the dense network to answer"


def has_collapsed(run: RunRecord) -> bool:
    """Whether a finished run's network does hardly better than chance on data like those that it was trained on.

    Its accuracy on the biased validation split, the mean over classes where it is known, is below 1/C + 0.1 (1 - 1/C)
    for C classes: 19 % of ten, 55 % of two. Bias-conflicting accuracy alone could not tell collapse from bias.
    """
    found = run.validation.get("class_recall")
    found = run.validation.get("plain") if found is None else found
    if found is None or found >= 0.5 + ABOVE_CHANCE * 0.5:  # the bound of two classes, the highest
        return False
    classes = len({group.label for group in run.groups if group.count})
    return classes > 1 and found < 1 / classes + ABOVE_CHANCE * (1 - 1 / classes)


def collapse_reason(runs: Sequence[RunRecord]) -> str:
    """In words, where at least half of a row's finished runs have collapsed; empty otherwise."""
    done = [run for run in runs if run.status == "ok"]
    fallen = sum(map(has_collapsed, done))
    if not fallen or 2 * fallen < len(done):
        return ""
    return f"collapsed: {fallen} of {plural(len(done), 'network')} near chance on the validation split"


def missing_seeds(runs: Sequence[RunRecord], planned: Sequence[int]) -> list[int]:
    """The planned seeds that a row has no record of."""
    return sorted(set(planned) - {run.spec["seed"] for run in runs})


def failed_seeds(runs: Sequence[RunRecord], planned: Sequence[int]) -> list[int]:
    """The planned seeds whose run did not finish."""
    return [run.spec["seed"] for run in runs if run.status != "ok" and run.spec["seed"] in planned]


def unranked_reason(runs: Sequence[RunRecord], planned: Sequence[int], *, of_rows: bool = True) -> str:
    """Why a row has no rank, in words; empty where it has one.

    of_rows: whether it counts what kind of row it is; else only what keeps it from being tested against the reference.
    """
    return (_kind_reason(runs) if of_rows else "") or _data_reason(runs, planned)


def _kind_reason(runs: Sequence[RunRecord]) -> str:
    """Why rows of this kind have no rank."""
    done = finished_runs(runs)
    if any(DEFERRAL_NOTE in run.notes for run in done.values()):
        return DEFERRED
    if is_unpruned(runs[0]):
        return "nothing is pruned"
    if not is_ranked(runs[0]):
        return "a reference" if runs[0].method.get("cite", "").startswith("reference") else "not to be ranked"
    if runs[0].spec["sparsity"] is None:
        return "chooses its sparsity itself"
    return ""


def _data_reason(runs: Sequence[RunRecord], planned: Sequence[int]) -> str:
    """What a row lacks to be tested."""
    done, failed, missing = finished_runs(runs), failed_seeds(runs, planned), missing_seeds(runs, planned)
    if failed:
        return f"{listed('seed', failed)} failed"
    if len(done) < FEWEST_SEEDS:
        absent = f", {listed('seed', missing)} missing" if missing else ""
        return f"{plural(len(done), 'seed')} of at least {FEWEST_SEEDS}{absent}"
    return collapse_reason(runs)


@dataclass(frozen=True)
class TrackRanking:
    """The rows of one track at its planned seeds, and what the tests say of them."""

    rows: Rows
    planned: tuple[int, ...]

    @functools.cached_property
    def reference(self) -> Place | None:
        """The row of the reference; None where the track has no run of it, a failed one, or several versions of it."""
        found = [
            place
            for place, runs in self.rows.items()
            if runs[0].spec["method"] == REFERENCE and place[0] == 0
        ]
        done = [place for place in found if not self.failed[place]]
        return done[0] if len(done) == 1 else None

    def compares(self, first: Place, second: Place) -> bool:
        """Whether the board tests these two rows against each other, if their data allow it."""
        if self.reference in (first, second):
            return True
        return first[0] == second[0] and not any(_kind_reason(self.rows[place]) for place in (first, second))

    @functools.cached_property
    def finished(self) -> Mapping[Place, Mapping[int, RunRecord]]:
        """By row, its finished runs by seed."""
        return {place: finished_runs(runs) for place, runs in self.rows.items()}

    @functools.cached_property
    def failed(self) -> Mapping[Place, bool]:
        """By row, whether the run of a planned seed did not finish."""
        return {place: bool(failed_seeds(runs, self.planned)) for place, runs in self.rows.items()}

    @functools.cached_property
    def by_sparsity(self) -> Mapping[float | None, Sequence[str]]:
        """The labels of the rows of each sparsity."""
        found: dict[float | None, list[str]] = {}
        for asked, label in self.rows:
            found.setdefault(asked, []).append(label)
        return found

    @functools.cached_property
    def collapsed(self) -> Mapping[Place, str]:
        """By row, why it counts as collapsed; empty where it does not."""
        return {place: collapse_reason(runs) for place, runs in self.rows.items()}

    @functools.cached_property
    def unranked(self) -> Mapping[Place, str]:
        """By row, why it has no rank; empty where it has one."""
        return {place: unranked_reason(runs, self.planned) for place, runs in self.rows.items()}

    @functools.cached_property
    def named(self) -> Mapping[tuple[float | None, str], Sequence[Place]]:
        """The rows of a sparsity and a method's own name: several where settings differ."""
        found: dict[tuple[float | None, str], list[Place]] = {}
        for place, runs in self.rows.items():
            found.setdefault((place[0], runs[0].spec["method"]), []).append(place)
        return found

    def values(self, place: Place, metric: str) -> Mapping[int, float]:
        """A metric of the finished runs of a row, by seed; nan where it is undefined."""
        found = self._known.get((place, metric))
        if found is None:
            given = {seed: run.metrics.get(metric) for seed, run in self.finished[place].items()}
            found = {seed: math.nan if value is None else value for seed, value in given.items()}
            self._known[place, metric] = found
        return found

    @functools.cached_property
    def _known(self) -> dict[tuple[Place, str], Mapping[int, float]]:
        return {}

    def verdicts(self, asked: float | None, metric: str) -> Verdicts:
        """The tests of one sparsity and metric: ranked rows with each other, and all sound ones with the reference.

        Rows with a failed run or of collapsed networks are in no test. Names are the rows' labels.
        """
        sound = [
            label
            for label in self.by_sparsity.get(asked, ())
            if not self.failed[asked, label] and not self.collapsed[asked, label]
        ]
        values = {label: self.values((asked, label), metric) for label in sound}
        reference = self.reference
        if reference is not None:
            values[reference[1]] = self.values(reference, metric)
        return paired_verdicts(
            values,
            ranked=[label for label in sound if not self.unranked[asked, label]],
            reference=None if reference is None else reference[1],
            fewest=FEWEST_SEEDS,
        )


def rank_track(runs: Sequence[RunRecord], plans: Sequence[SeedPlan] = ()) -> TrackRanking:
    """The ranking of one track's records (`tracks.split_tracks`), with its planned seeds alone."""
    planned = planned_seeds(runs, plans)
    return TrackRanking(rows_of_track([run for run in runs if run.spec["seed"] in planned]), planned)


def paired_differences(values: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Differences, first minus second, over the shared seeds, in order."""
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
