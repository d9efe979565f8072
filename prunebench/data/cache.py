"""Caches of decoded images of a data set too large for memory: one file of bytes, made once, mapped by every run.

    <name>-<key>.u8       the pixels, uint8 `[N, H, W, 3]`, in the order of the list
    <name>-<key>.sha256   64 bytes an image: SHA-256 of its file, then of its pixels; how far decoding has come
    <name>-<key>.json     written last: the cache is whole

Pixels reach the disk before their records do, so a process killed at any moment leaves a cache that the next one
continues. The key is a hash of all names and of the content of 64 of the files: a changed image elsewhere goes
unnoticed, so remove the cache after changing images.

Images that take seconds to make rest beside them, one file a batch, made once for all shares of bias and all seeds:

    <folder>/corrupted/<name>.safetensors      uint8 `[N, H, W, 3]`, with their SHA-256

Such a file is written in one piece: a process that is killed loses at most the one that it was making. The folder is
that of PRUNEBENCH_CACHE, or `prunebench` in the platform's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from prunebench_kernels.measured import VARIABLE, cache_folder
from torch import Tensor

from prunebench.data.decoding import RECORD_BYTES, Piece, Sources, decode, spread
from prunebench.errors import DataError, StoreError
from prunebench.results.store import read_tensors, replace_file

FORMAT = 1
CHUNK = 1024
"""Images between two points at which pixels and records are on the disk."""
CHECKED = 16
"""Images compared with their record when a cache is opened."""


@dataclass(frozen=True)
class CachedImages:
    """Mapped pixels, uint8 `[N, H, W, 3]`, and the record of every image, uint8 `[N, 64]`."""

    pixels: Tensor
    records: NDArray[np.uint8]

    def source_digest(self) -> str:
        """SHA-256 over the hashes of all files: the same wherever the images are decoded."""
        return hashlib.sha256(self.records[:, :32].tobytes()).hexdigest()

    def pixel_digest(self, images: slice) -> str:
        """SHA-256 over the hashes of the pixels of some images."""
        return hashlib.sha256(self.records[images, 32:].tobytes()).hexdigest()


@dataclass(frozen=True)
class Header:
    """What the JSON file says of a cache that is whole; `records` is the SHA-256 of that file."""

    format: int
    key: str
    images: int
    height: int
    width: int
    records: str


@dataclass(frozen=True)
class CacheFiles:
    """Where one cache lies."""

    folder: Path
    stem: str

    @property
    def pixels(self) -> Path:
        return self.folder / f"{self.stem}.u8"

    @property
    def records(self) -> Path:
        return self.folder / f"{self.stem}.sha256"

    @property
    def header(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.stem}.lock"


def open_cache(name: str, sources: Sources, beside: Path) -> CachedImages:
    """The decoded images, mapped; decoded first where no whole cache is found.

    A cache is looked for in PRUNEBENCH_CACHE (if set) and beside the data, and made in the first of these. One
    process decodes, others wait for it. Raises DataError for a damaged image, a cache that belongs to something
    else, or a disk that is full or cannot be written to.
    """
    key = sources.key()
    chosen = os.environ.get(VARIABLE)
    folders = [*([Path(chosen) / "images"] if chosen else []), beside / "prunebench-cache"]
    places = [CacheFiles(folder, f"{name}-{key}") for folder in folders]
    try:
        for files in places:
            cache = _load(files, key, len(sources))
            if cache is not None:
                return cache
        return _make(places[0], sources, key)
    except OSError as error:
        raise DataError(
            f"cannot keep decoded images in {places[0].folder}: {error.strerror or error}; set {VARIABLE} to a "
            "folder that can be written to and has the space, then run the same command again"
        ) from error


def _make(files: CacheFiles, sources: Sources, key: str) -> CachedImages:
    """Decode under the lock, unless another process did meanwhile, and open the result."""
    files.folder.mkdir(parents=True, exist_ok=True)
    with _locked(files):
        cache = _load(files, key, len(sources))
        if cache is None:
            _build(files, sources, key)
            cache = _load(files, key, len(sources))
    if cache is None:
        raise DataError(f"{files.pixels} was changed by something else; run the same command again")
    return cache


@contextlib.contextmanager
def _locked(files: CacheFiles) -> Iterator[None]:
    """The lock of a cache; says so when another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(files.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process decodes images into {files.folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


def _load(files: CacheFiles, key: str, count: int) -> CachedImages | None:
    """A whole cache; None where there is none, or where it is cut short and must be continued."""
    from pydantic import TypeAdapter, ValidationError

    try:
        header = TypeAdapter(Header).validate_json(files.header.read_bytes())
        sizes = files.pixels.stat().st_size, files.records.stat().st_size
    except (FileNotFoundError, ValidationError):
        return None
    if (header.format, header.key, header.images) != (FORMAT, key, count):
        raise DataError(f"{files.header} describes other images or another format: {_removal(files)}")
    shape = (count, header.height, header.width, 3)
    if sizes != (int(np.prod(shape)), count * RECORD_BYTES):
        return None
    records = np.fromfile(files.records, dtype=np.uint8).reshape(count, RECORD_BYTES)
    mapped = np.memmap(files.pixels, dtype=np.uint8, mode="r", shape=shape)
    if _hash_of(records) != header.records or not _agree(mapped, records):
        raise DataError(f"{files.pixels} does not hold what was decoded into it: {_removal(files)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return CachedImages(torch.from_numpy(mapped), records)


def _removal(files: CacheFiles) -> str:
    return f"remove {files.folder / files.stem}.* (they are made again), or set {VARIABLE} to another folder"


def _hash_of(records: NDArray[np.uint8]) -> str:
    return hashlib.sha256(records.tobytes()).hexdigest()


def _agree(pixels: NDArray[np.uint8], records: NDArray[np.uint8]) -> bool:
    """Whether some of the images still have the hash in their record."""
    return all(
        hashlib.sha256(pixels[position].tobytes()).digest() == records[position, 32:].tobytes()
        for position in spread(len(records), CHECKED)
    )


def _build(files: CacheFiles, sources: Sources, key: str) -> None:
    """Decode what is missing, then write the header."""
    from pydantic import TypeAdapter

    shape = sources.shape()
    size = int(np.prod(shape))
    files.header.unlink(missing_ok=True)
    with files.pixels.open("ab") as pixels, files.records.open("ab") as records:
        done = _resume_point(files, len(sources), shape)
        pixels.truncate(done * size)
        records.truncate(done * RECORD_BYTES)
        _check_space(files, (len(sources) - done) * (size + RECORD_BYTES))
        _say(
            f"decoding {len(sources) - done:,} of {len(sources):,} images into {files.folder} "
            f"({len(sources) * size / 1e9:.3g} GB), once"
        )
        _write(decode(sources, done, shape), pixels, records, len(sources) - done)
    records_hash = _hash_of(np.fromfile(files.records, dtype=np.uint8))
    height, width, _ = shape
    header = Header(FORMAT, key, len(sources), height, width, records_hash)
    replace_file(files.header, TypeAdapter(Header).dump_json(header))


def _resume_point(files: CacheFiles, count: int, shape: tuple[int, ...]) -> int:
    """How many images from the first on need no decoding: their pixels and records are there and agree."""
    size = int(np.prod(shape))
    done = min(files.records.stat().st_size // RECORD_BYTES, files.pixels.stat().st_size // size, count)
    if done == 0:
        return 0
    records = np.fromfile(files.records, dtype=np.uint8, count=done * RECORD_BYTES)
    mapped = np.memmap(files.pixels, dtype=np.uint8, mode="r", shape=(done, *shape))
    return done if _agree(mapped, records.reshape(done, RECORD_BYTES)) else 0


def _check_space(files: CacheFiles, needed: int) -> None:
    free = shutil.disk_usage(files.folder).free
    if needed > free:
        raise DataError(
            f"decoded images need {needed / 1e9:.3g} GB more in {files.folder}, which has {free / 1e9:.3g} GB free: "
            f"free some, or set {VARIABLE} to a folder on another disk"
        )


def _write(pieces: Generator[Piece, None, None], pixels: BinaryIO, records: BinaryIO, count: int) -> None:
    """Append pieces; every CHUNK images the pixels are synced, then the records."""
    from rich.console import Console
    from rich.progress import Progress

    console, waiting = Console(stderr=True), b""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("decoding", total=count)
        for data, new in pieces:
            pixels.write(data)
            waiting += new
            if len(waiting) >= CHUNK * RECORD_BYTES:
                _commit(waiting, pixels, records)
                waiting = b""
            progress.advance(task, len(new) // RECORD_BYTES)
    _commit(waiting, pixels, records)


def _commit(waiting: bytes, pixels: BinaryIO, records: BinaryIO) -> None:
    pixels.flush()
    os.fsync(pixels.fileno())
    records.write(waiting)
    records.flush()
    os.fsync(records.fileno())


Bytes = NDArray[np.uint8]


def keep_images(name: str, count: int, make: Callable[[], Bytes], *, wait: bool = True) -> Bytes | None:
    """The `count` images of that name, made if there is no such file or it is not whole.

    One process makes a file; others wait for it or, without `wait`, get None. Raises DataError where nothing can be
    written.
    """
    from filelock import FileLock, Timeout

    path = cache_folder() / "corrupted" / f"{name}.safetensors"
    found = _load_batch(path, count)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        found = _load_batch(path, count)
        return _make_batch(path, make) if found is None else found
    finally:
        lock.release()


def _make_batch(path: Path, make: Callable[[], Bytes]) -> Bytes:
    from safetensors.torch import save

    images = np.ascontiguousarray(make())
    digest = np.frombuffer(hashlib.sha256(images.data).digest(), dtype=np.uint8)
    try:
        replace_file(
            path, save({"images": torch.from_numpy(images), "sha256": torch.from_numpy(digest.copy())})
        )
    except OSError as error:
        raise _unwritable(path, error) from error
    return images


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot keep images in {path.parent} ({error.strerror or error}): set PRUNEBENCH_CACHE to a folder that can "
        "be written to and has 500 MB free, then run the same command again"
    )


def _load_batch(path: Path, count: int) -> Bytes | None:
    """The images of a file; None where there is none, or it is not what was written."""
    try:
        tensors = read_tensors(path)
        images, digest = tensors["images"].numpy(), tensors["sha256"].numpy()
    except (StoreError, KeyError):
        return None
    whole = len(images) == count and hashlib.sha256(images.data).digest() == digest.tobytes()
    return images if whole else None
