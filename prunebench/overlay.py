"""A change of some images that is made when they are shown: for images that lie in a file and are seen in crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlay:
    """`paint`, of float pixels `[B, C, H, W]` from 0 to 255, for the samples where `chosen`, bool `[N]`, is true."""

    chosen: Tensor
    paint: Callable[[Tensor], Tensor]

    def to(self, device: torch.device) -> Overlay:
        return replace(self, chosen=self.chosen.to(device))

    def show(self, pixels: Tensor, index: Tensor | slice) -> Tensor:
        """Float pixels `[B, C, H, W]` of the samples `index`, painted where chosen."""
        chosen = self.chosen[index].view(-1, 1, 1, 1)
        return torch.where(chosen, self.paint(pixels), pixels)
