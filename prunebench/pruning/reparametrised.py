"""Networks whose prunable weights are computed anew in every pass: straight-through masks and soft thresholds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunebench.pruning.counts import Masks, top_k
from prunebench.pruning.masks import prunable


class Reparametrised(nn.Module, ABC):
    """A network seen through `weights()`, which a subclass makes of the network's own; all else is the network's."""

    steps_differ = True
    """Counts and temperatures change in Python, so that no GPU may capture a step and replay it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What stands for each prunable weight in this pass, differentiable, by its name in the network."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]`."""
        return functional_call(self.net, self.weights(), (x,))

    @torch.no_grad()
    def settle(self) -> None:
        """Write what stands for the weights into the network, in place."""
        own = prunable(self.net)
        for name, value in self.weights().items():
            own[name].copy_(value)


class ScoredMasks(Reparametrised):
    """weight * mask, with the `counts` highest of |score| or of score in each layer as its mask.

    The gradient goes to the score straight through the mask: dL/ds = dL/dw' * w. Sources: Ramanujan et al. (2020);
    Sanh et al. (2020).
    """

    def __init__(self, net: nn.Module, scores: Mapping[str, Tensor], *, absolute: bool = False) -> None:
        super().__init__(net)
        self._names = list(prunable(net))
        self.scores = nn.ParameterList(nn.Parameter(scores[name].clone()) for name in self._names)
        self._absolute = absolute
        self.counts = {name: scores[name].numel() for name in self._names}

    @torch.no_grad()
    def masks(self) -> Masks:
        """The masks that hold now."""
        return {
            name: top_k(score.abs() if self._absolute else score, self.counts[name])
            for name, score in zip(self._names, self.scores)
        }

    def weights(self) -> dict[str, Tensor]:
        own, masks = prunable(self.net), self.masks()
        straight = {
            name: masks[name] + (slope - slope.detach())
            for name, score in zip(self._names, self.scores)
            for slope in (score.abs() if self._absolute else score,)
        }
        return {name: own[name] * straight[name] for name in self._names}
