"""CIFAR-10 (Krizhevsky, 2009) from disk, and what its tasks share: either official archive, or a copy as mosaics.

    cifar-10-batches-bin/    data_batch_1.bin .. 5, test_batch.bin: a label byte, then 3072 bytes, an image
    cifar-10-batches-py/     data_batch_1 .. 5, test_batch: Python pickles, what torchvision unpacks
    cifar10/                 labels.npz (y_train, y_test), train_0.webp .. 4, test.webp: images of 32 x 32 in rows

The pickles are read by a reader that knows dictionaries, lists, numbers, text and one array of bytes, and runs no code
of theirs. The mosaics are not the official data: some images are known only from lossy copies, and the test images
are in another order, so their fingerprint begins with `mosaics-`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import pickletools
import zipfile
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prunebench.data.cache import keep_images
from prunebench.data.decoding import DAMAGE
from prunebench.errors import DataError
from prunebench.results.spec import Recipe, View
from prunebench.tasks.base import Split, Splits, Task

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
MOSAICS = tuple(f"train_{number}.webp" for number in range(5))
FETCH = "uv run python -c \"from torchvision.datasets import CIFAR10; CIFAR10('data', download=True)\""

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
VAL_SHARE = 0.1

Bytes = NDArray[np.uint8]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Cifar10:
    """Images, uint8 `[N, 32, 32, 3]`, and labels, int64 `[N]`: `train` training images, then the test images.

    `numbers` are the images' own, `[N]`, where they are a part of others: else their positions.
    """

    images: Bytes
    labels: Whole
    train: int
    official: bool
    numbers: Whole | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits: SHA-256 of images and labels; after `mosaics-` where they are not official."""
        digest = hashlib.sha256(f"{self.train}\n".encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype(np.uint8).tobytes())
        return ("" if self.official else "mosaics-") + digest.hexdigest()[:16]

    @property
    def test(self) -> Whole:
        """Positions of the test images."""
        return np.arange(self.train, len(self.labels))

    def shuffled(self, seed: int) -> tuple[Whole, Whole]:
        """Positions of the training images in an order drawn by `seed`: the first tenth to validate, the rest to train.

        Raises DataError where that leaves a split empty.
        """
        order = np.random.default_rng([seed, 69_621]).permutation(self.train)
        held = round(VAL_SHARE * self.train)
        if held == 0 or self.train == len(self.labels):
            raise DataError(f"CIFAR-10 with {len(self.labels)} images is too small to be split")
        return order[held:], order[:held]

    def split(self, positions: Whole, bias: Whole, images: Bytes | None = None) -> Split:
        """Some images `[N, 32, 32, 3]` (default: as they are) with their labels and bias."""
        shown = self.images[positions] if images is None else images
        x = torch.from_numpy(np.ascontiguousarray(shown.transpose(0, 3, 1, 2)))
        image = positions if self.numbers is None else self.numbers[positions]
        y = torch.from_numpy(self.labels[positions])
        return Split(x, y, torch.from_numpy(bias), image=torch.from_numpy(image))

    def part(self, positions: Whole) -> Cifar10:
        """Some training images alone, copied, for those who keep them."""
        return Cifar10(
            self.images[positions], self.labels[positions], len(positions), self.official, positions
        )


class Cifar10Task(Task):
    """A task of CIFAR-10's ten classes. Of the training images a tenth validates; in training they are mirrored.

    Budget: ResNet-8 from scratch, as on every task of photographs that a CPU trains; choose another with `model` and
    `recipe` of a suite.
    """

    version = 1
    source = "CIFAR-10 (Krizhevsky, 2009)"
    num_classes = len(CLASSES)
    num_biases = 2
    model = "resnet8"
    recipe = Recipe(
        steps=3000, finetune_steps=750, batch_size=128, lr=2e-3, finetune_lr=2e-3, schedule="cosine"
    )
    mean, std = CIFAR_MEAN, CIFAR_STD
    view = View(resize=SIDE, crop=SIDE, flip=True)

    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits of images and labels as they are on disk; after `mosaics-` where not official."""
        return read_cifar10(data_root).fingerprint

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        source = read_cifar10(data_root)
        try:
            return self.draw_from(source, seed)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error

    @abstractmethod
    def draw_from(self, source: Cifar10, seed: int) -> Splits:
        """The splits of one draw from images and labels as read."""

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return bias == 0


def read_cifar10(data_root: Path | None) -> Cifar10:
    """CIFAR-10 under `data_root`, in the first of the three forms that is there. Raises DataError."""
    if data_root is None:
        raise DataError(
            "CIFAR-10 is needed: pass --data-root DIR (or set PRUNEBENCH_DATA). "
            f"To download it: {FETCH}, then --data-root data"
        )
    forms: tuple[tuple[str, str, Callable[[Path], Cifar10]], ...] = (
        ("cifar-10-batches-bin", "data_batch_1.bin", _read_binary),
        ("cifar-10-batches-py", "data_batch_1", _read_python),
        ("cifar10", "labels.npz", _read_mosaics),
    )
    for name, first, read in forms:
        for folder in (data_root / name, data_root / "CIFAR10" / name, data_root):
            if (folder / first).is_file():
                return read(folder)
    raise DataError(
        f"no CIFAR-10 under {data_root}: expected {data_root / forms[1][0]} or {data_root / forms[0][0]}. "
        f"To download it: {FETCH.replace('data', str(data_root), 1)}"
    )


def _read_binary(folder: Path) -> Cifar10:
    parts = []
    for name in (*BATCHES, "test_batch"):
        path = folder / f"{name}.bin"
        data = np.frombuffer(_bytes_of(path), dtype=np.uint8)
        if data.size == 0 or data.size % (1 + PIXELS):
            raise DataError(f"{path}: {data.size} bytes are no whole images; {_again(folder)}")
        rows = data.reshape(-1, 1 + PIXELS)
        parts.append((rows[:, 1:], rows[:, 0]))
    return _assemble(folder, parts, official=True)


def _read_python(folder: Path) -> Cifar10:
    return _assemble(
        folder, [_read_pickle(folder / name) for name in (*BATCHES, "test_batch")], official=True
    )


def _assemble(folder: Path, parts: list[tuple[Bytes, Bytes]], *, official: bool) -> Cifar10:
    """One data set from batches of planes `[N, 3072]` and labels `[N]`, the last of them the test images."""
    labels = np.concatenate([part[1] for part in parts]).astype(np.int64)
    if labels.max() > 9:
        raise DataError(f"{folder}: label {labels.max()} is not a class of CIFAR-10; {_again(folder)}")
    planes = np.concatenate([part[0] for part in parts]).reshape(-1, 3, SIDE, SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Cifar10(images, labels, len(labels) - len(parts[-1][1]), official)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {_again(path.parent)}") from error


def _again(folder: Path) -> str:
    return f"delete {folder} and fetch CIFAR-10 again ({FETCH})"


# --- the Python version ------------------------------------------------------------------------------------


class _Dtype:
    """What stands for `numpy.dtype`: only unsigned bytes will do."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, _: object) -> None:
        """Byte order and the like: bytes have none."""


class _Array:
    """What stands for `numpy.ndarray`: its state becomes an array of bytes, whatever it claims to be."""

    values: Bytes

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("its array has no state")
        _, shape, dtype, by_column, data = state
        if not isinstance(dtype, _Dtype) or dtype.code != "u1" or by_column or not isinstance(data, bytes):
            raise pickle.UnpicklingError("its array does not hold rows of bytes")
        self.values = np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text in an unexpected encoding")
    return text.encode("latin1")


class _PickleReader(pickle.Unpickler):
    """Reads the batches without running what they name: four names are known, and each stands for code above."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR-10 does")
        return known[module, name]


def _check_memo(data: bytes) -> None:
    """Raise for a pickle that numbers an object far beyond its size: the reader would make room for all before it."""
    for operation, argument, _ in pickletools.genops(data):
        if "PUT" in operation.name and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it numbers an object {argument} in {len(data)} bytes")


def _read_pickle(path: Path) -> tuple[Bytes, Bytes]:
    """Planes `[N, 3072]` and labels `[N]` of a batch. Raises DataError for anything else in it."""
    try:
        data = _bytes_of(path)
        _check_memo(data)
        values = _PickleReader(io.BytesIO(data), encoding="bytes").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in values.items()}
        planes, labels = named["data"].values, np.asarray(named["labels"], dtype=np.uint8)
        if planes.shape != (len(labels), PIXELS) or not len(labels):
            raise ValueError(f"images {planes.shape} for {len(labels)} labels")
    except DataError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise DataError(f"{path}: {error}; {_again(path.parent)}") from error
    return planes, labels


# --- mosaics -----------------------------------------------------------------------------------------------


def _read_mosaics(folder: Path) -> Cifar10:
    """Decoding takes seconds, so decoded images are kept (see `corruption_cache`)."""
    names = (*MOSAICS, "test.webp")
    digest = hashlib.sha256()
    try:
        for name in names:
            digest.update((folder / name).read_bytes())
        with np.load(folder / "labels.npz", allow_pickle=False) as stored:
            labels = np.concatenate([stored["y_train"], stored["y_test"]]).astype(np.int64)
            train = len(stored["y_train"])
        images = keep_images(
            f"mosaics-{digest.hexdigest()[:16]}",
            len(labels),
            lambda: _decode([folder / name for name in names]),
        )
    except (KeyError, zipfile.BadZipFile, *DAMAGE) as error:
        raise DataError(f"{folder}: {error}; put its files back") from error
    if images is None or len(images) != len(labels) or labels.max() > 9:
        raise DataError(f"{folder}: its images and labels do not fit together; put its files back")
    return Cifar10(images, labels, train, official=False)


def _decode(paths: list[Path]) -> Bytes:
    with ThreadPoolExecutor(len(paths)) as pool:
        return np.concatenate(list(pool.map(_decode_mosaic, paths)))


def _decode_mosaic(path: Path) -> Bytes:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    cells = pixels.reshape(rows, SIDE, columns, SIDE, 3)
    return cells.transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)
