"""What `prunebench score` and `prunebench compare` print."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.progress import track
from rich.table import Table

from prunebench.console import console, errors
from prunebench.scoring import Scored, score_results


def score_with_progress(results: Path, data_root: Path | None, *, dry_run: bool) -> int:
    """Score a results folder and say what changed and what could not be scored; 1 if anything could not."""
    entries = score_results(results, data_root, dry_run=dry_run)
    scored = list(track(entries, "scoring", console=console, disable=not console.is_terminal))
    left = [entry for entry in scored if entry.problem is not None]
    done = [entry for entry in scored if entry.problem is None]
    new = {change.name for entry in done for change in entry.changes if change.kind == "new"}
    changed = sum(bool(entry.changes) for entry in done)
    if changed:
        console.print(_changes(done))
    names = f" ({', '.join(sorted(new))})" if new else ""
    console.print(
        f"{len(done)} runs scored, {changed} changed, {len(new)} new metrics{names}"
        + (f", {len(left)} not scored" if left else ""),
        soft_wrap=True,
    )
    if dry_run and changed:
        console.print("nothing was written: leave out --dry-run to write what changed")
    elif changed:
        console.print(f"`prunebench leaderboard --results {results}` shows them on the board", soft_wrap=True)
    for reason in dict.fromkeys(entry.problem for entry in left):
        runs = [entry for entry in left if entry.problem == reason]
        errors.print(f"not scored ({len(runs)}): {reason}", style="yellow", soft_wrap=True)
        for entry in runs:
            errors.print(f"  {entry.run_id} {entry.label}", soft_wrap=True)
    return int(bool(left))


def _changes(scored: list[Scored]) -> Table:
    """By metric: in how many runs it is new, changed or gone, and the largest change."""
    runs: Counter[tuple[str, str]] = Counter()
    largest: dict[tuple[str, str], float] = {}
    for entry in scored:
        for change in entry.changes:
            key = change.name, change.kind
            runs[key] += 1
            largest[key] = max(largest.get(key, 0.0), 0.0 if change.size != change.size else change.size)
    table = Table("metric", "what", "runs", "largest change")
    for (name, kind), count in sorted(runs.items()):
        size = largest[name, kind]
        table.add_row(name, kind, str(count), f"{size:.2g}" if size else "")
    return table
