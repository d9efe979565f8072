"""The group tables of a task as loaded, and the attributes of a multi-label one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from prunebench.cli.console import Field, console, errors, fitting_table

if TYPE_CHECKING:
    from prunebench.tasks import Splits, Task


def print_groups(
    task_name: str, data_root: Path | None, seed: int = 0, *, every_attribute: bool = False
) -> tuple[Task, Splits]:
    """Print the groups of a task, on demand also the attributes of a multi-label one; gives what was loaded."""
    from prunebench.tasks import resolve_task

    task = resolve_task(task_name, data_root)
    for remark in task.remarks(data_root):
        errors.print(f"{task.name}: {remark}", style="yellow", soft_wrap=True)
    splits = task.splits(data_root, seed)
    for remark in balance_remarks(task, splits):
        errors.print(f"{task.name}: {remark}", style="yellow", soft_wrap=True)
    for table in task_tables(task, splits, every_attribute=every_attribute):
        console.print(table)
    return task, splits


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
    fields = (
        Field("split"), Field("images", right=True), Field("aligned", drop=4, right=True),
        Field("conflicting", right=True), Field("groups", drop=3, right=True),
        Field("smallest group", drop=2, right=True),
    )  # fmt: skip
    rows = []
    for name in ("train", "val", "test"):
        split = getattr(splits, name)
        label = task.group_label(split.y)
        aligned = int(task.aligned(label, split.bias).sum())
        counts = (label * task.num_biases + split.bias).bincount()
        present = counts[counts > 0]
        share = (len(split) - aligned) / len(split)
        groups = f"{len(present)} of {task.num_classes * task.num_biases}"
        smallest = str(int(present.min()))
        rows.append(
            (name, str(len(split)), str(aligned), f"{len(split) - aligned} ({share:.1%})", groups, smallest)
        )
    return fitting_table(fields, rows, title)[0]


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
    fields = [
        Field("attribute", whole=False),
        *(Field(name, right=True) for name in ("train", "val", "test")),
    ]
    fields += [Field(heading, drop=1, right=True) for heading in headings]
    rows = []
    for column, name in enumerate(task.attributes.names):
        pairs = [f"{float(one[column]):.1%} / {float(other[column]):.1%}" for one, other in given]
        rows.append((name, *(f"{float(share[column]):.1%}" for share in shares), *pairs))
    return fitting_table(fields, rows, f"{task.name}: share of positives")[0]
