"""FFW, finding fantastic weights: gates on a dense network's fixed weights, closed where they let a bias through.

A weight w is seen as w min(1, 2 sigmoid(s / t)), every gate s beginning at 0, where it is open; its slope is that of
2 sigmoid, also where that is above 1. Gates minimise the cross-entropy and 10 times the mutual information with the
bias (`gates.py`). The temperature t falls from 1 to 1e-8 by tenths, and gates below 0 are closed at the end.
(label, bias) groups are drawn alike, in place of the released code's unbiased images.

`ffw-native` is that network as it is, without fine-tuning, as published. `ffw` ranks the gates to reach an asked
sparsity and fine-tunes with groups drawn alike, which is not of the paper. Learning rates and weights are those of the
released code. It lowers the temperature when the mutual information rests, trains the head to a plateau after every
epoch, for up to 200 epochs, and takes the gates whose bias is told worst on unbiased validation; here temperatures have
a ninth of `mask_steps` each, the head `head_steps` before each of them, and the last gates are taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.methods.gates import GatedNetwork, HeadRule, gate_objective, learn_gates
from prunebench.methods.modad import drawn_alike
from prunebench.models import Classifier
from prunebench.pruning.learned import native_masks
from prunebench.pruning.masks import apply_masks, make_masks, prunable
from prunebench.training.loop import Batch

NAHON = "Nahon et al., ECCV 2024 (Debiasing surgeon: fantastic weights and how to find them)"
TEMPERATURES = tuple(10.0**-power for power in range(9))


@dataclass(frozen=True)
class FantasticWeights:
    mask_steps: int = 2000
    mask_lr: float = 1e-3
    bias_weight: float = 10.0
    head_steps: int = 100
    head_lr: float = 0.1
    head_momentum: float = 0.9
    weight_decay: float = 1e-4
    """Of the gates and of the head."""

    def __post_init__(self) -> None:
        if self.mask_steps < 1 or self.head_steps < 0 or self.mask_lr <= 0 or self.head_lr <= 0:
            raise ValueError("want mask_steps of at least 1, head_steps of at least 0, rates above 0")

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        gates, model = self.gates(experiment), experiment.dense_model()
        masks = make_masks(gates, sparsity)
        apply_masks(model, masks)
        return experiment.finetune(model, masks, sample_weight=drawn_alike(experiment.train_split.group))

    def gates(self, experiment: Experiment) -> dict[str, Tensor]:
        """The learned s of every weight, by name: once for all sparsities."""
        return experiment.shared("gates", lambda: self._learn(experiment), owner="ffw")

    def _learn(self, experiment: Experiment) -> dict[str, Tensor]:
        kinds, bias = torch.unique(experiment.train_split.bias, return_inverse=True)
        seen = GatedWeights(experiment.dense_model(), len(kinds), experiment.rng("ffw/head"))

        def task_loss(logits: Tensor, batch: Batch) -> Tensor:
            return functional.cross_entropy(logits, batch.y)

        learn_gates(
            experiment,
            seen,
            gate_objective(bias, task_loss, self.bias_weight),
            bias,
            steps=self.mask_steps,
            temperatures=TEMPERATURES,
            optimizer=torch.optim.Adam(seen.gates, lr=self.mask_lr, weight_decay=self.weight_decay),
            rule=HeadRule(self.head_steps, self.head_lr, self.head_momentum, self.weight_decay),
            sample_weight=drawn_alike(experiment.train_split.group),
        )
        return seen.named_gates()


@dataclass(frozen=True)
class NativeFantasticWeights(FantasticWeights):
    """The gates' own threshold, without fine-tuning."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        masks, model = native_masks(self.gates(experiment)), experiment.dense_model()
        apply_masks(model, masks)
        return Pruned(model, masks)


class GatedWeights(GatedNetwork):
    """A gate on every prunable weight, open at first."""

    def __init__(self, net: Classifier, kinds: int, generator: torch.Generator) -> None:
        super().__init__(net, [torch.zeros_like(one) for one in prunable(net).values()], kinds, generator)
        self._names = list(prunable(net))

    def weights(self) -> dict[str, Tensor]:
        own = prunable(self.net)
        return {name: own[name] * opening(s / self.temperature) for name, s in zip(self._names, self.gates)}

    def named_gates(self) -> dict[str, Tensor]:
        """s of every weight, by its name."""
        return {name: s.detach().clone() for name, s in zip(self._names, self.gates)}


def opening(s: Tensor) -> Tensor:
    """min(1, 2 sigmoid(s)), with the slope of 2 sigmoid(s) everywhere."""
    soft = 2 * torch.sigmoid(s)
    return soft.detach().clamp(max=1) + (soft - soft.detach())


GROUPS = "train-groups"
ffw = method("ffw", cite=f"{NAHON}; ranked and fine-tuned", supervision=GROUPS)(FantasticWeights)
ffw_native = method("ffw-native", cite=NAHON, supervision=GROUPS, native=True)(NativeFantasticWeights)
