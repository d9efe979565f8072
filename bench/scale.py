"""Scale: time, memory and files of planning, resuming, loading and exporting, from 10^3 to 10^6 runs.

    uv run python bench/scale.py [--sizes 1k 10k 100k 1M] [--folder FOLDER] [--page docs/scale.md]

The runs are made up (`madeup`), the code that handles them is the package's own. Each operation runs in a process of
its own, which reports its CPU time, time by the clock and the most memory it held. Results are kept in FOLDER, so that
the same command goes on; the table goes between the markers of the page. A number by the clock means little on a busy
machine: the load is stated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from madeup import made_up_plan, write_made_up
from pages import write_part

from prunebench.report.markdown import markdown_table
from prunebench.report.table import Column, simple_table, text_column
from prunebench.results.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
PART = "scale"
SIZES: Mapping[str, tuple[int, int]] = {"1k": (6, 5), "10k": (30, 10), "100k": (60, 50), "1M": (200, 150)}
"""Methods and tasks; each method has 35 runs a task."""


def plan_runs(size: tuple[int, int], folder: Path) -> None:
    """The plan of the suite, for an empty folder."""
    from prunebench.runner.plan import plan

    plan(made_up_plan(*size), Store(folder / "nothing"))


def scan(_: tuple[int, int], folder: Path) -> None:
    """What is done and what is damaged, as a resumed run asks of a folder that it makes ready."""
    store = Store(folder / "store")
    store.prepare()
    store.statuses()


def load(_: tuple[int, int], folder: Path) -> None:
    """The frame of all runs."""
    from prunebench.api import load_results

    load_results(folder / "store")


def export(_: tuple[int, int], folder: Path) -> None:
    """All runs into the committed form, of which there is nothing yet."""
    from prunebench.results.convert import export_results

    shutil.rmtree(folder / "committed", ignore_errors=True)
    (folder / "committed").mkdir()
    export_results(folder / "store", folder / "committed")


def load_committed(_: tuple[int, int], folder: Path) -> None:
    """The frame of all runs, from the committed form."""
    from prunebench.api import load_results

    load_results(folder / "committed")


STEPS: Mapping[str, tuple[str, Callable[[tuple[int, int], Path], None]]] = {
    "plan": ("plan", plan_runs),
    "scan": ("resume scan, no index", scan),
    "scan again": ("resume scan", scan),
    "load": ("load_results, the first time", load),
    "load again": ("load_results", load),
    "export": ("results export", export),
    "committed": ("load_results of what was exported, the first time", load_committed),
    "committed again": ("load_results of what was exported", load_committed),
}


def run_step(step: str, size: str, folder: Path) -> dict[str, Any]:
    """Do one step in this process; gives what it took beyond importing the package."""
    import torch

    import prunebench.api
    import prunebench.results.convert
    import prunebench.results.frame  # noqa: F401

    torch.set_num_threads(1)
    cpu, wall = time.process_time(), time.perf_counter()
    STEPS[step][1](SIZES[size], folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "size": size,
        "step": step,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "peak": peak,
        "load": os.getloadavg()[0],
    }


def measure(size: str, folder: Path) -> list[dict[str, Any]]:
    """All steps of one size that have no result yet, each in a fresh process."""
    folder = folder / size
    kept = folder / "measured.json"
    if not (folder / "whole").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_made_up([run.spec for run in made_up_plan(*SIZES[size])], folder / "store")
        (folder / "whole").write_text("")
        time.sleep(3)  # files that have just changed are not indexed
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    for step in STEPS:
        if step not in found:
            words = [sys.executable, __file__, "--step", step, "--sizes", size, "--folder", str(folder)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            found[step] = json.loads(done.stdout) | count(folder)
            kept.write_text(json.dumps(found))
            print(size, step, found[step], flush=True)
    return list(found.values())


def count(folder: Path) -> dict[str, float]:
    """Runs, and files and MB of the store and of the committed form."""
    counts: dict[str, float] = {}
    for name in ("store", "committed"):
        files = [Path(base, file) for base, _, names in os.walk(folder / name) for file in names]
        counts[f"{name} files"] = len(files)
        counts[f"{name} MB"] = sum(path.stat().st_size for path in files) / 1e6
    return counts | {"runs": sum(1 for _ in os.scandir(folder / "store" / "runs"))}


def scale_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables: what each step takes at each size, and what lies on the disk."""
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    runs = {size: max(row["runs"] for row in rows if row["size"] == size) for size in sizes}
    by_step: list[tuple[str, dict[str, Mapping[str, Any]]]] = []
    for step, (title, _) in STEPS.items():
        found = {row["size"]: row for row in rows if row["step"] == step}
        if found:
            by_step.append((title, found))
    columns = [text_column("title", "Operation", lead=True, value=lambda row: row[0])]
    columns += [
        Column(
            size,
            f"{runs[size]:,} runs: CPU s (clock s, GiB)",
            value=lambda row, size=size: _cell(row[1].get(size)),
        )
        for size in sizes
    ]
    columns.append(
        Column("growth", "Growth", value=lambda row: _growth([row[1][s] for s in sizes if s in row[1]]))
    )
    largest = [
        {key: max(row[key] for row in rows if row["size"] == size) for key in ("runs", *_DISK)}
        for size in sizes
    ]
    shown = [
        Column(
            key, key, value=lambda row, key=key: f"{row[key]:,.0f}" if row[key] else None, lead=key == "runs"
        )
        for key in ("runs", *_DISK)
    ]
    loads = [row["load"] for row in rows]
    words = (
        f"{os.cpu_count()} cores, load {min(loads):.1f} to {max(loads):.1f} while this was measured (a quiet machine "
        "has less than one a core): the clock says how long others made it wait, CPU time what it costs. Growth is "
        "the exponent of CPU time between the two largest sizes: 1 is linear."
    )
    return "\n\n".join(
        (
            words,
            markdown_table(simple_table(tuple(columns), by_step)),
            markdown_table(simple_table(tuple(shown), largest)),
        )
    )


_DISK = ("store files", "store MB", "committed files", "committed MB")


def _cell(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['cpu']:.2f} ({row['wall']:.2f}, {row['peak']:.2f})"


def _growth(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The exponent of CPU time between the last two sizes."""
    if len(rows) < 2:
        return None
    one, other = rows[-2:]
    return f"n^{math.log(other['cpu'] / one['cpu']) / math.log(other['runs'] / one['runs']):.2f}"


def main() -> None:
    """Measure what is missing, print, and write the page's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES)[:3])
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()) / "prunebench-scale")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose marked part is replaced")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options.step, options.sizes[0], options.folder)))
        return
    os.environ["PRUNEBENCH_CACHE"] = str(options.folder / "cache")
    rows = [row for size in options.sizes for row in measure(size, options.folder)]
    table = scale_markdown(rows)
    print(table)
    write_part(options.page, PART, table)


if __name__ == "__main__":
    main()
