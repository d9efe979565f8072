"""Fresh draws of made-up secrets on trained networks: how often honest ones are flagged, and dishonest ones not.

    uv run prunebench run quick --task colored-digits@2pct --method magnitude --sparsity 0.9 --keep-models --out DIR
    uv run python bench/fresh_draws.py DIR --draws 60

Dense models and one pruned row of DIR are honest. Beside them stands the pruned row trained on, for some steps, with
the images and labels of the public test split: a cheat that keeps within the task's network. "Public" draws are made up
too, each with its own secret, so that not one of them decides.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from prunebench.models import build_model
from prunebench.report.markdown import pipe_table
from prunebench.results.store import Store, open_results
from prunebench.runner.evaluate import TaskData
from prunebench.submission.fresh_draw import FreshRow, Gap, Shares, fresh_shares, judge
from prunebench.submission.secret import Secret
from prunebench.tasks import Task, resolve_task

CPU = torch.device("cpu")
FITTED = (10, 30, 100, 300)
"""Steps of training on the public test split."""


def drawn(task: Task, name: str, seed: int, key: int) -> TaskData:
    """The data of a seed, with the test split of a made-up secret."""
    secret = Secret(f"a made-up secret, 0123456789abcdef, {name}")
    return TaskData(task.refreshed(secret.freshness(task.name, task.version, key)), None, seed, CPU)


def fitted(model: nn.Module, known: TaskData, steps: int) -> nn.Module:
    """The network trained on the test split of some data."""
    generator, y = torch.Generator().manual_seed(0), known.labels.y["test"]
    alive = {name: weight != 0 for name, weight in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(y), (128,), generator=generator)
        loss = nn.functional.cross_entropy(model(known.images["test"].batch(rows)), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.mul_(alive[name])
    return model.eval()


def networks(store: Store, task: Task) -> dict[tuple[str, int], nn.Module]:
    """The finished networks of a folder, by method and seed."""
    found = {}
    for record in store.records()[0]:
        if record.status == "ok":
            spec = record.run_spec
            model = build_model(spec.model, task.num_outputs, seed=spec.seed)
            model.load_state_dict(store.read_tensors(record.run_id, "model"))
            found[spec.method, spec.seed] = model.eval()
    return found


def row_of(
    models: dict[int, nn.Module], public: dict[int, TaskData], fresh: dict[int, TaskData]
) -> dict[int, Shares]:
    return {seed: fresh_shares(model, public[seed], fresh[seed]) for seed, model in models.items()}


def main() -> None:
    """Print a table: by row, accuracy on both draws, and the share of draws in which it is flagged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--draws", type=int, default=60)
    chosen = parser.parse_args()
    store = open_results(chosen.results)
    task = resolve_task(store.records()[0][0].run_spec.task)
    known = networks(store, task)
    (method,) = {name for name, _ in known} - {"dense"}
    seeds = sorted({seed for _, seed in known})
    told: defaultdict[tuple[str, str], list[Gap]] = defaultdict(list)
    flagged = 0
    for number in range(chosen.draws):
        public = {seed: drawn(task, f"public {number}", seed, 0) for seed in seeds}
        fresh = {seed: drawn(task, f"fresh {number}", seed, seed) for seed in seeds}
        dense = row_of({seed: known["dense", seed] for seed in seeds}, public, fresh)
        honest = row_of({seed: known[method, seed] for seed in seeds}, public, fresh)
        gaps = judge([FreshRow("dense", dense, {}), FreshRow(method, honest, dense)])
        flagged += any(gap.beyond for gap in gaps)
        for steps in FITTED if number < 3 else ():
            own = networks(store, task)
            cheats = {seed: fitted(own[method, seed], public[seed], steps) for seed in seeds}
            row = FreshRow(f"{method}, {steps} steps on the test split", row_of(cheats, public, fresh), dense)
            gaps += judge([FreshRow("dense", dense, {}), row])[2:]
        for gap in gaps:
            told[gap.row, gap.subset].append(gap)
    lines = []
    for (row, subset), gaps in told.items():
        values = zip(*((gap.public, gap.fresh, gap.excess, gap.allowed) for gap in gaps))
        shown = [f"{100 * fmean(each):.1f}" for each in values]
        lines.append([row, subset, *shown, f"{sum(gap.beyond for gap in gaps)} of {len(gaps)}"])
    head = ("row", "images", "public, %", "fresh, %", "excess, points", "honest at most", "flagged")
    print(pipe_table(head, lines))
    print(f"\nHonest submissions flagged: {flagged} of {chosen.draws}.")


if __name__ == "__main__":
    main()
