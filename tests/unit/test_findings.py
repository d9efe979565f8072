"""Published orders and debiasing before pruning, read from records: pairs by seed, and what is missing is named."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from board_records import run
from findings import (
    COMPOSED_SPARSITY,
    COMPOSED_TASKS,
    DEBIASERS,
    ORDERS,
    ORDERS_SPARSITY,
    ORDERS_TASK,
    PARTS,
    PRUNERS,
    composed_rows,
    main,
    order_rows,
)

from prunebench.results.record import RunRecord
from prunebench.results.standing import HISTORY, Retired
from prunebench.results.store import Store

METRICS = ("plain", "conflicting", "aligned")
NAMES = sorted({name for order in ORDERS for name in (order.better, order.worse)})


def trained(name: str, task: str, sparsity: float, *values: float) -> list[RunRecord]:
    """A run a seed; `values` are its accuracies."""
    return [
        run(
            name,
            sparsity,
            seed,
            cell={"task": task},
            metrics=dict.fromkeys(("plain", "conflicting", "aligned"), value),
        )
        for seed, value in enumerate(values)
    ]


def test_an_order_is_as_published_the_other_way_or_not_told_apart() -> None:
    high, low, wild = (0.60, 0.61, 0.62), (0.50, 0.511, 0.519), (0.3, 0.9, 0.58)
    values = dict.fromkeys(NAMES, low) | {"set": high, "rigl": wild, "snip": high, "gmp-ri": low}
    records = [r for name in NAMES for r in trained(name, ORDERS_TASK, ORDERS_SPARSITY, *values[name])]
    rows, missing = order_rows(records)
    verdicts = {row.order.words: row.verdict for row in rows}
    assert missing == []
    assert verdicts["set > random-erk"] == "as published"
    assert verdicts["gmp-ri > snip"] == "the other way round"
    assert verdicts["rigl ≥ set"] == "not told apart"
    row = next(row for row in rows if row.order.words == "set > random-erk")
    assert row.conflicting.mean == pytest.approx(0.1, abs=2e-3)


def test_an_order_without_two_shared_seeds_is_named() -> None:
    records = trained("set", ORDERS_TASK, ORDERS_SPARSITY, 0.5, 0.6)
    rows, missing = order_rows(records)
    assert rows == []
    assert "rigl" in missing
    assert "set" not in missing


def test_seeds_for_choosing_budgets_count_in_no_finding() -> None:
    task, values = COMPOSED_TASKS[0], dict.fromkeys(METRICS, 0.5)
    records = [
        run("magnitude", COMPOSED_SPARSITY, seed, cell={"task": task}, metrics=values) for seed in (1, 100)
    ]
    rows, _ = composed_rows(records, task)
    assert [row.seeds for row in rows] == [1]


def test_retired_versions_count_in_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, store = COMPOSED_TASKS[0], Store(tmp_path / "results")
    store.prepare()
    values = dict.fromkeys(METRICS, 0.5)
    for seed, version in ((0, "1"), (1, "2")):
        cell = {"task": task, "method_version": version}
        store.write(run("magnitude", COMPOSED_SPARSITY, seed, cell=cell, metrics=values), {})
    retired = Retired("magnitude", "1", "superseded", "2026-01-01T00:00:00Z", "a test")
    (store.root / HISTORY).write_text(json.dumps(dataclasses.asdict(retired)) + "\n")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {part}:begin -->\n<!-- {part}:end -->\n" for part in PARTS))
    monkeypatch.setattr(sys, "argv", ["findings.py", "--results", str(store.root), "--page", str(page)])
    main()
    assert re.search(r"\| magnitude \| — \| 1 \|", page.read_text())


def test_a_composition_is_compared_with_its_pruner_alone_by_seed() -> None:
    task = COMPOSED_TASKS[0]
    records = trained("magnitude", task, COMPOSED_SPARSITY, 0.3, 0.5)
    records += trained("magnitude+lff", task, COMPOSED_SPARSITY, 0.4, 0.7, 0.9)
    rows, missing = composed_rows(records, task)
    assert [(row.pruner, row.debiaser, row.seeds) for row in rows] == [
        ("magnitude", "—", 2),
        ("magnitude", "lff", 3),
    ]
    assert rows[0].difference is None
    assert rows[1].difference is not None
    assert rows[1].difference.mean == pytest.approx(0.15)
    assert len(missing) == len(PRUNERS) * (1 + len(DEBIASERS)) - 2
    assert "magnitude+jtt" in PARTS["composed"](records)
