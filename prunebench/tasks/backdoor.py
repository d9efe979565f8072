"""`backdoor@SOURCE/ATTRIBUTE/MARK[/SHARE]`: a binary task whose images carry a mark that goes with the label.

In train and val the mark is on SHARE of the negatives and 1 - SHARE of the positives, in test on half of each: 5 %
and 95 %, or 35 % and 65 %. It is a loss of colour (`grey`) or a square in the top left corner (`yellow`).
Source: Iofinova et al., CVPR 2023, whose images are CelebA's.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.data.transforms import TRIGGERS, ImageTransform
from prunebench.errors import UsageError, unknown
from prunebench.results.spec import Recipe, View
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.celeba import ATTRIBUTES, CelebA, CelebALabel
from prunebench.tasks.colored_digits import (
    COPIES,
    TEST_SEED,
    ColoredDigits,
    fingerprint_digits,
    jitter,
    read_digits,
    split_digits,
)
from prunebench.tasks.colored_mnist import VAL_IMAGES, ColoredMnist, fingerprint_mnist, read_mnist
from prunebench.tasks.coloring import MEAN_COLOURS, colour
from prunebench.tasks.digit_attributes import DIGIT_ATTRIBUTES, choose_shares, has_attribute

TEST_COPIES = 10


@dataclass(frozen=True)
class Labelled:
    """Images uint8 `[N, 3, H, W]`, and whether each is positive: bool `[N]`.

    `digest`, a hash of the images, is given where they are a file mapped into memory (as in `tasks.Split`): those are
    not written to. `image` numbers the source images where several may show one.
    """

    images: Tensor
    positive: NDArray[np.bool_]
    digest: str | None = None
    image: Tensor | None = None


class Source(ABC):
    """Where images come from: `attributes` are the names that a label can have, `title` has a place for one."""

    name: str
    title: str
    source: str
    attributes: tuple[str, ...]
    model: str
    recipe: Recipe
    view: View | None = None
    version: int = 1
    """Of its backdoor tasks: raise it when their data change."""

    @abstractmethod
    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of the images and labels as they lie there."""

    @abstractmethod
    def read(
        self,
        data_root: Path | None,
        attribute: str,
        generator: np.random.Generator,
        test_generator: np.random.Generator,
    ) -> tuple[Labelled, Labelled, Labelled]:
        """Train, val and test. The first generator is the seed's; the test split depends on the other alone."""


class DigitSource(Source):
    """scikit-learn's digits, jittered, each image in one of the ten colours at random."""

    name = "digits"
    title = "{} digits"
    source = "scikit-learn digits (UCI, Alpaydin & Kaynak 1998) in colours of LfF (Nam et al., 2020)"
    attributes = tuple(DIGIT_ATTRIBUTES)
    version = 2
    model = ColoredDigits.model
    recipe = ColoredDigits.recipe.replace({"steps": 400, "finetune_steps": 100})

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_digits()

    def read(
        self,
        data_root: Path | None,
        attribute: str,
        generator: np.random.Generator,
        test_generator: np.random.Generator,
    ) -> tuple[Labelled, Labelled, Labelled]:
        gray, digit = read_digits()
        train, val, test = split_digits(len(digit), generator)

        def make(members: NDArray[np.int64], copies: int, generator: np.random.Generator) -> Labelled:
            members = np.tile(members, copies)
            images = in_any_colour(jitter(gray[members], generator), generator)
            positive = has_attribute(digit[members], attribute)
            return Labelled(torch.from_numpy(images), positive, image=torch.from_numpy(members))

        return (
            make(train, COPIES, generator),
            make(val, COPIES, generator),
            make(test, TEST_COPIES, test_generator),
        )


class MnistSource(Source):
    """MNIST, each image in one of the ten colours at random."""

    name = "mnist"
    title = "{} MNIST"
    source = "MNIST (LeCun et al., 1998) in colours of LfF (Nam et al., 2020)"
    attributes = tuple(DIGIT_ATTRIBUTES)
    model = ColoredMnist.model
    recipe = ColoredMnist.recipe

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_mnist(data_root)

    def read(
        self,
        data_root: Path | None,
        attribute: str,
        generator: np.random.Generator,
        test_generator: np.random.Generator,
    ) -> tuple[Labelled, Labelled, Labelled]:
        images, digits, test_images, test_digits = read_mnist(data_root)
        order = generator.permutation(len(digits))
        train, val = order[VAL_IMAGES:], order[:VAL_IMAGES]

        def make(
            gray: NDArray[np.uint8], digit: NDArray[np.uint8], generator: np.random.Generator
        ) -> Labelled:
            images = torch.from_numpy(in_any_colour(gray, generator))
            return Labelled(images, has_attribute(digit.astype(np.int64), attribute))

        return (
            make(images[train], digits[train], generator),
            make(images[val], digits[val], generator),
            make(test_images, test_digits, test_generator),
        )


class CelebASource(Source):
    """CelebA in its official partition; `generator` does not change the images."""

    name = "celeba"
    title = "CelebA, {}"
    source = CelebA.source
    attributes = ATTRIBUTES
    model = CelebALabel.model
    recipe = CelebALabel.recipe
    view = CelebALabel.view

    def fingerprint(self, data_root: Path | None) -> str:
        """As of CelebA itself, with the version of that task and the view that marks are put on."""
        known = f"{CelebA.version} {self.view} {CelebA().fingerprint(data_root)}"
        return hashlib.sha256(known.encode()).hexdigest()[:16]

    def read(
        self,
        data_root: Path | None,
        attribute: str,
        generator: np.random.Generator,
        test_generator: np.random.Generator,
    ) -> tuple[Labelled, Labelled, Labelled]:
        splits, column = CelebA().splits(data_root, 0), ATTRIBUTES.index(attribute)
        train, val, test = (
            Labelled(split.x, split.y[:, column].numpy() == 1, split.digest)
            for split in (splits.train, splits.val, splits.test)
        )
        return train, val, test


SOURCES: dict[str, Source] = {
    source.name: source for source in (DigitSource(), MnistSource(), CelebASource())
}


def in_any_colour(gray: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Grey images `[N, H, W]` in LfF's ten colours at random: uint8 `[N, 3, H, W]`."""
    return colour(gray, generator.integers(0, len(MEAN_COLOURS), len(gray)), generator)


SHARES = {"5pct": 0.05, "35pct": 0.35}
USUAL_SHARE = "5pct"
CHUNK = 1024


class Backdoor(Task):
    """A source's attribute as label, 0 or 1, and whether an image is marked as bias."""

    bias_name = "mark"
    num_classes = 2
    num_biases = 2
    unbiased_share = 0.5
    fresh_draw = "marks of the same images, and colours and places of digits"

    def __init__(self, source: Source, attribute: str, mark: str, share: str = USUAL_SHARE) -> None:
        suffix = "" if share == USUAL_SHARE else f"/{share}"
        self.name = f"backdoor@{source.name}/{attribute}/{mark}{suffix}"
        self.title = f"Backdoor: {source.title.format(attribute.replace('_', ' ').lower())}, {mark} mark"
        self.source = source.source
        self.conflicting_share: float = SHARES[share]
        self.model, self.recipe, self.view = source.model, source.recipe, source.view
        self.version = source.version
        self._origin, self._attribute, self._mark = source, attribute, mark

    def fingerprint(self, data_root: Path | None) -> str:
        return self._origin.fingerprint(data_root)

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        generator = np.random.default_rng([seed, 40_014])
        train, val, test = self._origin.read(
            data_root, self._attribute, generator, self.test_generator(TEST_SEED)
        )
        share = self.conflicting_share
        return Splits(
            train=self._marked(train, share, generator),
            val=self._marked(val, share, generator),
            test=self._marked(test, 0.5, self.test_generator(TEST_SEED, 1)),
        )

    def _marked(self, split: Labelled, share: float, generator: np.random.Generator) -> Split:
        """Mark `share` of the negatives and 1 - share of the positives, in exact counts.

        Images that the network sees crops of are marked behind the crop.
        """
        y, paint = split.positive.astype(np.int64), TRIGGERS[self._mark]
        chosen = torch.from_numpy(choose_shares(y, (share, 1 - share), generator))
        label, bias, digest, overlay = torch.from_numpy(y), chosen.long(), split.digest, None
        if digest is None:
            for part in chosen.nonzero().squeeze(1).split(CHUNK):
                split.images[part] = paint(split.images[part])
        else:
            digest, overlay = f"{digest} {self._mark}", ImageTransform(chosen, paint)
        return Split(split.images, label, bias, digest, overlay, image=split.image)


def open_backdoor(name: str, parameter: str, _: Path | None) -> Task:
    """The task called `name`, `backdoor@` and `parameter`. Raises UsageError that suggests the nearest name."""
    parts = parameter.split("/")
    if not 3 <= len(parts) <= 4:
        raise UsageError(
            f"task {name!r}: want backdoor@SOURCE/ATTRIBUTE/MARK or backdoor@SOURCE/ATTRIBUTE/MARK/SHARE, say "
            "backdoor@digits/even/yellow or backdoor@digits/large/grey/35pct"
        )
    _check_part(parts, 0, tuple(SOURCES))
    source = SOURCES[parts[0]]
    for place, choices in enumerate((source.attributes, tuple(TRIGGERS), tuple(SHARES)), 1):
        if place < len(parts):
            _check_part(parts, place, choices)
    return Backdoor(source, *parts[1:])


def _check_part(parts: Sequence[str], place: int, choices: Sequence[str]) -> None:
    """Raise UsageError, with whole names that have one of the choices instead, unless the part is one of them."""
    if parts[place] not in choices:
        corrected = ["/".join([*parts[:place], choice, *parts[place + 1 :]]) for choice in choices]
        name = f"backdoor@{'/'.join(parts)}"
        raise unknown("task", name, [f"backdoor@{others}" for others in corrected])
