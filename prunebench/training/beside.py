"""SGD beside the recipe's optimizer: for the few parameters that a method trains by a published rule of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunebench.results.spec import Recipe
from prunebench.training.loop import LoopSettings, Step, learning_rate


class SideOptimizer:
    """SGD of `parameters`, on the recipe's learning-rate schedule; `step` is called after every step of the loop.

    The loop must be told to optimise other parameters (`parameters=` of `Experiment.train`).
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        recipe: Recipe,
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._optimizer = torch.optim.SGD(
            list(parameters), lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        self._lr, self._schedule = lr, recipe.schedule

    def step(self, step: Step) -> None:
        """Take a step by the gradients that the loop's backward pass left, and clear them."""
        settings = LoopSettings("sgd", self._lr, step.of, schedule=self._schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(settings, step - 1)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
