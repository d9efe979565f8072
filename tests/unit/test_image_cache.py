"""The cache of decoded images: made once, by one process, whatever is killed or damaged on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunebench.data import cache as image_cache
from prunebench.data import decoding
from prunebench.data.cache import CachedImages, open_cache
from prunebench.data.decoding import Sources, read_image, spread
from prunebench.errors import DataError

COUNT, WIDTH, HEIGHT = 60, 20, 30
SIZE = WIDTH * HEIGHT * 3

BUILD = """
import sys, time
from pathlib import Path
from prunebench.data import cache as image_cache, decoding
folder, log, pause = Path(sys.argv[1]), open(sys.argv[2], "a", buffering=1), float(sys.argv[3])
real = decoding.read_image
def slow(path):
    print(path.name, file=log)
    time.sleep(pause)
    return real(path)
decoding.read_image = slow
decoding.PIECE = image_cache.CHUNK = 4
sources = decoding.Sources(folder, tuple(sorted(path.name for path in folder.glob("*.jpg"))))
print(image_cache.open_cache("test", sources, folder.parent).source_digest())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PRUNEBENCH_CACHE", raising=False)
    monkeypatch.setattr(decoding, "PIECE", 4)
    monkeypatch.setattr(image_cache, "CHUNK", 4)
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for position in range(COUNT):
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{position:03d}.jpg")
    return images


def sources_of(folder: Path) -> Sources:
    return Sources(folder, tuple(sorted(path.name for path in folder.glob("*.jpg"))))


def open_images(folder: Path) -> CachedImages:
    return open_cache("test", sources_of(folder), folder.parent)


def only(folder: Path, ending: str) -> Path:
    (path,) = (folder.parent / "prunebench-cache").glob(f"*.{ending}")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that this process decodes."""
    names: list[str] = []

    def counted(path: Path) -> tuple[bytes, np.ndarray]:
        names.append(path.name)
        return read_image(path)

    monkeypatch.setattr(decoding, "read_image", counted)
    return names


def start(folder: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(log), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_pixels_are_those_of_the_files_and_made_once(folder: Path, decoded: list[str]) -> None:
    cache = open_images(folder)
    assert cache.pixels.shape == (COUNT, HEIGHT, WIDTH, 3)
    for position in (0, 31, COUNT - 1):
        with Image.open(folder / f"{position:03d}.jpg") as image:
            assert (cache.pixels[position].numpy() == np.asarray(image)).all()
    assert sorted(decoded) == sorted(sources_of(folder).names)
    decoded.clear()
    again = open_images(folder)
    assert decoded == []
    assert torch.equal(again.pixels, cache.pixels)
    assert (
        again.pixel_digest(slice(0, 9)) == cache.pixel_digest(slice(0, 9)) != cache.pixel_digest(slice(1, 10))
    )


def test_the_digests_come_from_all_files_and_pixels(folder: Path) -> None:
    first = open_images(folder)
    order = sources_of(folder)
    turned = open_cache("turned", Sources(folder, order.names[::-1]), folder.parent)
    assert first.source_digest() != turned.source_digest()
    assert first.pixel_digest(slice(None)) != turned.pixel_digest(slice(None))
    assert torch.equal(first.pixels.flip(0), turned.pixels)


@pytest.mark.slow
def test_kill_9_while_decoding_then_again(folder: Path, tmp_path: Path, decoded: list[str]) -> None:
    process = start(folder, tmp_path / "log", 0.03)
    records = folder.parent / "prunebench-cache"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size >= 24 * 64 for path in records.glob("*.sha256")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = only(folder, "sha256").stat().st_size // 64
    assert 24 <= kept < COUNT
    assert not list(records.glob("*.json"))
    cache = open_images(folder)
    assert sorted(decoded) == [f"{position:03d}.jpg" for position in range(kept, COUNT)]
    shutil.rmtree(records)
    assert open_images(folder).pixel_digest(slice(None)) == cache.pixel_digest(slice(None))
    assert all(
        (cache.pixels[i].numpy() == read_image(folder / f"{i:03d}.jpg")[1]).all() for i in range(COUNT)
    )


@pytest.mark.parametrize(
    ("pixels", "records"),
    [(0, 0), (SIZE * 8 + 5, 64 * 8), (SIZE * 8, 64 * 8 + 3), (SIZE * 12 + 1, 64 * 8), (SIZE * 8, 64 * 12)],
)
def test_a_torn_end_is_cut_off(folder: Path, decoded: list[str], pixels: int, records: int) -> None:
    """Whatever a kill or a power cut leaves of the two files, whole images with whole records are kept."""
    whole = open_images(folder).pixels.clone()
    only(folder, "json").unlink()
    os.truncate(only(folder, "u8"), pixels)
    os.truncate(only(folder, "sha256"), records)
    decoded.clear()
    assert torch.equal(open_images(folder).pixels, whole)
    assert len(decoded) == COUNT - min(pixels // SIZE, records // 64)


def test_what_a_torn_write_left_is_not_believed(folder: Path, decoded: list[str]) -> None:
    whole = open_images(folder).pixels.clone()
    only(folder, "json").unlink()
    only(folder, "u8").write_bytes(bytes(SIZE * COUNT))
    decoded.clear()
    assert torch.equal(open_images(folder).pixels, whole)
    assert len(decoded) == COUNT


@pytest.mark.slow
def test_two_processes_at_once_decode_every_image_once(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [start(folder, log, 0.02) for _ in range(2)]
    texts = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert texts[0][0] == texts[1][0] != ""
    assert sorted(log.read_text().split()) == list(sources_of(folder).names)
    assert sum("decoding 60 of 60 images" in errors for _, errors in texts) == 1


def test_a_damaged_image_is_named_and_decoding_goes_on_from_there(
    folder: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SAMPLED", 10)  # as in a large folder, most files are not part of the key
    path = folder / "041.jpg"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"041\.jpg: .*unpack or fetch this file again"):
        open_images(folder)
    kept = only(folder, "sha256").stat().st_size // 64
    assert 0 < kept <= 41
    path.write_bytes(good)
    decoded.clear()
    (partial,) = (folder.parent / "prunebench-cache").glob("*.u8")
    for (
        old
    ) in partial.parent.iterdir():  # the damaged file was one of the sampled: the key follows its content
        old.rename(old.with_name(f"test-{sources_of(folder).key()}{old.suffix}"))
    assert len(open_images(folder).pixels) == COUNT
    assert len(decoded) == COUNT - kept


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "missing"])
def test_files_that_are_no_images(folder: Path, content: bytes | None) -> None:
    path, sources = folder / "007.jpg", sources_of(folder)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"007\.jpg: .*fetch this file again"):
        open_cache("test", sources, folder.parent)


def test_images_of_two_sizes(folder: Path) -> None:
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(folder / "030.jpg")
    with pytest.raises(DataError, match=r"030\.jpg has 21x30 pixels, .*000\.jpg 20x30"):
        open_images(folder)


def test_grey_images_are_read_as_rgb(folder: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 77).save(folder / "000.jpg")
    assert open_images(folder).pixels[0].unique().tolist() == [77]


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 7)


@pytest.mark.parametrize(
    ("ending", "damage", "again"),
    [
        ("u8", cut_short, 1),
        ("sha256", cut_short, 1),
        ("json", cut_short, 0),
        ("json", Path.unlink, 0),
        ("u8", Path.unlink, COUNT),
        ("sha256", Path.unlink, COUNT),
    ],
)
def test_a_cache_that_was_cut_short_is_completed(
    folder: Path, decoded: list[str], ending: str, damage: Callable[[Path], None], again: int
) -> None:
    whole = open_images(folder).pixels.clone()
    damage(only(folder, ending))
    decoded.clear()
    assert torch.equal(open_images(folder).pixels, whole)
    assert len(decoded) == again
    decoded.clear()
    open_images(folder)
    assert not decoded


@pytest.mark.parametrize(
    ("ending", "old", "new", "message"),
    [
        ("json", b'"format":1', b'"format":2', "other images or another format: remove .*test-"),
        ("json", b'"images":60', b'"images":61', "other images"),
        ("sha256", None, bytes(64 * COUNT), "does not hold what was decoded into it"),
        (
            "u8",
            None,
            bytes(SIZE * COUNT),
            "does not hold what was decoded into it: remove .*PRUNEBENCH_CACHE",
        ),
    ],
)
def test_a_foreign_cache_is_refused(
    folder: Path, ending: str, old: bytes | None, new: bytes, message: str
) -> None:
    open_images(folder)
    path = only(folder, ending)
    path.write_bytes(new if old is None else path.read_bytes().replace(old, new))
    before = path.read_bytes()
    with pytest.raises(DataError, match=message):
        open_images(folder)
    assert path.read_bytes() == before, "and not overwritten"


def test_one_changed_bit_of_the_records_is_noticed(folder: Path) -> None:
    """The hashes of the files make the task's fingerprint."""
    open_images(folder)
    path = only(folder, "sha256")
    changed = bytearray(path.read_bytes())
    changed[5 * 64] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DataError, match="does not hold what was decoded into it: remove"):
        open_images(folder)


def test_other_images_of_the_same_names_get_a_cache_of_their_own(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "images"
    shutil.copytree(folder, other)
    Image.new("RGB", (WIDTH, HEIGHT)).save(other / "059.jpg")
    first = open_images(folder)
    second = open_cache("test", sources_of(other), folder.parent)
    assert first.source_digest() != second.source_digest()
    assert len(list((folder.parent / "prunebench-cache").glob("*.json"))) == 2


def test_where_the_cache_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "elsewhere"))
    open_images(folder)
    assert len(list((tmp_path / "elsewhere" / "images").glob("test-*.u8"))) == 1
    assert not (folder.parent / "prunebench-cache").exists()
    monkeypatch.delenv("PRUNEBENCH_CACHE")
    open_images(folder)
    decoded.clear()
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "a third place"))
    open_images(folder)
    assert not decoded, "the whole cache beside the data is used"


def test_a_folder_that_cannot_be_written_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot keep decoded images in .*set PRUNEBENCH_CACHE to a folder"):
        open_images(folder)


def test_a_full_disk_is_noticed_before_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SIZE * COUNT - 1))
    with pytest.raises(DataError, match=r"need 0\.000112 GB more in .* free some, or set PRUNEBENCH_CACHE"):
        open_images(folder)
    assert not decoded


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000])
def test_sampled_positions(count: int) -> None:
    positions = spread(count, 64)
    assert positions[0] == 0
    assert positions[-1] == count - 1
    assert len(positions) == min(count, 64)
