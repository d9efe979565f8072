"""Filter norms: channels whose filters have the smallest L1 or L2 norm go, as large a share of every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling


def filter_norms(model: Classifier, coupling: Coupling, p: int) -> Tensor:
    """The norm of a unit's filters, `[units]`: the mean over the layers that write it."""
    filters = {layer: model.get_parameter(f"{layer}.weight").detach() for layer in coupling.written}
    norms = {layer: vector_norm(one.double().flatten(1), p, 1) for layer, one in filters.items()}
    return coupling.reduced(norms)


@method("l1-filter", cite="Li et al., 2017 (Pruning filters for efficient ConvNets)", multi_label=True)
@dataclass(frozen=True)
class L1Filter(RemoveChannels):
    """Sum of the absolute weights of a filter."""

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        return filter_norms(model, coupling, 1)


@method("l2-filter", cite="He et al., 2018 (Soft filter pruning): its norm, at once", multi_label=True)
@dataclass(frozen=True)
class L2Filter(RemoveChannels):
    """Root of the summed squares of a filter."""

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        return filter_norms(model, coupling, 2)


@method(
    "random-channels",
    cite="control; see Mittal et al., 2018 (Recovering from random pruning)",
    multi_label=True,
)
@dataclass(frozen=True)
class RandomChannels(RemoveChannels):
    """Noise from the run's seed: does it matter *which* channels stay?"""

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        return torch.rand(coupling.count, generator=experiment.rng("channels"), dtype=torch.float64)
