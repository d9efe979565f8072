"""Aggregation of records: runs of one kind become a row, comparable rows a track, all tracks the leaderboard."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunebench.leaderboard.confinement import confinement_words
from prunebench.leaderboard.controls import mask_values
from prunebench.leaderboard.values import (
    Difference,
    Leaderboard,
    MeasuredSpeed,
    MethodRow,
    RowCost,
    TimingSetup,
    Track,
)
from prunebench.report.format import at_sparsity, listed, sparsity
from prunebench.results.ranking import (
    TrackRanking,
    has_collapsed,
    paired_differences,
    rank_track,
)
from prunebench.results.record import PLAIN_PATH, PREDICTIONS_NOTE, CostReport, RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.speed import disturbance, noise_floor, speed_up
from prunebench.results.standing import NOTHING, Standing
from prunebench.results.tracks import (
    REFERENCE,
    Place,
    SeedPlan,
    finished_runs,
    is_dense,
    is_unpruned,
    seed_plan,
    split_tracks,
    track_identity,
    variant_labels,
    variant_of,
)
from prunebench.runner.plan import board_plans
from prunebench.stats.intervals import UNDEFINED, Interval, mean_interval
from prunebench.stats.multiplicity import Verdicts
from prunebench.stats.ratios import ratio_interval

RANKED = ("conflicting", "unbiased")
"""The metrics by which methods are ranked; rows stand in the order of the first that is defined."""
LONGEST_REASON = 300
LATENCIES = ("latency_dense_ms", "latency_pruned_ms")
CEILING = 0.95
"""Where every row's aligned accuracy is above this, gap, unbiased and conflicting accuracy are one number."""
FLOOR, MANY_GROUPS = 0.01, 20
"""Where no row's worst of so many groups is above this, the column says nothing."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Python's search for cycles waits: a board makes none, and passes over all records cost a fifth of its time.

    What was made meanwhile counts as old afterwards, or the first pass would go through all of it.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        if was:
            gc.enable()


@without_collection()
def build_board(
    records: Iterable[RunRecord], standing: Standing = NOTHING, plans: Sequence[SeedPlan] | None = None
) -> Leaderboard:
    """The leaderboard of these records, whatever their order.

    Without versions that were retired, and without runs of seeds that are for choosing budgets.

    plans: the seeds that rows are to have, by default those of the packaged suites of the board.
    """
    plans = board_plans() if plans is None else plans
    listed_now = standing.listed(records)
    given = [record for record in listed_now if record.spec["seed"] < TUNE_SEEDS]
    by_track = split_tracks(given)
    groups = list(by_track.values())
    kept = sorted((run for runs in groups for run in runs), key=lambda run: run.run_id)
    finished = [record for record in kept if record.status == "ok"]
    return Leaderboard(
        tracks=tuple(_track(runs, slug, groups, standing, plans) for slug, runs in by_track.items()),
        runs=len(kept),
        ok=len(finished),
        duplicates=len(given) - len(kept),
        tuning=len(listed_now) - len(given),
        seeds=tuple(sorted({record.spec["seed"] for record in kept})),
        methods=tuple(sorted({_method_facts(record) for record in kept})),
        environments=_environments(finished),
        commits=_counted(_describe_code(record) for record in finished),
        history=tuple(line.words for line in standing.retired.values()),
    )


# Tracks


def _track(
    runs: Sequence[RunRecord],
    slug: str,
    groups: Sequence[Sequence[RunRecord]],
    standing: Standing,
    plans: Sequence[SeedPlan],
) -> Track:
    spec, every = runs[0].spec, runs
    ranking, machines = rank_track(every, plans), _machines(every)
    seeds = ranking.planned
    runs = [run for run in every if run.spec["seed"] in seeds]
    rows = tuple(build_rows(ranking, standing))
    siblings = [group[0] for group in groups if group[0].spec["task"] == spec["task"]]
    differs = _difference(every[0], siblings)
    return Track(
        slug=slug,
        title=spec["task"] if not differs else f"{spec['task']} ({_shortest(every[0], siblings)})",
        differs=", ".join(differs) or None,
        task=spec["task"],
        task_version=spec["task_version"],
        data_fingerprint=spec["data_fingerprint"],
        model=spec["model"],
        recipe=tuple(sorted(spec["recipe"].items())),
        seeds=seeds,
        machines=tuple(sorted(machines)),
        rows=rows,
        aligned=_aligned(runs),
        problems=tuple(_problems(rows)),
        notes=(
            *_notes(runs, several_machines=len(machines) > 1),
            *_plan_notes(seed_plan(every, plans), seeds),
            *_reference_notes(ranking),
            *_mixed_rows(rows),
            *_extra_seeds(every, seeds),
            *confinement_words(runs),
        ),
        reference=None if ranking.reference is None else ranking.reference[1],
        remarks=(*_folded_words(rows), *_collapse_words(ranking), *_mask_words(rows)),
    )


def _difference(record: RunRecord, siblings: Sequence[RunRecord]) -> tuple[str, ...]:
    """What sets a track apart from others of its task, as `name value`; empty if it is the only one."""
    others = [track_identity(sibling) for sibling in siblings]
    return tuple(
        f"{name.removeprefix('recipe.').replace('_', ' ')} {value}"
        for name, value in track_identity(record).items()
        if any(other.get(name) != value for other in others)
    )


def _shortest(record: RunRecord, siblings: Sequence[RunRecord]) -> str:
    """As few of the differences as no other track of the task shares."""
    own = _difference(record, siblings)
    others = [_difference(sibling, siblings) for sibling in siblings if sibling is not record]
    length = next(size for size in range(1, len(own) + 1) if all(o[:size] != own[:size] for o in others))
    return ", ".join(own[:length])


def _aligned(runs: Sequence[RunRecord]) -> tuple[tuple[bool, ...], ...]:
    pairs = {(group.label, group.bias): group.aligned for run in runs for group in run.groups}
    labels, biases = (1 + max((pair[axis] for pair in pairs), default=-1) for axis in (0, 1))
    return tuple(tuple(pairs.get((label, bias), False) for bias in range(biases)) for label in range(labels))


# Rows


def build_rows(ranking: TrackRanking, standing: Standing = NOTHING) -> list[MethodRow]:
    """Rows of one track, the best bias-conflicting accuracy first within a sparsity, rows without a mean last."""
    asked = {place[0] for place in ranking.rows}
    verdicts = {(level, metric): ranking.verdicts(level, metric) for level in asked for metric in RANKED}
    masks, steps = mask_values(ranking, RANKED[0]), _reference_steps(ranking)
    by_level: dict[float | None, list[MethodRow]] = {}
    for place, runs in ranking.rows.items():
        facts = {"mask": masks.get(place), "verified": standing.badge(runs[0])}
        facts |= _means(place, ranking, verdicts, steps)
        by_level.setdefault(place[0], []).append(_row(place, ranking, facts))
    found = []
    for rows in by_level.values():
        folded = _folded(rows)
        found += [replace(row, folded=folded) for row in rows] if folded else rows
    return sorted(found, key=_row_order)


def _row_order(row: MethodRow) -> tuple[bool, bool, float, bool, float, str]:
    means = [row.metric(metric).mean for metric in RANKED]
    mean = next((value for value in means if not math.isnan(value)), math.nan)
    missing = math.isnan(mean)
    rank = (row.sparsity is None, row.sparsity or 0.0, missing, 0.0 if missing else -mean, row.method)
    return (not row.dense, *rank)


def _row(place: Place, ranking: TrackRanking, facts: Mapping[str, Any]) -> MethodRow:
    """A row with what is known besides of it, by field."""
    runs = ranking.rows[place]
    supervision = " / ".join(sorted({run.method.get("supervision", "") for run in runs}))
    return MethodRow(
        place[1],
        supervision,
        place[0],
        is_unpruned(runs[0]),
        tuple(ranking.finished[place]),
        ranking.planned,
        unranked=ranking.unranked[place],
        runs=tuple(sorted(runs, key=lambda run: run.spec["seed"])),
        **facts,
    )


def _means(
    place: Place,
    ranking: TrackRanking,
    verdicts: Mapping[tuple[float | None, str], Verdicts],
    reference_steps: float,
) -> dict[str, Any]:
    """By field of a row, its means over seeds and what is tested of them; empty where a run failed or none is there."""
    by_seed = ranking.finished[place]
    if ranking.failed[place] or not by_seed:
        return {}
    done = list(by_seed.values())
    names = sorted(set().union(*(run.metrics for run in done)))
    mining = [run.mining for run in done if run.mining is not None]
    cell = {metric: verdicts[place[0], metric] for metric in RANKED}
    unweighed = predictions_only(done)
    return {
        "achieved": UNDEFINED if unweighed else _achieved(done),
        "metrics": {name: mean_interval([run.metrics.get(name) for run in done]) for name in names},
        "in_distribution": mean_interval([run.validation.get("plain") for run in done]),
        "ranks": {metric: found.ranks.get(place[1]) for metric, found in cell.items()},
        "changes": _changes(place, ranking, cell),
        "cost": None if unweighed else _row_cost(done, reference_steps),
        "mining_precision": mean_interval([found.precision for found in mining]) if mining else None,
        "mining_recall": mean_interval([found.recall for found in mining]) if mining else None,
        "groups": _group_means(done),
        "mixed": _mixed(done),
        "collapsed": ranking.collapsed[place],
    }


def _changes(place: Place, ranking: TrackRanking, cell: Mapping[str, Verdicts]) -> dict[str, Difference]:
    """What a row is above the reference, by metric, over the seeds that both have."""
    reference = ranking.reference
    if reference is None or place == reference:
        return {}
    return {
        metric: Difference(
            reference[1],
            mean_interval(
                paired_differences(ranking.values(place, metric), ranking.values(reference, metric))
            ),
            found.q(place[1], reference[1]),
            found.decided(place[1], reference[1]),
        )
        for metric, found in cell.items()
    }


def _reference_steps(ranking: TrackRanking) -> float:
    """The mean training steps of the reference; nan without one."""
    done = finished_runs(ranking.rows[ranking.reference]).values() if ranking.reference is not None else ()
    steps = [run.cost.training_steps for run in done if run.cost is not None]
    return math.fsum(steps) / len(steps) if steps and any(steps) else math.nan


def _folded(rows: Sequence[MethodRow]) -> frozenset[str]:
    """The metrics that say nothing of their own in the rows of one sparsity."""
    done = [row for row in rows if row.has_means and not row.collapsed]
    found: set[str] = set()
    if done and all(
        row.metric("aligned").mean > CEILING and math.isfinite(row.metric("conflicting").mean) for row in done
    ):
        found |= {"unbiased", "bias_gap"}
    groups = {sum(value is not None for line in row.groups for value in line) for row in done}
    if groups and min(groups) >= MANY_GROUPS and all(row.metric("worst_group").mean <= FLOOR for row in done):
        found.add("worst_group")
    return frozenset(found)


def predictions_only(runs: Sequence[RunRecord]) -> bool:
    """Whether any of these runs was handed in as predictions: of its network nothing is known, no zero and no cost."""
    return any(run.notes and run.notes.get(PREDICTIONS_NOTE) for run in runs)


def _machines(runs: Iterable[RunRecord]) -> set[TimingSetup]:
    """Where runs with latencies were timed."""
    return {machine_of(run) for run in runs if run.status == "ok" and not run.notes.get(PREDICTIONS_NOTE)}


def _achieved(runs: Sequence[RunRecord]) -> Interval:
    return mean_interval([run.sparsity.achieved for run in runs if run.sparsity is not None])


def _mixed(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """What runs of one row differ in besides their seeds, in words; empty where they were made alike."""
    found = []
    for name, words in (("torch", "torch {}"), ("cpu", "{}"), ("gpu", "{}")):
        values = {str(run.environment.get(name)) for run in runs}
        if len(values) > 1:
            found.append(words.format(" and ".join(sorted(values))))
    changed = len([run for run in runs if run.code.get("dirty")])
    if changed:
        found.append(
            "uncommitted code" if changed == len(runs) else "code with and without uncommitted changes"
        )
    return tuple(found)


def _row_cost(runs: Sequence[RunRecord], reference_steps: float) -> RowCost:
    costs = [run.cost for run in runs if run.cost is not None]
    by_machine: dict[TimingSetup, list[CostReport]] = {}
    for machine, timed in itertools.groupby(zip(runs, costs, strict=True), lambda pair: machine_of(pair[0])):
        by_machine.setdefault(machine, []).extend(cost for _, cost in timed)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(costs)

    return RowCost(
        parameters=mean([cost.parameters for cost in costs]),
        nonzero_parameters=mean([cost.nonzero_parameters for cost in costs]),
        macs=mean([cost.macs for cost in costs]),
        nonzero_macs=mean([cost.nonzero_macs for cost in costs]),
        training=mean([cost.training_steps for cost in costs]) / reference_steps,
        speeds=tuple(_speed(machine, by_machine[machine]) for machine in sorted(by_machine)),
    )


def _speed(machine: TimingSetup, costs: Sequence[CostReport]) -> MeasuredSpeed:
    dense, pruned = ([getattr(cost, name).p50 for cost in costs] for name in LATENCIES)
    floors = [floor for cost in costs if (floor := noise_floor(cost)) is not None]
    return MeasuredSpeed(
        machine,
        len(costs),
        statistics.median(dense),
        statistics.median(pruned),
        ratio_interval([speed_up(cost) for cost in costs]),
        ratio_interval(floors) if floors else None,
        sum(disturbance(cost) is not None for cost in costs),
    )


def machine_of(record: RunRecord) -> TimingSetup:
    """The machine, the batch and the kind of inference that a run's latencies belong to."""
    cost = record.cost
    facts = (cost.timed_on if cost is not None else {}) or record.environment
    batch, path = (0, None) if cost is None else (cost.latency_batch, cost.latency_path)
    get = facts.get
    return _setup(get("device"), get("gpu"), get("cpu"), get("threads"), batch, path)


@functools.lru_cache(maxsize=1024, typed=True)
def _setup(device: Any, gpu: Any, cpu: Any, threads: Any, batch: int, path: str | None) -> TimingSetup:
    host = str(cpu or "unknown processor")
    how = PLAIN_PATH if (path or PLAIN_PATH).startswith(PLAIN_PATH) else "sparse inference"
    processor = f"{gpu} with {host}" if gpu else host
    return TimingSetup(str(device or "None"), processor, int(float(threads or 0)), batch, how)


def _group_means(runs: Sequence[RunRecord]) -> tuple[tuple[float | None, ...], ...]:
    """Accuracy by (label, bias), mean over seeds; None where a seed has no test image of the group."""
    accuracies = [
        {(group.label, group.bias): group.correct / group.count for group in run.groups if group.count}
        for run in runs
    ]
    known = {key for accuracy in accuracies for key in accuracy}
    if not known:
        return ()
    labels, biases = (1 + max(key[axis] for key in known) for axis in (0, 1))

    def mean(key: tuple[int, int]) -> float | None:
        if not all(key in accuracy for accuracy in accuracies):
            return None
        return math.fsum([accuracy[key] for accuracy in accuracies]) / len(accuracies)

    return tuple(tuple(mean((label, bias)) for bias in range(biases)) for label in range(labels))


# What a reader must know


def _problems(rows: Sequence[MethodRow]) -> list[str]:
    """What is missing from the track's grid of methods, sparsities and seeds, and why; in order of rows."""
    lines = []
    for row in rows:
        causes: dict[str, list[int]] = {}
        for run in (run for run in row.runs if run.status != "ok"):
            reason = " ".join((run.reason or "no reason recorded").split())
            reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
            causes.setdefault(f"{run.status}: {reason}", []).append(run.spec["seed"])
        absent = sorted(set(row.planned) - {run.spec["seed"] for run in row.runs})
        if absent:
            causes["no record"] = absent
        where = at_sparsity(row.method, row.sparsity, dense=row.dense)
        lines += [f"{where}, {listed('seed', seeds)}: {cause}" for cause, seeds in causes.items()]
    pruned = [row for row in rows if not row.dense and row.sparsity]
    asked = sorted({row.sparsity for row in pruned if row.sparsity is not None})
    present: dict[str, set[float | None]] = {}
    for row in pruned:
        present.setdefault(row.method, set()).add(row.sparsity)
    for method in sorted(present):
        missing = [sparsity(value) for value in asked if value not in present[method]]
        if missing:
            lines.append(f"{method}: no record at sparsity {', '.join(missing)}")
    return lines


def _notes(runs: Sequence[RunRecord], *, several_machines: bool) -> list[str]:
    """What a reader must know before comparing the rows of a track, in which there may be several machines."""
    done = [run for run in runs if run.status == "ok"]
    notes = []
    precisions = sorted({str(run.environment.get("precision")) for run in done})
    if len(precisions) > 1:
        notes.append(f"Networks were trained in different precisions: {', '.join(precisions)}.")
    if several_machines and len(_machines(done)) > 1:
        notes.append(
            "Latencies come from different machines or kinds of inference: they stand in rows of their own."
        )
    splits: dict[int, set[str]] = {}
    for run in done:
        if run.splits_hash:
            splits.setdefault(run.spec["seed"], set()).add(run.splits_hash)
    for seed in sorted(splits):
        if len(splits[seed]) > 1:
            notes.append(f"Runs of seed {seed} saw different splits: their differences are not paired.")
    return notes


def _mixed_rows(rows: Sequence[MethodRow]) -> list[str]:
    """Which means join runs that were made differently, and in what."""
    return [
        f"† {at_sparsity(row.method, row.sparsity, dense=row.dense)}: its mean rests on {'; '.join(row.mixed)}."
        for row in rows
        if row.mixed
    ]


def _plan_notes(plan: Sequence[int], seeds: Sequence[int]) -> list[str]:
    """That no planned seed has a run, and which ones are shown in their place."""
    if not plan or set(plan) & set(seeds):
        return []
    return [
        f"None of the planned seeds ({', '.join(map(str, plan))}) has a run: rows are of {listed('seed', seeds)}."
    ]


def _reference_notes(ranking: TrackRanking) -> list[str]:
    """What is left out where the reference is missing."""
    if ranking.reference is not None:
        return []
    several = [place[1] for place, runs in ranking.rows.items() if runs[0].spec["method"] == REFERENCE]
    why = (
        f"there are several rows of {REFERENCE}: {', '.join(several)}"
        if len(several) > 1
        else f"no run of {REFERENCE} has finished, or one failed (the dense network with the steps of a pruned one)"
    )
    return [
        f"No row is compared with an unpruned one here, and no training cost is given: {why}. No other row "
        "stands in for it."
    ]


FOLDED_WORDS = {
    "unbiased": (
        "Unbiased accuracy and bias gap are not shown (·) at {places}: there every row's bias-aligned accuracy is "
        f"above {CEILING:.0%}, so that both follow from bias-conflicting accuracy. That one is shown, for it alone was "
        "measured on the minorities."
    ),
    "worst_group": (
        "Worst-group accuracy is not shown (·) at {places}: the least of so many small groups is at its floor, at most "
        f"{FLOOR:.0%} in every row. The mean of the worst tenth of groups is shown."
    ),
}


def _folded_words(rows: Sequence[MethodRow]) -> list[str]:
    """Where columns say nothing of their own, and which one does."""
    found = []
    for metric, words in FOLDED_WORDS.items():
        places = list(dict.fromkeys(row.tag for row in rows if metric in row.folded))
        if places:
            found.append(words.format(places=", ".join(places)))
    return found


def _collapse_words(ranking: TrackRanking) -> list[str]:
    """Which rows have collapsed networks, most of them or some."""
    found = []
    for place, runs in sorted(ranking.rows.items(), key=lambda item: (str(item[0][0]), item[0][1])):
        where, reason = at_sparsity(place[1], place[0], dense=is_unpruned(runs[0])), ranking.collapsed[place]
        fallen = [run.spec["seed"] for run in runs if run.status == "ok" and has_collapsed(run)]
        if reason:
            found.append(f"‡ {where} {reason}. It has no rank.")
        elif fallen:
            found.append(f"{where}: the network of {listed('seed', fallen)} collapsed, and is in its mean.")
    return found


def _mask_words(rows: Sequence[MethodRow]) -> list[str]:
    """Which masks are not shown to be better than a shuffled one."""
    return [
        f"{at_sparsity(row.method, row.sparsity, dense=row.dense)}: its mask is not shown to be better than the same "
        "mask shuffled within layers."
        for row in rows
        if row.mask is not None and row.mask.beats_shuffled is False
    ]


def _extra_seeds(runs: Sequence[RunRecord], planned: Sequence[int]) -> list[str]:
    """What was run beyond the track's seeds, which stands in no mean."""
    beyond = [run for run in runs if run.spec["seed"] not in planned and not is_dense(run)]
    labels = variant_labels(runs) if beyond else {}
    extra: dict[str, set[int]] = {}
    for run in beyond:
        extra.setdefault(labels[variant_of(run)], set()).add(run.spec["seed"])
    return [
        f"{method} was also run with {listed('seed', sorted(seeds))}, beyond the planned ones: in no mean here."
        for method, seeds in sorted(extra.items())
    ]


def _method_facts(record: RunRecord) -> tuple[str, str, str]:
    facts = record.method
    return facts.get("name", record.spec["method"]), facts.get("supervision", ""), facts.get("cite", "")


VERSIONS = ("python", "torch", "cuda", "driver")


def _environments(records: Iterable[RunRecord]) -> tuple[tuple[str, int], ...]:
    """Machines and versions in words, each with its number of records."""
    alike = Counter(
        (machine_of(record), tuple(map(record.environment.get, (*VERSIONS, "precision"))))
        for record in records
    )
    found: Counter[str] = Counter()
    for (machine, (*versions, precision)), count in alike.items():
        named = (f", {name} {version}" for name, version in zip(VERSIONS, versions) if version)
        found[f"{machine.name}{''.join(named)}, precision {precision}"] += count
    return tuple(sorted(found.items()))


def _describe_code(record: RunRecord) -> str:
    code = record.code
    commit = str(code["commit"])[:12] if code.get("commit") else "unknown commit"
    changed = " with uncommitted changes" if code.get("dirty") else ""
    return f"{commit}{changed} (version {code.get('version') or 'unknown'})"


def _counted(descriptions: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(descriptions).items()))
