"""Convolution with a packed weight, for inference: y = relu(conv2d(x, W) + bias + residual)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor

from prunebench_kernels.backend import Choice, explains, is_traced, on_device, select
from prunebench_kernels.checks import check_device, check_tensor
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.sparse import dense
from prunebench_kernels.sparse.candidates import candidates
from prunebench_kernels.sparse.formats import arrange, empty, format_of, is_arranged
from prunebench_kernels.sparse.geometry import Geometry
from prunebench_kernels.sparse.layouts import PackedWeight, layout_module, preferred_format

__all__ = ["candidates", "preferred_format", "sparse_conv2d"]

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def sparse_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """y = relu(conv2d(x, W) + bias + residual), with bias, residual and ReLU in the kernel's last step.

    x `[N, C, H, W]`, bias `[K]`, residual and y `[N, K, OH, OW]`, all in the weight's dtype and on its device.
    y is in the layout's own format (`preferred_format`); x and residual in another are copied first. Sums are in
    float32 (float64 for float64). For inference: raises ArgumentError, naming the argument, on wrong
    arguments, and where autograd would record the call.
    """
    _check(x, packed, bias, residual)
    names = layout_module(packed.layout).SETTINGS
    run = _operator if is_traced(x) else _sparse_conv2d
    result: Tensor = run(
        x,
        [packed.tensors[name] for name in layout_module(packed.layout).TENSORS],
        bias,
        residual,
        list(packed.geometry.numbers),
        packed.layout,
        [packed.settings[name] for name in names],
        relu,
        backend,
    )
    return result


@explains("sparse_conv2d")
def _explain(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    backend: str | None = None,
) -> Choice:
    _check(x, packed, bias, residual)
    return _choose(x, packed.layout, backend)


def _choose(x: Tensor, layout: str, backend: str | None) -> Choice:
    refusal = None
    if layout == "dense":
        refusal = "layout dense is the library's convolution"
    elif x.dtype not in _KERNEL_DTYPES:
        refusal = f"the kernel takes float32, float16 and bfloat16, not {x.dtype}"
    return select(backend, x.device, x.dtype, refusal)


def _check(x: Tensor, packed: PackedWeight, bias: Tensor | None, residual: Tensor | None) -> None:
    if not isinstance(packed, PackedWeight):
        raise ArgumentError(f"packed: want a PackedWeight (see pack), got {type(packed).__name__}")
    geometry = packed.geometry
    check_tensor("x", x)
    if x.dim() != 4 or x.shape[1] != geometry.in_channels:
        raise ArgumentError(f"x: want [N, {geometry.in_channels}, H, W], got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ArgumentError(f"x: is empty, {tuple(x.shape)}")
    shape = (x.shape[0], geometry.out_channels, *geometry.output_size(x.shape[2], x.shape[3]))
    check_device("x", x, "packed", next(iter(packed.tensors.values())))
    for name, tensor, want in (("bias", bias, (geometry.out_channels,)), ("residual", residual, shape)):
        if tensor is None:
            continue
        check_device(name, check_tensor(name, tensor), "x", x)
        if tuple(tensor.shape) != want:
            raise ArgumentError(f"{name}: want shape {want}, got {tuple(tensor.shape)}")
    named = {"x": x, "bias": bias, "residual": residual, "packed": packed.tensors[_first_name(packed.layout)]}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.dtype != packed.dtype:
            raise ArgumentError(f"{name}: is {tensor.dtype}, the packed weight {packed.dtype}")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ArgumentError(
                f"{name}: requires a gradient, and sparse_conv2d has none: call it under torch.no_grad()"
            )


def _first_name(layout: str) -> str:
    name: str = layout_module(layout).TENSORS[0]
    return name


def _sparse_conv2d(  # noqa: PLR0913 - a flat signature: tensors, integers and strings only
    x: Tensor,
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Sequence[int],
    layout: str,
    settings: Sequence[int],
    relu: bool,
    backend: str | None,
) -> Tensor:
    module, numbers = layout_module(layout), Geometry.from_numbers(geometry)
    named = dict(zip(module.TENSORS, tensors))
    chosen = dict(zip(module.SETTINGS, settings))
    order = format_of(layout, chosen)
    x = arrange(x, order)
    if residual is not None:
        residual = arrange(residual, order)
    if _choose(x, layout, backend).is_triton:
        kernel = importlib.import_module(f"prunebench_kernels.sparse.{layout}_triton")
        packed = PackedWeight(layout, numbers, named, chosen)
        with on_device(x):
            launched: Tensor = kernel.launch(x, packed, bias, residual, relu)
        return launched
    if layout == "dense":
        product, bias = dense.convolve(x, named, numbers, chosen, bias), None
    elif x.dtype in (torch.float16, torch.bfloat16):
        weight = module.TENSORS[0]
        product = module.convolve(x.float(), {**named, weight: named[weight].float()}, numbers, chosen)
    else:
        product = module.convolve(x, named, numbers, chosen)
    return _finish(product, bias, residual, relu, x.dtype, order)


def _finish(
    product: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
    order: str,
) -> Tensor:
    """The torch epilogue: one copy into the output's format (with the bias), the rest in place."""
    if is_arranged(product, order):
        y = product if bias is None else product.add_(bias[:, None, None])
    else:
        y = empty(product.shape, order, product)
        y.copy_(product) if bias is None else torch.add(product, bias[:, None, None], out=y)
    if residual is not None:
        y.add_(residual)
    if relu:
        y.relu_()
    return y.to(dtype)


_operator = torch.library.custom_op("prunebench::sparse_conv2d", mutates_args=())(_sparse_conv2d)


@_operator.register_fake
def _fake(  # noqa: PLR0913 - the operator's signature
    x: Tensor,
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Sequence[int],
    layout: str,
    settings: Sequence[int],
    relu: bool,
    backend: str | None,
) -> Tensor:
    numbers = Geometry.from_numbers(geometry)
    size = numbers.output_size(x.shape[2], x.shape[3])
    shape = (x.shape[0], numbers.out_channels, *size)
    chosen = dict(zip(layout_module(layout).SETTINGS, settings))
    return empty(shape, format_of(layout, chosen), x)
