"""How the sparse convolution kernels are called: arguments, compile-time constants, grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.sparse.configurations import Configuration, configuration
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


def ieee_or_tf32() -> str:
    """Precision of float32 products: IEEE, unless torch was asked for less in matrix products.

    By `fp32_precision`, which also tells what torch.set_float32_matmul_precision set; the latter's getter raises
    once `fp32_precision` was written.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


Sizes = Callable[[Sequence[int], Geometry, torch.dtype, Mapping[str, int], Configuration], dict[str, Any]]


@dataclass(frozen=True)
class PixelKernel:
    """A layout's kernel, each program of which takes a tile of output pixels.

    Its arguments are x, the layout's tensors by their names, bias, residual, y, and constants, in capitals. `sizes`
    gives those constants that are the layout's own, of (x's shape, geometry, dtype, settings, configuration).
    `one_block`: a program takes one block of output channels; else a tile's `splits` programs share them all.
    """

    layout: str
    kernel: Any
    sizes: Sizes
    one_block: bool = False

    def launch(
        self,
        x: Tensor,
        packed: PackedWeight,
        bias: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        *,
        chosen: Configuration | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The convolution of x in the layout's format; `out`, if given, is written instead of a new tensor."""
        geometry, settings, tensors = packed.geometry, packed.settings, packed.tensors
        chosen = chosen or configuration(self.layout, geometry, x.shape, x.dtype, settings)
        y = output_like(x, packed) if out is None else out
        epilogue = {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None, "RELU": relu}
        constants = self._constants(tuple(x.shape), geometry, x.dtype, settings, chosen)
        pixels = y.numel() // geometry.out_channels
        tiles = -(-pixels // chosen.pixels)
        blocks = -(-geometry.out_channels // settings["block_out"]) if self.one_block else 1
        self.kernel[tiles * blocks, chosen.splits](
            x,
            *(tensors[name] for name in self.kernel.arg_names if name in tensors),
            bias,
            residual,
            y,
            **constants,
            **epilogue,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
            enable_fp_fusion=True,
        )
        return y

    def compile_case(
        self,
        name: str,
        geometry: Geometry,
        x_shape: Sequence[int],
        dtype: torch.dtype,
        settings: Mapping[str, int],
        expects: set[str],
    ) -> CompileCase:
        """A case of the call's configuration with bias, residual and ReLU, all pointers aligned."""
        chosen = configuration(self.layout, geometry, x_shape, dtype, settings)
        short = TRITON_TYPES[dtype]
        names = self.kernel.arg_names
        aligned = tuple(argument for argument in names if not argument.isupper())
        types = {argument: "*i32" if argument in INDICES else f"*{short}" for argument in aligned}
        epilogue = {"HAS_BIAS": True, "HAS_RESIDUAL": True, "RELU": True}
        return CompileCase(
            f"sparse {self.layout} {name} {short}",
            self.kernel,
            {argument: types.get(argument, "constexpr") for argument in names},
            {**self._constants(x_shape, geometry, dtype, settings, chosen), **epilogue},
            aligned,
            chosen.warps,
            chosen.stages,
            frozenset(expects),
        )

    def _constants(
        self,
        x_shape: Sequence[int],
        geometry: Geometry,
        dtype: torch.dtype,
        settings: Mapping[str, int],
        chosen: Configuration,
    ) -> dict[str, Any]:
        """The kernel's constants but for the epilogue's."""
        every = shape_constants(x_shape, geometry, self.layout, settings)
        every |= self.sizes(x_shape, geometry, dtype, settings, chosen)
        return {name: value for name, value in every.items() if name in self.kernel.arg_names}
