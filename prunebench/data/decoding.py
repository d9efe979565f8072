"""Image files in a fixed order, and their pixels, decoded by threads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunebench.errors import DataError

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What a damaged image file raises."""

PIECE = 32
"""Images that a thread decodes at a time."""
SAMPLED = 64
"""Files whose content is part of the key."""
RECORD_BYTES = 64
"""Of an image: SHA-256 of its file, then of its pixels."""


@dataclass(frozen=True)
class Sources:
    """The image files of a data set, in the order of the cache. All have the size of the first."""

    folder: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, position: int) -> Path:
        return self.folder / self.names[position]

    def read(self, position: int) -> tuple[bytes, NDArray[np.uint8]]:
        """SHA-256 of an image file and its RGB pixels `[H, W, 3]`. Raises DataError where it is missing or damaged."""
        return read_image(self.path(position))

    def shape(self) -> tuple[int, ...]:
        """`[H, W, 3]` of the first image. Raises DataError where it is missing or damaged."""
        path = self.path(0)
        with _named(path), Image.open(io.BytesIO(read_bytes(path))) as image:
            return image.height, image.width, 3

    def key(self) -> str:
        """Twelve hex digits that tell these images from others. Raises DataError where a file is missing."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for position in spread(len(self), SAMPLED):
            data = read_bytes(self.path(position))
            digest.update(f"{len(data)}\n".encode() + data)
        return digest.hexdigest()[:12]


Piece = tuple[bytes, bytes]
"""Pixels and records of some images."""


def decode(sources: Sources, start: int, shape: tuple[int, ...]) -> Generator[Piece, None, None]:
    """The images from `start` on, decoded by threads, in order; a bounded number of pieces ahead."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    coming: deque[Future[Piece]] = deque()
    try:
        for first in range(start, len(sources), PIECE):
            positions = range(first, min(first + PIECE, len(sources)))
            coming.append(pool.submit(decode_piece, sources, positions, shape))
            if len(coming) > 3 * threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode_piece(sources: Sources, positions: range, shape: tuple[int, ...]) -> Piece:
    pixels, records = [], []
    for position in positions:
        file_hash, image = sources.read(position)
        if image.shape != shape:
            seen, want = (f"{width}x{height}" for height, width, _ in (image.shape, shape))
            raise DataError(
                f"{sources.path(position)} has {seen} pixels, {sources.path(0)} {want}: fetch it again"
            )
        data = image.tobytes()
        pixels.append(data)
        records.append(file_hash + hashlib.sha256(data).digest())
    return b"".join(pixels), b"".join(records)


def read_image(path: Path) -> tuple[bytes, NDArray[np.uint8]]:
    """SHA-256 of an image file and its RGB pixels `[H, W, 3]`. Raises DataError where it is missing or damaged."""
    data = read_bytes(path)
    with _named(path), Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return hashlib.sha256(data).digest(), pixels


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What Pillow says of a damaged image, as a DataError of its file."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"{path}: {error}; unpack or fetch this file again, then run the same command"
        ) from error


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; unpack or fetch this file again") from error


def spread(count: int, most: int) -> list[int]:
    """Up to `most` positions from the first to the last of `count`, evenly apart."""
    return sorted({round(step * (count - 1) / (most - 1)) for step in range(most)})
