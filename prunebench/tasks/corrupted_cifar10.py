"""`corrupted-cifar10`: CIFAR-10 under the corruption protocol of LfF, a corruption for every class, at severity 5.

`corrupted-cifar10@1pct` has LfF's Type0 (snow, frost, ...), `corrupted-cifar10-type1@1pct` its Type1 (noise, blur).
45,000 training and 5,000 validation images with the training bias (the sizes of the DisEnt release), and the 10,000
test images with every corruption equally likely, the same for every seed. An image has one appearance in each
corruption: seeds change which images conflict and which validate.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prunebench.tasks.balanced import equally_many
from prunebench.tasks.base import Split, Splits
from prunebench.tasks.cifar10 import Bytes, Cifar10, Cifar10Task, Whole
from prunebench.tasks.coloring import assign_bias
from prunebench.tasks.corruptions import TYPE_0, TYPE_1, CorruptedImages, corrupt
from prunebench.tasks.disent import RESNET_RECIPE

CLASSES = 10


class CorruptedCifar10(Cifar10Task):
    """Label: the object; bias: the corruption, by its place in the family. In training images are mirrored at random.

    Budget: ResNet-18 with the CIFAR stem from scratch, DCWP's 10,000 + 1,000 steps of Adam at batch 256.
    """

    version = 2
    family_name = "corrupted-cifar10"
    title = "Corrupted CIFAR-10"
    family = TYPE_0
    source = (
        "CIFAR-10 (Krizhevsky, 2009), corrupted as in LfF (Nam et al., 2020) with the parameters of CIFAR-10-C "
        "(Hendrycks & Dietterich, 2019); frost is drawn, not photographed"
    )
    bias_name = "corruption"
    num_biases = CLASSES
    unbiased_share = (CLASSES - 1) / CLASSES
    fresh_draw = "corruptions of the same images, and their random numbers"
    model = "resnet18"
    recipe = RESNET_RECIPE

    def __init__(self, conflicting_share: float) -> None:
        self.conflicting_share: float = conflicting_share
        self.name = f"{self.family_name}@{conflicting_share * 100:g}pct"

    def draw_from(self, source: Cifar10, seed: int) -> Splits:
        train, val = source.shuffled(seed)
        test_bias = assign_bias(source.labels[source.test], (CLASSES - 1) / CLASSES)
        kept = np.concatenate([source.labels[: source.train], test_bias])
        images = CorruptedImages(source.fingerprint, source.images, self.family, kept)

        def show(positions: Whole, bias: Whole) -> Split:
            return source.split(positions, bias, images.pick(positions, bias))

        def skewed(positions: Whole) -> Split:
            return show(positions, assign_bias(source.labels[positions], self.conflicting_share or 0.0))

        own = source.part(val)

        def balanced() -> Split:
            generator = np.random.default_rng([seed, 69_621, 1])
            rows = equally_many(own.labels, generator, multiple_of=CLASSES)
            bias = assign_bias(own.labels[rows], (CLASSES - 1) / CLASSES)
            return own.split(rows, bias, self._corrupted(own.images[rows], bias, val[rows]))

        test = self._fresh_test(source) if self.is_fresh else show(source.test, test_bias)
        return Splits(train=skewed(train), val=skewed(val), test=test, val_balanced=balanced)

    def _fresh_test(self, source: Cifar10) -> Split:
        """The test images in other corruptions, with other random numbers; none of them is kept on disk."""
        generator = self.test_generator(CLASSES)
        order = generator.permutation(source.test)
        bias = assign_bias(source.labels[order], (CLASSES - 1) / CLASSES)
        numbers = generator.integers(1 << 32, 1 << 62, len(order))
        return source.split(order, bias, self._corrupted(source.images[order], bias, numbers))

    def _corrupted(self, images: Bytes, bias: Whole, numbers: Whole) -> Bytes:
        """Images, which are written over, each in its own corruption, as the number of each has it."""
        for place, corruption in enumerate(self.family):
            here = bias == place
            images[here] = corrupt(corruption, images[here], numbers[here])
        return images

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return y == bias


class NoisyCifar10(CorruptedCifar10):
    """Type1: ten kinds of noise and blur, the last of them none."""

    family_name = "corrupted-cifar10-type1"
    title = "Corrupted CIFAR-10, noise and blur"
    family = TYPE_1
