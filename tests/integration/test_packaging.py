"""The installed package: everything it needs is in the wheel, and it works from another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import prunebench
from prunebench.methods.discovery import builtin_methods, builtin_names

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PACKAGES = (ROOT / "prunebench", ROOT / "kernels" / "prunebench_kernels")


def prune(*words: str, folder: Path, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m prunebench WORDS` in a folder, of the packages given."""
    environment = os.environ | ({} if packages is None else {"PYTHONPATH": str(packages)})
    command = [sys.executable, "-m", "prunebench", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_versions_agree(tmp_path: Path) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [prunebench.__version__]
    assert f"Version {prunebench.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    done = prune("--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"prunebench {prunebench.__version__}\n")


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("run", "quikc"), ("ls", "suites")])
def test_words_are_answered_before_torch_is_loaded(words: tuple[str, ...], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom prunebench.cli.main import main\nsys.argv[1:] = sys.argv[1:]\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "torch was imported" not in done.stderr
    assert done.returncode == (2 if "quikc" in words else 0)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("run", "quick", "--task", "colored-digts@2pct"), "colored-digits@2pct"),
        (("run", "quick", "--method", "magnitud"), "magnitude"),
        (("run", "quick", "--method", "magnitude-defered"), "magnitude-deferred"),
        (("run", "quick", "--model", "resnet9"), "resnet8"),
        (("evaluate", "--weights", ".", "--task", "colored-digts@2pct"), "colored-digits@2pct"),
        (("evaluate", "--weights", ".", "--model", "resnet9"), "resnet8"),
    ],
)
def test_a_misspelt_name_is_answered_before_torch_is_loaded(
    words: tuple[str, ...], hint: str, tmp_path: Path
) -> None:
    program = (
        "import sys\nfrom prunebench.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert time.perf_counter() - start < 10  # on a busy machine; 0.2 s on a quiet one
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stdout == "False\n"


def test_names_read_from_the_source_are_those_of_the_methods() -> None:
    assert sorted(builtin_names()) == sorted(builtin_methods())


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_from_another_folder(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the path")
    built = subprocess.run(
        [uv, "build", "--wheel", "--quiet", "--out-dir", str(tmp_path / "dist"), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("prunebench-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - names == set()
    assert {"prunebench/py.typed", "prunebench_kernels/py.typed", "prunebench/suites/quick.toml"} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "prunebench",
        "prunebench_kernels",
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "smoke" in prune("ls", "suites", folder=elsewhere, packages=tmp_path / "site").stdout
    done = prune("run", "smoke", "--workers", "0", folder=elsewhere, packages=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "results" / "smoke" / "leaderboard" / "README.md").is_file()
