"""Training budgets chosen on tune draws: how far the dense network has come after so many steps.

    python bench/budgets.py                                     # docs/budgets.md again, from what was measured
    python bench/budgets.py colored-digits@2pct 400 800 1600    # measure these numbers of steps first
    python bench/budgets.py colored-mnist@1pct 1000 3000 --data-root data --seeds 100 101

Of every number of steps and every seed it trains `dense`, and `dense-finetuned` with a quarter as many more. Seeds are
from 100: a tune draw, whose "test" images are held out of the training images (`Task.splits`). What is measured goes
into `budgets.json` beside this file, the tables into the docs; the same command again trains what is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pages import write_part

from prunebench.api import execute_plan, make_plan
from prunebench.errors import UsageError
from prunebench.report.markdown import markdown_table
from prunebench.report.table import Column, RowGroup, Table
from prunebench.results.record import FITTED_NOTE, RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.store import Store
from prunebench.suites import Suite

HERE = Path(__file__).resolve().parent
MEASURED, PAGE = HERE / "budgets.json", HERE.parent / "docs" / "budgets.md"
PART = "budgets"
ENOUGH = 0.99
"""The share of conflicting training images that a net trained to an end labels right."""
METHODS = ("dense", "dense-finetuned")


@dataclass(frozen=True, order=True)
class Measured:
    """One network of a tune draw: accuracies 0 to 1, on its training images (`fitted`) and on those held out."""

    task: str
    version: int
    model: str
    steps: int
    finetune_steps: int
    """0 of the dense model."""
    seed: int
    fitted: float
    unbiased: float
    conflicting: float
    seconds: float
    """Of training alone, in one thread of the machine that it ran on, other work beside it."""

    @classmethod
    def of(cls, record: RunRecord) -> Measured:
        """What a finished run says."""
        spec = record.run_spec
        dense, metrics = spec.method == "dense", record.metrics
        unbiased, conflicting = metrics["unbiased"], metrics["conflicting"]
        assert unbiased is not None
        assert conflicting is not None
        return cls(
            spec.task, spec.task_version, spec.model, spec.recipe.steps,
            0 if dense else spec.recipe.finetune_steps, spec.seed, record.notes[FITTED_NOTE], unbiased, conflicting,
            record.phase_seconds["fit"],
        )  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """A number of steps: the dense model after them, and after a quarter as many more; means over the seeds."""

    steps: int
    dense: Sequence[Measured]
    finetuned: Sequence[Measured]

    @property
    def fitted(self) -> float:
        """Share of its conflicting training images that the dense net labels right."""
        return statistics.fmean(run.fitted for run in self.dense)


def finetuning(steps: int) -> int:
    """The steps of fine-tuning that go with `steps` of training."""
    return max(steps // 4, 1)


def measure(
    task: str, grid: Sequence[int], seeds: Sequence[int], model: str | None, data_root: Path | None, out: Path
) -> Iterator[Measured]:
    """Train what is missing in `out`, a store a number of steps; yields all that was asked for."""
    if min(seeds) < TUNE_SEEDS:
        raise UsageError(
            f"seeds below {TUNE_SEEDS} are judged on the test split: budgets are chosen on others"
        )
    for steps in grid:
        recipe = {"steps": steps, "finetune_steps": finetuning(steps)}
        suite = Suite("budgets", (task,), METHODS, (0.5,), tuple(seeds), model=model, recipe=recipe)
        plan = make_plan(suite, out=out, data_root=data_root, keep_models=False)
        execute_plan(plan, workers=0)
        wanted = {run.spec.run_id for run in plan.runs}
        for record in Store(out).records()[0]:
            if record.run_id in wanted and record.status == "ok":
                yield Measured.of(record)


def read_measured() -> list[Measured]:
    """All that was measured, in order."""
    return [Measured(**values) for values in json.loads(MEASURED.read_text())] if MEASURED.is_file() else []


def write_measured(runs: Sequence[Measured]) -> None:
    """In order, a line a network; later ones stand for earlier ones of the same."""
    latest = {(run.task, run.model, run.steps, run.finetune_steps, run.seed): run for run in runs}
    lines = ",\n".join(json.dumps(asdict(run)) for run in sorted(latest.values()))
    MEASURED.write_text(f"[\n{lines}\n]\n")


def budgets_by_task(runs: Sequence[Measured]) -> dict[tuple[str, str], list[Budget]]:
    """By task (in its latest version) and model, the budgets in rising order."""
    latest = {run.task: run.version for run in sorted(runs)}
    found: dict[tuple[str, str], dict[int, list[Measured]]] = {}
    for run in sorted(run for run in runs if run.version == latest[run.task]):
        found.setdefault((run.task, run.model), {}).setdefault(run.steps, []).append(run)
    return {
        key: [
            Budget(steps, [r for r in all_ if not r.finetune_steps], [r for r in all_ if r.finetune_steps])
            for steps, all_ in grid.items()
        ]
        for key, grid in found.items()
    }


def choose(grid: Sequence[Budget]) -> Budget:
    """The rule: the fewest steps after which the dense net has fitted its conflicting images, else the most."""
    return next((budget for budget in grid if budget.fitted >= ENOUGH), grid[-1])


def mean_of(values: Sequence[float]) -> float | None:
    """None of none: a network that is still to be trained."""
    return statistics.fmean(values) if values else None


def table(runs: Sequence[Measured]) -> str:
    """All budgets as Markdown, the chosen ones marked."""

    def mean(of: str, field: str) -> Column[Budget]:
        words = "" if of == "dense" else ", fine-tuned"
        return Column(
            f"{of}_{field}",
            f"{field}{words} (%)",
            value=lambda budget: mean_of([getattr(run, field) for run in getattr(budget, of)]),
            format=lambda value: f"{100 * value:.1f}",
        )

    groups = []
    for (task, model), grid in budgets_by_task(runs).items():
        chosen = choose(grid)
        seeds = ", ".join(str(run.seed) for run in grid[0].dense)
        end = "" if chosen.fitted >= ENOUGH else "; none fits them, the most is taken"
        version = grid[0].dense[0].version
        words = f"{task} (version {version}), {model}, tune seeds {seeds}{end}"
        groups.append(RowGroup(tuple(grid), words))
    chosen_ones = {id(choose(group.rows)) for group in groups}
    columns: list[Column[Budget]] = [
        Column("steps", "steps", format=lambda value: f"{value:,}"),
        Column("chosen", "chosen", value=lambda b: "yes" if id(b) in chosen_ones else None, numeric=False),
        *(mean("dense", field) for field in ("fitted", "unbiased", "conflicting")),
        *(mean("finetuned", field) for field in ("fitted", "unbiased", "conflicting")),
        Column(
            "seconds",
            "seconds a network",
            value=lambda budget: statistics.fmean(run.seconds for run in budget.dense),
            format=lambda value: f"{value:,.0f}",
        ),
    ]
    return markdown_table(Table(tuple(columns), tuple(groups)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("task", nargs="?")
    parser.add_argument("steps", nargs="*", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101, 102])
    parser.add_argument("--model")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/budgets"))
    given = parser.parse_args()
    runs = read_measured()
    if given.task:
        for steps in given.steps:  # what is done is kept, whenever this ends
            runs += measure(given.task, [steps], given.seeds, given.model, given.data_root, given.out)
            write_measured(runs)
    write_part(PAGE, PART, table(read_measured()))


if __name__ == "__main__":
    main()
