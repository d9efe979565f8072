"""The group-balanced part of validation: as many images of every (label, bias) group as of any other.

Only methods that declare `val-groups` see it. A task that makes its bias marks validation's own images anew
(`Splits.val_balanced`); of any other task, validation is thinned to its smallest group, and groups that it has no image
of are missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunebench.data.transforms import ImageTransform
from prunebench.tasks.base import Split, Splits, Task

Whole = NDArray[np.int64]


def equally_many(group: Whole, generator: np.random.Generator, *, multiple_of: int = 1) -> Whole:
    """Positions of equally many samples of each group that occurs, as many as the smallest has, in random order.

    group: `[N]`. Their number is rounded down to a multiple; it may be 0.
    """
    order = generator.permutation(len(group))
    names = np.unique(group)
    fewest = min(int((group == name).sum()) for name in names) // multiple_of * multiple_of
    chosen = np.concatenate([order[group[order] == name][:fewest] for name in names])
    return generator.permutation(chosen)


def balanced_validation(task: Task, splits: Splits, seed: int) -> Callable[[], Split]:
    """What makes the balanced part of a draw: the task, or the thinning of validation to its smallest group."""
    return splits.val_balanced or functools.partial(_thinned, task, splits.val, seed)


def _thinned(task: Task, val: Split, seed: int) -> Split:
    group = groups_of(task, val).numpy()
    return taken(val, equally_many(group, np.random.default_rng([seed, 30_323])))


def taken(split: Split, positions: Whole) -> Split:
    """Some samples of a split, in this order; images of a mapped file are read into memory."""
    rows = torch.from_numpy(positions)
    x = split.x.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)  # in memory a pixel's channels stay neighbours
    overlay = split.overlay
    return replace(
        split,
        x=x if split.digest else x.contiguous(),
        y=split.y[rows],
        bias=split.bias[rows],
        digest=split.digest and f"{split.digest} {len(rows)} balanced",
        overlay=overlay and ImageTransform(overlay.chosen[rows], overlay.paint),
        image=split.images()[rows],
    )


def groups_of(task: Task, split: Split) -> Tensor:
    """The group of each sample, label x biases + bias: int64 `[N]`."""
    return task.group_label(split.y) * task.num_biases + split.bias


def missing_groups(task: Task, elsewhere: Tensor, there: Tensor) -> tuple[tuple[int, int], ...]:
    """The (label, bias) groups that occur elsewhere and not there. Both: the group of each sample, `[N]`."""
    lacking = set(elsewhere.tolist()) - set(there.tolist())
    return tuple(divmod(group, task.num_biases) for group in sorted(lacking))
