"""Batched operations of PruneBench: Triton kernels with torch paths. This package knows nothing of `prunebench`.

Every operation has one oracle in `reference`, in plain torch; `explain` says which implementation a call runs.
"""

from prunebench_kernels.backend import Choice, explain
from prunebench_kernels.dependence import cooccurrence, correlation, interdependence
from prunebench_kernels.errors import ArgumentError, LayoutError
from prunebench_kernels.mask_sampling import sample_masks
from prunebench_kernels.masked_conv import MaskedConv2d, masked_conv2d
from prunebench_kernels.sample_uncertainty import uncertainty
from prunebench_kernels.uncertainty_values import Uncertainty

__all__ = [
    "ArgumentError",
    "Choice",
    "LayoutError",
    "MaskedConv2d",
    "Uncertainty",
    "cooccurrence",
    "correlation",
    "explain",
    "interdependence",
    "masked_conv2d",
    "sample_masks",
    "uncertainty",
]
