"""Paired tests against scipy and by counting, which runs are paired, and what a comparison says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import board_records
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp
from torch import Tensor
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.comparison.conclusions import conclude
from prunebench.comparison.pairing import Pair, choose_pairs
from prunebench.comparison.tests import Comparison, SampleTest, compare_pairs, compare_seeds
from prunebench.errors import DataError, StoreError, UsageError
from prunebench.leaderboard.aggregate import RANKED, build_board
from prunebench.results.ranking import rank_track
from prunebench.results.record import RunRecord
from prunebench.results.spec import TUNE_SEEDS, RunSpec
from prunebench.results.store import Store
from prunebench.results.tracks import REFERENCE, split_tracks
from prunebench.stats.clusters import clustered_t
from prunebench.stats.intervals import mean_interval
from prunebench.stats.multiplicity import holm_adjusted
from prunebench.stats.tests import pooled_mcnemar_p_value
from prunebench.tasks import Split, Splits, Task, splits_hash
from prunebench.tasks.base import Attributes

MakeRecord = Callable[..., RunRecord]
TEST_SAMPLES = 120


# The tests themselves


def mcnemar(first: int, second: int) -> float:
    """McNemar's exact test, by scipy."""
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=11))
def test_pooled_mcnemar_by_counting(net: list[int]) -> None:
    sums = [
        sum(sign * abs(value) for sign, value in zip(signs, net))
        for signs in itertools.product((1, -1), repeat=len(net))
    ]
    wanted = sum(abs(total) >= abs(sum(net)) for total in sums) / len(sums)
    assert pooled_mcnemar_p_value(net) == pytest.approx(wanted, rel=1e-9)
    assert pooled_mcnemar_p_value([]) == 1.0


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 50), st.integers(1, 4))
def test_pooled_mcnemar_of_one_pair(first: int, second: int, same: int, size: int) -> None:
    """Of one pair it is McNemar's test; and so it is if every pair says the same."""
    net = [size] * first + [-size] * second + [0] * same
    assert pooled_mcnemar_p_value(net) == pytest.approx(mcnemar(first, second), rel=1e-9)


def test_pooling_does_not_count_a_sample_twice() -> None:
    """Five pairs that all differ on the same 6 samples: the counts added up would seem to be 30."""
    assert pooled_mcnemar_p_value([5] * 6) == pytest.approx(2 * 0.5**6)
    assert mcnemar(30, 0) < 1e-8


def test_pooled_p_values_are_uniform_where_nothing_differs() -> None:
    """Samples are hard for all three pairs alike, so that outcomes of one sample hang together."""
    generator = np.random.default_rng(0)
    p_values, summed = [], []
    for _ in range(400):
        lean = generator.choice([-1, 1], 60)
        apart = np.where(generator.random((3, 60)) < 0.6, lean, 0)
        p_values.append(pooled_mcnemar_p_value(apart.sum(0).tolist()))
        summed.append(mcnemar(int((apart > 0).sum()), int((apart < 0).sum())))
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
    assert (every.images, every.differing) == (120, 37)
    assert every.p_value == pytest.approx(pooled_mcnemar_p_value([1, 2] + [3] * 30 + [-3] * 5), rel=1e-9)
    assert every.difference.mean == pytest.approx(every.second_right - every.first_right)
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


def test_tables_by_sample_are_corrected_by_themselves(runs: Runs) -> None:
    found = runs.compare("dense", "magnitude")
    for table in (found.pooled, found.by_pair):
        wanted = holm_adjusted([test.p_value for test in table])
        assert [test.corrected_p for test in table] == pytest.approx(wanted, nan_ok=True)


def test_an_image_in_several_samples_is_one(tmp_path: Path, make_record: MakeRecord, spec: RunSpec) -> None:
    """Ten samples an image, and two seeds: what differs on one image counts once."""

    class Colours(Coins):
        def draw(self, data_root: Path | None, seed: int) -> Splits:
            splits = super().draw(data_root, seed)
            return replace(splits, test=replace(splits.test, image=torch.arange(TEST_SAMPLES) // 10))

    runs = Runs(tmp_path, make_record, spec, Colours())
    for seed in (0, 1):
        runs.write("dense", seed, torch.ones(TEST_SAMPLES, dtype=torch.bool))
        runs.write("magnitude", seed, torch.arange(TEST_SAMPLES) >= 30)
    every = scope(runs.compare("dense", "magnitude").pooled, "all samples")
    assert (every.samples, every.images, every.differing) == (120, 12, 3)
    assert every.p_value == pytest.approx(2 * 0.5**3)
    net = np.tile((np.arange(TEST_SAMPLES) < 30).astype(int), 2)
    mean, half, _ = clustered_t(-net, np.tile(np.arange(TEST_SAMPLES) // 10, 2))
    assert (every.difference.mean, every.difference.half_width) == (pytest.approx(mean), pytest.approx(half))


def test_seeds(runs: Runs) -> None:
    """Three seeds: the difference is told, and not tested."""
    found = {test.metric.name: test for test in runs.compare("dense", "magnitude").by_seed}
    assert found.keys() == {"plain", "unbiased", "conflicting"}
    differences = [(85 - seed) / 120 - 110 / 120 for seed in range(3)]
    plain = found["plain"]
    assert plain.difference.mean == pytest.approx(np.mean(differences))
    assert plain.difference.half_width == pytest.approx(mean_interval(differences).half_width)
    assert plain.p_value == pytest.approx(ttest_1samp(differences, 0).pvalue)
    assert math.isnan(plain.corrected_p)
    assert not plain.decided
    assert math.isnan(found["conflicting"].p_value)


# The board's verdicts


def board_store(tmp_path: Path, seed: int = 0) -> Store:
    """A folder with a reference, a control and six methods at one sparsity, with five seeds each and two of a sixth."""
    generator, store = np.random.default_rng(seed), Store(tmp_path / "board")
    level = {
        "a": 0.45,
        "b": 0.44,
        "c": 0.42,
        "d": 0.42,
        "e": 0.36,
        "f": 0.35,
        REFERENCE: 0.44,
        "lff-dense": 0.5,
    }
    shared = generator.normal(0, 0.02, 6)
    for name, value in level.items():
        asked = 0.0 if name in (REFERENCE, "lff-dense") else 0.9
        for split in range(6 if name in ("a", REFERENCE) else 5):
            store.write(
                board_records.run(name, asked, split, value + shared[split] + generator.normal(0, 0.01))
            )
    return store


@pytest.mark.parametrize("seed", range(4))
def test_compare_and_board_say_the_same_of_the_same_rows(tmp_path: Path, seed: int) -> None:
    store = board_store(tmp_path, seed)
    (track,) = build_board(store.records()[0]).tracks
    (ranking,) = (rank_track(runs) for runs in split_tracks(store.records()[0]).values())
    rows = {row.method: row for row in track.rows}
    decided = 0
    for first, second in itertools.permutations([*rows], 2):
        if "lff-dense" in (first, second) and REFERENCE not in (first, second):
            continue
        names, pairs, _ = choose_pairs((first, second), (store, store))
        found = compare_pairs(names, pairs, None)
        assert found.board
        said = {test.metric.name: test for test in found.by_seed}
        for metric in RANKED:
            test, board = (
                said[metric],
                ranking.verdicts(0.0 if "lff-dense" in (first, second) else 0.9, metric),
            )
            assert (test.corrected_p, test.family) == (board.q(first, second), len(board.q_values))
            assert test.decided == board.decided(first, second)
            decided += test.decided
            if second == REFERENCE:
                change = rows[first].changes[metric]
                assert test.difference.mean == pytest.approx(-change.interval.mean)
                assert test.difference.half_width == pytest.approx(change.interval.half_width)
                assert (change.q_value, change.decided) == (test.corrected_p, test.decided)
        lower = said["conflicting"]
        ranks = rows[first].ranks["conflicting"], rows[second].ranks["conflicting"]
        if None not in ranks and lower.decided and lower.difference.mean < 0:
            assert ranks[1].best > 1, "who is beaten is not first"
            assert ranks[0].worst < 6, "who beats one is not last"
    assert decided


def test_seeds_beyond_the_plan_do_not_count_by_seed(tmp_path: Path) -> None:
    store = board_store(tmp_path)
    names, pairs, _ = choose_pairs(("a", REFERENCE), (store, store))
    assert names == ("a 0.9", REFERENCE)
    found = compare_pairs(names, pairs, None)
    assert len(found.pairs) == 6
    assert found.by_seed[0].difference.n == 5
    assert "By seed, seed 5 beyond the planned ones do not count, as on the board." in found.notes


def test_seeds_for_choosing_budgets_do_not_count_as_on_the_board(tmp_path: Path) -> None:
    store = board_store(tmp_path)
    for name, asked in (("a", 0.9), ("b", 0.9), (REFERENCE, 0.0)):
        for split in range(5):
            store.write(board_records.run(name, asked, TUNE_SEEDS + split, 0.1 + 0.1 * split))
    names, pairs, _ = choose_pairs(("a", "b"), (store, store))
    found = compare_pairs(names, pairs, None)
    assert found.board
    assert {test.difference.n for test in found.by_seed} == {5}
    assert any(note.startswith(f"By seed, seed {TUNE_SEEDS}") for note in found.notes)


def test_two_that_the_board_does_not_compare_are_a_family_of_their_own(tmp_path: Path) -> None:
    store = board_store(tmp_path)
    for split in range(5):
        store.write(board_records.run("a", 0.5, split, 0.6 + split / 100))
    ids = {(r.spec["method"], r.spec["sparsity"], r.spec["seed"]): r.run_id for r in store.records()[0]}
    found = compare_pairs(*choose_pairs(("e", "lff-dense"), (store, store))[:2], None)
    assert not found.board
    plain = next(test for test in found.by_seed if test.metric.name == "conflicting")
    assert (plain.corrected_p, plain.family) == (pytest.approx(plain.p_value), 1)
    one_pair = (ids["a", 0.9, 0], ids["b", 0.9, 0])
    single = compare_pairs(*choose_pairs(one_pair, (store, store))[:2], None)
    assert not single.board
    assert "one pair of runs says nothing of other seeds" in conclude(single).undecided[0]


def test_without_the_reference_it_is_said(runs: Runs) -> None:
    with pytest.raises(UsageError, match="has no run of dense-finetuned, which methods are compared with"):
        runs.compare("dense", REFERENCE)


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
    assert (every.samples, every.images, every.differing) == (240, 120, 11)
    assert every.p_value == pytest.approx(2 * 0.5**11)
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
    assert all(test.p_value < 0.01 for test in found.by_seed[:2])
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
    assert all(test.p_value < 0.01 for test in found.by_seed[:2])


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
    untested = "" if len(pairs) >= 5 else f"{len(pairs)} of at least 5 seeds"
    return Comparison("one", "two", "task", names, compare_seeds(pairs), (), (), (), untested=untested)


def test_few_seeds_are_not_tested(make_record: MakeRecord) -> None:
    said = conclude(seeds_of(make_record, [(0.5, 0.9), (0.5, 0.91), (0.5, 0.92)]))
    assert said.significant == ()
    assert said.undecided[0] == "By seed: not tested (3 of at least 5 seeds)."
    said = conclude(seeds_of(make_record, [(0.5, 0.9)]))
    assert "one pair of runs says nothing of other seeds" in said.undecided[0]


def test_enough_seeds_can_tell(make_record: MakeRecord) -> None:
    said = conclude(seeds_of(make_record, [(0.5, 0.6 + n / 100) for n in range(6)]))
    p = ttest_1samp([0.1 + n / 100 for n in range(6)], 0).pvalue
    assert said.significant == (
        f"By seed, average accuracy: two is 12.5 points higher than one (corrected p = {p:.2g}).",
    )
    said = conclude(seeds_of(make_record, [(0.5, 0.5 + n / 100) for n in range(-3, 4)]))
    assert said.significant == ()
    assert said.not_significant == ("By seed: average accuracy.",)


def test_the_same_difference_on_every_seed_is_no_evidence(make_record: MakeRecord) -> None:
    said = conclude(seeds_of(make_record, [(0.5, 0.625)] * 6))
    assert (said.significant, said.not_significant) == ((), ())
    assert said.undecided[0] == (
        "By seed, average accuracy: not tested, for the difference is the same on every seed."
    )


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
    assert "By sample, all samples: the two differ on 4 of 120 images only." in said.undecided
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
    assert "By sample, all samples: on each of 120 images, both are right as often." in said


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
