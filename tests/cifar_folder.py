"""A small CIFAR-10 in the official formats: what torchvision unpacks, the binary version, and mosaics."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
SIDE = 32

Bytes = NDArray[np.uint8]


def make_images(per_batch: int = 100, seed: int = 0) -> tuple[Bytes, Bytes]:
    """Six batches of images `[6 * n, 32, 32, 3]`, smooth and colourful, and labels `[6 * n]`, as many of each class."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6 * per_batch, 4, 4, 3))
    images = np.kron(coarse, np.ones((1, 8, 8, 1))) + generator.integers(
        -8, 9, (6 * per_batch, SIDE, SIDE, 3)
    )
    labels = np.concatenate([generator.permutation(np.arange(per_batch) % 10) for _ in range(6)])
    return np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def planes_of(images: Bytes) -> Bytes:
    """Rows of 1,024 red, 1,024 green and 1,024 blue bytes, `[N, 3072]`."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_python(root: Path, images: Bytes, labels: Bytes) -> Path:
    """The Python version, byte for byte as Python 2 pickled it."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, part, classes in zip(BATCHES, np.split(planes_of(images), 6), np.split(labels, 6)):
        (folder / name).write_bytes(pickled_batch(part, classes))
    return folder


def write_binary(root: Path, images: Bytes, labels: Bytes) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, part, classes in zip(BATCHES, np.split(planes_of(images), 6), np.split(labels, 6)):
        (folder / f"{name}.bin").write_bytes(np.concatenate([classes[:, None], part], axis=1).tobytes())
    return folder


def write_mosaics(root: Path, images: Bytes, labels: Bytes) -> Path:
    """Lossless mosaics of ten columns."""
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for name, part in zip((*(f"train_{number}" for number in range(5)), "test"), np.split(images, 6)):
        cells = part.reshape(-1, 10, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
        mosaic = cells.reshape(-1, 10 * SIDE, 3)
        Image.fromarray(mosaic).save(folder / f"{name}.webp", lossless=True)
    train = 5 * len(labels) // 6
    np.savez(folder / "labels.npz", y_train=labels[:train], y_test=labels[train:])
    return folder


def pickled_batch(planes: Bytes, labels: Bytes) -> bytes:
    """A dictionary with b"labels" (a list) and b"data" (an array), as Python 2's cPickle writes it (protocol 2)."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value)) + value
        )

    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    shape = b"".join(b"J" + struct.pack("<i", length) for length in planes.shape) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )  # fmt: skip
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    state = b"(K\x01" + shape + dtype + b"\x89" + text(planes.tobytes()) + b"tb"
    entries = text(b"labels") + b"](" + numbers + b"e" + text(b"data") + array + state
    return b"\x80\x02}(" + entries + b"u."
