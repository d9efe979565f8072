"""Choices measured on one GPU: which implementation of an operation, with which configuration, for which call.

One JSON file a GPU, `tuned/<gpu>.json`, made by `bench/gpu.py`, read at the first question and kept:

    {"format": 1, "gpu": "nvidia-h200", "operations": {"masked_conv2d.forward": {"<key>": {...}}}}

The key is the operation's own text for a call (shape, dtype, layout); so is the content of an entry. Without a file
there are no entries, and an operation falls back on its plain rule.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).with_name("tuned")
FORMAT = 1


class TunedTableError(ValueError):
    """A table of tuned choices, or an entry of it, is malformed. The message says what is wrong."""


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
