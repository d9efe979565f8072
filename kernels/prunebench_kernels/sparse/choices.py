"""Choices by measurement, kept on disk: one JSON file per device in the user's cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunebench_kernels import tuned
from prunebench_kernels.sparse.measured import Decision

VARIABLE = "PRUNEBENCH_CACHE"
FORMAT = 1
MAX_ENTRIES = 2000
"""The oldest choices are forgotten beyond this; an entry takes about half a kilobyte."""


class CacheWarning(UserWarning):
    """The file of choices could not be read or written; choices are measured anew."""


class Choices:
    """Decisions by key, in memory, and in `path` unless it is None.

    Safe for concurrent writers: a file is replaced as a whole, after merging what others wrote; at worst a choice
    is lost and measured again. A damaged file is ignored with a CacheWarning and rewritten.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, Decision] = {}
        self._stamp: tuple[int, int] | None = None

    @staticmethod
    def in_memory() -> Choices:
        return Choices(None)

    def get(self, key: str) -> Decision | None:
        """The decision remembered for the key, `cached`, or None."""
        if key not in self._known and self.path is not None and self._stamp_of_file() != self._stamp:
            self._known = {**self._read(), **self._known}
        return self._known.get(key)

    def put(self, key: str, decision: Decision) -> None:
        """Remember a decision, here and on disk."""
        entry = Decision.from_json(decision.to_json())
        self._known.pop(key, None)
        self._known[key] = entry
        if self.path is None:
            return
        # What this process knows is written anew: another writer may have replaced the file without it.
        merged = {**self._read(), **self._known}
        merged[key] = merged.pop(key)
        self._known = merged
        newest = list(merged.items())[-MAX_ENTRIES:]
        content = {"format": FORMAT, "choices": {name: value.to_json() for name, value in newest}}
        try:
            _replace(self.path, json.dumps(content, indent=0))
            self._stamp = self._stamp_of_file()
        except OSError as error:
            self._warn(f"cannot write {self.path}: {error}")

    def _read(self) -> dict[str, Decision]:
        assert self.path is not None
        self._stamp = self._stamp_of_file()
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                return {}
            return {key: Decision.from_json(value) for key, value in content["choices"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._warn(f"{self.path} is damaged ({type(error).__name__}: {error}); it will be rewritten")
            return {}

    def _stamp_of_file(self) -> tuple[int, int] | None:
        assert self.path is not None
        with contextlib.suppress(OSError):
            facts = self.path.stat()
            return facts.st_mtime_ns, facts.st_ino
        return None

    def _warn(self, message: str) -> None:
        warnings.warn(message, CacheWarning, stacklevel=4)


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole: readers see the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """PRUNEBENCH_CACHE, or `prunebench` in the platform's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "prunebench"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunebench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "prunebench" / "cache"
    return Path.home() / ".cache" / "prunebench"


@functools.cache
def _choices_in(path: Path) -> Choices:
    return Choices(path)


def choices_of(device: torch.device) -> Choices:
    """The choices of this device on disk."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", device_name(device)).strip("-").lower()
    return _choices_in(cache_folder() / f"choices-{slug}.json")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with torch's number of threads: timings hold for these."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown processor"


@functools.cache
def versions() -> dict[str, str]:
    """What a timing depends on besides the device: torch, Triton, CUDA, and this package down to its source."""
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "source": _source_hash()}
    for package in ("triton", "prunebench"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def precision() -> tuple[str, str, bool]:
    """What torch is allowed in float32 products and convolutions, and whether it searches for algorithms."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]


def _source_hash() -> str:
    """Of the layouts' source, and of the tables of measured tile sizes."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *sorted(tuned.FOLDER.glob("*.json"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def fingerprint(weight: Tensor) -> str:
    """16 hex digits of which weights are not zero, and of the shape."""
    bits = (weight.detach() != 0).to("cpu", torch.uint8).contiguous().numpy()
    digest = hashlib.sha256(repr(tuple(weight.shape)).encode())
    digest.update(np.packbits(bits).tobytes())
    return digest.hexdigest()[:16]
