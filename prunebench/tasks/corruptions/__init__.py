"""The nineteen corruptions of CIFAR-10-C at severity 5, and none, in the two families of LfF's Corrupted CIFAR-10.

A corruption takes float32 images `[N, 32, 32, 3]` in 0-1 and one random generator an image, and returns float32 images
in 0-1, not yet clipped. Parameters and order of steps are those of the released code of Hendrycks & Dietterich (2019,
arXiv 1903.12261); all images of a batch are computed at once. What differs: frost is drawn (no photographs travel with
this package), and the random numbers are others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunebench.data.cache import keep_images
from prunebench.tasks.corruptions import blur, digital, noise, weather
from prunebench.tasks.corruptions.noise import Generators, Images

VERSION = 2
"""In the names of stored images: raise it when a corruption changes."""
SEED = 16_807
CHUNK = 500
"""Images corrupted at once: 6 MB of float32, which stay in the processor's cache."""
GREY_TOLERANCE = 1e-3
"""Of one grey level: float32 puts an unchanged value that far below its own level, which truncation would lower."""


@dataclass(frozen=True)
class Corruption:
    """A named corruption. `code` seeds its random numbers."""

    name: str
    code: int
    apply: Callable[[Images, Generators], Images]


def leave(images: Images, _: Generators) -> Images:
    """The images as they are."""
    return images


def _family(
    first_code: int, *members: tuple[str, Callable[[Images, Generators], Images]]
) -> tuple[Corruption, ...]:
    return tuple(Corruption(name, first_code + place, apply) for place, (name, apply) in enumerate(members))


TYPE_0 = _family(
    0,
    ("snow", weather.snow),
    ("frost", weather.frost),
    ("fog", weather.fog),
    ("brightness", digital.brightness),
    ("contrast", digital.contrast),
    ("spatter", weather.spatter),
    ("elastic", digital.elastic),
    ("jpeg", digital.jpeg),
    ("pixelate", digital.pixelate),
    ("saturate", digital.saturate),
)
"""LfF's Type0, in its order: the place in the list is the class that the corruption goes with."""

TYPE_1 = _family(
    10,
    ("gaussian-noise", noise.gaussian_noise),
    ("shot-noise", noise.shot_noise),
    ("impulse-noise", noise.impulse_noise),
    ("speckle-noise", noise.speckle_noise),
    ("gaussian-blur", blur.gaussian_blur),
    ("defocus-blur", blur.defocus_blur),
    ("glass-blur", blur.glass_blur),
    ("motion-blur", blur.motion_blur),
    ("zoom-blur", blur.zoom_blur),
    ("original", leave),
)
"""LfF's Type1."""


def corrupt(
    corruption: Corruption, images: NDArray[np.uint8], positions: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Corrupted images, uint8 `[N, 32, 32, 3]`, of uint8 images of that shape.

    positions: `[N]`, where each image stands in its data set. An image's random numbers depend on its position and the
    corruption alone: whatever is corrupted beside it, it comes out the same. Values are truncated, as released.
    """
    corrupted = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        generators = [np.random.default_rng((SEED, corruption.code, int(at))) for at in positions[part]]
        shown = corruption.apply(images[part].astype(np.float32) / np.float32(255.0), generators)
        corrupted[part] = np.clip(shown * 255.0 + GREY_TOLERANCE, 0.0, 255.0)
    return corrupted


@dataclass(frozen=True)
class CorruptedImages:
    """A data set `[N, 32, 32, 3]`, each image in any corruption of a family.

    kept: `[N]`, the corruption (its place in the family) in which every draw shows an image: those are kept on disk, a
    file a corruption. `name` tells the data set from others.
    """

    name: str
    images: NDArray[np.uint8]
    family: tuple[Corruption, ...]
    kept: NDArray[np.int64]

    def pick(self, positions: NDArray[np.int64], bias: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images `[n, 32, 32, 3]` at positions `[n]`, each in the corruption bias `[n]`."""
        picked = np.empty((len(positions), *self.images.shape[1:]), dtype=np.uint8)
        stored = self.kept[positions] == bias
        for place, files in self._stored(np.unique(bias[stored])).items():
            here = np.flatnonzero(stored & (bias == place))
            held = np.flatnonzero(self.kept == place)
            picked[here] = files[np.searchsorted(held, positions[here])]
        for place in np.unique(bias[~stored]):
            here = np.flatnonzero(~stored & (bias == place))
            picked[here] = self._make(int(place), positions[here])
        return picked

    def _stored(self, places: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        """The stored images of some corruptions; those that another process is making come last."""
        files: dict[int, NDArray[np.uint8]] = {}
        for wait in (False, True):
            for place in (int(place) for place in places if int(place) not in files):
                held = np.flatnonzero(self.kept == place)
                name = f"{self.name}-{self.family[place].name}-v{VERSION}"
                images = keep_images(name, len(held), functools.partial(self._make, place, held), wait=wait)
                if images is not None:
                    files[place] = images
        return files

    def _make(self, place: int, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        return corrupt(self.family[place], self.images[positions], positions)
