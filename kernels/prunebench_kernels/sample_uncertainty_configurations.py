"""Tiles of the uncertainty kernels: a rule by shape and dtype, and what is worth measuring.

The rule comes from bytes in flight and compile-time facts (registers, no spills); nothing in it was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunebench_kernels import tuned

OPERATION = "uncertainty"
WHOLE_ROW_UP_TO = 4096
"""Classes up to which a tile holds a row, its sums over models and the next model's row (8192 would spill)."""


@dataclass(frozen=True)
class Configuration:
    """A tile `[models, rows, columns]` of logits per step, and warps per program; whole rows, or columns in a loop."""

    models: int
    rows: int
    columns: int
    num_warps: int
    whole_rows: bool = True


def key(models: int, classes: int, dtype: torch.dtype) -> str:
    """How the tuned table names a call; the number of samples changes the grid, not the tile."""
    return f"{min(models, 16)} x {classes} {str(dtype).removeprefix('torch.')}"


def configuration(models: int, classes: int, dtype: torch.dtype) -> Configuration:
    """The tile for logits `[models, any, classes]`: the tuned table's, or the rule's."""
    entry: dict[str, Any] | None = tuned.lookup(OPERATION, key(models, classes, dtype))
    return Configuration(**entry) if entry else rule(models, classes)


def rule(models: int, classes: int) -> Configuration:
    """About 2048 logits a step, of up to 4 models; a row of more than 4096 in a loop over its columns.

    More than 4 models of up to 16 classes take half of that: Triton 3.6 spills 8 models of 16 rows.
    """
    columns = power_of_two(classes)
    if columns > WHOLE_ROW_UP_TO:
        return Configuration(1, 1, 2048, 8, whole_rows=False)
    if columns >= 2048:
        return Configuration(1, 1, columns, columns // 512)
    together = min(power_of_two(models), 8, max(1, 2048 // (16 * columns)))
    if together == 8:
        return Configuration(4, 1024 // (4 * columns), columns, 4)
    return Configuration(together, 2048 // (together * columns), columns, 4)


def candidates(models: int, classes: int) -> list[Configuration]:
    """Configurations to measure, the rule's own first."""
    base = rule(models, classes)
    made = [base]
    if base.whole_rows and base.columns < 2048:
        columns = base.columns
        for size in (1024, 2048, 4096):
            for together in (1, 4, 16):
                for warps in (1, 2, 4, 8):
                    rows = size // (together * columns)
                    fits = rows >= 1 and together <= power_of_two(models) and 4 <= size // (32 * warps) <= 32
                    made += [Configuration(together, rows, columns, warps)] * fits
    elif base.whole_rows:
        made += [Configuration(1, 1, base.columns, warps) for warps in (4, 8, 16)]
    else:
        made += [Configuration(1, 1, 4096, warps, whole_rows=False) for warps in (8, 16)]
    return list(dict.fromkeys(made))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`, at least 2."""
    return max(2, 1 << (number - 1).bit_length())
