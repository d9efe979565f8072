"""DepGraph: channels that depend on each other go together, by the squared norm of all parameters that go with them.

A unit's worth is the mean, over the layers that hold it, of its summed squares: filters that write it, BatchNorm's
scales, and the weights that read it; divided by the mean of its group, then compared over the whole network. This is
the paper's group importance without its sparse training, in one shot. Equal to Torch-Pruning's
`GroupMagnitudeImportance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling, add_to


@method("depgraph", cite="Fang et al., 2023 (DepGraph: towards any structural pruning)", multi_label=True)
@dataclass(frozen=True)
class DepGraph(RemoveChannels):
    distribution: Literal["uniform", "global"] = "global"

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        return group_norms(model, coupling)


def group_norms(model: nn.Module, coupling: Coupling) -> Tensor:
    """Group importance of every unit, `[units]`, float64, with mean 1 in each group."""
    total, members = torch.zeros(2, coupling.count, dtype=torch.float64)
    for tables in (coupling.written, coupling.passed):
        for layer, units in tables.items():
            weight = model.get_parameter(f"{layer}.weight").detach().double()
            add_to(
                total,
                members,
                units,
                weight.square().flatten(1).sum(1) if weight.ndim > 1 else weight.square(),
            )
    for layer, units in coupling.read.items():
        weight = model.get_parameter(f"{layer}.weight").detach().double()
        squares = weight.square().transpose(0, 1).flatten(1).sum(1)
        add_to(total, members, units, squares)
    worth = total / members
    size = int(coupling.groups.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, coupling.groups, worth)
    return worth / (sums / torch.bincount(coupling.groups, minlength=size))[coupling.groups]
