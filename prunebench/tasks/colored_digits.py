"""`colored-digits`: scikit-learn's 1,797 real digits in the colours of LfF, 16 x 16. No download.

Digit is the label, colour the bias. Train and val images are jittered copies; in test every digit appears
once in each colour, so each class x colour is exactly equally likely. The test split is the same for every seed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.results.spec import Recipe
from prunebench.tasks.balanced import equally_many
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.coloring import colour

TRAIN_DIGITS, VAL_DIGITS, COPIES = 1200, 200, 4
TEST_SEED = 48_271


def split_off_test(digits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The digits that seeds divide into train and val, and those of the test split: the same for every seed."""
    order = np.random.default_rng(TEST_SEED).permutation(digits)
    rest, test = np.split(order, [TRAIN_DIGITS + VAL_DIGITS])
    return rest, test


def split_digits(
    digits: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The digits of train, val and test; the generator is the seed's and decides the first two alone."""
    rest, test = split_off_test(digits)
    train, val = np.split(generator.permutation(rest), [TRAIN_DIGITS])
    return train, val, test


def read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The grey digits, 0-255: float32 `[1797, 8, 8]`, and their labels, int64 `[1797]`."""
    table = _digits_table()
    images = table[:, :-1].reshape(-1, 8, 8)
    return (images * (255.0 / 16.0)).astype(np.float32), table[:, -1].astype(np.int64)


def _digits_table() -> NDArray[np.float64]:
    """scikit-learn's file of digits, `[1797, 65]`: pixels 0-16, then the label.

    The file itself, where it lies as it does in every release: importing scikit-learn takes as long as importing torch.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def fingerprint_digits() -> str:
    """Sixteen hex digits: SHA-256 of the grey digits and their labels."""
    gray, label = read_digits()
    return hashlib.sha256(gray.tobytes() + label.tobytes()).hexdigest()[:16]


TURN, ZOOM, SHIFT = 1200, 100, 0.75
"""Bounds of the jitter: hundredths of a degree, thousandths of the size, pixels of the 8 x 8 image."""
FINE = 18
"""Binary places of a position between pixels."""


def jitter(gray: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Enlarge 8 x 8 digits to 16 x 16 with a random turn, scale and shift.

    gray `[N, 8, 8]` to uint8 `[N, 16, 16]`: up to 12 degrees, 10 % and 1.5 pixels, bilinear, black around. All of it
    is in whole numbers, so that no processor's rounding shows: positions in 2^-18 of a pixel, grey in 16ths of a level.
    """
    count = len(gray)
    turn = generator.integers(-TURN, TURN, count, endpoint=True)
    size = 1000 + generator.integers(-ZOOM, ZOOM, count, endpoint=True)
    reach = round(SHIFT * 2**FINE)
    shift = generator.integers(-reach, reach, (2, count), endpoint=True)
    angle = np.deg2rad(np.arange(-TURN, TURN + 1) / 100)
    cosine, sine = (np.rint(2 ** (FINE - 2) * of(angle)).astype(np.int64) for of in (np.cos, np.sin))
    along, across = (table[turn + TURN] * 1000 // size for table in (cosine, sine))

    # An output pixel lies (2 j - 15) / 4 pixels of the input from its middle, which is at 3.5.
    place = 2 * np.arange(16) - 15
    column, row = place[None, None, :], place[None, :, None]
    along, across = along[:, None, None], across[:, None, None]
    middle = (7 * 2 ** (FINE - 1) + shift)[:, :, None, None]
    x, y = along * column - across * row + middle[0], across * column + along * row + middle[1]

    levels = np.pad(np.rint(gray * 16).astype(np.int64), ((0, 0), (3, 3), (3, 3)))
    image, total = np.arange(count)[:, None, None], np.zeros((count, 16, 16), dtype=np.int64)
    left, top = (np.clip((place >> FINE) + 3, 0, 12) for place in (x, y))
    right_share, lower_share = (place & (2**FINE - 1) for place in (x, y))
    for down, height in ((0, 2**FINE - lower_share), (1, lower_share)):
        for aside, width in ((0, 2**FINE - right_share), (1, right_share)):
            total += height * width * levels[image, top + down, left + aside]
    half, places = 1 << (2 * FINE + 3), 2 * FINE + 4
    return ((total + half) >> places).astype(np.uint8)


def mostly_aligned(
    y: NDArray[np.int64], conflicting_share: float, generator: np.random.Generator, num_biases: int = 10
) -> NDArray[np.int64]:
    """The label as bias, but for exactly round(share * N) samples, which get another one at random: `[N]`.

    LfF's rule rounds within each class and colour, which leaves splits of this size without conflicting images.
    """
    bias = y.copy()
    chosen = generator.permutation(len(y))[: round(conflicting_share * len(y))]
    bias[chosen] = (y[chosen] + generator.integers(1, num_biases, len(chosen))) % num_biases
    return bias


class ColoredDigits(Task):
    version = 3
    title = "Colored digits"
    source = "scikit-learn digits (UCI, Alpaydin & Kaynak 1998), coloured as in LfF (Nam et al., 2020)"
    bias_name = "colour"
    num_classes = 10
    num_biases = 10
    unbiased_share = 0.9
    fresh_draw = "turn, size, place and shade of the same digits"
    model = "convnet-small"
    recipe = Recipe(
        steps=800, finetune_steps=200, batch_size=128, lr=2e-3, finetune_lr=2e-3, schedule="cosine"
    )

    def __init__(self, conflicting_share: float) -> None:
        self.conflicting_share: float = conflicting_share
        self.name = f"colored-digits@{conflicting_share * 100:g}pct"

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_digits()

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        gray, label = read_digits()
        generator = np.random.default_rng([seed, 16_807])
        train, val, test = split_digits(len(label), generator)

        def biased(members: NDArray[np.int64]) -> Split:
            members = np.tile(members, COPIES)
            bias = mostly_aligned(label[members], self.conflicting_share, generator)
            return paint(members, bias, generator)

        def paint(
            members: NDArray[np.int64], bias: NDArray[np.int64], generator: np.random.Generator
        ) -> Split:
            images = colour(jitter(gray[members], generator), bias, generator)
            y, image = torch.from_numpy(label[members]), torch.from_numpy(members)
            return Split(torch.from_numpy(images), y, torch.from_numpy(bias), image=image)

        def in_every_colour(members: NDArray[np.int64], generator: np.random.Generator) -> Split:
            every = np.repeat(members, self.num_biases)
            return paint(every, np.tile(np.arange(self.num_biases), len(members)), generator)

        def balanced() -> Split:
            own = np.random.default_rng([seed, 16_807, 1])
            return in_every_colour(val[equally_many(label[val], own)], own)

        return Splits(
            train=biased(train),
            val=biased(val),
            test=in_every_colour(test, self.test_generator(TEST_SEED)),
            val_balanced=balanced,
        )
