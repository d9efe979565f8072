"""Batched operations of PruneBench. This package knows nothing of `prunebench`.

Every operation has one oracle in `reference.py`, in plain torch; it runs on any device.
"""

from prunebench_kernels.reference import (
    Uncertainty,
    correlation,
    masked_conv2d,
    sample_masks,
    uncertainty,
)

__all__ = ["Uncertainty", "correlation", "masked_conv2d", "sample_masks", "uncertainty"]
