"""`celeba`: all 40 attributes of CelebA; `celeba@Blond_Hair`: one of them as a two-class label.

Read from `--data-root`, or from `celeba` or `CelebA` in it, as the official archive, torchvision or Kaggle lay the
files out:

    img_align_celeba/*.jpg     or Img/img_align_celeba, or img_align_celeba/img_align_celeba
    list_attr_celeba.txt       or Anno/list_attr_celeba.txt, or list_attr_celeba.csv
    list_eval_partition.txt    or Eval/list_eval_partition.txt, or list_eval_partition.csv

The 202,599 images of 178 x 218 pixels are decoded once into a file of 23.6 GB (see `image_cache`).
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.data.cache import CachedImages, open_cache
from prunebench.data.decoding import Sources
from prunebench.errors import DataError, UsageError, unknown
from prunebench.results.spec import Recipe, View
from prunebench.tasks.base import Attributes, Split, Splits, Task

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip
IDENTITIES = ("Male", "Young", "Chubby", "Pale_Skin")
BIAS = ATTRIBUTES.index("Male")
MORE_OFTEN_MALE = {
    "Blond_Hair": False, "Smiling": False, "Oval_Face": False, "Big_Nose": True, "Mustache": True,
    "Receding_Hairline": True, "Bags_Under_Eyes": True,
}  # fmt: skip
"""The seven single labels of Iofinova et al., and whether the training split has them more often in men."""

HELP = (
    "CelebA (aligned images, attributes and partition) is at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; "
    "unpack img_align_celeba.zip beside list_attr_celeba.txt and list_eval_partition.txt"
)
IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba", "img_align_celeba/img_align_celeba")
ATTRIBUTE_FILES = ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.csv")
PARTITION_FILES = ("list_eval_partition.txt", "Eval/list_eval_partition.txt", "list_eval_partition.csv")
TRAIN_IMAGES = 162_770
BATCH = 256


def steps_of(epochs: int) -> int:
    """Steps in which as many images are seen as in `epochs` of the training split."""
    return round(epochs * TRAIN_IMAGES / BATCH)


@dataclass(frozen=True)
class CelebAFiles:
    """Where the parts of one CelebA lie."""

    images: Path
    attributes: Path
    partition: Path


@dataclass(frozen=True)
class Listing:
    """The attribute and partition files, in the order train, val, test: y uint8 `[N, 40]`; images of each split."""

    images: Path
    names: tuple[str, ...]
    y: NDArray[np.uint8]
    counts: tuple[int, int, int]

    def slices(self) -> tuple[slice, slice, slice]:
        train, val, test = self.counts
        return slice(0, train), slice(train, train + val), slice(train + val, train + val + test)


def find_layout(data_root: Path | None) -> CelebAFiles:
    """The files under `data_root`. Raises DataError naming what is missing and where it was looked for."""
    if data_root is None:
        raise DataError(
            f"celeba needs the CelebA files: pass --data-root DIR (or set PRUNEBENCH_DATA). {HELP}"
        )
    bases = [data_root / name for name in ("", "celeba", "CelebA")]
    parts = (IMAGE_FOLDERS, ATTRIBUTE_FILES, PARTITION_FILES)
    for base in bases:
        found = [[base / name for name in names if (base / name).exists()] for names in parts]
        if not any(found):
            continue
        for names, there in zip(parts, found):
            if not there:
                raise DataError(f"{base} lacks {' or '.join(names)}. {HELP}")
        images = [folder for folder in found[0] if any(folder.glob("*.jpg"))]
        if not images and any(any(folder.glob("*.png")) for folder in found[0]):
            raise DataError(
                f"{found[0][0]} holds .png images: CelebA's PNG variant is another set of pixels and is not read; take "
                f"the .jpg images. {HELP}"
            )
        if not images:
            raise DataError(f"{found[0][0]} holds no .jpg images. {HELP}")
        return CelebAFiles(images[0], found[1][0], found[2][0])
    raise DataError(f"no CelebA in {' or '.join(map(str, bases))}. {HELP}")


def read_rows(path: Path) -> tuple[list[str], list[str], NDArray[np.int32]]:
    """Header, image names and values `[N, K]` of an official `.txt` or a Kaggle `.csv`; the header may be empty.

    An official attribute file begins with the number of images. Raises DataError where rows are damaged or missing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] == "<":
            raise DataError(f"{path} is a web page, not a list (its download was refused?); fetch it again")
        lines = [line.split(None, 1) for line in _with_spaces(text) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; fetch it again") from error
    promised = int(lines.pop(0)[0]) if lines and len(lines[0]) == 1 and lines[0][0].isdigit() else None
    header = [] if not lines or lines[0][0].endswith(".jpg") else " ".join(lines.pop(0)).split()
    if promised is not None and promised != len(lines):
        raise DataError(f"{path} says that it has {promised} images, but has {len(lines)}: fetch it again")
    names, rows = [line[0] for line in lines], []
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how NumPy says that a text is no number
        for line in lines:
            try:
                rows.append(np.fromstring(line[1], dtype=np.int32, sep=" "))
                if len(rows[-1]) != len(rows[0]):
                    raise ValueError(f"{len(rows[-1])} values, {len(rows[0])} in the first row")
            except (IndexError, ValueError, DeprecationWarning) as error:
                raise DataError(f"{path}: the row of {line[0]}: {error}; fetch it again") from error
    if not rows:
        raise DataError(f"{path} lists no images; fetch it again")
    return header, names, np.stack(rows)


def _with_spaces(text: str) -> list[str]:
    """The lines of a table with fields between spaces, whether commas, semicolons or tabs, and quotes, stood there."""
    lines = text.splitlines()
    for delimiter in (",", ";", "\t"):
        if lines and delimiter in lines[0]:
            return [
                " ".join(field.strip() for field in row) for row in csv.reader(lines, delimiter=delimiter)
            ]
    return [line.replace('"', "") for line in lines]


def read_attributes(path: Path) -> tuple[list[str], NDArray[np.uint8]]:
    """Image names and y uint8 `[N, 40]` in the official order of attributes, whatever that of the file is."""
    header, names, values = read_rows(path)
    missing = [name for name in ATTRIBUTES if name not in header]
    if missing:
        raise DataError(f"{path} lacks the attributes {', '.join(missing[:5])}; fetch it again")
    columns = header[-values.shape[1] :]
    if len(columns) != values.shape[1] or not set(ATTRIBUTES) <= set(columns):
        raise DataError(f"{path}: {values.shape[1]} values in a row, {len(header)} names; fetch it again")
    values = values[:, [columns.index(name) for name in ATTRIBUTES]]
    if not np.isin(values, (-1, 0, 1)).all():
        raise DataError(f"{path}: attributes must be 1 or -1 (or 0); fetch it again")
    return names, (values > 0).astype(np.uint8)


def read_listing(data_root: Path | None) -> Listing:
    """All labels, ordered by split. Raises DataError where the two files do not list the same images."""
    layout = find_layout(data_root)
    names, y = read_attributes(layout.attributes)
    _, listed, partition = read_rows(layout.partition)
    if names != listed:
        first = next((pair for pair in zip(names, listed) if pair[0] != pair[1]), ("the end", "the end"))
        raise DataError(
            f"{layout.attributes} lists {len(names)} images and {layout.partition} {len(listed)}; they differ first "
            f"at {first[0]} and {first[1]}: take both files from one release"
        )
    if partition.shape[1] != 1 or not np.isin(partition, (0, 1, 2)).all():
        raise DataError(f"{layout.partition}: a row must be a name and 0, 1 or 2; fetch it again")
    split = partition[:, 0]
    order = np.argsort(split, kind="stable")
    train, val, test = np.bincount(split, minlength=3).tolist()
    return Listing(layout.images, tuple(names[position] for position in order), y[order], (train, val, test))


class CelebA(Task):
    """CelebA in its official partition; `seed` does not change the data.

    The group table is of Blond_Hair x Male. Aligned are the pairs that the training split has more often than if hair
    and gender were independent: blond women (22,880) and men who are not blond (66,874). The conflicting ones are
    blond men (1,387), the worst group of the literature on group robustness, and women who are not blond (71,629),
    the largest group of all: read the group table, not the mean of the conflicting groups alone.

    Recipe: Iofinova et al., CVPR 2023, joint training of ResNet-18, 100 epochs and 80 of fine-tuning. The released
    configuration of the dense model alone sets no weight decay; here every arm has it.
    """

    version = 1
    source = "CelebA (Liu et al., 2015), official partition"
    bias_name = "gender"
    num_classes = 2
    num_biases = 2
    conflicting_share = None
    name = "celeba"
    title = "CelebA, 40 attributes"
    model = "resnet18-imagenet"
    view = View(resize=256, crop=224)
    attributes: Attributes | None = Attributes(ATTRIBUTES, "Blond_Hair", IDENTITIES)
    recipe = Recipe(
        steps=steps_of(100),
        finetune_steps=steps_of(80),
        batch_size=BATCH,
        optimizer="sgd",
        lr=0.256,
        finetune_lr=1e-4,
        weight_decay=3.0517578125e-5,
        momentum=0.875,
        schedule="warmup-cosine",
    )
    more_often_male = MORE_OFTEN_MALE["Blond_Hair"]

    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of names, labels, partition and image files; decodes them the first time."""
        listing = read_listing(data_root)
        digest = hashlib.sha256("\n".join((*map(str, listing.counts), *listing.names)).encode())
        digest.update(listing.y.tobytes())
        digest.update(self._cache(listing).source_digest().encode())
        return digest.hexdigest()[:16]

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        listing = read_listing(data_root)
        cache = self._cache(listing)
        y, bias = torch.from_numpy(listing.y), torch.from_numpy(listing.y[:, BIAS].astype(np.int64))
        train, val, test = (
            Split(
                cache.pixels[part].permute(0, 3, 1, 2),
                self._labels(y[part]),
                bias[part],
                cache.pixel_digest(part),
            )
            for part in listing.slices()
        )
        return Splits(train, val, test)

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return (y == bias) == self.more_often_male

    def _labels(self, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def _cache(listing: Listing) -> CachedImages:
        return open_cache("celeba", Sources(listing.images, listing.names), listing.images.parent)


class CelebALabel(CelebA):
    """One attribute of CelebA as a label of two classes; the bias is Male.

    A pair is aligned where label and gender go together in the training split. Recipe: the single-label runs of
    Iofinova et al. (20 epochs, SGD at a constant 0.1), as their sparse configurations have it, for every arm; they
    fine-tune nothing, so that part is this benchmark's own.
    """

    attributes = None
    recipe = Recipe(
        steps=steps_of(20),
        finetune_steps=steps_of(10),
        batch_size=BATCH,
        optimizer="sgd",
        lr=0.1,
        finetune_lr=0.01,
        weight_decay=1e-4,
    )

    def __init__(self, attribute: str) -> None:
        self.name = f"celeba@{attribute}"
        self.title = f"CelebA, {attribute.replace('_', ' ').lower()} or not"
        self.more_often_male = MORE_OFTEN_MALE[attribute]
        self._column = ATTRIBUTES.index(attribute)

    def _labels(self, y: Tensor) -> Tensor:
        return y[:, self._column].long()


def open_celeba(name: str, parameter: str, _: Path | None) -> Task:
    """`celeba`, or `celeba@LABEL`. Raises UsageError for a label that is not offered."""
    if not parameter:
        if name != "celeba":
            raise UsageError(
                f"task {name!r}: name a label after the @, or leave the @ out for all 40 attributes"
            )
        return CelebA()
    if parameter not in MORE_OFTEN_MALE:
        raise unknown("task", name, [f"celeba@{label}" for label in MORE_OFTEN_MALE])
    return CelebALabel(parameter)
