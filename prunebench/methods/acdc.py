"""AC/DC: dense and sparse phases in turn; what was pruned comes back, and the last phase is sparse.

A sparse phase holds the global top-k of magnitudes that it begins with. A dense one lets all weights train again, from
zero where they were pruned, with the optimizer's state begun anew. Phases are those of CIFAR-10 in the released
configuration, as shares of the training: of 200 epochs, dense until 10, then 20 each in turn, sparse from 170 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.dynamic import wake_kept_zeros
from prunebench.pruning.masks import make_masks
from prunebench.training.loop import Step


@dataclass(frozen=True)
class AlternatingCompression:
    """`warmup` and `last` are the shares of the dense beginning and of the sparse end; `cycles` lie between them."""

    warmup: float = 0.05
    cycles: int = 4
    last: float = 0.15

    def __post_init__(self) -> None:
        if not (self.warmup > 0 and self.last > 0 and self.warmup + self.last < 1 and self.cycles >= 0):
            raise ValueError("want warmup and last above 0, together below 1, and cycles of at least 0")

    def phases(self, steps: int) -> dict[int, bool]:
        """The steps after which a phase begins, and whether it is sparse."""
        length = (1 - self.warmup - self.last) / max(2 * self.cycles, 1)
        starts = [self.warmup + number * length for number in range(2 * self.cycles)]
        begins = {max(round(start * steps), 1): not number % 2 for number, start in enumerate(starts)}
        return begins | {max(round((1 - self.last) * steps), 1): True}

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.new_model()
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        phases = self.phases(steps)

        def turn(step: Step) -> Mapping[str, Tensor] | None:
            if int(step) not in phases:
                return None
            magnitudes = {name: weight.detach().abs() for name, weight in step.weights.items()}
            if phases[int(step)]:
                return make_masks(magnitudes, sparsity)
            begin_anew(step.optimizer)
            return {name: torch.ones_like(one, dtype=torch.bool) for name, one in magnitudes.items()}

        masks = experiment.train(model, steps=steps, name="init/sparse", after_step=turn)
        wake_kept_zeros(model, masks)
        return Pruned(model, masks)


def begin_anew(optimizer: torch.optim.Optimizer) -> None:
    """Set moments and counts of an optimizer to zero, in place."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


acdc = method(
    "ac-dc",
    cite="Peste et al., 2021 (AC/DC: alternating compressed / decompressed training)",
    multi_label=True,
)(AlternatingCompression)
