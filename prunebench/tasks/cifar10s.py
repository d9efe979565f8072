"""`cifar10s`: five classes of CIFAR-10 mostly in grey, five mostly in colour (CIFAR-10S; Wang et al., CVPR 2020)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunebench.data.transforms import turn_grey
from prunebench.tasks.balanced import equally_many
from prunebench.tasks.base import Split, Splits
from prunebench.tasks.cifar10 import CLASSES, Cifar10, Cifar10Task, Whole

MOSTLY_GREY = ("airplane", "bird", "deer", "frog", "ship")
SKEW = 0.95
COLOUR, GREY = 0, 1


class Cifar10S(Cifar10Task):
    """Label: the object; bias: colour (0) or grey (1), as Pillow turns an image grey.

    In training and validation 95 % of every class look as the class mostly does; the seed says which. The test split
    shows every test image twice, first all in colour and then all in grey: image i and image i + N / 2 are one.
    """

    name = "cifar10s"
    title = "CIFAR-10S, grey or in colour"
    source = "CIFAR-10 (Krizhevsky, 2009), skewed as CIFAR-10S (Wang et al., CVPR 2020)"
    bias_name = "greyness"
    conflicting_share = 1 - SKEW

    def draw_from(self, source: Cifar10, seed: int) -> Splits:
        def show(positions: Whole, bias: Whole, source: Cifar10 = source) -> Split:
            split = source.split(positions, bias)
            grey = split.bias == GREY
            split.x[grey] = turn_grey(split.x[grey])
            return split

        def both_ways(positions: Whole, source: Cifar10) -> Split:
            return show(np.tile(positions, 2), np.repeat([COLOUR, GREY], len(positions)), source)

        order = source.shuffled(seed)
        own = source.part(order[1])

        def balanced() -> Split:
            return both_ways(equally_many(own.labels, np.random.default_rng([seed, 69_621, 1])), own)

        train, val = (show(part, skewed(source.labels[part])) for part in order)
        return Splits(train, val, test=both_ways(source.test, source), val_balanced=balanced)

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        return usual(y) == bias


def usual(y: Tensor) -> Tensor:
    """How the class mostly looks in training: GREY or COLOUR."""
    grey = torch.tensor([name in MOSTLY_GREY for name in CLASSES], device=y.device)
    return torch.where(grey[y], GREY, COLOUR)


def skewed(labels: Whole) -> Whole:
    """Grey or in colour: the first 95 % of every class as it mostly is."""
    bias = usual(torch.from_numpy(labels)).numpy()
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label)
        rest = members[round(SKEW * len(members)) :]
        bias[rest] = 1 - bias[rest]
    return bias
