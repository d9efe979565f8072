import torch

from prunebench_kernels import dispatch
from prunebench_kernels.dispatch import (  # noqa: F401
    BACKENDS, VARIABLE, Choice, explain, explains, is_interpreted, is_traced, on_device, requested,
)


def select(backend, device, dtype, refusal=None):
    return dispatch.select("old", backend, device, dtype, refusal=refusal, certain="the tensors are on a GPU")
