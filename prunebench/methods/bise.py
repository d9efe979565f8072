"""BISE, bias-invariant subnetwork extraction: channels of a dense network go where they let a bias through.

A channel is kept where its gate m >= 0; every m begins at 0, and its slope is that of sigmoid(m / t). Gates minimise
the cross-entropy, (label, bias) groups weighing alike, and the mutual information with the bias (`gates.py`) of
bias-conflicting samples: those whose bias is not the most frequent one of their label. The temperature t is halved from
1 to 1/512. Weights and BatchNorm stay as they are.

`bise-native` is that narrower network as it is, without fine-tuning, as published. `bise` ranks all channels by their
gates to remove the asked share of multiply-accumulates and fine-tunes with groups weighing alike, which is not of the
paper. Learning rates and weights are those of the released code. There a temperature lasts 10 epochs and is followed by
50 epochs of the head; here it lasts a tenth of `mask_steps`, with `head_steps` of the head before it. Of residual
networks the released code gates the output of each block apart, and not the first layer; here channels that are added
to each other have one gate, so that they can be removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned, state_of
from prunebench.methods.gates import GatedNetwork, HeadRule, gate_objective, learn_gates
from prunebench.methods.modad import drawn_alike
from prunebench.methods.structured import RemoveChannels
from prunebench.models import Classifier
from prunebench.pruning.coupling import Coupling, coupled_channels, slice_state
from prunebench.pruning.masks import Masks, prunable, whole_masks
from prunebench.training.loop import Batch
from prunebench.training.losses import weighted_cross_entropy

MATOS = "De Moura Matos et al., CVPR 2026 (Bias in, bias out? Finding unbiased subnetworks in vanilla models)"
TEMPERATURES = tuple(0.5**power for power in range(10))


@dataclass(frozen=True)
class BiasInvariantChannels(RemoveChannels):
    distribution: Literal["uniform", "global"] = "global"
    mask_steps: int = 2000
    mask_lr: float = 1e-2
    bias_weight: float = 1.0
    head_steps: int = 100
    head_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """As `momentum`, of the gates and of the head."""

    def __post_init__(self) -> None:
        if self.mask_steps < 1 or self.head_steps < 0 or self.mask_lr <= 0 or self.head_lr <= 0:
            raise ValueError("want mask_steps of at least 1, head_steps of at least 0, rates above 0")

    def worth(self, experiment: Experiment, model: Classifier, coupling: Coupling) -> Tensor:
        found = experiment.shared("gates", lambda: {"gates": self._learn(experiment, coupling)}, owner="bise")
        return found["gates"]

    def heal(self, experiment: Experiment, narrow: Classifier, masks: Masks) -> None:
        experiment.finetune(
            narrow, masks, objective=weighted_cross_entropy(alike_by_group(experiment.train_split.group))
        )

    def _learn(self, experiment: Experiment, coupling: Coupling) -> Tensor:
        split = experiment.train_split
        kinds, bias = torch.unique(split.bias, return_inverse=True)
        seen = GatedChannels(experiment.dense_model(), coupling, len(kinds), experiment.rng("bise/head"))
        weight = alike_by_group(split.group)

        def task_loss(logits: Tensor, batch: Batch) -> Tensor:
            each = functional.cross_entropy(logits, batch.y, reduction="none")
            return (weight[batch.index] * each).mean()

        learn_gates(
            experiment,
            seen,
            gate_objective(bias, task_loss, self.bias_weight, measured=conflicting(split.y, bias)),
            bias,
            steps=self.mask_steps,
            temperatures=TEMPERATURES,
            optimizer=torch.optim.SGD(
                seen.gates, lr=self.mask_lr, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            rule=HeadRule(self.head_steps, self.head_lr, self.momentum, self.weight_decay),
        )
        return seen.gates[0].detach()


@dataclass(frozen=True)
class NativeBiasInvariantChannels(BiasInvariantChannels):
    """The gates' own threshold, without fine-tuning; of a group without an open gate the best channel stays."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        model = self.start(experiment)
        coupling = coupled_channels(model)
        kept = open_units(self.worth(experiment, model, coupling).cpu(), coupling)
        narrow = experiment.model_from(slice_state(state_of(model), coupling, kept))
        return Pruned(narrow, whole_masks(narrow), structured=True)


class GatedChannels(GatedNetwork):
    """A gate on every unit of coupled channels, where it is read: what a closed one writes is seen as 0."""

    def __init__(self, net: Classifier, coupling: Coupling, kinds: int, generator: torch.Generator) -> None:
        device = net.head.weight.device
        super().__init__(net, [torch.zeros(coupling.count, device=device)], kinds, generator)
        self._read: Mapping[str, Tensor] = {name: unit.to(device) for name, unit in coupling.read.items()}

    def openings(self) -> Tensor:
        """1 or 0 for each unit, and 1 for channels that stay, `[units + 1]`, with the slope of sigmoid(m / t)."""
        soft = torch.sigmoid(self.gates[0] / self.temperature)
        gates = (self.gates[0].detach() >= 0).to(soft.dtype) + (soft - soft.detach())
        return torch.cat([gates, torch.ones_like(gates[:1])])

    def weights(self) -> dict[str, Tensor]:
        own, gates = prunable(self.net), self.openings()
        return {
            name: own[name] * gates[unit].view(1, -1, *[1] * (own[name].ndim - 2))
            for layer, unit in self._read.items()
            if (name := f"{layer}.weight") in own
        }

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = super().features_and_logits(x)
        unit = self._read.get("head")
        return features if unit is None else features * self.openings()[unit], logits


def open_units(gates: Tensor, coupling: Coupling) -> Tensor:
    """Which units stay, bool `[units]`: where the gate is at least 0, and the best one of each group."""
    kept = gates >= 0
    for group in coupling.groups.unique():
        members = torch.nonzero(coupling.groups == group).flatten()
        kept[members[gates[members].argmax()]] = True
    return kept


def alike_by_group(group: Tensor) -> Tensor:
    """What each sample weighs, `[N]`, mean 1, so that all groups `[N]` that occur weigh alike."""
    weight = drawn_alike(group)
    return weight / weight.mean()


def conflicting(y: Tensor, bias: Tensor) -> Tensor:
    """Whether a sample's bias is another than the most frequent one of its label, bool `[N]`; ties: the first."""
    table = torch.zeros(int(y.max()) + 1, int(bias.max()) + 1, device=y.device)
    table.index_put_((y, bias), torch.ones(len(y), device=y.device), accumulate=True)
    return table.argmax(1)[y] != bias


GROUPS = "train-groups"
bise = method("bise", cite=f"{MATOS}; ranked and fine-tuned", supervision=GROUPS)(BiasInvariantChannels)
bise_native = method("bise-native", cite=MATOS, supervision=GROUPS, native=True)(NativeBiasInvariantChannels)
