"""Answers of the leaderboard: the best method of a track at a sparsity, its bias, its speed, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunebench.leaderboard.aggregate import RANKED
from prunebench.leaderboard.columns import interval_text
from prunebench.leaderboard.values import MeasuredSpeed, MethodRow, Track
from prunebench.metrics.registry import Metric, metric_named
from prunebench.report import format as fmt
from prunebench.results.ranking import DEFERRAL_NOTE
from prunebench.results.tracks import is_ranked

SPARSITY = 0.9
"""The sparsity that is shown first where a track has it."""
LONGEST = 100
"""Letters of a method's name within a sentence."""


@dataclass(frozen=True)
class BestMethod:
    """The best row of a track at a sparsity by the metric that ranks, beside the unpruned reference."""

    sparsity: float
    lead: Metric
    best: MethodRow
    reference: MethodRow | None
    faster: tuple[str, ...]
    """Methods that are measurably faster than dense, on a quiet machine."""

    @property
    def rank(self) -> str:
        """The places that the tests allow; empty without a rank."""
        found = self.best.ranks.get(self.lead.name)
        return "" if found is None else str(found)

    @property
    def words(self) -> str:
        """One sentence, with its numbers."""
        rank = f"rank {self.rank}" if self.rank else f"not ranked: {self.best.unranked}"
        name = fmt.cut(self.best.method, LONGEST)
        text = f"Best at {self.sparsity:g}: {name} ({rank}), {self.accuracy} % {self.lead.in_words}"
        if self.reference is not None:
            text += f" where {self.reference.method} has {self.before}"
        text += f"; bias gap {fmt.percent(self.best.metric('bias_gap').mean)} points"
        if self.best.cost is not None and math.isfinite(self.best.cost.training):
            text += f"; {fmt.times(self.best.cost.training)} its training"
        return f"{text}; {speed_words(first_speed(self.best))}."

    @property
    def accuracy(self) -> str:
        """The best row's value with its interval, as the tables write it."""
        return interval_text(self.best.metric(self.lead.name), self.lead)

    @property
    def before(self) -> str:
        """The reference's value."""
        found = None if self.reference is None else self.reference.metric(self.lead.name).mean
        return fmt.number(found, self.lead.decimals, self.lead.scale)

    @property
    def cells(self) -> list[str]:
        """The same in a line of a table: sparsity, method, rank, accuracy, the reference's, gap, speed-up, training."""
        speed = first_speed(self.best)
        return [
            f"{self.sparsity:g}",
            fmt.cut(self.best.method, LONGEST),
            self.rank or "not ranked",
            self.accuracy,
            self.before if self.reference is None else f"{self.before} ({self.reference.method})",
            fmt.percent(self.best.metric("bias_gap").mean),
            "not measured" if speed is None else f"{written(speed)} {speed.remark}".rstrip(),
            fmt.times(self.best.cost.training if self.best.cost is not None else None),
        ]


def lead_of(track: Track) -> Metric:
    """The metric that ranks a track: the first of those that rank which any row has."""
    found = (name for name in RANKED if any(math.isfinite(row.metric(name).mean) for row in track.rows))
    return metric_named(next(found, RANKED[0]))


def answer_of(track: Track, sparsity: float) -> BestMethod | None:
    """The answer at a sparsity; None where no method has a mean.

    The best of those that are ranked; where none is, for want of seeds, of those that could be.
    """
    lead = lead_of(track)
    rows = [row for row in track.pruned if row.sparsity == sparsity and row.has_means]
    known = [row for row in rows if math.isfinite(row.metric(lead.name).mean)]
    known.sort(
        key=lambda row: (row.ranks.get(lead.name) is not None, row.metric(lead.name).mean, row.method),
        reverse=True,
    )
    best = next(filter(may_rank, known), None)
    if best is None:
        return None
    faster = (row.method for row in rows if is_faster(first_speed(row)))
    return BestMethod(sparsity, lead, best, reference_of(track), tuple(faster))


def may_rank(row: MethodRow) -> bool:
    """Whether a row could be ranked if it had enough seeds."""
    deferred = any(DEFERRAL_NOTE in run.notes for run in row.runs)
    return not row.collapsed and not deferred and all(map(is_ranked, row.runs))


def answers_of(track: Track) -> list[BestMethod]:
    """The answers at every sparsity that has one."""
    found = (answer_of(track, sparsity) for sparsity in track.sparsities)
    return [answer for answer in found if answer is not None]


def shown_sparsity(track: Track) -> float | None:
    """The sparsity to show first: 0.9, or the middle one."""
    found = track.sparsities
    return SPARSITY if SPARSITY in found else found[len(found) // 2] if found else None


def reference_of(track: Track) -> MethodRow | None:
    """The unpruned row beside which others are shown: the track's reference, else the dense model."""
    rows = {row.method: row for row in track.dense if row.has_means}
    return rows.get(track.reference or "dense", rows.get("dense"))


def first_speed(row: MethodRow) -> MeasuredSpeed | None:
    """The speed in the first setup that a row was timed in."""
    return row.cost.speeds[0] if row.cost is not None and row.cost.speeds else None


def is_faster(speed: MeasuredSpeed | None) -> bool:
    """Whether a speed was measured, undisturbed, to be above that of the dense network."""
    return speed is not None and not speed.disturbed and speed.measurable and speed.ratio.mean > 1


def written(speed: MeasuredSpeed) -> str:
    """A speed-up with its half-width."""
    return fmt.with_half_width(speed.speed_up, 2, 1)


def speed_words(speed: MeasuredSpeed | None) -> str:
    """A measured speed in words."""
    if speed is None:
        return "speed not measured"
    if speed.disturbed:
        return "speed measured on a busy machine, which says little"
    if not speed.measurable:
        return f"no measurable difference in speed ({fmt.times(written(speed))})"
    return f"measured {fmt.times(written(speed))} as fast as dense"
