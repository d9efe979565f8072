"""Every task keeps the contract, and damaged data is named before it can become a number."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prunebench.errors import DataError, SupervisionError, UsageError
from prunebench.models import MODELS
from prunebench.tasks import Split, Splits, Task, describe_families, resolve_task, split_hash, splits_hash
from prunebench.tasks import colored_mnist as mnist_module
from prunebench.tasks.base import data_withheld
from prunebench.tasks.colored_digits import ColoredDigits, read_digits
from prunebench.tasks.colored_mnist import FILES, ColoredMnist, read_idx, read_mnist
from prunebench.tasks.coloring import MEAN_COLOURS, assign_bias, colour

TRAIN, VAL, TEST = 2000, 400, 200


def write_idx(path: Path, values: NDArray[np.uint8], *, kind: int = 8) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=1))


def write_mnist(folder: Path) -> Path:
    """Random images and labels in the four files of MNIST."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(5)
    for count, images, labels in ((TRAIN + VAL, FILES[0], FILES[1]), (TEST, FILES[2], FILES[3])):
        write_idx(folder / f"{images}.gz", generator.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        write_idx(folder / f"{labels}.gz", generator.integers(0, 10, count).astype(np.uint8))
    return folder


@pytest.fixture
def small_val(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many validation images as the small MNIST can spare."""
    monkeypatch.setattr(mnist_module, "VAL_IMAGES", VAL)


@pytest.fixture
def mnist(tmp_path: Path, small_val: None) -> Path:
    """A data root with a small MNIST of its own, to be damaged."""
    write_mnist(tmp_path / "MNIST" / "raw")
    return tmp_path


@dataclass(frozen=True)
class Drawn:
    """A task drawn with seed 0, with seed 0 again, and with seed 1."""

    task: Task
    root: Path
    splits: Splits
    hashes: tuple[str, str, str]
    fingerprints: tuple[str, str]


COLORED = [name for name in describe_families() if name.startswith("colored-")]


@pytest.fixture(scope="module", params=COLORED)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    root = tmp_path_factory.getbasetemp() / "small-mnist"
    if not root.exists():
        write_mnist(root / "MNIST" / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist_module, "VAL_IMAGES", VAL)
        task = resolve_task(request.param)
        before = task.fingerprint(root)
        draws = [task.splits(root, seed) for seed in (0, 0, 1)]
        first, again, other = (splits_hash(splits) for splits in draws)
        after = resolve_task(request.param).fingerprint(root)
    return Drawn(task, root, draws[0], (first, again, other), (before, after))


def conflicting_by_class(split: Split) -> list[tuple[int, int]]:
    """(conflicting, all) images of every class."""
    wrong = split.y != split.bias
    return [(int(wrong[split.y == y].sum()), int((split.y == y).sum())) for y in range(10)]


# The contract, over every share of the coloured digits.


def test_shapes_and_dtypes_keep_the_contract(drawn: Drawn) -> None:
    side = 16 if drawn.task.name.startswith("colored-digits") else 28
    sizes = {"train": 4800, "val": 800, "test": 3970}
    if side == 28:
        sizes = {"train": TRAIN, "val": VAL, "test": TEST}
    for name, count in sizes.items():
        split = getattr(drawn.splits, name)
        assert split.x.dtype == torch.uint8
        assert split.x.shape == (count, 3, side, side)
        assert split.x.is_contiguous()
        for values in (split.y, split.bias):
            assert values.dtype == torch.int64
            assert values.shape == (count,)
            assert set(values.tolist()) == set(range(10))


def test_canonical_name_resolves_to_the_same_task(drawn: Drawn) -> None:
    task = drawn.task
    again = resolve_task(task.name)
    assert (again.name, again.version, again.conflicting_share) == (
        task.name,
        task.version,
        task.conflicting_share,
    )
    assert task.name == f"{task.name.split('@')[0]}@{100 * (task.conflicting_share or 0):g}pct"
    assert task.model in MODELS
    assert task.recipe.finetune_steps < task.recipe.steps


def test_one_seed_gives_one_draw_and_another_seed_another(drawn: Drawn) -> None:
    first, again, other = drawn.hashes
    assert first == again
    assert first != other


def test_train_and_val_have_the_nominal_share_of_conflicting_images(drawn: Drawn) -> None:
    share = drawn.task.conflicting_share
    assert share is not None
    for split in (drawn.splits.train, drawn.splits.val):
        by_class = conflicting_by_class(split)
        total = sum(count for count, _ in by_class)
        if drawn.task.name.startswith("colored-digits"):
            assert total == round(share * len(split))
        else:
            assert all(abs(count - share * size) <= 1 for count, size in by_class), "two rounded edges"
    assert sum(count for count, _ in conflicting_by_class(drawn.splits.train)) > 0


def test_every_label_meets_every_bias_equally_often_in_test(drawn: Drawn) -> None:
    test = drawn.splits.test
    for y in range(10):
        counts = torch.bincount(test.bias[test.y == y], minlength=10)
        spread = int(counts.max() - counts.min())
        assert int(counts.min()) > 0
        assert spread == 0 if drawn.task.name.startswith("colored-digits") else spread <= 1


def test_fingerprint_is_the_same_for_every_seed_share_and_instance(drawn: Drawn) -> None:
    before, after = drawn.fingerprints
    assert before == after
    assert len(before) == 16
    int(before, 16)
    assert type(drawn.task)(0.123).fingerprint(drawn.root) == before  # type: ignore[call-arg]


def test_aligned_pairs_are_the_diagonal(drawn: Drawn) -> None:
    y, bias = torch.tensor([0, 3, 9]), torch.tensor([0, 4, 9])
    assert drawn.task.aligned(y, bias).tolist() == [True, False, True]


def test_splits_share_out_every_source_image_once(drawn: Drawn) -> None:
    """By label: four jittered copies of a train or val digit, ten colours of a test digit; MNIST as it is."""
    splits = drawn.splits
    train, val, test = (torch.bincount(split.y) for split in (splits.train, splits.val, splits.test))
    if isinstance(drawn.task, ColoredDigits):
        source = torch.bincount(torch.from_numpy(read_digits()[1]))
        assert (train % 4 == 0).all()
        assert (train // 4 + val // 4 + test // 10 == source).all()
    else:
        labels = [np.bincount(array) for array in read_mnist(drawn.root)[1::2]]
        assert (train + val).tolist() == labels[0].tolist()
        assert test.tolist() == labels[1].tolist()


def test_colours_do_not_go_with_the_order_of_mnists_test_file(mnist: Path) -> None:
    """Each test image is found again in the file: its colour tells nothing of where (in order, it would be .99)."""
    gray = torch.from_numpy(read_mnist(mnist)[2].copy()).double().flatten(1)
    test = ColoredMnist(0.01).splits(mnist, 0).test
    shown = test.x.double().sum(1).flatten(1)
    place = torch.corrcoef(torch.cat([shown, gray]))[:TEST, TEST:].argmax(1)
    assert sorted(place.tolist()) == list(range(TEST))
    assert torch.equal(place, test.images())
    assert torch.equal(torch.from_numpy(read_mnist(mnist)[3].astype(np.int64))[place], test.y)
    assert abs(float(torch.corrcoef(torch.stack([place, test.bias]).double())[0, 1])) < 0.2


def test_each_test_digit_appears_once_in_every_colour() -> None:
    test = ColoredDigits(0.01).splits(None, 3).test
    label = test.y.view(397, 10)
    assert (label == label[:, :1]).all()
    assert (test.bias.view(397, 10) == torch.arange(10)).all()


# The colour protocol, worked out by hand.


def test_assign_bias_cuts_each_class_at_the_rounded_cumulative_shares() -> None:
    y = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 2, 2, 2])
    # share 0.4 of 3 biases: 0.6 on the diagonal, 0.2 on each other value.
    # Edges of the five samples of class 0: 3 4 5; five of class 1: 1 4 5; three of class 2: 1 1 3.
    expected = [0, 0, 0, 1, 1, 0, 1, 1, 2, 2, 0, 2, 2]
    assert assign_bias(y, 0.4, num_biases=3).tolist() == expected


def test_assign_bias_counts_are_exact_by_class() -> None:
    y = np.repeat([0, 7], 1800)
    bias = assign_bias(y, 0.05)
    assert np.bincount(bias[y == 0], minlength=10).tolist() == [1710, *[10] * 9]
    assert np.bincount(bias[y == 7], minlength=10).tolist() == [*[10] * 7, 1710, 10, 10]


def test_share_of_nine_tenths_is_the_uniform_assignment() -> None:
    y = np.tile(np.arange(10), 30)
    bias = assign_bias(y, 0.9)
    assert all((np.bincount(bias[y == label], minlength=10) == 3).all() for label in range(10))


def test_share_of_zero_leaves_no_conflicting_sample() -> None:
    y = np.arange(10).repeat(7)
    assert (assign_bias(y, 0.0) == y).all()


class FixedNoise:
    """A generator whose every normal deviate is `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def standard_normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return np.full(shape, self.value)


@pytest.mark.parametrize(
    ("bias", "noise", "severity", "expected"),
    [
        # colour 4 = (0.088, 0.778, 0.982), without noise.
        (4, 0.0, 4, [(22, 9, 0), (198, 78, 0), (250, 98, 0)]),
        # severity 4 adds 0.005 to each channel: 0.093 0.783 0.987.
        (4, 1.0, 4, [(24, 9, 0), (200, 78, 0), (252, 99, 0)]),
        # severity 1 adds 0.05, clamped at one: 0.138 0.828 1.
        (4, 1.0, 1, [(35, 14, 0), (211, 83, 0), (255, 100, 0)]),
        # colour 8 = (0.208, 0.393, 0.019) less 0.05, clamped at zero: 0.158 0.343 0.
        (8, -1.0, 1, [(40, 16, 0), (87, 34, 0), (0, 0, 0)]),
    ],
)
def test_colour_is_gray_times_the_clamped_tint(
    bias: int, noise: float, severity: int, expected: list[tuple[int, int, int]]
) -> None:
    gray = np.array([[[255, 100, 0]]], dtype=np.uint8)
    painted = colour(gray, np.array([bias]), FixedNoise(noise), severity)  # type: ignore[arg-type]
    assert painted.shape == (1, 3, 1, 3)
    assert [tuple(row) for row in painted[0, :, 0].tolist()] == expected


def test_an_image_has_one_tint_and_two_images_of_a_colour_have_two() -> None:
    gray = np.full((2, 4, 4), 255, dtype=np.uint8)
    painted = colour(gray, np.array([1, 1]), np.random.default_rng(0), severity=1)
    assert (painted == painted[:, :, :1, :1]).all()
    assert (painted[0] != painted[1]).any()
    assert MEAN_COLOURS.shape == (10, 3)


# Names.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("colored-digit@1pct", "did you mean colored-digits@1pct"),
        ("colored-mnist@3pct", "did you mean colored-mnist@"),
        ("colored-digits@1", "did you mean colored-digits@1pct"),
        ("zzz", "known: "),
        ("zzz", "colored-digits@0.5pct"),
        ("", "disent:PATH"),
        ("colored-digits", "needs its share of bias-conflicting images: colored-digits@2pct"),
        ("colored-digits@", "needs its share"),
        ("disent:", "needs the path of a folder"),
    ],
)
def test_unknown_names_are_usage_errors_that_suggest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_task(name)
    assert message in str(caught.value)


def test_no_task_can_be_loaded_while_a_method_fits() -> None:
    task = ColoredDigits(0.05)
    with data_withheld(), pytest.raises(SupervisionError, match="work with the `experiment`"):
        task.splits(None, 0)
    with pytest.raises(ValueError, match="inside"), data_withheld():
        raise ValueError("inside")
    assert len(task.splits(None, 0).test) == 3970


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "x: want uint8"),
        (torch.zeros(2, 3, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "x: want uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "y: want int64"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            r"y: want int64 \[2\]",
        ),
    ],
)
def test_split_refuses_what_breaks_the_contract(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Split(x, y, torch.zeros(2, dtype=torch.int64))


# MNIST files: missing, damaged, or not what they say.


def test_mnist_without_a_data_root_says_how_to_get_it() -> None:
    with pytest.raises(DataError) as caught:
        ColoredMnist(0.01).splits(None, 0)
    assert "--data-root" in str(caught.value)
    assert "torchvision.datasets import MNIST" in str(caught.value)


def test_mnist_that_is_nowhere_says_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ColoredMnist(0.01).splits(tmp_path, 0)
    assert str(tmp_path / "MNIST" / "raw" / FILES[0]) in str(caught.value)
    assert "download=True" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_missing_mnist_file_is_named(mnist: Path, name: str) -> None:
    (mnist / "MNIST" / "raw" / f"{name}.gz").unlink()
    with pytest.raises(DataError, match=f"lacks {name} \\(plain or .gz\\)"):
        ColoredMnist(0.01).fingerprint(mnist)


@pytest.mark.parametrize("below", ["MNIST/raw", "raw", "."])
def test_mnist_is_found_at_each_place_plain_or_gzipped(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory, below: str
) -> None:
    folder = tmp_path_factory.mktemp("plain") / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        packed = (mnist / "MNIST" / "raw" / f"{name}.gz").read_bytes()
        (folder / name).write_bytes(gzip.decompress(packed))
    root = folder.parents[len(Path(below).parts) - 1] if below != "." else folder
    assert ColoredMnist(0.01).fingerprint(root) == ColoredMnist(0.01).fingerprint(mnist)


def cut_the_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_the_body(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def cut_the_header(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\0\0"))


def not_gzip(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


def wrong_kind(path: Path) -> None:
    write_idx(path, np.zeros((3, 28, 28), dtype=np.uint8), kind=13)


def wrong_magic(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(100)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_the_gzip, "end-of-stream|ended"),
        (cut_the_body, "truncated"),
        (cut_the_header, "buffer"),
        (not_gzip, "gzip"),
        (wrong_kind, "not an idx file"),
        (wrong_magic, "not an idx file"),
    ],
)
def test_damaged_mnist_names_the_file_the_reason_and_the_fix(
    mnist: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path = mnist / "MNIST" / "raw" / f"{FILES[0]}.gz"
    damage(path)
    with pytest.raises(DataError, match=reason) as caught:
        ColoredMnist(0.01).splits(mnist, 0)
    assert str(path) in str(caught.value)
    assert "delete it and fetch MNIST again" in str(caught.value)


def test_mnist_counts_that_disagree_are_refused(mnist: Path) -> None:
    write_idx(mnist / "MNIST" / "raw" / f"{FILES[3]}.gz", np.zeros(TEST - 1, dtype=np.uint8))
    with pytest.raises(DataError, match=f"{FILES[2]}.*{TEST}.*{TEST - 1}"):
        ColoredMnist(0.01).splits(mnist, 0)


def test_mnist_label_beyond_nine_is_refused(mnist: Path) -> None:
    path = mnist / "MNIST" / "raw" / FILES[1]
    labels = read_idx(path).copy()
    labels[:] = 11
    write_idx(path.with_name(path.name + ".gz"), labels)
    with pytest.raises(DataError, match=r"train\.y is outside 0\.\.9"):
        ColoredMnist(0.01).splits(mnist, 0)


def test_mnist_too_small_for_its_validation_images_is_refused(
    mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_module, "VAL_IMAGES", TRAIN + VAL)
    with pytest.raises(DataError, match="the train split is empty"):
        ColoredMnist(0.01).splits(mnist, 0)


def test_mnist_fingerprint_sees_one_changed_pixel(mnist: Path) -> None:
    before = ColoredMnist(0.01).fingerprint(mnist)
    path = mnist / "MNIST" / "raw" / FILES[2]
    images = read_idx(path).copy()
    images[0, 0, 0] ^= 1
    write_idx(path.with_name(path.name + ".gz"), images)
    assert ColoredMnist(0.01).fingerprint(mnist) != before


def real_mnist() -> Path | None:
    """The user's own data root, where it holds MNIST."""
    root = os.environ.get("PRUNEBENCH_DATA")
    if root and any((Path(root) / "MNIST" / "raw" / (FILES[0] + ending)).is_file() for ending in ("", ".gz")):
        return Path(root)
    return None


@pytest.mark.skipif(real_mnist() is None, reason="PRUNEBENCH_DATA names no folder with MNIST")
def test_one_percent_of_the_real_mnist_is_551_conflicting_images() -> None:
    splits = ColoredMnist(0.01).splits(real_mnist(), 0)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [55_000, 5_000, 10_000]
    assert int((splits.train.y != splits.train.bias).sum()) == 551


@pytest.mark.parametrize("name", ["colored-mnist@1pct", "backdoor@mnist/even/yellow"])
def test_a_fresh_draw_of_mnist_paints_the_same_test_images_otherwise(
    name: str, mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunebench.tasks.backdoor.VAL_IMAGES", VAL)
    task = resolve_task(name, mnist)
    public, drawn = task.splits(mnist, 0), task.refreshed((1, 2, 3)).splits(mnist, 0)
    assert split_hash(public.train) == split_hash(drawn.train)
    assert split_hash(public.val) == split_hash(drawn.val)
    order = [torch.argsort(splits.test.images()) for splits in (public, drawn)]
    assert public.test.y[order[0]].equal(drawn.test.y[order[1]])
    assert not public.test.bias[order[0]].equal(drawn.test.bias[order[1]])
    assert torch.bincount(public.test.bias).equal(torch.bincount(drawn.test.bias))
