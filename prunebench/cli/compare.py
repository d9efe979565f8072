"""Pairs of `prunebench compare`: names are looked up before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prunebench.comparison.pairing import choose_pairs
from prunebench.results.store import open_results


@dataclass(frozen=True)
class Asked:
    """What to compare: two names, each looked for in a results folder, at one task and sparsity."""

    names: tuple[str, str]
    results: tuple[Path, Path]
    task: str | None = None
    sparsity: float | None = None
    data_root: Path | None = None


def print_comparison(asked: Asked, *, every_table: bool = False) -> None:
    """Compare two runs or methods: the verdict, what stands behind it, then the tables."""
    stores = open_results(asked.results[0]), open_results(asked.results[1])
    names, pairs, notes = choose_pairs(asked.names, stores, task=asked.task, sparsity=asked.sparsity)
    from prunebench.cli.verdict import print_found
    from prunebench.comparison.tests import compare_pairs

    found = compare_pairs(names, pairs, asked.data_root)
    print_found(replace(found, notes=(*notes, *found.notes)), every_table=every_table)
