"""Weather of CIFAR-10-C at severity 5: float32 images `[N, side, side, 3]` in 0-1, one generator an image."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prunebench.tasks.corruptions.blur import enlarge, smooth, to_levels, trail
from prunebench.tasks.corruptions.noise import Generators, Images, normal, uniform

FOG_STRENGTH, FOG_DECAY = 1.5, 1.75
FROST_IMAGE, FROST_ICE = 0.75, 0.45
FROST_PANES, FROST_SIDE, FROST_SEED = 5, 160, 48_271
SNOW_MEAN, SNOW_STD, SNOW_ZOOM, SNOW_LEAST = 0.3, 0.3, 1.25, 0.65
SNOW_RADIUS, SNOW_SIGMA, SNOW_KEPT = 14, 12.0, 0.8
SNOW_DEGREES = (-135.0, -45.0)
MUD_MEAN, MUD_STD, MUD_SIGMA, MUD_LEAST, MUD_SOFT, MUD_CUT = 0.65, 0.1, 0.5, 0.68, 0.6, 0.8
MUD = (63, 42, 20)
LUMA = (0.299, 0.587, 0.114)


def snow(images: Images, generators: Generators) -> Images:
    """Whitened images with flakes that fall in streaks, laid over once more turned by half a circle."""
    side = images.shape[1]
    flakes = SNOW_MEAN + SNOW_STD * normal(generators, (side, side))
    flakes = enlarge(flakes, SNOW_ZOOM)
    flakes = np.where(flakes < SNOW_LEAST, 0, np.floor(np.clip(flakes, 0, 1) * 255) / 255)
    angles = uniform(generators, *SNOW_DEGREES)
    streaks = to_levels(trail(flakes[..., None].astype(np.float32), angles, SNOW_RADIUS, SNOW_SIGMA))
    grey = (images * np.array(LUMA, dtype=np.float32)).sum(axis=3, keepdims=True)
    white = SNOW_KEPT * images + (1 - SNOW_KEPT) * np.maximum(images, grey * 1.5 + 0.5)
    return np.asarray(white + streaks + streaks[:, ::-1, ::-1], dtype=np.float32)


def fog(images: Images, generators: Generators) -> Images:
    """(x + 1.5 plasma) m / (m + 1.5), m the image's largest value: cloudy noise between 0 and 1 laid over."""
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    cloud = plasma(generators, images.shape[1], FOG_DECAY)[..., None]
    return (images + np.float32(FOG_STRENGTH) * cloud) * brightest / (brightest + np.float32(FOG_STRENGTH))


def plasma(generators: Generators, side: int, decay: float) -> Images:
    """Diamond-square noise on a torus, `[N, side, side]` in 0-1; side is a power of two.

    Every level halves the grid: a new point is the mean of its four neighbours plus uniform noise in +-w^2, where w
    starts at 100 and shrinks by `decay` a level.
    """
    grid = np.zeros((len(generators), side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half, count = step // 2, side // step
        drawn = np.stack([generator.uniform(-1, 1, (3, count, count)) for generator in generators])
        drawn *= wobble**2
        corners = grid[:, ::step, ::step]
        down = corners + np.roll(corners, -1, axis=1)
        middles = (down + np.roll(down, -1, axis=2)) / 4 + drawn[:, 0]
        grid[:, half::step, half::step] = middles
        across = corners + np.roll(corners, -1, axis=2)
        grid[:, ::step, half::step] = (middles + np.roll(middles, 1, axis=1) + across) / 4 + drawn[:, 1]
        grid[:, half::step, ::step] = (middles + np.roll(middles, 1, axis=2) + down) / 4 + drawn[:, 2]
        step, wobble = half, wobble / decay
    grid -= grid.min(axis=(1, 2), keepdims=True)
    return (grid / grid.max(axis=(1, 2), keepdims=True)).astype(np.float32)


def spatter(images: Images, generators: Generators) -> Images:
    """Splashes of brown mud."""
    drops = MUD_MEAN + MUD_STD * normal(generators, images.shape[1:3])
    wet = (smooth(drops, MUD_SIGMA) > MUD_LEAST).astype(np.float32)
    cover = smooth(wet, MUD_SOFT)
    cover = np.where(cover < MUD_CUT, 0, cover)[..., None].astype(np.float32)
    return images * (1 - cover) + cover * np.array(MUD, dtype=np.float32) / np.float32(255)


def frost(images: Images, generators: Generators) -> Images:
    """0.75 x + 0.45 ice: a random part of one of five frosted panes.

    CIFAR-10-C lays photographs of frost over its images; these panes are drawn instead (see `frosted_pane`).
    """
    side = images.shape[1]
    panes = np.stack([frosted_pane(number) for number in range(FROST_PANES)])
    last = FROST_SIDE - side
    chosen = [(g.integers(FROST_PANES), g.integers(last), g.integers(last)) for g in generators]
    ice = np.stack([panes[pane, row : row + side, column : column + side] for pane, row, column in chosen])
    return np.float32(FROST_IMAGE) * images + np.float32(FROST_ICE) * ice


@functools.cache
def frosted_pane(number: int) -> Images:
    """A pane of ice on dark glass, `[160, 160, 3]` in 0-1: a cloudy film, and ferns of crystals grown over it."""
    generator = np.random.default_rng((FROST_SEED, number))
    film = np.kron(plasma([generator], 64, 1.6)[0], np.ones((3, 3)))[:FROST_SIDE, :FROST_SIDE]
    grain = plasma([generator], 256, 1.3)[0, :FROST_SIDE, :FROST_SIDE]
    film = 0.6 * smooth(film[None], 3.0)[0] + 0.4 * grain
    ice = np.clip(0.55 * film + 0.85 * _ferns(generator), 0, 1)[..., None]
    glass, white = np.array((0.10, 0.16, 0.24)), np.array((0.86, 0.93, 1.0))
    return (glass + (white - glass) * ice).astype(np.float32)


def _ferns(generator: np.random.Generator) -> NDArray[np.float64]:
    """Crystals: stems from random points, with needles at 60 degrees, thinner towards their ends."""
    scale = 4
    side = FROST_SIDE * scale
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    for _ in range(70):
        start, angle = generator.uniform(0, side, 2), generator.uniform(0, 2 * math.pi)
        length = generator.uniform(0.1, 0.4) * side
        light = int(generator.uniform(110, 255))
        _stem(pen, (float(start[0]), float(start[1])), angle, length, light)
        for along in np.arange(0.05, 1.0, 0.05):
            foot = start + along * length * np.array((math.cos(angle), math.sin(angle)))
            needle = float(0.4 * length * (1 - along) * generator.uniform(0.5, 1.0))
            for turn in (-math.pi / 3, math.pi / 3):
                _stem(pen, (float(foot[0]), float(foot[1])), angle + turn, needle, int(light * 0.8))
    small = canvas.resize((FROST_SIDE, FROST_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def _stem(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], angle: float, length: float, light: int
) -> None:
    for end, width in ((1.0, 2), (0.6, 4), (0.25, 6)):
        reach = end * length
        tip = (start[0] + reach * math.cos(angle), start[1] + reach * math.sin(angle))
        pen.line([start, tip], fill=light, width=width)
