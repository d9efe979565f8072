"""The site at scale: a made-up board of 50 tasks x 60 methods x 8 sparsities x 5 seeds, built, weighed and timed.

`python bench/site_scale.py` prints a table: seconds to build it from records in memory, bytes of the first load, and in
Chromium the time until the first screen is there and until a typed filter is drawn. Results are drawn at random, so the
board means nothing; it is written to a temporary folder, or to `--out`.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunebench.leaderboard import build_board
from prunebench.leaderboard.build import board_files, write_pages
from prunebench.results.record import (
    SCHEMA_VERSION,
    CostReport,
    GroupRow,
    Percentiles,
    RunRecord,
    SparsityReport,
)
from prunebench.results.spec import Recipe, RunSpec

RECIPE = Recipe(steps=3000, finetune_steps=500, batch_size=128)
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
ENVIRONMENT = {"device": "cpu", "cpu": "Made-up processor", "gpu": None, "threads": 1, "python": "3.12.0",
               "torch": "2.11.0", "precision": "fp32"}  # fmt: skip
REPEATS = 5


@dataclass(frozen=True)
class Scale:
    """How many of each a made-up board has."""

    tasks: int = 50
    methods: int = 60
    sparsities: int = 8
    seeds: int = 5

    @property
    def runs(self) -> int:
        """Pruned runs."""
        return self.tasks * self.methods * self.sparsities * self.seeds


def made_up_records(scale: Scale) -> Iterator[RunRecord]:
    """Records with random numbers; the unpruned references beside the pruned runs."""
    draw = random.Random(0)
    for task in range(scale.tasks):
        level = draw.uniform(0.3, 0.8)
        for method, shift in [("dense", 0.0), ("dense-finetuned", 0.02)]:
            for seed in range(scale.seeds):
                yield _record(task, method, 0.0, seed, level + shift + draw.gauss(0, 0.01))
        for number in range(scale.methods):
            shift = draw.gauss(0, 0.08)
            for sparsity in SPARSITIES[: scale.sparsities]:
                mean = level + shift - 0.3 * sparsity**8
                for seed in range(scale.seeds):
                    yield _record(task, f"method-{number:02d}", sparsity, seed, mean + draw.gauss(0, 0.015))


def _record(task: int, method: str, sparsity: float, seed: int, conflicting: float) -> RunRecord:
    hits = round(1000 * min(max(conflicting, 0.0), 1.0))
    share = hits / 1000
    name = f"made-up-{task:02d}@1pct"
    spec = RunSpec(name, 1, "0123456789abcdef", "resnet8", method, "1", (), sparsity, seed, RECIPE)
    metrics = {"plain": 0.85, "unbiased": (0.9 + share) / 2, "aligned": 0.9, "conflicting": share, "worst_group": share,
               "worst_tenth": share, "bias_gap": 0.9 - share, "entropy": 0.5, "confidence": 0.7}  # fmt: skip
    left = round(1000 * (1 - sparsity))
    fast = 1 + (hits % 7) / 50 * sparsity
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=spec.run_id,
        status="ok",
        spec=spec.to_dict(),
        method={"name": method, "supervision": "none", "cite": f"Author of {method}, 2026 (A made-up method)"},
        started_utc="2026-01-01T00:00:00Z",
        phase_seconds={"fit": 60.0},
        environment=dict(ENVIRONMENT),
        code={"commit": "0" * 40, "dirty": False, "version": "0"},
        splits_hash=f"splits of seed {seed}",
        sparsity=SparsityReport(sparsity, sparsity, {}),
        groups=[
            GroupRow(label, bias, label == bias, 100, 90 if label == bias else hits // 10)
            for label in range(2)
            for bias in range(2)
        ],
        metrics=metrics,
        validation=metrics,
        cost=CostReport(
            1000, left, 4_000_000, 4000 * left, 64, Percentiles(0.9, 1.0, 1.1),
            Percentiles(0.9 / fast, 1 / fast, 1.1 / fast), 100.0, 3500, 3000,
        ),
    )  # fmt: skip


def built(scale: Scale, out: Path) -> dict[str, float]:
    """Seconds of each step of building the board from records in memory."""
    records = list(made_up_records(scale))
    build_board(list(made_up_records(Scale(1, 2, 1, 2))))  # libraries are loaded, as after reading records
    start, worked = time.perf_counter(), time.process_time()
    board = build_board(records)
    rows = time.perf_counter()
    files = board_files(board)
    texts = time.perf_counter()
    write_pages(out, files)
    end = time.perf_counter()
    return {
        "records": float(len(records)),
        "rows, ranks and intervals, s": rows - start,
        "pages, data and figures, s": texts - rows,
        "written to disk, s": end - texts,
        "built in all, s": end - start,
        "the same, processor time, s": time.process_time() - worked,
    }


def weighed(site: Path) -> dict[str, float]:
    """Bytes of what is loaded at first, and of a task's chunk."""
    first = [site / "index.html", site / "data" / "board.js", *(site / "assets").glob("board.*")]
    chunks = [path.stat().st_size for path in (site / "data").glob("*.js")]
    return {
        "first load, MB": sum(path.stat().st_size for path in first) / 1e6,
        "largest chunk, MB": max(chunks) / 1e6,
        "whole site, MB": sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6,
    }


READY = """(selector) => new Promise((done) => {
  const drawn = () => requestAnimationFrame(() => setTimeout(() => done(performance.now())));
  const look = () => document.querySelector(selector) ? drawn() : setTimeout(look, 1);
  look();
})"""
TYPED = """([selector, text]) => new Promise((done) => {
  const field = document.querySelector(selector);
  const start = performance.now();
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


def browsed(site: Path) -> dict[str, float]:
    """Milliseconds in Chromium, medians: until the first screens can be used, and until a filter is drawn."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    index = (site / "index.html").as_uri()
    views = {
        "all tasks": (f"{index}#/", "table.matrix tbody tr", "main input[type=search]"),
        "a task": (f"{index}#/task/made-up-00-1pct", "table.ranking tbody tr", ".tools input[type=search]"),
    }
    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for name, (address, ready, field) in views.items():
            loads, filters, worked, steps = [], [], [], []
            for _ in range(REPEATS):
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                meter = page.context.new_cdp_session(page)
                meter.send("Performance.enable", {"timeDomain": "threadTicks"})
                page.goto(address)
                loads.append(page.evaluate(READY, ready))
                worked.append(_thread_ms(meter))
                for text in ("method-1", "method-", "method-42", ""):
                    page.wait_for_timeout(50)
                    before = _thread_ms(meter)
                    filters.append(page.evaluate(TYPED, [field, text]))
                    steps.append(_thread_ms(meter) - before)
                page.close()
            found[f"{name}: first screen, ms"] = statistics.median(loads)
            found[f"{name}: filter, median ms"] = statistics.median(filters)
            found[f"{name}: filter, slowest ms"] = max(filters)
            found[f"{name}: first screen, processor ms"] = statistics.median(worked)
            found[f"{name}: filter, processor ms, slowest"] = max(steps)
        browser.close()
    return found


def _thread_ms(meter: Any) -> float:
    """Processor time of the page's main thread so far, which other work on the machine does not stretch."""
    values = {entry["name"]: entry["value"] for entry in meter.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(values["TaskDuration"])


def main() -> None:
    """Build, weigh, browse, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in vars(Scale()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    asked: dict[str, Any] = vars(parser.parse_args())
    out = asked.pop("out")
    with tempfile.TemporaryDirectory() as folder:
        place = out or Path(folder)
        found = built(replace(Scale(), **asked), place)
        found |= weighed(place / "site") | browsed(place / "site")
    width = max(map(len, found))
    for name, value in found.items():
        shown = f"{value:,.0f}" if value >= 100 or math.floor(value) == value else f"{value:.2f}"
        print(f"{name:<{width}}  {shown:>9}")


if __name__ == "__main__":
    main()
