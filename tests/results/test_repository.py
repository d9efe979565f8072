"""What is committed: the board follows from its records, the README from the board, the example from its file."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import findings
import pytest

from prunebench.analysis.card_pages import cards_excerpt
from prunebench.analysis.cards import cards_of
from prunebench.analysis.seed_numbers import read_seed_numbers
from prunebench.cli.progress import write_leaderboard
from prunebench.leaderboard.build import MANIFEST, PLOTLY
from prunebench.leaderboard.readme import EXAMPLE, update_readme
from prunebench.leaderboard.values import Leaderboard
from prunebench.results.record import RunRecord
from prunebench.results.tracks import REFERENCE
from prunebench.submission import check_method

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "leaderboard"
RESULTS = BOARD / "results"


@pytest.mark.slow
def test_everything_generated_is_byte_for_byte_what_the_results_give(tmp_path: Path) -> None:
    """Nothing is copied first: tables, figures and pages, those that are not committed too."""
    write_leaderboard([RESULTS], tmp_path)
    assert (tmp_path / MANIFEST).read_text() == (BOARD / MANIFEST).read_text()
    listed = {line.partition("  ")[2] for line in (BOARD / MANIFEST).read_text().splitlines()}
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert listed == made - {MANIFEST, PLOTLY}
    for name in listed:
        if not name.startswith("site/"):
            assert (tmp_path / name).read_bytes() == (BOARD / name).read_bytes(), name


@pytest.mark.slow
def test_the_readme_shows_what_the_board_says(
    board: Leaderboard, records: list[RunRecord], tmp_path: Path
) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    update_readme(board, copy, cards_excerpt(cards_of(records, read_seed_numbers([RESULTS / "analysis"]))))
    assert copy.read_bytes() == (ROOT / "README.md").read_bytes()
    assert REFERENCE in copy.read_text()


def test_the_findings_are_those_of_their_records() -> None:
    page = findings.PAGE.read_text(encoding="utf-8")
    assert findings.with_tables(page, findings.read_records(findings.RESULTS)) == page


def readme_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readmes_example_is_ten_lines_and_the_one_on_the_board(records: list[RunRecord]) -> None:
    example = readme_blocks()[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    digest = hashlib.sha256(example.encode()).hexdigest()[:12]
    versions = {record.spec["method_version"] for record in records if record.spec["method"] == EXAMPLE}
    assert versions <= {f"file-{digest}"}


@pytest.mark.slow
def test_the_readmes_method_keeps_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "my_method.py"
    path.write_text(readme_blocks()[0])
    broken = [finding for finding in check_method(str(path)) if not finding.ok]
    assert not broken, broken
