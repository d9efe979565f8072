"""A small folder in CelebA's official format, with faces of two hair colours and two genders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from prunebench.tasks.celeba import ATTRIBUTES

COUNTS = (88, 16, 16)
SIZE = (178, 218)


def labels_of(count: int = sum(COUNTS)) -> np.ndarray:
    """y uint8 `[N, 40]`: all four groups of Blond_Hair x Male in every stretch of eight, the rest at random."""
    y = np.random.default_rng(3).integers(0, 2, (count, 40)).astype(np.uint8)
    y[:, ATTRIBUTES.index("Blond_Hair")] = np.tile([0, 0, 0, 1, 1, 0, 1, 0], -(-count // 8))[:count]
    y[:, ATTRIBUTES.index("Male")] = np.tile([0, 1, 1, 0, 0, 0, 1, 1], -(-count // 8))[:count]
    return y


def draw_face(y: np.ndarray, position: int) -> Image.Image:
    """Hair on top (yellow or brown), a background by gender, a face that tells images apart."""
    width, height = SIZE
    pixels = np.random.default_rng(position).integers(0, 40, (height, width, 3)).astype(np.int16)
    pixels += np.array([40, 60, 160] if y[ATTRIBUTES.index("Male")] else [160, 60, 90])
    pixels[50:170, 45:130] = [200, 160, 130 + position % 60]
    pixels[20:60, 40:140] = [210, 190, 60] if y[ATTRIBUTES.index("Blond_Hair")] else [60, 40, 30]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, y: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for position, row in enumerate(y):
        draw_face(row, position).save(folder / f"{position + 1:06d}.jpg", quality=90)


def write_txt(folder: Path, y: np.ndarray, partition: list[int]) -> None:
    """`list_attr_celeba.txt` and `list_eval_partition.txt`, spaced as the official ones are."""
    rows = [f"{i:06d}.jpg {' '.join(f'{2 * int(v) - 1:2d}' for v in row)}\n" for i, row in enumerate(y, 1)]
    (folder / "list_attr_celeba.txt").write_text(f"{len(y)}\n{' '.join(ATTRIBUTES)} \n{''.join(rows)}")
    lines = [f"{i:06d}.jpg {split}\n" for i, split in enumerate(partition, 1)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))


def write_csv(folder: Path, y: np.ndarray, partition: list[int]) -> None:
    """The `.csv` files that Kaggle offers."""
    rows = [f"{i:06d}.jpg,{','.join(str(2 * int(v) - 1) for v in row)}\n" for i, row in enumerate(y, 1)]
    (folder / "list_attr_celeba.csv").write_text(f"image_id,{','.join(ATTRIBUTES)}\n{''.join(rows)}")
    lines = [f"{i:06d}.jpg,{split}\n" for i, split in enumerate(partition, 1)]
    (folder / "list_eval_partition.csv").write_text("image_id,partition\n" + "".join(lines))


def partition_of() -> list[int]:
    return [split for split, count in enumerate(COUNTS) for _ in range(count)]


def write_celeba(root: Path) -> Path:
    """The folder that `--data-root` names."""
    y = labels_of()
    write_images(root / "img_align_celeba", y)
    write_txt(root, y, partition_of())
    return root
