"""Dispatch: which implementation of an operation runs, and why; the checks of arguments that all operations share.

Each operation has a Triton kernel and a torch path with the same results. The caller chooses with the argument
`backend` or the variable PRUNEBENCH_KERNELS: `torch`, `triton`, or `auto` (the default). On a GPU `auto` takes a
kernel only where a bound on shapes makes its win certain, or where it was measured, as called, to be faster on this
machine (`prunebench_kernels.measured`: once per operation, shape class and version); elsewhere torch. `triton` on a
CPU runs the kernel in Triton's interpreter, if TRITON_INTERPRET=1 was set before Triton was imported. What a kernel
does not take runs in torch; `explain` says why.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

try:  # a dependency on Linux only: elsewhere every operation runs in torch
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

BACKENDS = ("auto", "triton", "torch")
VARIABLE = "PRUNEBENCH_KERNELS"
STAND_IN = False
"""Whether kernels are compiled for a GPU that is not there, from tensors on a CPU (`bench/standin.py`)."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class ArgumentError(ValueError):
    """An argument has the wrong shape, dtype, device or values. The message begins with the argument's name."""


class LayoutError(ArgumentError):
    """A sparse layout cannot hold this weight or convolution; the message says why."""


# --- kernels without Triton ----------------------------------------------------------------------------------


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit`; without Triton the plain function, which then is never launched."""
    if function is None:
        return lambda wrapped: jit(wrapped, **options)
    return function if triton is None else triton.jit(function, **options)


def constexpr(value: Any) -> Any:
    """`tl.constexpr(value)`, for constants that kernels read as globals; the value itself without Triton."""
    return value if tl is None else tl.constexpr(value)


@functools.cache
def is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter in this process."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


# --- launching ------------------------------------------------------------------------------------------------


@functools.cache
def _has_many_gpus() -> bool:
    return torch.cuda.device_count() > 1


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current GPU: make it the tensor's."""
    if tensor.is_cuda and _has_many_gpus() and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory a program may use; an H100's where there is no GPU."""
    if device.type != "cuda":
        return 132, 227 * 1024
    return _limits_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _limits_of(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


class Launch:
    """A kernel with its grid, numbers and constants: from the second launch on only pointers are looked at.

    Triton's own launch takes each argument apart again, some 20 to 30 us. The compiled kernel that it returns holds for
    pointers that are multiples of 16 bytes, as torch allocates them.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, int], constants: Mapping[str, Any], numbers: Sequence[int] = (),
        **options: int,
    ) -> None:  # fmt: skip
        self.kernel, self.grid, self.numbers = kernel, (*grid, 1), tuple(numbers)
        self.constants = {name: constants[name] for name in kernel.arg_names if name.isupper()}
        self.options = {**options, "enable_fp_fusion": True}
        self._rest = (*self.numbers, *self.constants.values())
        self._run: Callable[..., None] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch with the kernel's pointers, in order; the first is never None."""
        pointers = 0
        for tensor in tensors:
            if tensor is not None:
                pointers |= tensor.data_ptr()
        is_aligned = not pointers & 15
        with on_device(tensors[0]):  # type: ignore[arg-type]
            if is_aligned and self._run is not None:
                self._run(*tensors, *self._rest)
                return
            compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.constants, **self.options)
            if is_aligned and compiled is not None:  # None in the interpreter
                self._run = compiled[self.grid]


# --- the choice ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The implementation that runs (`triton` or `torch`) and the reason, as a sentence for people."""

    backend: str
    reason: str

    @property
    def is_triton(self) -> bool:
        return self.backend == "triton"


@dataclass(frozen=True)
class Contest:
    """What `auto` measures where no bound decides: the shape class, and both implementations as they are called.

    `calls` gives the callables by name (`torch` first: it stays unless the kernel clearly beats it); it is asked for
    only when something has to be measured. Each runs the operation on the very arguments, as a user calls it.
    """

    key: tuple[Any, ...]
    calls: Callable[[], Mapping[str, Callable[[], object]]]


def requested(backend: str | None) -> str:
    """The backend asked for by the argument or the environment. Raises ArgumentError on an unknown name."""
    value = backend or os.environ.get(VARIABLE) or "auto"
    if value not in BACKENDS:
        where = "backend" if backend else VARIABLE
        raise ArgumentError(f"{where}: want one of {', '.join(BACKENDS)}, got {value!r}")
    return value


def select(
    operation: str,
    backend: str | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    refusal: str | None = None,
    certain: str | None = None,
    contest: Contest | None = None,
) -> Choice:
    """Choose for tensors of `dtype` on `device`.

    `refusal` says why the kernel does not take the call, if so; `certain` names the bound that makes its win on a GPU
    certain, if one does; `contest` is what may be measured otherwise. Under a compiler, a tracer or the capture of a
    CUDA graph nothing is measured: what is known decides, else torch.
    """
    asked = requested(backend)
    if asked == "torch":
        return Choice("torch", "backend torch was asked for")
    if triton is None:
        return Choice("torch", "Triton is not installed")
    if refusal is not None:
        return Choice("torch", refusal)
    if (device.type == "cuda" or STAND_IN) and not is_interpreted():
        if asked == "triton":
            return Choice("triton", "backend triton was asked for")
        if certain is not None:
            return Choice("triton", certain)
        return _by_measurement(operation, device, contest)
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


_measured: dict[tuple[Any, ...], Choice] = {}
"""What was measured or read from the cache in this process, by operation, device and shape class."""


def _by_measurement(operation: str, device: torch.device, contest: Contest | None) -> Choice:
    if contest is None or device.type != "cuda":
        return Choice("torch", "no bound makes the kernel's win certain here, and it was not measured")
    index = torch.cuda.current_device() if device.index is None else device.index
    from prunebench_kernels import measured

    at = (operation, index, measured.precision(), *contest.key)
    known = _measured.get(at)
    if known is not None:
        return known
    may_run = not (torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing())
    decision = measured.decide_operation(operation, contest.key, contest.calls if may_run else None, device)
    if decision is None:
        return Choice("torch", "the kernel is not measured on this machine yet, and cannot be measured here")
    made = Choice(decision.winner, f"measured on this machine: {decision.reason}")
    _measured[at] = made
    return made


def shape_class(*sizes: int) -> tuple[int, ...]:
    """Sizes by the exponent of the power of two that holds each: measurements are remembered by class."""
    return tuple((size - 1).bit_length() for size in sizes)


def is_traced(tensor: Tensor) -> bool:
    """Whether anything but eager torch looks at the call, so that the registered operator must stand in it.

    That is a compiler, a tracer, a dispatch mode (FakeTensorMode, make_fx), a subclass, or a tensor without data.
    Elsewhere the function behind the operator is called at once: the operator's first call in a process imports
    torch's compiler (2.7 s and more), and each call costs some 14 us.
    """
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or _get_current_dispatch_mode() is not None
        or torch.jit.is_tracing()
    )


_EXPLAINERS: dict[str, Callable[..., Choice]] = {}


def explains(operation: str) -> Callable[[Callable[..., Choice]], Callable[..., Choice]]:
    """Register a function with the operation's own signature that returns the Choice without running it."""

    def register(function: Callable[..., Choice]) -> Callable[..., Choice]:
        _EXPLAINERS[operation] = function
        return function

    return register


def explain(operation: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Choice:
    """What would run for this call, and why; arguments as for the operation itself.

    `operation` is the function or its name, e.g. `explain(uncertainty, logits)`. Where `auto` decides by measurement
    and none is known, it is made now. Raises ArgumentError on an operation that does not exist, and whatever the
    operation raises on wrong arguments.
    """
    name = operation if isinstance(operation, str) else operation.__name__
    if name not in _EXPLAINERS:
        raise ArgumentError(f"operation: want one of {', '.join(sorted(_EXPLAINERS))}, got {name!r}")
    return _EXPLAINERS[name](*args, **kwargs)


# --- arguments -----------------------------------------------------------------------------------------------


def check_tensor(name: str, value: object) -> Tensor:
    """`value` as a tensor. Raises ArgumentError otherwise."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"{name}: want a torch tensor, got {type(value).__name__}")
    return value


def check_floating(name: str, value: Tensor) -> None:
    """Raise ArgumentError unless the dtype is a float of 16 to 64 bits."""
    if value.dtype not in FLOATS:
        raise ArgumentError(f"{name}: want a floating dtype, got {value.dtype}")


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ArgumentError unless both tensors are on one device."""
    if value.device != other.device:
        raise ArgumentError(f"{name}: is on {value.device}, {other_name} on {other.device}")


def check_finite(name: str, value: Tensor) -> None:
    """Raise ArgumentError if a value is infinite or nan. Synchronises a GPU."""
    if not torch.isfinite(value).all():
        raise ArgumentError(f"{name}: contains values that are not finite")
