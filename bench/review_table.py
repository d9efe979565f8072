"""The review's table: what more steps, equal compute and the places of a mask are worth by themselves.

    uv run python bench/review_table.py [--out results/review] [--seed 3] [--page docs/controls.md]

Runs what the board's results and --out lack of the suite `review` (the same command resumes), writes the table between
the markers of the page and its numbers beside it. Only finished runs of the current plan are shown; an arm that lacks
seeds has no row.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pages import write_part

from prunebench.api import execute_plan, make_plan
from prunebench.report import format as fmt
from prunebench.report.markdown import escape, markdown_table
from prunebench.report.table import Column, RowGroup, Table, text_column
from prunebench.results.record import RunRecord
from prunebench.results.store import Store, open_results, write_atomically
from prunebench.stats.intervals import Interval, mean_interval
from prunebench.stats.multiplicity import holm_adjusted
from prunebench.stats.tests import paired_p_value
from prunebench.suites import Suite, load_suite

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "controls.md"
PART = "review"
METRICS = ("conflicting", "aligned")
FIELDS = ("task", "method", "sparsity", "achieved", "seed", "steps", *METRICS)
SMOKE = {"steps": 30, "finetune_steps": 10, "batch_size": 32}


@dataclass(frozen=True)
class Arm:
    """A row: a method, what it shows, and the control that it is paired with."""

    method: str
    words: str
    control: str | None = None


GROUPS: Mapping[str, tuple[Arm, ...]] = {
    "Steps alone": (
        Arm("dense", "unpruned, as every method begins from it", "dense-finetuned"),
        Arm("dense-finetuned", "unpruned, with the steps of a pruned network"),
        Arm("magnitude", "one-shot, fine-tuned", "dense-finetuned"),
        Arm("dense-long", "unpruned, with the steps of imp", "dense-finetuned"),
        Arm("imp", "at equal compute", "dense-long"),
    ),
    "Masks learned by MRM": (
        Arm("dense-from-init", "unpruned, one schedule of all steps"),
        Arm("mrm", "native: its own threshold", "mrm-shuffled-mask"),
        Arm("mrm-shuffled-mask", "random mask with MRM's layer counts", "dense-from-init"),
        Arm("mrm-swept", "sparsity reached inside the training of the mask", "mrm-swept-shuffled-mask"),
        Arm("mrm-swept-shuffled-mask", "random mask with its layer counts", "dense-from-init"),
    ),
    "DCWP part by part": (
        Arm("dcwp-dense", "mining, weights, contrastive loss; no pruning", "dense-finetuned"),
        Arm("dcwp-magnitude-mask", "the largest weights", "dcwp-dense"),
        Arm("dcwp-shuffled-mask", "random mask with DCWP's layer counts", "dcwp-dense"),
        Arm("dcwp", "DCWP's own mask", "dcwp-shuffled-mask"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ReviewRun:
    """One finished run, as it rests beside the page."""

    task: str
    method: str
    sparsity: str
    achieved: float
    seed: int
    steps: int
    conflicting: float
    aligned: float


@dataclass(frozen=True)
class ReviewRow:
    """One arm: means over seeds, and the difference from its control with Holm's p over all arms."""

    arm: Arm
    sparsity: str
    achieved: float
    steps: int
    conflicting: Interval
    aligned: Interval
    difference: Interval | None
    p_value: float | None


# Runs


def run_of(record: RunRecord) -> ReviewRun:
    """What the table needs of a finished run's record."""
    assert record.sparsity is not None
    assert record.cost is not None
    asked = record.spec["sparsity"]
    values = [record.metrics[name] for name in METRICS]
    return ReviewRun(
        record.spec["task"],
        record.method["name"],
        "native" if asked is None else f"{asked:g}",
        round(record.sparsity.achieved, 6),
        record.spec["seed"],
        record.cost.training_steps,
        *(math.nan if value is None else round(value, 6) for value in values),
    )


def run_suite(
    suite: Suite, out: Path, workers: int | None, known: Sequence[Path] = (), *, train: bool = True
) -> list[ReviewRun]:
    """Run what a folder, and results that are `known`, lack of a suite; gives the finished runs of the plan."""
    plan = make_plan(suite, out=out, device="cpu")
    planned = {run.spec.run_id for run in plan.runs}
    found = {
        entry.run_id: entry
        for folder in known
        for entry in open_results(folder).records()[0]
        if entry.status == "ok" and entry.run_id in planned
    }
    todo = [run for run in plan.todo if run.spec.run_id not in found]
    print(f"{len(todo)} of {len(plan.runs)} runs to do", file=sys.stderr)
    outcome = execute_plan(replace(plan, todo=todo if train else []), workers=workers)
    if outcome.failed:
        print(f"{outcome.failed} runs failed; the same command tries them again", file=sys.stderr)
    for entry in Store(out).records()[0]:
        if entry.status == "ok" and entry.run_id in planned:
            found[entry.run_id] = entry
    return [run_of(entry) for entry in found.values()]


# Table


def rows_of(runs: Sequence[ReviewRun]) -> tuple[dict[str, list[ReviewRow]], list[str]]:
    """Rows by group; and which arms lack seeds."""
    by_arm: dict[str, dict[int, ReviewRun]] = {}
    for run in runs:
        by_arm.setdefault(run.method, {})[run.seed] = run
    seeds = {run.seed for run in runs}
    arms = [arm for group in GROUPS.values() for arm in group]
    whole = {arm.method for arm in arms if set(by_arm.get(arm.method, {})) == seeds != set()}
    values = {
        name: {seed: run.conflicting for seed, run in members.items()} for name, members in by_arm.items()
    }
    paired = [arm for arm in arms if arm.control is not None and {arm.method, arm.control} <= whole]
    adjusted = holm_adjusted([paired_p_value(values[a.method], values[a.control or ""]) for a in paired])
    p_values = dict(zip([arm.method for arm in paired], adjusted))

    def row(arm: Arm) -> ReviewRow:
        members = [by_arm[arm.method][seed] for seed in sorted(seeds)]
        difference, p_value = None, p_values.get(arm.method, math.nan)
        if arm.method in p_values:
            control = values[arm.control or ""]
            difference = mean_interval([run.conflicting - control[run.seed] for run in members])
        return ReviewRow(
            arm,
            members[0].sparsity,
            math.fsum(run.achieved for run in members) / len(members),
            round(sum(run.steps for run in members) / len(members)),
            mean_interval([run.conflicting for run in members]),
            mean_interval([run.aligned for run in members]),
            difference,
            p_value if math.isfinite(p_value) else None,
        )

    found = {name: [row(arm) for arm in group if arm.method in whole] for name, group in GROUPS.items()}
    missing = [
        f"{arm.method}: {len(by_arm.get(arm.method, {}))} of {fmt.plural(len(seeds), 'seed')}"
        for arm in arms
        if arm.method not in whole
    ]
    return found, missing


COLUMNS: tuple[Column[ReviewRow], ...] = (
    text_column("method", "Method", value=lambda row: row.arm.method, lead=True),
    text_column("words", "What it is", value=lambda row: row.arm.words),
    Column("achieved", "Sparsity", "Counted", format=lambda value: f"{value:.2f}"),
    Column("steps", "Steps", "All steps of training, of whatever network"),
    Column("conflicting", "Conflicting, %", format=fmt.with_half_width),
    Column("aligned", "Aligned, %", format=fmt.with_half_width),
    text_column("control", "Control", value=lambda row: row.arm.control),
    Column("difference", "Minus control, points", format=fmt.with_half_width),
    Column("p_value", "p", "Paired t-test over seeds, Holm over all rows", format=fmt.p_value),
)


def review_markdown(runs: Sequence[ReviewRun]) -> str:
    """The table with what its numbers mean; a sentence for arms that lack seeds."""
    if not runs:
        return "No runs yet."
    groups, missing = rows_of(runs)
    tasks, seeds = sorted({run.task for run in runs}), sorted({run.seed for run in runs})
    table = Table(COLUMNS, tuple(RowGroup(tuple(rows), name) for name, rows in groups.items() if rows))
    parts = [
        f"{escape(', '.join(tasks))}, {fmt.listed('seed', seeds)}: accuracy on bias-conflicting and bias-aligned test "
        "images, mean ± half-width of the 95 % t-interval over seeds; beside it the difference in conflicting accuracy "
        "from the row's control, paired by seed, with p of the paired t-test after Holm's correction over all rows.",
        markdown_table(table),
    ]
    if missing:
        parts.append(f"Without all seeds, and so without a row: {escape('; '.join(missing))}.")
    return "\n\n".join(parts)


# Files


def runs_csv(runs: Iterable[ReviewRun]) -> str:
    """The runs as CSV, sorted, a run a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for run in sorted(runs, key=lambda run: (run.method, run.sparsity, run.seed)):
        writer.writerow([getattr(run, name) for name in FIELDS])
    return text.getvalue()


def read_runs(path: Path) -> list[ReviewRun]:
    """The runs that rest in a file of `runs_csv`."""
    kinds = {"achieved": float, "seed": int, "steps": int} | dict.fromkeys(METRICS, float)
    with path.open(encoding="utf-8", newline="") as file:
        return [
            ReviewRun(**{name: kinds.get(name, str)(value) for name, value in row.items()})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def main() -> None:
    """Run, then write the page and its numbers; with --smoke neither is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/review"), help="the results folder")
    parser.add_argument("--seed", type=int, nargs="+", default=[], help="these seeds in place of the suite's")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose marked part is replaced")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[ROOT / "leaderboard" / "results"],
        help="results folders whose rows are taken as they are (default: the board's)",
    )
    parser.add_argument("--no-run", action="store_true", help="show what is there and train nothing")
    parser.add_argument("--smoke", action="store_true", help="a few steps a run; prints and writes no page")
    options = parser.parse_args()
    suite = load_suite("review").narrowed(seeds=options.seed)
    if options.smoke:
        params = {
            name: {"mask_steps": 20} | ({"mining_steps": 20} if name.startswith("dcwp") else {})
            for name in suite.methods
            if "dcwp" in name or "mrm" in name
        }
        suite = replace(suite, name="review-smoke", recipe=SMOKE, params=params)
    known = [] if options.smoke else options.results
    runs = run_suite(suite, options.out, options.workers, known, train=not options.no_run)
    table = review_markdown(runs)
    print(table)
    if not options.smoke:
        write_atomically(options.page.with_suffix(".csv"), runs_csv(runs).encode())
        write_part(options.page, PART, table)


if __name__ == "__main__":
    main()
