"""Stored logits of a results folder in, one analysis for each section out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunebench.analysis.cells import (
    Cells,
    attribute_rows,
    group_changes,
    loss_splits,
    resample_cells,
    summarize_cells,
)
from prunebench.analysis.claims import (
    claim_of_foretelling,
    claim_of_harmless_pruning,
    claim_of_uncertainty,
    correlate,
)
from prunebench.analysis.foretelling import (
    exemplar_rows,
    foretell_attributes,
    foretell_samples,
    susceptible_samples,
)
from prunebench.analysis.measures import (
    ATTRIBUTE_ROW_MEASURES,
    ATTRIBUTE_TASK_MEASURES,
    CLASS_MEASURES,
    CLASS_ROW_MEASURES,
    Measured,
    measure_run,
)
from prunebench.analysis.outputs import Outputs, read_outputs
from prunebench.analysis.values import SCHEMA_VERSION, Cell, TaskAnalysis
from prunebench.errors import PruneBenchError
from prunebench.leaderboard.board import split_sections
from prunebench.results.store import open_results
from prunebench.runner.environment import describe_code
from prunebench.runner.execute import one_thread

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Analysed:
    """One section: its outputs and analysis, or why there is none."""

    slug: str
    outputs: Outputs | None
    analysis: TaskAnalysis | None
    problem: str | None = None


def analyze_results(
    results: Path, data_root: Path | None = None, tasks: Sequence[str] = ()
) -> Iterator[Analysed]:
    """Analyse every section of a results folder, or those of some tasks, one after another.

    A section without data or logits at hand comes with the reason in place of the analysis.
    """
    store = open_results(results)
    for slug, records in split_sections(store.records()[0]).items():
        if tasks and records[0].spec["task"] not in tasks:
            continue
        try:
            outputs = read_outputs(slug, records, store, data_root)
            with one_thread(CPU):  # many small operations: a second thread waits more than it works
                analysis = analyze_outputs(outputs)
            yield Analysed(slug, outputs, analysis)
        except PruneBenchError as error:
            yield Analysed(slug, None, None, str(error))


def analyze_outputs(outputs: Outputs) -> TaskAnalysis:
    """All numbers of one section. Raises MetricError on logits that are not finite."""
    task, attributes = outputs.task, outputs.task.attributes
    accuracy, bias, dependence = _keys(outputs)
    cells: dict[tuple[str, float | None], list[Measured]] = {
        key: [measure_run(run, outputs.truths[run.seed]) for run in runs]
        for key, runs in outputs.cells.items()
    }
    summaries = resample_cells(cells, summarize_cells(cells), outputs)
    names = attributes.names if attributes else tuple(f"class {index}" for index in range(task.num_classes))
    exemplars, masks = exemplar_rows(cells, outputs)
    samples = foretell_samples(cells, outputs, masks)
    told = foretell_attributes(cells, outputs)
    pairs = [("sparsity", "uncertain_share"), ("sparsity", bias), ("uncertain_share", bias)]
    if attributes is not None or task.num_classes > 2:  # two classes have one logit, and its opposite
        pairs += [("sparsity", dependence), (dependence, bias)]
    correlations = correlate(cells, pairs, accuracy)
    recipe: Any = outputs.spec["recipe"]
    return TaskAnalysis(
        schema_version=SCHEMA_VERSION,
        slug=outputs.slug,
        task=task.name,
        title=task.title,
        source=task.source,
        model=str(outputs.spec["model"]),
        recipe=dict(recipe),
        multi_label=attributes is not None,
        outputs=names,
        identities=attributes.identities if attributes else (),
        bias_name=task.bias_name,
        accuracy_key=accuracy,
        bias_key=bias,
        seeds=tuple(sorted({run.seed for run in outputs.runs})),
        samples=len(outputs.test_y),
        runs=len(outputs.runs),
        left_out=outputs.left_out,
        measures=ATTRIBUTE_TASK_MEASURES if attributes else CLASS_MEASURES,
        attribute_measures=ATTRIBUTE_ROW_MEASURES if attributes else CLASS_ROW_MEASURES,
        cells=tuple(summaries),
        attributes=tuple(attribute_rows(cells, names)),
        groups=tuple(group_changes(cells, outputs)),
        exemplars=tuple(exemplars),
        splits=tuple(loss_splits(cells, outputs)),
        correlations=tuple(correlations),
        sample_foretelling=tuple(samples),
        attribute_foretelling=tuple(told),
        susceptible=tuple(susceptible_samples(cells, outputs)),
        claims=(
            claim_of_harmless_pruning(_standing_alone(summaries, cells), accuracy, bias),
            claim_of_uncertainty(correlations, bias, dependence),
            claim_of_foretelling(samples, told, "attributes" if attributes else "classes"),
        ),
        code=describe_code(),
    )


def _standing_alone(summaries: Sequence[Cell], cells: Cells) -> list[Cell]:
    """Those that do without the dense model: with it behind them no fewer weights are left than it has."""
    return [
        cell
        for cell in summaries
        if not any(entry.run.deferred for entry in cells[cell.method, cell.sparsity])
    ]


def _keys(outputs: Outputs) -> tuple[str, str, str]:
    """The measures that stand for accuracy, bias and dependence in the claims."""
    if outputs.task.attributes is None:
        return "in_distribution", "bias_gap", "logit_correlation"
    return "attribute_accuracy", "bias_amplification", "interdependence"
