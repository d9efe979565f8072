from prunebench_kernels.dispatch import FLOATS, check_device, check_finite, check_floating, check_tensor  # noqa: F401
