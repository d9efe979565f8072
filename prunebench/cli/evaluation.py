"""The words of `prunebench evaluate`: metrics and groups of own networks and predictions, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prunebench.cli.console import console
from prunebench.errors import UsageError
from prunebench.metrics.registry import Metric, metrics
from prunebench.report import format as fmt
from prunebench.report.table import Column, Table, simple_table, terminal_table, text_column
from prunebench.results.record import plain
from prunebench.runner.stored import Draws
from prunebench.submission.evaluation import (
    EvaluatedNetwork,
    evaluate_predictions,
    evaluate_weights,
    list_weights,
)
from prunebench.submission.reevaluation import RECOMPUTED

WORST = 5
"""So many groups are shown unless all are asked for: those that the networks have most wrong, on average."""


def evaluate_with_words(  # noqa: PLR0913
    weights: Path | None,
    predictions: Sequence[Path],
    task: str | None,
    model: str | None,
    seed: int | None,
    data_root: Path | None,
    *,
    as_json: bool,
    groups: bool,
) -> int:
    """Evaluate what is given and print it: tables by task, or JSON."""
    if weights is None and not predictions:
        raise UsageError("evaluate what? Give --weights DIR or --predictions FILE")
    found: list[EvaluatedNetwork] = []
    if weights is not None:
        found += evaluate_weights(list_weights(weights, task, model, seed), data_root)
    draws = Draws(data_root)
    found += [evaluate_predictions(path, task, seed, draws) for path in predictions]
    if as_json:
        values = plain(found)
        console.file.write(json.dumps(values, indent=1) + "\n")
        return 0
    for name in dict.fromkeys(each.task for each in found):
        print_task(name, [each for each in found if each.task == name], every_group=groups)
    return 0


def print_task(task: str, found: Sequence[EvaluatedNetwork], *, every_group: bool) -> None:
    """Metrics and groups of the networks of one task."""
    console.print(terminal_table(metric_table(task, found)))
    console.print(terminal_table(group_table(found, WORST if not every_group else None)))
    some = len(found[0].groups)
    if not every_group and some > WORST:
        console.print(f"{WORST} of {some} groups, the worst on average: --groups shows all", style="dim")
    unseen = [each.name for each in found if each.evidence == RECOMPUTED]
    if unseen:
        console.print(
            f"{RECOMPUTED}: {', '.join(unseen)}: predictions alone; nothing of a network was seen",
            soft_wrap=True,
        )


def metric_table(task: str, found: Sequence[EvaluatedNetwork]) -> Table[Any]:
    """Metrics as rows, those of the board first, networks as columns; what a network is above them."""
    rows: list[tuple[str, list[str]]] = [
        ("evidence", [each.evidence for each in found]),
        ("seed of the draw", [str(each.seed) for each in found]),
    ]
    if any(each.weights for each in found):
        rows += [
            ("model", [each.model or fmt.MISSING for each in found]),
            ("weights that are not zero", [_left(each) for each in found]),
        ]
    shown = [entry for entry in metrics() if any(entry.name in each.metrics for each in found)]
    for entry in sorted(shown, key=lambda entry: not entry.board):
        rows.append((entry.title_with_unit, [_number(entry, each) for each in found]))
    return simple_table(_columns("Test split", found), rows, task)


def _left(each: EvaluatedNetwork) -> str:
    return fmt.MISSING if each.weights is None else f"{each.nonzero_weights:,} of {each.weights:,}"


def _number(entry: Metric, each: EvaluatedNetwork) -> str:
    return fmt.number(each.metrics.get(entry.name), entry.decimals, entry.scale)


def group_table(found: Sequence[EvaluatedNetwork], most: int | None = None) -> Table[Any]:
    """Test accuracy by group in percent, networks as columns; the `most` worst on average, or all in order."""
    shares = [
        {(row.label, row.bias): row.correct / row.count for row in each.groups if row.count} for each in found
    ]
    places = [(row.label, row.bias, row.aligned, row.count) for row in found[0].groups]
    if most is not None:
        places = sorted(places, key=lambda place: sum(share.get(place[:2], 0.0) for share in shares))[:most]
    rows = [
        (
            f"label {label}, bias {bias}, {'aligned' if aligned else 'conflicting'} ({count})",
            [fmt.percent(share.get((label, bias))) for share in shares],
        )
        for label, bias, aligned, count in places
    ]
    return simple_table(_columns("Accuracy in % by group (images)", found), rows)


def _columns(first: str, found: Sequence[EvaluatedNetwork]) -> Iterator[Column[Any]]:
    """One for the names of rows, and one a network."""

    def of(place: int) -> Callable[[Any], str]:
        return lambda row: row[1][place]

    yield text_column("name", first, value=lambda row: row[0], lead=True)
    for place, each in enumerate(found):
        yield Column(f"network-{place}", each.name, each.file, of(place))
