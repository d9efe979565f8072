"""`disent:PATH`: the data sets of the DisEnt release (Lee et al., 2021), or any folder in its layout.

PATH is `<dataset>/<pct>`, say `cmnist/1pct`, or `<dataset>` where it holds only one such folder:

    <dataset>/<pct>/align/<class>/*      training images that follow the bias
    <dataset>/<pct>/conflict/<class>/*   and those that break it
    <dataset>/<pct>/valid                or <dataset>/valid: flat or in class folders
    <dataset>/<pct>/test                 or <dataset>/test: likewise

A file is named `*_<label>_<bias>.png` (or .jpg, .jpeg). All test images count; the release's own loader
keeps only the conflicting ones of BFFHQ.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunebench.data.decoding import DAMAGE
from prunebench.errors import DataError, UsageError
from prunebench.results.spec import Recipe
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.cifar10 import CIFAR_MEAN, CIFAR_STD
from prunebench.tasks.colored_digits import ColoredDigits
from prunebench.tasks.colored_mnist import ColoredMnist

OTHER_IMAGES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".ppm", ".npy")
"""Images that are not read, and whose absence should be noticed."""
MACOS = "__MACOSX"
"""Beside the real files in an archive packed on macOS."""


def left_out(folders: Sequence[Path], used: Collection[Path], suffixes: Sequence[str]) -> list[str]:
    """On images that are not read: of other formats, and in deeper folders; hidden ones are meant to be."""
    other, deeper = [], []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent).as_posix()
            if "/." in name or MACOS in name or not path.is_file():
                continue
            if path.suffix.lower() in OTHER_IMAGES:
                other.append(name)
            elif path.suffix.lower() in suffixes and path not in used:
                deeper.append(name)
    remarks = []
    if other:
        remarks.append(
            f"images of other formats are left out: {len(other)}, as {other[0]}; convert them to {suffixes[0]}"
        )
    if deeper:
        remarks.append(f"images deeper than a class folder are left out: {len(deeper)}, as {deeper[0]}")
    return remarks


def misplaced(files: Mapping[str, Path], labels: Mapping[str, int]) -> list[str]:
    """On images whose class folder says another label than their name."""
    wrong = [
        name
        for name, path in files.items()
        if name.count("/") > 1 and path.parent.name.isdecimal() and int(path.parent.name) != labels[name]
    ]
    if not wrong:
        return []
    return [f"images in the folder of another class: {len(wrong)}, as {wrong[0]}; their names count"]


def copies(splits: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """On training images that another split holds too, byte for byte. Only files of equal size are read."""
    by_size = {
        split: _by_size([path for path in files.values() if path.is_file()])
        for split, files in splits.items()
    }
    remarks = []
    for split, sizes in by_size.items():
        if split == "train":
            continue
        found = []
        for size in sorted(sizes.keys() & by_size["train"].keys()):
            seen = {_digest(path): path for path in by_size["train"][size]}
            found += [(path, seen[digest]) for path in sizes[size] if (digest := _digest(path)) in seen]
        if found:
            first, second = (path.name for path in found[0])
            remarks.append(
                f"{split} images that are training images too: {len(found)}, as {first} is {second}"
            )
    return remarks


def _by_size(paths: Sequence[Path]) -> dict[int, list[Path]]:
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        sizes.setdefault(path.stat().st_size, []).append(path)
    return sizes


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


LAYOUT = (
    "expected the DisEnt release: <dataset>/<pct>/{align,conflict}/<class>/*_<label>_<bias>.png "
    "with valid and test in <dataset>/<pct> or <dataset>; its README links the data: "
    "https://github.com/kakaoenterprise/Learning-Debiased-Disentangled"
)
SUFFIXES = (".png", ".jpg", ".jpeg")
SMALLEST_SIDE = 8
"""Pixels: every model halves an image three times."""
TOLERANCE = 0.5
"""How far, as a share of it, the conflicting share of a folder's name may lie from the counted one."""
FILE_NAME = re.compile(r"(?:.*_)?([0-9]{1,3})_([0-9]{1,3})\.[^_]*")
CHUNK = 256
BIAS_NAMES = {"cmnist": "colour", "cifar10c": "corruption", "bffhq": "gender"}
RESNET_RECIPE = Recipe(steps=10_000, finetune_steps=1000, batch_size=256, lr=1e-3, finetune_lr=5e-4)
Pair = tuple[int, int]


def open_disent(argument: str, data_root: Path | None = None) -> Task:
    """The task of a folder, looked for from the current folder, then `data_root`, then PRUNEBENCH_DATA.

    Raises DataError where folders or images are missing or disagree, UsageError where PATH leaves a choice.
    """
    if not argument.strip():
        raise UsageError("disent: needs the path of a folder, say disent:cmnist/1pct")
    roots = [Path.cwd(), *(Path(root) for root in (data_root, os.environ.get("PRUNEBENCH_DATA")) if root)]
    places = [Path(os.path.normpath(root.absolute() / Path(argument).expanduser())) for root in roots]
    for place in places:
        if place.is_dir():
            return Disent(_find_percentage(place, argument))
    tried = " or ".join(dict.fromkeys(map(str, places)))
    raise DataError(
        f"there is no folder {tried}: give an absolute path, one from the current folder, or with --data-root (or "
        f"PRUNEBENCH_DATA) the folder that {argument} lies in; {LAYOUT}"
    )


class Disent(Task):
    """One percentage folder. `seed` does not change its data: the release is fixed, and so are its splits.

    A pair is aligned when label == bias, unless `align` and `conflict` follow another convention: then the
    pairs seen in `align` are. Model and recipe follow the image size.
    """

    version = 1
    source = "DisEnt release (Lee et al., 2021), or a folder in its layout"

    def __init__(self, folder: Path) -> None:
        dataset = folder.parent.name
        self.name = f"disent:{dataset}/{folder.name}"
        self.title = f"{dataset} {folder.name}"
        self.bias_name = BIAS_NAMES.get(dataset, "bias")
        percentage = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)pct", folder.name)
        self.conflicting_share: float | None = float(percentage[1]) / 100 if percentage else None
        align, conflict = list_images(folder / "align"), list_images(folder / "conflict")
        valid, test = (list_images(_find_split(folder, name)) for name in ("valid", "test"))
        self._files = {"train": {**align, **conflict}, "valid": valid, "test": test}
        self._pairs = {name: list(map(read_pair, files.values())) for name, files in self._files.items()}
        every = {pair for pairs in self._pairs.values() for pair in pairs}
        self.num_classes, self.num_biases = (1 + max(values) for values in zip(*every))
        if self.num_classes < 2:
            raise DataError(f"{folder}: all images have label 0; a task needs at least two classes")
        self._aligned = learn_aligned(align, conflict, (self.num_classes, self.num_biases))
        with open_image(next(iter(align.values()))) as image:
            self._size = image.size
        if min(self._size) < SMALLEST_SIDE:
            seen = "x".join(map(str, self._size))
            raise DataError(
                f"{folder}: images of {seen} pixels are too small: want at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
            )
        folders = [
            folder / "align",
            folder / "conflict",
            *(_find_split(folder, name) for name in ("valid", "test")),
        ]
        every_file = {**self._files["train"], **valid, **test}
        labels = {name: read_pair(path)[0] for name, path in every_file.items()}
        self._remarks = self._compare_share(len(align), len(conflict))
        self._remarks += [
            *left_out(folders, set(every_file.values()), SUFFIXES),
            *misplaced(every_file, labels),
        ]
        self.model, self.recipe = default_budget(max(self._size))
        if max(self._size) > 28:
            self.mean, self.std = CIFAR_MEAN, CIFAR_STD
        self._fingerprint: str | None = None

    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of file names (from `align`, `valid`, ... on) and bytes, read once."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for files in self._files.values():
                for name, path in files.items():
                    try:
                        data = path.read_bytes()
                    except OSError as error:
                        raise DataError(f"{path}: {error}; put it back or open the task anew") from error
                    digest.update(os.fsencode(f"{name}\0{len(data)}\0") + data)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def remarks(self, data_root: Path | None) -> tuple[str, ...]:
        """What is odd: the share of conflicting images, images left out or misplaced, the same image in two splits."""
        return (*self._remarks, *copies(self._files))

    def _compare_share(self, align: int, conflict: int) -> list[str]:
        named, counted = self.conflicting_share, conflict / (align + conflict)
        if named is None or abs(counted - named) <= TOLERANCE * named:
            return []
        return [
            f"its name says {named:.2%} conflicting images, {conflict} of {align + conflict} ({counted:.2%}) are; DCWP "
            "weighs by the name: rename the folder if it is wrong"
        ]

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        """All images in the order of their names, the same for every seed."""
        return Splits(train=self._load("train"), val=self._load("valid"), test=self._load("test"))

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return self._aligned.to(y.device)[y, bias]

    def _load(self, name: str) -> Split:
        y, bias = torch.tensor(self._pairs[name]).T.contiguous()
        return Split(decode(list(self._files[name].values()), self._size), y, bias)


def list_images(folder: Path) -> dict[str, Path]:
    """The images in `folder` and in its class folders, by name from `folder` on, sorted; none hidden."""
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {LAYOUT}")
    found = {}
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        name = path.relative_to(folder.parent).as_posix()
        if path.suffix.lower() in SUFFIXES and "/." not in name and MACOS not in name:
            found[name] = path
    if not found:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} images; {LAYOUT}")
    return dict(sorted(found.items()))


def read_pair(path: Path) -> Pair:
    """(label, bias) of a file name: its second-last `_` field, and its last one before the dot."""
    match = FILE_NAME.fullmatch(path.name)
    if match is None:
        raise DataError(
            f"{path}: no label and bias in its name; rename it *_<label>_<bias>.png, each 0 to 999"
        )
    return int(match[1]), int(match[2])


def learn_aligned(align: dict[str, Path], conflict: dict[str, Path], shape: tuple[int, int]) -> Tensor:
    """Which pairs are aligned, bool `[C, B]`: the diagonal unless the folders say otherwise.

    Raises DataError where one pair is in both folders.
    """
    follows = {read_pair(path): path for path in align.values()}
    breaks = {read_pair(path): path for path in conflict.values()}
    for pair in sorted(follows.keys() & breaks.keys()):
        raise DataError(
            f"{follows[pair]} and {breaks[pair]} both have label {pair[0]} and bias {pair[1]}, but one is in "
            "align and one in conflict: move or rename the wrong one"
        )
    if all(y == bias for y, bias in follows) and all(y != bias for y, bias in breaks):
        return torch.eye(*shape, dtype=torch.bool)
    table = torch.zeros(shape, dtype=torch.bool)
    for pair in follows:
        table[pair] = True
    return table


def default_budget(side: int) -> tuple[str, Recipe]:
    """Model and recipe for images whose longer side has `side` pixels."""
    if side <= 16:
        return ColoredDigits.model, ColoredDigits.recipe
    if side <= 28:
        return ColoredMnist.model, ColoredMnist.recipe
    if side <= 64:
        return "resnet18", RESNET_RECIPE
    return "resnet18-imagenet", RESNET_RECIPE.replace({"batch_size": 64})


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image, its header read. Raises DataError for whatever Pillow says here or in the body."""
    try:
        with Image.open(path) as image:
            yield image
    except DAMAGE as error:
        raise DataError(f"{path}: {error}; unpack or fetch this file again") from error


def decode(files: list[Path], size: tuple[int, int]) -> Tensor:
    """Decode images of one `size` (width, height) as RGB: uint8 `[N, 3, H, W]`."""
    width, height = size
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for position, path in enumerate(files[start : start + CHUNK], start):
            with open_image(path) as image:
                if image.size != size:
                    seen, want = ("x".join(map(str, values)) for values in (image.size, size))
                    raise DataError(f"{path} has {seen} pixels, the first training image {want}: resize it")
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"{path} has more than 8 bits a channel: convert it to 8-bit RGB")
                images[position] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(0, len(files), CHUNK)):
            pass
    return torch.from_numpy(images)


def _find_percentage(folder: Path, argument: str) -> Path:
    if _is_percentage(folder):
        return folder
    choices = sorted(child.name for child in folder.iterdir() if _is_percentage(child))
    if len(choices) > 1:
        names = ", ".join(f"disent:{argument.rstrip('/')}/{choice}" for choice in choices)
        raise UsageError(f"{folder} holds several percentage folders: choose one of {names}")
    if not choices:
        raise DataError(f"the folders {folder / 'align'} and {folder / 'conflict'} are missing; {LAYOUT}")
    return folder / choices[0]


def _is_percentage(folder: Path) -> bool:
    return (folder / "align").is_dir() or (folder / "conflict").is_dir()


def _find_split(folder: Path, name: str) -> Path:
    for place in (folder / name, folder.parent / name):
        if place.is_dir():
            return place
    raise DataError(f"the folder {name} is missing in both {folder} and {folder.parent}; {LAYOUT}")
