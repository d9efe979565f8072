"""What a scoring function may look at besides the weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from prunebench.errors import MaskError, SupervisionError, UsageError
from prunebench.pruning.masks import prunable
from prunebench.registry import Criterion


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
