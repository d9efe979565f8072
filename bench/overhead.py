"""What the harness costs beside its cells: runs of a method that hardly trains.

    uv run python bench/overhead.py [--cells 400] [--workers 2] [--page docs/scale.md]

Phases of a run are what its record counts: data, fit, verify, evaluate, cost (mostly latencies, measured in turns). All
else, from the end of a worker's first run to the end of its last, is the harness's own: handing out, locks, files,
events. A fifth of the runs in one process, without workers, show what processes add. Starts of workers are left out:
`start` says when the first run ended.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pages import write_part

from prunebench.api import execute_plan, make_plan
from prunebench.inference.busy import machine_load
from prunebench.report.markdown import pipe_table
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.runner.local import Event
from prunebench.runner.worker import DRAWS_KEPT
from prunebench.suites import Suite

PART = "overhead"
PHASES = ("data", "fit", "verify", "evaluate", "cost")
RECIPE = {"steps": 1, "finetune_steps": 1, "batch_size": 8}


@dataclass(frozen=True)
class Costs:
    """Of runs in `workers` processes (0: in this one): how many were counted, milliseconds of a run."""

    workers: int
    runs: int
    start_seconds: float
    own: float
    phases: Mapping[str, float]


def instant_suite(cells: int) -> Suite:
    """At least so many runs of `random`, their dense models among them: of seeds whose data a worker keeps."""
    rows = max(math.ceil(cells / DRAWS_KEPT) - 1, 1)
    sparsities = tuple(round(0.5 + 0.4 * row / rows, 6) for row in range(rows))
    seeds = tuple(range(DRAWS_KEPT))
    return Suite("instant", ("colored-digits@2pct",), ("random",), sparsities, seeds, recipe=RECIPE)


def measure(cells: int, workers: int) -> Costs:
    """Run an instant suite and count."""
    ends: dict[int, list[tuple[str, float]]] = defaultdict(list)

    def hear(event: Event) -> None:
        if event.kind == "done":
            ends[event.worker].append((event.run.spec.run_id, time.monotonic()))

    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        plan = make_plan(instant_suite(cells), out=Path(folder), device="cpu")
        execute_plan(plan, workers=workers, on_event=hear)
        records = {record.run_id: record for record in Store(Path(folder)).records()[0]}
    failed = [record for record in records.values() if record.status != "ok"]
    for record in failed:
        print(f"failed, so that its time counts as the harness's: {record.run_spec.label}: {record.reason}")
    first = min(end for worker in ends.values() for _, end in worker)
    phases: Counter[str] = Counter()
    for worker in ends.values():
        phases.update(seconds_of([records[run] for run, _ in worker]))
    wall = math.fsum(worker[-1][1] - worker[0][1] for worker in ends.values())
    runs = sum(len(worker) - 1 for worker in ends.values())
    each = {name: 1000 * phases[name] / runs for name in PHASES}
    return Costs(workers, runs, first - begun, 1000 * wall / runs - math.fsum(each.values()), each)


def seconds_of(records: Sequence[RunRecord]) -> dict[str, float]:
    """Seconds that a worker's runs spent in each phase, its first run left out.

    Every run says how long the data of its seed took to load, which a worker does once.
    """
    found: Counter[str] = Counter()
    loaded = {records[0].run_spec.seed}
    for record in records[1:]:
        spent = dict(record.phase_seconds)
        if record.run_spec.seed in loaded:
            spent.pop("data", None)
        loaded.add(record.run_spec.seed)
        found.update(spent)
    return dict(found)


def overhead_markdown(cells: int, workers: int) -> str:
    """Both ways as a table, with how busy the machine was."""
    before = machine_load()
    rows = [
        [
            f"{costs.workers} workers" if costs.workers else "one process",
            f"{costs.runs:,}",
            f"{costs.start_seconds:.1f}",
            *(f"{costs.phases[name]:.1f}" for name in PHASES),
            f"{costs.own:.1f}",
        ]
        for costs in (measure(cells, workers), measure(cells // 5, 0))
    ]
    head = ["", "Runs", "start, s", *(f"{name}, ms" for name in PHASES), "harness, ms"]
    words = (
        f"{before.cores} cores, load {before.load_average} to {machine_load().load_average} while this was measured; "
        "milliseconds are a run's, of one core."
    )
    return f"{words}\n\n{pipe_table(head, rows)}"


def main() -> None:
    """Measure; print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    text = overhead_markdown(options.cells, options.workers)
    print(text)
    if options.page is not None:
        write_part(options.page, PART, text)


if __name__ == "__main__":
    main()
