"""Runs of one cell, over seeds, become a row: means with intervals, costs, ranks."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunebench.results.frame import METRICS
from prunebench.results.record import PLAIN_PATH, CostReport, RunRecord
from prunebench.stats.intervals import UNDEFINED, Interval, mean_interval
from prunebench.stats.tests import Rank, rank_by_paired_tests

RANKED = ("unbiased", "conflicting")


@dataclass(frozen=True, order=True)
class Machine:
    """Where and how latencies were taken. Rows that differ in any of it are never put into one number."""

    device: str
    processor: str
    threads: int
    batch: int
    path: str

    @property
    def name(self) -> str:
        if self.device == "cuda" or not self.threads:
            return self.processor
        return f"{self.processor}, {self.threads} thread{'s' * (self.threads != 1)}"

    @property
    def label(self) -> str:
        return f"{self.name}, batch of {self.batch}, {self.path}"


@dataclass(frozen=True)
class Speed:
    """Latency on one machine: medians over runs of the median (ms), and the mean of their dense / pruned."""

    machine: Machine
    runs: int
    dense_ms: float
    pruned_ms: float
    speed_up: Interval


@dataclass(frozen=True)
class Cost:
    """Means over seeds; `training` is a multiple of the dense model's training steps."""

    parameters: float
    nonzero_parameters: float
    macs: float
    nonzero_macs: float
    training: float
    speeds: tuple[Speed, ...]

    @property
    def theoretical_speed_up(self) -> float:
        return self.macs / self.nonzero_macs if self.nonzero_macs else math.nan


@dataclass(frozen=True)
class Row:
    """A method at a sparsity (None: the method chose it). Without all planned seeds there are no means."""

    method: str
    supervision: str
    sparsity: float | None
    dense: bool
    seeds: tuple[int, ...]
    planned: tuple[int, ...]
    achieved: Interval = UNDEFINED
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    ranks: Mapping[str, Rank | None] = field(default_factory=dict)
    cost: Cost | None = None
    mining_precision: Interval | None = None
    mining_recall: Interval | None = None
    groups: tuple[tuple[float | None, ...], ...] = ()

    @property
    def complete(self) -> bool:
        return self.seeds == self.planned

    def metric(self, name: str) -> Interval:
        """Mean and interval of a metric; undefined where the row is not complete."""
        return self.metrics.get(name, UNDEFINED)


def build_rows(records: Sequence[RunRecord], planned: tuple[int, ...]) -> list[Row]:
    """Rows of one section, the best unbiased accuracy first within a sparsity, rows without a mean last."""
    labels = variant_labels(records)
    cells: dict[tuple[float | None, str], list[RunRecord]] = {}
    for record in records:
        cells.setdefault((record.spec["sparsity"], labels[variant_of(record)]), []).append(record)
    ranks = _rank_cells(cells, planned)
    rows = [_row(key, runs, planned, ranks.get(key, {})) for key, runs in cells.items()]
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[bool, bool, float, bool, float, str]:
    mean = row.metric("unbiased").mean
    missing = math.isnan(mean)
    return (
        not row.dense,
        row.sparsity is None,
        row.sparsity or 0.0,
        missing,
        0.0 if missing else -mean,
        row.method,
    )


def variant_of(record: RunRecord) -> tuple[str, str, str]:
    """What makes two runs the same method: name, version and settings."""
    spec = record.spec
    return spec["method"], spec["method_version"], json.dumps(spec["params"], sort_keys=True)


def variant_labels(records: Iterable[RunRecord]) -> dict[tuple[str, str, str], str]:
    """A name for each variant: the method's own, with what differs in brackets where there are several."""
    variants = sorted({variant_of(record) for record in records})
    labels = {}
    for variant in variants:
        name, version, params = variant
        siblings = [other for other in variants if other[0] == name]
        settings = [{"version": other[1], **json.loads(other[2])} for other in siblings]
        own = {"version": version, **json.loads(params)}
        absent = object()
        differing = [
            f"{key}={value}"
            for key, value in sorted(own.items())
            if any(other.get(key, absent) != value for other in settings)
        ]
        labels[variant] = f"{name} ({', '.join(differing)})" if differing else name
    return labels


def _ok(runs: Iterable[RunRecord]) -> dict[int, RunRecord]:
    return {
        run.spec["seed"]: run for run in sorted(runs, key=lambda run: run.spec["seed"]) if run.status == "ok"
    }


def _rank_cells(
    cells: Mapping[tuple[float | None, str], Sequence[RunRecord]], planned: tuple[int, ...]
) -> dict[tuple[float | None, str], dict[str, Rank | None]]:
    """Ranks of the complete cells within each sparsity. Dense and native sparsity are not ranked."""
    ranks: dict[tuple[float | None, str], dict[str, Rank | None]] = {}
    for sparsity in {key[0] for key in cells if key[0] is not None}:
        runs = {
            label: _ok(cell)
            for (asked, label), cell in cells.items()
            if asked == sparsity and not is_dense(cell[0]) and tuple(_ok(cell)) == planned
        }
        for metric in RANKED:
            values = {
                label: {seed: _number(run.metrics.get(metric)) for seed, run in by_seed.items()}
                for label, by_seed in runs.items()
            }
            for label, rank in rank_by_paired_tests(values).items():
                ranks.setdefault((sparsity, label), {})[metric] = rank
    return ranks


def is_dense(record: RunRecord) -> bool:
    """Whether a run is the unpruned baseline."""
    return record.spec["method"] == "dense"


def _row(
    key: tuple[float | None, str],
    runs: Sequence[RunRecord],
    planned: tuple[int, ...],
    ranks: Mapping[str, Rank | None],
) -> Row:
    by_seed = _ok(runs)
    supervision = " / ".join(sorted({run.method.get("supervision", "") for run in runs}))
    row = Row(key[1], supervision, key[0], is_dense(runs[0]), tuple(by_seed), planned)
    if not row.complete:
        return row
    done = list(by_seed.values())
    names = sorted({*METRICS, *(name for run in done for name in run.metrics)})
    mining = [run.mining for run in done if run.mining is not None]
    return Row(
        row.method,
        supervision,
        row.sparsity,
        row.dense,
        row.seeds,
        planned,
        achieved=mean_interval([run.sparsity.achieved for run in done if run.sparsity is not None]),
        metrics={name: mean_interval([run.metrics.get(name) for run in done]) for name in names},
        ranks=ranks,
        cost=_cost(done),
        mining_precision=mean_interval([found.precision for found in mining]) if mining else None,
        mining_recall=mean_interval([found.recall for found in mining]) if mining else None,
        groups=_group_means(done),
    )


def _cost(runs: Sequence[RunRecord]) -> Cost:
    costs = [run.cost for run in runs if run.cost is not None]
    by_machine: dict[Machine, list[CostReport]] = {}
    for run, cost in zip(runs, costs, strict=True):
        by_machine.setdefault(machine_of(run), []).append(cost)

    def mean(of: Callable[[CostReport], float]) -> float:
        return math.fsum(map(of, costs)) / len(costs)

    return Cost(
        parameters=mean(lambda cost: cost.parameters),
        nonzero_parameters=mean(lambda cost: cost.nonzero_parameters),
        macs=mean(lambda cost: cost.macs),
        nonzero_macs=mean(lambda cost: cost.nonzero_macs),
        training=mean(lambda cost: cost.training_steps / cost.dense_training_steps),
        speeds=tuple(_speed(machine, by_machine[machine]) for machine in sorted(by_machine)),
    )


def _speed(machine: Machine, costs: Sequence[CostReport]) -> Speed:
    dense = [cost.latency_dense_ms.p50 for cost in costs]
    pruned = [cost.latency_pruned_ms.p50 for cost in costs]
    ratios = [before / after if after else math.nan for before, after in zip(dense, pruned, strict=True)]
    return Speed(
        machine, len(costs), statistics.median(dense), statistics.median(pruned), mean_interval(ratios)
    )


def machine_of(record: RunRecord) -> Machine:
    """The machine, the batch and the kind of inference that a run's latencies belong to."""
    facts = (record.cost.timed_on if record.cost is not None else {}) or record.environment
    processor = facts.get("gpu") or facts.get("cpu") or "unknown processor"
    if facts.get("gpu"):
        processor = f"{processor} with {facts.get('cpu') or 'unknown processor'}"
    threads = facts.get("threads")
    batch = record.cost.latency_batch if record.cost is not None else 0
    path = (record.cost.latency_path if record.cost is not None else None) or PLAIN_PATH
    how = PLAIN_PATH if path.startswith(PLAIN_PATH) else "sparse inference"
    return Machine(str(facts.get("device")), str(processor), int(float(threads or 0)), batch, how)


def _group_means(runs: Sequence[RunRecord]) -> tuple[tuple[float | None, ...], ...]:
    """Accuracy by (label, bias), mean over seeds; None where a seed has no test image of the group."""
    accuracy: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        for group in run.groups:
            if group.count:
                accuracy.setdefault((group.label, group.bias), []).append(group.correct / group.count)
    if not accuracy:
        return ()
    labels, biases = (1 + max(key[axis] for key in accuracy) for axis in (0, 1))

    def mean(values: Sequence[float]) -> float | None:
        return math.fsum(values) / len(values) if len(values) == len(runs) else None

    return tuple(
        tuple(mean(accuracy.get((label, bias), [])) for bias in range(biases)) for label in range(labels)
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
