"""What the command line prints: plans, live progress, listings, findings."""

from __future__ import annotations

import codecs
import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from prunebench.spec import number_text

if TYPE_CHECKING:
    from prunebench.api import Outcome, Plan
    from prunebench.launch import Event
    from prunebench.submission import Finding

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
PIPE_WIDTH = 140
"""Columns of what is piped or logged; a terminal keeps its own width."""


PLAIN_SIGNS = {
    "\N{PLUS-MINUS SIGN}": "+-", "\N{MULTIPLICATION SIGN}": "x", "\N{EN DASH}": "-", "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-", "\N{HORIZONTAL ELLIPSIS}": "...", "\N{RIGHTWARDS ARROW}": "->", "\N{BULLET}": "*",
}  # fmt: skip
"""What stands for a sign that a terminal's encoding lacks."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Signs that cannot be encoded in ASCII: the last words of a run must not be a traceback."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(PLAIN_SIGNS.get(sign, "?") for sign in signs), error.end


def speak_plainly(*streams: object) -> None:
    """Let streams replace what their encoding lacks, such as a terminal's in ASCII or cp437."""
    codecs.register_error("prunebench-plain", _plainly)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="prunebench-plain")


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is, and does not cut tables at 80 columns where there is no terminal."""
    speak_plainly(sys.stderr if stderr else sys.stdout)
    plain = Console(stderr=stderr, markup=False, highlight=False)
    return (
        plain
        if plain.is_terminal
        else Console(stderr=stderr, markup=False, highlight=False, width=max(plain.width, PIPE_WIDTH))
    )


console = make_console()
errors = make_console(stderr=True)


def run_table(*columns: str, title: str | None = None) -> Table:
    """A table whose first column is a run id, never cut."""
    table = Table(title=title)
    table.add_column("run", no_wrap=True)
    for column in columns:
        table.add_column(column)
    return table


def print_plan(plan: Plan, *, every_cell: bool = False) -> None:
    """What will run, on which data, and what is already there."""
    for entry in plan.damaged:
        errors.print(f"damaged record: {entry.reason}", style="yellow", soft_wrap=True)
    for name in plan.suite.tasks:
        print_groups(name, plan.place.data_root, plan.suite.seeds[0], every_attribute=every_cell)
    if every_cell:
        todo = {cell.spec.run_id for cell in plan.todo}
        table = run_table("task", "method", "sparsity", "seed", "state", title="Plan")
        for cell in plan.cells:
            spec = cell.spec
            state = "to run" if spec.run_id in todo else "done"
            table.add_row(
                spec.run_id, spec.task, spec.method, sparsity_text(spec.sparsity), str(spec.seed), state
            )
        console.print(table)
    console.print(
        f"suite {plan.suite.name}: {len(plan.cells)} cells, {len(plan.cells) - len(plan.todo)} done, "
        f"{len(plan.todo)} to run on {plan.place.device}; results in {plan.place.out}",
        soft_wrap=True,
    )


def sparsity_text(sparsity: float | None) -> str:
    """A sparsity as people write it; `native` where the method chooses it."""
    return "native" if sparsity is None else number_text(sparsity)


def print_groups(
    task_name: str, data_root: Path | None, seed: int = 0, *, every_attribute: bool = False
) -> None:
    """The groups of a task as loaded, and on demand the attributes of a multi-label one."""
    from prunebench.tasks import resolve_task
    from prunebench.tasks.tables import task_tables

    task = resolve_task(task_name, data_root)
    for remark in task.remarks(data_root):
        errors.print(f"{task.name}: {remark}", style="yellow", soft_wrap=True)
    for table in task_tables(task, task.splits(data_root, seed), every_attribute=every_attribute):
        console.print(table)


class LiveProgress:
    """Cells done, left and failed, time left, and what each worker is doing."""

    def __init__(self, todo: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]cells"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[left]}"),
            console=console,
        )
        self._row = self._bar.add_task("cells", total=todo, failed=0, left="")
        self._todo, self.done, self._failed = todo, 0, 0
        self._start = time.monotonic()
        self._workers: dict[int, str] = {}
        self._latest = ""

    def __rich__(self) -> Group:
        lines = [f"  worker {number}: {text}" for number, text in sorted(self._workers.items())]
        return Group(self._bar, *([self._latest] if self._latest else []), *lines)

    def take(self, event: Event) -> None:
        """Show an event. Failures are also printed once, to stay on the screen."""
        label, values = event.cell.spec.label, event.values
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
        label, values = event.cell.spec.label, event.values
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


def run_with_progress(plan: Plan, workers: int | None) -> int:
    """Carry out a plan, print the table, say where the files are. Gives the exit status."""
    from prunebench.api import carry_out

    start = time.monotonic()
    live = LiveProgress(len(plan.todo))
    screen = (
        Live(live, console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext()
    )
    try:
        with screen:
            outcome = carry_out(plan, workers=workers, on_event=live.take)
    except KeyboardInterrupt:
        errors.print(
            f"stopped with {live.done} of {len(plan.todo)} cells done; the same command again resumes"
        )
        return INTERRUPTED
    return _report(plan, outcome, time.monotonic() - start)


def _report(plan: Plan, outcome: Outcome, seconds: float) -> int:
    from prunebench.analysis.publish import publish_run
    from prunebench.leaderboard import build_board
    from prunebench.leaderboard.terminal import terminal_table
    from prunebench.store import Store

    records = Store(outcome.out).records()[0]
    problem = publish_run(records, outcome.out, outcome.out / "leaderboard")
    if problem is not None:
        errors.print(f"the board links to no analysis: {problem}", style="red", soft_wrap=True)
    planned = {cell.spec.run_id for cell in plan.cells}
    for table in terminal_table(build_board(record for record in records if record.run_id in planned)):
        console.print(table)
    site = (outcome.out / "leaderboard" / "site" / "index.html").resolve()
    console.print(
        f"{outcome.ok} cells run, {outcome.reused} reused, {outcome.failed} failed in {_duration(seconds)}\n"
        f"table    {outcome.out / 'leaderboard' / 'README.md'}\npage     {site.as_uri()}\n"
        f"records  {outcome.out / 'runs'}",
        soft_wrap=True,
    )
    if outcome.failed:
        errors.print("some cells failed; the same command tries them again", style="red")
    return 1 if outcome.failed else 0


def analyze_with_progress(
    results: Path, data_root: Path | None, out: Path | None, tasks: Sequence[str]
) -> int:
    """Analyse stored runs, then write the board with the pages; 1 if a section could not be analysed."""
    from prunebench.analysis.session import analyze_folder

    failed = analyze_folder(results, data_root, tasks, console)
    status = write_leaderboard([results], out or results / "leaderboard", redraw=True)
    return 1 if failed else status


def write_leaderboard(
    results: Sequence[Path], out: Path, readme: Path | None = None, *, redraw: bool = False
) -> int:
    """Write the board from the records of several folders, and the pages of the analyses stored beside them.

    Still figures are drawn where they are missing or out of date, with `redraw` all. Gives the exit status: 1 if a
    record is damaged or does not pass `check`.
    """
    from prunebench.analysis.markdown import claims_excerpt
    from prunebench.analysis.publish import publish
    from prunebench.leaderboard.excerpt import update_readme
    from prunebench.store import open_results
    from prunebench.submission import sound_records

    read = [sound_records(open_results(folder)) for folder in results]
    damaged = [entry for _, broken in read for entry in broken]
    for entry in damaged:
        errors.print(f"left out: {entry.reason}", style="red", soft_wrap=True)
    made = publish([record for found, _ in read for record in found], results, out, redraw=redraw)
    if readme is not None:
        update_readme(made.board, readme, claims_excerpt(made.analyses))
    console.print(
        f"{made.board.runs} runs -> {out / 'README.md'}, {out / 'site' / 'index.html'}"
        + (f"; {len(made.analyses)} analyses -> {out / 'analysis' / 'README.md'}" if made.analyses else ""),
        soft_wrap=True,
    )
    return 1 if damaged else 0


def print_findings(path: Path, findings: Sequence[Finding]) -> int:
    """Print what `check` found. Gives the exit status."""
    for finding in findings:
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
    from prunebench.environment import describe_code, describe_environment
    from prunebench.errors import DataError
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


def time_with_progress(results: Path, data_root: Path | None, device: str) -> int:
    """Time stored models again and say what was left; 1 if a record could not be timed."""
    from prunebench.api import choose_device
    from prunebench.timing import time_again

    left = 0
    for timed in time_again(results, data_root, choose_device(device)):
        cost, label = timed.record.cost, timed.record.run_spec.label
        assert cost is not None
        if timed.problem is None:
            pair = f"{cost.latency_dense_ms.p50:.2f} / {cost.latency_pruned_ms.p50:.2f} ms"
            console.print(f"[{timed.done}/{timed.total}] {label}: dense / pruned {pair}", highlight=False)
        else:
            left += 1
            console.print(
                f"[{timed.done}/{timed.total}] {label}: left as it was: {timed.problem}", highlight=False
            )
    return int(left > 0)
