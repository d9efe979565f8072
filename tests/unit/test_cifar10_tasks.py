"""The tasks of CIFAR-10 whose bias is in the photographs: backgrounds, greyness, a long tail."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_folder import make_images, write_python

from prunebench.data.transforms import turn_grey
from prunebench.errors import DataError, UsageError
from prunebench.metrics.groups import group_accuracy
from prunebench.models import MODELS
from prunebench.tasks import Splits, resolve_task, splits_hash
from prunebench.tasks.cifar10 import CLASSES, Cifar10, read_cifar10
from prunebench.tasks.cifar10_backgrounds import (
    BACKGROUNDS,
    BLUE,
    LABELS,
    label_test,
    name_border,
    read_backgrounds,
)
from prunebench.tasks.cifar10_longtail import thinned
from prunebench.tasks.cifar10s import MOSTLY_GREY

NAMES = ("cifar10-backgrounds", "cifar10s", "cifar10-longtail")
PUBLISHED = {
    "airplane": (85, 112, 609, 81, 7, 102), "automobile": (177, 262, 147, 130, 34, 230),
    "bird": (453, 58, 179, 32, 32, 237), "cat": (171, 130, 137, 57, 84, 299), "deer": (604, 27, 99, 8, 25, 227),
    "dog": (271, 90, 124, 39, 81, 297), "frog": (417, 64, 75, 56, 49, 238), "horse": (493, 29, 108, 41, 50, 251),
    "ship": (71, 88, 711, 45, 15, 56), "truck": (121, 180, 278, 187, 24, 177),
}  # fmt: skip
"""Test images of each class by background, as CIFAR-B counts them."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 made-up images, 200 a batch."""
    folder = tmp_path_factory.mktemp("cifar")
    write_python(folder, *make_images(200))
    return folder


@pytest.fixture(scope="module")
def real() -> Path:
    given = os.environ.get("PRUNEBENCH_DATA")
    if not given:
        pytest.skip("PRUNEBENCH_DATA is not set")
    try:
        read_cifar10(Path(given))
    except DataError as error:
        pytest.skip(str(error))
    return Path(given)


def counts(splits: Splits, name: str, biases: int) -> torch.Tensor:
    """Images by class and bias."""
    split = getattr(splits, name)
    return torch.bincount(split.y * biases + split.bias, minlength=10 * biases).view(10, biases)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract(name: str, root: Path) -> None:
    task = resolve_task(name)
    first, again, other = (task.splits(root, seed) for seed in (0, 0, 1))
    assert (task.name, task.model) == (name, "resnet8")
    assert task.model in MODELS
    assert splits_hash(first) == splits_hash(again) != splits_hash(other)
    assert torch.equal(first.test.x, other.test.x), "one test split for every seed"
    assert first.train.x.shape[1:] == (3, 32, 32)
    assert first.train.x.is_contiguous()
    assert len(task.fingerprint(root)) == 16
    with pytest.raises(UsageError, match="takes no parameter"):
        resolve_task(f"{name}@1pct")
    with pytest.raises(DataError, match="--data-root"):
        task.splits(None, 0)


@pytest.mark.parametrize("name", NAMES)
def test_too_small_to_split(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = make_images(10)
    small = Cifar10(images[:3], labels[:3].astype(np.int64), 2, official=True)
    monkeypatch.setattr("prunebench.tasks.cifar10.read_cifar10", lambda _: small)
    with pytest.raises(DataError, match=f"{name}.*too small"):
        resolve_task(name).splits(None, 0)


# --- backgrounds -------------------------------------------------------------------------------------------


def test_the_labels_are_those_that_cifar_b_counts() -> None:
    labels = read_backgrounds()
    assert labels.shape == (10, 1000)
    for row, name in zip(labels, CLASSES):
        assert tuple(np.bincount(row, minlength=8)[:6]) == PUBLISHED[name]
    assert [int((labels == value).sum()) for value in (6, 7)] == [168, 271]
    notice = LABELS.read_text()
    assert "Copyright (c) 2023 Ming-Chang Chiu" in notice
    assert "BSD 3-Clause" in notice


@pytest.mark.parametrize(
    ("colour", "background"),
    [
        ((100, 110, 109), "blue"),
        ((100, 112, 109), "grey or indoor"),
        ((100, 108, 108), "grey or indoor"),
        ((60, 120, 200), "blue"),
        ((90, 130, 60), "green"),
        ((230, 225, 220), "white"),
        ((30, 25, 20), "dark"),
        ((150, 110, 70), "brown or other"),
    ],
)
def test_a_border_has_a_name(colour: tuple[int, int, int], background: str) -> None:
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:] = colour
    image[:, 1:-1, 1:-1] = 255 - image[:, 1:-1, 1:-1]
    assert BACKGROUNDS[name_border(image)[0]] == background


def test_planes_and_ships_are_aligned_before_blue() -> None:
    task = resolve_task("cifar10-backgrounds")
    y, bias = torch.meshgrid(torch.arange(10), torch.arange(6), indexing="ij")
    pairs = task.aligned(y, bias)
    assert pairs.dtype == torch.bool
    blue_aligned = [CLASSES[label] for label in range(10) if pairs[label, BLUE]]
    assert blue_aligned == ["airplane", "ship"]
    assert all(pairs[label, other] != pairs[label, BLUE] for label in range(10) for other in (0, 1, 3, 4, 5))


def test_labels_that_are_of_other_images_are_remarked(root: Path) -> None:
    (remark,) = resolve_task("cifar10-backgrounds").remarks(root)
    assert "not CIFAR-10's test images" in remark


def test_backgrounds_of_the_real_photographs(real: Path) -> None:
    task, source = resolve_task("cifar10-backgrounds"), read_cifar10(real)
    assert task.remarks(real) == ()
    border = name_border(source.images)
    blue = [(border[: source.train][source.labels[: source.train] == k] == BLUE).mean() for k in range(10)]
    assert blue[CLASSES.index("ship")] == pytest.approx(0.66, abs=0.005)
    assert blue[CLASSES.index("airplane")] == pytest.approx(0.52, abs=0.005)
    assert all(
        0.04 <= share <= 0.24 for share, name in zip(blue, CLASSES) if name not in ("ship", "airplane")
    )
    people, seen = label_test(source), border[source.test]
    assert (seen[people == BLUE] == BLUE).mean() == pytest.approx(0.73, abs=0.005)
    assert all(0.02 <= (seen[people == k] == BLUE).mean() <= 0.09 for k in range(6) if k != BLUE)
    assert (seen == people)[people < 6].mean() == pytest.approx(0.67, abs=0.01)
    splits = task.splits(real, 0)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [45_000, 5_000, 9_561]
    assert [tuple(row) for row in counts(splits, "test", 6).tolist()] == list(PUBLISHED.values())
    conflicting = ~task.aligned(splits.train.y, splits.train.bias)
    assert float(conflicting.double().mean()) == pytest.approx(task.conflicting_share, abs=0.005)
    assert (counts(splits, "train", 6) > 0).all(), "every test group has training images"
    order = source.shuffled(0)[0]
    assert np.array_equal(splits.train.x[7].permute(1, 2, 0).numpy(), source.images[order[7]]), "not edited"


# --- grey or in colour -------------------------------------------------------------------------------------


def test_five_classes_are_mostly_grey_and_five_in_colour(root: Path) -> None:
    task = resolve_task("cifar10s")
    splits = task.splits(root, 0)
    table = counts(splits, "train", 2).double()
    grey = table[:, 1] / table.sum(1)
    for label, name in enumerate(CLASSES):
        assert float(grey[label]) == pytest.approx(0.95 if name in MOSTLY_GREY else 0.05, abs=0.01)
    is_grey = (splits.train.x == splits.train.x[:, :1]).flatten(1).all(1)
    assert torch.equal(is_grey, splits.train.bias == 1)
    conflicting = ~task.aligned(splits.train.y, splits.train.bias)
    assert float(conflicting.double().mean()) == pytest.approx(task.conflicting_share, abs=0.01)


def test_every_test_image_is_shown_both_ways(root: Path) -> None:
    test = resolve_task("cifar10s").splits(root, 0).test
    colour, grey = test.x.chunk(2)
    assert test.bias.chunk(2)[0].eq(0).all()
    assert test.bias.chunk(2)[1].eq(1).all()
    assert torch.equal(*test.y.chunk(2))
    assert torch.equal(grey, turn_grey(colour))


# --- a long tail -------------------------------------------------------------------------------------------


def test_the_tail_is_that_of_cifar_10_lt() -> None:
    assert thinned(5000) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_fall_and_groups_are_classes(root: Path) -> None:
    task = resolve_task("cifar10-longtail")
    splits = task.splits(root, 0)
    both = counts(splits, "train", 2) + counts(splits, "val", 2)
    assert both.sum(1).tolist() == thinned(100)
    assert counts(splits, "test", 2).tolist() == [[20, 0]] * 5 + [[0, 20]] * 5
    label, bias = splits.test.y, splits.test.bias
    prediction = torch.where(label == 9, 0, label)
    y, columns = torch.meshgrid(torch.arange(10), torch.arange(2), indexing="ij")
    table = group_accuracy(prediction, label, bias, aligned_pair=task.aligned(y, columns))
    assert (table.unbiased, table.aligned, table.worst_group) == (pytest.approx(0.9), 1.0, 0.0)
    assert table.conflicting == pytest.approx(0.8), "the mean recall of the rare classes"


def test_the_share_of_rare_classes(real: Path) -> None:
    task = resolve_task("cifar10-longtail")
    splits = task.splits(real, 0)
    assert len(splits.train) + len(splits.val) == 12_406
    assert float(splits.train.bias.double().mean()) == pytest.approx(task.conflicting_share, abs=0.001)
