"""From runs to cells: means and intervals over seeds, and differences from the dense model of the same seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.analysis.measures import Measured
from prunebench.analysis.outputs import Outputs
from prunebench.analysis.values import AttributeRow, Cell, Estimate, GroupChange, LossSplit
from prunebench.errors import MetricError
from prunebench.metrics.criteria import bias_variance
from prunebench.metrics.flips import recall_change
from prunebench.stats.bootstrap import METRICS, Intervals, bootstrap_cells
from prunebench.stats.intervals import mean_interval

FEWEST_PAIRS = 5
"""Of four pairs even the most extreme order has p = 2 / 4! > 0.05: their correlation gets no interval."""
SHOWN_GROUPS = 5
"""Of a cell, so many groups with the largest loss and with the largest gain are listed."""

Cells = Mapping[tuple[str, float | None], Sequence[Measured]]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval over seeds; no interval with a single seed, nothing where a value is undefined."""
    interval = mean_interval(values)
    if not math.isfinite(interval.mean):
        return Estimate(None, None, None, len(values))
    if not math.isfinite(interval.half_width):
        return Estimate(interval.mean, None, None, interval.n)
    return Estimate(
        interval.mean, interval.mean - interval.half_width, interval.mean + interval.half_width, interval.n
    )


def dense_runs(cells: Cells) -> dict[int, Measured]:
    """The dense run of each seed."""
    return {entry.run.seed: entry for runs in cells.values() for entry in runs if entry.run.dense}


def summarize_cells(cells: Cells) -> list[Cell]:
    """Every method and sparsity with its measures and their changes from dense; changes over seeds that have both."""
    dense = dense_runs(cells)
    found = []
    for (method, sparsity), runs in cells.items():
        keys = list(runs[0].values)
        paired = [run for run in runs if run.run.seed in dense]
        found.append(
            Cell(
                method=method,
                sparsity=sparsity,
                dense=runs[0].run.dense,
                achieved=sum(run.run.achieved for run in runs) / len(runs),
                seeds=tuple(run.run.seed for run in runs),
                values={key: estimate([run.values[key] for run in runs]) for key in keys},
                changes={}
                if runs[0].run.dense or not paired
                else {
                    key: estimate([run.change_from(dense[run.run.seed], key) for run in paired])
                    for key in keys
                },
            )
        )
    return found


def resample_cells(cells: Cells, summaries: Sequence[Cell], outputs: Outputs) -> list[Cell]:
    """The cells with bootstrap intervals over seeds and samples of their accuracies and of the changes from dense.

    Cells that lack a seed of the dense model, or have another, keep none: their seeds would not be paired.
    """
    truth, seeds = outputs.truth, tuple(dense_runs(cells))
    chosen = [key for key, runs in cells.items() if tuple(run.run.seed for run in runs) == seeds]
    hits = torch.stack([torch.stack([run.right for run in cells[key]]) for key in chosen])
    dense = next(place for place, key in enumerate(chosen) if cells[key][0].run.dense)
    found = bootstrap_cells(hits, truth.group("test"), truth.aligned_pair.flatten(), reference=dense)
    assert found.differences is not None
    resampled = []
    for cell in summaries:
        if (cell.method, cell.sparsity) in chosen:
            place = chosen.index((cell.method, cell.sparsity))
            changes = {} if cell.dense else _by_metric(found.differences, place, len(seeds))
            cell = replace(cell, sampled=_by_metric(found.values, place, len(seeds)), sampled_changes=changes)
        resampled.append(cell)
    return resampled


def _by_metric(intervals: Intervals, place: int, seeds: int) -> dict[str, Estimate]:
    columns = zip(METRICS, intervals.estimate[place], intervals.low[place], intervals.high[place])
    return {
        name: Estimate(defined(float(mean)), defined(float(low)), defined(float(high)), seeds)
        for name, mean, low, high in columns
    }


def attribute_rows(cells: Cells, names: Sequence[str]) -> list[AttributeRow]:
    """Every class or attribute in every cell: means over seeds, undefined where a seed's is."""
    rows = []
    for (method, sparsity), runs in cells.items():
        means = {
            key: torch.stack([run.outputs[key] for run in runs]).mean(0).tolist() for key in runs[0].outputs
        }
        for place, name in enumerate(names):
            values = {key: defined(column[place]) for key, column in means.items()}
            rows.append(AttributeRow(name, method, sparsity, runs[0].run.dense, values))
    return rows


def group_changes(cells: Cells, outputs: Outputs) -> list[GroupChange]:
    """The groups whose accuracy pruning changed most, by cell; tests need two seeds on either side."""
    truth, group = outputs.truth, outputs.truth.group("test")
    size = torch.bincount(group, minlength=truth.aligned_pair.numel())
    present = torch.nonzero(size).flatten().tolist()
    dense = list(dense_runs(cells).values())
    before = _group_accuracy(dense, group, len(size))
    found = []
    for (method, sparsity), runs in cells.items():
        if runs[0].run.dense:
            continue
        after = _group_accuracy(runs, group, len(size))
        change = after - before
        p_value, corrected = _tests(dense, runs, group, len(size))
        order = sorted(present, key=lambda place: float(change[place]))
        shown = dict.fromkeys([*order[:SHOWN_GROUPS], *order[-SHOWN_GROUPS:]])
        for place in shown:
            row, column = divmod(place, truth.task.num_biases)
            numbers = (before, after, change, p_value, corrected)
            found.append(
                GroupChange(
                    _label_name(outputs, row),
                    f"{truth.task.bias_name} {column}",
                    bool(truth.aligned_pair[row, column]),
                    int(size[place]),
                    method,
                    sparsity,
                    *(defined(float(values[place])) for values in numbers),
                )
            )
    return found


def _group_accuracy(runs: Sequence[Measured], group: Tensor, groups: int) -> Tensor:
    """Mean over runs of the accuracy of each group, `[G]`; nan for an empty group."""
    right = torch.stack([run.right for run in runs]).double().mean(0)
    total = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, right)
    return total / torch.bincount(group, minlength=groups)


def _tests(
    dense: Sequence[Measured], sparse: Sequence[Measured], group: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Welch's p and Holm's corrected p by group; nan with a single seed on a side."""
    before, after = (torch.stack([run.right for run in runs]).long() for runs in (dense, sparse))
    try:
        found = recall_change(before, after, torch.ones_like(group), group, relative=False)
    except MetricError:
        missing = torch.full((groups,), math.nan)
        return missing, missing
    rest = groups - len(found.p_value)
    return tuple(  # type: ignore[return-value]
        functional.pad(values, (0, rest), value=math.nan) for values in (found.p_value, found.corrected_p)
    )


def _label_name(outputs: Outputs, label: int) -> str:
    attributes = outputs.task.attributes
    if attributes is None:
        return f"class {label}"
    return attributes.target if label else f"not {attributes.target}"


def loss_splits(cells: Cells, outputs: Outputs) -> list[LossSplit]:
    """Bias and variance of the squared loss, for cells with two seeds or more."""
    label = outputs.test_y.long().flatten()
    found = []
    for (method, sparsity), runs in cells.items():
        if len(runs) < 2:
            continue
        probabilities = torch.stack([_probabilities(run.run.logits["test"], outputs) for run in runs])
        split = bias_variance(probabilities, label)
        numbers = (split.loss, split.bias_squared, split.variance)
        found.append(LossSplit(method, sparsity, runs[0].run.dense, *(defined(value) for value in numbers)))
    return found


def _probabilities(logits: Tensor, outputs: Outputs) -> Tensor:
    """`[N, C]` of classes; `[N K, 2]` of attributes, sample by sample."""
    if outputs.task.attributes is None:
        return logits.softmax(1)
    positive = torch.sigmoid(logits).flatten()
    return torch.stack([1 - positive, positive], dim=1)


def defined(value: float) -> float | None:
    """The number, or None for nan."""
    return value if math.isfinite(value) else None
