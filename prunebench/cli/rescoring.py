"""The words of `prunebench rescore`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from rich.progress import track
from rich.table import Table

from prunebench.cli.console import Field, console, errors, fitting_table
from prunebench.runner.rescore import Rescored, rescore_results


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
        fields = (
            Field("metric"),
            Field("what"),
            Field("runs", right=True),
            Field("largest change", right=True),
        )
        rows = []
        for (name, kind), count in sorted(self._runs.items()):
            size = self._largest[name, kind]
            rows.append((name, kind, str(count), f"{size:.2g}" if size else ""))
        return fitting_table(fields, rows)[0]
