"""CelebA in its official format: files, labels, crops, and the paper's suite from end to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from celeba_folder import COUNTS, SIZE, labels_of, partition_of, write_celeba, write_csv, write_txt
from PIL import Image

from prunebench.api import make_plan
from prunebench.data.images import StreamedImages
from prunebench.errors import DataError, UsageError
from prunebench.results.store import Store
from prunebench.runner.evaluate import TaskData
from prunebench.suites import SUITES
from prunebench.tasks import resolve_task, splits_hash
from prunebench.tasks.celeba import ATTRIBUTES, CelebA, find_layout, read_listing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_celeba(tmp_path_factory.mktemp("celeba"))


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEBENCH_CACHE", str(tmp_path_factory.mktemp("decoded")))
        yield


def link_images(faces: Path, folder: Path) -> None:
    """The images again, in another place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(faces / "img_align_celeba")


def files_alone(folder: Path) -> Path:
    """The text files and one empty image: enough for what never decodes."""
    (folder / "img_align_celeba").mkdir()
    (folder / "img_align_celeba" / "000001.jpg").touch()
    write_txt(folder, labels_of(), partition_of())
    return folder


# Files


def test_labels_are_those_of_the_files(faces: Path) -> None:
    listing, y = read_listing(faces), labels_of()
    assert listing.names == tuple(f"{position:06d}.jpg" for position in range(1, sum(COUNTS) + 1))
    assert (listing.y == y).all()
    assert listing.counts == COUNTS
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 40
    # The places that the literature gives for the identity attributes, counted from 0.
    assert [ATTRIBUTES.index(name) for name in ("Male", "Young", "Chubby", "Pale_Skin")] == [20, 39, 13, 26]


@pytest.mark.parametrize("layout", ["csv", "torchvision", "official", "kaggle"])
def test_every_layout_gives_the_same_task(faces: Path, tmp_path: Path, layout: str) -> None:
    base = {"torchvision": tmp_path / "celeba", "official": tmp_path / "CelebA"}.get(layout, tmp_path)
    base.mkdir(exist_ok=True)
    if layout in ("csv", "kaggle"):
        write_csv(base, labels_of(), partition_of())
    else:
        write_txt(base, labels_of(), partition_of())
    if layout == "official":
        for folder, name in (("Anno", "list_attr_celeba.txt"), ("Eval", "list_eval_partition.txt")):
            (base / folder).mkdir()
            (base / name).rename(base / folder / name)
    images = {"official": "Img/img_align_celeba", "kaggle": "img_align_celeba/img_align_celeba"}
    link_images(faces, base / images.get(layout, "img_align_celeba"))
    assert CelebA().fingerprint(tmp_path) == CelebA().fingerprint(faces)


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = files_alone(tmp_path) / "list_attr_celeba.txt"
    count, header, *rows = path.read_text().splitlines()
    turned = [f"{row.split()[0]} {' '.join(reversed(row.split()[1:]))}" for row in rows]
    path.write_text("\n".join([count, " ".join(reversed(header.split())), *turned]))
    assert (read_listing(tmp_path).y == labels_of()).all()


def test_splits_may_lie_in_any_order(faces: Path, tmp_path: Path) -> None:
    partition = [position % 3 for position in range(sum(COUNTS))]
    link_images(faces, tmp_path / "img_align_celeba")
    write_txt(tmp_path, labels_of(), partition)
    splits, whole = CelebA().splits(tmp_path, 0), CelebA().splits(faces, 0)
    everything = torch.cat([whole.train.x, whole.val.x, whole.test.x])
    for number, split in enumerate((splits.train, splits.val, splits.test)):
        assert torch.equal(split.x, everything[number::3])
        assert (split.y.numpy() == labels_of()[number::3]).all()


def test_no_data() -> None:
    with pytest.raises(DataError, match="pass --data-root DIR"):
        CelebA().fingerprint(None)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no CelebA in .* or .*celeba or .*CelebA.*mmlab\.ie\.cuhk\.edu\.hk"):
        find_layout(tmp_path)
    write_txt(tmp_path, labels_of(), partition_of())
    with pytest.raises(DataError, match=r"lacks img_align_celeba or .* unpack img_align_celeba\.zip"):
        find_layout(tmp_path)
    (tmp_path / "img_align_celeba").mkdir()
    with pytest.raises(DataError, match=r"img_align_celeba holds no \.jpg images"):
        find_layout(tmp_path)
    (tmp_path / "img_align_celeba" / "000001.jpg").touch()
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"lacks list_eval_partition\.txt or Eval"):
        find_layout(tmp_path)


def damage(path: Path, old: str, new: str, *, line: int) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new, 1)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "line", "old", "new", "message"),
    [
        ("list_attr_celeba.txt", 0, "120", "121", "says that it has 121 images, but has 120"),
        ("list_attr_celeba.txt", 1, "Goatee", "Goat", "lacks the attributes Goatee"),
        ("list_attr_celeba.txt", 7, "1", "x", r"the row of x?0*\w*\.jpg|differ first"),
        ("list_attr_celeba.txt", 7, " 1", "", "the row of 000006.jpg: 39 values, 40 in the first row"),
        ("list_attr_celeba.txt", 7, " 1", " 7", "attributes must be 1 or -1"),
        ("list_attr_celeba.txt", 7, " 1", " 257", "attributes must be 1 or -1"),
        ("list_attr_celeba.txt", 7, " 1", " one", "the row of 000006.jpg"),
        ("list_attr_celeba.txt", 7, "000006", "000600", "differ first at 000600.jpg and 000006.jpg"),
        ("list_eval_partition.txt", 5, " 0", " 3", "a row must be a name and 0, 1 or 2"),
        ("list_eval_partition.txt", 5, " 0", "", "the row of 000006.jpg"),
        ("list_eval_partition.txt", 119, "000120.jpg 2", "", "lists 120 images and .* 119"),
    ],
)  # fmt: skip
def test_damaged_lists(tmp_path: Path, name: str, line: int, old: str, new: str, message: str) -> None:
    damage(files_alone(tmp_path) / name, old, new, line=line)
    with pytest.raises(DataError, match=message):
        read_listing(tmp_path)


def test_an_empty_or_binary_list(tmp_path: Path) -> None:
    path = files_alone(tmp_path) / "list_attr_celeba.txt"
    path.write_text("")
    with pytest.raises(DataError, match="lists no images"):
        read_listing(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="fetch it again"):
        read_listing(tmp_path)


# The task


def test_splits_keep_the_contract(faces: Path) -> None:
    task = resolve_task("celeba")
    splits, y = task.splits(faces, 0), labels_of()
    start = 0
    for split, count in zip((splits.train, splits.val, splits.test), COUNTS):
        assert split.x.shape == (count, 3, SIZE[1], SIZE[0])
        assert (split.y.numpy() == y[start : start + count]).all()
        assert (split.bias.numpy() == y[start : start + count, ATTRIBUTES.index("Male")]).all()
        start += count
    with Image.open(faces / "img_align_celeba" / f"{COUNTS[0] + 1:06d}.jpg") as image:
        assert (splits.val.x[0].permute(1, 2, 0).numpy() == np.asarray(image)).all()
    assert len({split.digest for split in (splits.train, splits.val, splits.test)}) == 3
    assert splits_hash(splits) == splits_hash(task.splits(faces, 7)), "seeds do not change the data"
    assert task.num_outputs == 40


def test_one_changed_pixel_or_label_changes_the_fingerprint(faces: Path, tmp_path: Path) -> None:
    shutil.copytree(faces, tmp_path / "celeba")
    before = CelebA().fingerprint(tmp_path)
    assert before == CelebA().fingerprint(faces)
    damage(tmp_path / "celeba" / "list_attr_celeba.txt", " 1", "-1", line=9)
    relabelled = CelebA().fingerprint(tmp_path)
    Image.new("RGB", SIZE).save(tmp_path / "celeba" / "img_align_celeba" / "000001.jpg")
    assert len({before, relabelled, CelebA().fingerprint(tmp_path)}) == 3


def test_blond_women_and_men_who_are_not_blond_are_aligned() -> None:
    y, bias = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert resolve_task("celeba").aligned(y, bias).tolist() == [False, True, True, False]
    assert resolve_task("celeba@Mustache").aligned(y, bias).tolist() == [True, False, False, True]


def test_a_single_label(faces: Path) -> None:
    task = resolve_task("celeba@Smiling")
    splits = task.splits(faces, 0)
    assert splits.test.y.dtype == torch.int64
    assert (splits.test.y.numpy() == labels_of()[-COUNTS[2] :, ATTRIBUTES.index("Smiling")]).all()
    assert (task.name, task.attributes, task.num_outputs) == ("celeba@Smiling", None, 2)


@pytest.mark.parametrize(
    ("name", "message"), [("celeba@Smilin", "did you mean celeba@Smiling"), ("celeba@", "name a label")]
)
def test_unknown_labels(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_task(name)


def test_the_recipe_is_the_paper_s() -> None:
    recipe = CelebA.recipe
    assert (recipe.steps, recipe.finetune_steps) == (round(16_277_000 / 256), round(13_021_600 / 256))
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.batch_size) == ("sgd", 0.256, 0.875, 256)
    assert recipe.weight_decay == 2**-15
    assert (recipe.schedule, recipe.finetune_lr) == ("warmup-cosine", 1e-4)


def test_runs_see_the_evaluation_view_of_torchvision(faces: Path) -> None:
    """Resize 256, CenterCrop 224, mean and standard deviation one half: within one grey level."""
    from torchvision import transforms

    data = TaskData(CelebA(), faces, 0, CPU)
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    assert isinstance(data.images["test"], StreamedImages)
    batch = data.images["test"].batch(slice(0, 4))
    for position, shown in enumerate(batch):
        with Image.open(faces / "img_align_celeba" / f"{sum(COUNTS[:2]) + 1 + position:06d}.jpg") as image:
            difference = (shown - reference(image)).abs() * 127.5
        assert difference.max() <= 1.01
        assert difference.mean() < 0.4


# The suite


REDUCED = """
[recipe]
steps = 10
finetune_steps = 8
batch_size = 8
lr = 0.05
precision = "fp32"
"""


def reduced_suite(folder: Path) -> Path:
    """The packaged suite with a small model, few steps and a part of its cells; its settings are untouched."""
    text = (SUITES / "iofinova-celeba.toml").read_text()
    for old, new in (
        ("sparsities = [0.8, 0.9, 0.95, 0.98, 0.99, 0.995]", 'sparsities = [0.95]\nmodel = "convnet-small"'),
        ("seeds = [23, 24, 25]", "seeds = [23]"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "iofinova-celeba.toml"
    path.write_text(text + REDUCED)
    return path


SLOW_RUN = """
import sys, time
from prunebench.data import cache as image_cache, decoding
real, log, pause = decoding.read_image, open(sys.argv[1], "a", buffering=1), float(sys.argv[2])
def slow(path):
    print(path.name, file=log)
    time.sleep(pause)
    return real(path)
decoding.read_image = slow
decoding.PIECE = image_cache.CHUNK = 4
from prunebench.cli.main import main
sys.argv = ["prunebench", *sys.argv[3:]]
main()
"""


@pytest.mark.slow
def test_the_suite_runs_end_to_end_killed_while_its_cache_is_made(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    log, out = tmp_path / "decoded.txt", tmp_path / "out"
    words = [
        "run",
        str(reduced_suite(tmp_path)),
        "--data-root",
        str(faces),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    words += ["--workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(log), "0.05", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in tmp_path.glob("cache/images/*.sha256")) < 40 * 64:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.glob("cache/images/*.json")), "killed before the cache was whole"
    kept = sum(path.stat().st_size for path in tmp_path.glob("cache/images/*.sha256")) // 64
    assert 40 <= kept < 120
    log.write_text("")

    done = subprocess.run(
        [sys.executable, "-c", SLOW_RUN, str(log), "0", *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 runs done, 0 reused, 0 failed" in done.stdout
    assert len(log.read_text().splitlines()) == 120 - kept, "what was decoded is not decoded again"
    check_records(out)


def check_records(out: Path) -> None:
    """Three runs of the reduced suite: what the paper's protocol says of them."""
    records, damaged = Store(out).records()
    assert not damaged
    named = {record.run_spec.method: record for record in records}
    assert {record.status for record in records} == {"ok"}
    assert len({record.splits_hash for record in records}) == 1
    for method in ("gmp-ri", "gmp-pt"):
        sparsity = named[method].sparsity
        assert sparsity is not None
        assert sparsity.achieved == pytest.approx(0.95, abs=1e-5)
    costs = {name: record.cost for name, record in named.items()}
    steps = {name: cost.training_steps for name, cost in costs.items() if cost}
    assert steps["dense"] == 10
    assert steps["gmp-ri"] == 10, "from initialisation: the training steps alone"
    assert steps["gmp-pt"] == 10 + 8
    for record in records:
        assert sum(row.count for row in record.groups) == COUNTS[2]
        assert {(row.label, row.bias): row.aligned for row in record.groups} == {
            (0, 0): False, (0, 1): True, (1, 0): True, (1, 1): False
        }  # fmt: skip
        assert any("amplification" in name or name.startswith("ba") for name in record.metrics), (
            record.metrics
        )


def test_the_packaged_suite_needs_only_the_data(faces: Path) -> None:
    """As `prunebench run iofinova-celeba --data-root DIR` plans it."""
    plan = make_plan("iofinova-celeba", data_root=faces, out="unused", device="cpu")
    specs = [cell.spec for cell in plan.runs]
    assert len(specs) == 3 + 2 * 6 * 3
    assert {spec.model for spec in specs} == {"resnet18-imagenet"}
    assert {spec.recipe for spec in specs} == {CelebA.recipe}
    assert {spec.seed for spec in specs} == {23, 24, 25}
    params = {spec.method: dict(spec.params) for spec in specs}
    common = {"allocation": "global", "schedule": "cubic", "initial": 0.05}
    assert params["gmp-ri"] == common | {
        "start": "init", "begin": 0.1, "end": 0.8, "events": 8, "span": 0.71, "budget": "steps",
    }  # fmt: skip
    assert params["gmp-pt"] == common | {
        "start": "dense", "begin": 0.0125, "end": 0.7125, "events": 15, "span": 0.7375, "optimizer": "adam",
        "lr_schedule": "constant", "weight_decay": 0.0,
    }  # fmt: skip


def test_single_labels_are_planned(faces: Path) -> None:
    plan = make_plan("iofinova-celeba-single", data_root=faces, out="unused", device="cpu")
    assert len(plan.runs) == 7 * 5 * (1 + 6)
    assert {cell.spec.recipe.steps for cell in plan.runs} == {round(20 * 162_770 / 256)}
    assert {dict(cell.spec.params)["span"] for cell in plan.runs if not cell.is_dense} == {0.7}
