"""Users' tasks from files, and what an installed package offers by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import CRITERION_FILE
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.errors import DataError, UsageError
from prunebench.methods.discovery import check_method_name, resolve_method
from prunebench.metrics.registry import metric_named, metrics
from prunebench.models import build_model, identify_model
from prunebench.plugins.plain import use_metrics, use_model
from prunebench.results.store import Store
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


# --- plain files in the stead of a package -------------------------------------------------------------------

NET = """
from sizes import FIRST
from prunebench.models.base import Classifier
from prunebench.models.convnet import convnet


def little(num_classes, width=1.0) -> Classifier:
    return convnet((round(FIRST * width), 8), num_classes, 1.0)


def stiff(num_classes: int) -> "Classifier":
    return convnet((4, 8), num_classes, 1.0)


def helper(x):
    return x
"""
METRIC = """
from prunebench.metrics.registry import metric


@metric("plain_first", title="First", help="Share of class 0", cite="an example")
def first(prediction):
    return float((prediction == 0).double().mean())
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a file of models and one of a metric; no file stands for a package yet."""
    (tmp_path / "sizes.py").write_text("FIRST = 4\n")
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "my_metric.py").write_text(METRIC)
    monkeypatch.setenv("PRUNEBENCH_PLUGINS", "")
    metrics.cache_clear()
    yield tmp_path
    metrics.cache_clear()


def test_a_model_of_a_file_is_named_by_its_code(plain: Path) -> None:
    name = use_model(f"{plain / 'my_net.py'}:little@0.5")
    assert name == "little@0.5"
    recorded = identify_model(name, None)
    assert recorded.startswith("little@0.5:")
    net = build_model(recorded, 3, seed=0)
    assert net(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert net.body[0].out_channels == 2
    (plain / "sizes.py").write_text("FIRST = 6\n")
    assert identify_model(name, None) != recorded, "helpers count"
    with pytest.raises(DataError, match="the file of little changed since the run was planned"):
        build_model(recorded, 3, seed=0)
    assert build_model("little", 3, seed=0).body[0].out_channels == 6


def test_a_metric_of_a_file_is_one_of_every_record(plain: Path) -> None:
    use_metrics(plain / "my_metric.py")
    assert metric_named("plain_first")(torch.tensor([0, 1])) == 0.5


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (NET, "", "holds little, stiff: name one"),
        (NET, ":litle", "unknown model in .*: did you mean little"),
        ("x = 1\n", "", "holds no model"),
        ("def f(:\n", "", "cannot be read: SyntaxError"),
    ],
)
def test_model_files_that_cannot_be_are_usage_errors(plain: Path, text: str, name: str, message: str) -> None:
    (plain / "my_net.py").write_text(text)
    with pytest.raises(UsageError, match=message):
        use_model(f"{plain / 'my_net.py'}{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def mine(classes) -> Classifier: ...", "want the parameters num_classes"),
        ("def mine(num_classes, depth) -> Classifier: ...", "want the parameters num_classes"),
        ("def mine(num_classes) -> Classifier: ...", r"has no parameter `width`: leave out the @"),
        ("def mine(num_classes, width) -> Classifier: return 3", r"gives a int: want Classifier\(body"),
        (
            "raise ValueError('no')\ndef mine(num_classes) -> Classifier: ...",
            "cannot be imported: ValueError: no",
        ),
    ],
)
def test_models_that_cannot_be_built_are_usage_errors(plain: Path, text: str, message: str) -> None:
    (plain / "my_net.py").write_text(f"from prunebench.models.base import Classifier\n{text}\n")
    with pytest.raises(UsageError, match=message):
        build_model(use_model(f"{plain / 'my_net.py'}:mine@0.5"), 3, seed=0)


def test_names_of_the_package_and_of_two_files_are_taken(plain: Path) -> None:
    (plain / "my_net.py").write_text(NET.replace("little", "resnet8"))
    with pytest.raises(UsageError, match="'resnet8' is a model of the package"):
        identify_model(use_model(f"{plain / 'my_net.py'}:resnet8"), None)
    (plain / "other.py").write_text(NET)
    use_model(f"{plain / 'other.py'}:little")
    with pytest.raises(UsageError, match="'stiff' is defined twice"):
        build_model("stiff", 3, seed=0)
    with pytest.raises(UsageError, match="holds no metric"):
        use_metrics(plain / "my_net.py")
    with pytest.raises(UsageError, match="no file"):
        use_metrics(plain / "none.py")


def test_a_record_of_a_file_s_model_says_how_to_have_it_again(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"of your own file\? PRUNEBENCH_PLUGINS=my_net.py"):
        build_model("little:0123456789ab", 3, seed=0)


@pytest.mark.slow
def test_runs_with_an_own_model_metric_and_method(plain: Path, tmp_path: Path) -> None:
    """In worker processes, the method in a process of its own: all have the files."""
    (plain / "my_method.py").write_text(CRITERION_FILE)
    done = CliRunner().invoke(
        app,
        [
            "run", "smoke", "--task", "colored-digits@2pct", "--sparsity", "0.5", "--seed", "0",
            "--model", f"{plain / 'my_net.py'}:little", "--metric", str(plain / "my_metric.py"),
            "--method", str(plain / "my_method.py"), "--out", str(tmp_path / "out"), "--workers", "1",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    records = Store(tmp_path / "out").records()[0]
    assert {record.spec["method"] for record in records} == {"dense", "channel-relative"}
    for record in records:
        assert record.status == "ok", record.reason
        assert record.spec["model"] == identify_model("little", None)
        assert record.metrics["plain_first"] is not None
