"""The tables of `prunebench ls` and `prunebench show`, and of a task as loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from prunebench.cli.console import console, errors, run_table, sparsity_text
from prunebench.errors import UsageError

if TYPE_CHECKING:
    from prunebench.tasks import Splits, Task


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
    for pattern, what, source in (
        ("csv:PATH", "columns of the table", "images and a table, as WILDS and SubpopBench"),
        ("fairface:PATH", "gender / race", "a FairFace folder"),
        ("utkface:PATH", "gender / race", "a UTKFace folder"),
    ):
        table.add_row(pattern, what, "by image size", "by image size", "", source)
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
    from prunebench.methods.discovery import builtin_methods

    table = Table("method", "supervision", "settings", "source")
    for name, method in sorted(builtin_methods().items()):
        settings = ", ".join(f"{key}={value}" for key, value in method.params.items())
        table.add_row(name, method.supervision, settings, method.cite)
    console.print(table)


def list_suites() -> None:
    """The packaged suites."""
    from prunebench.suites import load_suite, suite_names

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
    from prunebench.results.store import open_results

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

    from prunebench.results.store import open_results

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


def print_groups(
    task_name: str, data_root: Path | None, seed: int = 0, *, every_attribute: bool = False
) -> None:
    """The groups of a task as loaded, and on demand the attributes of a multi-label one."""
    from prunebench.tasks import resolve_task

    task = resolve_task(task_name, data_root)
    for remark in task.remarks(data_root):
        errors.print(f"{task.name}: {remark}", style="yellow", soft_wrap=True)
    splits = task.splits(data_root, seed)
    for remark in balance_remarks(task, splits):
        errors.print(f"{task.name}: {remark}", style="yellow", soft_wrap=True)
    for table in task_tables(task, splits, every_attribute=every_attribute):
        console.print(table)


def balance_remarks(task: Task, splits: Splits) -> tuple[str, ...]:
    """Which groups no method that is given validation's bias labels can know: a sentence, or none."""
    import torch

    from prunebench.tasks.balanced import groups_of, missing_groups

    train, val, test = (groups_of(task, split) for split in (splits.train, splits.val, splits.test))
    missing = () if splits.val_balanced else missing_groups(task, torch.cat([train, test]), val)
    if not missing:
        return ()
    named = ", ".join(map(str, missing[:10])) + (" and more" if len(missing) > 10 else "")
    return (
        f"validation has no image of {len(missing)} groups (label, bias): {named}; balanced validation lacks them",
    )


def task_tables(task: Task, splits: Splits, *, every_attribute: bool = False) -> list[Table]:
    """The group table, and for a multi-label task on demand the attributes."""
    tables = [group_table(task, splits)]
    if every_attribute and task.attributes is not None:
        tables.append(attribute_table(task, splits))
    return tables


def group_table(task: Task, splits: Splits) -> Table:
    """Samples by split, aligned and conflicting, and the groups (label, bias) that have any."""
    title = f"{task.name}: {task.title}"
    if task.attributes is not None:
        title += f", groups of {task.attributes.target} by {task.bias_name}"
    table = Table("split", "images", "aligned", "conflicting", "groups", "smallest group", title=title)
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        label = task.group_label(split.y)
        aligned = int(task.aligned(label, split.bias).sum())
        counts = (label * task.num_biases + split.bias).bincount()
        present = counts[counts > 0]
        share = (len(split) - aligned) / len(split)
        table.add_row(
            name,
            str(len(split)),
            str(aligned),
            f"{len(split) - aligned} ({share:.1%})",
            f"{len(present)} of {task.num_classes * task.num_biases}",
            str(int(present.min())),
        )
    return table


def attribute_table(task: Task, splits: Splits) -> Table:
    """The share of images with each attribute, by split, and in training with and without each identity."""
    assert task.attributes is not None
    shares = [split.y.double().mean(0) for split in (splits.train, splits.val, splits.test)]
    y = splits.train.y
    given = [
        [y[y[:, column] == value].double().mean(0) for value in (1, 0)]
        for column in task.attributes.identity_indices
    ]
    headings = [f"with / without {name}" for name in task.attributes.identities]
    table = Table("attribute", "train", "val", "test", *headings, title=f"{task.name}: share of positives")
    for column, name in enumerate(task.attributes.names):
        pairs = [f"{float(one[column]):.1%} / {float(other[column]):.1%}" for one, other in given]
        table.add_row(name, *(f"{float(share[column]):.1%}" for share in shares), *pairs)
    return table
