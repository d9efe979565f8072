"""The listings of `prunebench ls`: tasks, methods, suites and runs, filtered, as tables or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.cli.console import Field, console, errors, print_fitting, sparsity_text
from prunebench.errors import DataError, UsageError, unknown

if TYPE_CHECKING:
    from prunebench.results.record import RunRecord

KINDS = {
    "tasks": "data sets, and what they need (with --groups: their groups)",
    "methods": "pruning methods, their supervision, source and settings",
    "suites": "what `prunebench run` takes",
    "runs": "finished and failed runs of a results folder",
}


@dataclass(frozen=True)
class ListedRows:
    """Rows of a listing: what a table shows, in the columns of `fields`, and what JSON holds."""

    fields: tuple[Field, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[dict[str, Any], ...]

    def matching(self, words: Sequence[str]) -> ListedRows:
        """Rows in which every word is part of a value; a number must be a value."""
        kept = [
            place for place, values in enumerate(self.values) if all(_holds(values, word) for word in words)
        ]
        return ListedRows(
            self.fields,
            tuple(self.rows[place] for place in kept),
            tuple(self.values[place] for place in kept),
        )


def _holds(values: dict[str, Any], word: str) -> bool:
    try:
        number = float(word)
    except ValueError:
        return any(word.lower() in text.lower() for text in _texts(values))
    return any(isinstance(value, int | float) and value == number for value in _flat(values)) or any(
        text == word or word in re.split(r"[^\w.]+", text) for text in _texts(values)
    )


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [entry for part in value for entry in _flat(part)]
    return [value]


def _texts(values: dict[str, Any]) -> list[str]:
    return [value for value in _flat(values) if isinstance(value, str)]


def list_kind(
    what: str | None,
    words: Sequence[str],
    results: Path | None,
    data_root: Path | None,
    *,
    as_json: bool = False,
    groups: bool = False,
) -> None:
    """Print a listing. Raises UsageError for an unknown one, or where nothing fits the words."""
    if what is None:
        for kind, described in KINDS.items():
            console.print(f"prunebench ls {kind:<8} {described}", soft_wrap=True)
        return
    if what not in KINDS:
        raise unknown("listing", what, KINDS)
    makers = {"tasks": task_listing, "methods": method_listing, "suites": suite_listing}
    every = run_listing(results) if what == "runs" else makers[what]()
    chosen = every.matching(words)
    if words and not chosen.rows:
        raise UsageError(f"none of {len(every.rows)} {what} fits {' '.join(words)!r}: leave out a word")
    if as_json:
        console.file.write(json.dumps(chosen.values, indent=1, default=str) + "\n")
        return
    print_fitting(chosen.fields, chosen.rows)
    if what == "tasks" and groups:
        for values in chosen.values:
            for name in values["names"]:
                _print_groups_if_at_hand(name, data_root)
    if what == "tasks" and not groups:
        console.print("groups: prunebench ls tasks NAME --groups", style="dim", soft_wrap=True)


# Tasks


def task_listing() -> ListedRows:
    """A row a family: variants that differ in a share alone are folded into one."""
    from prunebench.tasks import resolve_task
    from prunebench.tasks.registry import FAMILIES

    fields = (
        Field("task", whole=False, least=39), Field("predicts / bias", drop=2, whole=False), Field("model", drop=3),
        Field("steps", drop=4, right=True), Field("source", drop=5, whole=False),
    )  # fmt: skip
    rows, values = [], []
    for family in FAMILIES:
        for name, members in folded(family.examples).items():
            task = resolve_task(members[0])
            recipe = task.recipe
            what = f"{task.num_classes} classes / {task.bias_name} ({task.num_biases})"
            if task.attributes is not None:
                what = f"{len(task.attributes)} attributes / {task.attributes.target} by {task.bias_name}"
            steps = f"{recipe.steps} + {recipe.finetune_steps}"
            rows.append((name, what, task.model, steps, task.source))
            values.append(
                {
                    "task": name, "names": list(members), "title": task.title, "predicts": what, "model": task.model,
                    "steps": recipe.steps, "finetune_steps": recipe.finetune_steps, "optimizer": recipe.optimizer,
                    "lr": recipe.lr, "batch_size": recipe.batch_size, "version": task.version, "source": task.source,
                }
            )  # fmt: skip
        if family.pattern:
            what = OWN_FOLDERS.get(family.name, "your own folder")
            rows.append((family.pattern, what, "by image size", "", "your own copy"))
            values.append({"task": family.pattern, "names": [], "predicts": what, "source": "your own copy"})
    return ListedRows(fields, tuple(rows), tuple(values))


OWN_FOLDERS = {
    "disent": "from file names: a DisEnt release folder",
    "csv": "columns of a table: images and a table, as WILDS and SubpopBench",
    "fairface": "gender / race: a FairFace folder",
    "utkface": "gender / race: a UTKFace folder",
}


def folded(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Names by how they are shown: `a@{0.5,1}pct` for those that differ in their share alone."""
    shares: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found = re.fullmatch(r"(.+@)([\d.]+)(pct)", name)
        key = (found[1], found[3]) if found else (name, "")
        shares.setdefault(key, []).append(name)
    shown = {}
    for (head, tail), members in shares.items():
        inner = ",".join(name[len(head) : len(name) - len(tail)] for name in members)
        shown[f"{head}{{{inner}}}{tail}" if len(members) > 1 else members[0]] = tuple(members)
    return shown


def _print_groups_if_at_hand(name: str, data_root: Path | None) -> None:
    from prunebench.cli.groups import print_groups

    try:
        print_groups(name, data_root, every_attribute=True)
    except DataError as error:
        errors.print(f"{name}: {error}", style="yellow", soft_wrap=True)


# Methods and suites


def method_listing() -> ListedRows:
    """Every method with its supervision, settings and source."""
    from prunebench.methods.discovery import builtin_methods

    fields = (
        Field("method"), Field("supervision", drop=1), Field("source", drop=2, whole=False),
        Field("settings", drop=3, whole=False),
    )  # fmt: skip
    rows, values = [], []
    for name, method in sorted(builtin_methods().items()):
        settings = ", ".join(f"{key}={value}" for key, value in method.params.items())
        rows.append((name, method.supervision, method.cite, settings))
        values.append(
            {
                "method": name, "version": method.version, "supervision": method.supervision, "source": method.cite,
                "settings": dict(method.params),
            }
        )  # fmt: skip
    return ListedRows(fields, tuple(rows), tuple(values))


def suite_listing() -> ListedRows:
    """The packaged suites."""
    from prunebench.suites import load_suite, suite_names

    fields = (
        Field("suite"), Field("what for", whole=False, least=40), Field("tasks", drop=2, whole=False),
        Field("methods", drop=3, right=True), Field("sparsities", drop=4, whole=False),
        Field("seeds", drop=3, right=True),
    )  # fmt: skip
    rows, values = [], []
    for name in suite_names():
        suite = load_suite(name)
        sparsities = " ".join(f"{value:g}" for value in suite.sparsities)
        rows.append(
            (
                name,
                suite.description,
                _few(folded(suite.tasks), "tasks"),
                str(len(suite.methods)),
                sparsities,
                str(len(suite.seeds)),
            )
        )
        values.append(
            {
                "suite": name, "description": suite.description, "tasks": list(suite.tasks),
                "methods": list(suite.methods), "sparsities": list(suite.sparsities), "seeds": list(suite.seeds),
            }
        )  # fmt: skip
    return ListedRows(fields, tuple(rows), tuple(values))


def _few(names: Iterable[str], noun: str) -> str:
    """Two names, or how many there are."""
    found = list(names)
    return ", ".join(found) if len(found) <= 2 else f"{len(found)} {noun}"


# Runs


def run_listing(results: Path | None) -> ListedRows:
    """The runs of a results folder by task, method, sparsity and seed; what cannot be read is said beside."""
    from prunebench.results.store import open_results

    folder = results or default_results()
    records, damaged = open_results(folder).records()
    for entry in damaged:
        errors.print(f"damaged: {entry.reason}", style="red", soft_wrap=True)
    fields = (
        Field("run", drop=2), Field("task", drop=4), Field("method"), Field("sparsity", right=True),
        Field("seed", right=True), Field("unbiased", right=True), Field("conflicting", drop=3, right=True),
    )  # fmt: skip
    rows, values = [], []
    for record in sorted(records, key=_run_order):
        spec = record.run_spec
        accuracies = {name: record.metrics.get(name) for name in ("unbiased", "conflicting")}
        missing = "-" if record.status == "ok" else record.status
        shown = (missing if value is None else f"{value:.1%}" for value in accuracies.values())
        place = record.run_id, spec.task, spec.method, sparsity_text(spec.sparsity), str(spec.seed)
        rows.append((*place, *shown))
        values.append(
            {
                "run": record.run_id, "task": spec.task, "method": spec.method, "sparsity": spec.sparsity,
                "seed": spec.seed, "status": record.status, "reason": record.reason, "metrics": record.metrics,
            }
        )  # fmt: skip
    return ListedRows(fields, tuple(rows), tuple(values))


def _run_order(record: RunRecord) -> tuple[str, bool, str, float, int]:
    spec = record.run_spec
    return spec.task, spec.method != "dense", spec.method, spec.sparsity or 0.0, spec.seed


COMMITTED = Path("leaderboard/results")


def default_results() -> Path:
    """The committed results of a checkout; elsewhere the one folder that `run` wrote below `results`.

    Raises UsageError that names the folders to choose from.
    """
    if COMMITTED.is_dir():
        return COMMITTED
    found = sorted(path.parent for path in Path("results").glob("*/runs"))
    if len(found) == 1:
        return found[0]
    here = (
        f"choose one of {', '.join(map(str, found))}"
        if found
        else "`prunebench run quick` makes results/quick"
    )
    raise UsageError(f"which results? Give --results FOLDER: {here}")
