"""What `prunebench ls` and `prunebench show` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from prunebench.console import console, errors, print_groups, run_table, sparsity_text
from prunebench.errors import UsageError

if TYPE_CHECKING:
    from prunebench.tasks import Task


def list_tasks(data_root: Path | None) -> None:
    """Every task with its model and budget, and its group table where the data are at hand."""
    from prunebench.errors import DataError
    from prunebench.tasks import describe_families, resolve_task

    table = Table(Column("task", no_wrap=True))
    for heading in ("label / bias", "model", "steps + fine-tuning", "batch", "source"):
        table.add_column(heading)
    names = describe_families()
    for name in names:
        task = resolve_task(name)
        recipe = task.recipe
        table.add_row(
            task.name,
            _what_is_predicted(task),
            task.model,
            f"{recipe.steps} + {recipe.finetune_steps} ({recipe.optimizer}, lr {recipe.lr:g})",
            str(recipe.batch_size),
            task.source,
        )
    table.add_row(
        "disent:PATH", "from file names", "by image size", "by image size", "", "a DisEnt release folder"
    )
    console.print(table)
    for name in names:
        try:
            print_groups(name, data_root, every_attribute=True)
        except DataError as error:
            console.print(f"{name}: {error}")


def _what_is_predicted(task: Task) -> str:
    what = f"{task.num_classes} classes"
    if task.attributes is not None:
        what = f"{len(task.attributes)} attributes, groups by {task.attributes.target}"
    return f"{what} / {task.num_biases} {task.bias_name}s"


def list_methods() -> None:
    """Every method with its supervision and source."""
    from prunebench.methods.catalog import builtin_methods

    table = Table("method", "supervision", "settings", "source")
    for name, method in sorted(builtin_methods().items()):
        settings = ", ".join(f"{key}={value}" for key, value in method.params.items())
        table.add_row(name, method.supervision, settings, method.cite)
    console.print(table)


def list_suites() -> None:
    """The packaged suites."""
    from prunebench.suite import load_suite, suite_names

    table = Table("suite", "tasks", "methods", "sparsities", "seeds", "what for")
    for name in suite_names():
        suite = load_suite(name)
        table.add_row(
            name,
            ", ".join(suite.tasks),
            str(len(suite.methods)),
            " ".join(f"{value:g}" for value in suite.sparsities),
            str(len(suite.seeds)),
            suite.description,
        )
    console.print(table)


def list_runs(results: Path) -> None:
    """The runs of a results folder, and what could not be read."""
    from prunebench.store import open_results

    records, damaged = open_results(results).records()
    table = run_table("task", "method", "sparsity", "seed", "status", "unbiased", "conflicting")
    for record in records:
        spec = record.run_spec
        accuracies = [record.metrics.get(name) for name in ("unbiased", "conflicting")]
        table.add_row(
            record.run_id,
            spec.task,
            spec.method,
            sparsity_text(spec.sparsity),
            str(spec.seed),
            record.status,
            *("-" if value is None else f"{value:.1%}" for value in accuracies),
        )
    console.print(table)
    for entry in damaged:
        errors.print(f"damaged: {entry.reason}", style="red", soft_wrap=True)


def show_run(run_id: str, results: Path) -> None:
    """One run: the record without its group list, then the groups as a table, then the traceback."""
    import dataclasses
    import json

    from prunebench.store import open_results

    records, _ = open_results(results).records()
    matches = [record for record in records if record.run_id.startswith(run_id)]
    if len(matches) != 1:
        some = ", ".join(record.run_id for record in matches[:5])
        found = f"{len(matches)} runs begin with it: {some}" if matches else "see `prunebench ls runs`"
        raise UsageError(f"no single run {run_id!r} in {results}: {found}")
    record = matches[0]
    values = dataclasses.asdict(record)
    groups, trace = values.pop("groups"), values.pop("traceback")
    console.print_json(json.dumps(values))
    if groups:
        biases = sorted({row["bias"] for row in groups})
        table = Table(
            "label", *(f"bias {bias}" for bias in biases), title="test accuracy by group (correct / all)"
        )
        for label in sorted({row["label"] for row in groups}):
            cells = {
                row["bias"]: f"{row['correct']}/{row['count']}" for row in groups if row["label"] == label
            }
            table.add_row(str(label), *(cells.get(bias, "") for bias in biases))
        console.print(table)
    if trace:
        console.print(trace)
