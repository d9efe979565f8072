"""The runs that `prunebench compare` sets side by side: two names become pairs of records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.errors import UsageError, unknown
from prunebench.results.record import RunRecord
from prunebench.results.store import Store, open_results
from prunebench.results.tracks import REFERENCE


@dataclass(frozen=True)
class Pair:
    """Two runs of the same data, and the stores that hold them. `name` says which: `seed 3`."""

    name: str
    first: RunRecord
    second: RunRecord
    first_store: Store
    second_store: Store

    @property
    def seed(self) -> int:
        """The seed of the first run."""
        return self.first.run_spec.seed

    @property
    def paired(self) -> bool:
        """Whether both have that seed: two runs by id need not."""
        return self.seed == self.second.run_spec.seed


@dataclass(frozen=True)
class Side:
    """What one of the two names means: ok records, of one run or of a method; `single`: the name was a run's id."""

    name: str
    store: Store
    records: tuple[RunRecord, ...]
    single: bool

    def where(self, text: str) -> str:
        return f"{self.name} {text} in {self.store.root}"


def choose_pairs(
    names: tuple[str, str],
    stores: tuple[Store, Store],
    *,
    task: str | None = None,
    sparsity: float | None = None,
) -> tuple[tuple[str, str], list[Pair], list[str]]:
    """What the two sides are called, their runs pair by pair, and notes on what differs or is missing.

    A name is a method's, or the beginning of one run's id. Two runs make one pair; else runs of equal seeds do.
    Raises UsageError where a name fits nothing or leaves a choice, and where the data differ.
    """
    sides = [_find_side(name, store) for name, store in zip(names, stores)]
    first, second = (_at_sparsity(side, sparsity) for side in _of_one_task(sides, task))
    if first.single and second.single:
        seeds = [record.run_spec.seed for record in (first.records[0], second.records[0])]
        name = f"seed {seeds[0]}" if seeds[0] == seeds[1] else f"seeds {seeds[0]} and {seeds[1]}"
        pairs = [Pair(name, first.records[0], second.records[0], first.store, second.store)]
    else:
        pairs = _by_seed(first, second)
    for pair in pairs:
        _check_same_data(pair)
    notes = _what_differs(pairs) + _left_out(first, second, pairs)
    titles = _title(first), _title(second)
    if titles[0] == titles[1]:
        titles = f"{titles[0]} in {first.store.root}", f"{titles[1]} in {second.store.root}"
    return titles, pairs, notes


def _find_side(name: str, store: Store) -> Side:
    records = open_results(store.root).records()[0]
    of_method = tuple(record for record in records if record.run_spec.method == name)
    if of_method:
        done = tuple(record for record in of_method if record.status == "ok")
        if not done:
            raise UsageError(f"{name}: none of its {len(of_method)} runs in {store.root} has finished")
        return Side(name, store, done, single=False)
    matches = [record for record in records if name and record.run_id.startswith(name)]
    if not matches and name == REFERENCE:
        raise UsageError(
            f"{store.root} has no run of {REFERENCE}, which methods are compared with where no other is named: "
            "run it, or name what to compare with"
        )
    if not matches:
        raise unknown("method or run", name, {record.run_spec.method for record in records})
    if len(matches) > 1:
        some = ", ".join(record.run_id for record in matches[:5])
        raise UsageError(f"{name!r} begins {len(matches)} run ids in {store.root}: {some}; give more of it")
    if matches[0].status != "ok":
        raise UsageError(
            f"run {matches[0].run_id} has not finished: {matches[0].reason or matches[0].status}"
        )
    return Side(name, store, (matches[0],), single=True)


def _of_one_task(sides: Sequence[Side], task: str | None) -> list[Side]:
    """Both sides narrowed to the task (with version and data) that they share."""
    kinds = [dict.fromkeys(_data_of(record) for record in side.records) for side in sides]
    shared = sorted(kind for kind in kinds[0] if kind in kinds[1] and task in (None, kind[0]))
    if not shared:
        told = "; ".join(
            f"{side.name}: {', '.join(map(_data_text, kind))}" for side, kind in zip(sides, kinds)
        )
        wanted = "" if task is None else f" of {task}"
        raise UsageError(f"the two have no runs{wanted} on the same data: {told}")
    if len(shared) > 1:
        raise UsageError(
            f"both have runs on {', '.join(map(_data_text, shared))}: choose one with --task, or name runs"
        )
    return [
        Side(side.name, side.store, tuple(r for r in side.records if _data_of(r) == shared[0]), side.single)
        for side in sides
    ]


def _data_of(record: RunRecord) -> tuple[str, int, str]:
    spec = record.run_spec
    return spec.task, spec.task_version, spec.data_fingerprint


def _data_text(data: tuple[str, int, str]) -> str:
    return f"{data[0]} version {data[1]} (data {data[2]})"


def _at_sparsity(side: Side, sparsity: float | None) -> Side:
    """The side at one sparsity. Unpruned networks and methods that choose their own have but one."""
    levels = {record.run_spec.sparsity for record in side.records}
    if side.single or side.name == "dense" or levels in ({None}, {0.0}):
        return side
    if sparsity is None:
        if len(levels) == 1:
            return side
        known = ", ".join(f"{level:g}" for level in sorted(level for level in levels if level is not None))
        raise UsageError(f"{side.where('has runs')} at sparsities {known}: choose one with --sparsity")
    chosen = tuple(
        record
        for record in side.records
        if record.run_spec.sparsity is not None and math.isclose(record.run_spec.sparsity, sparsity)
    )
    if not chosen:
        known = ", ".join(f"{level:g}" for level in sorted(level for level in levels if level is not None))
        raise UsageError(f"{side.where('has no run')} at sparsity {sparsity:g}; it has {known}")
    return Side(side.name, side.store, chosen, side.single)


def _by_seed(first: Side, second: Side) -> list[Pair]:
    runs = [_one_a_seed(side) for side in (first, second)]
    seeds = sorted(runs[0].keys() & runs[1].keys())
    if not seeds:
        told = " and ".join(str(sorted(found)) for found in runs)
        raise UsageError(f"{first.name} and {second.name} share no seed: they have {told}")
    return [Pair(f"seed {seed}", runs[0][seed], runs[1][seed], first.store, second.store) for seed in seeds]


def _one_a_seed(side: Side) -> dict[int, RunRecord]:
    found: dict[int, RunRecord] = {}
    for record in side.records:
        seed = record.run_spec.seed
        if seed in found:
            both = f"{found[seed].run_id} and {record.run_id}"
            raise UsageError(
                f"{side.where('has several runs')} with seed {seed} (other settings, model or recipe): {both}; "
                "name the runs by their ids"
            )
        found[seed] = record
    return found


def _check_same_data(pair: Pair) -> None:
    one, other = pair.first, pair.second
    if one.run_id == other.run_id and pair.first_store.root == pair.second_store.root:
        raise UsageError(f"both are run {one.run_id}: name two runs")
    same_seed = one.run_spec.seed == other.run_spec.seed
    if (
        same_seed
        and None not in (one.splits_hash, other.splits_hash)
        and one.splits_hash != other.splits_hash
    ):
        raise UsageError(
            f"{pair.name}: runs {one.run_id} and {other.run_id} were made of different data splits"
        )


def _what_differs(pairs: Sequence[Pair]) -> list[str]:
    """What sets the sides apart besides method and sparsity, each once."""
    return list(dict.fromkeys(note for pair in pairs for note in _differences(pair)))


def _differences(pair: Pair) -> list[str]:
    notes = []
    first, second = pair.first.run_spec, pair.second.run_spec
    if first.method == second.method:
        settings = [{**dict(spec.params), "version": spec.method_version} for spec in (first, second)]
        notes += _told("settings", *settings)
    if first.model != second.model:
        notes.append(f"They differ in their model, too: {first.model} and {second.model}.")
    notes += _told("recipe", *(spec.to_dict()["recipe"] for spec in (first, second)))
    precisions = [record.environment.get("precision") for record in (pair.first, pair.second)]
    if precisions[0] != precisions[1]:
        notes.append(f"They were trained in different precisions: {precisions[0]} and {precisions[1]}.")
    return notes


def _told(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    fields = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    told = ", ".join(f"{name} {one.get(name)} and {other.get(name)}" for name in fields)
    return [f"They differ in their {what}, too: {told}."] if fields else []


def _left_out(first: Side, second: Side, pairs: Sequence[Pair]) -> list[str]:
    """Seeds that only one side has."""
    used = {record.run_id for pair in pairs for record in (pair.first, pair.second)}
    notes = []
    for side in (first, second):
        missing = sorted(record.run_spec.seed for record in side.records if record.run_id not in used)
        if missing:
            seeds = ", ".join(map(str, missing))
            notes.append(f"Left out, as the other side has no such run: {_title(side)} with seed {seeds}.")
    return notes


def _title(side: Side) -> str:
    spec = side.records[0].run_spec
    level = (
        ""
        if spec.method == "dense" or spec.sparsity == 0
        else " native"
        if spec.sparsity is None
        else f" {spec.sparsity:g}"
    )
    return f"run {side.records[0].run_id} ({spec.method}{level})" if side.single else f"{spec.method}{level}"
