"""The house's rules that a program can check: layers, names, docstrings and short functions."""

from __future__ import annotations

import ast
import collections
import subprocess
import sys
from pathlib import Path

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PACKAGE = ROOT / "prunebench"
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def test_rooms_import_only_what_lies_below_and_nothing_in_circles() -> None:
    """The contracts stand in pyproject.toml, `[tool.importlinter]`."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_three_modules_and_the_entry_stand_at_the_root() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "api", "errors"}


def test_a_name_belongs_to_one_class() -> None:
    """In the package and its kernels: what is read in one file is what is meant in the other."""
    homes = collections.defaultdict(list)
    kernels = {path: ast.parse(path.read_text()) for path in (ROOT / "kernels").rglob("*.py")}
    for path, tree in {**TREES, **kernels}.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_a_module_s_docstring_names_it() -> None:
    for path, tree in TREES.items():
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        assert first, f"{path}: has no docstring"
        assert first.split()[0] not in ("What", "Which", "How", "Where"), f"{path}: name the thing: {first}"


def test_functions_stay_short() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 75, f"{path}: {node.name} is long"
