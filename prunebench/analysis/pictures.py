"""The still figures of an analysis, each as PNG, and the image of its most susceptible samples."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunebench.analysis import curve_pictures, map_pictures, stills
from prunebench.analysis.curve_pictures import Styles
from prunebench.analysis.looks import methods_of
from prunebench.analysis.panels import FAINT, INK, as_png, short
from prunebench.analysis.values import TaskAnalysis, to_json
from prunebench.errors import UsageError
from prunebench.results.store import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MOST_SAMPLES, SAMPLE_COLUMNS = 32, 8
TILE_INCHES, CAPTION_INCHES = 1.08, 0.40
CAPTION_LETTERS = 19
INPUTS = "Inputs"


def draw_pictures(analysis: TaskAnalysis, styles: Styles, inputs: str) -> dict[str, Callable[[], bytes]]:
    """By name, how to draw each still figure that the analysis has.

    inputs: `inputs_of` the same; the file then tells it (`shown_in`).
    """
    measures = {measure.key: measure for measure in analysis.measures}
    others: dict[str, Callable[[TaskAnalysis, Styles], bytes]] = {
        stills.SCATTER: map_pictures.draw_scatter,
        stills.HEAT: map_pictures.draw_heat,
        stills.EXEMPLARS: curve_pictures.draw_exemplars,
        stills.FORETELLING: curve_pictures.draw_foretelling,
        stills.SPLITS: curve_pictures.draw_splits,
    }

    def draw(still: stills.Still) -> bytes:
        if still.part == "sparsity":
            return _labelled(curve_pictures.draw_measure(analysis, styles, measures[still.name]), inputs)
        return _labelled(others[still.name](analysis, styles), inputs)

    return {still.name: functools.partial(draw, still) for still in stills.stills_of(analysis)}


def inputs_of(analysis: TaskAnalysis, styles: Styles) -> str:
    """Sixteen hex digits over all that its figures show: the analysis' numbers and its methods' looks."""
    looks = {method: repr(styles[method]) for method in methods_of(analysis)}
    shown = to_json(dataclasses.replace(analysis, code={}, claims=())) + json.dumps(looks)
    return hashlib.sha256(shown.encode()).hexdigest()[:16]


def shown_in(path: Path) -> str | None:
    """The `inputs_of` that a figure was drawn from; None where there is none or no figure."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
            return image.info.get(INPUTS)
    except (OSError, ValueError, SyntaxError):  # all that Pillow says of damaged files
        return None


def _labelled(png: bytes, inputs: str) -> bytes:
    """The same figure with its inputs as text, in a chunk behind the header."""
    chunk = b"tEXt" + f"{INPUTS}\0{inputs}".encode()
    header = 8 + 25
    length, check = (struct.pack(">I", number) for number in (len(chunk) - 4, zlib.crc32(chunk)))
    return png[:header] + length + chunk + check + png[header:]


def sample_grid(images: Tensor, captions: Sequence[str], path: Path) -> None:
    """Write images as a grid of enlarged tiles, each with its caption of two lines below; up to 32 are shown.

    images: uint8 `[n, C, H, W]` with one or three channels; captions: `n` texts, lines parted by a newline.
    Raises UsageError on images of other shapes or as many captions as there are not images.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(captions) != len(images) or not len(images):
        raise UsageError(
            f"sample grid: want images [n, 1 or 3, H, W] and n captions, n > 0; got {list(images.shape)} "
            f"and {len(captions)} captions"
        )
    shown = images[:MOST_SAMPLES].permute(0, 2, 3, 1).cpu().numpy()
    columns = min(SAMPLE_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    pitch = TILE_INCHES + CAPTION_INCHES
    width, height = columns * (TILE_INCHES + 0.12) + 0.12, rows * pitch + 0.1

    def draw(figure: Figure) -> None:
        for index, image in enumerate(shown):
            row, column = divmod(index, columns)
            left, top = 0.12 + column * (TILE_INCHES + 0.12), 0.1 + row * pitch
            place = (
                left / width,
                1 - (top + TILE_INCHES) / height,
                TILE_INCHES / width,
                TILE_INCHES / height,
            )
            _tile(figure, place, image)
            lines = [short(line, CAPTION_LETTERS) for line in captions[index].split("\n")[:2]]
            for line, (text, colour) in enumerate(zip(lines, (INK, FAINT))):
                below = 1 - (top + TILE_INCHES + 0.04 + 0.14 * line) / height
                figure.text(left / width, below, text, ha="left", va="top", fontsize=6.8, color=colour)

    write_atomically(path, as_png(draw, height, width, every_colour=True))


def _tile(figure: Figure, place: tuple[float, float, float, float], image: Any) -> None:
    """One image, its pixels as squares, in a thin frame."""
    axes = figure.add_axes(place)
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.5, color=FAINT)
