"""Users' tasks from files, and what an installed package offers by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prunebench.errors import UsageError
from prunebench.methods.discovery import check_method_name, resolve_method
from prunebench.metrics.registry import metrics
from prunebench.models import build_model
from prunebench.tasks import resolve_task

TASK = """
from prunebench.tasks.colored_digits import ColoredDigits


class Mine(ColoredDigits):
    def __init__(self):
        super().__init__(0.02)
        self.name = "{name}"
"""
CODE = """
from prunebench import criterion
from prunebench.metrics.registry import metric
from prunebench.models.convnet import convnet
from pbplug.scores import score
from pbplug.tasks import Mine


@criterion("pbplug-score", cite="an example")
def mine(weight, context):
    return score(weight)


@metric("pbplug_first", title="First", help="Share of class 0", cite="an example")
def first(prediction):
    return float((prediction == 0).double().mean())


def net(classes, data_root, width):
    return convnet((4, 8), classes, width)
"""
ENTRIES = """
[prunebench.methods]
pbplug-score = pbplug.core:mine
[prunebench.tasks]
pbplug-digits = pbplug.core:Mine
cifar10s = pbplug.core:Mine
[prunebench.models]
pbplug-net = pbplug.core:net
[prunebench.metrics]
pbplug_first = pbplug.core:first
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with one of everything, as pip leaves it."""
    folder, facts = tmp_path / "pbplug", tmp_path / "pbplug-0.1.dist-info"
    folder.mkdir()
    facts.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "core.py").write_text(CODE)
    (folder / "scores.py").write_text("def score(weight):\n    return weight.abs()\n")
    (folder / "tasks.py").write_text(TASK.format(name="pbplug-digits"))
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pbplug\nVersion: 0.1\n")
    (facts / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    metrics.cache_clear()
    yield folder
    metrics.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pbplug"]:
        del sys.modules[name]


def test_an_installed_package_brings_methods_tasks_models_and_metrics(package: Path) -> None:
    check_method_name("pbplug-score")
    entry = resolve_method("pbplug-score")
    assert entry.name == "pbplug-score"
    before = entry.version
    (package / "scores.py").write_text("def score(weight):\n    return 2 * weight.abs()\n")
    assert resolve_method("pbplug-score").version != before, "the whole package counts"
    assert resolve_task("pbplug-digits").num_classes == 10
    assert resolve_task("cifar10s").name == "cifar10s", "the package's own names stay its own"
    assert build_model("pbplug-net@0.5", 3, seed=0)(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert "pbplug_first" in [each.name for each in metrics()]
    with pytest.raises(UsageError, match="unknown method 'pbplug-scor': did you mean pbplug-score"):
        check_method_name("pbplug-scor")


def test_an_entry_point_that_does_not_load_is_named(package: Path) -> None:
    (package / "core.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(
        UsageError, match=r"entry point prunebench\.methods: pbplug-score cannot be loaded: ModuleNot"
    ):
        resolve_method("pbplug-score")


def test_a_task_of_a_file_has_its_code_in_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "my_task.py"
    path.write_text(TASK.format(name="mine"))
    task = resolve_task(str(path))
    assert (task.name, task.num_classes) == ("mine", 10)
    first = task.fingerprint(None)
    path.write_text(TASK.format(name="mine") + "\n# edited\n")
    assert resolve_task(f"{path}:Mine").fingerprint(None) != first
    assert len(task.splits(None, 0).train) == len(resolve_task("colored-digits@2pct").splits(None, 0).train)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (TASK.format(name="colored-digits@9pct"), "", "is a task of the package; give yours another name"),
        ("x = 1\n", "", "no subclass of Task in it"),
        (TASK.format(name="mine"), ":Min", "unknown task in .*: did you mean Mine"),
        ("import nothing_of_this_name\n", "", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_task_files_that_cannot_be_are_usage_errors(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve_task(f"{tmp_path / 'task.py'}{name}")
