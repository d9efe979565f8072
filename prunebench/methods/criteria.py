"""The door for a pruning criterion: one scoring function, and what it may look at besides the weight."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError, SupervisionError, UsageError
from prunebench.methods.statistics import NEEDS, Statistics
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


Score = Callable[..., Tensor]
BATCHES = 8
"""Training batches that statistics are taken over, unless a criterion declares another number."""


@dataclass(frozen=True)
class Criterion:
    """A scoring function `scores(weight, context)`: same shape as the weight, higher = keep.

    `options` are its keyword-only parameters, each with its value; `prunes` is how it prunes unless asked otherwise:
    settings of `methods.prune.Prune`.
    """

    name: str
    cite: str
    score: Score
    at: str
    needs: frozenset[str]
    version: str
    batches: int = BATCHES
    options: Mapping[str, Any] = field(default_factory=dict)
    prunes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("criterion", self.name)

    def __call__(self, weight: Tensor, context: ScoringContext) -> Tensor:
        return self.score(weight, context, **self.options)


def criterion(
    name: str,
    *,
    cite: str,
    needs: set[str] | frozenset[str] = frozenset(),
    at: str = "dense",
    version: int = 1,
    batches: int = BATCHES,
    **prunes: Any,
) -> Callable[[Score], Criterion]:
    """Make a scoring function a pruning criterion.

    Args:
        name: the method's name.
        cite: its source.
        needs: what it asks the context for besides noise: see `statistics.NEEDS`.
        at: `dense` scores the trained dense model and fine-tunes; `init` scores at initialisation and trains.
        version: raised when a change alters numbers.
        batches: training batches that the needs are computed over.
        prunes: how it prunes unless asked otherwise: `distribution`, `structure`, `schedule`, `native` and the other
            settings of `methods.prune.Prune`.

    Raises:
        UsageError: for what cannot be.
    """
    if at not in ("dense", "init"):
        raise UsageError(f"criterion {name!r}: at must be 'dense' or 'init', got {at!r}")
    extra = set(needs) - set(NEEDS)
    if extra:
        raise UsageError(f"criterion {name!r}: needs {sorted(extra)} is unknown; known: {', '.join(NEEDS)}")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UsageError(f"criterion {name!r}: batches must be a whole number of at least 1, got {batches!r}")

    def wrap(score: Score) -> Criterion:
        options = _options(name, score)
        return Criterion(name, cite, score, at, frozenset(needs), str(version), batches, options, prunes)

    return wrap


def as_criterion(score: Score) -> Criterion:
    """A plain scoring function that asks for noise alone, as a criterion."""
    return Criterion("scores", "", score, "dense", frozenset(), "1")


def _options(name: str, score: Score) -> dict[str, Any]:
    """The keyword-only parameters of a scoring function. Raises UsageError for one without a default."""
    try:
        parameters = inspect.signature(score).parameters.values()
    except (TypeError, ValueError):
        return {}
    options = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    for key, value in options.items():
        if value is inspect.Parameter.empty:
            raise UsageError(f"criterion {name!r}: its setting {key} needs a default value")
    return options


class ScoringContext:
    """Handed to `scores(weight, context)`: the layer's name, seeded noise and what the criterion declared.

    All of one scoring share one context, so that what it computes for all weights is computed once.
    """

    def __init__(
        self,
        criterion: Criterion,
        weights: Mapping[str, Tensor],
        statistics: Statistics,
        generator: torch.Generator,
    ) -> None:
        self._criterion = criterion
        self._names = {id(weight): name for name, weight in weights.items()}
        self._statistics = statistics
        self._own: dict[str, Any] = {}
        self.generator = generator

    def name(self, weight: Tensor) -> str:
        """The layer's name, such as `body.0.weight`."""
        if id(weight) not in self._names:
            raise UsageError("context: pass the weight that was handed to the scoring function, unchanged")
        return self._names[id(weight)]

    def gradient(self, weight: Tensor) -> Tensor:
        """Gradient of the mean training loss in this weight, its shape. Declare needs={"gradient"}."""
        return self._declared("gradient").gradient(self.name(weight))

    def squared_gradient(self, weight: Tensor) -> Tensor:
        """Mean over samples of the squared gradient, its shape. Declare needs={"squared_gradient"}."""
        return self._declared("squared_gradient").squared_gradient(self.name(weight))

    def activation_norm(self, weight: Tensor) -> Tensor:
        """L2 norm of each input channel; multiplies with the weight. Declare needs={"activation_norm"}."""
        return self._declared("activation_norm").activation_norm(self.name(weight))

    def hessian_diagonal(self, weight: Tensor, probes: int = 4) -> Tensor:
        """Diagonal of the mean loss's Hessian, estimated. Declare needs={"hessian_diagonal"}."""
        return self._declared("hessian_diagonal").hessian_diagonal(self.name(weight), probes)

    def hessian_gradient(self, weight: Tensor, temperature: float = 1.0) -> Tensor:
        """Hessian times gradient, of logits / temperature. Declare needs={"hessian_gradient"}."""
        return self._declared("hessian_gradient").hessian_gradient(self.name(weight), temperature)

    def fisher_block(self, weight: Tensor, size: int = 32) -> Tensor:
        """Blocks of the empirical Fisher matrix, `[blocks, size, size]`. Declare needs={"fisher_block"}."""
        return self._declared("fisher_block").fisher_block(self.name(weight), size)

    def input_gram(self, weight: Tensor) -> Tensor:
        """2 X X^T of the layer's inputs, `[groups, D, D]`. Declare needs={"input_gram"}."""
        return self._declared("input_gram").input_gram(self.name(weight))

    def network(self) -> nn.Module:
        """A copy of the network in evaluation mode, to compute with. Declare needs={"network"}."""
        return self._declared("network").network()

    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of what the network sees. Declare needs={"network"}."""
        return self._declared("network").image_shape()

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed once for all weights of a scoring."""
        if key not in self._own:
            self._own[key] = compute()
        return self._own[key]

    def _declared(self, need: str) -> Statistics:
        if need not in self._criterion.needs:
            raise SupervisionError(
                f"criterion {self._criterion.name!r} uses context.{need} without declaring it: "
                f'write @criterion(..., needs={{"{need}"}})'
            )
        return self._statistics

    def random(self, weight: Tensor) -> Tensor:
        """Uniform noise in [0, 1) of the weight's shape, from the run's seed."""
        return torch.rand(weight.shape, generator=self.generator).to(weight.device)


def compute_scores(
    criterion: Criterion,
    model: nn.Module,
    statistics: Statistics | Callable[[], Mapping[str, Tensor]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Score every prunable weight. Raises MaskError for a wrong shape or nan.

    A criterion gets copies: one that works in place (`weight.abs_()`) must not change the model. A function in place
    of `statistics` gives the gradients alone.
    """
    if not isinstance(statistics, Statistics):
        statistics = Statistics(model, lambda: iter(()), lambda _: None, generator, statistics)
    weights = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    context = ScoringContext(criterion, weights, statistics, generator)
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
