"""The contract of a task: real images with a label, a bias attribute, and three splits."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunebench.data.transforms import ImageTransform
from prunebench.errors import DataError, SupervisionError, UsageError
from prunebench.results.spec import TUNE_SEEDS, Recipe, View


@dataclass(frozen=True)
class Split:
    """Images and their labels: x uint8 `[N, C, H, W]`, bias int64 `[N]`, y class indices int64 `[N]`.

    In a multi-label task y holds K binary attributes instead: uint8 `[N, K]`. `digest`, a hash of x, is given where
    x is a file mapped into memory: such images are streamed to the device, and their bytes not hashed at every run.
    `overlay` changes some of them where they are shown; the digest then names the change too. `image`, int64 `[N]`, is
    given where samples may be one source image (jittered, or in ten colours): its number.
    """

    x: Tensor
    y: Tensor
    bias: Tensor
    digest: str | None = None
    overlay: ImageTransform | None = None
    image: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError(f"x: want uint8 [N, C, H, W], got {self.x.dtype} {tuple(self.x.shape)}")
        if self.y.ndim == 2 and (self.y.dtype != torch.uint8 or len(self.y) != len(self.x)):
            raise ValueError(f"y: want uint8 [{len(self.x)}, K], got {self.y.dtype} {tuple(self.y.shape)}")
        for name in ("bias", "image") if self.y.ndim == 2 else ("y", "bias", "image"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.dtype != torch.int64 or values.shape != self.x.shape[:1]:
                raise ValueError(
                    f"{name}: want int64 [{len(self.x)}], got {values.dtype} {tuple(values.shape)}"
                )
        if self.overlay is not None:
            chosen = self.overlay.chosen
            if chosen.dtype != torch.bool or chosen.shape != self.x.shape[:1] or self.digest is None:
                raise ValueError(
                    f"overlay: want bool [{len(self.x)}] and a digest, got {chosen.dtype} {tuple(chosen.shape)}"
                )

    def __len__(self) -> int:
        return len(self.y)

    def images(self) -> Tensor:
        """The source image that each sample shows, int64 `[N]`: one of its own where nothing else is known."""
        return torch.arange(len(self)) if self.image is None else self.image

    def pictures(self, index: Sequence[int]) -> Tensor:
        """Some images for people to look at, whole, with the overlay: uint8 `[n, C, H, W]`."""
        rows = torch.tensor(index, dtype=torch.int64)
        if self.overlay is None:
            return self.x[rows]
        return self.overlay.painter(self.x.device)(self.x[rows].float(), rows).round().to(torch.uint8)


@dataclass(frozen=True)
class Splits:
    """`train` and `val` carry the training bias; in `test` every label meets every bias.

    `val_balanced` makes, when it is asked for, validation's own images marked so that every (label, bias) group is as
    frequent; where a task cannot, validation is thinned (`tasks.balanced`). It draws from a generator of its own.
    """

    train: Split
    val: Split
    test: Split
    val_balanced: Callable[[], Split] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Attributes:
    """What a multi-label task predicts: K binary attributes, in the order of the columns of y.

    `target` is the attribute whose value is the label of the group table; `identities` are those that bias
    amplification is measured against.
    """

    names: tuple[str, ...]
    target: str
    identities: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (self.target, *self.identities):
            if name not in self.names:
                raise ValueError(f"attribute {name!r} is not among {', '.join(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def target_index(self) -> int:
        return self.names.index(self.target)

    @property
    def identity_indices(self) -> tuple[int, ...]:
        return tuple(self.names.index(name) for name in self.identities)


class Task(ABC):
    """A biased data set, its default model and its pinned budget.

    Attributes: `name` (canonical, parameter included), `version` (raise it when the data change), `title`,
    `source`, `num_classes`, `num_biases`, `conflicting_share` (nominal share of bias-conflicting training
    images, or None), `unbiased_share` (the share at which bias says nothing of the label, for tune draws; None where
    validation is not drawn with a share, or all splits follow one distribution), `model`, `recipe`, `mean` and `std`
    per channel (0-1 scale), `bias_name`. A multi-label task has `attributes`; its group table is of one of them, so its
    `num_classes` is 2. With a `view` the network sees crops of the images. `fresh_draw` says in words what is new in a
    fresh draw of the test split, and is empty where there can be none; a task that says something draws its test split
    from `test_generator`.
    """

    name: str
    version: int
    title: str
    source: str
    bias_name: str
    num_classes: int
    num_biases: int
    conflicting_share: float | None
    unbiased_share: float | None = None
    model: str
    recipe: Recipe
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    attributes: Attributes | None = None
    view: View | None = None
    fresh_draw: str = ""
    _freshness: tuple[int, ...] = ()

    def refreshed(self, freshness: Sequence[int]) -> Task:
        """This task with another draw of its test split; training and validation images stay as they are.

        freshness: whole numbers from 0 up, which only who drew knows. Raises UsageError where `fresh_draw` is empty.
        """
        if not self.fresh_draw:
            raise UsageError(f"{self.name}: its test images are public as they are: there is no fresh draw")
        task = copy.copy(self)
        task._freshness = tuple(freshness)
        return task

    @property
    def is_fresh(self) -> bool:
        """Whether its test split is another one than the public one."""
        return bool(self._freshness)

    def test_generator(self, *public: int) -> np.random.Generator:
        """Of the test split: of public constants, or of a fresh draw."""
        return np.random.default_rng([*self._freshness, *public])

    @property
    def num_outputs(self) -> int:
        """Logits of an image: one a class, or one an attribute."""
        return self.num_classes if self.attributes is None else len(self.attributes)

    def group_label(self, y: Tensor) -> Tensor:
        """The label of the group table, int64 `[N]`: y itself, or the target attribute of y `[N, K]`."""
        return y if self.attributes is None else y[:, self.attributes.target_index].long()

    def group_prediction(self, logits: Tensor) -> Tensor:
        """What logits `[..., outputs]` say of that label: the largest class, or whether the target's logit > 0."""
        if self.attributes is None:
            return logits.argmax(-1)
        return (logits[..., self.attributes.target_index] > 0).long()

    def remarks(self, data_root: Path | None) -> tuple[str, ...]:
        """What is odd about the data and does not hinder a run, a sentence each; for the user to read."""
        return ()

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
        """Draw and check the splits. Raises SupervisionError while a method is fitting.

        Seeds from TUNE_SEEDS are for choosing budgets: in place of the test split stand the validation images, which
        are held out of the training images, drawn without bias where the task has an `unbiased_share`, else as they
        are. What is tuned so has not seen the test split.
        """
        splits = self.draw(data_root, seed)
        if seed >= TUNE_SEEDS:
            splits = replace(splits, test=self._unbiased_validation(data_root, seed, splits))
        for name in ("train", "val", "test"):
            split = getattr(splits, name)
            if len(split) == 0:
                raise DataError(f"{self.name}: the {name} split is empty")
            columns = split.y.shape[1] if split.y.ndim == 2 else None
            wanted = None if self.attributes is None else len(self.attributes)
            if columns != wanted:
                raise DataError(f"{self.name}: {name}.y has {columns} columns, the task {wanted} attributes")
            for kind, bound in (("y", self.num_classes), ("bias", self.num_biases)):
                values = getattr(split, kind)
                if int(values.min()) < 0 or int(values.max()) >= bound:
                    raise DataError(f"{self.name}: {name}.{kind} is outside 0..{bound - 1}")
        return splits

    def _unbiased_validation(self, data_root: Path | None, seed: int, splits: Splits) -> Split:
        if self.unbiased_share is None:
            return splits.val
        unbiased = copy.copy(self)
        unbiased.conflicting_share = self.unbiased_share
        return unbiased.draw(data_root, seed).val

    def aligned(self, y: Tensor, bias: Tensor) -> Tensor:
        """Which (group label, bias) pairs are bias-aligned: bool, the shape of `y`."""
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


def split_hash(split: Split) -> str:
    """Sixteen hex digits over one split: equal for equal images and labels. `digest` stands for the images."""
    digest = hashlib.sha256(split.digest.encode() if split.digest else split.x.contiguous().numpy().tobytes())
    for values in (split.y, split.bias):
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def splits_hash(splits: Splits) -> str:
    """Sixteen hex digits over all tensors as loaded: tells when a generator drifted.

    A split's own `digest` stands for the bytes of its images. Balanced validation follows from these and the seed, and
    is not in it.
    """
    digest = hashlib.sha256()
    for split in (splits.train, splits.val, splits.test):
        for values in (split.x, split.y, split.bias):
            digest.update(repr(tuple(values.shape)).encode())
            known = split.digest if values is split.x else None
            digest.update(known.encode() if known else values.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
