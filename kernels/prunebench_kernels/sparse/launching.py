"""What the launch functions share: the constants of a call, as the kernels' compile-time arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.sparse.configurations import Configuration
from prunebench_kernels.sparse.formats import empty, format_of
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.layouts import PackedWeight

TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
INDICES = ("pointers", "codes", "columns", "order")
"""Arguments that are pointers to int32, in every kernel; the other pointers have the dtype of x."""
LARGEST_INT32 = 2**31 - 1


def output_like(x: Tensor, packed: PackedWeight) -> Tensor:
    """An uninitialised output in the layout's format."""
    size = packed.geometry.output_size(x.shape[2], x.shape[3])
    shape = (x.shape[0], packed.geometry.out_channels, *size)
    return empty(shape, format_of(packed.layout, packed.settings), x)


def strides(shape: Sequence[int], order: str) -> tuple[int, int, int, int]:
    """Strides of `[N, C, H, W]` in that order; fixed ones also for axes of length one."""
    n, c, h, w = shape
    if order == "channels_last":
        return (h * w * c, 1, w * c, c)
    if order == "batch_innermost":
        return (1, h * w * n, w * n, n)
    return (c * h * w, h * w, w, 1)


def shape_constants(
    x_shape: Sequence[int], geometry: Geometry, layout: str, settings: Mapping[str, int]
) -> dict[str, Any]:
    """The arguments that follow from shapes, by the names that all kernels use."""
    order = format_of(layout, settings)
    size = geometry.output_size(x_shape[2], x_shape[3])
    y_shape = (x_shape[0], geometry.out_channels, *size)
    constants: dict[str, Any] = {
        "BATCH": x_shape[0],
        "IN_CHANNELS": geometry.in_channels,
        "OUT_CHANNELS": geometry.out_channels,
        "OUT_H": size[0],
        "OUT_W": size[1],
        "HEIGHT": x_shape[2],
        "WIDTH": x_shape[3],
        "INNER": order == "batch_innermost",
        "BORDER": geometry.padding != (0, 0),
        "WIDE": max(torch.Size(x_shape).numel(), torch.Size(y_shape).numel()) > LARGEST_INT32,
    }
    for name, pair in (
        ("KERNEL", geometry.kernel),
        ("STRIDE", geometry.stride),
        ("PADDING", geometry.padding),
        ("DILATION", geometry.dilation),
    ):
        constants[f"{name}_H"], constants[f"{name}_W"] = pair
    for prefix, shape in (("X", x_shape), ("Y", y_shape)):
        for axis, stride in zip("NCHW", strides(shape, order)):
            constants[f"{prefix}_{axis}"] = stride
    if geometry.is_pointwise and order == "contiguous":
        # One long row an image: the compiler then sees how long the aligned runs are.
        row = size[0] * size[1]
        constants |= {"OUT_H": 1, "HEIGHT": 1, "OUT_W": row, "WIDTH": row, "X_H": row, "Y_H": row}
    return constants


def epilogue_constants(bias: Tensor | None, residual: Tensor | None, relu: bool) -> dict[str, bool]:
    """Which parts of the epilogue are compiled in."""
    return {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None, "RELU": relu}


def only_taken(kernel: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the constants that the kernel has as arguments."""
    return {name: value for name, value in constants.items() if name in kernel.arg_names}


def ieee_or_tf32() -> str:
    """Precision of float32 products: IEEE, unless torch was asked for less in matrix products.

    By `fp32_precision`, which also tells what torch.set_float32_matmul_precision set; the latter's getter raises
    once `fp32_precision` was written.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def compile_case(
    name: str,
    kernel: Any,
    short: str,
    constants: Mapping[str, Any],
    chosen: Configuration,
    expects: set[str],
) -> CompileCase:
    """A case with bias, residual and ReLU, all pointers aligned; `short` is Triton's name of the dtype of x."""
    pointers = {argument: "*i32" if argument in INDICES else f"*{short}" for argument in kernel.arg_names}
    signature = {name: "constexpr" if name.isupper() else pointers[name] for name in kernel.arg_names}
    every = {**constants, "HAS_BIAS": True, "HAS_RESIDUAL": True, "RELU": True}
    aligned = tuple(name for name in kernel.arg_names if not name.isupper())
    return CompileCase(
        name,
        kernel,
        signature,
        only_taken(kernel, every),
        aligned,
        chosen.warps,
        chosen.stages,
        frozenset(expects),
    )
