"""FFW, finding fantastic weights: gates on a dense network's fixed weights, closed where they let a bias through.

A weight w is seen as w min(1, 2 sigmoid(s / t)), every gate s beginning at 0, where it is open; its slope is that of
2 sigmoid, also where that is above 1. Gates minimise the cross-entropy and 10 times the mutual information between the
bias and what a linear head on the features says of it, both within a batch; the head learns beside them from features
that pass no gradient on. The temperature t falls from 1 to 1e-8 by tenths, and gates below 0 are closed at the end.
(label, bias) groups are drawn alike, in place of the released code's unbiased images; BatchNorm stays as it is.

`ffw-native` is that network as it is, without fine-tuning, as published. `ffw` ranks the gates to reach an asked
sparsity and fine-tunes with groups drawn alike, which is not of the paper. Learning rates and weights are those of the
released code. It lowers the temperature when the mutual information rests, trains the head to a plateau after every
epoch, for up to 200 epochs, and takes the gates whose bias is told worst on unbiased validation; here temperatures have
a ninth of `mask_steps` each, the head `head_steps` before each of them, and the last gates are taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from prunebench.methods.api import method
from prunebench.methods.experiment import Experiment, Pruned
from prunebench.methods.modad import drawn_alike
from prunebench.models import Classifier
from prunebench.pruning.learned import native_masks
from prunebench.pruning.masks import apply_masks, make_masks, prunable
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.training.beside import SideOptimizer
from prunebench.training.loop import Batch, Objective

NAHON = "Nahon et al., ECCV 2024 (Debiasing surgeon: fantastic weights and how to find them)"
TEMPERATURES = tuple(10.0**-power for power in range(9))
SMALLEST = 1e-15
"""Of the probabilities in the mutual information."""


@dataclass(frozen=True)
class FantasticWeights:
    mask_steps: int = 2000
    mask_lr: float = 1e-3
    task_weight: float = 1.0
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
        dense = experiment.dense_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        seen = GatedNetwork(dense, len(kinds), experiment.rng("ffw/head")).to(experiment.device)
        groups, gates = drawn_alike(experiment.train_split.group), list(seen.gates)
        optimizer = torch.optim.Adam(gates, lr=self.mask_lr, weight_decay=self.weight_decay)
        beside = SideOptimizer(
            list(seen.bias_head.parameters()),
            replace(experiment.recipe, schedule="constant"),
            lr=self.head_lr,
            momentum=self.head_momentum,
            weight_decay=self.weight_decay,
        )
        share = self.mask_steps / len(TEMPERATURES)
        for at, temperature in enumerate(TEMPERATURES):
            begin, end = round(share * at), round(share * (at + 1))
            if begin == end:
                continue
            seen.temperature = temperature
            self._refine(experiment, seen, bias, groups)
            experiment.train(
                seen,
                steps=self.mask_steps,
                start=begin,
                stop_after=end,
                name="masks",
                objective=self.objective(bias),
                parameters=gates,
                sample_weight=groups,
                after_step=beside.step,
                optimizer=lambda *_: optimizer,  # its moments outlast a temperature
                schedule="constant",
            )
        return seen.named_gates()

    def _refine(self, experiment: Experiment, seen: GatedNetwork, bias: Tensor, groups: Tensor) -> None:
        """Let the head learn from the features as the gates now leave them."""
        if self.head_steps:
            experiment.train(
                seen,
                steps=self.head_steps,
                name="bias-head",
                objective=bias_objective(bias),
                parameters=list(seen.bias_head.parameters()),
                sample_weight=groups,
                lr=self.head_lr,
                optimizer="sgd",
                momentum=self.head_momentum,
                weight_decay=self.weight_decay,
                schedule="constant",
            )

    def objective(self, bias: Tensor) -> Objective:
        """The gates' loss and, apart from it, the head's, of a `GatedNetwork`; bias: of each sample, `[N]`, from 0."""

        def loss(seen: nn.Module, batch: Batch) -> Tensor:
            assert isinstance(seen, GatedNetwork)
            features, logits = seen.features_and_logits(batch.x)
            head, own = seen.bias_head, bias[batch.index]
            told = functional.linear(features, head.weight.detach(), head.bias.detach()).float()
            task = functional.cross_entropy(logits.float(), batch.y)
            apart = functional.cross_entropy(head(features.detach()).float(), own)
            return self.task_weight * task + self.bias_weight * mutual_information(told, own) + apart

        return loss


@dataclass(frozen=True)
class NativeFantasticWeights(FantasticWeights):
    """The gates' own threshold, without fine-tuning."""

    def fit(self, experiment: Experiment, sparsity: float) -> Pruned:
        masks, model = native_masks(self.gates(experiment)), experiment.dense_model()
        apply_masks(model, masks)
        return Pruned(model, masks)


class GatedNetwork(Reparametrised):
    """A network of fixed weights behind gates, and a head that tells the bias from its features.

    `temperature` is changed from outside; BatchNorm stays in evaluation mode.
    """

    def __init__(self, net: Classifier, biases: int, generator: torch.Generator) -> None:
        super().__init__(net.requires_grad_(False))
        self._names = list(prunable(net))
        self.gates = nn.ParameterList(nn.Parameter(torch.zeros_like(one)) for one in prunable(net).values())
        self.bias_head = nn.Linear(net.head.in_features, biases)
        with torch.no_grad():
            for value in self.bias_head.parameters():
                bound = net.head.in_features**-0.5
                value.uniform_(-bound, bound, generator=generator)
        self.temperature = 1.0

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.net.eval()
        return self

    def weights(self) -> dict[str, Tensor]:
        own = prunable(self.net)
        return {name: own[name] * opening(s / self.temperature) for name, s in zip(self._names, self.gates)}

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features `[B, F]` and logits `[B, C]` of images, through the gates."""
        weights, net = self.weights(), self.net
        assert isinstance(net, Classifier)
        body = {name.removeprefix("body."): one for name, one in weights.items() if name != "head.weight"}
        features = functional_call(net.body, body, (x,))
        return features, functional.linear(features, weights["head.weight"], net.head.bias)

    def named_gates(self) -> dict[str, Tensor]:
        """s of every weight, by its name."""
        return {name: s.detach().clone() for name, s in zip(self._names, self.gates)}


def opening(s: Tensor) -> Tensor:
    """min(1, 2 sigmoid(s)), with the slope of 2 sigmoid(s) everywhere."""
    soft = 2 * torch.sigmoid(s)
    return soft.detach().clamp(max=1) + (soft - soft.detach())


def bias_objective(bias: Tensor) -> Objective:
    """The cross-entropy of the head of a `GatedNetwork`; bias: of each sample, `[N]`, from 0."""

    def loss(seen: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(seen, GatedNetwork)
        with torch.no_grad():
            features, _ = seen.features_and_logits(batch.x)
        return functional.cross_entropy(seen.bias_head(features).float(), bias[batch.index])

    return loss


def mutual_information(logits: Tensor, bias: Tensor) -> Tensor:
    """Between a bias `[B]` and what logits `[B, K]` say of it, within the batch, as a share of log K.

    p(k, j) is the mean over the batch of [bias is k] softmax_j; the sum over k, j of p(k, j) log(p(k, j) / p(k) p(j)).
    """
    kinds = logits.shape[1]
    true, told = functional.one_hot(bias, kinds).to(logits.dtype), logits.softmax(1)
    joint = (true.unsqueeze(2) * told.unsqueeze(1)).mean(0).clamp(min=SMALLEST)
    apart = (joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)).clamp(min=SMALLEST)
    return (joint * (joint / apart).log()).sum() / math.log(max(kinds, 2))


GROUPS = "train-groups"
ffw = method("ffw", cite=f"{NAHON}; ranked and fine-tuned", supervision=GROUPS)(FantasticWeights)
ffw_native = method("ffw-native", cite=NAHON, supervision=GROUPS, native=True)(NativeFantasticWeights)
