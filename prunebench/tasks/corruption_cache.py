"""Images that take seconds to make, kept on disk: one file a batch, made once for all shares of bias and all seeds.

    <folder>/corrupted/<name>.safetensors      uint8 `[N, H, W, 3]`, with their SHA-256

A file is written in one piece: a process that is killed loses at most the one that it was making. The folder is that of
PRUNEBENCH_CACHE, or `prunebench` in the platform's cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from prunebench_kernels.measured import cache_folder

from prunebench.errors import DataError, StoreError
from prunebench.store import read_tensors, replace_file

Bytes = NDArray[np.uint8]


def keep_images(name: str, count: int, make: Callable[[], Bytes], *, wait: bool = True) -> Bytes | None:
    """The `count` images of that name, made if there is no such file or it is not whole.

    One process makes a file; others wait for it or, without `wait`, get None. Raises DataError where nothing can be
    written.
    """
    from filelock import FileLock, Timeout

    path = cache_folder() / "corrupted" / f"{name}.safetensors"
    found = _load(path, count)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=-1 if wait else 0)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        found = _load(path, count)
        return _make(path, make) if found is None else found
    finally:
        lock.release()


def _make(path: Path, make: Callable[[], Bytes]) -> Bytes:
    from safetensors.torch import save

    images = np.ascontiguousarray(make())
    digest = np.frombuffer(hashlib.sha256(images.data).digest(), dtype=np.uint8)
    try:
        replace_file(
            path, save({"images": torch.from_numpy(images), "sha256": torch.from_numpy(digest.copy())})
        )
    except OSError as error:
        raise _unwritable(path, error) from error
    return images


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot keep images in {path.parent} ({error.strerror or error}): set PRUNEBENCH_CACHE to a folder that can "
        "be written to and has 500 MB free, then run the same command again"
    )


def _load(path: Path, count: int) -> Bytes | None:
    """The images of a file; None where there is none, or it is not what was written."""
    try:
        tensors = read_tensors(path)
        images, digest = tensors["images"].numpy(), tensors["sha256"].numpy()
    except (StoreError, KeyError):
        return None
    whole = len(images) == count and hashlib.sha256(images.data).digest() == digest.tobytes()
    return images if whole else None
