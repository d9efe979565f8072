"""A task as loaded, as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunebench.tasks.base import Splits, Task

if TYPE_CHECKING:
    from rich.table import Table


def task_tables(task: Task, splits: Splits, *, every_attribute: bool = False) -> list[Table]:
    """The group table, and for a multi-label task on demand the attributes."""
    tables = [group_table(task, splits)]
    if every_attribute and task.attributes is not None:
        tables.append(attribute_table(task, splits))
    return tables


def group_table(task: Task, splits: Splits) -> Table:
    """Samples by split, aligned and conflicting, and the groups (label, bias) that have any."""
    from rich.table import Table

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
    from rich.table import Table

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
