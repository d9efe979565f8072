"""Arguments of the metrics: torch tensors or NumPy arrays in, checked float64 tensors on the CPU inside."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError

Array = Tensor | np.ndarray


def as_tensor(name: str, values: Array, *, ndim: int | tuple[int, ...]) -> Tensor:
    """`values` as a CPU tensor of `ndim` dimensions (or one of those). Raises MetricError naming the argument."""
    if isinstance(
        values, np.ndarray
    ):  # torch takes no negative strides, and warns of arrays that are read only
        values = np.require(values, requirements=["C", "W"])
    tensor = torch.as_tensor(values).detach().cpu()
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if tensor.ndim not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise MetricError(f"{name}: want {wanted} dimensions, got shape {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise MetricError(f"{name}: is empty, shape {tuple(tensor.shape)}")
    return tensor


def as_binary(name: str, values: Array, *, ndim: int | tuple[int, ...]) -> Tensor:
    """0/1 (or bool) values as float64. Raises MetricError on any other value."""
    tensor = as_tensor(name, values, ndim=ndim)
    if tensor.dtype != torch.bool and not ((tensor == 0) | (tensor == 1)).all():
        raise MetricError(f"{name}: want 0 and 1 only")
    return tensor.double()


def as_finite(name: str, values: Array, *, ndim: int | tuple[int, ...]) -> Tensor:
    """Real values as float64. Raises MetricError on infinite, nan or complex values."""
    tensor = as_tensor(name, values, ndim=ndim)
    if tensor.is_complex():
        raise MetricError(f"{name}: want real values, got {tensor.dtype}")
    tensor = tensor.double()
    if not torch.isfinite(tensor).all():
        raise MetricError(f"{name}: contains values that are not finite")
    return tensor


def as_classes(name: str, values: Array, *, ndim: int | tuple[int, ...]) -> Tensor:
    """Indices from 0 as int64. Raises MetricError on negative values and other dtypes."""
    tensor = as_tensor(name, values, ndim=ndim)
    if tensor.is_floating_point() or tensor.is_complex() or int(tensor.min()) < 0:
        raise MetricError(f"{name}: want indices from 0, as integers")
    return tensor.long()


def check_rows(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Raise MetricError unless both have as many samples."""
    if len(values) != len(other):
        raise MetricError(f"{name}: has {len(values)} samples, {other_name} {len(other)}")


def check_columns(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Raise MetricError unless both `[N, K]` have as many columns."""
    if values.shape[1] != other.shape[1]:
        raise MetricError(f"{name}: has {values.shape[1]} columns, {other_name} {other.shape[1]}")


def middle_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 within each column of float64 `[N, K]`, equal values sharing the mean of theirs; float64."""
    columns = np.ascontiguousarray(values.numpy().T)
    order = np.argsort(columns, axis=1)  # by far faster than torch's sort
    ranks = np.empty(columns.shape)
    for column, places, rank in zip(columns, order, ranks):
        ordered = column[places]
        first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        starts = np.flatnonzero(first)
        ends = np.append(starts[1:], len(ordered))
        rank[places] = ((starts + ends + 1) / 2)[np.cumsum(first) - 1]
    return torch.from_numpy(ranks.T)
