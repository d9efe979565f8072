"""Second-order pruning with compensation: WoodFisher, and CAP, which removes the weights of a block in turn.

Both estimate the Hessian by the empirical Fisher matrix F = damp * I + mean g g^T of 1,024 samples' gradients, in
blocks of 50 weights that follow each other, and let the other weights of a block make up for those that go: w <- w -
w_q F^-1 e_q / [F^-1]_qq. WoodFisher sums these for all that go; CAP removes them one after another, F^-1 without what
has gone. At once, compared over the whole network, then fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.errors import UsageError
from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.models import Classifier
from prunebench.pruning.masks import Masks, apply_masks, make_masks, prunable


@dataclass(frozen=True)
class SecondOrder:
    """Blocks of the Fisher matrix, inverted in float64, and what both methods do with them."""

    block: int = 50
    damp: float = 1e-7
    samples: int = 1024
    recalibrate: int = 0
    """Training batches from which BatchNorm's statistics are taken anew at the end."""

    def __post_init__(self) -> None:
        if self.block < 1 or self.samples < 1 or self.damp <= 0:
            raise UsageError("want block and samples of at least 1, and a damp above 0")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = experiment.dense_model()
        blocks = self._blocks(experiment, model)
        masks = self.prune(model, blocks, sparsity)
        apply_masks(model, masks)
        pruned = experiment.finetune(model, masks)
        if self.recalibrate:
            experiment.recalibrate(model, batches=self.recalibrate)
        return pruned

    def prune(self, model: Classifier, blocks: Mapping[str, FisherBlocks], sparsity: float) -> Masks:
        """Masks of the asked sparsity; the weights that stay are compensated, in place."""
        raise NotImplementedError

    def _blocks(self, experiment: Experiment, model: Classifier) -> dict[str, FisherBlocks]:
        batches = -(-self.samples // experiment.recipe.batch_size)
        statistics = experiment.statistics(model, batches=batches)
        return {
            name: FisherBlocks.of(weight, statistics.fisher_block(name, self.block), self.damp)
            for name, weight in prunable(model).items()
        }


@dataclass(frozen=True)
class FisherBlocks:
    """A layer's weights `[blocks, size]` with the inverse of their blocks `[blocks, size, size]`, float64."""

    shape: torch.Size
    weights: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, weight: Tensor, fisher: Tensor, damp: float) -> FisherBlocks:
        """Of a weight and its Fisher blocks; what the last block lacks is zero."""
        count, size = fisher.shape[:2]
        flat = functional.pad(weight.detach().double().flatten(), (0, count * size - weight.numel()))
        damped = fisher.double() + damp * torch.eye(size, dtype=torch.float64, device=fisher.device)
        return cls(weight.shape, flat.view(count, size), torch.linalg.inv(damped))

    @property
    def real(self) -> Tensor:
        """Bool `[blocks, size]`: what is a weight."""
        return (torch.arange(self.weights.numel(), device=self.weights.device) < self.shape.numel()).view_as(
            self.weights
        )

    def unblocked(self, values: Tensor) -> Tensor:
        """Values `[blocks, size]` in the weight's shape."""
        return values.flatten()[: self.shape.numel()].view(self.shape)

    def blocked(self, values: Tensor, fill: bool) -> Tensor:
        """Bool values of the weight's shape as `[blocks, size]`."""
        flat = values.flatten().to(self.weights.device)
        return functional.pad(flat, (0, self.weights.numel() - flat.numel()), value=fill).view_as(
            self.weights
        )

    def saliency(self) -> Tensor:
        """w^2 / (2 [F^-1]_qq), `[blocks, size]`."""
        return self.weights.square() / (2 * self.inverse.diagonal(dim1=1, dim2=2))

    def compensated(self, gone: Tensor) -> Tensor:
        """The weights plus the sum of the updates of those `gone` (bool `[blocks, size]`), each as if it went alone."""
        share = torch.where(gone, self.weights / self.inverse.diagonal(dim1=1, dim2=2), 0)
        return self.weights - (self.inverse @ share.unsqueeze(2)).squeeze(2)

    def eliminate(self, counts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Remove the weight of least saliency of every block, one after another, each time with compensation.

        Args:
            counts: of each block, after how many its weights are taken down `[blocks]`; none where not given.

        Returns:
            When each weight goes and what that costs, `[blocks, size]`; and the weights taken down.
        """
        weights, inverse = self.weights.clone(), self.inverse.clone()
        left, taken = self.real.clone(), self.weights.clone()
        when = torch.full_like(weights, torch.inf)
        costs = torch.zeros_like(weights)
        rows = torch.arange(len(weights), device=weights.device)
        for step in range(weights.shape[1]):
            if counts is not None:
                taken = torch.where((counts == step).unsqueeze(1), weights, taken)
            diagonal = inverse.diagonal(dim1=1, dim2=2)
            saliency = torch.where(left, weights.square() / (2 * diagonal), torch.inf)
            cost, chosen = saliency.min(1)
            going = rows[torch.isfinite(cost)]
            chosen = chosen[going]
            column, pivot = inverse[going, :, chosen], inverse[going, chosen, chosen]
            when[going, chosen], costs[going, chosen] = float(step), cost[going]
            weights[going] -= column * (weights[going, chosen] / pivot).unsqueeze(1)
            inverse[going] -= column.unsqueeze(2) * column.unsqueeze(1) / pivot.view(-1, 1, 1)
            left[going, chosen] = False
            weights[~left] = 0
        if counts is not None:
            taken = torch.where((counts == weights.shape[1]).unsqueeze(1), weights, taken)
        return when, costs, taken


@torch.no_grad()
def put_back(model: Classifier, blocks: Mapping[str, FisherBlocks], values: Mapping[str, Tensor]) -> None:
    """Give the model the weights `[blocks, size]` of each layer."""
    for name, weight in prunable(model).items():
        weight.copy_(blocks[name].unblocked(values[name]))


SINGH = "Singh & Alistarh, 2020 (WoodFisher); settings: Kurtic et al., 2022 (The optimal BERT surgeon)"


@method("woodfisher", cite=SINGH, multi_label=True)
@dataclass(frozen=True)
class WoodFisher(SecondOrder):
    """Weights of the least w^2 / (2 [F^-1]_qq) go."""

    def prune(self, model: Classifier, blocks: Mapping[str, FisherBlocks], sparsity: float) -> Masks:
        masks = make_masks({name: one.unblocked(one.saliency()) for name, one in blocks.items()}, sparsity)
        gone = {name: ~one.blocked(masks[name], fill=True) for name, one in blocks.items()}
        put_back(model, blocks, {name: one.compensated(gone[name]) for name, one in blocks.items()})
        return masks


@method("cap", cite="Kuznedelev et al., 2023 (CAP: correlation-aware pruning)", multi_label=True)
@dataclass(frozen=True)
class CorrelationAware(SecondOrder):
    """Each block's weights are removed one after another, and blocks compared by the largest cost so far.

    Blocks of 50 as for WoodFisher, so that the two differ in this alone; the authors' recipes have 192 for larger nets.
    """

    def prune(self, model: Classifier, blocks: Mapping[str, FisherBlocks], sparsity: float) -> Masks:
        traces = {name: one.eliminate() for name, one in blocks.items()}
        scores = {name: one.unblocked(largest_so_far(*traces[name][:2])) for name, one in blocks.items()}
        chosen, masks, values = make_masks(scores, sparsity), {}, {}
        for name, one in blocks.items():
            counts = (~one.blocked(chosen[name], fill=True)).sum(1)
            masks[name] = one.unblocked(traces[name][0] >= counts.unsqueeze(1))
            values[name] = one.eliminate(counts)[2]
        put_back(model, blocks, values)
        return masks


def largest_so_far(when: Tensor, costs: Tensor) -> Tensor:
    """For each weight of a block the largest cost up to its removal, `[blocks, size]`."""
    order = when.argsort(dim=1, stable=True)
    return torch.zeros_like(costs).scatter_(1, order, costs.gather(1, order).cummax(1).values)
