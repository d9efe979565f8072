"""Aggregation of records: runs of one kind become a row, comparable rows a track, all tracks the leaderboard."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunebench.leaderboard.values import Leaderboard, MeasuredSpeed, MethodRow, RowCost, TimingSetup, Track
from prunebench.report.format import at_sparsity, listed, sparsity
from prunebench.results.record import PLAIN_PATH, PREDICTIONS_NOTE, CostReport, RunRecord, to_json
from prunebench.results.speed import disturbance, noise_floor, speed_up
from prunebench.results.standing import NOTHING, Standing
from prunebench.stats.intervals import UNDEFINED, Interval, mean_interval
from prunebench.stats.ratios import ratio_interval
from prunebench.stats.tests import Rank, rank_by_paired_tests

RANKED = ("unbiased", "conflicting")
"""The metrics by which methods are ranked; rows stand in the order of the first."""
LONGEST_REASON = 300
LATENCIES = ("latency_dense_ms", "latency_pruned_ms")

Variant = tuple[str, str, str]
"""Name, version and settings (JSON) of a method."""
Place = tuple[float | None, str]
"""Sparsity asked for (None: the method chose it), and the label of a variant."""


def build_board(records: Iterable[RunRecord], standing: Standing = NOTHING) -> Leaderboard:
    """The leaderboard of these records, whatever their order, without versions that were retired."""
    given = standing.listed(records)
    by_track = split_tracks(given)
    groups = list(by_track.values())
    kept = sorted((run for runs in groups for run in runs), key=lambda run: run.run_id)
    finished = [record for record in kept if record.status == "ok"]
    return Leaderboard(
        tracks=tuple(_track(runs, slug, groups, standing) for slug, runs in by_track.items()),
        runs=len(kept),
        ok=len(finished),
        duplicates=len(given) - len(kept),
        seeds=tuple(sorted({record.spec["seed"] for record in kept})),
        methods=tuple(sorted({_method_facts(record) for record in kept})),
        environments=_counted(_describe_environment(record) for record in finished),
        commits=_counted(_describe_code(record) for record in finished),
        history=tuple(line.words for line in standing.retired.values()),
    )


# Tracks


def split_tracks(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records that may be compared, by the track's slug: one task version, data, model and recipe; none twice."""
    by_track: dict[str, list[RunRecord]] = {}
    for record in _without_duplicates(records):
        by_track.setdefault(json.dumps(track_identity(record), sort_keys=True), []).append(record)
    groups = sorted(by_track.values(), key=lambda runs: _track_order(runs[0]))
    return dict(zip(_unique_slugs([runs[0].spec["task"] for runs in groups]), groups, strict=True))


def _without_duplicates(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record a run: an ok one before others, then the latest. Sorted by run."""
    best: dict[str, tuple[tuple[bool, str, str], RunRecord]] = {}
    for record in records:
        merit = (record.status == "ok", record.started_utc, to_json(record))
        if record.run_id not in best or merit > best[record.run_id][0]:
            best[record.run_id] = merit, record
    return [best[run_id][1] for run_id in sorted(best)]


def track_identity(record: RunRecord) -> dict[str, Any]:
    """What must agree for two runs to be compared, flat; what says most to a reader first."""
    spec = record.spec
    recipe = sorted(
        spec["recipe"].items(), key=lambda item: (item[0] != "steps", item[0] != "finetune_steps", item)
    )
    values = {name: spec[name] for name in ("task", "task_version", "model")}
    return values | {f"recipe.{name}": value for name, value in recipe} | {"data": spec["data_fingerprint"]}


def _track_order(record: RunRecord) -> tuple[str, int, str, str, str]:
    spec = record.spec
    recipe = json.dumps(spec["recipe"], sort_keys=True)
    return spec["task"], spec["task_version"], spec["data_fingerprint"], spec["model"], recipe


def _unique_slugs(names: Sequence[str]) -> list[str]:
    slugs: list[str] = []
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "task"
        slug, count = base, 1
        while slug in slugs:
            count += 1
            slug = f"{base}-{count}"
        slugs.append(slug)
    return slugs


def _track(
    runs: Sequence[RunRecord], slug: str, groups: Sequence[Sequence[RunRecord]], standing: Standing
) -> Track:
    spec = runs[0].spec
    every, seeds = runs, planned_seeds(runs)
    runs = [run for run in every if run.spec["seed"] in seeds]
    rows = tuple(build_rows(runs, seeds, standing))
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
        machines=tuple(sorted({machine_of(run) for run in every if _is_timed(run)})),
        rows=rows,
        aligned=_aligned(runs),
        problems=tuple(_problems(runs, rows)),
        notes=(*_notes(runs), *_mixed_rows(rows), *_extra_seeds(every, seeds)),
    )


def planned_seeds(runs: Sequence[RunRecord]) -> tuple[int, ...]:
    """The seeds of a track: those that at least half of its rows have a record of, finished or not.

    One method run with a seed more must not leave every other row without all its seeds.
    """
    rows: dict[str, set[int]] = {}
    for run in runs:
        if not is_dense(run):
            key = json.dumps([variant_of(run), run.spec["sparsity"]])
            rows.setdefault(key, set()).add(run.spec["seed"])
    every = {run.spec["seed"] for run in runs}
    planned = {seed for seed in every if 2 * sum(seed in seeds for seeds in rows.values()) >= len(rows)}
    return tuple(sorted(planned or every))


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


def build_rows(
    records: Sequence[RunRecord], planned: tuple[int, ...], standing: Standing = NOTHING
) -> list[MethodRow]:
    """Rows of one track, the best unbiased accuracy first within a sparsity, rows without a mean last."""
    labels = variant_labels(records)
    places: dict[Place, list[RunRecord]] = {}
    for record in records:
        places.setdefault((record.spec["sparsity"], labels[variant_of(record)]), []).append(record)
    ranks = _rank(places, planned)
    rows = [
        replace(_row(place, runs, planned, ranks.get(place, {})), verified=standing.badge(runs[0]))
        for place, runs in places.items()
    ]
    return sorted(rows, key=_row_order)


def _row_order(row: MethodRow) -> tuple[bool, bool, float, bool, float, str]:
    mean = row.metric(RANKED[0]).mean
    missing = math.isnan(mean)
    rank = (row.sparsity is None, row.sparsity or 0.0, missing, 0.0 if missing else -mean, row.method)
    return (not row.dense, *rank)


def is_dense(record: RunRecord) -> bool:
    """Whether a run is the unpruned baseline."""
    return record.spec["method"] == "dense"


def is_ranked(record: RunRecord) -> bool:
    """Whether a run's method is to be ranked: not the dense model, and none that says otherwise of itself."""
    return not is_dense(record) and record.method.get("ranked") != "no"


def variant_of(record: RunRecord) -> Variant:
    """What makes two runs the same method: name, version and settings."""
    spec = record.spec
    return spec["method"], spec["method_version"], json.dumps(spec["params"], sort_keys=True)


def variant_labels(records: Iterable[RunRecord]) -> dict[Variant, str]:
    """A name for each variant: the method's own, with what differs in brackets where there are several."""
    variants = sorted({variant_of(record) for record in records})
    labels, absent = {}, object()
    for name, version, params in variants:
        siblings = [{"version": other[1], **json.loads(other[2])} for other in variants if other[0] == name]
        differing = [
            f"{key}={value}"
            for key, value in sorted({"version": version, **json.loads(params)}.items())
            if any(other.get(key, absent) != value for other in siblings)
        ]
        labels[name, version, params] = f"{name} ({', '.join(differing)})" if differing else name
    return labels


def _ok(runs: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """The finished runs by seed, in order."""
    ordered = sorted(runs, key=lambda run: run.spec["seed"])
    return {run.spec["seed"]: run for run in ordered if run.status == "ok"}


def _rank(
    places: Mapping[Place, Sequence[RunRecord]], planned: tuple[int, ...]
) -> dict[Place, dict[str, Rank | None]]:
    """Ranks of the complete rows within each sparsity. References and native sparsity are not ranked."""
    ranks: dict[Place, dict[str, Rank | None]] = {}
    for asked in {place[0] for place in places if place[0] is not None}:
        complete = {
            label: _ok(runs)
            for (other, label), runs in places.items()
            if other == asked and is_ranked(runs[0]) and tuple(_ok(runs)) == planned
        }
        for metric in RANKED:
            values = {
                label: {
                    seed: math.nan if (value := run.metrics.get(metric)) is None else value
                    for seed, run in by_seed.items()
                }
                for label, by_seed in complete.items()
            }
            for label, rank in rank_by_paired_tests(values).items():
                ranks.setdefault((asked, label), {})[metric] = rank
    return ranks


def _row(
    place: Place, runs: Sequence[RunRecord], planned: tuple[int, ...], ranks: Mapping[str, Rank | None]
) -> MethodRow:
    by_seed = _ok(runs)
    supervision = " / ".join(sorted({run.method.get("supervision", "") for run in runs}))
    row = MethodRow(place[1], supervision, place[0], is_dense(runs[0]), tuple(by_seed), planned)
    if not row.complete:
        return row
    done = list(by_seed.values())
    names = sorted({name for run in done for name in run.metrics})
    mining = [run.mining for run in done if run.mining is not None]
    return replace(
        row,
        achieved=UNDEFINED if predictions_only(done) else _achieved(done),
        metrics={name: mean_interval([run.metrics.get(name) for run in done]) for name in names},
        ranks=ranks,
        cost=None if predictions_only(done) else _row_cost(done),
        mining_precision=mean_interval([found.precision for found in mining]) if mining else None,
        mining_recall=mean_interval([found.recall for found in mining]) if mining else None,
        groups=_group_means(done),
        mixed=_mixed(done),
    )


def predictions_only(runs: Sequence[RunRecord]) -> bool:
    """Whether any of these runs was handed in as predictions: of its network nothing is known, no zero and no cost."""
    return any(run.notes.get(PREDICTIONS_NOTE) for run in runs)


def _is_timed(run: RunRecord) -> bool:
    return run.status == "ok" and not predictions_only([run])


def _achieved(runs: Sequence[RunRecord]) -> Interval:
    return mean_interval([run.sparsity.achieved for run in runs if run.sparsity is not None])


def _mixed(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """What runs of one row differ in besides their seeds, in words; empty where they were made alike."""
    found = []
    for name, words in (("torch", "torch {}"), ("cpu", "{}"), ("gpu", "{}")):
        values = sorted({str(run.environment.get(name)) for run in runs})
        if len(values) > 1:
            found.append(words.format(" and ".join(values)))
    if len({bool(run.code.get("dirty")) for run in runs}) > 1:
        found.append("code with and without uncommitted changes")
    return tuple(found)


def _row_cost(runs: Sequence[RunRecord]) -> RowCost:
    costs = [run.cost for run in runs if run.cost is not None]
    by_machine: dict[TimingSetup, list[CostReport]] = {}
    for run, cost in zip(runs, costs, strict=True):
        by_machine.setdefault(machine_of(run), []).append(cost)

    def mean(of: Callable[[CostReport], float]) -> float:
        return math.fsum(map(of, costs)) / len(costs)

    return RowCost(
        parameters=mean(lambda cost: cost.parameters),
        nonzero_parameters=mean(lambda cost: cost.nonzero_parameters),
        macs=mean(lambda cost: cost.macs),
        nonzero_macs=mean(lambda cost: cost.nonzero_macs),
        training=mean(lambda cost: cost.training_steps / (cost.dense_training_steps or math.nan)),
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
    facts = (record.cost.timed_on if record.cost is not None else {}) or record.environment
    processor = facts.get("gpu") or facts.get("cpu") or "unknown processor"
    if facts.get("gpu"):
        processor = f"{processor} with {facts.get('cpu') or 'unknown processor'}"
    threads = facts.get("threads")
    batch = record.cost.latency_batch if record.cost is not None else 0
    path = (record.cost.latency_path if record.cost is not None else None) or PLAIN_PATH
    how = PLAIN_PATH if path.startswith(PLAIN_PATH) else "sparse inference"
    return TimingSetup(str(facts.get("device")), str(processor), int(float(threads or 0)), batch, how)


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


# What a reader must know


def _problems(runs: Sequence[RunRecord], rows: Sequence[MethodRow]) -> list[str]:
    """What is missing from the track's grid of methods, sparsities and seeds, and why; in order of rows."""
    labels = variant_labels(runs)
    lines = []
    for row in rows:
        own = [r for r in runs if (labels[variant_of(r)], r.spec["sparsity"]) == (row.method, row.sparsity)]
        causes: dict[str, list[int]] = {}
        for run in sorted((r for r in own if r.status != "ok"), key=lambda r: r.spec["seed"]):
            reason = " ".join((run.reason or "no reason recorded").split())
            reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."
            causes.setdefault(f"{run.status}: {reason}", []).append(run.spec["seed"])
        absent = sorted(set(row.planned) - {run.spec["seed"] for run in own})
        if absent:
            causes["no record"] = absent
        where = at_sparsity(row.method, row.sparsity, dense=row.dense)
        lines += [f"{where}, {listed('seed', seeds)}: {cause}" for cause, seeds in causes.items()]
    pruned = [row for row in rows if not row.dense and row.sparsity]
    asked = sorted({row.sparsity for row in pruned if row.sparsity is not None})
    for method in sorted({row.method for row in pruned}):
        present = {row.sparsity for row in pruned if row.method == method}
        missing = [sparsity(value) for value in asked if value not in present]
        if missing:
            lines.append(f"{method}: no record at sparsity {', '.join(missing)}")
    return lines


def _notes(runs: Sequence[RunRecord]) -> list[str]:
    """What a reader must know before comparing the rows of a track."""
    done = [run for run in runs if run.status == "ok"]
    notes = []
    precisions = sorted({str(run.environment.get("precision")) for run in done})
    if len(precisions) > 1:
        notes.append(f"Networks were trained in different precisions: {', '.join(precisions)}.")
    if len({machine_of(run) for run in done if _is_timed(run)}) > 1:
        notes.append(
            "Latencies come from different machines or kinds of inference: they stand in rows of their own."
        )
    for seed in sorted({run.spec["seed"] for run in done}):
        hashes = {run.splits_hash for run in done if run.spec["seed"] == seed and run.splits_hash}
        if len(hashes) > 1:
            notes.append(f"Runs of seed {seed} saw different splits: their differences are not paired.")
    return notes


def _mixed_rows(rows: Sequence[MethodRow]) -> list[str]:
    """Which means join runs that were made differently, and in what."""
    return [
        f"† {at_sparsity(row.method, row.sparsity, dense=row.dense)} joins runs of {'; '.join(row.mixed)} in one mean."
        for row in rows
        if row.mixed
    ]


def _extra_seeds(runs: Sequence[RunRecord], planned: Sequence[int]) -> list[str]:
    """What was run beyond the track's seeds, which stands in no mean."""
    labels = variant_labels(runs)
    extra: dict[str, set[int]] = {}
    for run in runs:
        if run.spec["seed"] not in planned and not is_dense(run):
            extra.setdefault(labels[variant_of(run)], set()).add(run.spec["seed"])
    return [
        f"{method} was also run with {listed('seed', sorted(seeds))}, which most rows lack: in no mean here."
        for method, seeds in sorted(extra.items())
    ]


def _method_facts(record: RunRecord) -> tuple[str, str, str]:
    facts = record.method
    return facts.get("name", record.spec["method"]), facts.get("supervision", ""), facts.get("cite", "")


def _describe_environment(record: RunRecord) -> str:
    facts = record.environment
    versions = [f"{name} {facts[name]}" for name in ("python", "torch", "cuda", "driver") if facts.get(name)]
    return ", ".join([machine_of(record).name, *versions, f"precision {facts.get('precision')}"])


def _describe_code(record: RunRecord) -> str:
    code = record.code
    commit = str(code["commit"])[:12] if code.get("commit") else "unknown commit"
    changed = " with uncommitted changes" if code.get("dirty") else ""
    return f"{commit}{changed} (version {code.get('version') or 'unknown'})"


def _counted(descriptions: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(descriptions).items()))
