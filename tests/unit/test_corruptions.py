"""Every corruption against an independent computation: plain loops, scipy image by image, or the standard library."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from cifar_folder import make_images
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from prunebench.tasks.corruptions import TYPE_0, TYPE_1, Corruption, blur, corrupt, digital, noise, weather

EVERY = TYPE_0 + TYPE_1
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return make_images(10)[0][:12]


@pytest.fixture(scope="module")
def floats(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def generators(count: int = 12) -> list[np.random.Generator]:
    return [np.random.default_rng(number) for number in range(count)]


def test_the_families_are_those_of_the_protocol() -> None:
    assert [entry.name for entry in TYPE_0] == [
        *(
            "snow",
            "frost",
            "fog",
            "brightness",
            "contrast",
            "spatter",
            "elastic",
            "jpeg",
            "pixelate",
            "saturate",
        )
    ]
    assert [entry.name for entry in TYPE_1] == [
        *("gaussian-noise", "shot-noise", "impulse-noise", "speckle-noise", "gaussian-blur", "defocus-blur"),
        *("glass-blur", "motion-blur", "zoom-blur", "original"),
    ]
    assert sorted(entry.code for entry in EVERY) == list(range(20))


@pytest.mark.parametrize("corruption", EVERY, ids=lambda corruption: corruption.name)
def test_an_image_comes_out_the_same_alone_and_in_a_batch(
    corruption: Corruption, images: NDArray[np.uint8]
) -> None:
    positions = np.arange(100, 112)
    together = corrupt(corruption, images, positions)
    assert (together.dtype, together.shape) == (np.uint8, images.shape)
    np.testing.assert_array_equal(together[7:8], corrupt(corruption, images[7:8], positions[7:8]))
    np.testing.assert_array_equal(together, corrupt(corruption, images, positions))
    if corruption.name == "original":
        np.testing.assert_array_equal(together, images)
    else:
        assert np.abs(together.astype(int) - images).mean() > 1


@pytest.mark.parametrize(
    "corruption",
    [entry for entry in EVERY if entry.name in ("snow", "frost", "fog", "spatter", "elastic", "shot-noise")],
    ids=lambda corruption: corruption.name,
)
def test_images_at_other_positions_get_other_numbers(
    corruption: Corruption, images: NDArray[np.uint8]
) -> None:
    same = np.repeat(images[:1], 2, axis=0)
    first, second = corrupt(corruption, same, np.array([0, 1]))
    assert (first != second).any()


# --- noise -------------------------------------------------------------------------------------------------


def test_noise_has_its_size() -> None:
    grey = np.full((40, 32, 32, 3), 0.5, dtype=np.float32)
    gaussian = noise.gaussian_noise(grey, generators(40)) - grey
    assert gaussian.std() == pytest.approx(0.1, rel=0.02)
    assert gaussian.mean() == pytest.approx(0, abs=2e-3)
    speckle = noise.speckle_noise(grey, generators(40)) - grey
    assert speckle.std() == pytest.approx(0.2 * 0.5, rel=0.02)
    shot = noise.shot_noise(grey, generators(40))
    assert shot.mean() == pytest.approx(0.5, rel=0.01)
    assert shot.var() == pytest.approx(0.5 / 50, rel=0.03)
    np.testing.assert_allclose(shot * 50, np.rint(shot * 50), atol=1e-4)
    impulse = noise.impulse_noise(grey, generators(40))
    assert np.mean(impulse == 0) == pytest.approx(0.035, rel=0.05)
    assert np.mean(impulse == 1) == pytest.approx(0.035, rel=0.05)


# --- blur --------------------------------------------------------------------------------------------------


def test_gaussian_blur(floats: NDArray[np.float32]) -> None:
    want = [
        np.stack([ndimage.gaussian_filter(image[..., c], 1.0, mode="nearest") for c in range(3)], axis=2)
        for image in floats
    ]
    np.testing.assert_allclose(blur.gaussian_blur(floats, []), want, atol=1e-6)


def test_defocus_blur_is_the_mean_of_nine_pixels(floats: NDArray[np.float32]) -> None:
    assert blur.disk_kernel().sum() == pytest.approx(1)
    want = ndimage.uniform_filter(floats.astype(np.float64), (1, 3, 3, 1), mode="mirror")
    np.testing.assert_allclose(blur.defocus_blur(floats, []), want, atol=1e-6)


def test_glass_blur_is_the_released_loop(floats: NDArray[np.float32]) -> None:
    def released(image: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        pixels = np.uint8(blur.smooth(image[None], 0.4)[0] * 255)
        steps = generator.integers(-1, 1, (2, 30, 30, 2), np.int8)
        for moves in steps:
            for i, row in enumerate(range(31, 1, -1)):
                for j, column in enumerate(range(31, 1, -1)):
                    dx, dy = moves[i, j]
                    other = pixels[row + dy, column + dx]  # a view: the second assignment changes nothing
                    pixels[row, column], pixels[row + dy, column + dx] = other, pixels[row, column]
        return blur.smooth((pixels / np.float32(255))[None], 0.4)[0]

    want = [released(image, generator) for image, generator in zip(floats[:3], generators())]
    np.testing.assert_allclose(blur.glass_blur(floats[:3], generators(3)), want, atol=1e-6)


def test_a_trail_is_a_weighted_sum_along_its_angle(floats: NDArray[np.float32]) -> None:
    angles = np.array([-90.0, -20.0, 0.0, 45.0], dtype=np.float32)
    weights = [math.exp(-(i**2) / (2 * 2.5**2)) for i in range(19)]
    want = np.zeros((4, 32, 32, 3))
    for number, angle in enumerate(np.deg2rad(angles.astype(np.float64))):
        for i, weight in enumerate(weights):
            down, across = (math.ceil(i * turn(angle) - 0.5) for turn in (math.sin, math.cos))
            for row in range(32):
                for column in range(32):
                    source = min(max(row + down, 0), 31), min(max(column + across, 0), 31)
                    want[number, row, column] += weight / sum(weights) * floats[number][source]
    np.testing.assert_allclose(blur.trail(floats[:4], angles, 9, 2.5), want, atol=1e-5)


def test_zoom_blur_is_the_mean_of_enlargements(floats: NDArray[np.float32]) -> None:
    def enlarged(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
        kept = math.ceil(32 / factor)
        first = (32 - kept) // 2
        middle = image[first : first + kept, first : first + kept]
        scaled = ndimage.zoom(middle, (factor, factor, 1), order=1)
        first = (len(scaled) - 32) // 2
        return scaled[first : first + 32, first : first + 32]

    want = [
        (image + sum(enlarged(image, factor) for factor in np.arange(1, 1.26, 0.01))) / 27
        for image in floats[:3]
    ]
    np.testing.assert_allclose(blur.zoom_blur(floats[:3], []), want, atol=1e-5)


# --- colour, compression, shape ----------------------------------------------------------------------------


def by_hsv(change: Callable[[float, float, float], tuple[float, float, float]], image: Array) -> Array:
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3)]
    return np.array(pixels).reshape(image.shape)


def test_brightness_and_saturation_are_those_of_hsv(floats: NDArray[np.float32]) -> None:
    image = floats[0].copy()
    image[0, 0], image[0, 1], image[0, 2] = 0.0, 0.4, 1.0  # black, grey and white have no hue
    brighter = by_hsv(lambda h, s, v: (h, s, min(v + 0.3, 1)), image.astype(np.float64))
    np.testing.assert_allclose(digital.brightness(image[None], [])[0], brighter, atol=1e-5)
    stronger = by_hsv(lambda h, s, v: (h, min(2.5 * s + 0.2, 1), v), image.astype(np.float64))
    np.testing.assert_allclose(digital.saturate(image[None], [])[0], stronger, atol=1e-5)


def test_contrast(floats: NDArray[np.float32]) -> None:
    found = digital.contrast(floats, [])
    np.testing.assert_allclose(found.mean(axis=(1, 2)), floats.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(found.std(axis=(1, 2)), 0.15 * floats.std(axis=(1, 2)), atol=1e-5)


def test_jpeg_and_pixelate_are_pillows(images: NDArray[np.uint8]) -> None:
    stream = io.BytesIO()
    Image.fromarray(images[0]).save(stream, "JPEG", quality=40)
    by_name = {entry.name: entry for entry in TYPE_0}
    np.testing.assert_array_equal(
        corrupt(by_name["jpeg"], images[:1], np.zeros(1, np.int64))[0], np.asarray(Image.open(stream))
    )
    small = Image.fromarray(images[0]).resize((20, 20), Image.Resampling.BOX)
    want = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(corrupt(by_name["pixelate"], images[:1], np.zeros(1, np.int64))[0], want)


def test_elastic_is_an_affine_map_and_a_displacement(floats: NDArray[np.float32]) -> None:
    generator = np.random.default_rng(3)
    corners = -0.96 + 1.92 * generator.random((3, 2), np.float32)
    field = -1 + 2 * generator.random((2, 32, 32), np.float32)
    before = np.array([(26, 26), (26, 6), (6, 6)], dtype=np.float64)
    forth = np.linalg.solve(np.c_[before, np.ones(3)], before + corners)  # (column, row, 1) @ forth
    rows, columns = np.indices((32, 32))
    back = np.linalg.inv(np.c_[forth, [0, 0, 1]])
    sources = np.stack([columns, rows, np.ones((32, 32))], axis=2) @ back
    shift = [ndimage.gaussian_filter(part, 0.96, mode="reflect", truncate=3) * 3.2 for part in field]
    want = np.empty((32, 32, 3))
    for c in range(3):
        turned = ndimage.map_coordinates(
            floats[0, ..., c], [sources[..., 1], sources[..., 0]], order=1, mode="mirror"
        )
        want[..., c] = ndimage.map_coordinates(
            turned, [rows + shift[1], columns + shift[0]], order=1, mode="reflect"
        )
    found = digital.elastic(floats[:1], [np.random.default_rng(3)])[0]
    np.testing.assert_allclose(found, want, atol=1e-4)


# --- weather -----------------------------------------------------------------------------------------------


def test_plasma_is_diamond_square_on_a_torus() -> None:
    side, decay = 8, 1.75
    generator = np.random.default_rng(5)
    grid, step, wobble = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half, count = step // 2, side // step
        drawn = generator.uniform(-1, 1, (3, count, count)) * wobble**2

        def at(row: int, column: int, grid: Array = grid) -> float:
            return float(grid[row % side, column % side])

        for i in range(count):
            for j in range(count):
                r, c = i * step, j * step
                around = at(r, c) + at(r + step, c) + at(r, c + step) + at(r + step, c + step)
                grid[r + half, c + half] = around / 4 + drawn[0, i, j]
        old = grid.copy()
        for i in range(count):
            for j in range(count):
                r, c = i * step, j * step
                sides = (
                    old[(r - half) % side, c + half]
                    + old[r + half, c + half]
                    + old[r, c]
                    + at(r, c + step, old)
                )
                grid[r, c + half] = sides / 4 + drawn[1, i, j]
                sides = (
                    old[r + half, (c - half) % side]
                    + old[r + half, c + half]
                    + old[r, c]
                    + at(r + step, c, old)
                )
                grid[r + half, c] = sides / 4 + drawn[2, i, j]
        step, wobble = half, wobble / decay
    grid = (grid - grid.min()) / (grid.max() - grid.min())
    np.testing.assert_allclose(weather.plasma([np.random.default_rng(5)], side, decay)[0], grid, atol=1e-6)


def test_fog_hides_and_keeps_the_range(floats: NDArray[np.float32]) -> None:
    found = weather.fog(floats, generators())
    assert found.min() >= 0
    assert (found.max(axis=(1, 2, 3)) <= floats.max(axis=(1, 2, 3)) + 1e-6).all()
    black = weather.fog(np.zeros((1, 32, 32, 3), np.float32) + np.float32(1e-3), generators(1))
    assert black.max() < 0.01  # fog is as bright as the image's brightest pixel


def test_frost_mixes_image_and_pane(floats: NDArray[np.float32]) -> None:
    panes = [weather.frosted_pane(number) for number in range(5)]
    assert all(pane.shape == (160, 160, 3) and pane.min() >= 0 and pane.max() <= 1 for pane in panes)
    assert all(0.3 < pane.mean() < 0.7 and pane.std() > 0.1 for pane in panes)
    generator = np.random.default_rng(0)
    pane, row, column = (int(generator.integers(bound)) for bound in (5, 128, 128))
    want = 0.75 * floats[0] + 0.45 * panes[pane][row : row + 32, column : column + 32]
    np.testing.assert_allclose(weather.frost(floats[:1], generators(1))[0], want, atol=1e-6)


def test_snow_whitens_and_falls_in_streaks(floats: NDArray[np.float32]) -> None:
    found = weather.snow(floats, generators())
    assert (found >= 0.8 * floats - 1e-5).all()
    grey = np.full((1, 32, 32, 3), 0.25, dtype=np.float32)
    flakes = weather.snow(grey, generators(1))[0, ..., 0] - (0.8 * 0.25 + 0.2 * (0.25 * 1.5 + 0.5))
    assert flakes.min() >= -1e-6
    np.testing.assert_allclose(flakes, flakes[::-1, ::-1], atol=1e-6)  # laid over once more, turned
    down, across = (np.abs(np.diff(flakes, axis=axis)).mean() for axis in (0, 1))
    assert down < across  # within 45 degrees of the vertical


def test_spatter_leaves_mud_and_touches_nothing_else(floats: NDArray[np.float32]) -> None:
    found = weather.spatter(floats, generators())
    covered = np.abs(found - floats).max(axis=3) > 1e-6
    assert 0.005 < covered.mean() < 0.3
    mud = np.array([63, 42, 20]) / 255
    reach = np.abs(floats - mud).max(axis=3)[covered]
    assert (np.abs(found - mud).max(axis=3)[covered] <= 0.2 * reach + 1e-6).all()
