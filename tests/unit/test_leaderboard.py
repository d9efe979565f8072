"""The board: a pure function of records that never averages over what is missing."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from board_records import CELL, MACHINE, RECIPE, cost, failed, full_records, metrics, run

from prunebench.errors import StoreError
from prunebench.inference import cascade
from prunebench.leaderboard import build_board, columns, write_board
from prunebench.leaderboard.build import MANIFEST, board_files, board_markdown, write_pages
from prunebench.leaderboard.columns import (
    BoardLine,
    accuracy_table,
    board_table,
    board_terminal,
    cost_table,
    masks_table,
    mining_table,
    speed_summary,
)
from prunebench.leaderboard.plots import curve_plot, method_styles, track_grid
from prunebench.leaderboard.readme import board_excerpt, shown_rows, update_readme
from prunebench.leaderboard.site import rows_data
from prunebench.leaderboard.values import Leaderboard, MethodRow, Track
from prunebench.metrics.registry import metric_named
from prunebench.metrics.registry import metrics as metrics_of_registry
from prunebench.report.format import FOLDED, MINUS, MISSING, TIMES, sparsity_place
from prunebench.report.markdown import escape
from prunebench.report.plot import REFERENCE as DASHED
from prunebench.report.plot import limits
from prunebench.report.plotly import plotly_figure
from prunebench.report.svg import svg
from prunebench.report.table import Table
from prunebench.results.frame import results_frame
from prunebench.results.ranking import DEFERRAL_NOTE
from prunebench.results.record import GroupRow, Mining, Percentiles, RunRecord
from prunebench.results.tracks import REFERENCE, SeedPlan, planned_seeds
from prunebench.runner.plan import board_plans, expand
from prunebench.stats.intervals import mean_interval
from prunebench.suites import load_suite

NASTY = '</script><script>alert("x")</script><img src=x onerror=y()> | `code` **bold** [a](javascript:b)\n# c'


def markdown_of(board: Leaderboard) -> str:
    """All Markdown of a board."""
    files = board_files(board)
    return "\n".join(files[name].decode() for name in sorted(files) if name.endswith(".md"))


def site_data(path: Path) -> Any:
    """What a chunk of the site hands to the page."""
    return json.loads(path.read_text(encoding="utf-8").split(", ", 1)[1].removesuffix(");\n"))


def only_track(records: list[RunRecord]) -> Track:
    (track,) = build_board(records).tracks
    return track


def row_of(track: Track, method: str, sparsity: float | None) -> MethodRow:
    (row,) = (row for row in track.rows if (row.method, row.sparsity) == (method, sparsity))
    return row


def texts(
    track: Track, table: Callable[[Track], Table[BoardLine]], method: str, sparsity: str
) -> dict[str, str]:
    """The cells of one row by the keys of their columns."""
    made = table(track)
    (line,) = (line for line in made.rows if (line.row.tag, line.row.method) == (sparsity, method))
    return dict(zip(made.keys, (cell.text for cell in made.cells(line)), strict=True))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# The frame of runs


def test_the_frame_has_one_row_a_run() -> None:
    frame = results_frame(full_records())
    assert len(frame) == len(full_records())
    row = frame.filter(method="beta", sparsity=0.9, seed=2).row(0, named=True)
    assert row["conflicting"] == row["worst_group"]
    assert row["val_conflicting"] == pytest.approx(row["conflicting"] + 0.05)
    assert (row["achieved_sparsity"], row["nonzero_parameters"], row["macs"]) == (0.9, 100, 4_000_000)
    assert (row["latency_dense_ms"], row["run_seconds"], row["supervision"]) == (1.0, 2.0, "none")
    assert json.loads(row["recipe"])["steps"] == 400
    native = frame.filter(method="native", seed=0).row(0, named=True)
    assert native["sparsity"] is None
    assert (native["mining_precision"], native["mining_recall"]) == (0.6, 0.75)


def test_the_frame_of_no_runs_has_the_same_columns() -> None:
    empty, full = results_frame([]), results_frame(full_records())
    assert len(empty) == 0
    assert empty.schema == full.schema
    assert {"unbiased", "val_unbiased", "peak_memory_mb", "reason"} <= set(empty.columns)


def test_failed_runs_have_nulls_and_a_reason() -> None:
    row = results_frame([failed("alpha", 0.5, 0, "no memory")]).row(0, named=True)
    assert (row["status"], row["reason"]) == ("failed", "no memory")
    assert all(row[name] is None for name in ("unbiased", "val_plain", "macs", "achieved_sparsity"))


def test_undefined_metrics_are_null_and_unknown_ones_come_last() -> None:
    values = metrics(0.4) | {"conflicting": math.nan, "new_metric": 0.5}
    frame = results_frame([run("alpha", 0.5, 0, metrics=values)])
    assert frame["conflicting"].to_list() == [None]
    assert frame.columns[-1] == "new_metric"
    assert frame.columns[:-1] == results_frame([]).columns


def test_the_frame_does_not_depend_on_the_order_of_records() -> None:
    records = full_records()
    assert results_frame(records).equals(results_frame(records[::-1]))


# Means and coverage


def test_means_with_intervals_by_hand() -> None:
    """0.40, 0.45, 0.50: mean 0.45, s = 0.05, half-width 4.302653 * 0.05 / sqrt(3) = 0.1242."""
    track = only_track([run("alpha", 0.5, seed, 0.40 + 0.05 * seed) for seed in range(3)])
    row = row_of(track, "alpha", 0.5)
    assert row.metric("conflicting").mean == pytest.approx(0.45)
    assert row.metric("conflicting").half_width == pytest.approx(0.124207, abs=1e-6)
    cells = texts(track, accuracy_table, "alpha", "0.5")
    assert cells["conflicting"] == "45.0 ± 12.4"
    assert cells["aligned"] == "90.0 ± 0.0"
    assert cells["seeds"] == "3/3"


def test_one_seed_has_a_mean_without_half_width_and_no_rank() -> None:
    track = only_track([run("alpha", 0.5, 0, 0.4), run("beta", 0.5, 0, 0.3)])
    cells = texts(track, accuracy_table, "alpha", "0.5")
    assert cells["conflicting"] == "40.0 ± \u2013"
    assert cells["conflicting_rank"] == MISSING


@pytest.mark.parametrize("table", [accuracy_table, cost_table])
def test_a_failed_seed_leaves_no_mean(table: Callable[[Track], Table[BoardLine]]) -> None:
    """A failure may come of what is measured: the mean over the survivors would say too much."""
    cells = texts(only_track(full_records()), table, "delta", "0.9")
    known = {"sparsity", "method", "supervision", "seeds", "unranked"}
    assert cells["seeds"] == "2/3"
    assert {text for title, text in cells.items() if title not in known} == {MISSING}


def test_a_seed_that_was_not_run_leaves_the_mean_of_the_others_and_is_named() -> None:
    track = only_track(full_records())
    cells = texts(track, accuracy_table, "gamma", "0.9")
    assert (cells["seeds"], cells["conflicting"]) == ("2/3", "29.5 ± 1.9")
    assert cells["unranked"] == "2 seeds of at least 5, seed 2 missing"
    assert "gamma at sparsity 0.9, seed 2: no record" in track.problems


def test_reasons_stand_below_the_table() -> None:
    assert only_track(full_records()).problems == (
        "gamma at sparsity 0.9, seed 2: no record",
        "delta at sparsity 0.9, seed 1: failed: MaskError: layer head.weight is empty",
    )


def test_equal_reasons_are_told_once_and_long_ones_are_cut() -> None:
    records = [failed("alpha", 0.5, seed, "out of memory\n  at step 3" + "!" * 400) for seed in range(2)]
    (line,) = only_track([*records, run("alpha", 0.5, 2)]).problems
    assert line.startswith("alpha at sparsity 0.5, seeds 0, 1: failed: out of memory at step 3!!!")
    assert line.endswith("...")


def test_a_sparsity_without_any_record_of_a_method_is_named() -> None:
    track = only_track([run("alpha", 0.5, 0), run("alpha", 0.9, 0), run("beta", 0.5, 0)])
    assert track.problems == ("beta: no record at sparsity 0.9",)


def test_an_undefined_metric_of_one_seed_makes_an_undefined_mean() -> None:
    records = [run("alpha", 0.5, seed) for seed in range(2)]
    records.append(run("alpha", 0.5, 2, metrics=metrics(0.4) | {"conflicting": None}))
    cells = texts(only_track(records), accuracy_table, "alpha", "0.5")
    assert cells["conflicting"] == MISSING
    assert cells["unbiased"] == "65.0 ± 0.0"


def test_an_ok_record_counts_before_a_failed_one_of_the_same_run() -> None:
    good, bad = run("alpha", 0.5, 0), failed("alpha", 0.5, 0, "once", started_utc="2027-01-01T00:00:00Z")
    later = run("alpha", 0.5, 0, 0.2, started_utc="2026-06-01T00:00:00Z")
    for records in ([good, bad, later], [later, bad, good]):
        board = build_board(records)
        assert (board.runs, board.ok, board.duplicates) == (1, 1, 2)
        assert board.tracks[0].rows[0].metric("conflicting").mean == 0.2


# Ranks


def test_ranks_are_the_places_that_the_tests_allow() -> None:
    track = only_track(full_records(seeds=5))
    ranks = {row.method: str(row.ranks["conflicting"]) for row in track.pruned if row.sparsity == 0.5}
    assert ranks == {"alpha": "1-2", "beta": "1-2", "gamma": "3-4", "delta": "3-4"}
    assert texts(track, accuracy_table, "alpha", "0.5")["conflicting_rank"] == "1-2"
    assert not any(row.ranks["conflicting"] for row in only_track(full_records(seeds=4)).rows if row.metrics)


def test_rows_without_a_rank_say_why() -> None:
    """And no mean is lost by that, but where a run failed."""
    at_half = {"notes": {DEFERRAL_NOTE: 0.2}}
    unranked = {
        "method": {"name": "small", "supervision": "none", "cite": "reference: narrow", "ranked": "no"}
    }
    records = full_records(seeds=5)
    for seed in range(5):
        records += [run("deferring", 0.9, seed, **at_half), run("small", 0.9, seed, **unranked)]
        records.append(run("fallen", 0.9, seed, 0.1, validation={"plain": 0.52, "class_recall": 0.51}))
    track = only_track(records)
    assert {(row.method, row.tag): row.unranked for row in track.rows if row.unranked} == {
        ("dense", "dense"): "nothing is pruned",
        ("native", "native"): "chooses its sparsity itself",
        ("gamma", "0.9"): "4 seeds of at least 5, seed 2 missing",
        ("delta", "0.9"): "seed 1 failed",
        ("deferring", "0.9"): "needs the dense network to answer",
        ("small", "0.9"): "a reference",
        ("fallen", "0.9"): "collapsed: 5 of 5 networks near chance on the validation split",
    }
    assert {row.method for row in track.rows if row.ranks.get("conflicting")} == {
        "alpha",
        "beta",
        "gamma",
        "delta",
    }
    assert not any(row.ranks.get("conflicting") for row in track.rows if row.unranked)
    assert {row.method for row in track.rows if not row.metrics} == {"delta"}
    assert DEFERRAL_NOTE == cascade.THRESHOLD_NOTE


def test_collapse_is_told_from_bias() -> None:
    """A biased network is right on validation data; a collapsed one is not, and some fallen seeds are only named."""
    biased = {"plain": 0.95, "class_recall": 0.95}
    fallen = {"plain": 0.97, "class_recall": 0.54}  # of two classes, 97 % of one kind
    records = [run("alpha", 0.9, seed, 0.0, validation=biased) for seed in range(5)]
    records += [run("beta", 0.9, seed, 0.1, validation=fallen if seed < 2 else biased) for seed in range(5)]
    records += [run("gamma", 0.9, seed, 0.1, validation=fallen if seed < 3 else biased) for seed in range(5)]
    track = only_track(records)
    assert {row.method: bool(row.collapsed) for row in track.rows} == {
        "alpha": False,
        "beta": False,
        "gamma": True,
    }
    assert row_of(track, "gamma", 0.9).label == "gamma ‡"
    assert [line for line in track.remarks if "collapsed" in line] == [
        "beta at sparsity 0.9: the network of seeds 0, 1 collapsed, and is in its mean.",
        "‡ gamma at sparsity 0.9 collapsed: 3 of 5 networks near chance on the validation split. It has no rank.",
    ]


def test_rows_are_in_order_of_sparsity_then_accuracy_with_dense_first() -> None:
    rows = [(row.method, row.sparsity) for row in only_track(full_records()).rows]
    assert rows[0] == ("dense", 0.0)
    assert rows[-1] == ("native", None)
    assert [method for method, sparsity in rows if sparsity == 0.9] == ["alpha", "beta", "gamma", "delta"]


# Seeds


def test_seeds_are_those_of_the_plan_and_others_stand_apart() -> None:
    plans = (SeedPlan(CELL.task, (0, 1, 2, 3, 4)), SeedPlan(CELL.task, (55, 66), model="resnet"))
    records = [run("alpha", 0.9, seed, 0.1 * seed) for seed in (0, 1, 7)] + [run("beta", 0.9, 0, 0.4)]
    (track,) = build_board(records, plans=plans).tracks
    row = row_of(track, "alpha", 0.9)
    assert track.seeds == row.planned == (0, 1, 2, 3, 4)
    assert row.metric("conflicting").mean == pytest.approx(0.05)
    assert "alpha was also run with seed 7, beyond the planned ones: in no mean here." in track.notes
    assert "beta at sparsity 0.9, seeds 1, 2, 3, 4: no record" in track.problems


def test_results_without_any_planned_seed_are_shown_and_told() -> None:
    (track,) = build_board([run("alpha", 0.9, 0, 0.4)], plans=[SeedPlan(CELL.task, (5, 6, 7))]).tracks
    assert track.rows[0].metric("conflicting").mean == 0.4
    assert "None of the planned seeds (5, 6, 7) has a run: rows are of seed 0." in track.notes


def test_the_more_special_plan_counts() -> None:
    plans = [
        SeedPlan(CELL.task, (0, 1)),
        SeedPlan(CELL.task, (0,), model=CELL.model),
        SeedPlan(CELL.task, (9,), model=CELL.model, recipe=(("steps", 7),)),
        SeedPlan("other", (3,)),
    ]
    records = [run("alpha", 0.9, seed) for seed in range(3)]
    assert planned_seeds(records, plans) == (0,)
    assert planned_seeds(records, plans[:1]) == (0, 1)
    assert planned_seeds(records, plans[3:]) == (0, 1, 2)


def test_the_suites_of_the_board_plan_enough_seeds_for_a_rank() -> None:
    found = board_plans()
    assert "colored-digits@2pct" in {plan.task for plan in found}
    assert all(seed < 100 for plan in found for seed in plan.seeds)


def test_a_suite_with_a_budget_of_its_own_has_its_own_seeds() -> None:
    """`quick` trains half as long as the board: its three seeds are all that its rows should have, not three of ten."""
    quick = expand(load_suite("quick"), None)
    records = [replace(run("alpha", 0.9, cell.spec.seed), spec=cell.spec.to_dict()) for cell in quick]
    assert planned_seeds(records, board_plans()) == (0, 1, 2)
    digits = [
        replace(run("alpha", 0.9, 0), spec=cell.spec.to_dict())
        for cell in expand(load_suite("digits"), None)[:3]
    ]
    assert planned_seeds(digits, board_plans()) == tuple(range(10))


# The reference


def referenced(values: dict[str, list[float]], sparsity: float = 0.9) -> list[RunRecord]:
    """Runs of named rows by seed; those that end in `dense` or are the reference at sparsity 0, of 500 steps."""
    found = []
    for name, by_seed in values.items():
        asked = 0.0 if name.endswith("-dense") or name == REFERENCE else sparsity
        for seed, value in enumerate(by_seed):
            price = replace(cost(asked, 1.0, 1.0), training_steps=500 if name == REFERENCE else 600)
            found.append(run(name, asked, seed, value, cost=price))
    return found


NOISE = [0.00, 0.02, -0.01, 0.01, -0.02]
OTHER_NOISE = [0.01, 0.00, 0.01, -0.01, 0.00]


def around(value: float, noise: Sequence[float] = NOISE) -> list[float]:
    return [value + part for part in noise]


def test_changes_and_training_are_those_from_dense_finetuned() -> None:
    """`dense` is better by far, and is compared with nothing."""
    values = {REFERENCE: around(0.5), "alpha": around(0.4, OTHER_NOISE), "beta": around(0.5, OTHER_NOISE)}
    dense = [run("dense", 0.0, seed, 0.9) for seed in range(5)]
    track = only_track([*dense, *referenced(values)])
    assert track.reference == REFERENCE
    change = row_of(track, "alpha", 0.9).changes["conflicting"]
    differences = [a - b for a, b in zip(values["alpha"], values[REFERENCE], strict=True)]
    assert change.interval.mean == pytest.approx(sum(differences) / 5)
    assert change.interval.half_width == pytest.approx(mean_interval(differences).half_width, abs=1e-3)
    cells = texts(track, accuracy_table, "alpha", "0.9")
    assert re.fullmatch(f"{MINUS}9[.]8 ± [0-9.]+ [*]", cells["conflicting_change"])
    assert not row_of(track, "beta", 0.9).changes["conflicting"].decided
    assert texts(track, accuracy_table, REFERENCE, "dense")["conflicting_change"] == MISSING
    assert cells["training"] == f"1.20{TIMES}"


def test_without_the_reference_nothing_stands_in_for_it() -> None:
    records = [run(name, 0.0, seed, 0.5) for name in ("dense", "dense-long") for seed in range(5)]
    records += [run("alpha", 0.9, seed, 0.4) for seed in range(5)]
    records += [failed(REFERENCE, 0.0, seed, "no memory") for seed in range(5)]
    track = only_track(records)
    cells = texts(track, accuracy_table, "alpha", "0.9")
    assert (track.reference, cells["conflicting_change"], cells["training"]) == (None, MISSING, MISSING)
    assert any("no run of dense-finetuned has finished, or one failed" in note for note in track.notes)
    two = referenced({REFERENCE: around(0.5)}) + [
        run(REFERENCE, 0.0, seed, 0.6, cell={"method_version": "2"}) for seed in range(5)
    ]
    assert any("several rows of dense-finetuned" in note for note in only_track(two).notes)


# What the mask adds


def test_masks_beside_their_shuffled_ones_and_the_method_unpruned() -> None:
    values = {
        REFERENCE: around(0.6), "lff-dense": around(0.7), "lff": around(0.65, OTHER_NOISE),
        "shuffled:lff": around(0.5), "mrm": around(0.4, OTHER_NOISE), "shuffled:mrm": around(0.4),
        "snip": around(0.45),
    }  # fmt: skip
    track = only_track(referenced(values))
    lff, mrm = (row_of(track, name, 0.9).mask for name in ("lff", "mrm"))
    assert lff is not None
    assert mrm is not None
    assert (lff.beats_shuffled, mrm.beats_shuffled) == (True, False)
    assert lff.unpruned is not None
    assert lff.unpruned.against == "lff-dense"
    assert lff.unpruned.interval.mean == pytest.approx(-0.048)
    assert mrm.unpruned is not None
    assert mrm.unpruned.against == REFERENCE
    assert row_of(track, "snip", 0.9).mask is None
    assert row_of(track, "shuffled:mrm", 0.9).mask is None
    table = masks_table(track)
    assert table is not None
    assert table.choose("method", "mask_verdict").texts() == [
        ["lff", "beats its shuffled mask"], ["mrm", "not shown to beat its shuffled mask"],
    ]  # fmt: skip
    assert [line for line in track.remarks if "shuffled" in line] == [
        "mrm at sparsity 0.9: its mask is not shown to be better than the same mask shuffled within layers."
    ]
    assert masks_table(only_track(full_records())) is None


# Columns that say the same


def many_groups(aligned: float, worst: float) -> dict[str, Any]:
    """A run of ten labels and ten biases, with these accuracies of aligned groups and of the worst one."""
    groups = [
        GroupRow(y, b, y == b, 100, round(100 * (aligned if y == b else worst if (y, b) == (0, 1) else 0.4)))
        for y in range(10)
        for b in range(10)
    ]
    values = metrics(0.4) | {"aligned": aligned, "worst_group": worst, "worst_tenth": 0.3}
    return {"groups": groups, "metrics": values}


def test_columns_that_say_the_same_are_folded_and_told() -> None:
    records = [run("alpha", 0.5, seed, **many_groups(0.97, 0.0)) for seed in range(2)]
    track = only_track(records)
    keys = accuracy_table(track).keys
    assert not {"unbiased", "bias_gap", "worst_group"} & set(keys)
    assert {"conflicting", "aligned", "worst_tenth"} <= set(keys)
    assert any(
        line.startswith("Unbiased accuracy and bias gap are not shown (·) at 0.5") for line in track.remarks
    )
    assert any(line.startswith("Worst-group accuracy is not shown (·) at 0.5") for line in track.remarks)
    both = only_track([*records, *(run("alpha", 0.9, seed, **many_groups(0.9, 0.2)) for seed in range(2))])
    assert texts(both, accuracy_table, "alpha", "0.5")["unbiased"] == FOLDED
    assert texts(both, accuracy_table, "alpha", "0.9")["unbiased"] == "65.0 ± 0.0"
    assert texts(both, accuracy_table, "alpha", "0.5")["worst_group"] == FOLDED


def test_accuracy_on_data_like_those_of_training_stands_beside() -> None:
    """Of validation, and only where any run has it: predictions that were handed in have none."""
    known = [run("alpha", 0.5, seed, validation={"plain": 0.96 + 0.02 * seed}) for seed in range(2)]
    bare = run("beta", 0.5, 0, validation={})
    track = only_track([*known, bare])
    assert texts(track, accuracy_table, "alpha", "0.5")["in_distribution"] == "97.0 [84.3, 100.0]"
    assert texts(track, accuracy_table, "beta", "0.5")["in_distribution"] == MISSING
    assert "in_distribution" not in accuracy_table(only_track([bare])).keys
    data = rows_data(track, {"alpha": 0, "beta": 1})["in_distribution"]
    assert data == {"mean": [97, None], "width": [[84.3, 100], None]}


def test_conflicting_groups_that_training_never_saw_stand_apart() -> None:
    """Only where there are any: else `seen` is the conflicting accuracy itself."""
    seen, unseen = metrics(0.4) | {"conflicting_seen": 0.5}, {"conflicting_unseen": 0.3}
    apart = only_track([run("alpha", 0.5, seed, metrics=seen | unseen) for seed in range(2)])
    assert {"conflicting_seen", "conflicting_unseen"} <= set(accuracy_table(apart).keys)
    all_seen = [run("alpha", 0.5, seed, metrics=seen | {"conflicting_unseen": None}) for seed in range(2)]
    assert not {"conflicting_seen", "conflicting_unseen"} & set(accuracy_table(only_track(all_seen)).keys)


def test_intervals_stay_within_what_a_share_can_be() -> None:
    """0.0, 0.02, 0.04: mean 2 and half-width 4.97, which would reach below 0."""
    track = only_track([run("alpha", 0.5, seed, 0.02 * seed) for seed in range(3)])
    assert texts(track, accuracy_table, "alpha", "0.5")["conflicting"] == "2.0 [0.0, 7.0]"


# What must not be averaged


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"model": "resnet"}, "model resnet"),
        ({"task_version": 2}, "task version 2"),
        ({"data_fingerprint": "f" * 16}, "data " + "f" * 16),
        ({"recipe": replace(RECIPE, steps=999)}, "steps 999"),
    ],
)
def test_runs_that_differ_in_what_is_trained_get_their_own_track(cell: dict[str, Any], words: str) -> None:
    board = build_board([run("alpha", 0.5, 0, 0.2), run("alpha", 0.5, 0, 0.8, cell=cell)])
    assert [track.task for track in board.tracks] == ["digits@2pct", "digits@2pct"]
    assert sorted(s.rows[0].metric("conflicting").mean for s in board.tracks) == [0.2, 0.8]
    assert {track.slug for track in board.tracks} == {"digits-2pct", "digits-2pct-2"}
    (titled,) = (track for track in board.tracks if words in track.title)
    assert titled.differs == words
    assert f"Not averaged with the other tracks of digits@2pct: here {words}." in markdown_of(board)


def test_titles_of_tracks_say_as_little_as_tells_them_apart() -> None:
    cells = [{}, {"model": "resnet"}, {"model": "resnet", "recipe": replace(RECIPE, steps=999)}]
    board = build_board([run("alpha", 0.5, 0, cell=cell) for cell in cells])
    assert {track.title for track in board.tracks} == {
        "digits@2pct (model convnet)",
        "digits@2pct (model resnet, steps 400)",
        "digits@2pct (model resnet, steps 999)",
    }


def test_settings_and_versions_of_a_method_are_rows_of_their_own() -> None:
    changes = [{"params": (("a", 1), ("b", 2))}, {"params": (("a", 3), ("b", 2))}, {"method_version": "2"}]
    track = only_track([run("alpha", 0.5, 0, cell=cell) for cell in changes])
    assert {row.method for row in track.rows} == {
        "alpha (a=1, b=2, version=1)",
        "alpha (a=3, b=2, version=1)",
        "alpha (version=2)",
    }


def test_differing_splits_and_precisions_are_told() -> None:
    records = [run("alpha", 0.5, 0), run("beta", 0.5, 0, splits_hash="other")]
    records.append(run("gamma", 0.5, 0, environment=MACHINE | {"precision": "bf16"}))
    notes = only_track(records).notes
    assert any("different precisions: bf16, fp32" in note for note in notes)
    assert any("seed 0 saw different splits" in note for note in notes)


# Cost


def test_latency_is_a_median_and_speed_up_a_geometric_mean_of_ratios() -> None:
    """Dense 1, 2, 9 ms and pruned 1, 1, 3 ms: medians 2 and 1, ratios 1, 2, 3 with geometric mean 1.82."""
    times = [(1.0, 1.0), (2.0, 1.0), (9.0, 3.0)]
    track = only_track([run("alpha", 0.9, s, cost=cost(0.9, *pair)) for s, pair in enumerate(times)])
    cells = texts(track, cost_table, "alpha", "0.9")
    assert (cells["dense_ms"], cells["pruned_ms"]) == ("2.00", "1.00")
    ratio = track.rows[0].cost.speeds[0].ratio  # type: ignore[union-attr]
    assert ratio.mean == pytest.approx(6 ** (1 / 3))
    assert ratio.low < 1 < ratio.high, "three runs as far apart as these show no difference"
    assert cells["speed_up"] == f"1.82 ± {ratio.high - ratio.mean:.2f}\u00d7 n.s."
    assert cells["theoretical_speed_up"] == "10.00\u00d7"
    assert (cells["nonzero_parameters"], cells["nonzero_share"]) == ("100", "10.0")
    assert (cells["macs"], cells["nonzero_macs"]) == ("4.00", "0.400")
    assert cells["training"] == MISSING
    summary = speed_summary(track)
    assert summary is not None
    assert summary.endswith(
        "10.0\u00d7 as fast. Measured, none is faster than dense and 1 shows no measurable difference."
    )


def test_a_disturbed_run_is_marked_and_in_no_headline() -> None:
    """Two rows 3x as fast, one of them with a run whose times spread."""
    quiet = cost(0.9, 3.0, 1.0)
    noisy = replace(quiet, latency_wall_spread=2.5)
    records = [run("alpha", 0.9, seed, cost=quiet) for seed in range(3)]
    records += [run("beta", 0.9, seed, cost=noisy if seed == 1 else quiet) for seed in range(3)]
    track = only_track(records)
    cells = {name: texts(track, cost_table, name, "0.9")["speed_up"] for name in ("alpha", "beta")}
    assert cells == {"alpha": "3.00 ± 0.00\u00d7", "beta": "3.00 ± 0.00\u00d7 busy"}
    said = speed_summary(track)
    assert said is not None
    assert "Measured, 1 is faster than dense (3.00\u00d7); 1 more on a busy machine says little." in said


def test_a_headline_of_disturbed_runs_alone_says_that_and_no_count() -> None:
    noisy = replace(cost(0.9, 3.0, 1.0), latency_wall_spread=2.5)
    track = only_track([run("alpha", 0.9, seed, cost=noisy) for seed in range(3)])
    assert str(speed_summary(track)).endswith(
        "as fast. Every speed was measured on a busy machine, which says little."
    )


def test_the_headline_counts_what_differs_measurably() -> None:
    pairs = {"alpha": (2.0, 1.0), "beta": (1.0, 1.0), "gamma": (1.0, 2.0)}
    track = only_track(
        [run(name, 0.9, seed, cost=cost(0.9, *pair)) for name, pair in pairs.items() for seed in range(3)]
    )
    assert str(speed_summary(track)).endswith(
        "Measured, 1 is faster than dense (2.00\u00d7), 1 is slower and 1 shows no measurable difference."
    )


def test_the_dense_network_against_itself_is_the_noise_floor() -> None:
    again = replace(cost(0.9, 2.0, 1.0), latency_again_ms=Percentiles(1.6, 1.6, 1.6))
    track = only_track([run("alpha", 0.9, seed, cost=again) for seed in range(2)])
    speed = track.rows[0].cost.speeds[0]  # type: ignore[union-attr]
    assert speed.noise is not None
    assert speed.noise.mean == pytest.approx(1.25)
    assert speed.disturbed == 2


def test_machines_are_never_mixed() -> None:
    gpu = MACHINE | {"device": "cuda", "gpu": "Accelerator"}
    records = [run("alpha", 0.9, seed, cost=cost(0.9, 1.0, 1.0)) for seed in range(2)]
    records.append(run("alpha", 0.9, 2, environment=gpu, cost=cost(0.9, 40.0, 10.0)))
    track = only_track([*records, failed("beta", 0.9, 0, "no")])
    table = cost_table(track)
    shown = table.choose("machine", "speed_up", "dense_ms", "pruned_ms")
    rows = [[cell.text for cell in shown.cells(line)] for line in shown.rows if line.row.method == "alpha"]
    assert rows == [
        [
            "Processor One, 2 threads, batch of 64, dense kernels with zeros (2)",
            "1.00 ± 0.00\u00d7 n.s.",
            "1.00",
            "1.00",
        ],
        [
            "Accelerator with Processor One, batch of 64, dense kernels with zeros (1)",
            "4.00 ± \u2013\u00d7",
            "40.00",
            "10.00",
        ],
    ]
    # Where all setups of a row stand in one line, each has its own number there.
    both = texts(track, board_table, "alpha", "0.9")
    assert both["speed_up"] == "1.00 ± 0.00\u00d7 n.s., 4.00 ± \u2013\u00d7"
    assert any("different machines" in note for note in track.notes)
    assert row_of(track, "alpha", 0.9).metric("conflicting").n == 3


def test_threads_batch_and_kind_of_inference_are_part_of_the_machine() -> None:
    single = replace(cost(0.9, 1.0, 1.0), latency_batch=1)
    packed = replace(cost(0.9, 1.0, 1.0), latency_path="sparsify: auto")
    fallback = replace(cost(0.9, 1.0, 1.0), latency_path="dense kernels with zeros (a reason)")
    slower = run("beta", 0.9, 0, environment=MACHINE | {"threads": 1})
    track = only_track(
        [run("alpha", 0.9, 0), slower, run("gamma", 0.9, 0, cost=single), run("gamma", 0.9, 1, cost=packed),
         run("gamma", 0.9, 2, cost=fallback)]
    )  # fmt: skip
    labels = [machine.label for machine in track.machines]
    assert len(labels) == 4
    assert "Processor One, 2 threads, batch of 64, sparse inference" in labels


def test_mining_is_shown_for_methods_that_mine() -> None:
    table = mining_table(only_track(full_records()))
    assert table is not None
    assert table.texts() == [["native", "native", "60.0 ± 0.0", "75.0 ± 0.0"]]
    assert mining_table(only_track([run("alpha", 0.5, 0)])) is None


def test_undefined_mining_precision_is_a_dash() -> None:
    nothing = Mining(mined=0, conflicting=40, precision=None, recall=0.0)
    table = mining_table(only_track([run("alpha", 0.5, 0, mining=nothing)]))
    assert table is not None
    assert table.texts()[0][2] == MISSING


def test_board_facts() -> None:
    board = build_board(full_records())
    assert (board.runs, board.ok, board.seeds) == (29, 28, (0, 1, 2))
    assert ("alpha", "none", "Author of alpha, 2020") in board.methods
    assert board.labels == ("alpha", "beta", "delta", "gamma", "native")
    ((machine, runs),) = board.environments
    assert machine == "Processor One, 2 threads, python 3.11.7, torch 2.11.0, precision fp32"
    assert runs == 28
    assert board.commits == (("abcdef012345 (version 0.1.0)", 28),)


def test_uncommitted_code_is_told() -> None:
    code = {"commit": "abcdef0123456789", "dirty": True, "version": "0.1.0"}
    board = build_board([run("alpha", 0.5, 0, code=code), run("alpha", 0.5, 1, code={})])
    assert [name for name, _ in board.commits] == [
        "abcdef012345 with uncommitted changes (version 0.1.0)",
        "unknown commit (version unknown)",
    ]


def test_groups_are_averaged_over_seeds() -> None:
    row = row_of(only_track([run("alpha", 0.5, 0, 0.2), run("alpha", 0.5, 1, 0.4)]), "alpha", 0.5)
    assert row.groups == ((0.9, pytest.approx(0.3)), (pytest.approx(0.3), 0.9))


# What the registry says


def test_a_metric_of_the_registry_is_a_column_everywhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One definition: it heads a column of the tables, of the README's excerpt and of the page, with its words."""
    toy = replace(
        metric_named("conflicting"),
        name="toy",
        title="Toy metric",
        short="Toy",
        help="Of no use",
        unit="",
        decimals=2,
        range=(-math.inf, math.inf),
    )
    monkeypatch.setattr(columns, "metrics", lambda: (*metrics_of_registry(), toy))
    records = [run("magnitude", 0.9, seed, metrics=metrics(0.4) | {"toy": 0.25 * seed}) for seed in range(3)]
    board = write_board(records, tmp_path)
    assert texts(board.tracks[0], accuracy_table, "magnitude", "0.9")["toy"] == "0.25 ± 0.62"
    readme = tmp_path / "readme.md"
    readme.write_text("<!-- board:begin -->\n<!-- board:end -->\n")
    update_readme(board, readme)
    for text in (readme.read_text(), (tmp_path / "tasks" / "digits-2pct.md").read_text()):
        assert "| Toy |" in text
        assert "| 0.25 ± 0.62 |" in text
    rows = site_data(tmp_path / "site" / "data" / "digits-2pct.js")
    assert rows["metrics"]["toy"] == {"mean": [0.25], "width": [0.62]}
    assert "toy" in [
        metric["name"] for metric in site_data(tmp_path / "site" / "data" / "board.js")["metrics"]
    ]
    assert results_frame(records)["toy"].to_list() == [0.0, 0.25, 0.5]
    # A track whose records lack it has no column of dashes.
    assert "toy" not in accuracy_table(only_track(full_records())).keys


def test_the_readmes_table_is_short_and_holds_reference_and_baseline() -> None:
    values = {f"method-{i}": 0.1 + i / 20 for i in range(12)} | {"magnitude": 0.05, "shuffled:best": 0.9}
    unpruned = {"dense": 0.3, REFERENCE: 0.35, "lff-dense": 0.9}
    records = [run(name, 0.9, s, v) for name, v in values.items() for s in range(2)]
    records += [run(name, 0.0, s, v) for name, v in unpruned.items() for s in range(2)]
    rows, left = shown_rows(only_track(records))
    best = [f"method-{i}" for i in range(11, 6, -1)]
    assert [row.method for row in rows] == [REFERENCE, "dense", *best, "magnitude"]
    assert left == 9
    text = board_excerpt(build_board(records), "f")
    assert "the best by bias-conflicting accuracy and the baseline, 9 more on the board" in text
    assert "Changes, and training as a multiple, are from dense-finetuned" in text
    text = board_excerpt(build_board([r for r in records if r.spec["method"] != REFERENCE]), "f")
    assert "no run of dense-finetuned has finished, or one failed" in text


# Files


def test_the_board_is_byte_identical_whatever_the_order(tmp_path: Path) -> None:
    records = [*full_records(), run("alpha", 0.5, 0, cell={"task": "other"})]
    shuffled = list(records)
    random.Random(0).shuffle(shuffled)
    for name, given in (("first", records), ("second", records), ("third", shuffled)):
        write_board(given, tmp_path / name)
    first = files_of(tmp_path / "first")
    assert first == files_of(tmp_path / "second") == files_of(tmp_path / "third")
    assert sorted(first) == [
        "MANIFEST.sha256",
        "README.md",
        "figures/digits-2pct.svg",
        "figures/other.svg",
        "methods.md",
        "site/assets/LICENSES.txt",
        "site/assets/board.css",
        "site/assets/board.js",
        "site/data/board.js",
        *(
            f"site/data/{slug}{part}.js"
            for slug in ("digits-2pct", "other")
            for part in ("-groups", "-runs", "")
        ),
        "site/index.html",
        "tasks/digits-2pct.md",
        "tasks/other.md",
    ]


def test_files_are_text_that_ends_with_a_newline_and_knows_no_place(tmp_path: Path) -> None:
    write_board(full_records(), tmp_path)
    for name, data in files_of(tmp_path).items():
        assert data.endswith(b"\n"), name
        assert not data.endswith(b"\n\n"), name
        assert str(tmp_path).encode() not in data, name
        if not name.startswith(("site/assets/", "site/data/digits-2pct-runs")):
            assert b"2026" not in data, f"{name} holds a time"
            assert b"https://" not in data, f"{name} points to the network"


def test_a_reference_that_took_no_training_steps_leaves_training_undefined(tmp_path: Path) -> None:
    records = [run(REFERENCE, 0.0, 0), run("alpha", 0.5, 0)]
    free = [replace(r, cost=replace(r.cost, training_steps=0)) for r in records if r.cost is not None]
    board = write_board(free, tmp_path)
    costs = [row.cost for row in board.tracks[0].rows]
    assert all(cost is not None and math.isnan(cost.training) for cost in costs)
    assert columns.cost_table(board.tracks[0]).choose("training").texts() == [[MISSING], [MISSING]]


def test_the_manifest_is_what_sha256sum_checks(tmp_path: Path) -> None:
    write_board(full_records(), tmp_path)
    listed = dict(line.split("  ")[::-1] for line in (tmp_path / MANIFEST).read_text().splitlines())
    files = files_of(tmp_path)
    assert set(listed) == set(files) - {MANIFEST}
    assert all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in listed.items())


def test_what_left_the_board_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "board"
    two = [*full_records(), run("alpha", 0.5, 0, cell={"task": "other"})]
    write_pages(out, board_files(build_board(two)), whole=True)
    own = {out / "tasks" / "mine.md": "listed by nobody", out / "figures" / "other.svg": "changed by hand"}
    own |= {tmp_path / "tasks.md": "outside", out / "notes.md": "where no board writes"}
    for path, text in own.items():
        path.write_text(text)
    with (out / MANIFEST).open("a") as stream:
        for name in ("tasks/../../tasks.md", str(tmp_path / "tasks.md"), "notes.md", "tasks", ""):
            digest = hashlib.sha256(own.get(out / name, "outside").encode()).hexdigest()
            stream.write(f"{digest}  {name}\n")
    kept = board_files(build_board(full_records()))
    write_pages(out, kept, whole=True)
    assert {path: path.read_text() for path in own} == own
    assert set(files_of(out)) == {*kept, MANIFEST, "tasks/mine.md", "figures/other.svg", "notes.md"}


def test_the_front_page_of_many_tasks_stays_short() -> None:
    records = [run("alpha", 0.9, seed, cell={"task": f"task-{i}"}) for i in range(60) for seed in range(2)]
    assert len(board_markdown(build_board(records)).splitlines()) < 200


def test_an_empty_board_is_valid_and_says_so(tmp_path: Path) -> None:
    board = write_board([], tmp_path)
    assert board.tracks == ()
    for name in ("README.md", "site/index.html"):
        assert "There are no records yet" in (tmp_path / name).read_text(encoding="utf-8")
    assert board_terminal(board) == []


def test_a_board_of_failures_only_has_no_figures(tmp_path: Path) -> None:
    board = write_board([failed("alpha", 0.5, 0, "no"), failed("dense", 0.0, 0, "no")], tmp_path)
    assert not board.tracks[0].finished
    assert not (tmp_path / "figures").exists()
    text = (tmp_path / "tasks" / "digits-2pct.md").read_text(encoding="utf-8")
    assert "alpha at sparsity 0.5, seed 0: failed: no" in text
    assert "![" not in text


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="choose another"):
        write_board([], tmp_path / "taken")


# Markdown, page and picture


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    text = markdown_of(build_board([*full_records(), failed("a|b", 0.5, 0, NASTY)]))
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1, table


def test_markdown_says_what_its_numbers_mean() -> None:
    text = markdown_of(build_board(full_records()))
    assert "95 % t-interval" in text
    assert "Benjamini and Hochberg's correction over all these tests" in text
    assert "delta at sparsity 0.9, seed 1: failed" in text
    assert re.search(
        r"!\[Unbiased accuracy and .* over sparsity, digits@2pct\]\(../figures/digits-2pct.svg\)", text
    )
    assert f"Unbiased: m{metric_named('unbiased').help[1:]}." in text


def test_markdown_cannot_be_injected() -> None:
    text = markdown_of(build_board([failed(NASTY, 0.5, 0, NASTY), run("alpha", 0.5, 0)]))
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\[a\\?\]\(javascript", text)
    assert "\n# c" not in text
    assert escape("a|b <c> *d*\n# e") == r"a\|b &lt;c&gt; \*d\* \# e"


def test_the_page_and_its_data_cannot_be_injected(tmp_path: Path) -> None:
    method = {"name": NASTY, "supervision": NASTY, "cite": NASTY}
    cell, environment = {"task": NASTY, "model": NASTY}, MACHINE | {"cpu": NASTY}
    nasty = {"method": method, "cell": cell, "environment": environment}
    records = [run(NASTY, 0.5, 0, **nasty), run(NASTY, None, 0, **nasty)]
    board = write_board([*records, failed("alpha", 0.5, 0, NASTY, cell=cell)], tmp_path)
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    assert "&lt;img src=x onerror=y()&gt;" in page
    for path in (tmp_path / "site" / "data").iterdir():
        assert not set("<>&") & set(path.read_text(encoding="utf-8")), path.name
    index = site_data(tmp_path / "site" / "data" / "board.js")
    assert NASTY in [card["label"] for card in index["methods"]], "the text itself is whole"
    assert index["tasks"][0]["title"] == board.tracks[0].title == NASTY


def test_a_line_breaks_where_a_mean_is_missing() -> None:
    board = build_board(full_records())
    figure = plotly_figure(curve_plot(board.tracks[0], method_styles(board), metric_named("unbiased")))
    by_name = {trace["meta"]: trace for trace in figure["data"]}
    assert by_name["delta"]["y"][1] is None
    assert None not in by_name["alpha"]["y"]
    assert by_name["native"]["x"] == [pytest.approx(sparsity_place(0.25), abs=1e-4)]
    assert by_name["native"]["marker"]["symbol"] == "star"
    assert by_name["reference"]["y"] == [pytest.approx(70.5)] * 2


def test_plots_show_the_reference_and_no_bar_beyond_what_is_possible() -> None:
    values = {REFERENCE: around(0.5), "lff-dense": around(0.7), "alpha": [0.0, 0.1, 0.0, 0.0, 0.0]}
    track = only_track([*referenced(values), *(run("dense", 0.0, seed, 0.4) for seed in range(5))])
    plot = curve_plot(track, {"alpha": DASHED}, metric_named("conflicting"))
    assert sorted(rule.name for rule in plot.rules) == ["dense", REFERENCE]
    (mark,) = (mark for series in plot.series for mark in series.marks)
    assert mark.low == 0


def test_colours_are_the_same_in_every_track() -> None:
    board = build_board([*full_records(), run("beta", 0.5, 0, cell={"task": "other"})])
    styles = method_styles(board)
    for track in board.tracks:
        for plot in track_grid(track, styles).plots:
            colours = {series.style.colour for series in plot.series if series.name == "beta"}
            assert colours == {styles["beta"].colour}


def test_the_svg_is_well_formed_and_on_white() -> None:
    board = build_board([*full_records(), run("<b>&", 0.5, 0)])
    text = svg(track_grid(board.tracks[0], method_styles(board)))
    root = ElementTree.fromstring(text)
    shapes = [element.tag.split("}")[1] for element in root]
    assert shapes[:3] == ["title", "desc", "rect"]
    assert root[2].attrib["fill"] == "#ffffff"
    assert "nan" not in text
    assert "Mean over 3 seeds" in text
    assert text.count(">alpha</text>") == 2


def test_axes_stay_within_what_an_accuracy_can_be() -> None:
    track = only_track([run("alpha", 0.5, seed, value) for seed, value in enumerate((0.0, 1.0))])
    plot = curve_plot(track, {"alpha": DASHED}, metric_named("conflicting"))
    assert limits([plot], "y") == (0, 100)
    narrow = only_track([run("alpha", 0.5, seed, 0.4 + seed / 1000) for seed in range(2)])
    low, high = limits([curve_plot(narrow, {"alpha": DASHED}, metric_named("conflicting"))], "y")
    assert high - low >= 10, "small differences look small"


def test_terminal_tables() -> None:
    from rich.console import Console

    board = build_board(full_records())
    console = Console(width=120)
    with console.capture() as capture:
        for table in board_terminal(board):
            console.print(table)
    text = capture.get()
    assert "digits@2pct" in text
    assert "2/3" in text
    assert "Native" not in text
    assert "native" in text


def test_the_factory_makes_the_cell_it_says() -> None:
    assert run("magnitude", 0.9, 0).run_spec == CELL


def test_a_mean_of_runs_that_were_made_differently_is_marked() -> None:
    other = {**MACHINE, "torch": "2.15.0", "cpu": "Processor Two"}
    alike = [run("m", 0.9, seed) for seed in range(2)]
    mixed = [run("n", 0.9, 0), run("n", 0.9, 1, environment=other, code={"dirty": True})]
    (track,) = build_board([*alike, *mixed]).tracks
    assert {row.method: row.mixed for row in track.rows} == {
        "m": (),
        "n": (
            "torch 2.11.0 and 2.15.0",
            "Processor One and Processor Two",
            "code with and without uncommitted changes",
        ),
    }
    text = markdown_of(build_board([*alike, *mixed]))
    assert "| n † " in text
    assert "| m " in text
    assert "† n at sparsity 0.9: its mean rests on torch 2.11.0 and 2.15.0; Processor One" in text
    changed = [run("n", 0.9, seed, code={"dirty": True}) for seed in range(2)]
    assert only_track(changed).rows[0].mixed == ("uncommitted code",)
