"""Paired tests against scipy and by counting, which runs are paired, and what a comparison says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test
from torch import Tensor
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.comparison.conclusions import conclude
from prunebench.comparison.pairing import Pair, choose_pairs
from prunebench.comparison.tests import Comparison, SampleTest, compare_pairs, compare_seeds
from prunebench.errors import DataError, MetricError, StoreError, UsageError
from prunebench.metrics.populations import holm
from prunebench.results.record import RunRecord
from prunebench.results.spec import RunSpec
from prunebench.results.store import Store
from prunebench.stats.intervals import mean_interval
from prunebench.stats.tests import (
    least_sign_flip_p_value,
    mcnemar_p_value,
    pooled_mcnemar_p_value,
    sign_flip_p_value,
)
from prunebench.tasks import Split, Splits, Task, splits_hash
from prunebench.tasks.base import Attributes

MakeRecord = Callable[..., RunRecord]
TEST_SAMPLES = 120


# The tests themselves


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 9), (12, 12), (1, 40), (150, 100), (5000, 5200)])
def test_mcnemar_is_a_binomial_test(first: int, second: int) -> None:
    wanted = binomtest(first, first + second).pvalue
    assert mcnemar_p_value(first, second) == pytest.approx(wanted, rel=1e-9)
    assert mcnemar_p_value(second, first) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_where_the_two_never_differ() -> None:
    assert mcnemar_p_value(0, 0) == 1.0
    with pytest.raises(MetricError, match="want counts"):
        mcnemar_p_value(-1, 3)


@pytest.mark.parametrize("count", [2, 3, 6, 9])
def test_sign_flips_are_a_permutation_test(count: int) -> None:
    differences = np.random.default_rng(count).integers(-5, 7, count) / 7
    wanted = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p_value(differences.tolist()) == pytest.approx(wanted, rel=1e-12)


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p_value([1, 2, 3]) == 0.25  # +++ and ---
    assert sign_flip_p_value([1, 2, -3]) == 1.0
    assert sign_flip_p_value([1, 1, 1, -1]) == 10 / 16  # |sum| of 2 or 4: 8 + 2 ways
    assert sign_flip_p_value([0.1] * 3 + [0.3]) == 0.125
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1.0  # 0 but for rounding
    assert [least_sign_flip_p_value(n) for n in (0, 1, 3, 6)] == [2.0, 1.0, 0.25, 0.03125]


def test_undefined_differences() -> None:
    assert math.isnan(sign_flip_p_value([]))
    assert math.isnan(sign_flip_p_value([0.1, None]))
    assert math.isnan(sign_flip_p_value([0.1, math.nan]))


def test_forty_differences_are_exact_and_more_are_refused() -> None:
    assert sign_flip_p_value([1.0] * 40) == 2.0**-39
    assert sign_flip_p_value([1.0] * 30 + [-1.0] * 10) == pytest.approx(binomtest(10, 40).pvalue, rel=1e-12)
    with pytest.raises(MetricError, match="at most 40"):
        sign_flip_p_value([1.0] * 41)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=11))
def test_pooled_mcnemar_by_counting(net: list[int]) -> None:
    sums = [
        sum(sign * abs(value) for sign, value in zip(signs, net))
        for signs in itertools.product((1, -1), repeat=len(net))
    ]
    wanted = sum(abs(total) >= abs(sum(net)) for total in sums) / len(sums)
    assert pooled_mcnemar_p_value(net) == pytest.approx(wanted, rel=1e-9)
    assert sign_flip_p_value(net) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 50), st.integers(1, 4))
def test_pooled_mcnemar_of_one_pair(first: int, second: int, same: int, size: int) -> None:
    """Of one pair it is McNemar's test; and so it is if every pair says the same."""
    net = [size] * first + [-size] * second + [0] * same
    assert pooled_mcnemar_p_value(net) == pytest.approx(mcnemar_p_value(first, second), rel=1e-9)


def test_pooling_does_not_count_a_sample_twice() -> None:
    """Five pairs that all differ on the same 6 samples: the counts added up would seem to be 30."""
    assert pooled_mcnemar_p_value([5] * 6) == pytest.approx(2 * 0.5**6)
    assert mcnemar_p_value(30, 0) < 1e-8


def test_pooled_p_values_are_uniform_where_nothing_differs() -> None:
    """Samples are hard for all three pairs alike, so that outcomes of one sample hang together."""
    generator = np.random.default_rng(0)
    p_values, summed = [], []
    for _ in range(400):
        lean = generator.choice([-1, 1], 60)
        apart = np.where(generator.random((3, 60)) < 0.6, lean, 0)
        p_values.append(pooled_mcnemar_p_value(apart.sum(0).tolist()))
        summed.append(mcnemar_p_value(int((apart > 0).sum()), int((apart < 0).sum())))
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08
    assert np.mean(np.array(summed) < 0.05) > 0.12


# A task whose logits say what the test wants


class Coins(Task):
    """Random labels and biases, the same test split for every seed unless `own_test`."""

    name, version, title, source, bias_name = "coins", 1, "Coins", "random numbers", "side"
    num_classes, num_biases, conflicting_share, model = 2, 2, None, "convnet-small"
    attributes: Attributes | None = None

    def __init__(self, *, own_test: bool = False) -> None:
        self.own_test = own_test

    def fingerprint(self, data_root: Path | None) -> str:
        return "0" * 16

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        def split(count: int, seed: int) -> Split:
            generator = torch.Generator().manual_seed(seed)
            images = torch.randint(256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
            y, bias = torch.randint(2, (2, count), generator=generator).unbind()
            return Split(images, self.labels(y), bias)

        test = split(TEST_SAMPLES, seed if self.own_test else 99)
        return Splits(split(40, seed), split(30, seed + 1), test)

    def labels(self, y: Tensor) -> Tensor:
        return y


class ManyCoins(Coins):
    """Two attributes; the second is the target of the groups."""

    attributes = Attributes(("other", "target"), "target", ("other",))

    def labels(self, y: Tensor) -> Tensor:
        return torch.stack([1 - y, y], dim=1).to(torch.uint8)


def logits_of(task: Task, split: Split, right: Tensor) -> Tensor:
    """Logits that are right on the group label where `right` bool `[N]` says so."""
    said = torch.where(right, task.group_label(split.y), 1 - task.group_label(split.y))
    return torch.stack([(said == 0).float(), said.float() - 0.5], dim=1).half()


class Runs:
    """Writes runs of a task whose test samples are right as told."""

    def __init__(self, root: Path, make_record: MakeRecord, spec: RunSpec, task: Task) -> None:
        self.store, self.make, self.task = Store(root), make_record, task
        self.spec = replace(spec, task=task.name, task_version=1, data_fingerprint="0" * 16)

    def write(
        self, method: str, seed: int, right: Tensor, *, sparsity: float | None = 0.9, **changes: object
    ) -> RunRecord:
        splits = self.task.splits(None, seed)
        outputs = {"test_logits": logits_of(self.task, splits.test, right)}
        outputs["val_logits"] = logits_of(self.task, splits.val, torch.ones(30, dtype=torch.bool))
        spec = replace(self.spec, method=method, seed=seed, sparsity=0.0 if method == "dense" else sparsity)
        share = float(right.double().mean())
        metrics = {"plain": share, "unbiased": share - 0.01, "conflicting": None}
        fields = {"splits_hash": splits_hash(splits), "metrics": metrics, **changes}
        return self.store.write(self.make(spec, **fields), outputs)

    def compare(self, first: str, second: str, **asked: float) -> Comparison:
        names, pairs, _ = choose_pairs((first, second), (self.store, self.store), **asked)
        return compare_pairs(names, pairs, None, resolve=lambda name, root: self.task)


@pytest.fixture
def runs(tmp_path: Path, make_record: MakeRecord, spec: RunSpec) -> Runs:
    """Dense is right on all but the last 10 samples; magnitude errs on 30 more, and on some by seed."""
    runs = Runs(tmp_path / "results", make_record, spec, Coins())
    for seed in (0, 1, 2):
        runs.write("dense", seed, torch.arange(TEST_SAMPLES) < 110)
        runs.write("magnitude", seed, (torch.arange(TEST_SAMPLES) < 80 - seed) | (torch.arange(120) >= 115))
    return runs


def scope(tests: Sequence[SampleTest], name: str, pair: str | None = None) -> SampleTest:
    (test,) = (test for test in tests if test.scope == name and test.pair == pair)
    return test


# What is computed


def test_counts_and_p_values_by_sample(runs: Runs) -> None:
    found = runs.compare("dense", "magnitude")
    assert (found.first, found.second, found.pairs) == (
        "dense",
        "magnitude 0.9",
        ("seed 0", "seed 1", "seed 2"),
    )
    every = scope(found.pooled, "all samples")
    assert (every.samples, every.first_only, every.second_only) == (120, 30 + 31 + 32, 15)
    assert every.first_right == pytest.approx(110 / 120)
    assert every.second_right == pytest.approx((85 + 84 + 83) / 360)
    assert every.differing == 37
    assert every.p_value == pytest.approx(sign_flip_p_value([1, 2] + [3] * 30 + [-3] * 5), rel=1e-9)
    alone = scope(found.by_pair, "all samples", "seed 1")
    assert (alone.first_only, alone.second_only) == (31, 5)
    assert alone.p_value == pytest.approx(binomtest(5, 36).pvalue, rel=1e-9)


def test_scopes_are_the_groups(runs: Runs) -> None:
    found = runs.compare("dense", "magnitude")
    test = Coins().splits(None, 0).test
    dense, pruned = torch.arange(120) < 110, (torch.arange(120) < 80) | (torch.arange(120) >= 115)
    wanted = {"bias-aligned": test.y == test.bias, "bias-conflicting": test.y != test.bias}
    wanted |= {f"label {y}, bias {b}": (test.y == y) & (test.bias == b) for y in range(2) for b in range(2)}
    for name, members in wanted.items():
        entry = scope(found.by_pair, name, "seed 0")
        assert entry.samples == int(members.sum())
        assert entry.first_only == int((members & dense & ~pruned).sum())
        assert entry.second_only == int((members & pruned & ~dense).sum())
        assert entry.second_right == pytest.approx(float(pruned[members].double().mean()))
    assert len(found.pooled) == 7
    assert len(found.by_pair) == 21


def test_each_table_is_corrected_by_itself(runs: Runs) -> None:
    found = runs.compare("dense", "magnitude")
    for table in (found.by_seed, found.pooled, found.by_pair):
        wanted = holm(torch.tensor([test.p_value for test in table], dtype=torch.float64))
        assert [test.corrected_p for test in table] == pytest.approx(wanted.tolist(), nan_ok=True)


def test_seeds(runs: Runs) -> None:
    found = {test.metric.name: test for test in runs.compare("dense", "magnitude").by_seed}
    assert found.keys() == {"plain", "unbiased", "conflicting"}
    differences = [(85 - seed) / 120 - 110 / 120 for seed in range(3)]
    plain = found["plain"]
    assert plain.p_value == 0.25
    assert plain.corrected_p == 0.5
    assert plain.difference.mean == pytest.approx(np.mean(differences))
    assert plain.difference.half_width == pytest.approx(mean_interval(differences).half_width)
    assert math.isnan(found["conflicting"].p_value)
    assert math.isnan(found["conflicting"].corrected_p)


def test_multi_label_runs_are_right_by_their_target(
    tmp_path: Path, make_record: MakeRecord, spec: RunSpec
) -> None:
    runs = Runs(tmp_path, make_record, spec, ManyCoins())
    metrics = {"plain": 0.5, "attribute_accuracy": 0.75}
    runs.write("dense", 0, torch.arange(120) < 100, metrics=metrics)
    runs.write("magnitude", 0, torch.arange(120) < 60, metrics=metrics)
    found = runs.compare("dense", "magnitude")
    every = scope(found.pooled, "all samples")
    assert (every.first_only, every.second_only) == (40, 0)
    assert [test.metric.name for test in found.by_seed] == ["plain", "attribute_accuracy"]
    assert found.by_pair == ()


def test_test_splits_of_their_own_are_added_up(
    tmp_path: Path, make_record: MakeRecord, spec: RunSpec
) -> None:
    runs = Runs(tmp_path, make_record, spec, Coins(own_test=True))
    for seed in (0, 1):
        runs.write("dense", seed, torch.arange(120) < 110)
        runs.write("magnitude", seed, torch.arange(120) < 100 - seed)
    found = runs.compare("dense", "magnitude")
    every = scope(found.pooled, "all samples")
    assert (every.samples, every.differing) == (240, 21)
    assert every.p_value == pytest.approx(2 * 0.5**21)
    assert any("test split differs between seeds" in note for note in found.notes)
    ids = [record.run_id for record in runs.store.records()[0] if record.spec["method"] == "dense"]
    with pytest.raises(UsageError, match="tested on different samples"):
        runs.compare(ids[0], ids[1])


def test_two_runs_of_two_seeds_on_one_test_split(runs: Runs) -> None:
    ids = {
        record.spec["seed"]: record.run_id for record in runs.store.records()[0] if record.spec["sparsity"]
    }
    found = runs.compare(ids[0][:8], ids[2])
    assert found.pairs == ("seeds 0 and 2",)
    assert scope(found.pooled, "all samples").first_only == 2


# What cannot be compared by sample


def test_runs_without_logits_are_compared_by_seed(runs: Runs) -> None:
    for record in runs.store.records()[0]:
        if record.spec["seed"] != 2:
            (runs.store.folder(record.run_id) / "outputs.safetensors").unlink()
    found = runs.compare("dense", "magnitude")
    assert len(found.pairs) == 3
    assert scope(found.pooled, "all samples").first_only == 32
    assert sum("compared by its metrics alone" in note for note in found.notes) == 2
    for path in runs.store.root.glob("runs/*/outputs.safetensors"):
        path.unlink()
    found = runs.compare("dense", "magnitude")
    assert (found.pooled, found.by_pair) == ((), ())
    assert [test.p_value for test in found.by_seed[:2]] == [0.25, 0.25]
    assert "By sample: no pair of runs has its logits and labels at hand." in conclude(found).undecided


def test_without_the_data_runs_are_compared_by_seed(runs: Runs) -> None:
    names, pairs, _ = choose_pairs(("dense", "magnitude"), (runs.store, runs.store))

    def resolve(name: str, root: Path | None) -> Task:
        raise DataError("no data: pass --data-root")

    found = compare_pairs(names, pairs, None, resolve=resolve)
    assert found.pooled == ()
    assert all("no data: pass --data-root" in note for note in found.notes)
    assert len(found.notes) == 3


def test_runs_of_a_task_that_is_not_known_here_are_compared_by_seed(runs: Runs) -> None:
    found = compare_pairs(*choose_pairs(("dense", "magnitude"), (runs.store, runs.store))[:2], None)
    assert found.pooled == ()
    assert all("not by sample: unknown task 'coins'" in note for note in found.notes)
    assert [test.p_value for test in found.by_seed[:2]] == [0.25, 0.25]


def test_mapped_images_are_told_by_their_digest_and_not_read(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, draw = runs.compare("dense", "magnitude"), Coins.draw

    def mapped(task: Coins, data_root: Path | None, seed: int) -> Splits:
        splits = draw(task, data_root, seed)
        images = torch.empty(TEST_SAMPLES, 3, 2, 2, dtype=torch.uint8, device="meta")
        return replace(splits, test=replace(splits.test, x=images, digest="d"))

    monkeypatch.setattr(Coins, "draw", mapped)
    drawn = splits_hash(Coins().splits(None, 0)), splits_hash(Coins().splits(None, 1))
    assert drawn[0] != drawn[1]
    for record in runs.store.records()[0]:
        found = splits_hash(Coins().splits(None, record.spec["seed"]))
        runs.store.write(replace(record, splits_hash=found))
    assert runs.compare("dense", "magnitude").pooled == before.pooled


def test_logits_that_are_not_the_runs_own_are_not_used(runs: Runs) -> None:
    record = next(record for record in runs.store.records()[0] if record.spec["method"] == "dense")
    path = runs.store.folder(record.run_id) / "outputs.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    found = runs.compare("dense", "magnitude")
    assert any(f"run {record.run_id}: its stored logits do not match" in note for note in found.notes)


# Which runs are paired


def test_names_leave_no_choice_open(runs: Runs) -> None:
    runs.write("magnitude", 0, torch.ones(120, dtype=torch.bool), sparsity=0.5)
    with pytest.raises(UsageError, match=r"sparsities 0.5, 0.9: choose one with --sparsity"):
        runs.compare("dense", "magnitude")
    with pytest.raises(UsageError, match=r"no run in .* at sparsity 0.7"):
        runs.compare("dense", "magnitude", sparsity=0.7)
    found = runs.compare("dense", "magnitude", sparsity=0.5)
    assert found.pairs == ("seed 0",)
    _, _, notes = choose_pairs(("dense", "magnitude"), (runs.store, runs.store), sparsity=0.5)
    assert notes == ["Left out, as the other side has no such run: dense with seed 1, 2."]
    runs.write("native", 1, torch.ones(120, dtype=torch.bool), sparsity=None)
    assert runs.compare("native", "magnitude", sparsity=0.9).first == "native native"


def test_names_that_fit_nothing(runs: Runs) -> None:
    with pytest.raises(UsageError, match="did you mean magnitude"):
        runs.compare("dense", "magnitud")
    with pytest.raises(UsageError, match="unknown method or run ''"):
        runs.compare("dense", "")
    run_id = runs.store.records()[0][0].run_id
    with pytest.raises(UsageError, match="name two runs"):
        runs.compare(run_id, run_id)
    with pytest.raises(UsageError, match="name two runs"):
        runs.compare("dense", "dense")
    empty = Store(runs.store.root / "nowhere")
    with pytest.raises(StoreError, match="no results here"):
        choose_pairs(("dense", "dense"), (runs.store, empty))


def test_failed_runs_are_no_side(runs: Runs) -> None:
    record = runs.write("snip", 0, torch.ones(120, dtype=torch.bool), status="failed", reason="diverged")
    with pytest.raises(UsageError, match="none of its 1 runs"):
        runs.compare("dense", "snip")
    with pytest.raises(UsageError, match="has not finished: diverged"):
        runs.compare("dense", record.run_id)


def test_runs_of_other_data_are_refused(runs: Runs) -> None:
    right = torch.ones(120, dtype=torch.bool)
    runs.spec = replace(runs.spec, task_version=2)
    other = runs.write("snip", 0, right)
    with pytest.raises(UsageError, match="no runs on the same data: dense: coins version 1"):
        runs.compare("dense", "snip")
    with pytest.raises(UsageError, match="no runs on the same data"):
        runs.compare("dense", other.run_id)
    runs.write("dense", 0, right)
    assert runs.compare("dense", "snip").pairs == ("seed 0",)
    runs.write("magnitude", 0, right)
    with pytest.raises(UsageError, match=r"coins version 1 .*, coins version 2 .*: choose one with --task"):
        runs.compare("dense", "magnitude")
    runs.spec = replace(runs.spec, task_version=1)
    runs.write("random", 0, right, splits_hash="0" * 16)
    with pytest.raises(UsageError, match="different data splits"):
        runs.compare("dense", "random")
    runs.write("imp", 7, right)
    with pytest.raises(UsageError, match="share no seed"):
        runs.compare("dense", "imp")


def test_runs_with_other_settings_are_named_by_id(runs: Runs) -> None:
    recipe = replace(runs.spec.recipe, steps=7)
    runs.spec = replace(runs.spec, params=(("allocation", "erk"),), recipe=recipe)
    other = runs.write("magnitude", 0, torch.ones(120, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"several runs .* with seed 0 .*name the runs by their ids"):
        runs.compare("dense", "magnitude")
    _, pairs, notes = choose_pairs(("dense", other.run_id), (runs.store, runs.store))
    assert [pair.name for pair in pairs] == ["seed 0"]
    assert "They differ in their recipe, too: steps 400 and 7." in notes


def test_one_method_in_two_folders(
    runs: Runs, tmp_path: Path, make_record: MakeRecord, spec: RunSpec
) -> None:
    others = Runs(tmp_path / "others", make_record, spec, Coins())
    for seed in (0, 1):
        others.write("dense", seed, torch.arange(120) < 90)
    names, pairs, _ = choose_pairs(("dense", "dense"), (runs.store, others.store))
    assert names == (f"dense in {runs.store.root}", f"dense in {others.store.root}")
    found = compare_pairs(names, pairs, None, resolve=lambda name, root: Coins())
    assert scope(found.pooled, "all samples").first_only == 40


def test_other_settings_of_any_seed_are_told(
    runs: Runs, tmp_path: Path, make_record: MakeRecord, spec: RunSpec
) -> None:
    others = Runs(tmp_path / "others", make_record, spec, Coins())
    right = torch.ones(120, dtype=torch.bool)
    others.write("magnitude", 0, right)
    others.spec = replace(others.spec, params=(("allocation", "erk"), ("start", "dense")))
    others.write("magnitude", 1, right, environment={"precision": "bf16"})
    _, pairs, notes = choose_pairs(("magnitude", "magnitude"), (runs.store, others.store))
    assert "They differ in their settings, too: allocation global and erk." in notes
    precision = pairs[0].first.environment.get("precision")
    assert f"They were trained in different precisions: {precision} and bf16." in notes


# What is said


def seeds_of(make_record: MakeRecord, values: Sequence[tuple[float, float]]) -> Comparison:
    """A comparison by seed alone, of one metric."""
    store = Store(Path("nowhere"))
    pairs = [
        Pair(f"seed {n}", make_record(metrics={"plain": a}), make_record(metrics={"plain": b}), store, store)
        for n, (a, b) in enumerate(values)
    ]
    names = tuple(pair.name for pair in pairs)
    return Comparison("one", "two", "task", names, compare_seeds(pairs), (), (), ())


def test_few_seeds_cannot_tell(make_record: MakeRecord) -> None:
    said = conclude(seeds_of(make_record, [(0.5, 0.9), (0.5, 0.91), (0.5, 0.92)]))
    assert said.significant == ()
    assert "of 3 seeds a sign-flip test gives p = 0.25 at the least" in said.undecided[0]
    assert "6 seeds could tell" in said.undecided[0]
    assert "The 95 % t interval of average accuracy leaves out 0" in said.undecided[0]
    said = conclude(seeds_of(make_record, [(0.5, 0.9)]))
    assert "one pair of runs says nothing of other seeds" in said.undecided[0]


def test_enough_seeds_can_tell(make_record: MakeRecord) -> None:
    said = conclude(seeds_of(make_record, [(0.5, 0.6 + n / 100) for n in range(6)]))
    assert said.significant == (
        "By seed, average accuracy: two is 12.5 points higher than one (corrected p = 0.031).",
    )
    said = conclude(seeds_of(make_record, [(0.5, 0.5 + n / 100) for n in range(-3, 4)]))
    assert said.significant == ()
    assert said.not_significant == ("By seed: average accuracy.",)


def test_verdicts_by_sample(runs: Runs) -> None:
    said = conclude(runs.compare("dense", "magnitude"))
    assert any(
        line.startswith("By sample, all samples: magnitude 0.9 is 21.7 points lower than dense (corrected p")
        for line in said.significant
    )
    assert any(line.startswith("By seed, bias-conflicting accuracy: undefined") for line in said.undecided)
    runs.write("snip", 0, torch.arange(120) < 106)
    said = conclude(runs.compare("dense", "snip"))
    assert said.significant == ()
    assert "By sample, all samples: the two differ on 4 of 120 only." in said.undecided
    runs.write("random", 0, torch.arange(120) < 110)
    assert (
        "By sample, all samples: both are right on the same of all 120."
        in conclude(runs.compare("dense", "random")).not_significant
    )


def test_differences_that_cancel_out_over_the_pairs_are_no_agreement(runs: Runs) -> None:
    here, there = torch.arange(120) < 60, torch.arange(120) >= 60
    for seed, first, second in ((0, here, there), (1, there, here)):
        runs.write("snip", seed, first)
        runs.write("random", seed, second)
    found = runs.compare("snip", "random")
    every = scope(found.pooled, "all samples")
    assert (every.first_only, every.second_only, every.differing) == (120, 120, 0)
    said = conclude(found).not_significant
    assert "By sample, all samples: on each of 120, as many runs of one as of the other are right." in said


def test_the_command(tmp_path: Path, make_record: MakeRecord, spec: RunSpec) -> None:
    """On a task of the package, whose labels the command finds by itself."""
    from prunebench.tasks import resolve_task

    task = resolve_task("colored-digits@2pct")
    store, splits = Store(tmp_path), task.splits(None, 0)
    label = splits.test.y
    for method, wrong in (("dense", 100), ("magnitude", 900)):
        said = torch.where(torch.arange(len(label)) < wrong, (label + 1) % 10, label)
        logits = torch.nn.functional.one_hot(said, 10).half()
        cell = replace(spec, method=method, sparsity=0.0 if method == "dense" else 0.9, task_version=2)
        record = make_record(cell, splits_hash=splits_hash(splits), metrics={"plain": 1 - wrong / len(label)})
        store.write(record, {"test_logits": logits, "val_logits": logits[:800].clone()})
    asked = ["compare", "dense", "magnitude", "--results", str(tmp_path), "--sparsity", "0.9"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "A = dense, B = magnitude 0.9; colored-digits@2pct, seed 0" in done.output
    assert "magnitude 0.9 is 20.2 points lower than dense" in done.output
    assert "corrected for all 103 tests; " in done.output
    assert "one pair of runs says nothing of other seeds" in done.output
