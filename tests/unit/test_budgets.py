"""Tune draws and the budgets chosen on them: no test image is looked at, no tune seed reaches a board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import budgets
import pytest
import torch
from board_records import full_records
from budgets import Measured

from prunebench.errors import StoreError, UsageError
from prunebench.leaderboard import build_board
from prunebench.leaderboard.build import board_markdown
from prunebench.results.convert import export_results
from prunebench.results.record import FITTED_NOTE, RunRecord
from prunebench.results.spec import TUNE_SEEDS
from prunebench.results.store import Store
from prunebench.runner.evaluate import TaskData, measure_fit
from prunebench.tasks import resolve_task

CPU = torch.device("cpu")


# --- tune draws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share"), [("colored-digits@2pct", 0.9), ("backdoor@digits/even/yellow", 0.5)]
)
def test_a_tune_draw_holds_its_test_split_out_of_training_images_and_without_bias(
    name: str, share: float
) -> None:
    task = resolve_task(name)
    drawn, tuned, other = task.draw(None, TUNE_SEEDS), task.splits(None, TUNE_SEEDS), task.splits(None, 0)
    assert torch.equal(drawn.train.x, tuned.train.x)
    assert torch.equal(drawn.val.x, tuned.val.x)
    assert torch.equal(drawn.test.x, other.test.x), "the test split is the same for every seed"
    assert torch.equal(tuned.test.y, drawn.val.y), "the very images that validate"
    conflicting = (~task.aligned(tuned.test.y, tuned.test.bias)).double().mean()
    assert float(conflicting) == pytest.approx(share, abs=0.01)
    assert float((~task.aligned(tuned.train.y, tuned.train.bias)).double().mean()) == pytest.approx(
        task.conflicting_share or 0, abs=0.01
    )
    real = {image.numpy().tobytes() for image in drawn.test.x}
    assert not real & {image.numpy().tobytes() for image in tuned.test.x}


def test_seeds_below_keep_the_test_split_and_the_task_its_share() -> None:
    task = resolve_task("colored-digits@2pct")
    assert torch.equal(task.splits(None, TUNE_SEEDS - 1).test.x, task.draw(None, 0).test.x)
    task.splits(None, TUNE_SEEDS)
    assert task.conflicting_share == 0.02


def test_a_task_whose_splits_follow_one_distribution_is_tuned_on_validation() -> None:
    tuned = resolve_task("digit-attributes").splits(None, TUNE_SEEDS)
    assert torch.equal(tuned.test.x, tuned.val.x)
    assert torch.equal(tuned.test.y, tuned.val.y)


def tuned_records() -> list[RunRecord]:
    records = full_records()
    spec = {**records[0].spec, "seed": TUNE_SEEDS}
    return [*records, replace(records[0], spec=spec, run_id="0123456789abcdef")]


def test_a_board_leaves_runs_of_tune_seeds_out_and_says_so() -> None:
    records = tuned_records()
    with_them, without = build_board(records), build_board(records[:-1])
    assert (with_them.tuning, without.tuning) == (1, 0)
    said = " 1 runs of seeds from 100 were left out: such seeds are for choosing budgets."
    assert board_markdown(with_them).replace(said, "") == board_markdown(without)
    assert said not in board_markdown(without)


def test_runs_of_tune_seeds_are_not_exported(tmp_path: Path) -> None:
    record = tuned_records()[-1]
    record = replace(record, run_id=record.run_spec.run_id)
    store = Store(tmp_path / "store")
    store.prepare()
    store.write(record)
    with pytest.raises(StoreError, match="seeds from 100, which are for choosing budgets"):
        export_results(tmp_path / "store", tmp_path / "committed")
    assert not list((tmp_path / "committed").glob("*/*.jsonl"))


# --- how far training has come -----------------------------------------------------------------------------


class SaysColour(torch.nn.Module):
    """Answers with the bias, so that every conflicting image is wrong; or with the opposite, the label of them."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers, self.place = answers, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.answers[self.place : self.place + len(x)]
        self.place += len(x)
        return torch.nn.functional.one_hot(part, 10).float()


def test_fitted_is_the_share_of_conflicting_training_images_labelled_right() -> None:
    data = TaskData(resolve_task("colored-digits@2pct"), None, 0, CPU)
    label, bias = data.labels.y["train"], data.labels.bias["train"]
    conflicting = label != bias
    right, wrong = label[conflicting], bias[conflicting]
    assert measure_fit(SaysColour(right), data) == {FITTED_NOTE: 1.0}
    assert measure_fit(SaysColour(wrong), data) == {FITTED_NOTE: 0.0}
    half = torch.where(torch.arange(len(right)) < 24, right, wrong)
    assert measure_fit(SaysColour(half), data) == {FITTED_NOTE: 24 / len(right)}


# --- the rule ----------------------------------------------------------------------------------------------


def measured(steps: int, fitted: float, seed: int = 100, finetune_steps: int = 0) -> Measured:
    return Measured("task", 1, "net", steps, finetune_steps, seed, fitted, 0.5, 0.4, 2.0)


def chosen(*runs: Measured) -> int:
    return budgets.choose(budgets.budgets_by_task(runs)["task", "net"]).steps


def test_the_fewest_steps_that_fit_are_chosen_else_the_most() -> None:
    assert chosen(measured(100, 0.5), measured(200, 0.991), measured(400, 1.0)) == 200
    assert chosen(measured(100, 0.5), measured(200, 0.9), measured(400, 0.98)) == 400
    assert chosen(measured(100, 1.0), measured(100, 0.97, seed=101), measured(200, 0.99)) == 200, "means"


def test_the_fine_tuned_net_is_no_part_of_the_rule() -> None:
    assert chosen(measured(100, 0.5), measured(100, 1.0, finetune_steps=25), measured(200, 1.0)) == 200


def test_seeds_that_are_judged_are_refused() -> None:
    with pytest.raises(UsageError, match="below 100"):
        list(budgets.measure("colored-digits@2pct", [10], [99], None, None, Path("nowhere")))


def test_the_page_holds_what_was_measured_and_the_tasks_what_was_chosen() -> None:
    runs = budgets.read_measured()
    assert budgets.table(runs) in budgets.PAGE.read_text()
    assert {run.seed >= TUNE_SEEDS for run in runs} == {True}
    for (name, model), grid in budgets.budgets_by_task(runs).items():
        task = resolve_task(name)
        if task.model == model:
            assert task.recipe.steps >= budgets.choose(grid).steps, name
            assert task.recipe.finetune_steps == budgets.finetuning(task.recipe.steps), name
