"""Documentation held against the code: commands, files, examples and the table of layers say what is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from prunebench.cli.main import app
from prunebench.methods.experiment import Experiment
from prunebench.submission import check_method
from prunebench.suites import load_suite, suite_names
from prunebench.tasks import registry
from prunebench.tasks.registry import FAMILIES

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PLACEHOLDER = "NAME|TASK|METHOD"
BLOCK = re.compile(r'^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```', re.DOTALL | re.MULTILINE)


def blocks(language: str) -> Iterator[tuple[str, str, str]]:
    """Page, title and text of every fenced block in a language."""
    for page in PAGES:
        for _, kind, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind == language:
                yield page.name, title, text


def titled(name: str) -> str:
    (text,) = [
        text for language in ("python", "toml") for _, title, text in blocks(language) if title == name
    ]
    return text


def module_of(name: str, folder: Path) -> ModuleType:
    """A page's complete file, imported from a folder of its own."""
    (folder / name).write_text(titled(name), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"docs_{Path(name).stem}", folder / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands() -> list[tuple[str, list[str]]]:
    """Words after `prunebench` of every command in the pages' shell blocks and in the workflows."""
    found = []
    flows = [
        (path.name, "", "\n".join(re.findall(r"run: (.*)", path.read_text())))
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
    ]
    for page, _, text in [*blocks("sh"), *flows]:
        for line in text.replace("$suite", "digits").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for joined, words in itertools.groupby(lexer, key=lambda word: set(word) <= set("&|;")):
                command = [] if joined else list(words)
                if "prunebench" in command and command[0] in ("uv", ".uv/bin/uv", "prunebench", "python3"):
                    found.append((page, command[command.index("prunebench") + 1 :]))
    return found


def test_commands_exist_with_their_options() -> None:
    group: Any = typer.main.get_command(app)
    examples = [
        ("--help", shlex.split(command.epilog.removeprefix("Example: prunebench ")))
        for command in group.commands.values()
        if not command.hidden and not hasattr(command, "commands")
    ]
    assert len(commands()) > 20
    for page, (verb, *words) in [*commands(), *examples]:
        assert verb in group.commands, f"{page}: no verb {verb}"
        command = group.commands[verb]
        if hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page}: no verb {verb} {words[0]}"
            command = command.commands[words[0]]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for word in words:
            assert not word.startswith("--") or word in known, f"{page}: prunebench {verb} has no {word}"
        if verb == "run" and not words[0].endswith(".toml"):
            assert words[0] in suite_names(), f"{page}: no suite {words[0]}"


def test_the_table_of_commands_is_complete() -> None:
    group: Any = typer.main.get_command(app)
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `prunebench (\S+?)[ `]", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted(name for name, command in group.commands.items() if not command.hidden)


@pytest.mark.parametrize("package", ["prunebench", "prunebench.metrics", "prunebench_kernels"])
def test_the_api_page_has_every_public_name(package: str) -> None:
    shown = set(re.findall(r"^::: .*\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE))
    assert set(importlib.import_module(package).__all__) - shown - {"__version__"} == set()


def test_the_table_of_tasks_is_complete() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "tasks.md").read_text(), flags=re.MULTILINE)
    shown = {re.split("[@:]", name)[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert {family.name for family in FAMILIES} - shown - {"corrupted-cifar10-type1"} == set()


def test_files_that_pages_name_exist() -> None:
    """But for those that a command makes, which git ignores, and placeholders."""
    made = tuple(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if "/" in line)
    own = {title for _, title, _ in blocks("python")}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:prunebench|kernels|bench|tests|docs|leaderboard)/[\w./-]+)`", text):
            if Path(path).name not in own and not path.startswith(made) and not re.search(PLACEHOLDER, path):
                assert (ROOT / path).exists(), f"{page.name}: {path} is not there"


def test_examples_import_what_exists() -> None:
    for page, _, text in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module} has no {alias.name}"


@pytest.mark.parametrize(
    "name",
    [
        "my_method.py",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("my_criterion.py", "channel_relative.py", "my_variant.py")
        ),
    ],
)
def test_methods_of_the_pages_keep_the_contract(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(titled(name), encoding="utf-8")
    assert [finding for finding in check_method(str(path)) if not finding.ok] == []


def test_the_page_s_experiment_is_the_one_there_is() -> None:
    table = (ROOT / "docs" / "add-a-method.md").read_text().partition("## What `experiment` gives")[2]
    names = re.findall(r"`(\w+)\(", "".join(re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)))
    assert len(names) > 10
    assert [name for name in names if name != "len" and not hasattr(Experiment, name)] == []


def test_the_page_s_task_draws_its_splits(tmp_path: Path) -> None:
    task = module_of("striped_digits.py", tmp_path).StripedDigits()
    splits, again = task.splits(None, 0), task.splits(None, 0)
    assert splits.train.x.shape[1:] == (3, 16, 16)
    assert splits.train.x.equal(again.train.x)
    conflicting = 1 - task.aligned(splits.train.y, splits.train.bias).double().mean()
    assert 0.03 < conflicting < 0.08
    assert (splits.test.y * 2 + splits.test.bias).bincount().min() > 50


def test_the_page_s_line_makes_the_task_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = [text for page, _, text in blocks("text") if page == "add-a-task.md"]
    (family,) = eval(f"({line})", vars(registry))
    monkeypatch.setattr(registry, "FAMILIES", (family,))
    module = module_of("striped_digits.py", tmp_path)
    monkeypatch.setitem(sys.modules, "prunebench.tasks.striped_digits", module)
    assert type(registry.resolve_task("striped-digits")) is module.StripedDigits


def test_the_page_s_network_gives_logits(tmp_path: Path) -> None:
    import torch

    net = module_of("my_net.py", tmp_path).tiny(10)
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert net.features(torch.zeros(2, 3, 16, 16)).shape == (2, 32)


def test_suites_of_the_pages_load(tmp_path: Path) -> None:
    for page, title, text in blocks("toml"):
        path = tmp_path / (title or "suite.toml")
        path.write_text(text, encoding="utf-8")
        assert load_suite(str(path)).tasks, page


def test_the_table_of_layers_is_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, flags=re.MULTILINE)
    shown = [sorted(re.findall(r"`(\w+)`", rooms)) for _, rooms in rows]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [entry for entry in settings["contracts"] if entry["type"] == "layers"]
    assert shown == [sorted(re.findall(r"\w+", layer)) for layer in contract["layers"]]
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r": (\S+\.md)", navigation)) == sorted(
        page.name for page in (ROOT / "docs").glob("*.md")
    )


@pytest.mark.slow
def test_the_built_pages_ask_no_other_machine(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="MkDocs is in the dependency group docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "group_accuracy" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*src="(http[^"]+)"', text)
        fetched += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(http[^"]+)"', text)
        assert not fetched, f"{page}: {fetched}"


def test_method_files_on_pages_are_those_that_pass_check() -> None:
    """The files stand once in `tests/method_files`, where each is checked; the pages show the same text."""
    files = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "method_files").glob("*.py")
    }
    shown = {title: text for _, title, text in blocks("python") if title in files}
    assert len(shown) >= 9
    assert shown == {title: files[title] for title in shown}
