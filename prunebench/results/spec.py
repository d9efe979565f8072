"""The specification of a run: frozen values whose hash names it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPTIMIZERS = ("adam", "sgd")
LR_SCHEDULES = ("constant", "cosine", "warmup-cosine")
TUNE_SEEDS = 100
"""Seeds from here on choose budgets: their "test" split is held out of training images, and no board has them."""
SPEC_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "data_fingerprint", "model", "method", "method_version"), (str,)),
    **dict.fromkeys(("task_version", "seed"), (int,)),
    "params": (Mapping,),
    "sparsity": (int, float, type(None)),
}
"""Of the fields of a specification, as JSON has them."""


@dataclass(frozen=True)
class Recipe:
    """The training budget of a task, the same for every method.

    `steps` optimizer steps train a network; `finetune_steps` more heal a pruned one. Methods that prune
    before or during training get the sum. Every extra step is recorded as cost.
    """

    steps: int
    finetune_steps: int
    batch_size: int
    optimizer: str = "adam"
    """`adam` or `sgd`."""
    lr: float = 1e-3
    finetune_lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Of `sgd`; Adam's betas are (0.9, 0.999)."""
    schedule: str = "constant"
    """`constant`, `cosine` (half a period over the steps) or `warmup-cosine` (linear over the first 5 %, then so)."""
    precision: str = "auto"
    """`fp32`, `bf16` (autocast) or `auto`: bf16 where the device multiplies it natively."""

    def __post_init__(self) -> None:
        for field in ("steps", "finetune_steps", "batch_size"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"recipe: {field} must be at least 1 (a whole number), got {value!r}")
        for field in ("lr", "finetune_lr", "weight_decay", "momentum"):
            value = getattr(self, field)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"recipe: {field} must be a number of at least 0, got {value!r}")
        choices: dict[str, tuple[str, ...]] = {
            "optimizer": OPTIMIZERS,
            "schedule": LR_SCHEDULES,
        }
        choices["precision"] = ("auto", "fp32", "bf16")
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"recipe: {field} must be one of {allowed}, got {getattr(self, field)!r}")

    def replace(self, changes: Mapping[str, Any]) -> Recipe:
        """This recipe with some fields changed. Raises ValueError on an unknown field."""
        known = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in known:
                raise ValueError(f"recipe: unknown field {name!r}; known: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class View:
    """What a network sees of an image: its short side scaled to `resize`, then `crop` x `crop` pixels of it.

    In training the crop lies anywhere and, with `flip`, every other image is mirrored; in evaluation it lies in the
    middle. A task's view is part of its `version`. Semantics: torchvision's Resize, RandomCrop,
    RandomHorizontalFlip and CenterCrop.
    """

    resize: int
    crop: int
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"view: want 1 <= crop <= resize, got crop {self.crop} and resize {self.resize}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after scaling; the long side is rounded down."""
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def center(self, height: int, width: int) -> tuple[int, int]:
        """First row and column of the crop in the middle of a scaled image; halves are rounded to even."""
        return round((height - self.crop) / 2), round((width - self.crop) / 2)


@dataclass(frozen=True)
class RunSpec:
    """One run: task x model x method x sparsity x seed, with everything that decides its numbers.

    `sparsity` is the share of zeros asked for, in [0, 1), or None where the method chooses it itself.
    """

    task: str
    task_version: int
    data_fingerprint: str
    model: str
    method: str
    method_version: str
    params: tuple[tuple[str, Any], ...]
    sparsity: float | None
    seed: int
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which the caller may change."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return values | {"params": copy.deepcopy(dict(self.params)), "recipe": dict(vars(self.recipe))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSpec:
        """The inverse of `to_dict`. Raises ValueError, TypeError, KeyError for what is no specification."""
        fields = dict(values)
        for name, kinds in SPEC_TYPES.items():
            if isinstance(fields[name], bool) or not isinstance(fields[name], kinds):
                raise ValueError(f"{name}: {fields[name]!a:.60} is of another type")
        fields["params"] = tuple(sorted(fields["params"].items()))
        fields["recipe"] = Recipe(**fields["recipe"])
        return cls(**fields)

    @functools.cached_property
    def run_id(self) -> str:
        """Sixteen hex digits: the hash of every field, defaults included."""
        return hash_of(self.to_dict())

    def without_method(self) -> dict[str, Any]:
        """The fields that a stage shared between sparsities depends on, but for the method's own."""
        values = self.to_dict()
        for name in ("sparsity", "method", "method_version", "params"):
            del values[name]
        return values

    @property
    def label(self) -> str:
        sparsity = "native" if self.sparsity is None else number_text(self.sparsity)
        return f"{self.task} {self.method} {sparsity} seed {self.seed}"


_FIELDS = tuple(entry.name for entry in dataclasses.fields(RunSpec))


def number_text(value: float) -> str:
    """A number as people write it, never rounded to another one: 0.9, and 0.9999999 rather than 1."""
    try:
        short = f"{value:g}"
        return short if float(short) == value or value != value else repr(value)
    except (TypeError, ValueError):
        return repr(value)


def hash_of(values: Mapping[str, Any]) -> str:
    """Sixteen hex digits of SHA-256 over canonical JSON (sorted keys, no spaces, no nan)."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
