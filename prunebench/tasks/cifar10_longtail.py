"""`cifar10-longtail`: CIFAR-10 with a hundredth as many trucks as planes (CIFAR-10-LT; Cui et al., CVPR 2019)."""

from __future__ import annotations

import numpy as np

from prunebench.tasks.base import Splits
from prunebench.tasks.cifar10 import CLASSES, VAL_SHARE, Cifar10, Cifar10Task, Whole

IMBALANCE = 100
RAREST = len(CLASSES) // 2
"""Classes from this one on are the rare half."""


class Cifar10LongTail(Cifar10Task):
    """Label: the object; the bias is how often training shows its class: 0 for the common five, 1 for the rare five.

    Class k of 0 to 9 has 5000 x 100^(-k/9) images, 5,000 to 50, of which a tenth validates; the test images are all
    10,000. So a group is a class: "unbiased" is the mean class recall (balanced accuracy), "aligned" and "conflicting"
    are the mean recalls of common and of rare classes, "worst group" is the lowest recall of a class. Which classes are
    rare is their order in the data set, as in the literature: harder and easier classes are not balanced.
    """

    name = "cifar10-longtail"
    title = "CIFAR-10 with a long tail"
    source = "CIFAR-10 (Krizhevsky, 2009), thinned as CIFAR-10-LT (Cui et al., CVPR 2019)"
    bias_name = "rarity"
    conflicting_share = 0.072
    fresh_draw = "other images, which neither training nor validation of the seed shows"

    def draw_from(self, source: Cifar10, seed: int) -> Splits:
        order = np.concatenate(source.shuffled(seed))
        most = int(np.bincount(source.labels[: source.train]).max())
        train, val, unused = [], [], []
        for label, count in enumerate(thinned(most)):
            everything = order[source.labels[order] == label]
            members = everything[:count]
            unused.append(everything[count:])
            held = max(round(VAL_SHARE * len(members)), 1)
            val.append(members[:held])
            train.append(members[held:])
        parts = (
            np.sort(np.concatenate(train)),
            np.sort(np.concatenate(val)),
            self._fresh(unused) if self.is_fresh else source.test,
        )
        return Splits(*(source.split(part, rarity(source.labels[part])) for part in parts))

    def _fresh(self, unused: list[Whole]) -> Whole:
        """Positions of as many unused images of every class, the commonest but for one, which has none left."""
        generator, fewest = self.test_generator(IMBALANCE), min(len(left) for left in unused[1:])
        return np.sort(np.concatenate([generator.permutation(left)[:fewest] for left in unused[1:]]))


def thinned(most: int) -> list[int]:
    """Images of every class, from the most common one's `most` to a hundredth of it."""
    return [max(int(most * IMBALANCE ** (-place / (len(CLASSES) - 1))), 2) for place in range(len(CLASSES))]


def rarity(labels: Whole) -> Whole:
    """0 for a class of the common half, 1 for one of the rare half."""
    return (labels >= RAREST).astype(np.int64)
