"""Magnitude pruning that is fine-tuned to answer as the dense network does."""

from dataclasses import dataclass

import torch

from prunebench import method
from prunebench.training.losses import distillation_loss


@method("my-distilled", cite="Hinton et al., 2015; Han et al., 2015")
@dataclass(frozen=True)
class Distilled:
    temperature: float = 4.0
    weight: float = 0.9

    def fit(self, experiment, sparsity):
        teacher, model = experiment.dense_model().eval(), experiment.dense_model()

        def loss(net, batch):
            with torch.no_grad():
                target = teacher(batch.x)
            settings = {"temperature": self.temperature, "weight": self.weight}
            return distillation_loss(net(batch.x), target, batch.y, **settings)

        return experiment.finetune(model, experiment.prune(model, sparsity), objective=loss)
