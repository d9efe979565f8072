"""The board: everything that tables, figures and the site show, as plain values."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.leaderboard.rows import (
    Machine,
    Row,
    build_rows,
    is_dense,
    machine_of,
    variant_labels,
    variant_of,
)
from prunebench.results.record import RunRecord, to_json

REASON_LENGTH = 300


@dataclass(frozen=True)
class Section:
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
    machines: tuple[Machine, ...]
    rows: tuple[Row, ...]
    aligned: tuple[tuple[bool, ...], ...]
    """Whether a group is bias-aligned, by label and bias."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def dense(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.dense)

    @property
    def pruned(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.dense and row.sparsity is not None)

    @property
    def native(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.dense and row.sparsity is None)

    @property
    def finished(self) -> bool:
        """Whether any row has means."""
        return any(row.complete for row in self.rows)

    @property
    def sparsities(self) -> tuple[float, ...]:
        return tuple(sorted({row.sparsity for row in self.pruned if row.sparsity is not None}))


@dataclass(frozen=True)
class Board:
    """All sections and what they rest on. `environments` and `commits` come with their number of runs."""

    sections: tuple[Section, ...]
    runs: int
    ok: int
    duplicates: int
    seeds: tuple[int, ...]
    methods: tuple[tuple[str, str, str], ...]
    """Name, supervision, source."""
    environments: tuple[tuple[str, int], ...]
    commits: tuple[tuple[str, int], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The pruned methods of all sections, each once, by name."""
        return tuple(
            sorted({row.method for section in self.sections for row in section.rows if not row.dense})
        )


def build_board(records: Iterable[RunRecord]) -> Board:
    """The board of these records, whatever their order."""
    given = list(records)
    by_section = split_sections(given)
    groups = list(by_section.values())
    kept = sorted((run for runs in groups for run in runs), key=lambda run: run.run_id)
    finished = [record for record in kept if record.status == "ok"]
    return Board(
        sections=tuple(_section(runs, slug, groups) for slug, runs in by_section.items()),
        runs=len(kept),
        ok=len(finished),
        duplicates=len(given) - len(kept),
        seeds=tuple(sorted({record.spec["seed"] for record in kept})),
        methods=tuple(sorted({_method_facts(record) for record in kept})),
        environments=_counted(_describe_environment(record) for record in finished),
        commits=_counted(_describe_code(record) for record in finished),
    )


def split_sections(records: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records that may be compared, by the section's slug: one task version, data, model and recipe; none twice."""
    by_section: dict[str, list[RunRecord]] = {}
    for record in _without_duplicates(records):
        by_section.setdefault(json.dumps(_identity(record), sort_keys=True), []).append(record)
    groups = sorted(by_section.values(), key=lambda runs: _section_order(runs[0]))
    return dict(zip(_unique_slugs([runs[0].spec["task"] for runs in groups]), groups, strict=True))


def _without_duplicates(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One record a run: an ok one before others, then the latest. Sorted by run."""
    best: dict[str, tuple[bool, str, str]] = {}
    chosen: dict[str, RunRecord] = {}
    for record in records:
        merit = (record.status == "ok", record.started_utc, to_json(record))
        if record.run_id not in best or merit > best[record.run_id]:
            best[record.run_id], chosen[record.run_id] = merit, record
    return [chosen[run_id] for run_id in sorted(chosen)]


def _identity(record: RunRecord) -> dict[str, Any]:
    """What must agree for two runs to be compared, flat; what says most to a reader first."""
    spec = record.spec
    recipe = sorted(
        spec["recipe"].items(), key=lambda item: (item[0] != "steps", item[0] != "finetune_steps", item)
    )
    values = {name: spec[name] for name in ("task", "task_version", "model")}
    return values | {f"recipe.{name}": value for name, value in recipe} | {"data": spec["data_fingerprint"]}


def _section_order(record: RunRecord) -> tuple[str, int, str, str, str]:
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


def _section(runs: Sequence[RunRecord], slug: str, groups: Sequence[Sequence[RunRecord]]) -> Section:
    spec = runs[0].spec
    every, seeds = runs, planned_seeds(runs)
    runs = [run for run in every if run.spec["seed"] in seeds]
    rows = tuple(build_rows(runs, seeds))
    differs = _difference(runs[0], groups)
    machines = tuple(sorted({machine_of(run) for run in every if run.status == "ok"}))
    return Section(
        slug=slug,
        title=spec["task"] if not differs else f"{spec['task']} ({_shortest(runs[0], groups)})",
        differs=", ".join(differs) or None,
        task=spec["task"],
        task_version=spec["task_version"],
        data_fingerprint=spec["data_fingerprint"],
        model=spec["model"],
        recipe=tuple(sorted(spec["recipe"].items())),
        seeds=seeds,
        machines=machines,
        rows=rows,
        aligned=_aligned(runs),
        problems=tuple(_problems(runs, rows)),
        notes=(*_notes(runs), *_extra_seeds(every, seeds)),
    )


def planned_seeds(runs: Sequence[RunRecord]) -> tuple[int, ...]:
    """The seeds of a section: those that at least half of its rows have a record of, finished or not.

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


def _extra_seeds(runs: Sequence[RunRecord], planned: Sequence[int]) -> list[str]:
    """What was run beyond the section's seeds, which stands in no mean."""
    labels = variant_labels(runs)
    extra: dict[str, set[int]] = {}
    for run in runs:
        if run.spec["seed"] not in planned and not is_dense(run):
            extra.setdefault(labels[variant_of(run)], set()).add(run.spec["seed"])
    return [
        f"{method} was also run with {_seeds(sorted(seeds))}, which most rows lack: in no mean here."
        for method, seeds in sorted(extra.items())
    ]


def _aligned(runs: Sequence[RunRecord]) -> tuple[tuple[bool, ...], ...]:
    pairs = {(group.label, group.bias): group.aligned for run in runs for group in run.groups}
    labels, biases = (1 + max((pair[axis] for pair in pairs), default=-1) for axis in (0, 1))
    return tuple(tuple(pairs.get((label, bias), False) for bias in range(biases)) for label in range(labels))


def _difference(record: RunRecord, groups: Sequence[Sequence[RunRecord]]) -> tuple[str, ...]:
    """What sets a section apart from others of its task, as `name value`; empty if it is the only one."""
    own = _identity(record)
    siblings = [_identity(runs[0]) for runs in groups if runs[0].spec["task"] == record.spec["task"]]
    return tuple(
        f"{name.removeprefix('recipe.').replace('_', ' ')} {value}"
        for name, value in own.items()
        if any(other.get(name) != value for other in siblings)
    )


def _shortest(record: RunRecord, groups: Sequence[Sequence[RunRecord]]) -> str:
    """As few of the differences as no other section of the task shares."""
    own = _difference(record, groups)
    siblings = [runs[0] for runs in groups if runs[0].spec["task"] == record.spec["task"]]
    others = [_difference(sibling, groups) for sibling in siblings if sibling is not record]
    length = next(size for size in range(1, len(own) + 1) if all(o[:size] != own[:size] for o in others))
    return ", ".join(own[:length])


def _problems(runs: Sequence[RunRecord], rows: Sequence[Row]) -> list[str]:
    """What is missing from the section's grid of methods, sparsities and seeds, and why; in order of rows."""
    labels = variant_labels(runs)
    lines = []
    for row in rows:
        cell = [r for r in runs if (labels[variant_of(r)], r.spec["sparsity"]) == (row.method, row.sparsity)]
        causes: dict[str, list[int]] = {}
        for run in sorted((r for r in cell if r.status != "ok"), key=lambda r: r.spec["seed"]):
            cause = f"{run.status}: {_one_line(run.reason or 'no reason recorded')}"
            causes.setdefault(cause, []).append(run.spec["seed"])
        absent = sorted(set(row.planned) - {run.spec["seed"] for run in cell})
        if absent:
            causes["no record"] = absent
        lines += [f"{_where(row)}, {_seeds(seeds)}: {cause}" for cause, seeds in causes.items()]
    pruned = [row for row in rows if not row.dense and row.sparsity is not None]
    sparsities = sorted({row.sparsity for row in pruned if row.sparsity is not None})
    for method in sorted({row.method for row in pruned}):
        present = {row.sparsity for row in pruned if row.method == method}
        absent_at = [f"{sparsity:g}" for sparsity in sparsities if sparsity not in present]
        if absent_at:
            lines.append(f"{method}: no record at sparsity {', '.join(absent_at)}")
    return lines


def _where(row: Row) -> str:
    if row.dense:
        return row.method
    return f"{row.method} at {'native sparsity' if row.sparsity is None else f'sparsity {row.sparsity:g}'}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= REASON_LENGTH else words[:REASON_LENGTH] + "..."


def _notes(runs: Sequence[RunRecord]) -> list[str]:
    """What a reader must know before comparing the rows of a section."""
    done = [run for run in runs if run.status == "ok"]
    notes = []
    precisions = sorted({str(run.environment.get("precision")) for run in done})
    if len(precisions) > 1:
        notes.append(f"Networks were trained in different precisions: {', '.join(precisions)}.")
    if len({machine_of(run) for run in done}) > 1:
        notes.append(
            "Latencies come from different machines or kinds of inference: they stand in rows of their own."
        )
    for seed in sorted({run.spec["seed"] for run in done}):
        draws = {run.splits_hash for run in done if run.spec["seed"] == seed and run.splits_hash}
        if len(draws) > 1:
            notes.append(f"Runs of seed {seed} saw different splits: their differences are not paired.")
    return notes


def _method_facts(record: RunRecord) -> tuple[str, str, str]:
    facts = record.method
    return facts.get("name", record.spec["method"]), facts.get("supervision", ""), facts.get("cite", "")


def _describe_environment(record: RunRecord) -> str:
    facts = record.environment
    versions = [f"{name} {facts[name]}" for name in ("python", "torch", "cuda", "driver") if facts.get(name)]
    parts = [machine_of(record).name, *versions, f"precision {facts.get('precision')}"]
    return ", ".join(parts)


def _describe_code(record: RunRecord) -> str:
    code = record.code
    commit = str(code["commit"])[:12] if code.get("commit") else "unknown commit"
    changed = " with uncommitted changes" if code.get("dirty") else ""
    return f"{commit}{changed} (version {code.get('version') or 'unknown'})"


def _counted(descriptions: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(descriptions).items()))
