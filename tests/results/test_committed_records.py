"""The committed records: sound, complete, lossless in their form, and what they say of the methods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import findings
import pytest

from prunebench.leaderboard.values import Leaderboard
from prunebench.methods.discovery import builtin_methods
from prunebench.report.format import at_sparsity
from prunebench.results.convert import export_results, import_results
from prunebench.results.ranking import FEWEST_SEEDS
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.results.tracks import REFERENCE
from prunebench.submission import check_records

RESULTS = Path(__file__).parent.parent.parent / "leaderboard" / "results"


def files(root: Path) -> Iterator[tuple[Path, bytes]]:
    for pattern in ("*/context.json", "*/*.jsonl"):
        yield from ((path.relative_to(root), path.read_bytes()) for path in sorted(root.glob(pattern)))


# The form


@pytest.mark.slow
def test_they_hold_together_and_are_clean(records: list[RunRecord]) -> None:
    assert [finding for finding in check_records(RESULTS) if not finding.ok] == []
    assert all(record.status == "ok" or record.reason for record in records)
    assert not any(record.code["dirty"] for record in records)


@pytest.mark.slow
def test_nothing_is_lost_on_the_way_to_a_store_and_back(records: list[RunRecord], tmp_path: Path) -> None:
    assert import_results(RESULTS, tmp_path / "store").new == len(records)
    assert Store(tmp_path / "store").records() == (records, [])
    export_results(tmp_path / "store", tmp_path / "again")
    assert dict(files(tmp_path / "again")) == dict(files(RESULTS))


def test_a_methods_file_can_be_reviewed() -> None:
    found = {path: data for path, data in files(RESULTS) if path.suffix == ".jsonl"}
    for path, data in found.items():
        runs = data.count(b'{"run"')
        assert data.count(b"\n") <= 4 * runs + 100, path
        assert len(data) < 3000 * runs + 20_000, path


def test_runs_of_built_in_methods_keep_their_names(records: list[RunRecord]) -> None:
    """Those of the version that is here: an older one had other settings."""
    known, checked = builtin_methods(), 0
    for spec in (record.run_spec for record in records):
        if spec.method in known and known[spec.method].version == spec.method_version:
            params = known[spec.method].with_params(dict(spec.params)).params
            assert tuple(sorted(params.items())) == spec.params
            checked += 1
    assert checked


# What the board says of them: properties of any results, whichever are committed


@pytest.mark.slow
def test_every_row_has_its_seeds_or_says_which_are_missing(board: Leaderboard) -> None:
    for track in board.tracks:
        for row in track.rows:
            where = at_sparsity(row.method, row.sparsity, dense=row.dense)
            missing = set(row.planned) - set(row.seeds)
            told = [line for line in track.problems if line.startswith(f"{where}, ")]
            assert bool(missing) == bool(told), where
            assert {seed for line in told for seed in seeds_in(line)} == missing, where


@pytest.mark.slow
def test_a_rank_stands_on_enough_seeds_and_no_row_is_without_one_for_no_reason(board: Leaderboard) -> None:
    for track in board.tracks:
        for row in track.rows:
            ranked = any(row.ranks.values())
            assert not (ranked and row.unranked), (track.task, row.method)
            assert ranked or row.unranked, (track.task, row.method)
            assert not ranked or len(row.seeds) >= FEWEST_SEEDS


@pytest.mark.slow
def test_changes_are_from_the_reference_or_their_lack_is_told(board: Leaderboard) -> None:
    for track in board.tracks:
        against = {change.against for row in track.rows for change in row.changes.values()}
        assert against <= {track.reference}
        told = any(
            f"no run of {REFERENCE} has finished" in note or "several rows of" in note for note in track.notes
        )
        assert told == (track.reference is None)


@pytest.mark.slow
def test_dense_training_is_biased_wherever_pairs_are_aligned(board: Leaderboard) -> None:
    found = [row for track in board.tracks for row in track.dense if row.method == "dense" and row.has_means]
    assert found
    for row in found:
        assert row.metric("aligned").mean > row.metric("conflicting").mean


def seeds_in(line: str) -> set[int]:
    """The seeds that a line on missing or failed runs names."""
    (named,) = re.findall(r", seeds? ([0-9, ]+):", line)[:1]
    return {int(seed) for seed in named.split(",")}


# The study of published claims


@pytest.mark.slow
def test_the_records_of_findings_hold_together() -> None:
    assert [finding for finding in check_records(findings.RESULTS) if not finding.ok] == []
