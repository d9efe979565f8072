"""Group distributionally robust optimisation, then magnitude pruning with its loss: the worst groups weigh most.

Each (label, bias) group that occurs in training has a weight q, all the same at first. At every step
q <- q exp(eta * (group's mean loss in the batch + C / sqrt(n_g))), made to sum to 1, and the loss is the sum of q times
the groups' mean losses; a group that the batch lacks has a loss of 0. Groups are drawn alike. eta = .01, C = 0 and the
drawing are those of the released runs. Their weight decay (1.0) and learning rate (1e-5) fine-tune a large network;
here both are the recipe's. Fine-tuning after pruning goes on with the weights q that training ended with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.training.loop import Batch, Objective, capturable, remembering

SAGAWA = "Sagawa et al., 2020 (Distributionally robust neural networks for group shifts)"
WEIGHTS = "group_weights"
"""In the stage that is shared: q at the end of training."""


class RobustLoss:
    """The loss and the weights q `[G]`, float32, which every batch changes.

    Args:
        group: of each training sample, int64 `[N]`; any numbers.
        step_size: eta.
        adjustment: C, for groups with few samples.
        weights: q to begin with; all the same where none are given.
    """

    def __init__(
        self, group: Tensor, *, step_size: float, adjustment: float = 0.0, weights: Tensor | None = None
    ) -> None:
        _, self.index, self.counts = torch.unique(group, return_inverse=True, return_counts=True)
        groups = len(self.counts)
        self._names = torch.arange(groups, device=group.device)
        self.weights = torch.full((groups,), 1 / groups, device=group.device)
        if weights is not None:
            self.weights.copy_(weights)
        self._step_size = step_size
        self._extra = adjustment / self.counts.float().sqrt()

    def __call__(self, losses: Tensor, index: Tensor) -> Tensor:
        """The robust loss of losses `[B]` of the samples `index` `[B]`; changes the weights."""
        member = (self.index[index].unsqueeze(1) == self._names).float()
        means = (losses.unsqueeze(1) * member).sum(0) / member.sum(0).clamp(min=1)
        grown = self.weights * torch.exp(self._step_size * (means.detach() + self._extra))
        self.weights.copy_(grown / grown.sum())
        return (means * self.weights.clone()).sum()  # no matrix product: mixed precision would round it

    def sample_weight(self) -> Tensor:
        """How often each sample is drawn, `[N]`, so that all groups are drawn alike."""
        return 1 / self.counts[self.index].float()


@dataclass(frozen=True)
class GroupDRO:
    step_size: float = 0.01
    adjustment: float = 0.0
    balanced: bool = True
    """Whether groups are drawn alike."""

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.adjustment < 0:
            raise ValueError("want a step_size above 0 and an adjustment of at least 0")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        state, robust = self.trained(experiment)
        model = experiment.model_from(state)
        masks = experiment.prune(model, sparsity)
        return experiment.finetune(
            model, masks, objective=self.objective(robust), sample_weight=self.drawing(robust)
        )

    def trained(self, experiment: Experiment) -> tuple[dict[str, Tensor], RobustLoss]:
        """The robust network's weights, trained once for all sparsities, and the loss as training left it."""
        state = experiment.shared("robust", lambda: self._train(experiment), owner="groupdro")
        return state, self._loss(experiment, state.pop(WEIGHTS))

    def _train(self, experiment: Experiment) -> dict[str, Tensor]:
        model, robust = experiment.new_model(), self._loss(experiment)
        experiment.train(
            model,
            steps=experiment.recipe.steps,
            name="dense",
            objective=self.objective(robust),
            sample_weight=self.drawing(robust),
        )
        return {**state_of(model), WEIGHTS: robust.weights}

    def _loss(self, experiment: Experiment, weights: Tensor | None = None) -> RobustLoss:
        group = experiment.train_split.group
        return RobustLoss(group, step_size=self.step_size, adjustment=self.adjustment, weights=weights)

    def objective(self, robust: RobustLoss) -> Objective:
        @capturable
        def loss(net: nn.Module, batch: Batch) -> Tensor:
            each = functional.cross_entropy(net(batch.x).float(), batch.y, reduction="none")
            return robust(each, batch.index)

        return remembering(loss, robust.weights)

    def drawing(self, robust: RobustLoss) -> Tensor | None:
        return robust.sample_weight() if self.balanced else None


GROUPS = "train-groups"
groupdro = method("groupdro", cite=f"{SAGAWA}; pruned by magnitude", supervision=GROUPS)(GroupDRO)
groupdro_dense = method("groupdro-dense", cite=f"{SAGAWA}; not pruned", supervision=GROUPS, unpruned=True)(
    GroupDRO
)
