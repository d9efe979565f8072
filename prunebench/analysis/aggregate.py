"""Aggregation of runs to conditions: means and intervals over seeds, and changes from the seed's reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from prunebench.analysis.measures import MeasuredRun, Outputs
from prunebench.analysis.values import (
    WORKING_SHARE,
    AttributeRow,
    Condition,
    Correlation,
    Estimate,
    GroupChange,
    LossSplit,
    Scope,
    defined,
)
from prunebench.errors import MetricError
from prunebench.metrics.populations import bias_variance, recall_change
from prunebench.metrics.predictability import spearman
from prunebench.results.tracks import REFERENCE
from prunebench.stats.bootstrap import METRICS, Intervals, bootstrap_cells
from prunebench.stats.correlation import partial_spearman
from prunebench.stats.intervals import mean_interval
from prunebench.stats.tests import mean_p_value

FEWEST_PAIRS = 5
"""Of four pairs even the most extreme order has p = 2 / 4! > 0.05: their correlation gets no interval."""
FEWEST_POINTS = 3
"""Of two points every correlation is 1 or -1."""
SHOWN_GROUPS = 5
"""Of a condition, so many groups with the largest loss and with the largest gain are listed."""

MeasuredConditions = Mapping[tuple[str, float | None], Sequence[MeasuredRun]]
"""Runs by method and sparsity."""


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t interval over seeds; no interval with a single seed, nothing where a value is undefined."""
    found = mean_interval(values)
    return Estimate.of(found.mean, found.mean - found.half_width, found.mean + found.half_width, found.n)


def dense_runs(conditions: MeasuredConditions) -> dict[int, MeasuredRun]:
    """The dense run of each seed."""
    return {entry.run.seed: entry for runs in conditions.values() for entry in runs if entry.run.dense}


def reference_runs(conditions: MeasuredConditions) -> dict[int, MeasuredRun]:
    """By seed, what changes are measured from: the unpruned network with as many steps; without any, the dense one."""
    named = {
        entry.run.seed: entry for (name, _), runs in conditions.items() for entry in runs if name == REFERENCE
    }
    return named or dense_runs(conditions)


def pruning_runs(conditions: MeasuredConditions) -> list[MeasuredRun]:
    """The dense runs and those of methods that prune; not those of other unpruned references."""
    pruning = {name for name, sparsity in conditions if sparsity != 0}
    return [run for (name, _), runs in conditions.items() for run in runs if run.run.dense or name in pruning]


def pruned_conditions(conditions: MeasuredConditions) -> MeasuredConditions:
    """Those of other than dense models."""
    return {place: runs for place, runs in conditions.items() if not runs[0].run.dense}


def summarize_conditions(conditions: MeasuredConditions) -> list[Condition]:
    """Every method and sparsity with its measures and their changes from the reference, over seeds that have both."""
    reference = reference_runs(conditions)
    found = []
    for (method, sparsity), runs in conditions.items():
        paired = [run for run in runs if reference.get(run.run.seed, run) is not run]
        changes = {
            key: estimate([run.change_from(reference[run.run.seed], key) for run in paired])
            for key in (runs[0].values if paired else ())
        }
        found.append(
            Condition(
                method,
                sparsity,
                runs[0].run.dense,
                achieved=sum(run.run.achieved for run in runs) / len(runs),
                seeds=tuple(run.run.seed for run in runs),
                values={key: estimate([run.values[key] for run in runs]) for key in runs[0].values},
                changes=changes,
                deferred=any(run.run.deferred for run in runs),
            )
        )
    return found


def resample_conditions(
    conditions: MeasuredConditions, summaries: Sequence[Condition], outputs: Outputs
) -> list[Condition]:
    """Conditions with bootstrap intervals over seeds and samples of their accuracies and of the changes from reference.

    Those that lack a seed of the reference, or have another, keep none: their seeds would not be paired.
    """
    unpruned = reference_runs(conditions)
    truth, seeds = outputs.truth, tuple(unpruned)
    chosen = [key for key, runs in conditions.items() if tuple(run.run.seed for run in runs) == seeds]
    hits = torch.stack([torch.stack([run.right for run in conditions[key]]) for key in chosen])
    reference = next(k for k, key in enumerate(chosen) if conditions[key][0] is unpruned[seeds[0]])
    found = bootstrap_cells(hits, truth.group("test"), truth.aligned_pair.flatten(), reference=reference)
    assert found.differences is not None
    resampled = []
    for row in summaries:
        if (row.method, row.sparsity) in chosen:
            place = chosen.index((row.method, row.sparsity))
            changes = {} if place == reference else _by_metric(found.differences, place, len(seeds))
            row = replace(row, sampled=_by_metric(found.values, place, len(seeds)), sampled_changes=changes)
        resampled.append(row)
    return resampled


def _by_metric(intervals: Intervals, place: int, seeds: int) -> dict[str, Estimate]:
    columns = (part[place].tolist() for part in (intervals.estimate, intervals.low, intervals.high))
    return {name: Estimate.of(mean, low, high, seeds) for name, mean, low, high in zip(METRICS, *columns)}


def attribute_rows(conditions: MeasuredConditions, names: Sequence[str]) -> list[AttributeRow]:
    """Every class or attribute in every condition: means over seeds, undefined where a seed's is."""
    rows = []
    for (method, sparsity), runs in conditions.items():
        means = {
            key: torch.stack([run.outputs[key] for run in runs]).mean(0).tolist() for key in runs[0].outputs
        }
        for place, name in enumerate(names):
            values = {key: defined(column[place]) for key, column in means.items()}
            rows.append(AttributeRow(name, method, sparsity, runs[0].run.dense, values))
    return rows


def group_changes(conditions: MeasuredConditions, outputs: Outputs) -> list[GroupChange]:
    """The groups whose accuracy pruning changed most, by condition; tests need two seeds on either side."""
    truth, group = outputs.truth, outputs.truth.group("test")
    size = torch.bincount(group, minlength=truth.aligned_pair.numel())
    present = torch.nonzero(size).flatten().tolist()
    unpruned = list(reference_runs(conditions).values())
    before = _group_accuracy(unpruned, group, len(size))
    found = []
    for (method, sparsity), runs in pruned_conditions(conditions).items():
        after = _group_accuracy(runs, group, len(size))
        change = after - before
        p_value, corrected = _tests(unpruned, runs, group, len(size))
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


def _group_accuracy(runs: Sequence[MeasuredRun], group: Tensor, groups: int) -> Tensor:
    """Mean over runs of the accuracy of each group, `[G]`; nan for an empty group."""
    right = torch.stack([run.right for run in runs]).double().mean(0)
    total = torch.zeros(groups, dtype=torch.float64).index_add_(0, group, right)
    return total / torch.bincount(group, minlength=groups)


def _tests(
    dense: Sequence[MeasuredRun], sparse: Sequence[MeasuredRun], group: Tensor, groups: int
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


def loss_splits(conditions: MeasuredConditions, outputs: Outputs) -> list[LossSplit]:
    """Bias and variance of the squared loss, for conditions with two seeds or more."""
    label = outputs.test_y.long().flatten()
    found = []
    for (method, sparsity), runs in conditions.items():
        if len(runs) < 2:
            continue
        probabilities = torch.stack([_probabilities(run.run.logits["test"], outputs) for run in runs])
        split = bias_variance(probabilities, label)
        numbers = map(defined, (split.loss, split.bias_squared, split.variance))
        found.append(LossSplit(method, sparsity, runs[0].run.dense, *numbers))
    return found


def _probabilities(logits: Tensor, outputs: Outputs) -> Tensor:
    """`[N, C]` of classes; `[N K, 2]` of attributes, sample by sample."""
    if outputs.task.attributes is None:
        return logits.softmax(1)
    positive = torch.sigmoid(logits).flatten()
    return torch.stack([1 - positive, positive], dim=1)


def correlate(
    conditions: MeasuredConditions, pairs: Sequence[tuple[str, str]], accuracy: str, given: str | None = None
) -> list[Correlation]:
    """Spearman's rho of pairs of measures over the runs of each method with the dense one, and over all methods.

    One rho for each seed, over its runs at all sparsities; then mean, t interval and p over seeds, which are what was
    repeated: runs of one seed share its data and its dense model. `within methods` correlates the ranks that values
    have among the seed's runs of their own method, of all methods together: what differs between methods, debiasing
    ones among them, is left out, and so are the dense runs, as part of every method. A second set, `working`, keeps
    the runs with at least 90 % of the dense accuracy: a network at chance treats all groups alike. `sparsity` is the
    achieved one. Unpruned references are no part of it.

    With `given`, that measure is held (`partial_spearman`); of single methods, whose few runs it orders nearly alone,
    nothing is then said.
    """
    runs = pruning_runs(conditions)
    dense = {run.run.seed: run for run in runs if run.run.dense}
    working = [
        run
        for run in runs
        if run.run.seed in dense
        and run.values[accuracy] >= WORKING_SHARE * dense[run.run.seed].values[accuracy]
    ]
    methods = sorted({run.run.method for run in runs if not run.run.dense})
    scopes: list[tuple[Scope, str | None]] = [("all methods", None), ("within methods", None)]
    scopes += [("method", method) for method in methods] if given is None else []
    held = () if given is None else (given,)
    found = []
    for (first, second), (works, chosen) in itertools.product(pairs, ((False, runs), (True, working))):
        seeds = sorted({run.run.seed for run in chosen})
        by_seed = [[run for run in chosen if run.run.seed == seed] for seed in seeds]
        for scope, method in scopes:
            points = [_points(members, scope, method, (first, second, *held)) for members in by_seed]
            rho, p_value = _over_seeds(points)
            found.append(Correlation(scope, method, first, second, works, rho, given, p_value))
    return found


def _points(
    runs: Sequence[MeasuredRun], scope: Scope, method: str | None, keys: Sequence[str]
) -> NDArray[np.float64]:
    """What is correlated of a seed's runs: a row a measure `[2 or 3, n]`."""
    if scope == "within methods":
        by_method: dict[str, list[MeasuredRun]] = {}
        for run in runs:
            if not run.run.dense:
                by_method.setdefault(run.run.method, []).append(run)
        own = [_ranks(_values(members, keys)) for members in by_method.values() if len(members) > 2]
        return np.concatenate(own, axis=1) if own else np.zeros((len(keys), 0))
    return _values([run for run in runs if run.run.dense or method in (None, run.run.method)], keys)


def _values(runs: Sequence[MeasuredRun], keys: Sequence[str]) -> NDArray[np.float64]:
    """A row a measure, without the runs in which any of them is undefined."""
    values = np.array([[_value(run, key) for run in runs] for key in keys]).reshape(len(keys), -1)
    return values[:, np.isfinite(values).all(0)]


def _value(run: MeasuredRun, key: str) -> float:
    return run.run.achieved if key == "sparsity" else run.values[key]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's ranks as shares of its length."""
    from scipy.stats import rankdata

    return rankdata(values, axis=1) / max(values.shape[1], 1)


def _over_seeds(points: Sequence[NDArray[np.float64]]) -> tuple[Estimate, float | None]:
    """Mean, t interval and p of the seeds' rhos, within -1..1; none where a seed has too few points."""
    rhos = [_rho(rows) for rows in points]
    found = estimate(rhos)
    if any(rows.shape[1] < FEWEST_PAIRS for rows in points):
        return Estimate(found.mean, None, None, found.n), None
    if found.low is None or found.high is None:
        return found, None
    ends = max(found.low, -1.0), min(found.high, 1.0)
    return Estimate(found.mean, *ends, found.n), defined(mean_p_value(rhos))


def _rho(rows: NDArray[np.float64]) -> float:
    """Spearman's of the first two rows, given the third if there is one; nan with too few points."""
    if rows.shape[1] < FEWEST_POINTS:
        return math.nan
    return float(spearman(*rows[:, None])[0]) if len(rows) == 2 else partial_spearman(*rows).rho
