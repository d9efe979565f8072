"""`prunebench score` on many stored runs, and the bootstrap of a board: seconds, processor time, peak memory.

uv run python bench/bench_score.py [--runs 1000] [--samples 10000] [--only score|bootstrap]

Scores the runs twice: first every record is new, so that all are written; then none has changed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prunebench.results.record import (
    SCHEMA_VERSION,
    CostReport,
    GroupRow,
    Percentiles,
    RunRecord,
    SparsityReport,
)
from prunebench.results.spec import Recipe, RunSpec
from prunebench.results.store import Store
from prunebench.runner.rescore import rescore_results
from prunebench.stats.bootstrap import bootstrap_cells
from prunebench.tasks import Split, Splits, Task, splits_hash

CLASSES, SEEDS = 10, 5


class Drawn(Task):
    """Labels and biases at random, with images of four pixels: as many samples as one likes, without any data."""

    name, version, title, source, bias_name = "drawn", 1, "Drawn", "random numbers", "bias"
    num_classes, num_biases, conflicting_share = CLASSES, CLASSES, None
    model, recipe = "convnet-small", Recipe(steps=1, finetune_steps=1, batch_size=1)

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def fingerprint(self, data_root: Path | None) -> str:
        return "0" * 16

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        generator = torch.Generator().manual_seed(seed)

        def split() -> Split:
            shape = (2, self.samples)
            y, bias = torch.randint(CLASSES, shape, generator=generator).unbind()
            return Split(torch.zeros(self.samples, 3, 2, 2, dtype=torch.uint8), y, bias)

        return Splits(split(), split(), split())


def write_runs(out: Path, task: Drawn, runs: int) -> None:
    """Records of `runs` finished runs without metrics, with the logits of each."""
    store = Store(out)
    store.prepare()
    times = Percentiles(1.0, 1.5, 2.0)
    cost = CostReport(100, 10, 1000, 100, 64, times, times, 12.5, 30, 20)
    drawn = [task.splits(None, seed) for seed in range(SEEDS)]
    for number in range(runs):
        seed = number % SEEDS
        spec = RunSpec(
            task.name, 1, task.fingerprint(None), task.model, "magnitude", "1", (("number", number),), 0.9, seed,
            task.recipe,
        )  # fmt: skip
        record = RunRecord(
            SCHEMA_VERSION, spec.run_id, "ok", spec.to_dict(), {"name": "magnitude"}, cost=cost,
            splits_hash=splits_hash(drawn[seed]), sparsity=SparsityReport(0.9, 0.9, {}),
            groups=[GroupRow(0, 0, True, 1, 1)],
        )  # fmt: skip
        generator = torch.Generator().manual_seed(number)
        store.write(record, {name: _logits(getattr(drawn[seed], name[:-7]).y, generator) for name in LOGITS})


LOGITS = ("val_logits", "test_logits")


def _logits(label: Tensor, generator: torch.Generator) -> Tensor:
    right = torch.nn.functional.one_hot(label, CLASSES) * 3
    return (torch.randn(len(label), CLASSES, generator=generator) * 2 + right).half()


@contextmanager
def measured(what: str) -> Iterator[None]:
    """Print wall and processor seconds of the block, and the peak memory of the process so far."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {wall:.1f} s, {processor:.1f} s of processor time, peak {peak:.0f} MiB", flush=True)


def time_scoring(runs: int, samples: int) -> None:
    task = Drawn(samples)
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder), task, runs)
        sizes = f"{runs} runs of {samples} x {CLASSES} logits, val and test, {SEEDS} draws"
        for what, changing in (("all written", runs), ("none changed", 0)):
            with measured(f"score {sizes}, {what}"):
                scored = list(rescore_results(Path(folder), resolve=lambda name, root: task))
            assert not any(entry.problem for entry in scored)
            assert sum(bool(entry.changes) for entry in scored) == changing


def time_bootstrap(samples: int, cells: int = 56) -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(cells, SEEDS, samples, generator=generator) < 0.8
    group = torch.randint(CLASSES**2, (samples,), generator=generator)
    aligned = torch.eye(CLASSES, dtype=torch.bool).flatten()
    with measured(
        f"bootstrap {cells} cells x {SEEDS} seeds x {samples} samples, {CLASSES**2} groups, 2000 draws"
    ):
        bootstrap_cells(hits, group, aligned, reference=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--only", choices=("score", "bootstrap"))
    asked = parser.parse_args()
    with measured("started"):
        pass
    if asked.only != "bootstrap":
        time_scoring(asked.runs, asked.samples)
    if asked.only != "score":
        time_bootstrap(asked.samples)


if __name__ == "__main__":
    main()
