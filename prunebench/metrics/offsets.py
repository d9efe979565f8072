"""Offsets of class logits that make the predicted class frequencies those of the labels."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import Array, as_classes, as_finite, as_given, check_rows

Numbers = np.ndarray


@as_given
def class_offsets(val_logits: Array, val_label: Array) -> Tensor:
    """Offsets `[C]`, float64, so that argmax(logits + offsets) has as many of each class as the labels.

    The multi-class analogue of `calibrated_thresholds`; for two classes it is the threshold of their difference.
    The assignment of samples to classes with the labels' counts n_c and the largest sum of logits has dual prices,
    and those are offsets that reproduce it. It is found by shortest augmenting paths over the classes: from argmax,
    each step moves one sample along the cheapest chain of classes from one with too many to one with too few, and the
    last step leaves none (at most N steps, O(N C + C^3) each). Of all offsets that fit, those are taken that keep
    the closest sample as far from the border as possible.

    The mean offset of the classes in the labels is 0; a class without labels keeps offset 0, or is lowered just
    enough for none to be predicted. The counts are exact but where samples tie at a border (equal logits), and in
    arithmetic coarser than the distance to the border.

    val_logits: `[N, C]`; val_label: class indices `[N]`. Raises MetricError on shapes that disagree, labels outside
    0..C-1, no sample, fewer than two classes, and logits that are not finite.
    """
    logits, label = as_finite("val_logits", val_logits, ndim=2), as_classes("val_label", val_label, ndim=1)
    check_rows("val_label", label, "val_logits", logits)
    classes = logits.shape[1]
    if classes < 2 or int(label.max()) >= classes:
        raise MetricError(f"val_label: want classes below the {classes} (at least 2) columns of the logits")
    values = logits.numpy()
    wanted = np.bincount(label.numpy(), minlength=classes)
    losses = _cheapest_moves(values, _assign(values, wanted)).loss
    return torch.from_numpy(_widest_offsets(losses, wanted > 0))


@dataclass(frozen=True)
class Moves:
    """The cheapest sample to move from class a to class c: what the sum of logits loses, and which sample it is."""

    loss: Numbers
    sample: Numbers


def _cheapest_moves(values: Numbers, assigned: Numbers) -> Moves:
    """Loss `[C, C]` (infinite from a class without samples, and from a class to itself) and sample `[C, C]`."""
    classes = values.shape[1]
    loss = np.full((classes, classes), math.inf)
    sample = np.zeros((classes, classes), dtype=np.int64)
    for origin in range(classes):
        rows = np.flatnonzero(assigned == origin)
        if len(rows):
            losses = values[rows, origin, None] - values[rows]
            cheapest = losses.argmin(0)
            loss[origin], sample[origin] = losses[cheapest, np.arange(classes)], rows[cheapest]
    np.fill_diagonal(loss, math.inf)
    return Moves(loss, sample)


def _assign(values: Numbers, wanted: Numbers) -> Numbers:
    """The assignment `[N]` with `wanted` samples of each class and the largest sum of logits."""
    assigned = values.argmax(1)
    slack = 1e-12 * max(float(np.abs(values).max()), 1e-300)
    while True:
        surplus = np.bincount(assigned, minlength=len(wanted)) - wanted
        if not surplus.any():
            return assigned
        moves = _cheapest_moves(values, assigned)
        chain = _cheapest_chain(moves.loss, surplus, slack)
        for origin, target in itertools.pairwise(chain):
            assigned[moves.sample[origin, target]] = target


def _cheapest_chain(loss: Numbers, surplus: Numbers, slack: float) -> list[int]:
    """Classes from one with too many samples to one with too few, by Bellman and Ford.

    Losses may be negative, but no cycle is: a way counts as shorter by more than `slack` only, so that rounding
    makes none.
    """
    classes = np.arange(len(surplus))
    distance = np.where(surplus > 0, 0.0, math.inf)
    before = np.full(len(surplus), -1)
    for _ in classes:
        through = distance[:, None] + loss
        nearest = through.argmin(0)
        shorter = through[nearest, classes] < distance - slack
        distance = np.where(shorter, through[nearest, classes], distance)
        before = np.where(shorter, nearest, before)
    chain = [int(np.where(surplus < 0, distance, math.inf).argmin())]
    while before[chain[0]] >= 0:
        chain.insert(0, int(before[chain[0]]))
    return chain


def _widest_offsets(loss: Numbers, present: Numbers) -> Numbers:
    """Offsets b `[C]` with the largest m such that b_c - b_a + m <= loss_ac for all pairs of present classes."""
    from scipy.optimize import linprog

    offsets, margin = np.zeros(len(present)), 1.0
    chosen = np.flatnonzero(present)
    if len(chosen) > 1:
        target, origin = np.nonzero(~np.eye(len(chosen), dtype=np.bool_))
        rows = np.zeros((len(origin), len(chosen) + 1))
        rows[np.arange(len(origin)), target] = 1
        rows[np.arange(len(origin)), origin] = -1
        rows[:, -1] = 1
        gain = np.append(np.zeros(len(chosen)), -1.0)
        bounds = [(0, 0), *[(None, None)] * len(chosen)]
        found = linprog(gain, A_ub=rows, b_ub=loss[chosen[origin], chosen[target]], bounds=bounds).x
        offsets[chosen], margin = found[:-1] - found[:-1].mean(), found[-1]
    for absent in np.flatnonzero(~present):
        offsets[absent] = min(0.0, float((offsets[chosen] + loss[chosen, absent]).min()) - margin)
    return offsets
