"""Multi-class tasks in the metrics of binary attributes: one column for each class against the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from prunebench.errors import MetricError
from prunebench.metrics.arrays import (
    Array,
    as_binary,
    as_classes,
    as_count,
    as_finite,
    as_given,
    as_tensor,
    check_columns,
    check_rows,
    check_table,
)


@as_given
def one_hot(labels: Array, classes: int) -> Tensor:
    """Class indices as columns: column c is 1 where the label is c, 0/1 int64 `[N, C]` (or `[R, N, C]`).

    Args:
        labels: class indices `[N]` or `[R, N]`.
        classes: C.

    Raises:
        MetricError: labels that are no integers, or outside 0..C-1.
    """
    classes = as_count("classes", classes)
    indices = as_classes("labels", labels, ndim=(1, 2))
    if int(indices.max()) >= classes:
        raise MetricError(f"labels: values outside 0..{classes - 1}")
    return torch.nn.functional.one_hot(indices, classes)


@as_given
def one_vs_rest(logits: Array) -> Tensor:
    """The logit of each class against all others: z_c - log sum_{k != c} exp z_k, float64, same shape.

    Its sigmoid is the softmax probability of the class, and it stays finite where that rounds to 1. This is how a
    multi-class task gets the metrics of binary attributes: K = C columns, of which exactly one a sample is true.

    Args:
        logits: `[N, C]` or `[M, N, C]` with at least two classes.

    Raises:
        MetricError: other shapes, or values that are not finite.
    """
    values = as_finite("logits", logits, ndim=(2, 3))
    if values.shape[-1] < 2:
        raise MetricError(f"logits: want at least two classes, got shape {tuple(values.shape)}")
    top, winner = values.max(dim=-1, keepdim=True)
    share = torch.exp(values - top)
    # Without the winner's own share, which is 1: their difference would cancel for the winner itself.
    others = share.sum(-1, keepdim=True) - share
    rest = top + torch.log(others.scatter(-1, winner, 1.0))
    without = values.scatter(-1, winner, -math.inf).logsumexp(-1, keepdim=True)
    return values - rest.scatter(-1, winner, without)


def logit_columns(logits_name: str, logits: Array, label_name: str, label: Array) -> tuple[Tensor, Tensor]:
    """Checked float64 logits and 0/1 labels, both `[N, K]`.

    label `[N, K]`: K binary attributes, as given. label `[N]`: class indices, so logits `[N, C]` are those of the
    classes and both become one-vs-rest. Raises MetricError on anything else.
    """
    truth = as_tensor(label_name, label, ndim=(1, 2))
    values = as_finite(logits_name, logits, ndim=2)
    check_rows(label_name, truth, logits_name, values)
    if truth.ndim == 2:
        check_columns(label_name, truth, logits_name, values)
        return values, as_binary(label_name, truth, ndim=2)
    if values.shape[1] < 2:
        raise MetricError(
            f"{label_name}: one column of logits is one binary attribute; give its labels as [N, 1], got [N]"
        )
    return one_vs_rest(values), class_columns(label_name, truth, values.shape[1])


def class_columns(name: str, label: Array, classes: int) -> Tensor:
    """Class indices `[N]` as 0/1 float64 `[N, C]`. Raises MetricError, naming `name`, outside 0..C-1."""
    indices = as_classes(name, label, ndim=1)
    if int(indices.max()) >= classes:
        raise MetricError(f"{name}: values outside 0..{classes - 1}")
    return one_hot(indices, classes).double()


def binary_columns(arrays: Mapping[str, Array]) -> list[Tensor]:
    """0/1 float64 `[N, K]` of each array, with K the same for all.

    Either all are 0/1 `[N, K]`, or all are class indices `[N]`: these become one-vs-rest columns of as many classes
    as occur in any of them. Raises MetricError on a mixture, other values and numbers of columns that disagree.
    """
    tensors = {name: as_tensor(name, values, ndim=(1, 2)) for name, values in arrays.items()}
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.ndim != first.ndim:
            raise MetricError(
                f"{name}: has shape {tuple(tensor.shape)}, {first_name} {tuple(first.shape)}; want class indices [N]"
                " for both or 0/1 columns [N, K] for both"
            )
    if first.ndim == 1:
        indices = [as_classes(name, tensor, ndim=1) for name, tensor in tensors.items()]
        classes = 1 + max(int(values.max()) for values in indices)
        for name, values in zip(tensors, indices):
            check_table(name, values, classes)
        return [one_hot(values, classes).double() for values in indices]
    for name, tensor in tensors.items():
        check_columns(name, tensor, first_name, first)
    return [as_binary(name, tensor, ndim=2) for name, tensor in tensors.items()]
