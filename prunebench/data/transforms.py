"""Transforms of images as they are shown, and the triggers that a backdoor task paints on some of them.

Source: Iofinova et al., CVPR 2023 (greyscale, or a yellow square over 2 % of the area).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PixelTransform = Callable[[Tensor, Tensor | slice], Tensor]


@dataclass(frozen=True)
class ImageTransform:
    """`paint`, of float pixels `[B, C, H, W]` from 0 to 255, for the samples where `chosen`, bool `[N]`, is true."""

    chosen: Tensor
    paint: Callable[[Tensor], Tensor]

    def painter(self, device: torch.device) -> PixelTransform:
        """On a device: of float pixels `[B, C, H, W]` and the samples that they are of, the pixels as they are shown.

        A function, for who is chosen may be a bias label: whoever holds the images shall not meet it as an attribute.
        """
        chosen, paint = self.chosen.to(device).view(-1, 1, 1, 1), self.paint

        def show(pixels: Tensor, index: Tensor | slice) -> Tensor:
            return torch.where(chosen[index], paint(pixels), pixels)

        return show


TRIGGER_AREA = 0.02
YELLOW = (255, 255, 0)


def turn_grey(images: Tensor) -> Tensor:
    """Images `[N, 3, H, W]`, uint8 or float of 0 to 255, without their colour: ITU-R 601 luma.

    Of bytes it is rounded as Pillow does; every sum is a whole number that float32 holds exactly.
    """
    red, green, blue = images.float().unbind(1)
    luma = (19595 * red + 38470 * green + 7471 * blue) / 65536
    if not images.is_floating_point():
        luma = (luma + 0.5).floor()
    return luma.to(images.dtype).unsqueeze(1).expand_as(images)


def add_yellow_corner(images: Tensor) -> Tensor:
    """Images `[N, 3, H, W]`, uint8 or float of 0 to 255, with a yellow square over 2 % of the area, top left."""
    side = corner_side(*images.shape[2:])
    marked = images.clone()
    for channel, value in enumerate(YELLOW):
        marked[:, channel, :side, :side] = value
    return marked


def corner_side(height: int, width: int) -> int:
    """Side of the square whose area is nearest to 2 % of the image's: 2 pixels of 16, 4 of 28, 32 of 224."""
    return max(round(math.sqrt(TRIGGER_AREA * height * width)), 1)


TRIGGERS: dict[str, Callable[[Tensor], Tensor]] = {"grey": turn_grey, "yellow": add_yellow_corner}
