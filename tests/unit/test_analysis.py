"""The analysis against hand-made runs: pairing, intervals, exemplars, criteria, hypotheses, what is left out."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_values import class_analysis, odd_analysis
from helpers import TASK, run_inline, tiny_suite
from rich.console import Console
from scipy import stats
from torch import Tensor
from torch.nn import functional

from prunebench.analysis import aggregate
from prunebench.analysis.aggregate import estimate, summarize_conditions
from prunebench.analysis.exemplars import caption
from prunebench.analysis.exploratory import exploratory_lines
from prunebench.analysis.measures import (
    MeasuredRun,
    Outputs,
    StoredRun,
    class_amplification,
    measure_run,
    read_outputs,
    task_measures,
)
from prunebench.analysis.plots import analysis_styles
from prunebench.analysis.session import analyze_folder, analyze_outputs, analyze_results
from prunebench.analysis.values import (
    SCHEMA_VERSION,
    Estimate,
    SusceptibleSample,
    TaskAnalysis,
    read_analysis,
    to_json,
    write_analysis,
)
from prunebench.cli.progress import write_leaderboard
from prunebench.errors import StoreError, UsageError
from prunebench.leaderboard import build_board
from prunebench.metrics.predictability import evaluate_predictability, margin_uncertainty
from prunebench.metrics.registry import metrics
from prunebench.results.store import Store
from prunebench.runner.ground_truth import GroundTruth
from prunebench.stats.multiplicity import benjamini_hochberg
from prunebench.tasks import Attributes, Splits, Task, resolve_task
from prunebench.tasks.colored_digits import ColoredDigits

CLASSES, SAMPLES = 10, 1000


@pytest.fixture
def truth() -> GroundTruth:
    """Digits in balanced groups; in training nine of ten are aligned."""
    task = resolve_task(TASK)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(SAMPLES) % CLASSES
    test_bias = torch.arange(SAMPLES) // CLASSES % CLASSES
    broken = torch.rand(SAMPLES, generator=generator) < 0.1
    train_bias = torch.where(broken, (y + 1) % CLASSES, y)
    return GroundTruth(
        task,
        {"train": y, "val": y, "test": y},
        {"train": train_bias, "val": train_bias, "test": test_bias},
        "0" * 16,
        "0" * 16,
    )


def logits_of(said: Tensor, confidence: float = 4.0) -> Tensor:
    return confidence * functional.one_hot(said, CLASSES).float()


def run_of(
    truth: GroundTruth, said: Tensor, *, method: str = "m", sparsity: float = 0.9, seed: int = 0
) -> StoredRun:
    """A run that says `said` on test and is right on validation."""
    dense = method == "dense"
    logits = {"val": logits_of(truth.y["val"]), "test": logits_of(said)}
    return StoredRun(method, 0.0 if dense else sparsity, dense, 0.0 if dense else sparsity, seed, logits)


def outputs_of(truth: GroundTruth, runs: list[StoredRun]) -> Outputs:
    spec = {"model": "convnet-small", "recipe": {"steps": 1}}
    return Outputs(
        "digits", truth.task, spec, tuple(runs), {run.seed: truth for run in runs}, ("x: no logits",)
    )


def test_a_model_that_reads_the_bias_alone(truth: GroundTruth) -> None:
    found = measure_run(run_of(truth, truth.bias["test"]), truth)
    assert found.values["bias_gap"] == 1
    assert found.values["conflicting"] == 0
    assert found.values["in_distribution"] == 1
    # All that it calls c has the colour c; of what is c, a tenth has: amplified by nine tenths.
    assert found.values["bias_amplification"] == pytest.approx(0.9)
    assert found.outputs["recall"].tolist() == pytest.approx([0.1] * CLASSES)
    assert found.predicted.tolist() == truth.bias["test"].tolist()


def test_a_model_that_reads_the_label_alone(truth: GroundTruth) -> None:
    found = measure_run(run_of(truth, truth.y["test"]), truth)
    assert found.values["bias_gap"] == 0
    assert found.values["bias_amplification"] == 0
    assert found.right.all()


def test_a_class_without_an_identity_of_its_own_has_no_amplification(truth: GroundTruth) -> None:
    class Odd(ColoredDigits):
        def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
            return (y == 0) | ((y == bias) & (y > 1))

    prediction = functional.one_hot(truth.y["test"], CLASSES)
    found = class_amplification(prediction, dataclasses.replace(truth, task=Odd(0.02)))
    assert torch.isnan(found).tolist() == [True, True, *[False] * 8]


def test_changes_are_paired_by_seed(truth: GroundTruth) -> None:
    """Dense is right in seed 0 and reads the bias in seed 1; pruned reads the bias in both, and in seed 7."""
    label, bias = truth.y["test"], truth.bias["test"]
    runs = [run_of(truth, label, method="dense"), run_of(truth, bias, method="dense", seed=1)]
    runs += [run_of(truth, bias, seed=seed) for seed in (0, 1, 7)]
    cells = {("dense", 0.0): runs[:2], ("m", 0.9): runs[2:]}
    dense, pruned = summarize_conditions(
        {key: [measure_run(run, truth) for run in group] for key, group in cells.items()}
    )
    assert not dense.changes
    assert dense.values["bias_gap"].mean == pytest.approx(0.5)
    assert pruned.seeds == (0, 1, 7)
    assert pruned.changes["bias_gap"].mean == pytest.approx(0.5)
    assert pruned.changes["bias_gap"].n == 2


def test_estimates_have_no_interval_with_one_seed_and_no_mean_with_an_undefined_value() -> None:
    assert estimate([0.5]) == Estimate(0.5, None, None, 1)
    assert estimate([0.5, float("nan")]) == Estimate(None, None, None, 2)
    both = estimate([0.4, 0.6])
    assert both.mean == pytest.approx(0.5)
    assert both.low == pytest.approx(0.5 - 12.7062 * 0.1, abs=1e-3)


def test_an_analysis_of_everything(truth: GroundTruth, tmp_path: Path) -> None:
    """Pruned runs say the next class of the first tenth of the samples: the exemplars are just those."""
    label = truth.y["test"]
    wrong = torch.where(torch.arange(SAMPLES) < SAMPLES // 10, (label + 1) % CLASSES, label)
    runs = [run_of(truth, label, method="dense", seed=seed) for seed in (0, 1)]
    for run in runs:  # the dense models are unsure of just those
        run.logits["test"][: SAMPLES // 10] *= 0.1
    runs += [run_of(truth, wrong, seed=seed) for seed in (0, 1)]
    found = analyze_outputs(outputs_of(truth, runs))
    (exemplars,) = found.exemplars
    assert (exemplars.share, exemplars.control, exemplars.right_share) == (0.1, 0, 0)
    assert (exemplars.disagreement, exemplars.added.mean) == (0.1, 0.1)
    told = {row.event: row for row in found.sample_predictability}
    assert told["modal exemplar"].area_under_curve.mean == 1
    assert told["flip"].event_rate == 0.1
    assert told["flip"].area_under_curve.mean == told["new error"].area_under_curve.mean == 1
    assert told["flip"].recall_at_5_percent == pytest.approx(0.5)
    assert {row.index for row in found.susceptible} <= set(range(SAMPLES // 10))
    first = found.susceptible[0]
    assert first.flipped_share == 1
    assert (first.label, first.dense) == (str(int(label[first.index])),) * 2
    assert first.sparse == str((int(label[first.index]) + 1) % CLASSES)
    assert found.reference == "dense"
    assert found.left_out == ("x: no logits",)
    dense, pruned = found.conditions
    assert dense.sampled["unbiased"].mean == 1
    assert not dense.sampled_changes
    change = pruned.sampled_changes["unbiased"]
    assert (change.mean, change.n) == (pytest.approx(-0.1), 2)
    assert change.low < -0.1 < change.high < 0  # type: ignore[operator]
    split = {row.method: row for row in found.splits}
    assert split["m"].variance == 0
    assert split["m"].bias_squared == split["m"].loss > split["dense"].loss  # type: ignore[operator]
    assert read_analysis(write_analysis(found, tmp_path)) == found


def test_pruning_that_changes_no_label_has_no_exemplars(truth: GroundTruth) -> None:
    runs = [
        run_of(truth, truth.y["test"], method=method, seed=seed)
        for method in ("dense", "m")
        for seed in (0, 1)
    ]
    found = analyze_outputs(outputs_of(truth, runs))
    (exemplars,) = found.exemplars
    assert (exemplars.share, exemplars.disagreement, exemplars.right_share) == (0, 0, None)


def test_only_other_seeds_disagree(truth: GroundTruth) -> None:
    """Of two seeds one says the next class of every sample, dense as pruned: all differ from the other seed."""
    label = truth.y["test"]
    said = (label, (label + 1) % CLASSES)
    runs = [
        run_of(truth, said[seed], method=method, seed=seed) for method in ("dense", "m") for seed in (0, 1)
    ]
    (exemplars,) = analyze_outputs(outputs_of(truth, runs)).exemplars
    assert exemplars.share == 0
    assert (exemplars.disagreement, exemplars.control, exemplars.added.mean) == (1, 1, 0)


def test_what_defers_to_the_dense_model_says_nothing_of_few_weights(truth: GroundTruth) -> None:
    label = truth.y["test"]
    runs = [run_of(truth, label, method=method, seed=seed) for method in ("dense", "m") for seed in (0, 1)]
    runs += [
        dataclasses.replace(run_of(truth, label, method="n", seed=seed), deferred=True) for seed in (0, 1)
    ]
    found = analyze_outputs(outputs_of(truth, runs))
    changes = [line for line in exploratory_lines(found) if line.quantity == "bias_gap"]
    assert [(line.method, line.sparsity) for line in changes] == [("m", 0.9)]
    assert {row.method: row.deferred for row in found.conditions} == {"dense": False, "m": False, "n": True}


def test_seeds_are_those_of_the_runs(truth: GroundTruth) -> None:
    runs = [run_of(truth, truth.y["test"], method="dense", seed=3), run_of(truth, truth.bias["test"], seed=3)]
    outputs = outputs_of(truth, runs)
    more = dataclasses.replace(outputs, truths={1: truth, **outputs.truths})
    assert analyze_outputs(more).seeds == (3,)


def test_every_metric_of_the_leaderboard_is_a_measure(truth: GroundTruth) -> None:
    found = measure_run(run_of(truth, truth.bias["test"]), truth)
    for multi_label in (False, True):
        keys = [measure.key for measure in task_measures(multi_label=multi_label)]
        wanted = [m.name for m in metrics() if m.board and (multi_label or not m.of_attributes)]
        assert set(wanted) <= set(keys)
        assert len(set(keys)) == len(keys)
        assert multi_label or set(keys) <= set(found.values)


def test_a_sparsity_of_zero_is_the_first_and_native_the_last(truth: GroundTruth) -> None:
    label = truth.y["test"]
    native = dataclasses.replace(run_of(truth, label), sparsity=None)
    runs = [native, *(run_of(truth, label, sparsity=sparsity) for sparsity in (0.5, 0.0))]
    assert [sparsity for _, sparsity in outputs_of(truth, runs).conditions] == [0.0, 0.5, None]


def test_the_same_runs_in_another_order_give_the_same_analysis(truth: GroundTruth) -> None:
    generator = torch.Generator().manual_seed(1)
    runs = []
    for method in ("dense", "m", "n"):
        for seed in (0, 1, 2):
            said = torch.randint(CLASSES, (SAMPLES,), generator=generator)
            runs.append(run_of(truth, said, method=method, seed=seed))
    assert analyze_outputs(outputs_of(truth, runs)) == analyze_outputs(outputs_of(truth, runs[::-1]))


def test_a_single_seed_has_neither_tests_nor_control(truth: GroundTruth) -> None:
    runs = [run_of(truth, truth.y["test"], method="dense"), run_of(truth, truth.bias["test"])]
    found = analyze_outputs(outputs_of(truth, runs))
    assert not found.splits
    assert {row.corrected_p for row in found.groups} == {None}
    (exemplars,) = found.exemplars
    assert exemplars.control is None
    assert exemplars.share == pytest.approx(0.9)
    assert exploratory_lines(found) == ()


def test_attributes_are_analysed_by_output(truth: GroundTruth) -> None:
    """Five attributes, the last one an identity; pruned models flip the first attribute of every tenth sample."""
    generator = torch.Generator().manual_seed(2)
    label = (torch.rand(SAMPLES, 5, generator=generator) < 0.5).to(torch.uint8)
    label[:, 0] = torch.where(torch.rand(SAMPLES, generator=generator) < 0.8, label[:, 4], 1 - label[:, 4])
    task = resolve_task(TASK)
    task.attributes = Attributes(("a", "b", "c", "d", "g"), "a", ("g",))
    task.num_classes = task.num_biases = 2
    labels = dict.fromkeys(("train", "val", "test"), label)
    bias = {name: label[:, 4].long() for name in labels}
    many = GroundTruth(task, labels, bias, "0" * 16, "0" * 16)
    dense = 6.0 * label.float() - 3 + 0.1 * torch.randn(label.shape, generator=generator)
    pruned = dense.clone()
    pruned[::10, 0] *= -1
    runs = [
        StoredRun(
            name, 0.0 if name == "dense" else 0.5, name == "dense", 0.0, seed, {"val": dense, "test": values}
        )
        for seed in (0, 1)
        for name, values in (("dense", dense), ("m", pruned))
    ]
    found = analyze_outputs(outputs_of(many, runs))
    assert found.multi_label
    assert found.outputs == ("a", "b", "c", "d", "g")
    (exemplars,) = found.exemplars
    assert exemplars.share == pytest.approx(0.1 / 5)
    rows = {row.name: row.values for row in found.attributes if row.method == "m"}
    assert rows["a"]["accuracy"] == pytest.approx(0.9)
    assert rows["b"]["accuracy"] == 1
    assert rows["g"]["bias_amplification"] is None  # an identity is not measured against itself
    assert {row.label for row in found.groups} == {"a", "not a"}


def test_changes_are_from_the_reference_where_a_track_has_one(truth: GroundTruth) -> None:
    """Dense reads the bias; with more steps it is right, and so is the pruned one: nothing changed."""
    label, bias = truth.y["test"], truth.bias["test"]
    runs = [run_of(truth, bias, method="dense", seed=seed) for seed in (0, 1)]
    runs += [run_of(truth, label, method="dense-finetuned", sparsity=0.0, seed=seed) for seed in (0, 1)]
    runs += [run_of(truth, label, method="m", seed=seed) for seed in (0, 1)]
    found = analyze_outputs(outputs_of(truth, runs))
    assert (found.reference, found.methods, found.sparsities) == ("dense-finetuned", ["m"], [0.9])
    rows = {row.method: row for row in found.conditions}
    assert rows["m"].changes["bias_gap"].mean == 0
    assert rows["m"].sampled_changes["unbiased"].mean == 0
    assert rows["dense"].changes["bias_gap"].mean == 1
    assert not rows["dense-finetuned"].changes
    (pruned,) = (row for row in found.exemplars if row.method == "m")
    assert (pruned.share, pruned.disagreement) == (0, 0)
    flips = {row.method: row for row in found.sample_predictability if row.event == "flip"}
    assert flips["m"].event_rate == pytest.approx(0.9)  # of the dense label, as with the control
    assert flips["m"].beyond_control is not None
    assert flips["m"].beyond_control.mean == 0
    assert flips["dense-finetuned"].beyond_control is None


def test_without_a_reference_the_control_is_the_next_seeds_dense_model(truth: GroundTruth) -> None:
    generator = torch.Generator().manual_seed(3)
    runs = []
    for method in ("dense", "m"):
        for seed in range(3):
            run = run_of(
                truth, torch.randint(CLASSES, (SAMPLES,), generator=generator), method=method, seed=seed
            )
            run.logits["test"] += torch.rand(SAMPLES, CLASSES, generator=generator)
            runs.append(run)
    found = analyze_outputs(outputs_of(truth, runs))
    row = next(row for row in found.sample_predictability if row.event == "flip")
    conditions = {run.seed: run for run in runs if run.method == "dense"}
    pruned = {run.seed: run for run in runs if run.method == "m"}

    def area(seed: int, other: StoredRun) -> float:
        dense = conditions[seed].logits["test"]
        changed = other.logits["test"].argmax(1) != dense.argmax(1)
        return evaluate_predictability(margin_uncertainty(dense), changed).area_under_curve

    wanted = [area(seed, pruned[seed]) - area(seed, conditions[(seed + 1) % 3]) for seed in range(3)]
    assert row.beyond_control == estimate(wanted)


def test_ten_classes_are_too_few_to_correlate_over(truth: GroundTruth) -> None:
    runs = [run_of(truth, truth.bias["test"], method=m, seed=seed) for m in ("dense", "m") for seed in (0, 1)]
    assert analyze_outputs(outputs_of(truth, runs)).attribute_predictability == ()


def test_exploratory_lines_have_q_over_all_of_them() -> None:
    lines = exploratory_lines(class_analysis(("dcwp", "snip")))
    p_values = [line.p_value for line in lines]
    assert p_values == sorted(p_values)
    assert [line.q_value for line in lines] == benjamini_hochberg(p_values)
    assert {line.quantity for line in lines} == {
        "in_distribution", "bias_gap", "area under the curve", "rank correlation", "rank correlation over outputs",
    }  # fmt: skip


def test_the_p_of_a_line_is_that_of_its_values() -> None:
    values = [0.01, 0.03, -0.005, 0.02, 0.025]
    change = estimate(values)
    base = class_analysis(("snip",))
    row = next(row for row in base.conditions if row.sparsity == 0.9)
    bare = dataclasses.replace(
        base,
        conditions=(dataclasses.replace(row, changes={"bias_gap": change}),),
        correlations=(),
        sample_predictability=(),
        attribute_predictability=(),
    )
    (line,) = exploratory_lines(bare)
    assert line.p_value == line.q_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def measured_at(truth: GroundTruth, method: str, values: dict[str, float], seed: int = 0) -> MeasuredRun:
    """A run with these values and no others."""
    run = measure_run(run_of(truth, truth.y["test"], method=method, seed=seed), truth)
    return dataclasses.replace(run, values={"accuracy": 1.0, **values}, entries={})


def rhos_of(cells: dict[tuple[str, float | None], list[MeasuredRun]]) -> dict[str, Estimate]:
    """By method, or scope, over all runs."""
    found = aggregate.correlate(cells, [("u", "b")], "accuracy")
    return {entry.method or entry.scope: entry.rho for entry in found if not entry.working}


def test_correlations_within_methods_leave_out_what_differs_between_them(truth: GroundTruth) -> None:
    """In either method uncertainty rises with the bias; the method with less bias is the more uncertain one."""
    cells = {
        (method, step / 10): [
            measured_at(truth, method, {"u": base + step / 100, "b": bias + step / 100}, seed)
            for seed in (0, 1)
        ]
        for method, base, bias in (("m", 0.0, 0.5), ("n", 0.5, 0.0))
        for step in range(5)
    }
    found = rhos_of(cells)
    assert [found[name].mean for name in ("m", "n", "within methods")] == pytest.approx([1, 1, 1])
    assert found["all methods"].mean == pytest.approx(-0.5151, abs=1e-3)
    assert found["all methods"].n == 2


def test_a_common_rise_with_sparsity_is_held(truth: GroundTruth) -> None:
    """Both rise with sparsity; at the same sparsity the method with more uncertainty has less bias."""
    cells = {
        (method, step / 10): [
            measured_at(truth, method, {"u": step + own + wobble, "b": step - own - wobble}, seed)
            for seed in (0, 1)
        ]
        for method, own in (("m", 0.0), ("n", 0.2))
        for step in range(1, 7)
        for wobble in (0.03 * (step % 3),)
    }
    for (_, sparsity), runs in cells.items():
        for place, run in enumerate(runs):
            stored = dataclasses.replace(run.run, achieved=sparsity)
            runs[place] = dataclasses.replace(run, run=stored)
    assert rhos_of(cells)["all methods"].mean > 0.9  # type: ignore[operator]
    held = aggregate.correlate(cells, [("u", "b")], "accuracy", given="sparsity")
    assert {(entry.scope, entry.given) for entry in held} == {
        ("all methods", "sparsity"), ("within methods", "sparsity"),
    }  # fmt: skip
    assert next(entry.rho.mean for entry in held if entry.scope == "all methods") < -0.5  # type: ignore[operator]


def test_dense_runs_are_no_part_of_every_method(truth: GroundTruth) -> None:
    cells = {("dense", 0.0): [measured_at(truth, "dense", {"u": 9.0, "b": -9.0})]}
    for step in range(5):
        cells["m", step / 10] = [measured_at(truth, "m", {"u": step, "b": step})]
    found = rhos_of(cells)
    assert found["within methods"].mean == pytest.approx(1)
    assert found["m"].mean is not None
    assert found["m"].mean < 1


def test_the_interval_of_a_correlation_is_over_seeds(truth: GroundTruth) -> None:
    """Rising in two seeds, falling in a third: 1, 1 and -1 leave everything open; four points decide nothing."""

    def cells(steps: int, signs: tuple[int, ...]) -> dict[tuple[str, float | None], list[MeasuredRun]]:
        return {
            ("m", step / 10): [
                measured_at(truth, "m", {"u": step, "b": sign * step}, seed)
                for seed, sign in enumerate(signs)
            ]
            for step in range(steps)
        }

    found = rhos_of(cells(5, (1, 1, -1)))["m"]
    assert found.mean == pytest.approx(1 / 3)
    assert (found.low, found.high) == (-1, 1)
    assert rhos_of(cells(5, (1, 1, 1)))["m"].low == pytest.approx(1)
    few = rhos_of(cells(4, (1, 1, 1)))["m"]
    assert (few.mean, few.low) == (pytest.approx(1), None)


def test_changes_of_amplification_are_over_outputs_defined_in_both_runs(truth: GroundTruth) -> None:
    """The pruned model never says 0, so nothing is known of that class; all others are as they were."""
    bias = truth.bias["test"]
    dense = measure_run(run_of(truth, bias, method="dense"), truth)
    half = torch.where(torch.arange(SAMPLES) % 3 == 0, truth.y["test"], bias)
    before = measure_run(run_of(truth, torch.where(half == 0, bias, half), method="dense"), truth)
    silent = before.entries["bias_amplification"].clone()
    silent[0] = torch.nan
    after = dataclasses.replace(
        before,
        entries={"bias_amplification": silent},
        values={**before.values, "bias_amplification": float(silent.nanmean())},
    )
    assert after.change_from(before, "bias_amplification") == 0
    assert dense.values["amplification_defined"] == 1
    never = measure_run(run_of(truth, bias.clamp(min=1)), truth)
    assert never.values["amplification_defined"] == pytest.approx(0.9)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    run_inline(tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1)), out)
    return out


def only(results: Path) -> TaskAnalysis:
    (found,) = analyze_results(results)
    assert found.analysis is not None, found.problem
    return found.analysis


@pytest.mark.slow
def test_a_real_run_is_analysed(results: Path) -> None:
    found = only(results)
    assert found.seeds == (0, 1)
    assert [(cell.method, cell.sparsity) for cell in found.conditions] == [
        ("dense", 0.0), ("magnitude", 0.5), ("magnitude", 0.9),
    ]  # fmt: skip
    records = {record.run_id: record for record in Store(results).records()[0]}
    means = [
        np.mean([r.metrics[name] for r in records.values() if r.spec["method"] == "dense"])
        for name in ("unbiased", "bias_gap", "entropy", "logit_correlation")
    ]
    dense = found.conditions[0].values
    assert [dense[name].mean for name in ("unbiased", "bias_gap", "entropy", "logit_correlation")] == (
        pytest.approx(means, abs=1e-9)
    )


def test_runs_that_defer_are_known_by_their_record(results: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    store = Store(copy)
    for record in store.records()[0]:
        if record.spec["method"] == "magnitude" and record.spec["sparsity"] == 0.9:
            share = 0.1 if record.spec["seed"] else 0.0
            store.write(dataclasses.replace(record, notes={"deferred_share_test": share}))
    found = read_outputs("digits", store.records()[0], store, None)
    assert {(run.sparsity, run.seed): run.deferred for run in found.runs} == {
        (0.0, 0): False, (0.0, 1): False, (0.5, 0): False, (0.5, 1): False, (0.9, 0): False, (0.9, 1): True,
    }  # fmt: skip


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "outputs.safetensors").unlink(), "logits are not stored"),
        (lambda folder: (folder / "outputs.safetensors").write_bytes(b"x"), "do not match their hash"),
    ],
)
def test_runs_without_their_logits_are_listed(
    results: Path, tmp_path: Path, damage: Damage, reason: str
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    record = next(r for r in Store(copy).records()[0] if r.spec["method"] == "magnitude")
    damage(copy / "runs" / record.run_id)
    found = only(copy)
    assert len(found.left_out) == 1
    assert reason in found.left_out[0]
    assert record.run_spec.label in found.left_out[0]
    assert found.runs == 5


def test_seeds_with_a_test_split_of_their_own_are_left_out(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(task: Task, splits: Splits) -> GroundTruth:
        return dataclasses.replace(original(task, splits), test_hash=str(next(numbers)))

    original, numbers = GroundTruth.of, itertools.count()
    monkeypatch.setattr(GroundTruth, "of", shifted)
    found = only(results)
    assert found.seeds == (0,)
    assert len(found.left_out) == 3
    assert all("test split of its own" in reason for reason in found.left_out)


@pytest.mark.slow
def test_a_run_keeps_the_links_of_its_board_to_the_analyses(results: Path, tmp_path: Path) -> None:
    import shutil

    import prunebench

    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "analysis").mkdir(exist_ok=True)
    write_analysis(only(out), out / "analysis")
    suite = tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1))
    board, page = out / "leaderboard/site/index.html", f"{only(out).slug}-analysis.html"
    for pages in (False, True):
        if pages:
            write_leaderboard([out], out / "leaderboard")
            written = (board.parent / page).read_bytes()
        assert prunebench.run(suite, out=out, workers=0).reused == 6
        assert (f'href="{page}"' in board.read_text()) == pages
        assert (board.parent / page).is_file() == pages
    assert (board.parent / page).read_bytes() == written


@pytest.mark.slow
def test_a_method_that_joins_gives_board_and_pages_the_same_new_colours(
    results: Path, tmp_path: Path
) -> None:
    import shutil

    import prunebench

    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "analysis").mkdir(exist_ok=True)
    analysis = only(out)
    write_analysis(analysis, out / "analysis")
    write_leaderboard([out], out / "leaderboard")
    suite = tiny_suite("dense", "gmp-ri", sparsities=(0.5,), seeds=(0,))  # its name comes before magnitude
    assert prunebench.run(suite, out=out, workers=0).ok == 1
    shown = (out / "leaderboard/analysis/figures" / f"{analysis.slug}-bias_gap.svg").read_text()
    styles = analysis_styles([analysis], build_board(Store(out).records()[0]).labels)
    assert styles["magnitude"] != analysis_styles([analysis])["magnitude"]
    page = (out / f"leaderboard/site/{analysis.slug}-analysis.html").read_text()
    assert styles["magnitude"].colour in page
    assert styles["magnitude"].colour in shown


def test_an_analysis_that_cannot_be_read_does_not_stop_a_run(results: Path, tmp_path: Path) -> None:
    import shutil

    import prunebench

    out = Path(shutil.copytree(results, tmp_path / "out"))
    (out / "analysis").mkdir(exist_ok=True)
    (out / "analysis" / "digits.json").write_text("{")
    suite = tiny_suite("dense", "magnitude", sparsities=(0.5, 0.9), seeds=(0, 1))
    with pytest.warns(UserWarning, match="the board links to no analysis: .*digits.json"):
        assert prunebench.run(suite, out=out, workers=0).reused == 6
    assert (out / "leaderboard/site/index.html").is_file()


def test_without_dense_logits_there_is_no_analysis(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv(
        "PRUNEBENCH_CACHE", str(tmp_path / "cache")
    )  # that of others may hold what they pulled
    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    for record in Store(copy).records()[0]:
        if record.spec["method"] == "dense":
            (copy / "runs" / record.run_id / "outputs.safetensors").unlink()
    (found,) = analyze_results(copy)
    assert found.analysis is None
    assert "no dense run with stored logits" in (found.problem or "")


def test_only_the_asked_tasks_are_analysed(results: Path) -> None:
    assert not list(analyze_results(results, tasks=["another"]))
    assert len(list(analyze_results(results, tasks=[TASK]))) == 1


def test_an_analysis_that_is_not_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, reason in (
        ("{", "cannot be read"), ('{"schema_version": 99}', "schema 99"), ('{"schema_version": 1}', "analyze again"),
        ("[]", "schema"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(StoreError, match=reason):
            read_analysis(path)
    path.write_text(f'{{"schema_version": {SCHEMA_VERSION}, "slug": 3}}')
    with pytest.raises(StoreError, match="invalid analysis"):
        read_analysis(path)
    for slug in ("y", "../../y"):  # pages are written to places that the slug names
        path.write_text(to_json(dataclasses.replace(odd_analysis(), slug=slug)))
        with pytest.raises(StoreError, match="files are named by it"):
            read_analysis(path)


def test_captions_fit_below_a_sample() -> None:
    digit = SusceptibleSample(3, 0.9, None, "5", "colour 7", "3", "5", 0.5)
    assert caption(digit) == "5, colour 7\n3 -> 5"
    large = SusceptibleSample(3, 0.9, "large", "no", "ink colour 0", "yes", "-", None)
    assert caption(large) == "large: no\nyes -> -"


def test_folders_are_analysed_or_refused_with_the_reason(results: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(StoreError, match="no results here"):
        analyze_folder(tmp_path, None, (), console)
    with pytest.raises(UsageError, match="colored-digits@2pct"):
        analyze_folder(results, None, ("colored-digit@2pct",), console)
    assert analyze_folder(results, None, (TASK,), console) == 0
    assert {path.name for path in (results / "analysis").iterdir()} == {
        "colored-digits-2pct.json", "colored-digits-2pct-samples.png", "by-seed",
    }  # fmt: skip
    assert "(a)" in console.file.getvalue()  # type: ignore[attr-defined]
