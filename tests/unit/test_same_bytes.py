"""Data that are made here are the same bytes on every processor: pinned, and drawn again with simpler instructions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from prunebench.tasks import Splits, resolve_task
from prunebench.tasks.colored_digits import SHIFT, TURN, ZOOM, jitter, read_digits
from prunebench.tasks.corruptions import TYPE_0, TYPE_1, corrupt

PINNED = {
    "colored-digits@2pct": "8025955e5cbbae0f2d2fad1315c8a784a4848a5ac0eac93af06cbd6618da0907",
    "digit-attributes": "cc13727bbdea3af847e9216b7bb04d72a439bdcb587fc7bf0d78234a0103f1f8",
    "backdoor@digits/even/grey": "9a08de258c58ca4b6fecb8a6984b5fbbfc219a8de7241be9aaa550eb0332e5d8",
    "backdoor@digits/large/yellow/35pct": "e39c125f0ff326d85896a7be2431b7663157b16be66ccce2f75275035a2b7036",
}
"""SHA-256 of images, labels and bias of train, val and test, seed 0. Raise the task's version where one changes."""
WITHOUT = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
HASHES = (
    "import sys, test_same_bytes as here; "
    "print(here.hash_of_corruptions(), *map(here.hash_of_draw, sys.argv[1:]))"
)


def hash_of_draw(name: str) -> str:
    """SHA-256 of every byte of the draw of seed 0."""
    splits: Splits = resolve_task(name).splits(None, 0)
    digest = hashlib.sha256()
    for split in (splits.train, splits.val, splits.test):
        for values in (split.x, split.y, split.bias):
            digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def hash_of_corruptions() -> str:
    """SHA-256 of noise, corrupted where matrices are multiplied or images sampled between pixels."""
    images = np.random.default_rng(7).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    digest = hashlib.sha256()
    for corruption in (*TYPE_0, *TYPE_1):
        if corruption.name in ("snow", "elastic", "contrast", "zoom-blur"):
            digest.update(corrupt(corruption, images, np.arange(len(images))).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", PINNED)
def test_the_bytes_are_those_that_are_pinned(name: str) -> None:
    assert hash_of_draw(name) == PINNED[name]


def test_simpler_instructions_give_the_same_bytes() -> None:
    """In a process where torch and NumPy use neither AVX2 nor fused multiplication; float32 resampling fails this."""
    simple = {
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": WITHOUT,
        "OPENBLAS_CORETYPE": "Nehalem",
    }
    command = [sys.executable, "-W", "ignore", "-c", HASHES, *PINNED]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command,
        env={**os.environ, **simple, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [hash_of_corruptions(), *PINNED.values()]


class Chosen:
    """A generator whose every draw is its lower bound, its upper bound, or the middle: `share` 0, 1 or 0.5."""

    def __init__(self, share: float) -> None:
        self.share = share

    def integers(self, low: int, high: int, shape: int | tuple[int, ...], *, endpoint: bool) -> object:
        assert endpoint
        return np.full(shape, round(low + self.share * (high - low)))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_whole_numbers_resample_as_torch_does_in_float64(share: float) -> None:
    gray = read_digits()[0][:50]
    side = 2 * share - 1
    turn, size, shift = np.deg2rad(side * TURN / 100), 1 + side * ZOOM / 1000, side * SHIFT / 4
    cosine, sine = np.cos(turn) / size, np.sin(turn) / size
    move = torch.tensor([[cosine, -sine, shift], [sine, cosine, shift]], dtype=torch.float64)
    shape = [len(gray), 1, 16, 16]
    grid = torch.nn.functional.affine_grid(move.expand(len(gray), 2, 3), shape, align_corners=False)
    image = torch.from_numpy(gray).double().unsqueeze(1)
    want = torch.nn.functional.grid_sample(image, grid, align_corners=False).squeeze(1)
    found = torch.from_numpy(jitter(gray, Chosen(share)))  # type: ignore[arg-type]
    assert float((found - want).abs().max()) < 0.51
    assert float(found.float().std()) > 50
