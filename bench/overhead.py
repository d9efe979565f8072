"""What the harness costs beside its cells: thousands of runs of a method that hardly trains.

    uv run python bench/overhead.py [--cells 2000] [--workers 2] [--page docs/scale.md]

Phases of a run are what its record counts: data, fit, verify, evaluate, cost (mostly latencies, interleaved). All
else - handing out, locks, files, events, a worker's start - is the harness's own: the workers' time less the phases.
The same runs in one process, without workers, show what processes add.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from pathlib import Path

from pages import write_part

from prunebench.api import execute_plan, make_plan
from prunebench.inference.busy import machine_load
from prunebench.report.markdown import pipe_table
from prunebench.results.store import Store
from prunebench.suites import Suite

PART = "overhead"
PHASES = ("data", "fit", "verify", "evaluate", "cost")
SPARSITIES = tuple(round(0.5 + 0.02 * step, 2) for step in range(20))
RECIPE = {"steps": 1, "finetune_steps": 1, "batch_size": 8}


def instant_suite(cells: int) -> Suite:
    """At least so many runs of `random` beside their dense models, a seed for every twenty."""
    seeds = math.ceil(cells / (len(SPARSITIES) + 1))
    return Suite(
        "instant", ("colored-digits@2pct",), ("random",), SPARSITIES, tuple(range(seeds)), recipe=RECIPE
    )


def measure(cells: int, workers: int) -> tuple[int, float, float, dict[str, float]]:
    """Runs, wall seconds from the first event to the end, seconds before it, and mean seconds of each phase."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        first: list[float] = []
        plan = make_plan(instant_suite(cells), out=Path(folder), device="cpu")
        outcome = execute_plan(
            plan,
            workers=workers,
            on_event=lambda _: first.append(time.monotonic()) if not first else None,
        )
        ended = time.monotonic()
        records = Store(Path(folder)).records()[0]
    assert outcome.failed == 0
    phases: Counter[str] = Counter()
    for record in records:
        phases.update({name: seconds for name, seconds in record.phase_seconds.items() if name != "data"})
    # A draw is loaded once a worker, and each of its runs says how long that took.
    loads = {(record.run_spec.seed, record.phase_seconds["data"]) for record in records}
    phases["data"] = math.fsum(seconds for _, seconds in loads)
    means = {name: seconds / len(records) for name, seconds in phases.items()}
    return len(records), ended - first[0], first[0] - begun, means


def overhead_markdown(cells: int, workers: int) -> str:
    """Both ways as a table, with how busy the machine was."""
    before, rows = machine_load(), []
    for count in (0, workers):
        runs, wall, start, phases = measure(cells, count)
        own = wall * max(count, 1) / runs - math.fsum(phases.values())
        rows.append(
            [
                "one process" if count == 0 else f"{count} workers",
                f"{runs:,}",
                f"{start:.1f}",
                f"{runs / wall:.1f}",
                *(f"{1000 * phases.get(name, 0.0):.1f}" for name in PHASES),
                f"{1000 * own:.1f}",
            ]
        )
    head = ["", "Runs", "Start, s", "Runs a second", *(f"{name}, ms" for name in PHASES), "harness, ms"]
    after = machine_load().load_average
    words = (
        f"{before.cores} cores, load {before.load_average} to {after} while this was measured; milliseconds are a "
        "run's, of one core."
    )
    return f"{words}\n\n{pipe_table(head, rows)}"


def main() -> None:
    """Measure; print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    text = overhead_markdown(options.cells, options.workers)
    print(text)
    if options.page is not None:
        write_part(options.page, PART, text)


if __name__ == "__main__":
    main()
