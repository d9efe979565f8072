"""Top-KAST: the largest weights of each layer answer, twice as many train; the rest lie still.

The forward pass has the top D of every layer by magnitude (uniform distribution), gradients go to the top B, which
holds D and as many more: pruned weights that may grow back. The penalty on squared weights, 1e-4 as published, weighs
those in B alone by 1 / D, so that they must earn their place. Sets are chosen again every 100 steps, or as often as a
short training has at least 60 times. B is twice D as for published pairs of sparsities (0.9 and 0.8, 0.95 and 0.9).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.pruning.counts import masks_from_counts
from prunebench.pruning.masks import apply_masks, prunable, uniform_counts
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.pruning.schedule import update_interval
from prunebench.training.loop import Batch, Step
from prunebench.training.losses import cross_entropy


@dataclass(frozen=True)
class TopKast:
    """`backward`: how many times as many weights train as answer."""

    backward: float = 2.0
    penalty: float = 1e-4
    every: int = 100
    fewest: int = 60

    def __post_init__(self) -> None:
        if not self.backward >= 1 or not self.penalty >= 0 or self.every < 1 or self.fewest < 1:
            raise ValueError("want backward, every and fewest of at least 1 and penalty of at least 0")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        net = experiment.new_model()
        learner = AlwaysSparse(net, sparsity, self.backward)
        steps = experiment.recipe.steps + experiment.recipe.finetune_steps
        interval = update_interval(steps, every=self.every, fewest=self.fewest)

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            return cross_entropy(model, batch) + self.penalty * learner.exploration_loss()

        def choose(step: Step) -> None:
            if step % interval == 0 and step < steps:
                learner.choose()

        experiment.train(learner, steps=steps, name="init/sparse", objective=objective, after_step=choose)
        apply_masks(net, learner.answering)
        return Pruned(net, learner.answering)


class AlwaysSparse(Reparametrised):
    """weight * (top D of its layer); the gradient goes to the top B, `backward` times as many."""

    def __init__(self, net: nn.Module, sparsity: float, backward: float) -> None:
        super().__init__(net)
        self._counts = uniform_counts(net, sparsity)
        self._training = {
            name: min(round(backward * self._counts[name]), weight.numel())
            for name, weight in prunable(net).items()
        }
        self.density = 1 - sparsity
        self.choose()

    @torch.no_grad()
    def choose(self) -> None:
        """The sets by the magnitudes as they are now."""
        magnitudes = {name: weight.abs() for name, weight in prunable(self.net).items()}
        self.answering = masks_from_counts(magnitudes, self._counts)
        self.training_too = masks_from_counts(magnitudes, self._training)

    def weights(self) -> dict[str, Tensor]:
        return {
            name: weight.detach() * self.answering[name]
            + (weight - weight.detach()) * self.training_too[name]
            for name, weight in prunable(self.net).items()
        }

    def exploration_loss(self) -> Tensor:
        """Half the sum of w^2 over D, and of w^2 / D over B without D."""
        total = torch.zeros((), device=next(self.net.parameters()).device)
        for name, weight in prunable(self.net).items():
            answers = self.answering[name]
            explores = self.training_too[name] & ~answers
            total = total + (weight.square() * (answers + explores / self.density)).sum() / 2
        return total


top_kast = method(
    "top-kast", cite="Jayakumar et al., 2020 (Top-KAST: top-k always sparse training)", multi_label=True
)(TopKast)
