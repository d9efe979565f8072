"""What records say about claims of papers: orders of methods, and debiasing before pruning.

    uv run python bench/findings.py [--results leaderboard/findings] [--page docs/findings.md]

Reads records alone and trains nothing; the page names the commands whose runs it lacks.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.report import format as fmt
from prunebench.report.markdown import fill_part, markdown_table
from prunebench.report.table import Column, RowGroup, Table, text_column
from prunebench.results.record import RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.standing import read_standing
from prunebench.results.store import open_results, write_atomically
from prunebench.stats.intervals import Interval, mean_interval
from prunebench.stats.multiplicity import benjamini_hochberg
from prunebench.stats.tests import paired_p_value

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "leaderboard" / "findings", ROOT / "docs" / "findings.md"
SIGNIFICANCE = 0.05

ORDERS_TASK, ORDERS_SPARSITY = "cifar10-backgrounds", 0.95
COMPOSED_TASKS, COMPOSED_SPARSITY = ("colored-mnist@1pct", "cifar10-backgrounds"), 0.9
PRUNERS = ("magnitude", "gmp-pt", "taylor", "l1-filter")
DEBIASERS = ("lff", "jtt", "dcwp")


@dataclass(frozen=True)
class Order:
    """What papers found: the accuracy of `better` is above that of `worse`, or at least not below."""

    better: str
    worse: str
    source: str
    strict: bool = True

    @property
    def words(self) -> str:
        return f"{self.better} {'>' if self.strict else '≥'} {self.worse}"


ORDERS = (
    Order("set", "random-erk", "Mocanu et al., 2018: masks that move beat static ones"),
    Order("rigl", "set", "Evci et al., 2020: growth by gradients beats random growth", strict=False),
    Order("gmp-ri", "snip", "Frankle et al., 2021: pruning at initialisation misses what training finds"),
    Order("gmp-ri", "synflow", "Frankle et al., 2021"),
    Order("gmp-ri", "grasp", "Frankle et al., 2021"),
    Order(
        "woodfisher", "magnitude", "Singh and Alistarh, 2020: curvature beats size, one-shot", strict=False
    ),
    Order("cap", "magnitude", "Kuznedelev et al., 2022", strict=False),
)

Values = Mapping[int, float]
"""By seed."""


def values_of(records: Iterable[RunRecord], task: str, sparsity: float, metric: str) -> dict[str, Values]:
    """A metric by method and seed, of finished runs at a sparsity; seeds for choosing budgets have no test split."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        here = record.spec["task"] == task and record.spec["sparsity"] == sparsity
        counts = here and record.spec["seed"] < TUNE_SEEDS
        if counts and record.status == "ok" and (value := record.metrics.get(metric)) is not None:
            found[record.method["name"]][record.spec["seed"]] = value
    return dict(found)


# Orders


@dataclass(frozen=True)
class OrderRow:
    """An order as it came out; differences are better minus worse, paired by seed."""

    order: Order
    seeds: int
    plain: Interval
    conflicting: Interval
    p_value: float

    @property
    def verdict(self) -> str:
        if not self.p_value <= SIGNIFICANCE:
            return "not told apart"
        return "as published" if (self.plain.mean or 0.0) > 0 else "the other way round"


def order_rows(records: Sequence[RunRecord]) -> tuple[list[OrderRow], list[str]]:
    """Orders whose methods share at least two seeds, and methods of the others that lack runs."""
    plain, conflicting = (
        values_of(records, ORDERS_TASK, ORDERS_SPARSITY, name) for name in ("plain", "conflicting")
    )
    shown, missing = [], []
    for order in ORDERS:
        seeds = sorted({*plain.get(order.better, {})} & {*plain.get(order.worse, {})})
        if len(seeds) < 2:
            missing += [name for name in (order.better, order.worse) if len(plain.get(name, {})) < 2]
            continue
        gaps = [
            mean_interval([values[order.better][seed] - values[order.worse][seed] for seed in seeds])
            for values in (plain, conflicting)
        ]
        shown.append((order, len(seeds), *gaps, paired_p_value(plain[order.better], plain[order.worse])))
    adjusted = benjamini_hochberg([row[-1] for row in shown])
    return [OrderRow(*row[:-1], p) for row, p in zip(shown, adjusted)], sorted({*missing})


ORDER_COLUMNS: tuple[Column[OrderRow], ...] = (
    text_column("order", "Published order", value=lambda row: row.order.words, lead=True),
    text_column("source", "Source", value=lambda row: row.order.source),
    Column("seeds", "Seeds"),
    Column("plain", "Accuracy, points", format=fmt.signed),
    Column("conflicting", "Bias-conflicting, points", format=fmt.signed),
    Column("p_value", "q", "Paired t-test over seeds, Benjamini-Hochberg over all rows", format=fmt.p_value),
    text_column("verdict", "Here", value=lambda row: row.verdict),
)


def orders_markdown(records: Sequence[RunRecord]) -> str:
    """The table of orders."""
    rows, missing = order_rows(records)
    parts = [
        f"{ORDERS_TASK}, sparsity {ORDERS_SPARSITY:g}, test accuracy of the better minus that of the worse, paired by "
        "seed, ± the half-width of the 95 % t-interval; told apart where q, of the accuracy, is at most 5 %."
    ]
    if rows:
        parts.append(markdown_table(Table(ORDER_COLUMNS, (RowGroup(tuple(rows)),))))
    return "\n\n".join([*parts, *_lacking(missing, ORDERS_TASK, ORDERS_SPARSITY)])


# Compositions


@dataclass(frozen=True)
class ComposedRow:
    """A pruner with a debiaser before it; the difference is from the pruner alone, paired by seed."""

    pruner: str
    debiaser: str
    seeds: int
    conflicting: Interval
    aligned: Interval
    difference: Interval | None


def composed_rows(records: Sequence[RunRecord], task: str) -> tuple[list[ComposedRow], list[str]]:
    """A row for each pruner alone and behind each debiaser, and the methods that lack runs."""
    conflicting, aligned = (
        values_of(records, task, COMPOSED_SPARSITY, name) for name in ("conflicting", "aligned")
    )
    rows, missing = [], []
    for pruner in PRUNERS:
        alone = conflicting.get(pruner, {})
        for debiaser in ("", *DEBIASERS):
            name = f"{pruner}+{debiaser}" if debiaser else pruner
            own = conflicting.get(name, {})
            if not own:
                missing.append(name)
                continue
            shared = sorted({*own} & {*alone}) if debiaser else []
            rows.append(
                ComposedRow(
                    pruner,
                    debiaser or "—",
                    len(own),
                    mean_interval(list(own.values())),
                    mean_interval(list(aligned[name].values())),
                    mean_interval([own[seed] - alone[seed] for seed in shared]) if shared else None,
                )
            )
    return rows, missing


COMPOSED_COLUMNS: tuple[Column[ComposedRow], ...] = (
    text_column("pruner", "Pruner", value=lambda row: row.pruner, lead=True),
    text_column("debiaser", "Debiaser", value=lambda row: row.debiaser),
    Column("seeds", "Seeds"),
    Column("conflicting", "Bias-conflicting, %", format=fmt.with_half_width),
    Column("aligned", "Bias-aligned, %", format=fmt.with_half_width),
    Column("difference", "Conflicting minus the pruner alone, points", format=fmt.signed),
)


def composed_markdown(records: Sequence[RunRecord]) -> str:
    """The tables of compositions, one a task."""
    parts = []
    for task in COMPOSED_TASKS:
        rows, missing = composed_rows(records, task)
        parts.append(f"**{task}**, sparsity {COMPOSED_SPARSITY:g}:")
        if rows:
            parts.append(markdown_table(Table(COMPOSED_COLUMNS, (RowGroup(tuple(rows)),))))
        parts += _lacking(missing, task, COMPOSED_SPARSITY)
    return "\n\n".join(parts)


def _lacking(missing: Sequence[str], task: str, sparsity: float) -> list[str]:
    """A sentence about methods without runs."""
    if not missing:
        return []
    return [f"Not run yet on {task} at {sparsity:g}: {', '.join(f'`{name}`' for name in missing)}."]


# The runs


def runs_markdown(records: Sequence[RunRecord]) -> str:
    """How many runs there are, where they were trained, and of which code."""
    where = Counter(
        f"{facts.get('gpu') or facts.get('cpu')}, torch {facts.get('torch')}, {facts.get('precision')}"
        for facts in (record.environment for record in records)
    )
    code = Counter(
        f"`{str(record.code['commit'])[:7]}`{' with changes' if record.code['dirty'] else ''}"
        for record in records
    )
    counted = [
        "; ".join(f"{fmt.plural(count, 'run')} {word} {what}" for what, count in found.items())
        for found, word in ((where, "on"), (code, "of"))
    ]
    return "\n".join(f"- {line}" for line in counted)


PARTS = {"runs": runs_markdown, "orders": orders_markdown, "composed": composed_markdown}


def with_tables(page: str, records: Sequence[RunRecord]) -> str:
    """A page with its marked parts as the records give them."""
    for part, markdown in PARTS.items():
        page = fill_part(page, part, markdown(records))
    return page


def read_records(results: Path) -> list[RunRecord]:
    """The records that stand, without those withdrawn."""
    return read_standing(results).listed(open_results(results).records()[0])


def main() -> None:
    """Write the parts of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="results folder")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose marked parts are replaced")
    options = parser.parse_args()
    text = with_tables(options.page.read_text(encoding="utf-8"), read_records(options.results))
    write_atomically(options.page, text.encode())


if __name__ == "__main__":
    main()
