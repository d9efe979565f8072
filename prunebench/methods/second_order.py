"""Second-order pruning with compensation: WoodFisher, and CAP, which removes the weights of a block in turn.

Both estimate the Hessian by the empirical Fisher matrix F = damp * I + mean g g^T of 1,024 samples' gradients, in
blocks of 50 weights that follow each other, and let the other weights of a block make up for those that go: w <- w -
w_q F^-1 e_q / [F^-1]_qq. WoodFisher sums these for all that go; CAP removes them one after another, F^-1 without what
has gone. At once, compared over the whole network, then fine-tuned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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

AT_ONCE = 64
"""Blocks that are worked on together: so many of 50 weights stay in a core's cache."""
AT_ONCE_ON_GPU = 1 << 13
"""There every operation is a launch, some 15 for each weight of a block: 160 MB of blocks share one."""


@dataclass(frozen=True)
class SecondOrder(ABC):
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

    @abstractmethod
    def prune(self, model: Classifier, blocks: Mapping[str, FisherBlocks], sparsity: float) -> Masks:
        """Masks of the asked sparsity; the weights that stay are compensated, in place."""

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

    def compensated_together(self, gone: Tensor) -> Tensor:
        """The best weights with those `gone` at zero: w - F^-1[:, Q] (F^-1[Q, Q])^-1 w_Q, as if they went in turn."""
        both = gone.unsqueeze(2) & gone.unsqueeze(1)
        identity = torch.eye(gone.shape[1], dtype=torch.float64, device=gone.device)
        share = torch.linalg.solve(torch.where(both, self.inverse, identity), self.weights * gone)
        return (self.weights - (self.inverse @ (share * gone).unsqueeze(2)).squeeze(2)).masked_fill(gone, 0)

    def eliminate(self) -> tuple[Tensor, Tensor]:
        """Remove the weight of least saliency of every block, one after another, each time with compensation.

        Returns:
            When each weight goes (padding: never, infinity) and what that costs, `[blocks, size]`.
        """
        size = AT_ONCE if self.weights.device.type == "cpu" else AT_ONCE_ON_GPU
        parts = zip(*[tensor.split(size) for tensor in (self.weights, self.inverse, self.real)])
        when, costs = zip(
            *[_traces(weights.clone(), inverse.clone(), real) for weights, inverse, real in parts]
        )
        return torch.cat(when), torch.cat(costs)


def _traces(weights: Tensor, inverse: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Of some blocks, changed in place: when each weight goes, and its cost."""
    when, costs = torch.full_like(weights, torch.inf), torch.zeros_like(weights)
    for step in range(weights.shape[1]):
        saliency = weights.square() / (2 * inverse.diagonal(dim1=1, dim2=2))
        cost, chosen = torch.where(left, saliency, torch.inf).min(1, keepdim=True)
        going = torch.isfinite(cost)
        column = inverse.gather(2, chosen.unsqueeze(1).expand(-1, weights.shape[1], 1)).squeeze(2)
        pivot = torch.where(going, column.gather(1, chosen), 1)
        column = column * going
        when.scatter_(1, chosen, torch.where(going, float(step), when.gather(1, chosen)))
        costs.scatter_(1, chosen, torch.where(going, cost, costs.gather(1, chosen)))
        weights -= column * (weights.gather(1, chosen) / pivot)
        inverse.baddbmm_(column.unsqueeze(2), (column / pivot).unsqueeze(1), alpha=-1)
        left = left.scatter(1, chosen, False)
        weights.masked_fill_(~left, 0)
    return when, costs


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
        scores = {name: one.unblocked(largest_so_far(*traces[name])) for name, one in blocks.items()}
        chosen, masks, values = make_masks(scores, sparsity), {}, {}
        for name, one in blocks.items():
            counts = (~one.blocked(chosen[name], fill=True)).sum(1, keepdim=True)
            stays = traces[name][0] >= counts
            masks[name], values[name] = one.unblocked(stays), one.compensated_together(~stays)
        put_back(model, blocks, values)
        return masks


def largest_so_far(when: Tensor, costs: Tensor) -> Tensor:
    """For each weight of a block the largest cost up to its removal, `[blocks, size]`."""
    order = when.argsort(dim=1, stable=True)
    return torch.zeros_like(costs).scatter_(1, order, costs.gather(1, order).cummax(1).values)
