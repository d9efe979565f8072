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
from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.excerpt import EXAMPLE, update_readme
from prunebench.leaderboard.rows import Row
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.submission import check_method, check_records

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "leaderboard"
RESULTS = BOARD / "results"


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    found, damaged = Store(RESULTS).records()
    assert not damaged
    assert found
    return found


@pytest.fixture(scope="module")
def board(records: list[RunRecord]) -> Board:
    return build_board(records)


def section_of(board: Board, task: str) -> Section:
    (section,) = [section for section in board.sections if section.task == task]
    return section


def row_of(section: Section, method: str, sparsity: float | None) -> Row:
    (row,) = [row for row in section.rows if (row.method, row.sparsity) == (method, sparsity)]
    return row


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


def test_committed_records_are_valid_small_and_complete(records: list[RunRecord]) -> None:
    assert [finding for finding in check_records(RESULTS) if not finding.ok] == []
    assert sum(path.stat().st_size for path in RESULTS.rglob("record.json")) < 20e6
    assert {record.status for record in records} == {"ok"}
    assert not any(record.code["dirty"] for record in records)


def test_the_board_holds_every_method_at_every_sparsity(board: Board) -> None:
    from prunebench.methods.discovery import builtin_methods

    methods = {name: method for name, method in builtin_methods().items() if not method.dense}
    for task, sparsities, seeds in (
        ("colored-digits@2pct", (0.5, 0.8, 0.9, 0.95, 0.98, 0.99), 5),
        ("colored-mnist@1pct", (0.5, 0.9, 0.98), 3),
    ):
        section = section_of(board, task)
        assert row_of(section, "dense", 0.0).complete
        for name, method in methods.items():
            for sparsity in (None,) if method.native else sparsities:
                row = row_of(section, name, sparsity)
                assert row.complete, (task, name, sparsity)
                assert len(row.seeds) == seeds


@pytest.mark.parametrize("task", ["colored-digits@2pct", "colored-mnist@1pct"])
def test_dense_training_is_visibly_biased(board: Board, task: str) -> None:
    dense = row_of(section_of(board, task), "dense", 0.0)
    assert dense.metric("aligned").mean - dense.metric("conflicting").mean >= 0.3


def test_dcwp_beats_magnitude_on_the_minorities_of_colored_mnist(board: Board) -> None:
    section = section_of(board, "colored-mnist@1pct")
    cured, plain = (row_of(section, name, 0.9).metric("conflicting") for name in ("dcwp", "magnitude"))
    assert cured.mean - cured.half_width > plain.mean + plain.half_width


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
