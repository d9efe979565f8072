"""The committed records and their board, read once for all tests of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunebench.leaderboard import build_board
from prunebench.leaderboard.values import Leaderboard
from prunebench.results.record import RunRecord
from prunebench.results.store import open_results


@pytest.fixture(scope="session")
def records() -> list[RunRecord]:
    found, damaged = open_results(Path(__file__).parents[2] / "leaderboard" / "results").records()
    assert not damaged
    assert found
    return found


@pytest.fixture(scope="session")
def board(records: list[RunRecord]) -> Leaderboard:
    return build_board(records)
