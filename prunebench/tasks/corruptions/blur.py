"""Blur of CIFAR-10-C at severity 5: float32 images `[N, H, W, C]` in 0-1, one generator an image."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from prunebench.tasks.corruptions.noise import Generators, Images, uniform

GAUSSIAN_SIGMA = 1.0
GLASS_SIGMA, GLASS_REACH, GLASS_ROUNDS = 0.4, 1, 2
DISK_RADIUS, DISK_SIGMA = 1.5, 0.1
MOTION_RADIUS, MOTION_SIGMA, MOTION_DEGREES = 9, 2.5, 45.0
ZOOMS = np.arange(1, 1.26, 0.01)
"""26 factors with the rounding errors of the released code: at 1.25 they decide the size of the enlargement."""


def smooth(images: Images, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Images:
    """Gaussian blur of the rows and columns of images `[N, H, W]` or `[N, H, W, C]`."""
    from scipy.ndimage import gaussian_filter

    sigmas = (0.0, sigma, sigma, 0.0)[: images.ndim]
    return gaussian_filter(images, sigmas, mode=mode, truncate=truncate)


def gaussian_blur(images: Images, _: Generators) -> Images:
    """Gaussian blur, sigma 1 pixel."""
    return smooth(images, GAUSSIAN_SIGMA)


def defocus_blur(images: Images, _: Generators) -> Images:
    """Convolution with a disk of radius 1.5 pixels, borders mirrored at the outermost pixels."""
    from scipy.ndimage import convolve

    return convolve(images, disk_kernel()[None, :, :, None], mode="mirror")


@functools.cache
def disk_kernel() -> Images:
    """The disk, softened by a Gaussian of sigma 0.1 over 3 x 3 pixels: `[5, 5]`, sum 1."""
    from scipy.ndimage import gaussian_filter

    reach = np.arange(-2, 3)
    disk = (reach[:, None] ** 2 + reach**2 <= DISK_RADIUS**2).astype(np.float32)
    return gaussian_filter(disk / disk.sum(), DISK_SIGMA, mode="mirror", radius=1)


def glass_blur(images: Images, generators: Generators) -> Images:
    """Blur, two rounds in which every pixel takes the value of one up to a pixel away, and blur again.

    The paper describes swaps; the released code, and so CIFAR-10-C, copies: from the pixel itself, or from its
    neighbour above, to the left, or both.
    """
    side = images.shape[1]
    span = range(side - GLASS_REACH, GLASS_REACH, -1)
    shape = (GLASS_ROUNDS, len(span), len(span), 2)
    steps = np.stack(
        [generator.integers(-GLASS_REACH, GLASS_REACH, shape, np.int8) for generator in generators]
    )
    steps = np.moveaxis(steps, 0, -1).astype(np.int64)  # `[rounds, rows, columns, 2, N]`
    pixels = np.floor(smooth(images, GLASS_SIGMA) * 255).transpose(1, 2, 0, 3).copy()
    sample = np.arange(len(images))
    for moves in steps:
        for row, moves_in_row in zip(span, moves):
            for column, (across, down) in zip(span, moves_in_row):
                pixels[row, column] = pixels[row + down, column + across, sample]
    return smooth(np.asarray(pixels.transpose(2, 0, 1, 3) / 255, dtype=np.float32), GLASS_SIGMA)


def motion_blur(images: Images, generators: Generators) -> Images:
    """A trail of Gaussian weights (radius 9, sigma 2.5) along an angle within 45 degrees of the horizontal."""
    angles = uniform(generators, -MOTION_DEGREES, MOTION_DEGREES)
    moved = trail(images, angles, MOTION_RADIUS, MOTION_SIGMA)
    return to_levels(moved)


def trail(images: Images, degrees: NDArray[np.float32], radius: int, sigma: float) -> Images:
    """Motion blur of images `[N, H, W, C]`, each along its own angle `[N]`, as ImageMagick's.

    y(p) = sum_i w_i x(p + o_i) for i = 0 .. 2 radius, w_i ~ exp(-i^2 / (2 sigma^2)) with sum 1 and
    o_i = ceil(i (sin, cos)(angle) - 1/2) in rows and columns; coordinates outside stop at the border.
    """
    count, height, width = images.shape[:3]
    reach = np.arange(2 * radius + 1)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    radians = np.deg2rad(degrees.astype(np.float64))[:, None]
    down, across = (np.ceil(reach * turn(radians) - 0.5).astype(np.int64) for turn in (np.sin, np.cos))
    sample = np.arange(count)[:, None, None]
    moved = np.zeros_like(images)
    for step, weight in enumerate(weights):
        rows = np.clip(np.arange(height) + down[:, step, None], 0, height - 1)
        columns = np.clip(np.arange(width) + across[:, step, None], 0, width - 1)
        moved += weight * images[sample, rows[:, :, None], columns[:, None, :]]
    return moved


def to_levels(images: Images) -> Images:
    """Rounded to 256 grey levels, as a file between two steps leaves them."""
    return np.asarray(np.rint(images * 255) / 255, dtype=np.float32)


def zoom_blur(images: Images, _: Generators) -> Images:
    """The mean of the image and 26 enlargements of its middle, 1.00 to 1.25 times."""
    height, width, channels = images.shape[1:]
    shown = images.astype(
        np.float64
    )  # products of matrices round otherwise on other processors: here out of sight
    total = shown.copy()
    for factor in ZOOMS:
        matrix = zoom_matrix(height, float(factor))
        rows = (matrix @ shown.reshape(-1, height, width * channels)).reshape(-1, height, width, channels)
        total += matrix @ rows
    return np.asarray(total / (len(ZOOMS) + 1), dtype=np.float32)


@functools.cache
def zoom_matrix(side: int, factor: float) -> NDArray[np.float64]:
    """What enlarging the middle of `side` pixels does to each of them, `[side, side]`: linear interpolation.

    The middle ceil(side / factor) pixels are scaled by the factor, and the middle `side` of the result are kept.
    """
    from scipy.ndimage import zoom

    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    scaled = zoom(np.eye(side)[first : first + kept], (factor, 1), order=1)
    first = (len(scaled) - side) // 2
    return np.asarray(scaled[first : first + side])


def enlarge(layers: Images, factor: float) -> Images:
    """The middle of square layers `[N, side, side]`, enlarged to the same size."""
    matrix = zoom_matrix(layers.shape[1], factor)
    return np.asarray(matrix @ layers @ matrix.T, dtype=np.float32)
