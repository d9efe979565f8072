"""Values of the leaderboard: rows of methods in tracks that may be compared, with what they cost and rest on."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunebench.report.format import plural, sparsity
from prunebench.results.record import RunRecord
from prunebench.stats.intervals import UNDEFINED, Interval
from prunebench.stats.multiplicity import RankInterval
from prunebench.stats.ratios import RatioInterval


@dataclass(frozen=True, order=True)
class TimingSetup:
    """Where and how latencies were taken. Rows that differ in any of it are never put into one number."""

    device: str
    processor: str
    threads: int
    batch: int
    path: str

    @property
    def name(self) -> str:
        """The processor, with its threads where they matter."""
        if self.device == "cuda" or not self.threads:
            return self.processor
        return f"{self.processor}, {plural(self.threads, 'thread')}"

    @property
    def label(self) -> str:
        """The processor, the batch and the kind of inference."""
        return f"{self.name}, batch of {self.batch}, {self.path}"


@dataclass(frozen=True)
class MeasuredSpeed:
    """Latency in one setup: medians over runs of the median (ms), and the geometric mean of their dense / pruned.

    `ratio` has the ends of the mean's interval, `noise` the same of the dense network against itself (None where no run
    timed it twice); `disturbed` counts the runs that a busy machine disturbed: such a speed is in no headline.
    """

    machine: TimingSetup
    runs: int
    dense_ms: float
    pruned_ms: float
    ratio: RatioInterval
    noise: RatioInterval | None = None
    disturbed: int = 0

    @property
    def speed_up(self) -> Interval:
        """The mean and the distance to the farther end of its interval."""
        return Interval(self.ratio.mean, self.ratio.half_width, self.ratio.n)

    @property
    def measurable(self) -> bool:
        """Whether the pruned network is faster or slower than the dense one: the interval leaves out 1."""
        return self.ratio.differs

    @property
    def remark(self) -> str:
        """What a reader must know of it: `busy` if a run was disturbed, else `n.s.` if nothing differs measurably."""
        return "busy" if self.disturbed else "" if self.measurable or self.ratio.n < 2 else "n.s."


@dataclass(frozen=True)
class Difference:
    """The row's mean minus that of another row, paired by seed, with the half-width of its 95 % t-interval.

    `q_value` is corrected over the tests of the table; nan where the pair could not be tested.
    """

    against: str
    interval: Interval
    q_value: float
    decided: bool


@dataclass(frozen=True)
class MaskValue:
    """What a method's mask adds to its bias-conflicting accuracy: over its shuffled masks, and over no pruning."""

    shuffled: Difference | None
    unpruned: Difference | None

    @property
    def beats_shuffled(self) -> bool | None:
        """Whether the data show that the mask is better than a shuffled one; None without a test."""
        found = self.shuffled
        if found is None or math.isnan(found.q_value):
            return None
        return found.decided and found.interval.mean > 0


@dataclass(frozen=True)
class RowCost:
    """Means over seeds; `training` is a multiple of the reference's training steps, nan without a reference."""

    parameters: float
    nonzero_parameters: float
    macs: float
    nonzero_macs: float
    training: float
    speeds: tuple[MeasuredSpeed, ...]

    @property
    def theoretical_speed_up(self) -> float:
        """MACs dense / non-zero; nan where none is left."""
        return self.macs / self.nonzero_macs if self.nonzero_macs else math.nan


@dataclass(frozen=True)
class MethodRow:
    """A method at a sparsity (None: the method chose it).

    Means are over the planned seeds that are at hand, and there are none where a run failed: a failure may come of the
    very thing that is measured, a run that was not yet made does not.
    """

    method: str
    supervision: str
    sparsity: float | None
    dense: bool
    seeds: tuple[int, ...]
    planned: tuple[int, ...]
    achieved: Interval = UNDEFINED
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    in_distribution: Interval = UNDEFINED
    """Average accuracy on the validation split, which is biased like that of training."""
    ranks: Mapping[str, RankInterval | None] = field(default_factory=dict)
    changes: Mapping[str, Difference] = field(default_factory=dict)
    """By metric, from the reference at the same seeds; empty without a reference."""
    mask: MaskValue | None = None
    unranked: str = ""
    """Why the row has no rank, in words."""
    collapsed: str = ""
    """Set where most of its networks are near chance even on data like those of training."""
    folded: frozenset[str] = frozenset()
    """Metrics that at this sparsity say in no row what another column does not."""
    cost: RowCost | None = None
    mining_precision: Interval | None = None
    mining_recall: Interval | None = None
    groups: tuple[tuple[float | None, ...], ...] = ()
    mixed: tuple[str, ...] = ()
    """What its runs differ in besides the seed: versions of torch, processors, or code that was not committed."""
    verified: str = ""
    """The furthest stage of verification that its submission passed; empty for the maintainers' own runs."""
    runs: tuple[RunRecord, ...] = field(default=(), repr=False, compare=False)
    """All records of it, finished or not, by seed."""

    @property
    def label(self) -> str:
        """The method, marked where its means join runs that were made differently (†) or its networks collapsed (‡)."""
        marks = "†" * bool(self.mixed) + "‡" * bool(self.collapsed)
        return f"{self.method} {marks}".rstrip()

    @property
    def complete(self) -> bool:
        """Whether every planned seed finished."""
        return self.seeds == self.planned

    @property
    def has_means(self) -> bool:
        """Whether any planned seed finished and none failed."""
        return bool(self.metrics)

    @property
    def tag(self) -> str:
        """`dense`, `0.9` or `native`."""
        return sparsity(self.sparsity, dense=self.dense)

    def metric(self, name: str) -> Interval:
        """Mean and interval of a metric; undefined where the row has no means."""
        return self.metrics.get(name, UNDEFINED)


@dataclass(frozen=True)
class Track:
    """Rows that may be compared: one task version, data, model and recipe."""

    slug: str
    title: str
    differs: str | None
    task: str
    task_version: int
    data_fingerprint: str
    model: str
    recipe: tuple[tuple[str, Any], ...]
    seeds: tuple[int, ...]
    machines: tuple[TimingSetup, ...]
    rows: tuple[MethodRow, ...]
    aligned: tuple[tuple[bool, ...], ...]
    """Whether a group is bias-aligned, by label and bias."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    reference: str | None = None
    """The method that changes and training costs refer to; None where it has no finished run here."""
    remarks: tuple[str, ...] = ()
    """What stands under the table of accuracies: folded columns, collapsed networks, masks that add nothing."""

    @functools.cached_property
    def dense(self) -> tuple[MethodRow, ...]:
        """The rows of unpruned networks."""
        return tuple(row for row in self.rows if row.dense)

    @functools.cached_property
    def pruned(self) -> tuple[MethodRow, ...]:
        """The rows at a sparsity that was asked for."""
        return tuple(row for row in self.rows if not row.dense and row.sparsity is not None)

    @functools.cached_property
    def native(self) -> tuple[MethodRow, ...]:
        """The rows at a sparsity that the method chose."""
        return tuple(row for row in self.rows if not row.dense and row.sparsity is None)

    @property
    def finished(self) -> bool:
        """Whether any row has means."""
        return any(row.has_means for row in self.rows)

    @property
    def verified(self) -> bool:
        """Whether any row came by a submission that was verified."""
        return any(row.verified for row in self.rows)

    @functools.cached_property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities that were asked for."""
        return tuple(sorted({row.sparsity for row in self.pruned if row.sparsity is not None}))

    @functools.cached_property
    def metrics(self) -> frozenset[str]:
        """The metrics that any row has, defined or not."""
        return frozenset(name for row in self.rows for name in row.metrics)


@dataclass(frozen=True)
class Leaderboard:
    """All tracks and what they rest on. `environments` and `commits` come with their number of runs."""

    tracks: tuple[Track, ...]
    runs: int
    ok: int
    duplicates: int
    seeds: tuple[int, ...]
    methods: tuple[tuple[str, str, str], ...]
    """Name, supervision, source."""
    environments: tuple[tuple[str, int], ...]
    commits: tuple[tuple[str, int], ...]
    history: tuple[str, ...] = ()
    """Versions that are no longer listed, a line each."""
    tuning: int = 0
    """Runs left out because their seeds are for choosing budgets."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The pruned methods of all tracks, each once, by name."""
        return tuple(sorted({row.method for track in self.tracks for row in track.rows if not row.dense}))
