"""The review's table: pairs by seed, rows with all their seeds, and the page as its numbers give it."""

from __future__ import annotations

from pathlib import Path

import pytest
from review_table import GROUPS, PAGE, ReviewRun, read_runs, review_markdown, rows_of, runs_csv

from prunebench.errors import UsageError
from prunebench.report.markdown import fill_part
from prunebench.stats.tests import paired_p_value
from prunebench.suites import load_suite

ARMS = [arm for group in GROUPS.values() for arm in group]


def made_up(seeds: int = 3) -> list[ReviewRun]:
    """Every arm, ten points above the one before, with a wobble of its own."""
    return [
        ReviewRun("digits", arm.method, "0.9", 0.9, seed, 500, 0.1 + 0.05 * k + 0.01 * seed * (k % 3), 0.99)
        for k, arm in enumerate(ARMS)
        for seed in range(seeds)
    ]


def test_an_arm_is_paired_with_its_control_by_seed() -> None:
    groups, missing = rows_of(made_up())
    assert not missing
    rows = {row.arm.method: row for rows in groups.values() for row in rows}
    assert set(rows) == {arm.method for arm in ARMS}
    row = rows["magnitude"]
    own, control = (
        {run.seed: run.conflicting for run in made_up() if run.method == name}
        for name in ("magnitude", "dense-finetuned")
    )
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(sum(own[s] - control[s] for s in own) / 3)
    assert row.p_value is not None
    assert row.p_value >= paired_p_value(own, control)
    assert rows["dense-finetuned"].difference is None


def test_an_arm_without_all_seeds_has_no_row_and_says_so() -> None:
    runs = [run for run in made_up() if (run.method, run.seed) != ("imp", 2)]
    groups, missing = rows_of(runs)
    assert missing == ["imp: 2 of 3 seeds"]
    assert "imp" not in [row.arm.method for row in groups["Steps alone"]]
    assert "imp: 2 of 3 seeds" in review_markdown(runs)


def test_controls_are_arms_and_the_suite_runs_all_of_them() -> None:
    names = {arm.method for arm in ARMS}
    assert {arm.control for arm in ARMS if arm.control} <= names
    asked = load_suite("review").methods
    assert {
        name.removeprefix("shuffled:") + "-shuffled-mask" * name.startswith("shuffled:") for name in asked
    } == names


def test_runs_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(runs_csv(reversed(made_up())))
    order = [(run.method, run.seed) for run in read_runs(path)]
    assert order == sorted(order)
    assert set(read_runs(path)) == set(made_up())


def test_the_page_is_what_its_numbers_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fill_part(page, "review", review_markdown(read_runs(PAGE.with_suffix(".csv")))) == page


def test_a_page_without_the_part_is_refused() -> None:
    with pytest.raises(UsageError, match="review:begin"):
        fill_part("no markers", "review", "text")
