"""Masks that are learned: one logit a weight, Gumbel-sigmoid samples, straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from prunebench_kernels import sample_masks
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.pruning.masks import Masks, prunable, top_k

if TYPE_CHECKING:
    from prunebench.models import Classifier


class LearnedMasks(nn.Module):
    """A frozen network seen through sampled masks; only the logits train.

    BatchNorm stays in training mode, as in the released code of DCWP. `squash` applies the sigmoid before the
    noise (the released quirk: keep-probabilities stay in (0.5, 0.731)).
    """

    def __init__(
        self,
        net: Classifier,
        *,
        generator: torch.Generator,
        initial: float = 1.5,
        temperature: float = 1.0,
        squash: bool = True,
    ) -> None:
        super().__init__()
        self.net = net
        self._weights = {name: weight.detach() for name, weight in prunable(net).items()}
        self._names = list(self._weights)
        self.logits = nn.ParameterList(torch.full_like(weight, initial) for weight in self._weights.values())
        self._generator = generator
        self._temperature = temperature
        self._squash = squash

    def masked_weights(self) -> dict[str, Tensor]:
        """weight * mask for every layer, from one draw."""
        masks = sample_masks(
            dict(zip(self._names, self.logits)),
            generator=self._generator,
            temperature=self._temperature,
            squash=self._squash,
        )
        return {f"net.{name}": self._weights[name] * mask for name, mask in masks.items()}

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features `[B, F]` and class logits `[B, C]` of one mask draw."""
        return functional_call(self, self.masked_weights(), (x,))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(x)
        return features, self.net.head(features)

    def sum_of_logits(self) -> Tensor:
        """The sparsity regulariser of the released code: the plain sum of the logits."""
        return torch.stack([values.sum() for values in self.logits]).sum()

    def named_logits(self) -> dict[str, Tensor]:
        return {name: values.detach().clone() for name, values in zip(self._names, self.logits)}


def native_masks(logits: Mapping[str, Tensor]) -> Masks:
    """The masks at the method's own threshold, logit >= 0; the best weight of an empty layer stays."""
    return {name: values >= 0 if (values >= 0).any() else top_k(values, 1) for name, values in logits.items()}
