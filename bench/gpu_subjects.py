"""What the stages of `bench/gpu.py` measure: the operations by name, random inputs, and masks of each pattern."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from gpu_stages import Context
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK = 64
"""Output and input channels of a block, as the block layout skips them by default."""


def operation(name: str) -> Callable[..., Any]:
    """An operation of the package by name. Raises AttributeError where it is not there."""
    found: Callable[..., Any] = getattr(importlib.import_module("prunebench_kernels"), name)
    return found


def random(context: Context, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers on the device, the same in every session."""
    generator = torch.Generator(context.device).manual_seed(context.seed + sum(shape))
    values = torch.randn(*shape, device=context.device, generator=generator)
    return values.mul_(scale).to(dtype)


def random_mask(context: Context, shape: tuple[int, ...], pattern: str, sparsity: float) -> Tensor:
    """A bool mask `[K, C / groups, R, S]` with random survivors: exact counts for each pattern.

    `2:4` keeps two of every four neighbouring input channels; a weight whose channels are no multiple of four stays
    dense, and so does one of a single block, or a `filter` mask that would leave no filter.
    """
    rows, columns, *taps = shape
    if pattern == "unstructured":
        return _kept(context, shape, sparsity)
    if pattern == "filter":
        return _kept(context, (rows,), sparsity).view(-1, 1, 1, 1).expand(shape).contiguous()
    if pattern == "2:4":
        if columns % 4:
            return torch.ones(shape, dtype=torch.bool, device=context.device)
        order = random(context, rows, columns // 4, 4, *taps).argsort(2)
        return (order < 2).reshape(shape)
    if pattern != "block":
        raise ValueError(f"pattern: want unstructured, block, 2:4 or filter, got {pattern!r}")
    blocks = (-(-rows // BLOCK), -(-columns // BLOCK), *taps)
    kept = _kept(context, blocks, sparsity)
    whole = kept.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole[:rows, :columns].contiguous()


def _kept(context: Context, shape: tuple[int, ...], sparsity: float) -> Tensor:
    scores = random(context, *shape).flatten()
    keep = max(1, round(len(scores) * (1 - sparsity)))
    mask = torch.zeros(len(scores), dtype=torch.bool, device=context.device)
    mask[scores.topk(keep).indices] = True
    return mask.view(shape)


def poison_memory(context: Context) -> None:
    """Fill free memory of the GPU's allocator with nan, so that elements a kernel leaves unwritten show."""
    if not context.cuda:
        return
    sizes = [2**power for power in range(9, 30, 2)]
    held = [torch.full((size // 4,), torch.nan, device=context.device) for size in sizes for _ in range(4)]
    del held
