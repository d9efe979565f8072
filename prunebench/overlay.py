"""A change of some images that is made when they are shown: for images that lie in a file and are seen in crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Painter = Callable[[Tensor, Tensor | slice], Tensor]


@dataclass(frozen=True)
class Overlay:
    """`paint`, of float pixels `[B, C, H, W]` from 0 to 255, for the samples where `chosen`, bool `[N]`, is true."""

    chosen: Tensor
    paint: Callable[[Tensor], Tensor]

    def painter(self, device: torch.device) -> Painter:
        """On a device: of float pixels `[B, C, H, W]` and the samples that they are of, the pixels as they are shown.

        A function, for who is chosen may be a bias label: whoever holds the images shall not meet it as an attribute.
        """
        chosen, paint = self.chosen.to(device).view(-1, 1, 1, 1), self.paint

        def show(pixels: Tensor, index: Tensor | slice) -> Tensor:
            return torch.where(chosen[index], paint(pixels), pixels)

        return show
