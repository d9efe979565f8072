"""The terminal: plans, live progress, the board, findings."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from prunebench.cli.console import Field, console, duration, errors, fitting_table, sparsity_text
from prunebench.cli.groups import print_groups
from prunebench.cli.timing import print_disturbed, warn_if_busy

if TYPE_CHECKING:
    from prunebench.api import Launcher, Outcome, SuitePlan
    from prunebench.results.spec import RunSpec
    from prunebench.runner.local import Event
    from prunebench.submission import Finding

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
HEARTBEAT = 30.0
"""Seconds without a line after which one says what is going on, where there is no terminal."""


def print_plan(plan: SuitePlan, workers: int, *, every_run: bool = False) -> None:
    """What will run, on which data, and what is already there; for a dry run also by method, how long and how large."""
    for entry in plan.damaged:
        errors.print(f"damaged record: {entry.reason}", style="yellow", soft_wrap=True)
    logits = {}
    for name in plan.suite.tasks:
        task, splits = print_groups(
            name, plan.context.data_root, plan.suite.seeds[0], every_attribute=every_run
        )
        logits[name] = task.num_outputs * (len(splits.val) + len(splits.test))
    if every_run:
        console.print(_plan_table(plan))
    console.print(
        f"suite {plan.suite.name}: {len(plan.runs)} runs, {len(plan.runs) - len(plan.todo)} done, "
        f"{len(plan.todo)} to run on {plan.context.device}; results in {plan.context.out}",
        soft_wrap=True,
    )
    if every_run:
        from prunebench.cli.estimate import disk_bytes, time_words

        console.print(f"time     {time_words(plan, workers)}", soft_wrap=True)
        console.print(f"disk     {disk_bytes(plan, logits) / 1e6:,.1f} MB", soft_wrap=True)


def _plan_table(plan: SuitePlan) -> Table:
    """A row a task and method: at which sparsities and seeds, and how much of it is to run."""
    todo = {run.spec.run_id for run in plan.todo}
    rows: dict[tuple[str, str], list[RunSpec]] = {}
    for run in plan.runs:
        rows.setdefault((run.spec.task, run.spec.method), []).append(run.spec)
    fields = (
        Field("task", drop=1), Field("method"), Field("sparsities", whole=False), Field("seeds", drop=2, whole=False),
        Field("state"),
    )  # fmt: skip
    lines = []
    for (task, method), specs in rows.items():
        left = sum(spec.run_id in todo for spec in specs)
        levels = dict.fromkeys(spec.sparsity for spec in specs)
        seeds = dict.fromkeys(str(spec.seed) for spec in specs)
        state = (
            f"{left} to run"
            if left == len(specs)
            else f"{left} to run, {len(specs) - left} done"
            if left
            else "done"
        )
        lines.append((task, method, " ".join(map(sparsity_text, levels)), " ".join(seeds), state))
    return fitting_table(fields, lines)[0]


class LiveProgress:
    """Runs done, left and failed, rate and time left, and what each worker is doing.

    Where there is no terminal, a line a run, and one from time to time while none ends.
    """

    def __init__(self, todo: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]runs"),
            BarColumn(bar_width=min(30, max(10, console.width - 60))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[left]}"),
            console=console,
        )
        self._row = self._bar.add_task("runs", total=todo, failed=0, left="")
        self._todo, self.done, self._failed = todo, 0, 0
        self._start = self._said = time.monotonic()
        self._begun: dict[int, float] = {}
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
            self._begun[event.worker] = time.monotonic()
        elif event.kind == "progress":
            step = f"{values['phase']} {values['step']}/{values['steps']} loss {values['loss']:.3f}"
            self._workers[event.worker] = f"{label}: {step}"
            if not console.is_terminal and time.monotonic() - self._said > HEARTBEAT:
                self._say(f"[{self.done}/{self._todo}] ... {label}: {step}; {self._outlook()}")
        elif event.kind == "again":
            self._workers.pop(event.worker, None)
            console.print(f"again {label}: {values['reason']}", style="yellow", soft_wrap=True)
        elif event.kind == "busy":
            self._workers[event.worker] = f"{label}: another process has it"
        elif event.kind == "done":
            self._finish(event)

    def _finish(self, event: Event) -> None:
        label, values = event.run.spec.label, event.values
        self.done += 1
        self._workers.pop(event.worker, None)
        now = time.monotonic()
        metrics = _accuracies(values["metrics"])
        if values["status"] != "ok":
            self._failed += 1
            console.print(f"{values['status']} {label}: {values['reason']}", style="red", soft_wrap=True)
        elif metrics:
            self._latest = f"  latest: {label}: {metrics}"
        if not console.is_terminal:
            took = duration(now - self._begun.get(event.worker, now))
            line = f"[{self.done}/{self._todo}] {values['status']} {label}{metrics and f': {metrics}'}"
            self._say(f"{line}; took {took}, {self._outlook()}")
        self._bar.update(self._row, completed=self.done, failed=self._failed, left=self._outlook())

    def _outlook(self) -> str:
        """Runs a minute so far, and the time left at that rate."""
        elapsed = time.monotonic() - self._start
        if not self.done or not elapsed:
            return "no run done yet"
        rate = self.done / elapsed
        return f"{60 * rate:.1f} runs/min, about {duration((self._todo - self.done) / rate)} left"

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        console.print(line, soft_wrap=True)


def _accuracies(metrics: Mapping[str, float | None]) -> str:
    """`unbiased 61.2%, conflicting 57.0%`: those that a run has."""
    found = ((name, metrics.get(name)) for name in ("unbiased", "conflicting"))
    return ", ".join(f"{name} {value:.1%}" for name, value in found if value is not None)


def run_with_progress(plan: SuitePlan, launcher: Launcher | None = None) -> int:
    """Carry out a plan, by default on this machine, print the table, say where the files are. Gives the exit status."""
    from prunebench.api import run_plan

    warn_if_busy()
    start = time.monotonic()
    live = LiveProgress(len(plan.todo))
    screen = (
        Live(live, console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext()
    )
    try:
        with screen:
            outcome = run_plan(plan, launcher=launcher, on_event=live.take)
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
        f"{outcome.ok} runs done, {outcome.reused} reused, {outcome.failed} failed in {duration(seconds)}\n"
        f"table    {outcome.out / 'leaderboard' / 'README.md'}\npage     {site.as_uri()}\n"
        f"records  {outcome.out / 'runs'}",
        soft_wrap=True,
    )
    mine = [method for method in plan.suite.methods if method.endswith(".py")]
    if mine and not outcome.failed:
        console.print(f"submit   prunebench submission pack {outcome.out} --method {mine[0]}", soft_wrap=True)
    print_disturbed((record for record in records if record.run_id in planned), outcome.out)
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


def write_leaderboard(
    results: Sequence[Path], out: Path, readme: Path | None = None, diff: Path | None = None
) -> int:
    """Write the board from the records of several folders, and the pages of the analyses stored beside them.

    Gives the exit status: 1 if a record is damaged or does not pass `check`.
    """
    from prunebench.analysis.card_pages import cards_excerpt
    from prunebench.analysis.report import build_pages
    from prunebench.leaderboard import build_board
    from prunebench.leaderboard.readme import update_readme
    from prunebench.results.standing import read_standing
    from prunebench.results.store import open_results
    from prunebench.submission import sound_records

    read = [sound_records(open_results(folder)) for folder in results]
    damaged = [entry for _, broken in read for entry in broken]
    for entry in damaged:
        errors.print(f"left out: {entry.reason}", style="red", soft_wrap=True)
    earlier = None if diff is None else build_board(sound_records(open_results(diff))[0], read_standing(diff))
    made = build_pages([record for found, _ in read for record in found], results, out, earlier)
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
