"""Checks of arguments, shared by the operations. Every message begins with the name of the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from prunebench_kernels.errors import ArgumentError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensor(name: str, value: object) -> Tensor:
    """`value` as a tensor. Raises ArgumentError otherwise."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name}: want a torch tensor, got {type(value).__name__}")
    return value


def check_floating(name: str, value: Tensor) -> None:
    """Raise ArgumentError unless the dtype is a float of 16 to 64 bits."""
    if value.dtype not in FLOATS:
        raise ArgumentError(f"{name}: want a floating dtype, got {value.dtype}")


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ArgumentError unless both tensors are on one device."""
    if value.device != other.device:
        raise ArgumentError(f"{name}: is on {value.device}, {other_name} on {other.device}")


def check_finite(name: str, value: Tensor) -> None:
    """Raise ArgumentError if a value is infinite or nan. Synchronises a GPU."""
    if not torch.isfinite(value).all():
        raise ArgumentError(f"{name}: contains values that are not finite")
