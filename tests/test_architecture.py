"""The house's rule: a module imports only from rows below its own (or its own room), and rooms stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "prunebench"

ROWS = {
    "cli": 9, "listings": 8.5, "console": 8, "api": 7, "analysis": 6.5, "leaderboard": 6, "submission": 6, "launch": 5,
    "timing": 4.7, "execute": 4.5, "cells": 4, "profile": 4,
    "methods": 3.5, "measure": 3.5, "experiment": 3, "environment": 3,
    "deferral": 2.5, "labels": 2.5,
    "pruning": 2, "training": 2, "tasks": 2, "models": 2, "metrics": 2, "stats": 2, "speed": 2,
    "reports": 8.5, "verdicts": 4.9, "comparison": 4.8, "scoring": 4.7, "pairing": 2, "bootstrap": 2,
    "store": 1.5, "overlay": 1, "suite": 1, "record": 1, "registry": 1, "spec": 0.5, "report": 0.5, "errors": 0,
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
