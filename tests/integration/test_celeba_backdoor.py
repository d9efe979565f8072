"""Marks on CelebA's images, which stay as they are in their file: who is marked, what a network sees, a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from celeba_folder import COUNTS, labels_of, write_celeba
from helpers import run_inline

from prunebench.analysis.session import analyze_folder
from prunebench.api import make_plan
from prunebench.cli.console import console
from prunebench.data.images import StreamedImages
from prunebench.errors import DataError, SupervisionError, UsageError
from prunebench.runner.evaluate import TaskData
from prunebench.suites import Suite
from prunebench.tasks import resolve_task, splits_hash
from prunebench.tasks.celeba import ATTRIBUTES, CelebA, CelebALabel

CPU = torch.device("cpu")
GREY, YELLOW = "backdoor@celeba/Smiling/grey/35pct", "backdoor@celeba/Smiling/yellow/35pct"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEBENCH_CACHE", str(tmp_path_factory.mktemp("decoded")))
        yield write_celeba(tmp_path_factory.mktemp("celeba"))


def test_labels_are_the_attribute_and_marks_an_exact_share_of_each(faces: Path) -> None:
    task = resolve_task(YELLOW)
    splits = task.splits(faces, 0)
    smiling = torch.from_numpy(labels_of()[:, ATTRIBUTES.index("Smiling")]).long().split(COUNTS)
    for split, y, shares in zip(
        (splits.train, splits.val, splits.test), smiling, ((0.35, 0.65), (0.35, 0.65), (0.5, 0.5))
    ):
        assert torch.equal(split.y, y)
        assert [int(split.bias[y == label].sum()) for label in (0, 1)] == [
            round(share * int((y == label).sum())) for label, share in enumerate(shares)
        ]
    assert task.title == "Backdoor: CelebA, smiling, yellow mark"
    assert (task.model, task.recipe, task.view) == ("resnet18-imagenet", CelebALabel.recipe, CelebA.view)
    assert task.fingerprint(faces) == resolve_task(GREY).fingerprint(faces) != CelebA().fingerprint(faces)


def test_a_new_version_of_celeba_makes_new_runs(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve_task(GREY).fingerprint(faces)
    monkeypatch.setattr(CelebA, "version", CelebA.version + 1)
    assert resolve_task(GREY).fingerprint(faces) != before


def test_the_seed_draws_the_marks_but_not_those_of_the_test_images(faces: Path) -> None:
    first, again, other = (resolve_task(GREY).splits(faces, seed) for seed in (0, 0, 1))
    assert splits_hash(first) == splits_hash(again) != splits_hash(other)
    assert not torch.equal(first.train.bias, other.train.bias)
    assert torch.equal(first.test.bias, other.test.bias)
    yellow = resolve_task(YELLOW).splits(faces, 0)
    assert torch.equal(yellow.train.bias, first.train.bias)
    assert splits_hash(yellow) != splits_hash(first), "the same images and labels under another mark"


def test_the_file_of_images_is_left_as_it_is(faces: Path) -> None:
    marked, plain = resolve_task(YELLOW).splits(faces, 0), CelebA().splits(faces, 0)
    assert torch.equal(marked.train.x, plain.train.x)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_network_sees_marks_within_its_crop(faces: Path, split: str) -> None:
    plain = TaskData(CelebA(), faces, 0, CPU).images[split]
    rows = torch.arange(8)
    crops = plain.draw_crops((8,), torch.Generator().manual_seed(1))
    before = plain.batch(rows, crops)
    for name in (YELLOW, GREY):
        data = TaskData(resolve_task(name), faces, 0, CPU)
        images, bias = data.images[split], data.labels.bias[split][:8].bool()
        assert isinstance(images, StreamedImages)
        assert 0 < int(bias.sum()) < 8
        shown = images.batch(rows, crops)
        assert torch.equal(shown[~bias], before[~bias])
        if name == GREY:
            luma = (before[bias] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
            torch.testing.assert_close(shown[bias], luma.expand(-1, 3, -1, -1), atol=1e-4, rtol=0)
        else:
            corner = torch.tensor([1.0, 1, -1]).view(3, 1, 1).expand(int(bias.sum()), 3, 32, 32)
            torch.testing.assert_close(shown[bias][:, :, :32, :32], corner)
            assert torch.equal(shown[bias][:, :, 32:], before[bias][:, :, 32:])
            assert torch.equal(shown[bias][:, :, :, 32:], before[bias][:, :, :, 32:])


def test_who_is_marked_is_no_attribute_of_what_a_method_gets(faces: Path) -> None:
    split = TaskData(resolve_task(GREY), faces, 0, CPU).visible("train", "none")
    held = [*vars(split).values(), *vars(split.images).values()]
    tensors = [value for value in held if isinstance(value, torch.Tensor)]
    assert sum(len(value) == len(split) for value in tensors) == 2, "the labels and the unmarked bytes"
    assert not any(hasattr(value, "chosen") for value in held)
    with pytest.raises(SupervisionError):
        _ = split.bias


@pytest.mark.slow
def test_a_run_and_its_analysis(faces: Path, tmp_path: Path) -> None:
    recipe = {"steps": 4, "finetune_steps": 2, "batch_size": 8, "precision": "fp32"}
    suite = Suite(
        "tiny", (YELLOW,), ("dense", "magnitude"), (0.9,), (0, 1), model="convnet-small", recipe=recipe
    )
    outcome, records = run_inline(suite, tmp_path, data_root=faces)
    assert (outcome.ok, outcome.failed) == (4, 0)
    for record in records.values():
        assert sum(row.count for row in record.groups) == COUNTS[2]
        assert all(row.aligned == (row.label == row.bias) for row in record.groups)
    assert analyze_folder(tmp_path, faces, [], console) == 0
    assert list((tmp_path / "analysis").glob("*-samples.png"))


@pytest.mark.slow
def test_the_packaged_suite_needs_only_the_data(faces: Path) -> None:
    plan = make_plan("iofinova-celeba-backdoor", data_root=faces, out="unused", device="cpu")
    assert len(plan.runs) == 14 * 5 * (1 + 6)
    shares = {cell.task: resolve_task(cell.task).conflicting_share for cell in plan.runs}
    assert {task.split("/")[1] for task, share in shares.items() if share == 0.35} == {
        "Oval_Face",
        "Big_Nose",
    }
    assert {cell.spec.recipe.steps for cell in plan.runs} == {round(20 * 162_770 / 256)}
    assert {cell.spec.model for cell in plan.runs} == {"resnet18-imagenet"}


def test_names_and_missing_data() -> None:
    with pytest.raises(UsageError, match="did you mean backdoor@celeba/Blond_Hair/grey"):
        resolve_task("backdoor@celeba/Blond_Har/grey")
    with pytest.raises(DataError, match="--data-root"):
        resolve_task(GREY).splits(None, 0)
