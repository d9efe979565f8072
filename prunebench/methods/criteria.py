"""The door for a pruning criterion: one scoring function, and what it may look at besides the weight."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError, SupervisionError, UsageError
from prunebench.pruning.masks import prunable

NAME = re.compile(r"(?![.-])[A-Za-z0-9._+-]{1,64}")
"""Of a method: it becomes a row of tables, a file and an address."""
LONGEST_TEXT = 200
"""Characters of a setting."""
LONGEST_CITE = 300


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


class ScoringContext:
    """Handed to `scores(weight, context)`: the layer's name, seeded noise and, if declared, gradients."""

    def __init__(
        self,
        criterion: Criterion,
        weights: Mapping[str, Tensor],
        gradients: Callable[[], Mapping[str, Tensor]],
        generator: torch.Generator,
    ) -> None:
        self._criterion = criterion
        self._names = {id(weight): name for name, weight in weights.items()}
        self._compute = gradients
        self._gradients: Mapping[str, Tensor] | None = None
        self.generator = generator

    def name(self, weight: Tensor) -> str:
        """The layer's name, such as `body.0.weight`."""
        if id(weight) not in self._names:
            raise UsageError("context: pass the weight that was handed to the scoring function, unchanged")
        return self._names[id(weight)]

    def gradient(self, weight: Tensor) -> Tensor:
        """Gradient of the mean training loss in this weight, its shape. Declare needs={"gradient"}."""
        if "gradient" not in self._criterion.needs:
            raise SupervisionError(
                f"criterion {self._criterion.name!r} uses context.gradient without declaring it: "
                'write @criterion(..., needs={"gradient"})'
            )
        if self._gradients is None:
            self._gradients = self._compute()
        return self._gradients[self.name(weight)]

    def random(self, weight: Tensor) -> Tensor:
        """Uniform noise in [0, 1) of the weight's shape, from the run's seed."""
        return torch.rand(weight.shape, generator=self.generator).to(weight.device)


def compute_scores(
    criterion: Criterion,
    model: nn.Module,
    gradients: Callable[[], Mapping[str, Tensor]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Score every prunable weight. Raises MaskError for a wrong shape or nan.

    A criterion gets copies: one that works in place (`weight.abs_()`) must not change the model.
    """
    weights = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    context = ScoringContext(criterion, weights, gradients, generator)
    scores = {}
    for name, weight in weights.items():
        values = criterion(weight, context)
        if not isinstance(values, Tensor) or values.shape != weight.shape:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise MaskError(
                f"criterion {criterion.name!r}: scores for {name} must have shape {tuple(weight.shape)}, got {shape}"
            )
        if torch.isnan(values).any():
            raise MaskError(f"criterion {criterion.name!r}: scores for {name} contain nan")
        scores[name] = values.detach()
    return scores
