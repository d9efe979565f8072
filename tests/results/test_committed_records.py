"""The committed records: sound, complete, lossless in their form, and what they say of the methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunebench.leaderboard.values import Leaderboard, MethodRow, Track
from prunebench.methods.discovery import builtin_methods
from prunebench.results.convert import export_results, import_results
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.submission import check_records

RESULTS = Path(__file__).parent.parent.parent / "leaderboard" / "results"
JUDGED = {
    "colored-digits@2pct": ((0.5, 0.8, 0.9, 0.95, 0.98, 0.99), 5),
    "colored-mnist@1pct": ((0.5, 0.9, 0.98), 3),
}
"""Sparsities and number of seeds of the tasks that methods are ranked on."""


def track_of(board: Leaderboard, task: str) -> Track:
    (track,) = [track for track in board.tracks if track.task == task]
    return track


def row_of(track: Track, method: str, sparsity: float | None) -> MethodRow:
    (row,) = [row for row in track.rows if (row.method, row.sparsity) == (method, sparsity)]
    return row


def files(root: Path) -> Iterator[tuple[Path, bytes]]:
    for pattern in ("*/context.json", "*/*.jsonl"):
        yield from ((path.relative_to(root), path.read_bytes()) for path in sorted(root.glob(pattern)))


# The form


@pytest.mark.slow
def test_they_hold_together_and_are_clean(records: list[RunRecord]) -> None:
    assert [finding for finding in check_records(RESULTS) if not finding.ok] == []
    assert {record.status for record in records} == {"ok"}
    assert not any(record.code["dirty"] for record in records)


@pytest.mark.slow
def test_nothing_is_lost_on_the_way_to_a_store_and_back(records: list[RunRecord], tmp_path: Path) -> None:
    assert import_results(RESULTS, tmp_path / "store").new == len(records)
    assert Store(tmp_path / "store").records() == (records, [])
    export_results(tmp_path / "store", tmp_path / "again")
    assert dict(files(tmp_path / "again")) == dict(files(RESULTS))


def test_a_methods_file_can_be_reviewed() -> None:
    found = {path: data for path, data in files(RESULTS) if path.suffix == ".jsonl"}
    assert max(data.count(b"\n") for data in found.values()) <= 150
    assert max(map(len, found.values())) < 80_000
    assert sum(map(len, found.values())) < 3e6


def test_runs_of_built_in_methods_keep_their_names(records: list[RunRecord]) -> None:
    """Those of the version that is here: an older one had other settings."""
    known, checked = builtin_methods(), 0
    for spec in (record.run_spec for record in records):
        if spec.method in known and known[spec.method].version == spec.method_version:
            params = known[spec.method].with_params(dict(spec.params)).params
            assert tuple(sorted(params.items())) == spec.params
            checked += 1
    assert checked > 100


# What they cover: a method without any run is not on the board, and nothing is asked of it


@pytest.mark.slow
@pytest.mark.parametrize("task", JUDGED)
def test_a_method_on_the_board_has_every_sparsity_and_seed(board: Leaderboard, task: str) -> None:
    sparsities, seeds = JUDGED[task]
    track = track_of(board, task)
    methods = {row.method for row in track.rows}
    assert methods >= {"dense", "magnitude", "dcwp"}
    for name in methods - {"dense"}:
        native = {row.sparsity for row in track.rows if row.method == name} == {None}
        for sparsity in (None,) if native else sparsities:
            row = row_of(track, name, sparsity)
            assert row.complete, (task, name, sparsity)
            assert len(row.seeds) == seeds
    assert row_of(track, "dense", 0.0).complete


# What they say


@pytest.mark.parametrize("task", JUDGED)
def test_dense_training_is_visibly_biased(board: Leaderboard, task: str) -> None:
    dense = row_of(track_of(board, task), "dense", 0.0)
    assert dense.metric("aligned").mean - dense.metric("conflicting").mean >= 0.3


def test_dcwp_beats_magnitude_on_the_minorities_of_colored_mnist(board: Leaderboard) -> None:
    track = track_of(board, "colored-mnist@1pct")
    cured, plain = (row_of(track, name, 0.9).metric("conflicting") for name in ("dcwp", "magnitude"))
    assert cured.mean - cured.half_width > plain.mean + plain.half_width
