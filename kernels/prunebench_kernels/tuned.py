"""Choices measured on one GPU: which implementation of an operation, with which configuration, for which call.

One JSON file a GPU, `tuned/<gpu>.json`, written by the benchmark, read at the first question and kept:

    {"format": 1, "gpu": "nvidia-h200", "operations": {"masked_conv2d.forward": {"<key>": {...}}}}

The key is the operation's own text for a call (shape, dtype, layout); so is the content of an entry. Without a file
there are no entries, and an operation falls back on its plain rule.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).with_name("tuned")
FORMAT = 1

Entries = Mapping[str, Mapping[str, Mapping[str, Any]]]


class TunedTableError(ValueError):
    """A table of tuned choices is not what `write` makes. The message names the file and what is wrong."""


@functools.cache
def _slug(index: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(index).lower()).strip("-")


def device_slug() -> str | None:
    """The current GPU's name in small letters and dashes, e.g. `nvidia-h200`; None without CUDA."""
    return _slug(torch.cuda.current_device()) if torch.cuda.is_available() else None


def table_path(slug: str) -> Path:
    """Where the table of the GPU `slug` lies."""
    return FOLDER / f"{slug}.json"


def lookup(operation: str, key: str, *, slug: str | None = None) -> dict[str, Any] | None:
    """The entry measured for this call on the GPU `slug` (the current one), or None.

    Raises TunedTableError if the file is malformed.
    """
    slug = slug or device_slug()
    if slug is None:
        return None
    return _table(table_path(slug)).get(operation, {}).get(key)


def write(entries: Entries, *, slug: str | None = None) -> Path:
    """Merge `entries` (operation -> key -> entry) into the table of the GPU `slug` (the current one).

    The file is replaced whole: a reader never sees half of it. Raises TunedTableError without a GPU.
    """
    slug = slug or device_slug()
    if slug is None:
        raise TunedTableError("tuned table: no CUDA device, and no slug to name the table by")
    path = table_path(slug)
    operations: dict[str, dict[str, Any]] = {name: dict(made) for name, made in _table(path).items()}
    for operation, made in entries.items():
        operations.setdefault(operation, {}).update({key: dict(entry) for key, entry in made.items()})
    content = {"format": FORMAT, "gpu": slug, "operations": operations}
    _operations(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}.part")
    half.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    half.replace(path)
    _table.cache_clear()
    return path


@functools.cache
def _table(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise TunedTableError(f"{path}: not JSON ({error})") from error
    return _operations(path, content)


def _operations(path: Path, content: Any) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise TunedTableError(f"{path}: want an object of format {FORMAT}, got {found!r}")
    if content.get("gpu") != path.stem:
        raise TunedTableError(
            f"{path}: gpu: want the file's own name, {path.stem!r}, got {content.get('gpu')!r}"
        )
    operations = content.get("operations")
    if not isinstance(operations, dict):
        raise TunedTableError(f"{path}: operations: want an object, got {type(operations).__name__}")
    for operation, entries in operations.items():
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise TunedTableError(f"{path}: operations.{operation}: want an object of objects")
    return operations
