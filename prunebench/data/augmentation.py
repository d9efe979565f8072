"""Random views of images, as contrastive learning trains on them: cropped, mirrored, recoloured, some in grey.

Every image has draws of its own, made on the device. Sources: Chen et al. (2020); sizes and shares are those of
Park et al. (2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
WIDEST = 4 / 3
"""The largest ratio of a crop's sides."""


@torch.no_grad()
def random_view(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    smallest: float = 0.2,
    jitter: float = 0.4,
    hue: float = 0.1,
    recoloured: float = 0.8,
    grey: float = 0.2,
) -> Tensor:
    """A view of each image; pixels `[B, 3, H, W]` from 0 to 1, generator: on their device.

    A crop of at least `smallest` of the area is stretched to the whole and mirrored with probability 1/2. With
    probability `recoloured`, brightness, contrast and saturation are then multiplied by up to 1 +- `jitter`, in this
    order, and the hue turns by up to +- `hue` of a turn; with probability `grey` only the luma is left.
    """
    pixels = random_crop(pixels, generator, smallest)
    brightness, contrast, saturation = (draw(pixels, generator, 1 - jitter, 1 + jitter) for _ in range(3))
    changed = (pixels * brightness).clamp(0, 1)
    mean = luma(changed).mean((1, 2, 3), keepdim=True)
    changed = (mean + contrast * (changed - mean)).clamp(0, 1)
    plain = luma(changed)
    changed = (plain + saturation * (changed - plain)).clamp(0, 1)
    changed = turn_hue(changed, draw(pixels, generator, -hue, hue))
    pixels = torch.where(draw(pixels, generator) < recoloured, changed, pixels)
    return torch.where(draw(pixels, generator) < grey, luma(pixels), pixels)


def draw(like: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A uniform number for each image, `[B, 1, 1, 1]`."""
    unit = torch.rand((len(like), 1, 1, 1), generator=generator, device=like.device, dtype=like.dtype)
    return low + (high - low) * unit


def random_crop(pixels: Tensor, generator: torch.Generator, smallest: float) -> Tensor:
    """Crops of `smallest` to all of the area, stretched to the whole, mirrored with probability 1/2.

    The sides' ratio lies between 3/4 and 4/3, evenly in its logarithm; a side that would be longer than the image's is
    as long as it.
    """
    area = draw(pixels, generator, smallest, 1.0)
    ratio = draw(pixels, generator, -math.log(WIDEST), math.log(WIDEST)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = ((1 - side) * draw(pixels, generator, -1, 1) for side in (width, height))
    mirrored = torch.where(draw(pixels, generator) < 0.5, -width, width)
    none = torch.zeros_like(x)
    crop = torch.cat([mirrored, none, x, none, height, y], 1).view(-1, 2, 3)
    with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 would move a crop by parts of a pixel
        grid = functional.affine_grid(crop, list(pixels.shape), align_corners=False)
        return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def luma(pixels: Tensor) -> Tensor:
    """The images' brightness, `[B, 1, H, W]`."""
    weights = torch.tensor(LUMA, device=pixels.device, dtype=pixels.dtype).view(3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True)


def turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """The images with their hue turned by shares of a full turn, `[B, 1, 1, 1]`; saturation and value stay."""
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    scale = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    places = (sixths.unsqueeze(1) + 6 * turn + torch.tensor([5, 3, 1], device=turn.device).view(3, 1, 1)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(places, 4 - places).clamp(0, 1)
