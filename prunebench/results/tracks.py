"""Tracks: records that may be compared, the rows that they form, and the seeds that were planned of them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.results.record import RunRecord, to_json

REFERENCE = "dense-finetuned"
"""The unpruned network with the steps of a pruned one: what every row is compared with, and never another."""
Variant = tuple[str, str, str]
"""Name, version and settings (JSON) of a method."""
Place = tuple[float | None, str]
"""Sparsity asked for (None: the method chose it), and the label of a variant."""
Rows = dict[Place, list[RunRecord]]
"""The records of each row of a track."""


@dataclass(frozen=True)
class SeedPlan:
    """The seeds that a suite of the board plans of a task; of one model and recipe where it names them."""

    task: str
    seeds: tuple[int, ...]
    model: str | None = None
    recipe: tuple[tuple[str, Any], ...] = ()

    def fits(self, spec: Mapping[str, Any]) -> bool:
        """Whether a run belongs to this plan."""
        same_model = self.model in (None, spec["model"])
        recipe = spec["recipe"]
        return spec["task"] == self.task and same_model and all(recipe.get(k) == v for k, v in self.recipe)


def split_tracks(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records that may be compared, by the track's slug: one task version, data, model and recipe; none twice."""
    by_track: dict[tuple[str, int, str, str, str], list[RunRecord]] = {}
    for record in _without_duplicates(records):
        by_track.setdefault(_track_order(record), []).append(record)
    groups = sorted(by_track.values(), key=lambda runs: _track_order(runs[0]))
    return dict(zip(_unique_slugs([runs[0].spec["task"] for runs in groups]), groups, strict=True))


def _without_duplicates(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record a run: an ok one before others, then the latest. Sorted by run."""
    by_run: dict[str, list[RunRecord]] = {}
    for record in records:
        by_run.setdefault(record.run_id, []).append(record)

    def merit(record: RunRecord) -> tuple[bool, str, str]:
        return record.status == "ok", record.started_utc, to_json(record)

    return [found[0] if len(found) == 1 else max(found, key=merit) for _, found in sorted(by_run.items())]


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
    recipe = spec["recipe"]
    words = _recipe_words(tuple(recipe), *recipe.values())
    return spec["task"], spec["task_version"], spec["data_fingerprint"], spec["model"], words


@functools.lru_cache(maxsize=1024, typed=True)
def _recipe_words(names: tuple[str, ...], *values: Any) -> str:
    return repr(sorted(zip(names, values, strict=True)))


LONGEST_SLUG = 80
"""Letters of a name in the name of a file."""


def _unique_slugs(names: Sequence[str]) -> list[str]:
    slugs: list[str] = []
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower())[:LONGEST_SLUG].strip("-") or "task"
        slug, count = base, 1
        while slug in slugs:
            count += 1
            slug = f"{base}-{count}"
        slugs.append(slug)
    return slugs


def is_dense(record: RunRecord) -> bool:
    """Whether a run is the unpruned baseline."""
    return record.spec["method"] == "dense"


def is_reference_of(record: RunRecord, method: str) -> bool:
    """Whether a run is of what a method's runs are compared with: dense, or dense with a pruned network's steps."""
    return record.spec["method"] in {"dense", REFERENCE} - {method}


def is_ranked(record: RunRecord) -> bool:
    """Whether a run's method is to be ranked: not the dense model, and none that says otherwise of itself."""
    return not is_dense(record) and record.method.get("ranked") != "no"


def variant_of(record: RunRecord) -> Variant:
    """What makes two runs the same method: name, version and settings."""
    spec = record.spec
    params = spec["params"]
    return spec["method"], spec["method_version"], json.dumps(params, sort_keys=True) if params else "{}"


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


def is_unpruned(record: RunRecord) -> bool:
    """Whether a run keeps every weight: the dense model and the unpruned references."""
    return is_dense(record) or record.spec["sparsity"] == 0


def rows_of_track(runs: Sequence[RunRecord]) -> Rows:
    """The records of each row, in order of the seed."""
    labels = variant_labels(runs)
    rows: Rows = {}
    for run in sorted(runs, key=lambda run: run.spec["seed"]):
        rows.setdefault((run.spec["sparsity"], labels[variant_of(run)]), []).append(run)
    return rows


def finished_runs(runs: Iterable[RunRecord]) -> dict[int, RunRecord]:
    """The finished runs by seed, in order."""
    done = {run.spec["seed"]: run for run in runs if run.status == "ok"}
    return {seed: done[seed] for seed in sorted(done)}


def seed_plan(runs: Sequence[RunRecord], plans: Sequence[SeedPlan]) -> tuple[int, ...]:
    """The seeds that are planned of a track; none where no plan fits.

    Of several plans the one that says most of model and recipe counts, then that with most seeds.
    """
    fitting = [plan for plan in plans if plan.fits(runs[0].spec)]
    if not fitting:
        return ()
    best = max(
        fitting, key=lambda plan: (plan.model is not None, len(plan.recipe), len(plan.seeds), plan.seeds)
    )
    return tuple(sorted(best.seeds))


def planned_seeds(runs: Sequence[RunRecord], plans: Sequence[SeedPlan] = ()) -> tuple[int, ...]:
    """The seeds of a track: those of its plan, else those that at least half of its rows have a record of.

    A plan counts where any record has a seed of it: results of other seeds alone are still shown, by the second rule.
    One method that was run with a seed more leaves no other row without all its seeds.
    """
    wanted = seed_plan(runs, plans)
    if any(run.spec["seed"] in wanted for run in runs):
        return wanted
    rows: dict[tuple[Variant, float | None], set[int]] = {}
    for run in runs:
        if not is_dense(run):
            rows.setdefault((variant_of(run), run.spec["sparsity"]), set()).add(run.spec["seed"])
    every = {run.spec["seed"] for run in runs}
    planned = {seed for seed in every if 2 * sum(seed in seeds for seeds in rows.values()) >= len(rows)}
    return tuple(sorted(planned or every))
