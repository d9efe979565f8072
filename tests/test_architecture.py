"""The house's rule: a module imports only from rows below its own (or its own room), and rooms stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "prunebench"

ROWS = {
    "cli": 9, "__main__": 9, "api": 8, "analysis": 7, "submission": 7, "leaderboard": 6, "comparison": 6, "profile": 6,
    "runner": 5, "methods": 4, "inference": 3, "training": 3, "pruning": 3, "tasks": 2, "models": 2, "suites": 2,
    "data": 1.5, "metrics": 1, "results": 1.2, "stats": 0.5, "report": 0.5, "errors": 0,
}  # fmt: skip
"""The rows of the layout; a fraction orders rooms within one."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    """Imported `prunebench` rooms with their lines; those for type checkers alone do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "prunebench":
            parts = (node.module or "").split(".")
            found += [(parts[1] if len(parts) > 1 else alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [
                (alias.name.split(".")[1], node.lineno)
                for alias in node.names
                if alias.name.startswith("prunebench.")
            ]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    upward = [
        f"line {line}: {room} (row {ROWS[room]}) imports {other} (row {ROWS[other]})"
        for other, line in imports_of(ast.parse(path.read_text()))
        if other != room and ROWS[other] >= ROWS[room]
    ]
    assert not upward


def test_kernels_know_nothing_of_the_harness() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not imports_of(ast.parse(path.read_text())), path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 75, f"{node.name} is long"
