"""Which implementation of an operation runs, and why.

Each operation has a Triton kernel and a torch path with the same results. The caller chooses with the argument
`backend` or the variable PRUNEBENCH_KERNELS: `torch`, `triton`, or `auto` (the default). `auto` takes the kernel
on a GPU, where it takes the shapes and dtypes. `triton` on a CPU runs the kernel in Triton's interpreter, if
TRITON_INTERPRET=1 was set before Triton was imported. What a kernel does not take runs in torch; `explain` says
why.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from prunebench_kernels.errors import ArgumentError

BACKENDS = ("auto", "triton", "torch")
VARIABLE = "PRUNEBENCH_KERNELS"


@dataclass(frozen=True)
class Choice:
    """The implementation that runs (`triton` or `torch`) and the reason, as a sentence for people."""

    backend: str
    reason: str

    @property
    def is_triton(self) -> bool:
        return self.backend == "triton"


def requested(backend: str | None) -> str:
    """The backend asked for by the argument or the environment. Raises ArgumentError on an unknown name."""
    value = backend or os.environ.get(VARIABLE) or "auto"
    if value not in BACKENDS:
        where = "backend" if backend else VARIABLE
        raise ArgumentError(f"{where}: want one of {', '.join(BACKENDS)}, got {value!r}")
    return value


@functools.cache
def triton_is_installed() -> bool:
    """Whether Triton can be imported (it is a dependency on Linux only)."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter in this process."""
    if not triton_is_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def select(
    backend: str | None, device: torch.device, dtype: torch.dtype, refusal: str | None = None
) -> Choice:
    """Choose for tensors of `dtype` on `device`; `refusal` says why the kernel does not take the call, if so."""
    asked = requested(backend)
    if asked == "torch":
        return Choice("torch", "backend torch was asked for")
    if not triton_is_installed():
        return Choice("torch", "Triton is not installed")
    if refusal is not None:
        return Choice("torch", refusal)
    if device.type == "cuda" and not is_interpreted():
        return Choice("triton", "the tensors are on a GPU")
    if asked == "auto" and device.type == "cuda":
        return Choice("torch", "TRITON_INTERPRET=1 is set; auto does not take the interpreter")
    if asked == "auto" or device.type not in ("cpu", "cuda"):
        return Choice("torch", f"the tensors are on {device.type}; Triton kernels need a GPU")
    if not is_interpreted():
        return Choice(
            "torch",
            f"the tensors are on {device.type} and TRITON_INTERPRET=1 was not set before Triton was imported",
        )
    if dtype == torch.bfloat16:
        return Choice("torch", "Triton's interpreter computes bfloat16 wrongly")
    return Choice("triton", "backend triton was asked for: Triton's interpreter runs the kernel")


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether anything but eager torch looks at the call, so that the registered operator must stand in it.

    That is a compiler, a tracer, a dispatch mode (FakeTensorMode, make_fx), a subclass, or a tensor without data.
    Elsewhere the function behind the operator is called at once: the operator's first call in a process imports
    torch's compiler (2.7 s and more), and each call costs some 14 us.
    """
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or _get_current_dispatch_mode() is not None
        or torch.jit.is_tracing()
    )


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current GPU: make it the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


_EXPLAINERS: dict[str, Callable[..., Choice]] = {}


def explains(operation: str) -> Callable[[Callable[..., Choice]], Callable[..., Choice]]:
    """Register a function with the operation's own signature that returns the Choice without running it."""

    def register(function: Callable[..., Choice]) -> Callable[..., Choice]:
        _EXPLAINERS[operation] = function
        return function

    return register


def explain(operation: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Choice:
    """What would run for this call, and why; arguments as for the operation itself.

    `operation` is the function or its name, e.g. `explain(uncertainty, logits)`. Raises ArgumentError on an
    operation that does not exist, and whatever the operation raises on wrong arguments.
    """
    name = operation if isinstance(operation, str) else operation.__name__
    if name not in _EXPLAINERS:
        raise ArgumentError(f"operation: want one of {', '.join(sorted(_EXPLAINERS))}, got {name!r}")
    return _EXPLAINERS[name](*args, **kwargs)
