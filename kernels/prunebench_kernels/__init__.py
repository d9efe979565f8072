"""Batched operations of PruneBench: Triton kernels with torch paths. This package knows nothing of `prunebench`.

Every operation has one oracle in `reference`, in plain torch.
"""

from prunebench_kernels.backend import Choice, explain
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.reference import (
    Uncertainty,
    correlation,
    masked_conv2d,
    sample_masks,
    uncertainty,
)

__all__ = [
    "ArgumentError",
    "Choice",
    "LayoutError",
    "Uncertainty",
    "correlation",
    "explain",
    "masked_conv2d",
    "sample_masks",
    "uncertainty",
]
