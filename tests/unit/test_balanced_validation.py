"""Balanced validation: every group as frequent, no image from train or test; and the image that a sample shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_folder import make_images, write_python

from prunebench.cli.groups import balance_remarks
from prunebench.data.transforms import ImageTransform, add_yellow_corner
from prunebench.errors import SupervisionError
from prunebench.metrics.groups import GroupTable
from prunebench.metrics.recorded.accuracy import conflicting_seen, conflicting_unseen
from prunebench.runner.evaluate import TaskData
from prunebench.runner.ground_truth import GroundTruth
from prunebench.tasks import Split, Splits, Task, resolve_task, splits_hash
from prunebench.tasks.balanced import balanced_validation, equally_many, groups_of, taken
from prunebench.tasks.colored_digits import ColoredDigits, read_digits, split_digits

CPU = torch.device("cpu")
DIGITS = ("colored-digits@2pct", "digit-attributes", "backdoor@digits/even/yellow")
PHOTOS = ("cifar10s", "corrupted-cifar10@5pct", "cifar10-longtail", "cifar10-backgrounds")


def counts(task: Task, split: Split) -> list[int]:
    """Samples of every group that occurs."""
    return [count for count in torch.bincount(groups_of(task, split)).tolist() if count]


@pytest.mark.parametrize("name", DIGITS)
def test_every_group_is_as_frequent_and_no_image_is_from_train_or_test(name: str) -> None:
    task = resolve_task(name)
    for seed in (0, 1):
        splits = task.splits(None, seed)
        before = splits_hash(splits)
        part = balanced_validation(task, splits, seed)()
        again = balanced_validation(task, task.splits(None, seed), seed)()
        found = counts(task, part)
        assert len(found) == task.num_classes * task.num_biases
        assert len(set(found)) == 1
        assert set(part.images().tolist()) <= set(splits.val.images().tolist())
        for other in (splits.train, splits.test):
            assert not set(part.images().tolist()) & set(other.images().tolist())
        assert torch.equal(part.x, again.x)
        assert torch.equal(part.bias, again.bias)
        assert before == splits_hash(splits) == splits_hash(task.splits(None, seed)), "the draw stays"


def test_colored_digits_are_shown_in_every_colour() -> None:
    """200 validation digits, of each class as many as of the rarest, each in ten colours."""
    task = ColoredDigits(0.02)
    part = balanced_validation(task, task.splits(None, 3), 3)()
    label = read_digits()[1]
    _, val, _ = split_digits(len(label), np.random.default_rng([3, 16_807]))
    fewest = int(np.bincount(label[val]).min())
    assert counts(task, part) == [fewest] * 100
    assert torch.equal(torch.from_numpy(label)[part.images()], part.y)
    assert torch.bincount(part.images()).unique().tolist() == [0, 10]
    red, blue = (part.x[part.bias == bias].float().mean((0, 2, 3)) for bias in (0, 6))
    assert red.argmax() == 0
    assert blue.argmax() == 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar")
    write_python(root, *make_images(400))
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))


def test_equally_many_takes_as_many_of_each_as_of_the_rarest() -> None:
    group = np.array([3, 3, 3, 5, 5, 9, 9, 9, 9])
    found = equally_many(group, np.random.default_rng(0))
    assert sorted(group[found].tolist()) == [3, 3, 5, 5, 9, 9]
    assert len(set(found.tolist())) == 6
    assert sorted(group[equally_many(group, np.random.default_rng(0), multiple_of=2)]) == [3, 3, 5, 5, 9, 9]
    assert len(equally_many(group, np.random.default_rng(0), multiple_of=3)) == 0


def test_streamed_images_keep_their_mark_and_their_place() -> None:
    x = torch.arange(4 * 8 * 8 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(4, 8, 8, 3)
    marked = torch.tensor([True, False, True, False])
    y, bias = torch.tensor([0, 0, 1, 1]), marked.long()
    split = Split(x.permute(0, 3, 1, 2), y, bias, "known", ImageTransform(marked, add_yellow_corner))
    part = taken(split, np.array([2, 1]))
    assert torch.equal(part.pictures([0, 1]), split.pictures([2, 1]))
    assert part.x.permute(0, 2, 3, 1).is_contiguous()
    assert (part.digest or "").startswith("known ")
    assert part.images().tolist() == [2, 1]


class Lacking(Task):
    """Two classes and biases; validation has no image of (1, 0)."""

    name, version, title, source, bias_name = "lacking", 1, "Lacking", "made up", "bias"
    num_classes = num_biases = 2
    conflicting_share = None

    def fingerprint(self, data_root: Path | None) -> str:
        return "0" * 16

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        def split(*pairs: tuple[int, int]) -> Split:
            y, bias = torch.tensor(pairs).T.contiguous()
            return Split(torch.zeros(len(pairs), 3, 8, 8, dtype=torch.uint8), y, bias)

        every = ((0, 0), (0, 1), (1, 0), (1, 1))
        return Splits(split(*every[:3], (0, 0)), split((0, 0), (0, 0), (0, 1), (1, 1)), split(*every))


def test_groups_without_a_validation_image_are_named() -> None:
    task = Lacking()
    part = TaskData(task, None, 0, CPU).visible_balanced("val-groups")
    assert part is not None
    assert part.missing_groups == ((1, 0),)
    assert len(part) == 3
    assert sorted(zip(part.y.tolist(), part.bias.tolist())) == [(0, 0), (0, 1), (1, 1)]
    (remark,) = balance_remarks(task, task.splits(None, 0))
    assert "1 groups (label, bias): (1, 0)" in remark
    digits = ColoredDigits(0.02)
    assert balance_remarks(digits, digits.splits(None, 0)) == (), "made anew, nothing is missing"


def test_only_declared_methods_are_served() -> None:
    data = TaskData(ColoredDigits(0.02), None, 0, CPU)
    for supervision in ("none", "bias-rate"):
        assert data.visible_balanced(supervision) is None
    assert "val_balanced" not in data.images
    for supervision in ("val-groups", "train-groups"):
        part = data.visible_balanced(supervision)
        assert part is not None
        assert len(part.bias) == len(part.images) == len(part)
    assert data.intact
    data.images["val_balanced"]._bytes.zero_()
    assert not data.intact
    with pytest.raises(SupervisionError):
        _ = data.visible("val", "none").bias


@pytest.mark.parametrize("name", PHOTOS)
def test_photographs_are_balanced_too(name: str, photos: Path) -> None:
    task = resolve_task(name)
    splits = task.splits(photos, 0)
    part = balanced_validation(task, splits, 0)()
    found = counts(task, part)
    assert len(set(found)) <= 1
    assert set(part.images().tolist()) <= set(splits.val.images().tolist())
    if name == "cifar10s":
        half = len(part) // 2
        assert len(found) == 20
        assert torch.equal(part.images()[:half], part.images()[half:])
    if name == "cifar10-longtail":
        assert len(found) == 10


# Which image a sample shows, and groups that training has no image of.


@pytest.mark.parametrize(("name", "copies"), [(DIGITS[0], 10), (DIGITS[1], 10), (DIGITS[2], 10)])
def test_samples_of_one_test_digit_share_its_number(name: str, copies: int) -> None:
    task = resolve_task(name)
    first, other = (GroundTruth.of(task, task.splits(None, seed)).image["test"] for seed in (0, 1))
    assert first.dtype == torch.int64
    assert torch.equal(first, other)
    numbers, count = first.unique(return_counts=True)
    assert len(numbers) == 397
    assert set(count.tolist()) == {copies}


def test_a_task_that_says_nothing_has_an_image_a_sample(photos: Path) -> None:
    assert GroundTruth.of(Lacking(), Lacking().splits(None, 0)).image["test"].tolist() == [0, 1, 2, 3]
    image = GroundTruth.of(resolve_task("cifar10s"), resolve_task("cifar10s").splits(photos, 0)).image["test"]
    half = len(image) // 2
    assert torch.equal(image[:half], image[half:])
    assert len(image.unique()) == half


def test_conflicting_groups_are_split_by_whether_training_has_them() -> None:
    eye = torch.eye(2, dtype=torch.bool)
    index = torch.arange(2)
    table = GroupTable(torch.full((2, 2), 10), torch.tensor([[9, 4], [2, 8]]), eye, index, index)
    train = torch.tensor([[50, 3], [0, 50]])
    assert conflicting_seen(table, train) == pytest.approx(0.4)
    assert conflicting_unseen(table, train) == pytest.approx(0.2)
    everywhere = torch.ones(2, 2)
    assert conflicting_seen(table, everywhere) == pytest.approx(0.3)
    assert np.isnan(conflicting_unseen(table, everywhere))
