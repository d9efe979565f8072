"""What a network sees of an image: scaling, crops and mirroring, on images held and on images streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunebench.data.images import Images, StreamedImages, cut, draw_batches
from prunebench.data.transforms import ImageTransform, turn_grey
from prunebench.models import build_model
from prunebench.results.spec import View
from prunebench.runner.evaluate import TaskData
from prunebench.tasks import Split, splits_hash
from prunebench.tasks.base import Splits, Task
from prunebench.training import LoopSettings, evaluate, train
from prunebench.training.loop import learning_rate
from prunebench.training.losses import cross_entropy

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
VIEW = View(resize=24, crop=16)
COUNT, HEIGHT, WIDTH = 20, 27, 22


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = COUNT, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """uint8 `[N, C, H, W]` over NHWC bytes."""
    shape = (count, height, width, 3)
    return torch.randint(256, shape, generator=seeded(), dtype=torch.uint8).permute(0, 3, 1, 2)


@pytest.fixture
def mapped(tmp_path: Path) -> Tensor:
    """The same pixels in a file."""
    path = tmp_path / "pixels"
    path.write_bytes(pixels().permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    array = np.memmap(path, dtype=np.uint8, mode="r+", shape=(COUNT, HEIGHT, WIDTH, 3))
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def held(view: View | None = VIEW) -> Images:
    return Images(pixels(), mean=HALF, std=HALF, device=CPU, view=view)


def streamed(x: Tensor, view: View | None = VIEW) -> StreamedImages:
    return StreamedImages(x, mean=HALF, std=HALF, device=CPU, view=view)


# Geometry


@pytest.mark.parametrize(
    ("size", "resized", "center"),
    [
        ((218, 178), (313, 256), (44, 16)),  # 256 x 218 / 178 = 313.5; (313 - 224) / 2 = 44.5, to even
        ((178, 218), (256, 313), (16, 44)),
        ((256, 256), (256, 256), (16, 16)),
        ((512, 600), (256, 300), (16, 38)),
    ],
)
def test_sizes_are_torchvision_s(
    size: tuple[int, int], resized: tuple[int, int], center: tuple[int, int]
) -> None:
    from torchvision.transforms import CenterCrop, Resize

    view = View(256, 224)
    assert view.resized(*size) == resized == tuple(Resize(256)(torch.zeros(3, *size)).shape[1:])
    assert view.center(*resized) == center
    ramp = torch.arange(resized[0] * resized[1]).view(1, *resized)
    top, left = divmod(int(CenterCrop(224)(ramp)[0, 0, 0]), resized[1])
    assert (top, left) == center


@pytest.mark.parametrize("values", [(10, 11), (10, 0), (0, 0)])
def test_views_that_cannot_be(values: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="want 1 <= crop <= resize"):
        View(*values)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (60, 47), (24, 31)], ids=["larger", "smaller", "as it is"])
def test_an_evaluation_crop_is_torchvision_s(size: tuple[int, int]) -> None:
    """On tensors, where torchvision does not round either: equal but for the order of additions."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    x = pixels(3, *size).float()
    expected = Compose([Resize(24, antialias=True), CenterCrop(16)])(x)
    shown = cut(x.permute(0, 2, 3, 1), VIEW, None).permute(0, 3, 1, 2)
    torch.testing.assert_close(shown, expected, rtol=0, atol=2e-3)


def test_training_crops_by_hand() -> None:
    images = held(View(resize=WIDTH, crop=16))
    whole = pixels().float() / 127.5 - 1
    crops = torch.tensor([[0, 0, 0], [11, 6, 0], [3, 2, 1]], dtype=torch.int16)
    shown = images.batch(torch.tensor([4, 4, 9]), crops)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    for sample, index, top, left, mirrored in ((0, 4, 0, 0, 0), (1, 4, 11, 6, 0), (2, 9, 3, 2, 1)):
        expected = whole[index, :, top : top + 16, left : left + 16]
        torch.testing.assert_close(shown[sample], expected.flip(-1) if mirrored else expected)


def test_drawn_crops_cover_every_place_and_depend_on_the_generator_alone() -> None:
    images = held()
    crops = images.draw_crops((100, 30), seeded(1))
    assert crops is not None
    assert crops.dtype == torch.int16
    height, width = VIEW.resized(HEIGHT, WIDTH)
    for part, places in zip(crops.unbind(-1), (height - 15, width - 15, 2)):
        counts = part.flatten().bincount()
        assert len(counts) == places
        assert counts.min() > 0.7 * 3000 / places
    assert torch.equal(crops, images.draw_crops((100, 30), seeded(1)))  # type: ignore[arg-type]
    assert not torch.equal(crops, images.draw_crops((100, 30), seeded(2)))  # type: ignore[arg-type]
    still = held(View(24, 16, flip=False)).draw_crops((100, 30), seeded(1))
    assert still is not None
    assert not still[..., 2].any()


def test_without_a_view_nothing_is_drawn_or_cut() -> None:
    generator = seeded()
    state = generator.get_state()
    images = held(None)
    assert images.draw_crops((10, 4), generator) is None
    assert torch.equal(generator.get_state(), state)
    torch.testing.assert_close(images.batch(slice(3)), pixels()[:3].float() / 127.5 - 1)


# Streaming


@pytest.mark.parametrize("view", [None, VIEW])
@pytest.mark.parametrize("index", [slice(3, 9), slice(15, 99), torch.tensor([7, 0, 7, 19])], ids=str)
def test_a_streamed_batch_is_the_held_one(mapped: Tensor, view: View | None, index: slice | Tensor) -> None:
    assert torch.equal(streamed(mapped, view).batch(index), held(view).batch(index))


def test_a_feed_is_its_batches_in_order(mapped: Tensor) -> None:
    batches = draw_batches(COUNT, steps=23, batch_size=6, generator=seeded())
    crops = held().draw_crops(batches.shape, seeded(1))
    assert crops is not None
    for images in (held(), streamed(mapped)):
        shown = list(images.feed(batches, crops))
        assert len(shown) == 23
        for x, index, places in zip(shown, batches, crops):
            assert torch.equal(x, held().batch(index, places))
        parts = [slice(0, 8), slice(8, 16), slice(16, 24)]
        assert torch.equal(torch.cat(list(images.feed(parts))), held().batch(slice(None)))
        assert list(images.feed([])) == []


def test_a_feed_that_is_left_early_ends_its_threads(mapped: Tensor) -> None:
    import threading

    feed = streamed(mapped).feed(draw_batches(COUNT, steps=50, batch_size=6, generator=seeded()))
    next(feed)
    assert any(thread.name.startswith("gather") for thread in threading.enumerate())
    feed.close()
    assert not any(thread.name.startswith("gather") for thread in threading.enumerate())


def test_streamed_images_are_not_copied(mapped: Tensor) -> None:
    assert streamed(mapped)._bytes.data_ptr() == mapped.data_ptr()


@pytest.mark.parametrize("view", [None, VIEW])
@pytest.mark.parametrize("index", [slice(2, 7), torch.tensor([6, 0, 3, 3])])
def test_an_overlay_changes_the_chosen_images_behind_the_crop(
    mapped: Tensor, view: View | None, index: slice | Tensor
) -> None:
    chosen = torch.arange(COUNT) % 3 == 0
    look = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "device": CPU, "view": view}
    plain = Images(mapped, **look)
    crops = plain.draw_crops((len(torch.arange(COUNT)[index]),), seeded())
    before = plain.batch(index, crops)
    by_hand = before.clone()
    by_hand[chosen[index], :, :2, :2] = ((torch.tensor([255.0, 255, 0]) / 255 - 0.5) / 0.25).view(3, 1, 1)
    for kind in (Images, StreamedImages):
        images = kind(mapped, **look, overlay=ImageTransform(chosen, corner))
        shown = images.batch(index, crops)
        torch.testing.assert_close(shown, by_hand)
        assert shown.is_contiguous(memory_format=torch.channels_last)
        fed = list(images.feed([index], None if crops is None else crops.unsqueeze(0)))
        assert torch.equal(fed[0], shown)
        grey = kind(mapped, **look, overlay=ImageTransform(chosen, turn_grey)).batch(index, crops)
        assert torch.equal(grey[~chosen[index]], before[~chosen[index]])
        assert (grey[chosen[index]].amax(1) - grey[chosen[index]].amin(1)).max() < 1e-5
        assert grey.is_contiguous(memory_format=torch.channels_last)


def corner(pixels: Tensor) -> Tensor:
    painted = pixels.clone()
    painted[:, :, :2, :2] = torch.tensor([255.0, 255, 0]).view(3, 1, 1)
    return painted


def test_pictures_of_a_split_have_its_overlay(mapped: Tensor) -> None:
    y = torch.arange(COUNT) % 2
    chosen = torch.arange(COUNT) < 3
    split = Split(mapped, y, y, "digest", ImageTransform(chosen, corner))
    shown = split.pictures([5, 1])
    assert torch.equal(shown[0], mapped[5])
    assert torch.equal(shown[1, :, 2:], mapped[1, :, 2:])
    assert shown[1, :, :2, :2].flatten(1).unique(dim=1).squeeze().tolist() == [255, 255, 0]
    assert torch.equal(Split(mapped, y, y).pictures([5, 1]), mapped[[5, 1]])
    assert split.pictures([]).shape == (0, *mapped.shape[1:])
    for digest, wrong in (("digest", chosen[1:]), ("digest", chosen.long()), (None, chosen)):
        with pytest.raises(ValueError, match="overlay: want"):
            Split(mapped, y, y, digest, ImageTransform(wrong, corner))


def train_with(images: Images, *, seed: int = 0) -> Tensor:
    net, y = build_model("convnet-small", 3, seed=0), torch.arange(COUNT) % 3
    batches = draw_batches(COUNT, steps=4, batch_size=6, generator=seeded())
    train(
        net,
        images,
        y,
        batches,
        objective=cross_entropy,
        settings=LoopSettings("sgd", 0.05, total_steps=4, schedule="warmup-cosine"),
        crops=images.draw_crops(batches.shape, seeded(seed)),
    )
    return torch.cat([nn.functional.normalize(evaluate(net, images)), net.head.weight.detach().T[:COUNT]])


def test_training_on_crops_is_repeatable_and_the_same_from_a_file(mapped: Tensor) -> None:
    first = train_with(held())
    assert torch.equal(first, train_with(held()))
    assert torch.equal(first, train_with(streamed(mapped)))
    assert not torch.equal(first, train_with(held(), seed=1)), "crops matter"


class Faces(Task):
    """Images in a file, with a view."""

    name, version, title, source, bias_name = "faces", 1, "Faces", "made up", "place"
    num_classes = num_biases = 2
    conflicting_share = None
    view = VIEW

    def __init__(self, x: Tensor, digest: str | None) -> None:
        self.x, self.digest = x, digest

    def fingerprint(self, data_root: Path | None) -> str:
        return "0" * 16

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        y = torch.arange(COUNT) % 2
        return Splits(*[Split(self.x, y, y, self.digest)] * 3)


def test_splits_with_a_digest_are_streamed_and_named_by_it(mapped: Tensor) -> None:
    streams = TaskData(Faces(mapped, "one"), None, 0, CPU)
    holds = TaskData(Faces(mapped, None), None, 0, CPU)
    assert [type(data.images["train"]) for data in (streams, holds)] == [StreamedImages, Images]
    assert torch.equal(streams.images["val"].batch(slice(5)), holds.images["val"].batch(slice(5)))
    hashes = {splits_hash(Faces(mapped, digest).draw(None, 0)) for digest in ("one", "two", None)}
    assert len(hashes) == 3
    assert streams.labels.splits_hash in hashes


def test_the_hash_of_splits_without_a_digest_is_of_their_bytes() -> None:
    """The rule of committed records, written out."""
    import hashlib

    split = Split(pixels(4), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    digest = hashlib.sha256()
    for _ in range(3):
        for values in (split.x, split.y, split.bias):
            digest.update(repr(tuple(values.shape)).encode() + values.contiguous().numpy().tobytes())
    assert splits_hash(Splits(split, split, split)) == digest.hexdigest()[:16]


# The learning rate


def test_warm_up_then_cosine_by_hand() -> None:
    settings = LoopSettings("sgd", 0.2, total_steps=100, schedule="warmup-cosine")
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[:6] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2, 0.2])
    # Five steps warm up; 95 are left, so a third of the cosine is 95 / 3 steps after the fifth.
    assert learning_rate(settings, 5 + 95 / 3) == pytest.approx(0.15)  # type: ignore[arg-type]
    assert rates[-1] < 1e-4
    assert rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 11])
def test_a_run_too_short_to_warm_up_has_rates_all_the_same(total: int) -> None:
    settings = LoopSettings("sgd", 0.2, total_steps=total, schedule="warmup-cosine")
    rates = [learning_rate(settings, step) for step in range(total)]
    assert rates[0] == pytest.approx(0.2)
    assert all(0 < rate <= 0.2 for rate in rates)
