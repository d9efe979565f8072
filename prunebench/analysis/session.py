"""`prunebench analyze`: every section of a results folder, its numbers stored beside the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.analysis.analyze import Analysed, analyze_results
from prunebench.analysis.stored import FOLDER
from prunebench.analysis.values import SusceptibleSample, TaskAnalysis, write_analysis
from prunebench.errors import StoreError, UsageError, unknown
from prunebench.results.store import open_results
from prunebench.runner.rescore import find_runs

if TYPE_CHECKING:
    from rich.console import Console


def analyze_folder(results: Path, data_root: Path | None, tasks: Sequence[str], console: Console) -> int:
    """Analyse and store every section, or those of some tasks, saying how it goes; gives how many failed.

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
        if found.analysis is None:
            failed += 1
            console.print(f"{found.slug}: not analysed: {found.problem}", style="red", soft_wrap=True)
        else:
            store_analysis(found, data_root, results / FOLDER)
            _report(found.analysis, console)
    return failed


def store_analysis(found: Analysed, data_root: Path | None, folder: Path) -> None:
    """Write the numbers of a section and the image of its susceptible samples. Raises StoreError."""
    from prunebench.analysis.pictures import sample_grid

    assert found.analysis is not None
    assert found.outputs is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    samples = found.analysis.susceptible
    test = found.outputs.task.splits(data_root, found.analysis.seeds[0]).test
    images = test.pictures([sample.index for sample in samples])
    captions = [caption(sample, found.analysis.multi_label) for sample in samples]
    sample_grid(images, captions, folder / found.analysis.grid_name)
    write_analysis(found.analysis, folder)


def caption(sample: SusceptibleSample, multi_label: bool) -> str:
    """What stands below a sample: its label, then what dense and pruned models say; of an attribute, yes or no."""
    said = f"{sample.dense} \N{RIGHTWARDS ARROW} {sample.sparse}"
    if not multi_label:
        return f"{sample.label}, {sample.bias}\n{said}"
    name = sample.label.removeprefix("not ")
    answers = [_yes_or_no(text, name) for text in (sample.label, sample.dense, sample.sparse)]
    return f"{name}: {answers[0]}\n{answers[1]} \N{RIGHTWARDS ARROW} {answers[2]}"


def _yes_or_no(said: str, name: str) -> str:
    return {name: "yes", f"not {name}": "no"}.get(said, said)


def _report(analysis: TaskAnalysis, console: Console) -> None:
    console.print(
        f"{analysis.slug}: {analysis.runs} runs, seeds {', '.join(map(str, analysis.seeds))}", soft_wrap=True
    )
    for reason in analysis.left_out:
        console.print(f"  left out: {reason}", style="yellow", soft_wrap=True)
    for claim in analysis.claims:
        console.print(f"  ({claim.key}) {claim.answer}", soft_wrap=True)
