"""Convolution with a masked weight, for training: y = conv2d(x, weight * mask).

Straight-through gradients: with G the gradient of the product weight * mask,
    d weight = mask * G,    d mask = weight * G (the dense gradient, also where the mask is zero),
both from one reduction G. Only x, weight and mask are kept for the backward pass; the product is made again there,
in the dtype that the convolution computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prunebench_kernels import backend as backends
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.masked_conv_arguments import Pair, prepared
from prunebench_kernels.masked_conv_geometry import Geometry, memory_format
from prunebench_kernels.masked_conv_parts import plan, run_backward, run_forward


def masked_conv2d(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """conv2d(x, weight * mask) + bias: x `[N, C, H, W]`, weight and mask `[K, C / groups, R, S]`, bias `[K]`.

    The mask is bool, uint8 or float (any values). y has x's dtype and memory format. float32 multiplies in TF32
    where torch lets convolutions do so (`torch.backends.cudnn.allow_tf32`): a layer keeps its precision and its
    speed when it gets a mask. Under autocast x is cast and weight, mask and bias may stay float32; elsewhere
    the dtypes of x, weight and bias must agree. Values are not checked for being finite (it would synchronise).
    Second derivatives and the transforms of torch.func (grad, vmap) raise RuntimeError.
    """
    x, settings = prepared(x, weight, mask, bias, stride, padding, dilation, groups)
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return masked_conv2d_op(x, weight, mask, bias, *settings, backend or "")
    geometry = Geometry.of(x, weight, *settings)
    return _Eager.apply(x, weight, mask, bias, geometry, plan(geometry, x.dtype, x.device, backend))


@backends.explains("masked_conv2d")
def _explain(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    backend: str | None = None,
) -> backends.Choice:
    x, settings = prepared(x, weight, mask, bias, stride, padding, dilation, groups)
    return plan(Geometry.of(x, weight, *settings), x.dtype, x.device, backend).choice


class MaskedConv2d(nn.Conv2d):
    """A convolution whose weight is multiplied by the buffer `mask`, ones at first.

    The mask may be any tensor of the weight's shape, also one that requires a gradient, e.g.
    `torch.func.functional_call(net, {"conv1.mask": mask}, (x,))`. `backend` is that of `masked_conv2d`.
    """

    mask: Tensor

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise ArgumentError(f"padding_mode: want zeros, got {self.padding_mode!r}")
        self.backend = backend
        self.register_buffer("mask", torch.ones_like(self.weight))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, backend: str | None = None) -> MaskedConv2d:
        """A masked layer that shares `conv`'s parameters. Draws no random numbers."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
            backend=backend,
        )
        made.weight, made.bias, made.mask = conv.weight, conv.bias, torch.ones_like(conv.weight.detach())
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(
            x,
            self.weight,
            self.mask,
            self.bias,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            backend=self.backend,
        )


_SETTINGS = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str backend"


@torch.library.custom_op(
    "prunebench::masked_conv2d",
    mutates_args=(),
    schema=f"(Tensor x, Tensor weight, Tensor mask, Tensor? bias, {_SETTINGS}) -> Tensor",
)
def masked_conv2d_op(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str,
) -> Tensor:
    """The operator: arguments already checked, x in the dtype to compute in."""
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    return run_forward(x, weight, mask, bias, geometry, plan(geometry, x.dtype, x.device, backend or None))


@masked_conv2d_op.register_fake
def _(  # noqa: PLR0913
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str,
) -> Tensor:
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    return x.new_empty(geometry.y_shape).contiguous(memory_format=geometry.layout)


@torch.library.custom_op(
    "prunebench::masked_conv2d_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor x, Tensor weight, Tensor mask, {_SETTINGS}, bool[] needed) -> Tensor[]",
)
def masked_conv2d_backward_op(  # noqa: PLR0913 - the signature of conv2d
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    """Gradients of those of x, weight, mask and bias that are `needed`, in that order."""
    geometry = Geometry.of(x, weight, stride, padding, dilation, groups)
    chosen = plan(geometry, x.dtype, x.device, backend or None)
    return run_backward(grad, x, weight, mask, geometry, chosen, needed)


@masked_conv2d_backward_op.register_fake
def _(  # noqa: PLR0913
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    backend: str,
    needed: list[bool],
) -> list[Tensor]:
    made = (
        x.new_empty(x.shape).contiguous(memory_format=memory_format(x)),
        torch.empty_like(weight),
        torch.empty_like(mask),
        x.new_empty(weight.shape[:1]),
    )
    return [tensor for tensor, is_needed in zip(made, needed) if is_needed]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, mask, bias, *ctx.settings = inputs
    ctx.save_for_backward(x, weight, mask)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _spread(ctx: Any, made: list[Tensor], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs, None for those not needed."""
    each = iter(made)
    gradients = [next(each) if need else None for need in needed]
    if gradients[3] is not None:
        gradients[3] = gradients[3].to(ctx.bias_dtype)
    return *gradients, *(None for _ in ctx.settings)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [bool(need) for need in ctx.needs_input_grad[:4]]
    return _spread(ctx, masked_conv2d_backward_op(grad, *ctx.saved_tensors, *ctx.settings, needed), needed)


masked_conv2d_op.register_autograd(_backward, setup_context=_setup_context)


class _Eager(torch.autograd.Function):
    """The operator without its dispatch, which costs 75 us a call and its gradients on a CPU core."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = run_forward(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[:4])
        x, weight, mask = ctx.saved_tensors
        geometry, chosen = ctx.settings
        return _spread(ctx, run_backward(grad, x, weight, mask, geometry, chosen, needed), needed)
