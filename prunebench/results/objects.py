"""Objects by their SHA-256: the user's cache of logits and weights, where `artifacts pull` puts them.

<cache>/artifacts/objects/ab/abcdef....safetensors   an object, whole and verified when it was put there
<cache>/artifacts/partial/abcdef....part             one that is on its way
<cache>/artifacts/weights/abcdef...                  of a run's logits: the SHA-256 of the weights that gave them
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from prunebench.errors import StoreError

DIGEST = re.compile(r"[0-9a-f]{64}")


def object_name(digest: str) -> str:
    """Where an object rests below an address or the cache. Raises StoreError for what is no SHA-256."""
    return f"objects/{_checked(digest)[:2]}/{digest}.safetensors"


def object_path(digest: str) -> Path:
    """Where the cache keeps an object, there or not."""
    return cache() / object_name(digest)


def partial_path(digest: str) -> Path:
    """Where the cache keeps what has arrived of an object."""
    return cache() / "partial" / f"{_checked(digest)}.part"


def weights_path(outputs_digest: str) -> Path:
    """The file that names the weights behind these logits: for records older than schema 4, which do not."""
    return cache() / "weights" / _checked(outputs_digest)


def cached(digest: str | None) -> Path | None:
    """The cached object of this hash, if it is there."""
    if digest is None or not DIGEST.fullmatch(digest):
        return None
    path = object_path(digest)
    return path if path.is_file() else None


def weights_of(outputs_digest: str | None) -> str | None:
    """The SHA-256 of the weights behind these logits, if a pull has told."""
    if outputs_digest is None or not DIGEST.fullmatch(outputs_digest):
        return None
    try:
        found = weights_path(outputs_digest).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return found if DIGEST.fullmatch(found) else None


def check_object(path: Path) -> None:
    """Raise StoreError if a cached object is no longer what its name says."""
    if sha256_of(path) != path.stem:
        raise StoreError(f"{path}: damaged; remove it and pull again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache() -> Path:
    """`artifacts` in PRUNEBENCH_CACHE, or in `prunebench` of the platform's cache folder."""
    from prunebench_kernels.measured import cache_folder

    return cache_folder() / "artifacts"


def _checked(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise StoreError(f"{digest!a:.80} is no SHA-256")
    return digest
