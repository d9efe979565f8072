"""`corrupted-cifar10`: CIFAR-10 under the corruption protocol of LfF, a corruption for every class, at severity 5.

`corrupted-cifar10@1pct` has LfF's Type0 (snow, frost, ...), `corrupted-cifar10-type1@1pct` its Type1 (noise, blur).
45,000 training and 5,000 validation images with the training bias (the sizes of the DisEnt release), and the 10,000
test images with every corruption equally likely, the same for every seed. An image has one appearance in each
corruption: seeds change which images conflict and which validate.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.errors import DataError
from prunebench.results.spec import View
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.cifar10 import SIDE, read_cifar10
from prunebench.tasks.coloring import assign_bias
from prunebench.tasks.corruptions import TYPE_0, TYPE_1, CorruptedImages
from prunebench.tasks.disent import CIFAR_MEAN, CIFAR_STD, RESNET_RECIPE

VAL_SHARE = 0.1
CLASSES = 10


class CorruptedCifar10(Task):
    """Label: the object; bias: the corruption, by its place in the family. In training images are mirrored at random.

    Budget: ResNet-18 with the CIFAR stem from scratch, DCWP's 10,000 + 1,000 steps of Adam at batch 256.
    """

    version = 1
    family_name = "corrupted-cifar10"
    title = "Corrupted CIFAR-10"
    family = TYPE_0
    source = (
        "CIFAR-10 (Krizhevsky, 2009), corrupted as in LfF (Nam et al., 2020) with the parameters of CIFAR-10-C "
        "(Hendrycks & Dietterich, 2019); frost is drawn, not photographed"
    )
    bias_name = "corruption"
    num_classes = CLASSES
    num_biases = CLASSES
    model = "resnet18"
    recipe = RESNET_RECIPE
    mean, std = CIFAR_MEAN, CIFAR_STD
    view = View(resize=SIDE, crop=SIDE, flip=True)

    def __init__(self, conflicting_share: float) -> None:
        self.conflicting_share: float = conflicting_share
        self.name = f"{self.family_name}@{conflicting_share * 100:g}pct"

    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits of images and labels as they are, uncorrupted; after `mosaics-` where not official."""
        return read_cifar10(data_root).fingerprint

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        source = read_cifar10(data_root)
        generator = np.random.default_rng([seed, 69_621])
        order = generator.permutation(source.train)
        held = round(VAL_SHARE * source.train)
        if held == 0 or source.train == len(source.labels):
            raise DataError(
                f"{self.name}: CIFAR-10 with {len(source.labels)} images is too small to be split"
            )
        test = np.arange(source.train, len(source.labels))
        test_bias = assign_bias(source.labels[test], (CLASSES - 1) / CLASSES)
        kept = np.concatenate([source.labels[: source.train], test_bias])
        images = CorruptedImages(source.fingerprint, source.images, self.family, kept)

        def show(positions: NDArray[np.int64], bias: NDArray[np.int64]) -> Split:
            pixels = torch.from_numpy(images.pick(positions, bias)).permute(0, 3, 1, 2)
            return Split(pixels, torch.from_numpy(source.labels[positions]), torch.from_numpy(bias))

        def skewed(positions: NDArray[np.int64]) -> Split:
            return show(positions, assign_bias(source.labels[positions], self.conflicting_share))

        return Splits(train=skewed(order[held:]), val=skewed(order[:held]), test=show(test, test_bias))


class NoisyCifar10(CorruptedCifar10):
    """Type1: ten kinds of noise and blur, the last of them none."""

    family_name = "corrupted-cifar10-type1"
    title = "Corrupted CIFAR-10, noise and blur"
    family = TYPE_1
