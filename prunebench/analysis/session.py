"""Sessions of `prunebench analyze`: stored logits of a results folder in, one stored analysis for each track out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunebench.analysis import aggregate
from prunebench.analysis.cards import CLAIMS, cards_of
from prunebench.analysis.exemplars import caption, exemplar_rows, sample_grid, susceptible_samples
from prunebench.analysis.exploratory import exploratory_lines
from prunebench.analysis.measures import Outputs, measure_run, output_measures, read_outputs, task_measures
from prunebench.analysis.predictability import predict_attributes, predict_samples
from prunebench.analysis.preregistered import card_sentence
from prunebench.analysis.seed_numbers import read_seed_numbers, seed_numbers, write_seed_numbers
from prunebench.analysis.values import FOLDER, SCHEMA_VERSION, TaskAnalysis, write_analysis
from prunebench.errors import PruneBenchError, StoreError, UsageError, unknown
from prunebench.results.standing import read_standing
from prunebench.results.store import open_results, write_atomically
from prunebench.results.tracks import split_tracks
from prunebench.runner.environment import describe_code
from prunebench.runner.execute import one_thread
from prunebench.runner.rescore import find_runs

if TYPE_CHECKING:
    from rich.console import Console

CPU = torch.device("cpu")


@dataclass(frozen=True)
class AnalysedTrack:
    """One track: its outputs and analysis, or why there is none."""

    slug: str
    outputs: Outputs | None
    analysis: TaskAnalysis | None
    problem: str | None = None


def analyze_results(
    results: Path, data_root: Path | None = None, tasks: Sequence[str] = ()
) -> Iterator[AnalysedTrack]:
    """Analyse every track of a results folder, or those of some tasks, one after another.

    A track without data or logits at hand comes with the reason in place of the analysis.
    """
    store = open_results(results)
    for slug, records in split_tracks(store.records()[0]).items():
        if tasks and records[0].spec["task"] not in tasks:
            continue
        try:
            outputs = read_outputs(slug, records, store, data_root)
            with one_thread(CPU):  # many small operations: a second thread waits more than it works
                analysis = analyze_outputs(outputs)
            yield AnalysedTrack(slug, outputs, analysis)
        except PruneBenchError as error:
            yield AnalysedTrack(slug, None, None, str(error))


def analyze_outputs(outputs: Outputs) -> TaskAnalysis:
    """All numbers of one track. Raises MetricError on logits that are not finite."""
    task, attributes = outputs.task, outputs.task.attributes
    accuracy, bias = (
        ("attribute_accuracy", "bias_amplification") if attributes else ("in_distribution", "bias_gap")
    )
    dependence = "interdependence" if attributes else "logit_correlation"
    conditions = {
        key: [measure_run(run, outputs.truths[run.seed]) for run in runs]
        for key, runs in outputs.conditions.items()
    }
    summaries = aggregate.summarize_conditions(conditions)
    names = attributes.names if attributes else tuple(f"class {index}" for index in range(task.num_classes))
    exemplars, masks = exemplar_rows(conditions, outputs)
    others = ["uncertain_share"]
    if attributes is not None or task.num_classes > 2:  # two classes have one logit, and its opposite
        others.append(dependence)
    with_sparsity = [("sparsity", key) for key in (*others, bias)]
    with_bias = [(key, bias) for key in others]
    unpruned = next(iter(aggregate.reference_runs(conditions).values())).run.method
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
        reference=unpruned,
        seeds=tuple(sorted({run.seed for run in outputs.runs})),
        samples=len(outputs.test_y),
        runs=len(outputs.runs),
        left_out=outputs.left_out,
        measures=task_measures(multi_label=attributes is not None),
        attribute_measures=output_measures(multi_label=attributes is not None),
        conditions=tuple(aggregate.resample_conditions(conditions, summaries, outputs)),
        attributes=tuple(aggregate.attribute_rows(conditions, names)),
        groups=tuple(aggregate.group_changes(conditions, outputs)),
        exemplars=tuple(exemplars),
        splits=tuple(aggregate.loss_splits(conditions, outputs)),
        correlations=(
            *aggregate.correlate(conditions, with_sparsity, accuracy),
            *aggregate.correlate(conditions, with_bias, accuracy, given="sparsity"),
        ),
        sample_predictability=tuple(predict_samples(conditions, outputs, masks)),
        attribute_predictability=tuple(predict_attributes(conditions, outputs)),
        susceptible=tuple(susceptible_samples(conditions, outputs)),
        code=describe_code(),
    )


def analyze_folder(results: Path, data_root: Path | None, tasks: Sequence[str], console: Console) -> int:
    """Analyse and store every track, or those of some tasks, saying how it goes; gives how many failed.

    Raises StoreError for a folder without runs, UsageError for tasks that it has no runs of.
    """
    known = sorted({draw[0] for draw in find_runs(open_results(results)) if draw is not None})
    for name in tasks:
        if name not in known:
            raise unknown("task", name, known)
    if not known:
        raise UsageError(f"{results} holds no finished runs")
    failed = 0
    for found in analyze_results(results, data_root, tasks):
        if found.analysis is None or found.outputs is None:
            failed += 1
            console.print(f"{found.slug}: not analysed: {found.problem}", style="red", soft_wrap=True)
        else:
            store_analysis(found.analysis, found.outputs.task, data_root, results / FOLDER)
            write_seed_numbers(seed_numbers(found.outputs), results / FOLDER)
            _report(found.analysis, console)
    _report_cards(results, tasks, console)
    return failed


def store_analysis(analysis: TaskAnalysis, task: Any, data_root: Path | None, folder: Path) -> None:
    """Write the numbers of a track and the image of its susceptible samples. Raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    test = task.splits(data_root, analysis.seeds[0]).test
    images = test.pictures([sample.index for sample in analysis.susceptible])
    write_atomically(
        folder / analysis.grid_name, sample_grid(images, list(map(caption, analysis.susceptible)))
    )
    write_analysis(analysis, folder)


def _report(analysis: TaskAnalysis, console: Console) -> None:
    from prunebench.analysis.words import found_lines
    from prunebench.report.format import listed

    console.print(f"{analysis.slug}: {analysis.runs} runs, {listed('seed', analysis.seeds)}", soft_wrap=True)
    for reason in analysis.left_out:
        console.print(f"  left out: {reason}", style="yellow", soft_wrap=True)
    console.print(f"  exploratory: {found_lines(exploratory_lines(analysis))}", soft_wrap=True)


def _report_cards(results: Path, tasks: Sequence[str], console: Console) -> None:
    """The cards of each track, or of some tasks', and the board's, a line each."""
    records = read_standing(results).listed(open_results(results).records()[0])
    cards = cards_of(records, read_seed_numbers([results / FOLDER]))
    for slug, runs in split_tracks(records).items():
        if not tasks or runs[0].spec["task"] in tasks:
            for card in cards.tracks[slug]:
                console.print(f"{slug}: {CLAIMS[card.key]}: {card_sentence(card)}", soft_wrap=True)
    console.print(f"{CLAIMS['tasks']}: {card_sentence(cards.board)}", soft_wrap=True)
