"""Oddities of a folder of images that hinder no run and should be noticed: sentences for the user."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

OTHER_IMAGES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".ppm", ".npy")
"""Images that are not read, and whose absence should be noticed."""
MACOS = "__MACOSX"
"""Beside the real files in an archive packed on macOS."""


def left_out(folders: Sequence[Path], used: Collection[Path], suffixes: Sequence[str]) -> list[str]:
    """On images that are not read: of other formats, and in deeper folders; hidden ones are meant to be."""
    other, deeper = [], []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder.parent).as_posix()
            if "/." in name or MACOS in name or not path.is_file():
                continue
            if path.suffix.lower() in OTHER_IMAGES:
                other.append(name)
            elif path.suffix.lower() in suffixes and path not in used:
                deeper.append(name)
    remarks = []
    if other:
        remarks.append(
            f"images of other formats are left out: {len(other)}, as {other[0]}; convert them to {suffixes[0]}"
        )
    if deeper:
        remarks.append(f"images deeper than a class folder are left out: {len(deeper)}, as {deeper[0]}")
    return remarks


def misplaced(files: Mapping[str, Path], labels: Mapping[str, int]) -> list[str]:
    """On images whose class folder says another label than their name."""
    wrong = [
        name
        for name, path in files.items()
        if name.count("/") > 1 and path.parent.name.isdecimal() and int(path.parent.name) != labels[name]
    ]
    if not wrong:
        return []
    return [f"images in the folder of another class: {len(wrong)}, as {wrong[0]}; their names count"]


def copies(splits: Mapping[str, Mapping[str, Path]]) -> list[str]:
    """On training images that another split holds too, byte for byte. Only files of equal size are read."""
    by_size = {
        split: _by_size([path for path in files.values() if path.is_file()])
        for split, files in splits.items()
    }
    remarks = []
    for split, sizes in by_size.items():
        if split == "train":
            continue
        found = []
        for size in sorted(sizes.keys() & by_size["train"].keys()):
            seen = {_digest(path): path for path in by_size["train"][size]}
            found += [(path, seen[digest]) for path in sizes[size] if (digest := _digest(path)) in seen]
        if found:
            first, second = (path.name for path in found[0])
            remarks.append(
                f"{split} images that are training images too: {len(found)}, as {first} is {second}"
            )
    return remarks


def _by_size(paths: Sequence[Path]) -> dict[int, list[Path]]:
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        sizes.setdefault(path.stat().st_size, []).append(path)
    return sizes


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
