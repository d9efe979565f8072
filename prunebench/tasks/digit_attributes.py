"""`digit-attributes`: ten binary attributes of scikit-learn's real digits, 16 x 16 in colour. No download.

Five attributes are of the digit and five of its rendering. Three of the latter are identity attributes, each tied
to one digit attribute in the labels, and so to whatever goes with that one. As in CelebA all three splits follow
one distribution: bias amplification compares predictions with the labels' own shares, and calibration and
thresholds from val mean the same on test. Exact counts keep every group (target, identity) at some 5 % of the
images or more. The test split is the same for every seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.results.spec import Recipe
from prunebench.tasks.base import Attributes, Split, Splits, Task
from prunebench.tasks.colored_digits import TEST_SEED, fingerprint_digits, jitter, read_digits, split_digits

DIGIT_ATTRIBUTES: dict[str, tuple[int, ...]] = {
    "large": (5, 6, 7, 8, 9),
    "even": (0, 2, 4, 6, 8),
    "loop": (0, 6, 8, 9),
    "straight": (1, 4, 7),
    "seven": (7,),
}
"""The digits that have each attribute: five or more; even; a closed loop; straight strokes only; a seven."""


def has_attribute(digit: NDArray[np.int64], name: str) -> NDArray[np.bool_]:
    """Which of the digits `[N]` have the attribute `name`: bool `[N]`."""
    return np.isin(digit, DIGIT_ATTRIBUTES[name])


def choose_shares(
    stratum: NDArray[np.int64], shares: Sequence[float], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose exactly round(shares[s] * n_s) of the n_s samples of every stratum s, at random: bool `[N]`.

    stratum: indices `[N]` into shares.
    """
    chosen = np.zeros(len(stratum), dtype=np.bool_)
    for value, share in enumerate(shares):
        members = generator.permutation(np.flatnonzero(stratum == value))
        chosen[members[: round(share * len(members))]] = True
    return chosen


COPIES, TEST_COPIES = 8, 10
"""Images of each digit, in train and val and in test: jittered, with attributes drawn anew."""
STRENGTHS: dict[str, tuple[str, float]] = {
    "warm": ("large", 0.9),
    "light": ("even", 0.75),
    "thick": ("loop", 0.8),
}
"""By identity attribute: the digit attribute it is tied to, and P(identity | attribute) = 1 - P(identity | not)."""
INDEPENDENT: dict[str, float] = {"patch": 0.5, "mirrored": 0.1}
"""Rendering attributes that are independent of the identities, and their share of positives."""
NAMES = (*DIGIT_ATTRIBUTES, *STRENGTHS, *INDEPENDENT)
WARM_HUES, COLD_HUES = (-40.0, 55.0), (170.0, 280.0)
LIGHT_LEVELS, DARK_LEVELS = (0.7, 0.95), (0.0, 0.25)
PATCH_SIDE = 3
NOISE = 0.04


def draw_attributes(digit: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """The attributes of an image of each digit `[N]`: 0/1 `[N, 10]`, columns as in NAMES.

    Identities: exact counts within every digit, one independent of another given the digit. Independent
    attributes: exact counts within every combination of identities.
    """
    columns = {name: has_attribute(digit, name) for name in DIGIT_ATTRIBUTES}
    for identity, (attribute, strength) in STRENGTHS.items():
        tied = has_attribute(np.arange(10), attribute)
        columns[identity] = choose_shares(digit, np.where(tied, strength, 1 - strength).tolist(), generator)
    combination = sum(columns[identity] * 2**place for place, identity in enumerate(STRENGTHS))
    for name, share in INDEPENDENT.items():
        columns[name] = choose_shares(combination, [share] * 2 ** len(STRENGTHS), generator)
    return np.stack([columns[name] for name in NAMES], axis=1).astype(np.uint8)


def render(
    gray: NDArray[np.float32], attributes: NDArray[np.uint8], generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Digits `[N, 8, 8]` as their attributes `[N, 10]` say: uint8 `[N, 3, 16, 16]`.

    pixel = background + (ink - background) * coverage, plus noise of one value a pixel.
    """
    has = {name: attributes[:, column].astype(bool) for column, name in enumerate(NAMES)}
    turned = np.where(has["mirrored"][:, None, None], gray[:, :, ::-1], gray)
    strokes = jitter(turned, generator)[:, None]
    padded = np.pad(strokes, ((0, 0), (0, 0), (0, 1), (0, 1)))
    widened = np.maximum.reduce([padded[..., i : i + 16, j : j + 16] for i in (0, 1) for j in (0, 1)])
    coverage = np.where(has["thick"][:, None, None, None], widened, strokes) / 255

    count = len(gray)
    ink = _ink(_uniform(has["warm"], WARM_HUES, COLD_HUES, generator), generator)
    ground = _uniform(has["light"], LIGHT_LEVELS, DARK_LEVELS, generator)[:, None, None, None]
    image = ground + (ink[:, :, None, None] - ground) * coverage
    image[has["patch"], :, -PATCH_SIDE:, -PATCH_SIDE:] = 0.5
    image += NOISE * generator.standard_normal((count, 1, *image.shape[2:]))
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _uniform(
    chosen: NDArray[np.bool_],
    where_chosen: tuple[float, float],
    elsewhere: tuple[float, float],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """A number from one of two ranges for every sample: `[N]`."""
    low, high = (np.where(chosen, one, other) for one, other in zip(where_chosen, elsewhere))
    return generator.uniform(low, high)


def _ink(hue: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """RGB 0-1 `[N, 3]` of hues in degrees, with random saturation and value (HSV)."""
    saturation, value = (
        generator.uniform(0.6, 1.0, (len(hue), 1)),
        generator.uniform(0.55, 0.8, (len(hue), 1)),
    )
    sector = (np.array([5.0, 3.0, 1.0]) + hue[:, None] / 60) % 6
    return value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


class DigitAttributes(Task):
    name = "digit-attributes"
    version = 2
    title = "Digit attributes"
    source = "scikit-learn digits (UCI, Alpaydin & Kaynak 1998), rendered with drawn attributes"
    bias_name = "ink colour"
    num_classes = 2
    num_biases = 2
    conflicting_share = 1 - STRENGTHS["warm"][1]
    fresh_draw = "turn, size, place, drawn attributes and noise of the same digits"
    model = "convnet-small"
    recipe = Recipe(
        steps=1200, finetune_steps=300, batch_size=128, lr=2e-3, finetune_lr=2e-3, schedule="cosine"
    )
    attributes = Attributes(names=NAMES, target="large", identities=tuple(STRENGTHS))

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_digits()

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        gray, digit = read_digits()
        generator = np.random.default_rng([seed, 69_621])
        train, val, test = split_digits(len(digit), generator)

        def make(members: NDArray[np.int64], copies: int, generator: np.random.Generator) -> Split:
            members = np.tile(members, copies)
            attributes = draw_attributes(digit[members], generator)
            images = torch.from_numpy(render(gray[members], attributes, generator))
            bias = torch.from_numpy(attributes[:, NAMES.index("warm")].astype(np.int64))
            return Split(images, torch.from_numpy(attributes), bias, image=torch.from_numpy(members))

        return Splits(
            train=make(train, COPIES, generator),
            val=make(val, COPIES, generator),
            test=make(test, TEST_COPIES, self.test_generator(TEST_SEED)),
        )
