"""`cifar10-backgrounds`: CIFAR-10 as it is, no pixel edited; the bias is blue sky and water behind planes and ships.

Of the training images it is known from their border alone: one is blue where the mean of its outermost pixels has
B > R + 8 and B >= G - 2. The five other colours have simpler rules still (`name_border`), and serve to count groups. Of
the test images people have said it: CIFAR-B (Chiu et al., ICCV 2023), whose labels and licence lie beside this file.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from torch import Tensor

from prunebench.tasks.base import Splits
from prunebench.tasks.cifar10 import CLASSES, SIDE, Bytes, Cifar10, Cifar10Task, Whole, read_cifar10

BACKGROUNDS = ("green", "grey or indoor", "blue", "white", "dark", "brown or other")
GREEN, GREY, BLUE, WHITE, DARK, BROWN = range(len(BACKGROUNDS))
UNDER_THE_SKY = (CLASSES.index("airplane"), CLASSES.index("ship"))
"""The classes whose training images are mostly blue."""
LABELS = Path(__file__).with_suffix(".txt")
LEAST_BLUE = 0.6
"""Share of the test images labelled blue whose border is: .73 if labels and images belong together, .2 if not."""


@functools.cache
def read_backgrounds() -> Whole:
    """The people's labels `[10, 1000]`, 0 to 7, by class and by place within the class in the official test batch."""
    rows = [line for line in LABELS.read_text().splitlines() if line[:1].isdigit()]
    return np.array([[int(digit) for digit in row] for row in rows])


def name_border(images: Bytes) -> Whole:
    """The background `[N]` that the mean colour of the outermost pixels of images `[N, 32, 32, 3]` suggests."""
    edge = np.ones((SIDE, SIDE), dtype=bool)
    edge[1:-1, 1:-1] = False
    colour = np.add.reduce(images[:, edge], axis=1, dtype=np.float64) / edge.sum()
    red, green, blue = colour.T
    lowest, highest = colour.min(axis=1), colour.max(axis=1)
    rules = {
        BLUE: (blue > red + 8) & (blue >= green - 2),
        DARK: highest < 75,
        WHITE: lowest > 185,
        GREEN: (green >= red - 6) & (green > blue + 8),
        GREY: highest - lowest < 14,
    }
    return np.select(list(rules.values()), list(rules), default=BROWN).astype(np.int64)


class Cifar10Backgrounds(Cifar10Task):
    """Label: the object; bias: the background, one of six.

    Aligned are planes and ships before blue, and everything else before anything but blue; in training a blue border
    covers 66 % of ships, 52 % of planes and 4 to 24 % of the others. Test images that people labelled otherwise
    (values 6 and 7, 439 of 10,000) are left out. `conflicting_share` is that of the training images by the border.
    """

    name = "cifar10-backgrounds"
    title = "CIFAR-10 by its backgrounds"
    source = "CIFAR-10 (Krizhevsky, 2009); test backgrounds by people: CIFAR-B (Chiu et al., ICCV 2023)"
    bias_name = "background"
    num_biases = len(BACKGROUNDS)
    conflicting_share = 0.175

    def draw_from(self, source: Cifar10, seed: int) -> Splits:
        border = name_border(source.images[: source.train])
        background = label_test(source)
        named = background < len(BACKGROUNDS)
        train, val = (source.split(part, border[part]) for part in source.shuffled(seed))
        return Splits(train, val, test=source.split(source.test[named], background[named]))

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return sum((y == each for each in UNDER_THE_SKY), y < 0) == (bias == BLUE)

    def remarks(self, data_root: Path | None) -> tuple[str, ...]:
        """Whether the people's labels are of other images than the test images read."""
        source = read_cifar10(data_root)
        blue = name_border(source.images[source.test]) == BLUE
        share = float(blue[label_test(source) == BLUE].mean())
        if share >= LEAST_BLUE:
            return ()
        return (
            f"only {share:.0%} of the test images that people labelled blue have a blue border: these are not "
            "CIFAR-10's test images in the official order within each class, and the test groups mean nothing",
        )


def label_test(source: Cifar10) -> Whole:
    """The people's label of every test image, found by its class and its place within the class."""
    labels, known = source.labels[source.test], read_backgrounds()
    found = np.full(len(labels), len(BACKGROUNDS))
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label)[: known.shape[1]]
        found[members] = known[label, : len(members)]
    return found
