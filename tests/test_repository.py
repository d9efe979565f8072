"""What is committed: the board follows from its records, the README from the board, the example from its file."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from prunebench.analysis.markdown import claims_excerpt
from prunebench.analysis.stored import stored_analyses
from prunebench.cli.progress import write_leaderboard
from prunebench.leaderboard import build_board
from prunebench.leaderboard.board import Board
from prunebench.leaderboard.excerpt import EXAMPLE, update_readme
from prunebench.results.record import RunRecord
from prunebench.results.store import open_results
from prunebench.submission import check_method

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "leaderboard"
RESULTS = BOARD / "results"


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    found, damaged = open_results(RESULTS).records()
    assert not damaged
    assert found
    return found


@pytest.fixture(scope="module")
def board(records: list[RunRecord]) -> Board:
    return build_board(records)


def test_the_board_regenerates_byte_for_byte(tmp_path: Path) -> None:
    pictures = BOARD / "analysis" / "figures"
    if pictures.is_dir():  # Their bytes depend on the machine: kept, and all else is written again.
        shutil.copytree(pictures, tmp_path / "analysis" / "figures")
    write_leaderboard([RESULTS], tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    committed = {path.relative_to(BOARD) for path in BOARD.rglob("*") if path.is_file()}
    assert made == {path for path in committed if path.parts[0] not in ("results", "speed")}
    for path in sorted(made):
        assert (tmp_path / path).read_bytes() == (BOARD / path).read_bytes(), path


def test_the_readme_shows_what_the_board_says(board: Board, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    update_readme(board, copy, claims_excerpt(stored_analyses(RESULTS)[0]))
    assert copy.read_bytes() == (ROOT / "README.md").read_bytes()
    assert "dcwp" in copy.read_text()


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readmes_example_is_ten_lines_and_the_one_on_the_board(records: list[RunRecord]) -> None:
    example = readme_blocks()[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    digest = hashlib.sha256(example.encode()).hexdigest()[:12]
    versions = {record.spec["method_version"] for record in records if record.spec["method"] == EXAMPLE}
    assert versions == {f"file-{digest}"}


@pytest.mark.parametrize("position", [0, 1])
def test_the_readmes_methods_keep_the_contract(tmp_path: Path, position: int) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(readme_blocks()[position])
    broken = [finding for finding in check_method(str(path)) if not finding.ok]
    assert not broken, broken
