from prunebench_kernels.dispatch import ArgumentError, LayoutError  # noqa: F401
