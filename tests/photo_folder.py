"""A small folder of photographs with a table of attributes, as WILDS keeps Waterbirds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIDE = 40, 12
HEADER = "img_id,img_filename,y,split,place"


def draw(path: Path, number: int, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """An image that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def rows(count: int = COUNT) -> list[str]:
    """24 images to train, of which every sixth breaks the bias; 8 to validate; 8 to test, two a group."""
    listed = []
    for number in range(count):
        y, split = number % 2, 0 if number < 24 else 1 if number < 32 else 2
        place = 1 - y if number % 6 == 0 or (split == 2 and number % 4 > 1) else y
        listed.append(f"{number},birds/{number}.png,{y},{split},{place}")
    return listed


def write_photos(folder: Path, table: Sequence[str] | None = None, header: str = HEADER) -> Path:
    """The folder with its `metadata.csv`."""
    for number in range(COUNT):
        draw(folder / "birds" / f"{number}.png", number)
    (folder / "metadata.csv").write_text("\n".join([header, *(rows() if table is None else table), ""]))
    return folder
