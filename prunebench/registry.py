"""The two doors for a method: a scoring function, or a class with `fit`.

A decorator returns a value and registers nothing: the catalogue (`methods/catalog.py`) is what the modules of
`prunebench.methods`, or a user's file, hold. So importing has no side effect.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunebench.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.experiment import Experiment, Pruned
    from prunebench.pruning.scores import ScoringContext

SUPERVISION = ("none", "val-groups", "train-groups")
NAME = re.compile(r"(?![.-])[A-Za-z0-9._+-]{1,64}")
"""Of a method: it becomes a row of tables, a file and an address."""
LONGEST_TEXT = 200
"""Characters of a setting."""
LONGEST_CITE = 300


class Procedure(Protocol):
    """What a method class must have."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned: ...


@dataclass(frozen=True)
class Method:
    """A named way to a pruned model.

    `build(**params)` makes the procedure; `params` are the settings that matter, all part of the run's identity.
    `native` methods choose their sparsity themselves; `dense` marks the unpruned baseline; `multi_label` ones also
    take tasks whose labels are attributes `[N, K]`.
    """

    name: str
    cite: str
    supervision: str
    version: str
    build: Callable[..., Procedure]
    settings: Mapping[str, Any]
    native: bool = False
    dense: bool = False
    relevant: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Which of the settings matter, given the others."""
    multi_label: bool = False

    def __post_init__(self) -> None:
        check_name("method", self.name)
        for key, value in self.settings.items():
            check_setting(self.name, key, value)
        if self.supervision not in SUPERVISION:
            raise UsageError(
                f"method {self.name!r}: supervision must be one of {SUPERVISION}, got {self.supervision!r}"
            )
        if not self.cite.strip():
            raise UsageError(f"method {self.name!r}: cite its source (cite='Author et al., year')")
        if len(self.cite) > LONGEST_CITE or not self.cite.isprintable():
            raise UsageError(
                f"method {self.name!r}: cite its source in one line of at most {LONGEST_CITE} characters"
            )

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.relevant(self.settings))

    def with_params(self, changes: Mapping[str, Any]) -> Method:
        """This method with other settings. Raises UsageError on an unknown one."""
        for key in changes:
            if key not in self.settings:
                raise unknown(f"setting of {self.name}", key, self.settings)
        return dataclasses.replace(self, settings={**self.settings, **changes})


def check_name(kind: str, name: Any) -> None:
    """Raise UsageError unless a method or criterion is called by letters, digits, `-`, `_`, `.` and `+`, at most 64."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        text = str(name)
        shown = ascii(name) if len(text) <= 80 else f"{text[:60]!a}... ({len(text)} characters)"
        raise UsageError(
            f"{kind} {shown}: a name has at most 64 letters, digits, '-', '_', '.' and '+', "
            "and begins with none of '.' and '-'"
        )


def check_setting(name: str, key: str, value: Any) -> None:
    """Raise UsageError unless a setting can name a run: a finite number, short text, truth value, None, or a list."""
    if isinstance(value, list | tuple):
        for entry in value:
            check_setting(name, key, entry)
        return
    plain = value is None or type(value) in (bool, int, float, str)
    finite = not isinstance(value, float) or math.isfinite(value)
    short = not isinstance(value, str) or (len(value) <= LONGEST_TEXT and (value.isprintable()))
    if not (plain and finite and short):
        shown = ascii(value)[:80]
        raise UsageError(
            f"setting {key} of {name}: want a finite number, a line of text, true, false or None, got {shown}; "
            "None may stand for no limit"
        )


Score = Callable[["Tensor", "ScoringContext"], "Tensor"]


@dataclass(frozen=True)
class Criterion:
    """A scoring function `scores(weight, context)`: same shape as the weight, higher = keep."""

    name: str
    cite: str
    score: Score
    at: str
    needs: frozenset[str]
    version: str

    def __post_init__(self) -> None:
        check_name("criterion", self.name)

    def __call__(self, weight: Tensor, context: ScoringContext) -> Tensor:
        return self.score(weight, context)


def criterion(
    name: str,
    *,
    cite: str,
    needs: set[str] | frozenset[str] = frozenset(),
    at: str = "dense",
    version: int = 1,
) -> Callable[[Score], Criterion]:
    """Make a scoring function a pruning criterion.

    `at="dense"` scores the trained dense model and fine-tunes; `at="init"` scores at initialisation and trains.
    `needs={"gradient"}` declares the use of `context.gradient`.
    """
    if at not in ("dense", "init"):
        raise UsageError(f"criterion {name!r}: at must be 'dense' or 'init', got {at!r}")
    extra = set(needs) - {"gradient"}
    if extra:
        raise UsageError(f"criterion {name!r}: needs {sorted(extra)} is unknown; known: gradient")
    return lambda score: Criterion(name, cite, score, at, frozenset(needs), str(version))


def method(
    name: str,
    *,
    cite: str,
    supervision: str = "none",
    version: int = 1,
    native: bool = False,
    dense: bool = False,
    multi_label: bool = False,
) -> Callable[[type], Method]:
    """Make a class with `fit(experiment, sparsity)` a method; dataclass fields are its settings."""

    def wrap(cls: type) -> Method:
        if not callable(getattr(cls, "fit", None)):
            raise UsageError(f"method {name!r}: the class needs fit(self, experiment, sparsity)")
        return Method(
            name,
            cite,
            supervision,
            str(version),
            cls,
            defaults_of(cls),
            native,
            dense,
            multi_label=multi_label,
        )

    return wrap


def defaults_of(cls: type) -> dict[str, Any]:
    """The settings of a method class: its dataclass fields, each with a default."""
    if not dataclasses.is_dataclass(cls):
        return {}
    settings = {}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING:
            raise UsageError(f"{cls.__name__}.{field.name}: a setting needs a plain default value")
        settings[field.name] = field.default
    return settings
