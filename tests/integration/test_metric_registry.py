"""The registry of a record's metrics: what it holds, refuses, and costs to import."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunebench.errors import UsageError
from prunebench.metrics.evaluated import EvaluatedSplit, compute_metrics, evaluate_classes
from prunebench.metrics.registry import (
    NEEDS,
    Metric,
    metric,
    metric_named,
    metric_or_plain,
    metrics,
    metrics_in,
)
from prunebench.results.frame import results_frame


def test_names_are_those_of_records() -> None:
    kept = [
        "plain", "unbiased", "aligned", "conflicting", "worst_group", "bias_gap", "train_weighted",
        "attribute_accuracy", "bias_amplification", "calibrated_bias_amplification", "underprediction",
        "uncertain_share", "calibration_error", "interdependence", "area_under_curve",
        "entropy", "confidence", "margin", "negative_log_likelihood", "logit_correlation",
    ]  # fmt: skip
    assert [entry.name for entry in metrics() if entry.name in kept] == kept  # committed records hold these


def test_metadata_needs_no_torch() -> None:
    code = "import sys; from prunebench.metrics.registry import metrics; metrics(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_a_metric_is_its_function_and_shows_itself() -> None:
    gap = metric_named("bias_gap")
    assert (gap.scale, gap.decimals, gap.title_with_unit, gap.range) == (100, 1, "Bias gap, points", (-1, 1))
    assert metric_named("entropy").scale == 1
    assert metric_named("logit_correlation")(0.25) == 0.25
    assert metric_or_plain("made_up") == metric_or_plain("made_up")
    assert metric_or_plain("made_up").title == "Made up"
    with pytest.raises(UsageError, match="did you mean worst_group"):
        metric_named("worst_grup")


def test_what_is_refused() -> None:
    def of(prediction: object) -> float:
        return float(prediction is None)

    made = metric("made", title="Made", help="Made up", cite="none")(of)
    assert made.needs == ("prediction",)
    assert metric("made", title="Made", help="Made up", cite="none", needs=("logits",))(of).needs == (
        "logits",
    )
    with pytest.raises(UsageError, match="unknown need of metric made 'predicted'"):
        metric("made", title="Made", help="Made up", cite="none", needs=("predicted",))(of)
    for fields in ({"name": "Made"}, {"title": " "}, {"help": ""}, {"cite": "a\nb"}):
        with pytest.raises(UsageError, match=r"metric '[Mm]ade'"):
            metric(**{"name": "made", "title": "Made", "help": "Made up", "cite": "none"} | fields)


def test_a_module_has_its_own_metrics_alone() -> None:
    module = ModuleType("prunebench.metrics.recorded.other")
    module.__dict__["borrowed"] = metric_named("plain")
    assert metrics_in(module) == []
    assert all(isinstance(entry, Metric) and entry.title and entry.help and entry.cite for entry in metrics())


def test_every_need_is_served_and_nothing_else() -> None:
    assert {field.name for field in dataclasses.fields(EvaluatedSplit)} == set(NEEDS)


def test_metrics_whose_needs_a_split_lacks_are_left_out() -> None:
    label = torch.tensor([0, 0, 1, 1])
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    bias = torch.tensor([0, 1, 0, 1])
    (split,) = evaluate_classes(logits, label, bias, torch.eye(2, dtype=torch.bool))
    found = compute_metrics(split)
    assert (found["plain"], found["worst_group"], found["bias_gap"]) == (0.75, 0.0, 0.5)
    assert not found.keys() & {"train_weighted", "conflicting_seen", "attribute_accuracy"}
    counted = dataclasses.replace(split, train_count=torch.tensor([[9, 1], [0, 0]]))
    more = {"train_weighted": pytest.approx(0.9), "conflicting_seen": 0.0, "conflicting_unseen": 1.0}
    assert compute_metrics(counted) == found | more


def test_the_frame_has_a_column_of_every_metric_on_both_splits() -> None:
    columns = results_frame([]).columns
    assert {prefix + entry.name for entry in metrics() for prefix in ("", "val_")} <= set(columns)


ROOT = Path(__file__).parents[2]
TOY = '''"""Share of the first class."""

from prunebench.metrics.registry import metric


@metric(
    "toy_share",
    title="Toy share",
    unit="%",
    help="Share of samples that are predicted to be of class 0",
    cite="made up",
    range=(0.0, 1.0),
    board=True,
    readme=True,
    compared=True,
)
def toy_share(prediction):
    return float((prediction == 0).double().mean())
'''
SUITE = """description = "one step"
tasks = ["colored-digits@2pct"]
methods = ["dense", "magnitude"]
sparsities = [0.9]
seeds = [0]

[recipe]
steps = 1
finetune_steps = 1
batch_size = 8
"""


@pytest.mark.slow
def test_one_file_brings_a_metric_everywhere(tmp_path: Path) -> None:
    """Into record, rescoring, board, page, README, frame and comparison, and out of all by taking the file away."""
    toys = tmp_path / "toys"  # not the working folder: `-m` would find it first
    shutil.copytree(ROOT / "prunebench", toys / "prunebench", ignore=shutil.ignore_patterns("__pycache__"))
    (toys / "prunebench/metrics/recorded/toy.py").write_text(TOY)
    (tmp_path / "tiny.toml").write_text(SUITE)

    def call(package: Path, *words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (package, ROOT / "kernels")))}
        command = [sys.executable, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def shares() -> list[float | None]:
        records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("out/runs/*/record.json"))]
        return [
            part.get("toy_share") for record in records for part in (record["metrics"], record["validation"])
        ]

    cli = ("-m", "prunebench.cli.main")
    call(toys, *cli, "run", "tiny.toml", "--out", "out")
    measured = shares()
    assert len(measured) == 4
    assert all(share is not None and 0 <= share <= 1 for share in measured)

    assert "2 changed" in call(ROOT, *cli, "rescore", "out")
    assert shares() == [None] * 4
    said = call(toys, *cli, "rescore", "out")
    assert "2 changed, 2 new metrics (toy_share, validation toy_share)" in said
    assert shares() == measured

    for folder, kind in (("tasks", "*.md"), ("site/data", "*")):
        pages = (tmp_path / "out" / "leaderboard" / folder).glob(kind)
        assert any("Toy share" in page.read_text() for page in pages), folder
    (tmp_path / "README.md").write_text("<!-- board:begin -->\n<!-- board:end -->\n")
    call(toys, *cli, "leaderboard", "--results", "out", "--out", "board", "--readme", "README.md")
    assert "Toy share" in (tmp_path / "README.md").read_text()

    code = "import prunebench; print(*prunebench.load_results('out').columns)"
    assert {"toy_share", "val_toy_share"} <= set(call(toys, "-c", code).split())
    assert "Toy share" in call(toys, *cli, "compare", "dense", "magnitude", "--results", "out")
