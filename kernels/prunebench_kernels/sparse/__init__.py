"""Sparse inference: packed layouts, their convolutions, and whole networks."""

from prunebench_kernels.sparse.conv import candidates, preferred_format, sparse_conv2d
from prunebench_kernels.sparse.fold import TracingError
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.layouts import LAYOUTS, PackedWeight, pack
from prunebench_kernels.sparse.module import Measuring, SparseConv2d
from prunebench_kernels.sparse.network import LayerReport, Report, SparseNetwork, fold_dense, sparsify
from prunebench_kernels.sparse.state import load_sparse, save_sparse

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
    "preferred_format",
    "save_sparse",
    "sparse_conv2d",
    "sparsify",
]
