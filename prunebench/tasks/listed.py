"""A task made of image files and what a list says of each: label, bias, split. Readers of layouts make the list.

Splits are fixed: those of the list, or drawn once (a fifth to test, a tenth of the rest to validate, by group). `seed`
does not change the data. A pair of label and bias is aligned where training has it more often than if the two were
independent.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prunebench.data.cache import open_cache
from prunebench.data.decoding import DAMAGE, Sources
from prunebench.errors import DataError
from prunebench.results.spec import Recipe
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.cifar10 import CIFAR_MEAN, CIFAR_STD, Cifar10Task
from prunebench.tasks.disent import SMALLEST_SIDE, copies, default_budget

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "tr", "0", "0.0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "va", "1", "1.0"), "val"),
    **dict.fromkeys(("test", "testing", "te", "2", "2.0"), "test"),
    "id_val": "id_val",
    "id_test": "id_test",
}
NOTHING = {"", "nan", "na", "n/a", "<na>", "null", "none", "?", "nat"}
"""What stands in a field that says nothing."""
TEST_SHARE, VAL_SHARE, DRAW = 0.2, 0.1, 69_621
IN_MEMORY = 1 << 30
"""Bytes of pixels up to which images are decoded at every start; more of them are kept decoded in a file."""
CONVERTED = {"L": "grey", "1": "black and white", "P": "with a palette", "LA": "grey", "RGBA": "with alpha"}
"""Modes besides RGB that are read as RGB, as people call them; alpha only where it hides nothing."""
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class PhotoList:
    """What a list says of image files: names within `folder`, label, bias and split as texts (None: to be drawn).

    `where` says so of a row for errors: a table and its line, or the image where what is known of it is in its name.
    """

    folder: Path
    names: tuple[str, ...]
    where: tuple[str, ...]
    label: tuple[str, ...]
    bias: tuple[str, ...]
    split: tuple[str, ...] | None
    label_name: str = "label"
    bias_name: str = "bias"

    def error(self, row: int, problem: str) -> DataError:
        """The error for a row: it names the file and the line."""
        return DataError(f"{self.where[row]}: {problem}")


class ListedPhotos(Task):
    """The task of a listing. With a `side` every image is scaled to a square of so many pixels.

    Model and budget follow the size of the images: that of `cifar10-backgrounds` from 29 to 64 pixels, else that of the
    DisEnt reader.
    """

    version = 1

    def __init__(
        self, name: str, title: str, source: str, listing: PhotoList, side: int | None = None
    ) -> None:
        self.name, self.title, self.source = name, title, source
        self.bias_name = listing.bias_name
        self.labels, y = encode(listing, listing.label, listing.label_name)
        self.biases, bias = encode(listing, listing.bias, listing.bias_name)
        self.num_classes, self.num_biases = len(self.labels), len(self.biases)
        self._remarks: list[str] = []
        split = self._assign(listing, y, bias)
        order = np.concatenate([np.flatnonzero(split == place) for place in range(len(SPLITS))])
        self._y, self._bias, self._listing = y[order], bias[order], listing
        counts = np.bincount(split[split >= 0], minlength=len(SPLITS))
        edges = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self._parts = [slice(start, end) for start, end in itertools.pairwise(edges)]
        self._images = ListedImages(
            listing.folder, tuple(listing.names[row] for row in order), listing, tuple(order.tolist()), side
        )
        self._aligned = self._learn_aligned()
        height, width, _ = self._images.shape()
        if min(height, width) < SMALLEST_SIDE:
            raise listing.error(
                int(order[0]),
                f"images of {width}x{height} pixels are too small: want {SMALLEST_SIDE} or more a side",
            )
        self._bytes = 3 * height * width * len(order)
        self.model, self.recipe = budget_of(max(height, width))
        self.mean, self.std = CIFAR_MEAN, CIFAR_STD

    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of names, labels, splits and files. Decodes every image; names damaged ones."""
        digest = hashlib.sha256("\n".join(self._images.names).encode())
        digest.update(repr((self.labels, self.biases, self._parts, self._images.side)).encode())
        digest.update(self._y.tobytes() + self._bias.tobytes() + self._pixels[1].encode())
        return digest.hexdigest()[:16]

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        pixels, _, digests = self._pixels
        y, bias = torch.from_numpy(self._y), torch.from_numpy(self._bias)
        return Splits(
            *(
                Split(pixels[part].permute(0, 3, 1, 2), y[part], bias[part], digest)
                for part, digest in zip(self._parts, digests)
            )
        )

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return self._aligned.to(y.device)[y, bias]

    def remarks(self, data_root: Path | None) -> tuple[str, ...]:
        """What is odd: splits left out or made up, classes without training images, modes, images in two splits."""
        images, names = self._images, self._images.names
        files = {
            split: {names[row]: images.path(row) for row in range(part.start, part.stop)}
            for split, part in zip(SPLITS, self._parts)
        }
        return (*self._remarks, *images.conversions(), *copies(files))

    def notice(self, remark: str) -> None:
        """Keep a remark of the reader for the user."""
        self._remarks.append(remark)

    @functools.cached_property
    def _pixels(self) -> tuple[Tensor, str, Sequence[str | None]]:
        """Bytes `[N, H, W, 3]`, a hash of the files, and one a split where they are mapped from a file."""
        if self._bytes <= IN_MEMORY:
            return (*self._images.decode(), (None, None, None))
        cache = open_cache(f"listed-{self._images.side or 'as-is'}", self._images, self._listing.folder)
        return cache.pixels, cache.source_digest(), [cache.pixel_digest(part) for part in self._parts]

    def _assign(self, listing: PhotoList, y: Whole, bias: Whole) -> Whole:
        """The split of every row as a place in SPLITS, or -1: as listed, and what is missing drawn by group."""
        if listing.split is None:
            split = np.zeros(len(y), dtype=np.int64)
            self._remarks.append("the list names no splits: they are drawn, the same for every seed")
            return _draw(_draw(split, y, bias, TEST_SHARE, into=2), y, bias, VAL_SHARE, into=1)
        names = np.array([_split_of(listing, row, text) for row, text in enumerate(listing.split)])
        if (names == "id_val").any():  # iWildCam: what is seen in training validates, other places test
            left = int(np.isin(names, ("val", "id_test")).sum())
            names = np.where(names == "val", "left out", np.where(names == "id_val", "val", names))
            self._remarks.append(
                f"id_val validates and test tests; images of val and id_test left out: {left}"
            )
        split = np.array([SPLITS.index(name) if name in SPLITS else -1 for name in names])
        if not (split == 2).any():
            split[split == 1] = 2
            self._remarks.append("the list has no test split: its validation images test")
        for place, name in ((0, "train"), (2, "test")):
            if not (split == place).any():
                raise listing.error(
                    len(y) - 1,
                    f"no row up to this one, the last, is in the {name} split ({listing.split[-1]!r} is)",
                )
        if not (split == 1).any():
            self._remarks.append("a tenth of the training images, drawn by group, validates")
            split = _draw(split, y, bias, VAL_SHARE, into=1)
        for place, label in enumerate(self.labels):
            if not ((split == 0) & (y == place)).any():
                self._remarks.append(f"{listing.label_name} {label!r} has no training image")
        return split

    def _learn_aligned(self) -> Tensor:
        """Which pairs training has more often than if label and bias were independent: bool `[C, B]`."""
        part = self._parts[0]
        count = np.zeros((self.num_classes, self.num_biases), dtype=np.int64)
        np.add.at(count, (self._y[part], self._bias[part]), 1)
        aligned = count * count.sum() > count.sum(1, keepdims=True) * count.sum(0)
        self.conflicting_share: float | None = float(count[~aligned].sum() / count.sum())
        if not aligned.any():
            self._remarks.append("label and bias are independent in training: no pair is aligned")
        return torch.from_numpy(aligned)


def budget_of(side: int) -> tuple[str, Recipe]:
    """Model and recipe for images whose longer side has `side` pixels."""
    return (Cifar10Task.model, Cifar10Task.recipe) if 28 < side <= 64 else default_budget(side)


def encode(listing: PhotoList, texts: Sequence[str], name: str) -> tuple[tuple[str, ...], Whole]:
    """The values of a column in order, whole numbers by size, and the place of each row's: int64 `[N]`.

    Raises DataError naming the line of a value that is missing, not whole, or unlike the others.
    """
    values = [_value_of(listing, row, text, name) for row, text in enumerate(texts)]
    numeric = [re.fullmatch(r"[-+]?[0-9]+", value) is not None for value in values]
    if len(set(numeric)) > 1:
        odd = numeric.index(numeric[0] is False)
        raise listing.error(
            odd, f"{name} {values[odd]!r} among {values[0]!r} and the like: use numbers or names"
        )
    known = sorted(set(values), key=int if numeric[0] else None)
    folded: dict[str, str] = {}
    for row, value in enumerate(values):
        other = folded.setdefault(value.casefold(), value)
        if other != value:
            raise listing.error(
                row, f"{name} {value!r} and {other!r} differ in capitals alone: write one of them"
            )
    if len(known) < 2:
        raise listing.error(0, f"{name} is {known[0]!r} here and in every row: want two values or more")
    if len(known) > max(len(values) // 2, 2):
        raise listing.error(
            len(values) - 1,
            f"{name} has {len(known)} values in {len(values)} rows: is it a number of the image?",
        )
    place = {value: index for index, value in enumerate(known)}
    return tuple(known), np.array([place[value] for value in values], dtype=np.int64)


def _value_of(listing: PhotoList, row: int, text: str, name: str) -> str:
    """A label or attribute: a name, or a whole number, which pandas may have written 1.0."""
    if text.lower() in NOTHING:
        raise listing.error(row, f"{name} is missing ({text!r}); fill it in or remove the row")
    if not text.isprintable() or len(text) > 100:
        raise listing.error(row, f"{name} {text[:20]!r} is no name: want up to 100 printable signs")
    try:
        number = float(text)
    except ValueError:
        return text
    if not number.is_integer():
        raise listing.error(row, f"{name} {text!r} is no class: want whole numbers or names")
    return str(int(number))


def _split_of(listing: PhotoList, row: int, text: str) -> str:
    found = SPLIT_NAMES.get(text.lower())
    if found is None:
        raise listing.error(row, f"split {text!r} is not known: want train, val or test (or 0, 1, 2)")
    return found


def _draw(split: Whole, y: Whole, bias: Whole, share: float, *, into: int) -> Whole:
    """A share of every group's training rows moved into another split, one at least where it has two."""
    generator, moved = np.random.default_rng([DRAW, into]), split.copy()
    for group in sorted(set(zip(y.tolist(), bias.tolist()))):
        members = np.flatnonzero((split == 0) & (y == group[0]) & (bias == group[1]))
        count = max(round(share * len(members)), 1) if len(members) > 1 else 0
        moved[generator.permutation(members)[:count]] = into
    return moved


@dataclass(frozen=True)
class ListedImages(Sources):
    """The images of a listing in the order of `rows`, each an error of its line where it is damaged."""

    listing: PhotoList
    rows: tuple[int, ...]
    side: int | None

    def read(self, position: int) -> tuple[bytes, NDArray[np.uint8]]:
        """SHA-256 of the file and RGB pixels `[H, W, 3]`, scaled if there is a `side`."""
        with self._named(position) as path:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(self._rgb(position, image))
            return hashlib.sha256(data).digest(), pixels

    def shape(self) -> tuple[int, ...]:
        """`[H, W, 3]` of the first image as read."""
        return self.read(0)[1].shape

    def decode(self) -> tuple[Tensor, str]:
        """All images, uint8 `[N, H, W, 3]`, and a hash of their files. Raises DataError where sizes differ."""
        shape = self.shape()
        images = np.empty((len(self), *shape), dtype=np.uint8)

        def fill(position: int) -> bytes:
            file_hash, pixels = self.read(position)
            if pixels.shape != shape:
                seen, want = (f"{width}x{height}" for height, width, _ in (pixels.shape, shape))
                raise self._error(
                    position,
                    f"has {seen} pixels, {self.names[0]} has {want}: scale all with size=64 behind the @",
                )
            images[position] = pixels
            return file_hash

        with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
            digest = hashlib.sha256(b"".join(pool.map(fill, range(len(self)))))
        return torch.from_numpy(images), digest.hexdigest()

    def conversions(self) -> list[str]:
        """On images that are not RGB and are read so: how many of each mode, and the first."""
        modes: Counter[str] = Counter()
        first: dict[str, int] = {}
        for position in range(len(self)):
            with self._named(position) as path, Image.open(path) as image:
                if image.mode in CONVERTED:
                    modes[image.mode] += 1
                    first.setdefault(image.mode, position)
        return [
            str(self._error(first[mode], f"is {CONVERTED[mode]}: read as RGB, as {count - 1} others are"))
            for mode, count in modes.items()
        ]

    def _rgb(self, position: int, image: Image.Image) -> Image.Image:
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise self._error(position, "is a film of several images: save one of them")
        if image.mode.startswith(("I", "F")):
            raise self._error(position, "has more than 8 bits a channel: convert it to 8-bit RGB")
        if image.mode != "RGB" and image.mode not in CONVERTED:
            raise self._error(position, f"is in {image.mode} colours: convert it to RGB")
        hidden = image.mode in ("RGBA", "LA") or "transparency" in image.info
        if hidden and min(image.convert("RGBA").getchannel("A").tobytes()) < 255:
            raise self._error(position, "is transparent in places: put it on a background, as RGB")
        pixels = image if image.mode == "RGB" else image.convert("RGB")
        return (
            pixels if self.side is None else pixels.resize((self.side, self.side), Image.Resampling.BILINEAR)
        )

    def _error(self, position: int, problem: str) -> DataError:
        row = self.rows[position]
        named = "" if self.listing.where[row].endswith(self.names[position]) else f"{self.names[position]} "
        return self.listing.error(row, f"{named}{problem}")

    @contextlib.contextmanager
    def _named(self, position: int) -> Iterator[Path]:
        try:
            yield self.path(position)
        except DAMAGE as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            reason = reason.split("<_io")[0].rstrip()
            raise self._error(
                position, f"cannot be read ({reason}); put it back or remove the row"
            ) from error
