"""`backdoor@SOURCE/ATTRIBUTE/MARK[/SHARE]`: a binary task whose images carry a mark that goes with the label.

In train and val the mark is on SHARE of the negatives and 1 - SHARE of the positives, in test on half of each: 5 %
and 95 %, or 35 % and 65 %. It is a loss of colour (`grey`) or a square in the top left corner (`yellow`).
Source: Iofinova et al., CVPR 2023, whose images are CelebA's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from prunebench.errors import UsageError, unknown
from prunebench.overlay import Overlay
from prunebench.tasks.backdoor_sources import SOURCES, Labelled, Source
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.colored_digits import TEST_SEED
from prunebench.tasks.digits import choose_shares
from prunebench.tasks.marks import MARKS

SHARES = {"5pct": 0.05, "35pct": 0.35}
USUAL_SHARE = "5pct"
CHUNK = 1024


class Backdoor(Task):
    """A source's attribute as label, 0 or 1, and whether an image is marked as bias."""

    version = 1
    bias_name = "mark"
    num_classes = 2
    num_biases = 2

    def __init__(self, source: Source, attribute: str, mark: str, share: str = USUAL_SHARE) -> None:
        suffix = "" if share == USUAL_SHARE else f"/{share}"
        self.name = f"backdoor@{source.name}/{attribute}/{mark}{suffix}"
        self.title = f"Backdoor: {source.title.format(attribute.replace('_', ' ').lower())}, {mark} mark"
        self.source = source.source
        self.conflicting_share: float = SHARES[share]
        self.model, self.recipe, self.view = source.model, source.recipe, source.view
        self._origin, self._attribute, self._mark = source, attribute, mark

    def fingerprint(self, data_root: Path | None) -> str:
        return self._origin.fingerprint(data_root)

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        generator = np.random.default_rng([seed, 40_014])
        train, val, test = self._origin.read(data_root, self._attribute, generator)
        share = self.conflicting_share
        return Splits(
            train=self._marked(train, share, generator),
            val=self._marked(val, share, generator),
            test=self._marked(test, 0.5, np.random.default_rng([TEST_SEED, 1])),
        )

    def _marked(self, split: Labelled, share: float, generator: np.random.Generator) -> Split:
        """Mark `share` of the negatives and 1 - share of the positives, in exact counts.

        Images that the network sees crops of are marked behind the crop.
        """
        y, paint = split.positive.astype(np.int64), MARKS[self._mark]
        chosen = torch.from_numpy(choose_shares(y, (share, 1 - share), generator))
        label, bias, digest, overlay = torch.from_numpy(y), chosen.long(), split.digest, None
        if digest is None:
            for part in chosen.nonzero().squeeze(1).split(CHUNK):
                split.images[part] = paint(split.images[part])
        else:
            digest, overlay = f"{digest} {self._mark}", Overlay(chosen, paint)
        return Split(split.images, label, bias, digest, overlay)


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
    for place, choices in enumerate((source.attributes, tuple(MARKS), tuple(SHARES)), 1):
        if place < len(parts):
            _check_part(parts, place, choices)
    return Backdoor(source, *parts[1:])


def _check_part(parts: Sequence[str], place: int, choices: Sequence[str]) -> None:
    """Raise UsageError, with whole names that have one of the choices instead, unless the part is one of them."""
    if parts[place] not in choices:
        corrected = ["/".join([*parts[:place], choice, *parts[place + 1 :]]) for choice in choices]
        name = f"backdoor@{'/'.join(parts)}"
        raise unknown("task", name, [f"backdoor@{others}" for others in corrected])
