"""FPGM: filters nearest to the geometric median of their layer go, as the others can stand for them.

A filter's worth is the sum of its Euclidean distances to the layer's other filters; a unit's is the mean over the
layers that write it. As large a share of every layer, at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling


@method("fpgm", cite="He et al., 2019 (Filter pruning via geometric median)", multi_label=True)
@dataclass(frozen=True)
class GeometricMedian(RemoveChannels):
    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        filters = {layer: model.get_parameter(f"{layer}.weight") for layer in coupling.written}
        return coupling.reduced({layer: distances(weight) for layer, weight in filters.items()})


def distances(weight: Tensor) -> Tensor:
    """The sum of the distances of each filter of `[O, ...]` to all filters, `[O]`, float64."""
    filters = weight.detach().double().flatten(1)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
