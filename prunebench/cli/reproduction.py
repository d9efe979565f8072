"""The words of `prunebench reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunebench.cli.console import console, errors
from prunebench.cli.listing import default_results
from prunebench.errors import UsageError
from prunebench.results.record import RunRecord
from prunebench.results.store import Store, open_results, write_atomically
from prunebench.runner.reproduce import (
    check_versions,
    find_rows,
    row_differences,
    same_logits,
    suite_of,
    suite_toml,
    what_changed,
)


def reproduce(row: str, results: Path | None, out: Path | None, data_root: Path | None, *, run: bool) -> int:
    """Write the suite that makes a row again; say the command, or run it and compare. Gives the exit status."""
    folder = results or default_results()
    records = find_rows(row, open_results(folder).records()[0])
    spec = records[0].run_spec
    name = f"{spec.task}-{spec.method}-{'native' if spec.sparsity is None else spec.sparsity}"
    out = out or Path("results") / "reproduce" / "".join(
        c if c.isalnum() or c in "-.@" else "-" for c in name
    )
    check_versions(records)
    file = out / "suite.toml"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(file, suite_toml(suite_of(records)).encode())
    if not run:
        console.print(f"prunebench run {file} --out {out}", soft_wrap=True)
        console.print(
            f"then `prunebench reproduce {row} --run` compares it with {folder}", style="dim", soft_wrap=True
        )
        return 0
    from prunebench.api import make_plan
    from prunebench.cli.progress import run_with_progress
    from prunebench.suites import load_suite

    suite = load_suite(str(file))
    plan = make_plan(
        suite, out=out, data_root=data_root, device=str(records[0].environment.get("device") or "cpu")
    )
    planned = {entry.spec.run_id for entry in plan.runs}
    lost = [record for record in records if record.run_id not in planned]
    if lost:
        raise UsageError(
            f"{lost[0].run_id}: this checkout plans another run: {what_changed(lost[0], plan.runs)}"
        )
    status = run_with_progress(plan)
    return status or print_agreement(records, Store(out))


def print_agreement(records: Sequence[RunRecord], store: Store) -> int:
    """Compare what was made with what is committed: bit by bit on one processor, row by row else. 1: it differs."""
    pairs = [(record, store.read(record.run_id)) for record in records]
    same = same_logits(pairs)
    if same == len(pairs):
        console.print(
            f"reproduced: the same logits, bit for bit, in {same} of {len(pairs)} runs", style="green"
        )
        return 0
    machines = {
        str(run.environment.get("gpu") or run.environment.get("cpu")) for pair in pairs for run in pair
    }
    versions = {str(run.environment.get("torch")) for pair in pairs for run in pair}
    where = f"{' and '.join(sorted(machines))}, torch {' and '.join(sorted(versions))}"
    console.print(f"{same} of {len(pairs)} runs have the same logits, bit for bit ({where})", soft_wrap=True)
    found = row_differences(pairs)
    for entry in found:
        mark, colour = ("close:  ", "green") if entry.close else ("DIFFERS:", "red")
        line = f"{mark} {entry.metric} {entry.there:.1%} there, {entry.here:.1%} here"
        console.print(f"{line} (close within {entry.room * 100:.1f} points)", style=colour, soft_wrap=True)
    if found and all(entry.close for entry in found):
        console.print(
            "reproduced: every mean is as close as another processor's", style="green", soft_wrap=True
        )
        return 0
    errors.print("not reproduced", style="red")
    return 1
