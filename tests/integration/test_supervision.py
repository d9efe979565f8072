"""Bias labels and the test split are withheld: a cheating method is stopped, and nothing is smuggled past."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import METHOD_FILE, run_inline, tiny_suite, write_careless_method

from prunebench.errors import UsageError
from prunebench.methods.discovery import file_methods

CHEATS = {
    "reads the training bias": "experiment.train_split.bias",
    "reads the validation bias": "experiment.val_split.bias",
    "asks for balanced validation": "experiment.val_balanced.y",
    "predicts balanced validation": "experiment.predict_balanced(experiment.new_model())",
    "asks for the share of conflicting images": "experiment.conflicting_share",
    "loads the task": "__import__('prunebench.tasks').tasks.resolve_task('colored-digits@2pct').splits(None, 0)",
    "draws the task": "__import__('prunebench.tasks').tasks.resolve_task('colored-digits@2pct').draw(None, 0)",
    "loads the task in a thread": (
        "__import__('concurrent.futures').futures.ThreadPoolExecutor().submit("
        "__import__('prunebench.tasks').tasks.resolve_task('colored-digits@2pct').splits, None, 0).result()"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", CHEATS)
def test_a_cheating_method_is_stopped(tmp_path: Path, how: str) -> None:
    path = tmp_path / "peeking.py"
    path.write_text(METHOD_FILE.format(supervision="none", peek=CHEATS[how]))
    outcome, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    record = records["peeking 0.9 0"]
    assert outcome.failed == 1
    assert record.status == "failed"
    assert record.metrics == {}
    assert "withheld" in (record.reason or "")
    assert "SupervisionError" in (record.traceback or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("supervision", "peek", "allowed"),
    [
        ("train-groups", "experiment.train_split.bias + 0", True),
        ("train-groups", "experiment.val_split.bias + 0", True),
        ("val-groups", "experiment.val_split.bias + 0", True),
        ("val-groups", "experiment.train_split.bias + 0", False),
        (
            "val-groups",
            "assert len(set(experiment.val_balanced.bias.bincount().tolist())) == 1",
            True,
        ),
        ("train-groups", "assert experiment.val_balanced.missing_groups == ()", True),
        ("bias-rate", "experiment.val_balanced.y", False),
        ("bias-rate", "assert experiment.conflicting_share == 0.02", True),
        ("val-groups", "assert experiment.conflicting_share == 0.02", True),
        ("bias-rate", "experiment.val_split.bias + 0", False),
    ],
)
def test_declared_supervision_is_granted_and_shown(
    tmp_path: Path, supervision: str, peek: str, allowed: bool
) -> None:
    path = tmp_path / "peeking.py"
    path.write_text(METHOD_FILE.format(supervision=supervision, peek=peek))
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    record = records["peeking 0.9 0"]
    assert (record.status == "ok") is allowed
    assert record.method["supervision"] == supervision


def test_the_experiment_holds_no_test_split_and_no_undeclared_bias(tmp_path: Path) -> None:
    path = tmp_path / "looking.py"
    peek = (
        "import torch; reachable = [v for s in (experiment.train_split, experiment.val_split) "
        "for v in vars(s).values() if isinstance(v, torch.Tensor)]; "
        "assert len(reachable) == 2 and not [n for n in vars(experiment) if 'test' in n], reachable"
    )
    path.write_text(METHOD_FILE.format(supervision="none", peek=peek))
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    assert records["peeking 0.9 0"].status == "ok", records["peeking 0.9 0"].traceback


def test_what_is_returned_is_measured_in_a_fresh_network(tmp_path: Path) -> None:
    """A method cannot smuggle a second, dense network past the mask check."""
    path = tmp_path / "smuggler.py"
    body = (
        "import copy; model.hidden = copy.deepcopy(experiment.dense_model()); "
        "model.forward = lambda x: model.hidden(x)"
    )
    write_careless_method(path, body)
    _, records = run_inline(tiny_suite(str(path)), tmp_path / "out")
    record = records["peeking 0.9 0"]
    assert record.status == "failed"
    assert "the task's network" in (record.reason or "")


@pytest.mark.parametrize("decoration", ['"dense", cite="me"', '"mine", cite="me", dense=True'])
def test_the_baseline_cannot_be_replaced(tmp_path: Path, decoration: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(METHOD_FILE.format(supervision="none", peek="pass"))
    path.write_text(path.read_text().replace('"peeking", cite="nobody", supervision="none"', decoration))
    with pytest.raises(UsageError, match="`dense` is the baseline"):
        file_methods(path)
