"""Colour, compression and shape of CIFAR-10-C at severity 5: float32 images `[N, H, W, 3]` in 0-1."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import grid_sample

from prunebench.tasks.corruptions.blur import smooth
from prunebench.tasks.corruptions.noise import Generators, Images, uniform

BRIGHTER = 0.3
CONTRAST = 0.15
SATURATION_FACTOR, SATURATION_MORE = 2.5, 0.2
JPEG_QUALITY = 40
PIXELATE = 0.65
ELASTIC_CORNER, ELASTIC_SIGMA, ELASTIC_SHIFT = 0.03, 0.03, 0.1
"""Shares of the side: how far corners move, smoothness and size of the local displacement."""


def brightness(images: Images, _: Generators) -> Images:
    """The value of HSV rises by 0.3; hue and saturation stay."""
    value = images.max(axis=3, keepdims=True)
    raised = np.minimum(value + np.float32(BRIGHTER), 1)
    return np.where(value > 0, images * raised / np.maximum(value, 1e-6), raised)


def saturate(images: Images, _: Generators) -> Images:
    """The saturation of HSV becomes 2.5 S + 0.2, at most 1; hue and value stay. Grey has the hue of red."""
    value, least = images.max(axis=3, keepdims=True), images.min(axis=3, keepdims=True)
    spread = value - least
    saturation = spread / np.maximum(value, 1e-6)
    raised = np.minimum(SATURATION_FACTOR * saturation + SATURATION_MORE, 1)
    red = np.array([0, 1, 1], dtype=np.float32)
    lack = np.where(spread > 0, (value - images) / np.maximum(spread, 1e-6), red)
    return value * (1 - raised * lack)


def contrast(images: Images, _: Generators) -> Images:
    """The difference from each channel's mean shrinks to 0.15 of it."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * np.float32(CONTRAST) + mean


def jpeg(images: Images, _: Generators) -> Images:
    """JPEG at quality 40, colour at half resolution."""
    return _one_by_one(images, _compress)


def pixelate(images: Images, _: Generators) -> Images:
    """Scaled to 0.65 of the side and back, each by area."""
    return _one_by_one(images, _coarsen)


def _one_by_one(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    shown = np.rint(images * 255).astype(np.uint8)
    changed = np.stack([np.asarray(change(Image.fromarray(image))) for image in shown])
    return changed.astype(np.float32) / np.float32(255)


def _compress(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return Image.open(stream)


def _coarsen(image: Image.Image) -> Image.Image:
    small = (int(image.width * PIXELATE), int(image.height * PIXELATE))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def elastic(images: Images, generators: Generators) -> Images:
    """An affine map that moves three corners by up to 0.96 pixels, then a smooth local displacement.

    The displacement is uniform noise in +-1, blurred with sigma 0.96 pixels, times 3.2 pixels.
    """
    side = images.shape[1]
    reach = ELASTIC_CORNER * side
    corners = uniform(generators, -reach, reach, (3, 2))
    field = uniform(generators, -1, 1, (2, side, side)).reshape(-1, side, side)
    field = smooth(field.astype(np.float64), ELASTIC_SIGMA * side, mode="reflect", truncate=3)
    shift = field.reshape(-1, 2, side, side) * (ELASTIC_SHIFT * side)
    rows, columns = np.indices((side, side), dtype=np.float64)
    # The two steps mirror differently at the border: at the outermost pixels, then at their edges.
    turned = sample(images, _affine_sources(corners, side), edges=False)
    displaced = np.stack([columns + shift[:, 0], rows + shift[:, 1]], axis=3)
    return sample(turned, displaced, edges=True)


def _affine_sources(moves: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Where each pixel comes from, (column, row) `[N, side, side, 2]`, when three corners move by `[N, 3, 2]`."""
    middle, third = side // 2, side // 3
    high, low = middle + third, middle - third
    before = np.array([(high, high), (high, low), (low, low)], dtype=np.float64)
    after = np.concatenate([before + moves, np.ones((len(moves), 3, 1))], axis=2)
    back = np.linalg.solve(
        after, np.broadcast_to(before, (len(moves), 3, 2))
    )  # `[N, 3, 2]`: after @ back = before
    rows, columns = np.indices((side, side), dtype=np.float64)
    places = np.stack([columns, rows, np.ones_like(rows)], axis=2)
    return (places.reshape(-1, 3) @ back).reshape(-1, side, side, 2)


def sample(images: Images, places: NDArray[np.float64], *, edges: bool) -> Images:
    """Images `[N, side, side, C]` read at places (column, row) `[N, side, side, 2]`, bilinear.

    Outside, the image is mirrored: at the pixels' outer `edges`, or at the centres of the outermost pixels. In float64:
    in float32 some bytes in a million would depend on the processor.
    """
    side = images.shape[1]
    grid = (2 * places + 1) / side - 1 if edges else 2 * places / (side - 1) - 1
    read = grid_sample(
        torch.from_numpy(images).double().permute(0, 3, 1, 2),
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=not edges,
    )
    return read.permute(0, 2, 3, 1).float().numpy()
