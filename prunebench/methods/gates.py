"""Gates on a fixed network, learned against a head that tells the bias from its features: what FFW and BISE share.

Gates minimise the task's loss and the mutual information between the bias and what the head says of it, within a batch;
the head learns beside them from features that pass no gradient on.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from prunebench.methods.experiment import Experiment
from prunebench.models import Classifier
from prunebench.pruning.reparametrised import Reparametrised
from prunebench.training.beside import SideOptimizer
from prunebench.training.loop import Batch, Objective

SMALLEST = 1e-15
"""Of the probabilities in the mutual information."""


class GatedNetwork(Reparametrised, ABC):
    """A network of fixed weights behind gates, and a head that tells the bias from its features.

    `temperature` is changed from outside; BatchNorm stays in evaluation mode.

    Args:
        net: is taken over: its parameters stop to require gradients.
        gates: what they begin as.
        kinds: of the bias, how many.
        generator: draws the head's first weights.
    """

    def __init__(
        self, net: Classifier, gates: Iterable[Tensor], kinds: int, generator: torch.Generator
    ) -> None:
        super().__init__(net.requires_grad_(False).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        self.gates = nn.ParameterList(nn.Parameter(gate) for gate in gates)
        width, device = net.head.in_features, net.head.weight.device
        first = (2 * torch.rand(kinds, width + 1, generator=generator) - 1) * width**-0.5
        self.bias_head = nn.Linear(width, kinds, device=device)
        with torch.no_grad():
            self.bias_head.weight.copy_(first[:, 1:])
            self.bias_head.bias.copy_(first[:, 0])
        self.temperature = 1.0

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.net.eval()
        return self

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features `[B, F]` and logits `[B, C]` of images, through the gates."""
        weights, net = self.weights(), self.net
        assert isinstance(net, Classifier)
        head = weights.pop("head.weight", net.head.weight)
        features = functional_call(
            net.body, {name.removeprefix("body."): one for name, one in weights.items()}, (x,)
        )
        return features, functional.linear(features, head, net.head.bias)


@dataclass(frozen=True)
class HeadRule:
    """How the head learns: SGD at a constant rate, and `steps` of its own before each temperature."""

    steps: int
    lr: float
    momentum: float
    weight_decay: float


def learn_gates(  # noqa: PLR0913
    experiment: Experiment,
    seen: GatedNetwork,
    objective: Objective,
    bias: Tensor,
    *,
    steps: int,
    temperatures: Sequence[float],
    optimizer: torch.optim.Optimizer,
    rule: HeadRule,
    sample_weight: Tensor | None = None,
) -> None:
    """Train the gates in place, as many steps at each temperature; bias: of each training sample, `[N]`, from 0.

    `objective` is the gates' loss and, apart from it, the head's; see `gate_objective`. The optimizer is of the gates.
    """
    head, share = list(seen.bias_head.parameters()), steps / len(temperatures)
    beside = SideOptimizer(
        head,
        replace(experiment.recipe, schedule="constant"),
        lr=rule.lr,
        momentum=rule.momentum,
        weight_decay=rule.weight_decay,
    )

    def told(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, GatedNetwork)
        with torch.no_grad():
            features, _ = model.features_and_logits(batch.x)
        return functional.cross_entropy(model.bias_head(features).float(), bias[batch.index])

    for at, temperature in enumerate(temperatures):
        begin, end = round(share * at), round(share * (at + 1))
        if begin == end:
            continue
        seen.temperature = temperature
        if rule.steps:
            experiment.train(
                seen,
                steps=rule.steps,
                name="bias-head",
                objective=told,
                parameters=head,
                sample_weight=sample_weight,
                lr=rule.lr,
                optimizer="sgd",
                momentum=rule.momentum,
                weight_decay=rule.weight_decay,
                schedule="constant",
            )
        seen.bias_head.zero_grad()  # else the last step's gradient would be in the next one's too
        experiment.train(
            seen,
            steps=steps,
            start=begin,
            stop_after=end,
            name="masks",
            objective=objective,
            parameters=list(seen.gates),
            sample_weight=sample_weight,
            after_step=beside.step,
            optimizer=lambda *_: optimizer,  # its moments outlast a temperature
            schedule="constant",
        )


def gate_objective(
    bias: Tensor,
    task_loss: Callable[[Tensor, Batch], Tensor],
    bias_weight: float,
    measured: Tensor | None = None,
) -> Objective:
    """The loss of a `GatedNetwork`'s gates and, apart from it, of its head.

    Args:
        bias: of each training sample, `[N]`, from 0.
        task_loss: of logits `[B, C]` and their batch.
        bias_weight: of the mutual information.
        measured: the samples that it is measured on, bool `[N]`; all where none are given.
    """

    def loss(seen: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(seen, GatedNetwork)
        features, logits = seen.features_and_logits(batch.x)
        head, own = seen.bias_head, bias[batch.index]
        told = functional.linear(features, head.weight.detach(), head.bias.detach()).float()
        among = None if measured is None else measured[batch.index]
        apart = functional.cross_entropy(head(features.detach()).float(), own)
        leak = mutual_information(told, own, among)
        return task_loss(logits.float(), batch) + bias_weight * leak + apart

    return loss


def mutual_information(logits: Tensor, bias: Tensor, among: Tensor | None = None) -> Tensor:
    """Between a bias `[B]` and what logits `[B, K]` say of it, within the batch, as a share of log K.

    p(k, j) is the mean over the batch of [bias is k] softmax_j; the sum over k, j of p(k, j) log(p(k, j) / p(k) p(j)).
    With `among`, bool `[B]`, over these samples alone; 0 where there are none. Source: Tartaglione (2022).
    """
    kinds = logits.shape[1]
    true, told = functional.one_hot(bias, kinds).to(logits.dtype), logits.softmax(1)
    if among is not None:
        true = true * among.unsqueeze(1)
    count = true.sum().clamp(min=1)
    joint = ((true.unsqueeze(2) * told.unsqueeze(1)).sum(0) / count).clamp(min=SMALLEST)
    apart = (joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)).clamp(min=SMALLEST)
    return (joint * (joint / apart).log()).sum() / math.log(max(kinds, 2))
