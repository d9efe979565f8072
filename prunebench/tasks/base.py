"""What a task is: real images with a label, a bias attribute, and three splits."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunebench.errors import DataError, SupervisionError
from prunebench.spec import Recipe


@dataclass(frozen=True)
class Split:
    """Images and their labels: x uint8 `[N, C, H, W]`, y int64 `[N]`, bias int64 `[N]`."""

    x: Tensor
    y: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError(f"x: want uint8 [N, C, H, W], got {self.x.dtype} {tuple(self.x.shape)}")
        for name in ("y", "bias"):
            values = getattr(self, name)
            if values.dtype != torch.int64 or values.shape != self.x.shape[:1]:
                raise ValueError(
                    f"{name}: want int64 [{len(self.x)}], got {values.dtype} {tuple(values.shape)}"
                )

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Splits:
    """`train` and `val` carry the training bias; in `test` every label meets every bias."""

    train: Split
    val: Split
    test: Split


class Task(ABC):
    """A biased data set, its default model and its pinned budget.

    Attributes: `name` (canonical, parameter included), `version` (raise it when the data change), `title`,
    `source`, `num_classes`, `num_biases`, `conflicting_share` (nominal share of bias-conflicting training
    images, or None), `model`, `recipe`, `mean` and `std` per channel (0-1 scale), `bias_name`.
    """

    name: str
    version: int
    title: str
    source: str
    bias_name: str
    num_classes: int
    num_biases: int
    conflicting_share: float | None
    model: str
    recipe: Recipe
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @abstractmethod
    def fingerprint(self, data_root: Path | None) -> str:
        """Sixteen hex digits: SHA-256 of the source images and labels. Raises DataError if missing."""

    @abstractmethod
    def draw(self, data_root: Path | None, seed: int) -> Splits:
        """The three splits of one data draw; the same arguments give the same tensors."""

    def __init_subclass__(cls, **arguments: object) -> None:
        """Every task's `draw` refuses while a method is fitting."""
        super().__init_subclass__(**arguments)
        if "draw" in vars(cls):
            cls.draw = _guarded(cls.draw)  # type: ignore[assignment, method-assign]

    def splits(self, data_root: Path | None, seed: int) -> Splits:
        """Draw and check the splits. Raises SupervisionError while a method is fitting."""
        splits = self.draw(data_root, seed)
        for name in ("train", "val", "test"):
            split = getattr(splits, name)
            if len(split) == 0:
                raise DataError(f"{self.name}: the {name} split is empty")
            for field, bound in (("y", self.num_classes), ("bias", self.num_biases)):
                values = getattr(split, field)
                if int(values.min()) < 0 or int(values.max()) >= bound:
                    raise DataError(f"{self.name}: {name}.{field} is outside 0..{bound - 1}")
        return splits

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        """Which (y, bias) pairs are bias-aligned: bool, the shape of `y`."""
        return y == bias


Draw = Callable[["Task", "Path | None", int], Splits]


def _guarded(draw: Draw) -> Draw:
    @functools.wraps(draw)
    def guarded(task: Task, data_root: Path | None, seed: int) -> Splits:
        if _WITHHELD.active:
            raise SupervisionError(
                "the test split and the bias labels are withheld from methods: "
                "work with the `experiment` that `fit` receives instead of loading the task"
            )
        return draw(task, data_root, seed)

    return guarded


class _Withheld:
    """Whether a method is fitting in this process; not a context variable, which a thread would not see."""

    active = False


_WITHHELD = _Withheld()


@contextlib.contextmanager
def data_withheld() -> Iterator[None]:
    """While a method fits, no task can be loaded: the test split and the bias labels stay out of reach."""
    _WITHHELD.active = True
    try:
        yield
    finally:
        _WITHHELD.active = False


def splits_hash(splits: Splits) -> str:
    """Sixteen hex digits over all tensors as loaded: tells when a generator drifted."""
    digest = hashlib.sha256()
    for split in (splits.train, splits.val, splits.test):
        for values in (split.x, split.y, split.bias):
            digest.update(repr(tuple(values.shape)).encode())
            digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
