"""Batched operations of PruneBench: Triton kernels with torch paths. This package knows nothing of `prunebench`.

Every operation has one oracle in `reference`, in plain torch; `explain` says which implementation a call runs.
"""

from prunebench_kernels.dependence import cooccurrence, correlation, interdependence
from prunebench_kernels.dispatch import ArgumentError, Choice, LayoutError, explain
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.masked_conv import BlockPattern, MaskedConv2d, masked_conv2d
from prunebench_kernels.masks import apply_masks
from prunebench_kernels.uncertainty import Uncertainty, uncertainty

__all__ = [
    "ArgumentError",
    "BlockPattern",
    "Choice",
    "LayoutError",
    "MaskedConv2d",
    "Uncertainty",
    "apply_masks",
    "cooccurrence",
    "correlation",
    "explain",
    "interdependence",
    "masked_conv2d",
    "sample_masks",
    "uncertainty",
]
