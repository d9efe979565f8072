"""The terminal: plans, live progress, the board, findings."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from prunebench.cli.console import console, errors, run_table, sparsity_text
from prunebench.cli.listing import print_groups

if TYPE_CHECKING:
    from prunebench.api import Outcome, SuitePlan
    from prunebench.runner.local import Event
    from prunebench.submission import Finding

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def print_plan(plan: SuitePlan, *, every_run: bool = False) -> None:
    """What will run, on which data, and what is already there."""
    for entry in plan.damaged:
        errors.print(f"damaged record: {entry.reason}", style="yellow", soft_wrap=True)
    for name in plan.suite.tasks:
        print_groups(name, plan.context.data_root, plan.suite.seeds[0], every_attribute=every_run)
    if every_run:
        todo = {run.spec.run_id for run in plan.todo}
        table = run_table("task", "method", "sparsity", "seed", "state", title="Plan")
        for run in plan.runs:
            spec = run.spec
            state = "to run" if spec.run_id in todo else "done"
            table.add_row(
                spec.run_id, spec.task, spec.method, sparsity_text(spec.sparsity), str(spec.seed), state
            )
        console.print(table)
    console.print(
        f"suite {plan.suite.name}: {len(plan.runs)} runs, {len(plan.runs) - len(plan.todo)} done, "
        f"{len(plan.todo)} to run on {plan.context.device}; results in {plan.context.out}",
        soft_wrap=True,
    )


class LiveProgress:
    """Runs done, left and failed, time left, and what each worker is doing."""

    def __init__(self, todo: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]runs"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[left]}"),
            console=console,
        )
        self._row = self._bar.add_task("runs", total=todo, failed=0, left="")
        self._todo, self.done, self._failed = todo, 0, 0
        self._start = time.monotonic()
        self._workers: dict[int, str] = {}
        self._latest = ""

    def __rich__(self) -> Group:
        lines = [f"  worker {number}: {text}" for number, text in sorted(self._workers.items())]
        return Group(self._bar, *([self._latest] if self._latest else []), *lines)

    def take(self, event: Event) -> None:
        """Show an event. Failures are also printed once, to stay on the screen."""
        label, values = event.run.spec.label, event.values
        if event.kind == "started":
            self._workers[event.worker] = label
        elif event.kind == "progress":
            step = f"{values['phase']} {values['step']}/{values['steps']} loss {values['loss']:.3f}"
            self._workers[event.worker] = f"{label}: {step}"
        elif event.kind == "busy":
            self._workers[event.worker] = f"{label}: another process has it"
        elif event.kind == "done":
            self._finish(event)

    def _finish(self, event: Event) -> None:
        label, values = event.run.spec.label, event.values
        self.done += 1
        self._workers.pop(event.worker, None)
        if values["status"] != "ok":
            self._failed += 1
            console.print(f"{values['status']} {label}: {values['reason']}", style="red", soft_wrap=True)
        elif values["metrics"]:
            unbiased, conflicting = (values["metrics"][name] or 0 for name in ("unbiased", "conflicting"))
            self._latest = f"  latest: {label}: unbiased {unbiased:.1%}, conflicting {conflicting:.1%}"
        if not console.is_terminal:
            line = f"[{self.done}/{self._todo}] {values['status']} {label}"
            console.print(line, soft_wrap=True)
        elapsed = time.monotonic() - self._start
        seconds = elapsed / self.done * (self._todo - self.done)
        self._bar.update(
            self._row, completed=self.done, failed=self._failed, left=f"about {_duration(seconds)} left"
        )


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def run_with_progress(plan: SuitePlan, workers: int | None) -> int:
    """Carry out a plan, print the table, say where the files are. Gives the exit status."""
    from prunebench.api import run_plan

    start = time.monotonic()
    live = LiveProgress(len(plan.todo))
    screen = (
        Live(live, console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext()
    )
    try:
        with screen:
            outcome = run_plan(plan, workers=workers, on_event=live.take)
    except KeyboardInterrupt:
        errors.print(
            f"stopped with {live.done} of {len(plan.todo)} runs done; the same command again resumes"
        )
        return INTERRUPTED
    return _report(plan, outcome, time.monotonic() - start)


def _report(plan: SuitePlan, outcome: Outcome, seconds: float) -> int:
    from prunebench.leaderboard import build_board
    from prunebench.leaderboard.columns import board_terminal
    from prunebench.results.store import Store

    records = Store(outcome.out).records()[0]
    if outcome.problem is not None:
        errors.print(f"the board links to no analysis: {outcome.problem}", style="red", soft_wrap=True)
    planned = {run.spec.run_id for run in plan.runs}
    for table in board_terminal(build_board(record for record in records if record.run_id in planned)):
        console.print(table)
    site = (outcome.out / "leaderboard" / "site" / "index.html").resolve()
    console.print(
        f"{outcome.ok} runs done, {outcome.reused} reused, {outcome.failed} failed in {_duration(seconds)}\n"
        f"table    {outcome.out / 'leaderboard' / 'README.md'}\npage     {site.as_uri()}\n"
        f"records  {outcome.out / 'runs'}",
        soft_wrap=True,
    )
    mine = [method for method in plan.suite.methods if method.endswith(".py")]
    if mine and not outcome.failed:
        console.print(f"submit   prunebench submission pack {outcome.out} --method {mine[0]}", soft_wrap=True)
    if outcome.failed:
        errors.print("some runs failed; the same command tries them again", style="red")
    return 1 if outcome.failed else 0


def analyze_with_progress(
    results: Path, data_root: Path | None, out: Path | None, tasks: Sequence[str]
) -> int:
    """Analyse stored runs, then write the board with the pages; 1 if a track could not be analysed."""
    from prunebench.analysis.session import analyze_folder

    failed = analyze_folder(results, data_root, tasks, console)
    status = write_leaderboard([results], out or results / "leaderboard")
    return 1 if failed else status


def write_leaderboard(results: Sequence[Path], out: Path, readme: Path | None = None) -> int:
    """Write the board from the records of several folders, and the pages of the analyses stored beside them.

    Gives the exit status: 1 if a record is damaged or does not pass `check`.
    """
    from prunebench.analysis.card_pages import cards_excerpt
    from prunebench.analysis.report import build_pages
    from prunebench.leaderboard.readme import update_readme
    from prunebench.results.store import open_results
    from prunebench.submission import sound_records

    read = [sound_records(open_results(folder)) for folder in results]
    damaged = [entry for _, broken in read for entry in broken]
    for entry in damaged:
        errors.print(f"left out: {entry.reason}", style="red", soft_wrap=True)
    made = build_pages([record for found, _ in read for record in found], results, out)
    if readme is not None:
        update_readme(made.board, readme, cards_excerpt(made.cards))
    console.print(
        f"{made.board.runs} runs -> {out / 'README.md'}, {out / 'site' / 'index.html'}"
        f"; cards, {len(made.analyses)} analyses -> {out / 'analysis' / 'README.md'}",
        soft_wrap=True,
    )
    return 1 if damaged else 0


def print_findings(path: Path, findings: Sequence[Finding], *, faults_only: bool = False) -> int:
    """Print what `check` found, or only what does not hold; and how much holds. Gives the exit status."""
    for finding in findings:
        if finding.ok and faults_only:
            continue
        mark, colour = ("ok  ", "green") if finding.ok else ("FAIL", "red")
        console.print(f"{mark} {finding.what}", style=colour, soft_wrap=True)
        if not finding.ok:
            console.print(f"     {finding.why}", soft_wrap=True)
    bad = sum(not finding.ok for finding in findings)
    console.print(f"{path}: {len(findings) - bad} of {len(findings)} checks hold")
    return 1 if bad else 0


def print_environment(data_root: Path | None) -> None:
    """Versions, device and data, as records will state them."""
    from prunebench.api import choose_device
    from prunebench.errors import DataError
    from prunebench.runner.environment import describe_code, describe_environment
    from prunebench.tasks import resolve_task

    table = Table("what", "found")
    for key, value in {**describe_environment(choose_device("auto")), **describe_code()}.items():
        table.add_row(key, "none" if value is None else str(value))
    for name in ("colored-digits@2pct", "colored-mnist@1pct"):
        try:
            table.add_row(name, f"data fingerprint {resolve_task(name).fingerprint(data_root)}")
        except DataError as error:
            table.add_row(name, f"no data: {error}")
    console.print(table)


def compare_kernels() -> int:
    """Every operation by its kernel and by torch, in a process of its own: Triton's interpreter is chosen there."""
    return subprocess.run([sys.executable, "-m", "prunebench_kernels.self_test"], check=False).returncode
