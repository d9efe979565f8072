"""`colored-mnist`: MNIST under the colour protocol of LfF (ten mean colours, severity 4).

55,000 training and 5,000 validation images with the training bias (the sizes of the DisEnt release), and the
10,000 test images with every colour equally likely, the same for every seed. The test images are shuffled before they
are coloured: their file is in the order of its writers, and colours are given out in order.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prunebench.errors import DataError
from prunebench.results.spec import Recipe
from prunebench.tasks.balanced import equally_many
from prunebench.tasks.base import Split, Splits, Task
from prunebench.tasks.coloring import assign_bias, colour

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LARGEST = 1 << 26
"""Bytes that a file of MNIST may unpack to: its largest has 47 MB."""
VAL_IMAGES = 5000
TEST_SEED = 16_807


def find_raw(data_root: Path | None) -> Path:
    """The folder with the four idx files, plain or gzipped. Raises DataError naming what is missing."""
    if data_root is None:
        raise DataError(
            "the files of MNIST are needed: pass --data-root DIR (or set PRUNEBENCH_DATA). "
            "To download them: uv run python -c \"from torchvision.datasets import MNIST; MNIST('data', "
            'download=True)", then --data-root data'
        )
    for folder in (data_root / "MNIST" / "raw", data_root / "raw", data_root):
        if any((folder / (name + ending)).is_file() for name in FILES for ending in ("", ".gz")):
            break
    else:
        raise DataError(
            f"no MNIST under {data_root}: expected {data_root / 'MNIST' / 'raw' / FILES[0]}[.gz]. To download: "
            f"uv run python -c \"from torchvision.datasets import MNIST; MNIST('{data_root}', download=True)\""
        )
    missing = [n for n in FILES if not (folder / n).is_file() and not (folder / f"{n}.gz").is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} (plain or .gz); delete the folder and fetch MNIST again"
        )
    return folder


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes (LeCun's format), gzipped or not. Raises DataError when damaged."""
    packed = path.with_name(path.name + ".gz")
    source = path if path.is_file() else packed
    try:
        data = source.read_bytes()
        if source.suffix == ".gz":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ValueError(f"unpacks to more than {LARGEST >> 20} MiB, which no file of MNIST does")
        zero, kind, dimensions = struct.unpack(">HBB", data[:4])
        if zero != 0 or kind != 8:
            raise ValueError("not an idx file of unsigned bytes")
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
        body = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions)
        if body.size != int(np.prod(shape)):
            raise ValueError(f"truncated: {body.size} of {int(np.prod(shape))} bytes")
        return body.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{source}: {error}; delete it and fetch MNIST again") from error


def read_mnist(data_root: Path | None) -> list[NDArray[np.uint8]]:
    """Train images and labels, test images and labels. Raises DataError where counts disagree."""
    folder = find_raw(data_root)
    arrays = [read_idx(folder / name) for name in FILES]
    for images, labels, name in ((arrays[0], arrays[1], FILES[0]), (arrays[2], arrays[3], FILES[2])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(f"{folder / name}: {images.shape} images for {labels.shape} labels")
    return arrays


def fingerprint_mnist(data_root: Path | None) -> str:
    """Sixteen hex digits: SHA-256 of the images and labels."""
    digest = hashlib.sha256()
    for array in read_mnist(data_root):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


class ColoredMnist(Task):
    version = 3
    title = "Colored MNIST"
    source = "MNIST (LeCun et al., 1998), coloured as in LfF (Nam et al., 2020)"
    bias_name = "colour"
    num_classes = 10
    num_biases = 10
    unbiased_share = 0.9
    fresh_draw = "colours and shades of the same images"
    model = "convnet"
    recipe = Recipe(
        steps=3000, finetune_steps=750, batch_size=128, lr=2e-3, finetune_lr=2e-3, schedule="cosine"
    )

    def __init__(self, conflicting_share: float) -> None:
        self.conflicting_share: float = conflicting_share
        self.name = f"colored-mnist@{conflicting_share * 100:g}pct"

    def fingerprint(self, data_root: Path | None) -> str:
        return fingerprint_mnist(data_root)

    def draw(self, data_root: Path | None, seed: int) -> Splits:
        images, labels, test_images, test_labels = read_mnist(data_root)
        generator = np.random.default_rng([seed, 48_271])
        order = generator.permutation(len(labels))
        test = self.test_generator(TEST_SEED, 1).permutation(len(test_labels))

        def paint(
            x: NDArray[np.uint8],
            y: NDArray[np.uint8],
            image: NDArray[np.int64],
            conflicting_share: float,
            generator: np.random.Generator = generator,
        ) -> Split:
            label = y.astype(np.int64)
            bias = assign_bias(label, conflicting_share)
            pixels, *known = map(torch.from_numpy, (colour(x, bias, generator), label, bias, image))
            return Split(pixels, known[0], known[1], image=known[2])

        train, val = order[VAL_IMAGES:], order[:VAL_IMAGES]
        val_images, val_labels, share = images[val], labels[val], self.conflicting_share

        def balanced() -> Split:
            own = np.random.default_rng([seed, 48_271, 1])
            rows = equally_many(val_labels.astype(np.int64), own, multiple_of=self.num_biases)
            return paint(val_images[rows], val_labels[rows], val[rows], 0.9, own)

        return Splits(
            train=paint(images[train], labels[train], train, share),
            val=paint(val_images, val_labels, val, share),
            test=paint(test_images[test], test_labels[test], test, 0.9, self.test_generator(TEST_SEED)),
            val_balanced=balanced,
        )
