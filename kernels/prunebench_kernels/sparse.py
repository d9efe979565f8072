"""Sparse inference, its public names in one place: packed layouts, their convolution, and whole networks."""

from prunebench_kernels.files import load_sparse, save_sparse
from prunebench_kernels.fold import TracingError
from prunebench_kernels.layouts import LAYOUTS, Geometry, PackedWeight, pack
from prunebench_kernels.measured import Measuring
from prunebench_kernels.sparse_conv import SparseConv2d, candidates, sparse_conv2d
from prunebench_kernels.sparsify import LayerReport, Report, SparseNetwork, fold_dense, sparsify

__all__ = [
    "LAYOUTS",
    "Geometry",
    "LayerReport",
    "Measuring",
    "PackedWeight",
    "Report",
    "SparseConv2d",
    "SparseNetwork",
    "TracingError",
    "candidates",
    "fold_dense",
    "load_sparse",
    "pack",
    "save_sparse",
    "sparse_conv2d",
    "sparsify",
]
