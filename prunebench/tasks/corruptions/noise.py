"""Noise of CIFAR-10-C at severity 5: float32 images `[N, H, W, 3]` in 0-1, one generator an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Generators = Sequence[np.random.Generator]

GAUSSIAN_STD = 0.1
PHOTONS = 50
"""Mean count of a white pixel."""
IMPULSE_SHARE = 0.07
SPECKLE_STD = 0.2


def gaussian_noise(images: Images, generators: Generators) -> Images:
    """x + N(0, 0.1), each value on its own."""
    return images + np.float32(GAUSSIAN_STD) * normal(generators, images.shape[1:])


def shot_noise(images: Images, generators: Generators) -> Images:
    """Poisson(50 x) / 50."""
    counts = [generator.poisson(image * PHOTONS) for generator, image in zip(generators, images)]
    return np.stack(counts).astype(np.float32) / np.float32(PHOTONS)


def impulse_noise(images: Images, generators: Generators) -> Images:
    """7 % of the values become 0 or 1, either as likely."""
    drawn = np.stack([generator.random((2, *images.shape[1:]), np.float32) for generator in generators])
    extreme = (drawn[:, 1] < 0.5).astype(np.float32)
    return np.where(drawn[:, 0] < IMPULSE_SHARE, extreme, images)


def speckle_noise(images: Images, generators: Generators) -> Images:
    """x + x N(0, 0.2)."""
    return images + images * np.float32(SPECKLE_STD) * normal(generators, images.shape[1:])


def normal(generators: Generators, shape: tuple[int, ...]) -> Images:
    """Standard normal numbers `[N, *shape]`."""
    return np.stack([generator.standard_normal(shape, np.float32) for generator in generators])


def uniform(generators: Generators, low: float, high: float, shape: tuple[int, ...] = ()) -> Images:
    """Uniform numbers `[N, *shape]`."""
    drawn = np.stack([generator.random(shape, np.float32) for generator in generators])
    return np.asarray(low + (high - low) * drawn, dtype=np.float32)
