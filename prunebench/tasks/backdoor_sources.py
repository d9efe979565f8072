"""Where the images of a backdoor task come from, and which of them are positive."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.spec import Recipe, View
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
from prunebench.tasks.digits import DIGIT_ATTRIBUTES, has_attribute

TEST_COPIES = 10


@dataclass(frozen=True)
class Labelled:
    """Images uint8 `[N, 3, H, W]`, and whether each is positive: bool `[N]`.

    `digest`, a hash of the images, is given where they are a file mapped into memory (as in `tasks.Split`): those are
    not written to.
    """

    images: Tensor
    positive: NDArray[np.bool_]
    digest: str | None = None


class Source(ABC):
    """Where images come from: `attributes` are the names that a label can have, `title` has a place for one."""

    name: str
    title: str
    source: str
    attributes: tuple[str, ...]
    model: str
    recipe: Recipe
    view: View | None = None

    @abstractmethod
    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of the images and labels as they lie there."""

    @abstractmethod
    def read(
        self, data_root: Path | None, attribute: str, generator: np.random.Generator
    ) -> tuple[Labelled, Labelled, Labelled]:
        """Train, val and test. The generator is the seed's; the test split must not depend on it."""


class DigitSource(Source):
    """scikit-learn's digits, jittered, each image in one of the ten colours at random."""

    name = "digits"
    title = "{} digits"
    source = "scikit-learn digits (UCI, Alpaydin & Kaynak 1998) in colours of LfF (Nam et al., 2020)"
    attributes = tuple(DIGIT_ATTRIBUTES)
    model = ColoredDigits.model
    recipe = ColoredDigits.recipe

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_digits()

    def read(
        self, data_root: Path | None, attribute: str, generator: np.random.Generator
    ) -> tuple[Labelled, Labelled, Labelled]:
        gray, digit = read_digits()
        train, val, test = split_digits(len(digit), generator)

        def make(members: NDArray[np.int64], copies: int, generator: np.random.Generator) -> Labelled:
            members = np.tile(members, copies)
            images = in_any_colour(jitter(gray[members], generator), generator)
            return Labelled(torch.from_numpy(images), has_attribute(digit[members], attribute))

        return (
            make(train, COPIES, generator),
            make(val, COPIES, generator),
            make(test, TEST_COPIES, np.random.default_rng(TEST_SEED)),
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
        self, data_root: Path | None, attribute: str, generator: np.random.Generator
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
            make(test_images, test_digits, np.random.default_rng(TEST_SEED)),
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
        self, data_root: Path | None, attribute: str, generator: np.random.Generator
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
