"""The words and tables of `prunebench rescore` and `prunebench compare`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import track
from rich.table import Table

from prunebench.cli.console import console, errors
from prunebench.comparison.conclusions import WIDE, conclude, is_significant, p_text
from prunebench.comparison.pairing import choose_pairs
from prunebench.comparison.tests import Comparison, SampleTest, compare_pairs
from prunebench.results.store import open_results
from prunebench.runner.rescore import Rescored, rescore_results

FEW_GROUPS = 10
"""At most so many groups are all shown; of more, so many with a significant difference, the lowest p first."""


def score_with_progress(results: Path, data_root: Path | None, *, dry_run: bool) -> int:
    """Score a results folder and say what changed and what could not be scored; 1 if anything could not."""
    entries = rescore_results(results, data_root, dry_run=dry_run)
    changes, left = _Changes(), []
    for entry in track(entries, "scoring", console=console, disable=not console.is_terminal):
        if entry.problem is None:
            changes.take(entry)
        else:
            left.append(entry)
    if changes.changed:
        console.print(changes.table())
    console.print(changes.line() + (f", {len(left)} not scored" if left else ""), soft_wrap=True)
    if dry_run and changes.changed:
        console.print("nothing was written: leave out --dry-run to write what changed")
    elif changes.changed:
        console.print(f"`prunebench leaderboard --results {results}` shows them on the board", soft_wrap=True)
    for reason in dict.fromkeys(entry.problem for entry in left):
        runs = [entry for entry in left if entry.problem == reason]
        errors.print(f"not scored ({len(runs)}): {reason}", style="yellow", soft_wrap=True)
        for entry in runs:
            errors.print(f"  {entry.run_id} {entry.label}", soft_wrap=True)
    return int(bool(left))


class _Changes:
    """Counts of what changed, by metric: nothing is kept of a run, however many there are."""

    def __init__(self) -> None:
        self.scored = self.changed = 0
        self._runs: Counter[tuple[str, str]] = Counter()
        self._largest: dict[tuple[str, str], float] = {}

    def take(self, entry: Rescored) -> None:
        self.scored += 1
        self.changed += bool(entry.changes)
        for change in entry.changes:
            key = change.name, change.kind
            self._runs[key] += 1
            size = 0.0 if math.isnan(change.size) else change.size
            self._largest[key] = max(self._largest.get(key, 0.0), size)

    def line(self) -> str:
        new = sorted(name for name, kind in self._runs if kind == "new")
        names = f" ({', '.join(new)})" if new else ""
        return f"{self.scored} runs scored, {self.changed} changed, {len(new)} new metrics{names}"

    def table(self) -> Table:
        """By metric: in how many runs it is new, changed or gone, and the largest change."""
        table = Table("metric", "what", "runs", "largest change")
        for (name, kind), count in sorted(self._runs.items()):
            size = self._largest[name, kind]
            table.add_row(name, kind, str(count), f"{size:.2g}" if size else "")
        return table


@dataclass(frozen=True)
class Asked:
    """What to compare: two names, each looked for in a results folder, at one task and sparsity."""

    names: tuple[str, str]
    results: tuple[Path, Path]
    task: str | None = None
    sparsity: float | None = None
    data_root: Path | None = None


def print_comparison(asked: Asked) -> None:
    """Compare two runs or methods: tables by seed and by sample, and what they say."""
    stores = open_results(asked.results[0]), open_results(asked.results[1])
    names, pairs, notes = choose_pairs(asked.names, stores, task=asked.task, sparsity=asked.sparsity)
    found = compare_pairs(names, pairs, asked.data_root)
    found = replace(found, notes=(*notes, *found.notes))
    console.print(
        f"A = {found.first}, B = {found.second}; {found.task}, {', '.join(found.pairs)}", soft_wrap=True
    )
    console.print(_seed_table(found))
    _print_samples(found.pooled, "By sample: sign flips of source images, all pairs of runs together")
    _print_samples(found.by_pair, "By sample, each pair of runs")
    _print_conclusions(found)


def _seed_table(found: Comparison) -> Table:
    tests = found.by_seed
    of = (
        f"{max((test.family for test in tests), default=0)} tests of this sparsity on the board"
        if found.board
        else "this pair alone"
    )
    title = f"By seed: paired t-test, 95 % t interval of B - A; corrected (Benjamini-Hochberg) over {of}"
    table = Table("metric", "A", "B", "B - A", "p", "corrected p", title=title)
    for test in tests:
        width, metric = test.difference.half_width, test.metric
        scale, places, sign = metric.scale, metric.decimals, "%" if metric.scale == 100 else ""
        interval = "" if math.isnan(width) else f" +- {width * scale:.{places}f}"
        table.add_row(
            metric.title,
            f"{test.first * scale:.{places}f}{sign}",
            f"{test.second * scale:.{places}f}{sign}",
            f"{test.difference.mean * scale:+.{places}f}{interval}",
            p_text(test.p_value),
            p_text(test.corrected_p),
        )
    return table


def _print_samples(tests: Sequence[SampleTest], title: str) -> None:
    if not tests:
        return
    table = Table(
        "samples", "pair", "number", "images", "A right", "B right", "B - A", "p", "corrected p", title=title
    )
    groups = [test for test in tests if test.scope not in WIDE]
    if len({test.scope for test in groups}) > FEW_GROUPS:
        groups = sorted(filter(is_significant, groups), key=lambda test: test.p_value)[:FEW_GROUPS]
    shown = [*(test for test in tests if test.scope in WIDE), *groups]
    for test in shown:
        width = test.difference.half_width
        interval = "" if math.isnan(width) else f" +- {100 * width:.1f}"
        shares = f"{test.first_right:.1%}", f"{test.second_right:.1%}"
        counts = str(test.samples), str(test.images), *shares, f"{100 * test.difference.mean:+.1f}{interval}"
        table.add_row(test.scope, test.pair or "all", *counts, p_text(test.p_value), p_text(test.corrected_p))
    console.print(table)
    hidden = len(tests) - len(shown)
    line = f"corrected for all {len(tests)} tests"
    console.print(f"{line}; {hidden} of them, of groups, are not shown" if hidden else line, soft_wrap=True)


def _print_conclusions(found: Comparison) -> None:
    said = conclude(found)
    for heading, lines, none in (
        ("Significant (corrected p at most 0.05):", said.significant, "nothing"),
        ("Not significant:", said.not_significant, ""),
        ("Undecided by these runs:", said.undecided, ""),
        ("Notes:", found.notes, ""),
    ):
        if lines or none:
            console.print(heading, style="bold")
        for line in lines or [none] * bool(none):
            console.print(f"  {line}", soft_wrap=True)
    console.print(
        "By sample says whether these very models differ, if images are independent; by seed, whether the methods do "
        "when trained again.",
        soft_wrap=True,
    )
