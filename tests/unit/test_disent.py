"""The DisEnt reader: every layout of the release, and what is wrong with a folder said by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from prunebench.errors import DataError, UsageError
from prunebench.models import MODELS
from prunebench.tasks import resolve_task, splits_hash
from prunebench.tasks.disent import default_budget, open_disent

# The DisEnt release and folders in its layout.

Pairs = list[tuple[int, int]]
TWO_CLASSES: dict[str, Pairs] = {
    "align": [(0, 0), (1, 1), (0, 0), (1, 1)],
    "conflict": [(0, 1), (1, 0)],
    "valid": [(1, 1), (0, 0), (0, 1)],
    "test": [(0, 0), (0, 1), (1, 0), (1, 1)],
}


@dataclass(frozen=True)
class Variant:
    """One way in which the release, or a repository that uses it, lays out its files."""

    dataset: str
    percentage: str
    valid: str
    test: str
    side: int


VARIANTS = {
    "cmnist, flat valid": Variant("cmnist", "1pct", "1pct/valid", "test/{y}", 28),
    "cmnist, nested valid": Variant("cmnist", "2pct", "2pct/valid/{y}", "test/{y}", 28),
    "cifar10c": Variant("cifar10c", "5pct", "5pct/valid/{y}", "test/{y}", 32),
    "bffhq": Variant("bffhq", "0.5pct", "valid", "test", 72),
    "bffhq, valid inside": Variant("bffhq", "0.5pct", "0.5pct/valid", "0.5pct/test", 72),
    "own folder": Variant("gears", "mine", "valid/{y}", "mine/test/{y}", 12),
}
CMNIST = VARIANTS["cmnist, flat valid"]


def pixels_of(split: str, index: int, side: int) -> NDArray[np.uint8]:
    """The image `index` of a split, `[side, side, 3]`."""
    generator = np.random.default_rng([len(split), ord(split[0]), index])
    return generator.integers(0, 256, (side, side, 3)).astype(np.uint8)


def name_of(split: str, index: int, pair: tuple[int, int]) -> str:
    """Indices from 8 on, so that names do not sort as numbers do."""
    return f"{split[0]}_{index + 8}_{pair[0]}_{pair[1]}.png"


def write_release(
    root: Path, variant: Variant = CMNIST, pairs: dict[str, Pairs] = TWO_CLASSES, **changes: int
) -> Path:
    """Write `<root>/<dataset>`, last image first, with the litter of real folders. Returns `<pct>`."""
    side = changes.get("side", variant.side)
    dataset = root / variant.dataset
    for split, members in pairs.items():
        inside = getattr(variant, split, f"{variant.percentage}/{split}/{{y}}")
        for index in reversed(range(len(members))):
            folder = dataset / inside.format(y=members[index][0])
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name_of(split, index, members[index])
            Image.fromarray(pixels_of(split, index, side)).save(path)
            for litter in (".DS_Store", f"._{path.name}", "Thumbs.db"):
                (folder / litter).write_bytes(b"\0\1")
    return dataset / variant.percentage


def expected_order(split: str, members: Pairs, *, nested: bool) -> list[int]:
    """Indices in the order of `<class>/<name>` or `<name>`."""
    names = [name_of(split, index, pair) for index, pair in enumerate(members)]
    paths = [f"{pair[0]}/{name}" if nested else name for pair, name in zip(members, names)]
    return sorted(range(len(members)), key=paths.__getitem__)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_disent_reads_every_layout_of_the_release(tmp_path: Path, variant: Variant) -> None:
    task = open_disent(str(write_release(tmp_path, variant)))
    splits = task.splits(None, 0)
    parts = {"train": ("align", "conflict"), "val": ("valid",), "test": ("test",)}
    for name, folders in parts.items():
        split, wanted = getattr(splits, name), []
        for folder in folders:
            nested = "{y}" in getattr(variant, folder, "{y}")
            order = expected_order(folder, TWO_CLASSES[folder], nested=nested)
            wanted += [(folder, index, TWO_CLASSES[folder][index]) for index in order]
        assert list(zip(split.y.tolist(), split.bias.tolist())) == [pair for _, _, pair in wanted]
        images = np.stack([pixels_of(folder, index, variant.side) for folder, index, _ in wanted])
        assert (split.x.numpy() == images.transpose(0, 3, 1, 2)).all()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_disent_describes_itself_from_the_folder(tmp_path: Path, variant: Variant) -> None:
    task = open_disent(str(write_release(tmp_path, variant)))
    shares = {"0.5pct": 0.005, "1pct": 0.01, "2pct": 0.02, "5pct": 0.05, "mine": None}
    models = {12: "convnet-small", 28: "convnet", 32: "resnet18", 72: "resnet18-imagenet"}
    assert task.name == f"disent:{variant.dataset}/{variant.percentage}"
    assert task.conflicting_share == shares[variant.percentage]
    assert (task.num_classes, task.num_biases) == (2, 2)
    assert task.model == models[variant.side]
    assert task.model in MODELS
    assert task.mean == ((0.5, 0.5, 0.5) if variant.side <= 28 else (0.4914, 0.4822, 0.4465))
    assert task.std == ((0.5, 0.5, 0.5) if variant.side <= 28 else (0.2023, 0.1994, 0.2010))


@pytest.mark.parametrize(
    ("side", "model", "steps", "batch_size"),
    [
        (16, "convnet-small", 800, 128),
        (17, "convnet", 3000, 128),
        (28, "convnet", 3000, 128),
        (29, "resnet18", 10_000, 256),
        (64, "resnet18", 10_000, 256),
        (65, "resnet18-imagenet", 10_000, 64),
    ],
)
def test_disent_budget_follows_the_image_size(side: int, model: str, steps: int, batch_size: int) -> None:
    chosen, recipe = default_budget(side)
    assert (chosen, recipe.steps, recipe.batch_size) == (model, steps, batch_size)


def test_disent_draw_ignores_the_seed_and_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write_release(tmp_path))
    task = open_disent(folder)
    first = splits_hash(task.splits(None, 0))
    assert splits_hash(task.splits(None, 1)) == first
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: reversed(list(glob(self, pattern))))
    other = open_disent(folder)
    assert splits_hash(other.splits(None, 0)) == first
    assert other.fingerprint(None) == task.fingerprint(None)


def test_disent_fingerprint_is_of_the_data_and_not_of_the_place(tmp_path: Path) -> None:
    here, there = (write_release(tmp_path / name) for name in ("here", "there"))
    first = open_disent(str(here))
    assert first.fingerprint(None) == open_disent(str(there)).fingerprint(tmp_path)
    assert len(first.fingerprint(None)) == 16
    image = max((there / "valid").glob("v_*.png"))
    Image.fromarray(pixels_of("other", 0, 28)).save(image)
    changed = open_disent(str(there)).fingerprint(None)
    image.rename(image.with_name(f"v_9{image.name.removeprefix('v')}"))
    renamed = open_disent(str(there)).fingerprint(None)
    assert len({first.fingerprint(None), changed, renamed}) == 3


def test_disent_fingerprint_is_read_once(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    task = open_disent(str(folder))
    first = task.fingerprint(None)
    next((folder / "valid").glob("v_*.png")).unlink()
    assert task.fingerprint(None) == first


def test_disent_path_is_found_from_here_then_from_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNEBENCH_DATA", raising=False)
    here, data = tmp_path / "here", tmp_path / "data"
    here.mkdir()
    write_release(data)
    monkeypatch.chdir(here)
    with pytest.raises(DataError, match="PRUNEBENCH_DATA") as caught:
        resolve_task("disent:cmnist/1pct")
    assert str(here / "cmnist" / "1pct") in str(caught.value)
    assert open_disent("cmnist/1pct", data).name == "disent:cmnist/1pct"
    monkeypatch.setenv("PRUNEBENCH_DATA", str(data))
    assert resolve_task("disent:cmnist/1pct").num_classes == 2
    write_release(here, pairs={**TWO_CLASSES, "test": [(2, 0), (2, 2)]})
    assert resolve_task("disent:cmnist/1pct").num_classes == 3
    monkeypatch.chdir(here / "cmnist" / "1pct")
    assert [resolve_task(f"disent:{path}").name for path in (".", "../1pct/", "..")] == [
        "disent:cmnist/1pct"
    ] * 3


def test_disent_dataset_with_several_percentages_leaves_the_choice_to_the_user(tmp_path: Path) -> None:
    dataset = write_release(tmp_path).parent
    assert resolve_task(f"disent:{dataset}").name == "disent:cmnist/1pct"
    write_release(tmp_path, VARIANTS["cmnist, nested valid"])
    with pytest.raises(UsageError, match="choose one of") as caught:
        resolve_task(f"disent:{dataset}/")
    assert f"disent:{dataset}/1pct, disent:{dataset}/2pct" in str(caught.value)


def test_disent_pairs_are_aligned_on_the_diagonal(tmp_path: Path) -> None:
    pairs = {**TWO_CLASSES, "test": [(2, 2), (0, 3)]}
    task = open_disent(str(write_release(tmp_path, pairs=pairs)))
    y, bias = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    before = task.aligned(y, bias)
    task.splits(None, 0)
    assert (task.aligned(y, bias) == before).all()
    assert (before == (y == bias)).all()


def test_disent_pairs_follow_the_folders_where_these_contradict_the_diagonal(tmp_path: Path) -> None:
    pairs = {**TWO_CLASSES, "align": [(0, 1), (1, 0)], "conflict": [(0, 0), (1, 1)]}
    task = open_disent(str(write_release(tmp_path, pairs=pairs)))
    y, bias = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [0, 1]])
    assert task.aligned(y, bias).tolist() == [[False, True], [True, False]]


def test_disent_pair_in_align_and_in_conflict_names_both_files(tmp_path: Path) -> None:
    folder = write_release(tmp_path, pairs={**TWO_CLASSES, "conflict": [(1, 0), (1, 1)]})
    with pytest.raises(DataError, match="label 1 and bias 1") as caught:
        open_disent(str(folder))
    assert str(folder / "conflict" / "1" / "c_9_1_1.png") in str(caught.value)
    assert str(folder / "align" / "1" / "a_") in str(caught.value)


def test_disent_reads_jpeg_and_gray_images_as_rgb(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    Image.new("L", (28, 28), 77).save(folder / "valid" / "v_1_0_1.png")
    Image.new("RGB", (28, 28), (9, 9, 9)).save(folder / "valid" / "v_2_1_0.JPG")
    Image.new("RGB", (28, 28), (200, 200, 200)).save(folder / "valid" / "v_3_1_1.jpeg")
    val = open_disent(str(folder)).splits(None, 0).val
    assert list(zip(val.y.tolist(), val.bias.tolist()))[1:4] == [(0, 1), (1, 0), (1, 1)]
    assert [int(image.float().mean().round()) for image in val.x[1:4]] == [77, 9, 200]


def test_disent_takes_the_last_two_fields_of_a_name(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    Image.new("RGB", (28, 28)).save(folder / "valid" / "5_face_00012_1_0.v2.png")
    val = open_disent(str(folder)).splits(None, 0).val
    assert (int(val.y[0]), int(val.bias[0])) == (1, 0)


@pytest.mark.parametrize("name", ["photo.png", "1.png", "a_b_c.png", "7_0_1699999999.png", "7_0_-1.png"])
def test_disent_name_without_label_and_bias_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_release(tmp_path)
    Image.new("RGB", (28, 28)).save(folder / "valid" / name)
    with pytest.raises(DataError, match=f"{name}.*rename it"):
        open_disent(str(folder))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40] + bytes(200))


def text(path: Path) -> None:
    path.write_text("<html>quota exceeded</html>")


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, empty, garble, text, delete])
@pytest.mark.parametrize("folder", ["conflict/1", "valid"])
def test_disent_damaged_image_is_named(tmp_path: Path, damage: Callable[[Path], None], folder: str) -> None:
    percentage = write_release(tmp_path)
    task = open_disent(str(percentage))
    path = min((percentage / folder).glob("[cv]_*.png"))
    damage(path)
    with pytest.raises(DataError, match="fetch this file again") as caught:
        task.splits(None, 0)
    assert str(caught.value).startswith(f"{path}: ")


def test_disent_damaged_first_image_is_named_when_the_task_opens(tmp_path: Path) -> None:
    percentage = write_release(tmp_path)
    path = min((percentage / "align" / "0").glob("a_*.png"))
    empty(path)
    with pytest.raises(DataError, match="fetch this file again") as caught:
        open_disent(str(percentage))
    assert str(path) in str(caught.value)


def test_disent_file_that_vanished_before_the_fingerprint_is_named(tmp_path: Path) -> None:
    percentage = write_release(tmp_path)
    task = open_disent(str(percentage))
    path = min((percentage / "valid").glob("v_*.png"))
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        task.fingerprint(None)


def test_disent_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    path = min((folder.parent / "test" / "1").glob("t_*.png"))
    Image.new("RGB", (28, 32)).save(path)
    with pytest.raises(DataError, match="28x32 pixels, the first training image 28x28: resize it") as caught:
        open_disent(str(folder)).splits(None, 0)
    assert str(path) in str(caught.value)


def test_disent_sixteen_bit_image_is_refused(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    path = min((folder / "valid").glob("v_*.png"))
    Image.fromarray(np.full((28, 28), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=f"{path.name} has more than 8 bits"):
        open_disent(str(folder)).splits(None, 0)


@pytest.mark.parametrize("gone", ["1pct/align", "1pct/conflict", "1pct/valid", "test"])
def test_disent_missing_folder_is_named_with_the_layout_and_the_source(tmp_path: Path, gone: str) -> None:
    percentage = write_release(tmp_path)
    (percentage.parent / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="missing") as caught:
        open_disent(str(percentage))
    message = str(caught.value)
    assert Path(gone).name in message.split(";")[0]
    assert str(percentage) in message
    assert "<dataset>/<pct>/{align,conflict}/<class>" in message
    assert "kakaoenterprise/Learning-Debiased-Disentangled" in message


def test_disent_folder_without_images_or_layout_is_refused(tmp_path: Path) -> None:
    percentage = write_release(tmp_path)
    for path in (percentage / "valid").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"valid holds no \.png"):
        open_disent(str(percentage))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match=r"align and .*conflict are missing"):
        open_disent(str(tmp_path / "bare"))
