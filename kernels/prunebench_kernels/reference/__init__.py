"""The oracles: each operation as its formula, in plain torch, on any device. Kernels are tested against them."""

from prunebench_kernels.reference.conv import masked_conv2d
from prunebench_kernels.reference.dependence import cooccurrence, correlation, interdependence
from prunebench_kernels.reference.sampling import sample_masks
from prunebench_kernels.reference.uncertainty import Uncertainty, uncertainty

__all__ = [
    "Uncertainty",
    "cooccurrence",
    "correlation",
    "interdependence",
    "masked_conv2d",
    "sample_masks",
    "uncertainty",
]
