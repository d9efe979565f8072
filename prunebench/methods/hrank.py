"""HRank: channels whose feature maps have the lowest rank go, as large a share of every layer.

The rank of a channel's map after BatchNorm and ReLU, averaged over 500 training images, as published; inside of a
residual sum the map is taken before the sum. A unit's rank is the mean over the layers that pass it on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment
from prunebench.methods.network_slimming import norms_of
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling


@method(
    "hrank", cite="Lin et al., 2020 (HRank: filter pruning using high-rank feature map)", multi_label=True
)
@dataclass(frozen=True)
class HRank(RemoveChannels):
    images: int = 500

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        net = copy.deepcopy(model).eval()
        count = min(self.images, len(experiment.train_split))
        chosen = torch.randperm(len(experiment.train_split), generator=experiment.rng("ranks"))[:count]
        ranks: dict[str, Tensor] = {}

        def add(name: str, maps: Tensor) -> None:
            found = torch.linalg.matrix_rank(maps.relu().float()).double().sum(0).cpu()
            ranks[name] = ranks.get(name, torch.zeros_like(found)) + found / count

        for name, norm in norms_of(net, coupling).items():
            norm.register_forward_hook(lambda _, __, output, name=name: add(name, output))  # type: ignore[misc]
        with torch.no_grad():
            for rows in chosen.split(experiment.recipe.batch_size):
                net(experiment.train_split.images.batch(rows.to(experiment.device)))
        experiment.cost.own_steps += -(-count // (3 * experiment.recipe.batch_size))
        return coupling.reduced(ranks)
