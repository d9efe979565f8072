"""Arguments of the metrics: one door for arrays of any kind in, checked tensors on the CPU inside, and the way back.

What has a number at each place comes in: tensors, NumPy arrays of any stride, byte order and width, pandas and polars
columns, nested lists. Rows are paired by position; an index is not read. Missing values, text and dates are refused by
the argument's name.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from prunebench.errors import MetricError

Array = Tensor | np.ndarray

P = ParamSpec("P")
R = TypeVar("R")

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch stores but hardly computes with."""
MOST_CELLS = 1 << 28
"""Of a table of samples by classes, 2 GiB of float64, where most of its classes do not occur."""


def read_array(name: str, values: Any) -> Tensor:
    """`values` as a tensor of a type that torch computes with, of any shape, where it lies.

    Raises MetricError naming the argument, and what to do, for missing values and for what is not numbers.
    """
    if isinstance(values, Tensor):
        tensor = values.detach()
        tensor = tensor if tensor.layout is torch.strided else tensor.to_dense()
        return _signed(name, tensor) if tensor.dtype in UNSIGNED else tensor
    array = _numbers(name, _to_numpy(name, values))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise MetricError(f"{name}: holds {int(array.max())}, more than 64-bit integers with a sign hold")
        array = array.astype(np.int64)
    # In this machine's byte order and in one piece, and never torch's view of memory that must not be written.
    array = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "W"])
    backwards = any(stride < 0 for stride in array.strides)  # NumPy calls an axis of one backwards contiguous
    return torch.from_numpy(array.copy() if backwards else array)


def _signed(name: str, tensor: Tensor) -> Tensor:
    whole = tensor.long()
    if tensor.dtype == torch.uint64 and bool((whole < 0).any()):
        raise MetricError(f"{name}: holds values beyond 64-bit integers with a sign")
    return whole


def _to_numpy(name: str, values: Any) -> np.ndarray:
    """Columns and lists as the array that they hold, in the order of their rows."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.getmaskarray(values).any():
            raise _missing(name, int(np.ma.getmaskarray(values).sum()))
        values = values.data
    elif hasattr(values, "to_numpy"):
        values = values.to_numpy()
    elif isinstance(values, list | tuple):
        values = [_to_numpy(name, entry) if _is_array(entry) else entry for entry in values]
    elif isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"{name}: want one array of numbers: {error}") from error


def _is_array(entry: Any) -> bool:
    return isinstance(entry, Tensor) or hasattr(entry, "to_numpy")


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    """The array with a type of numbers that torch knows; objects that are all numbers become numbers."""
    if array.dtype.kind == "O":
        array = _unpacked(name, array)
    if array.dtype.name.startswith(("bfloat16", "float8")):
        array = array.astype(np.float32)
    kind, narrow = array.dtype.kind, {"f": np.float64, "c": np.complex128}
    if kind in narrow and array.dtype.itemsize > np.dtype(narrow[kind]).itemsize:
        array = array.astype(narrow[kind])
    if kind not in "biufc":
        raise MetricError(
            f"{name}: want numbers, got {_words(array)}; give each value a code from 0: "
            f"np.unique({name}, return_inverse=True)[1]"
        )
    return array


def _unpacked(name: str, array: np.ndarray) -> np.ndarray:
    entries = array.ravel().tolist()
    missing = sum(_is_missing(entry) for entry in entries)
    if missing:
        raise _missing(name, missing)
    if all(isinstance(entry, numbers.Number | np.number | np.bool_) for entry in entries):
        try:
            return np.array(entries, dtype=None if entries else np.int64).reshape(array.shape)
        except OverflowError as error:
            raise MetricError(f"{name}: {error}") from error
    return array


def _is_missing(entry: Any) -> bool:
    """None, and what pandas writes for a missing value; nan is a number here."""
    return entry is None or type(entry).__name__ in ("NAType", "NaTType")


def _missing(name: str, count: int) -> MetricError:
    return MetricError(f"{name}: {count} values are missing; leave those samples out of every argument")


def _words(array: np.ndarray) -> str:
    if array.dtype.kind in "US":
        return "text"
    if array.dtype.kind in "Mm":
        return "dates or times"
    if array.dtype.kind == "O" and array.size:
        return f"objects of type {type(array.ravel()[0]).__name__}"
    return f"values of type {array.dtype}"


def as_tensor(name: str, values: Array, *, ndim: int | tuple[int, ...]) -> Tensor:
    """`values` as a CPU tensor of `ndim` dimensions (or one of those). Raises MetricError naming the argument."""
    tensor = read_array(name, values).cpu()
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
        missing = int(torch.isnan(tensor).sum())
        raise _missing(name, missing) if missing else MetricError(f"{name}: want indices from 0, as integers")
    return tensor.long()


def as_whole(name: str, tensor: Tensor) -> Tensor:
    """Integers (or bool) as int64. Raises MetricError on other types, saying whether values are missing."""
    if tensor.is_floating_point() or tensor.is_complex():
        missing = int(torch.isnan(tensor).sum())
        if missing:
            raise _missing(name, missing)
        raise MetricError(f"{name}: want integers, got {tensor.dtype}: class indices, not scores")
    return tensor.long()


def as_pairs(name: str, values: Array) -> Tensor:
    """Bool `[C, B]` on the CPU. Raises MetricError on other types and shapes."""
    pairs = read_array(name, values).cpu()
    if pairs.ndim != 2 or pairs.dtype != torch.bool:
        raise MetricError(f"{name}: want bool [C, B], got {pairs.dtype} {tuple(pairs.shape)}")
    return pairs


def as_count(name: str, value: Any) -> int:
    """A whole number of at least 1, of Python or NumPy. Raises MetricError on anything else."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool | np.bool_) or count < 1:
        whole = "" if isinstance(value, int) else ", as an integer"
        raise MetricError(f"{name}: want at least one{whole}, got {value}")
    return count


def check_rows(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Raise MetricError unless both have as many samples."""
    if len(values) != len(other):
        raise MetricError(f"{name}: has {len(values)} samples, {other_name} {len(other)}")


def check_columns(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Raise MetricError unless both `[N, K]` have as many columns."""
    if values.shape[1] != other.shape[1]:
        raise MetricError(f"{name}: has {values.shape[1]} columns, {other_name} {other.shape[1]}")


def check_table(name: str, indices: Tensor, classes: int) -> None:
    """Raise MetricError where a column for each class would be a huge table, and codes in use make it a small one."""
    if indices.numel() * classes > MOST_CELLS and classes > 2 * len(indices.unique()):
        raise MetricError(
            f"{name}: values up to {classes - 1} would be as many columns; give those that occur codes from 0: "
            f"np.unique({name}, return_inverse=True)[1]"
        )


def compact(*indices: Tensor) -> list[Tensor]:
    """The same class indices numbered from 0 in the same order, without those that occur in none of them."""
    found, codes = torch.unique(torch.cat([values.flatten() for values in indices]), return_inverse=True)
    del found
    parts = codes.split([values.numel() for values in indices])
    return [part.view(values.shape) for part, values in zip(parts, indices)]


def as_given(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with NumPy arrays in its result where the caller gave NumPy (or columns) and no tensor.

    Tensors inside of tuples, lists, mappings and dataclasses are converted too. Lists alone give tensors.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        given = [*args, *kwargs.values()]
        if any(isinstance(value, Tensor) for value in given):
            return result
        foreign = any(hasattr(value, "__array__") and getattr(value, "ndim", 0) for value in given)
        return to_numpy(result) if foreign else result

    return wrapped


def to_numpy(value: Any) -> Any:
    """The value with every tensor in it as a NumPy array."""
    if isinstance(value, Tensor):
        return value.cpu().numpy()
    if isinstance(value, list | tuple):
        return type(value)(map(to_numpy, value))
    if isinstance(value, Mapping):
        return {key: to_numpy(entry) for key, entry in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: to_numpy(entry) for name, entry in fields.items()})
    return value


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
