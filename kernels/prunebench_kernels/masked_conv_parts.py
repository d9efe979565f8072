"""The three parts of a masked convolution: forward, dgrad (of the input) and wgrad (of the product weight * mask).

Each part has two implementations, the library's convolution (cuDNN on a GPU) and a Triton kernel. Wherever Triton
runs, the elementwise work on weights (the product, and both gradients from G) is one launch each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels import backend as backends
from prunebench_kernels import tuned
from prunebench_kernels.masked_conv_geometry import (
    PARTS,
    Configuration,
    Geometry,
    autocast_enabled,
    key,
    refusal,
)


@dataclass(frozen=True)
class Plan:
    """What runs each part: a configuration of the Triton kernel, or None for the library's convolution."""

    forward: Configuration | None = None
    dgrad: Configuration | None = None
    wgrad: Configuration | None = None
    fused_weight: bool = False
    """Whether product and weight gradients run in Triton's elementwise kernels."""
    reason: str = ""

    @property
    def choice(self) -> backends.Choice:
        kernels = any((self.forward, self.dgrad, self.wgrad))
        return backends.Choice("triton" if kernels else "torch", self.reason)


def plan(geometry: Geometry, dtype: torch.dtype, device: torch.device, backend: str | None) -> Plan:
    """What runs for this call. On a GPU `auto` takes what was measured to be fastest, else the library."""
    choice = backends.select(backend, device, dtype, refusal(geometry, dtype))
    if not choice.is_triton:
        return Plan(reason=choice.reason)
    if backends.requested(backend) == "triton":
        found = {part: _configuration(part, geometry, dtype, device) for part in PARTS}
        return Plan(**found, fused_weight=True, reason=choice.reason)
    name = key(geometry, dtype)
    entries = {part: tuned.lookup(f"masked_conv2d.{part}", name) for part in PARTS}
    if not any(entries.values()):
        return Plan(fused_weight=True, reason=_unmeasured(geometry))
    parts = {part: from_entry(entry) for part, entry in entries.items()}
    names = ", ".join(f"{part} {'cuDNN' if made is None else 'Triton'}" for part, made in parts.items())
    return Plan(**parts, fused_weight=True, reason=f"measured on this GPU: {names}")


def _unmeasured(geometry: Geometry) -> str:
    reason = (
        "this convolution was not measured on this GPU: cuDNN convolves, "
        "Triton makes the masked weight and its gradients"
    )
    if min(geometry.group_shape) < 16 < geometry.groups:
        reason += " (a group has fewer channels than a tensor-core tile)"
    return reason


def _configuration(part: str, geometry: Geometry, dtype: torch.dtype, device: torch.device) -> Configuration:
    from prunebench_kernels.masked_conv_configurations import configuration

    entry = None
    if device.type == "cuda":
        entry = tuned.lookup(f"masked_conv2d.{part}", key(geometry, dtype))
    return from_entry(entry) or configuration(part, geometry, dtype)


def from_entry(entry: Mapping[str, Any] | None) -> Configuration | None:
    """The configuration of a tuned table's entry; None where the library is faster or nothing was measured.

    Raises TunedTableError on an entry that is neither.
    """
    if entry is None or entry.get("implementation") == "torch":
        return None
    fields = {name: value for name, value in entry.items() if name in Configuration.__dataclass_fields__}
    try:
        if entry["implementation"] != "triton":
            raise ValueError(entry["implementation"])
        return Configuration(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise tuned.TunedTableError(f"masked_conv2d: not a tuned entry: {dict(entry)}") from error


def product(weight: Tensor, mask: Tensor, x: Tensor, layout: torch.memory_format, fused: bool) -> Tensor:
    """weight * mask in x's dtype, stored in `layout`."""
    if not fused:
        return (weight * mask).to(x.dtype, memory_format=layout)
    from prunebench_kernels.masked_conv_weight_triton import launch_product

    return launch_product(weight, mask, torch.empty_like(weight, dtype=x.dtype, memory_format=layout))


def run_forward(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry, chosen: Plan
) -> Tensor:
    """y = conv2d(x, weight * mask) + bias, in x's dtype and memory format."""
    if chosen.forward is not None:
        from prunebench_kernels.masked_conv_triton import launch_forward

        return launch_forward(x, weight, mask, bias, geometry, chosen.forward)
    factor = product(weight, mask, x, geometry.layout, chosen.fused_weight)
    shift = None if bias is None else bias.to(x.dtype)
    settings = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    if autocast_enabled(x.device):  # the dtype is decided already
        with torch.autocast(x.device.type, enabled=False):
            y = functional.conv2d(x, factor, shift, *settings)
    else:
        y = functional.conv2d(x, factor, shift, *settings)
    return y.contiguous(memory_format=geometry.layout)


def run_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    geometry: Geometry,
    chosen: Plan,
    needed: list[bool],
) -> list[Tensor]:
    """Gradients of those of x, weight, mask and bias that are `needed`, in that order."""
    need_x, need_weight, need_mask, need_bias = needed
    need_product = need_weight or need_mask
    grad = grad.contiguous(memory_format=geometry.layout)
    library = (need_x and chosen.dgrad is None, need_product and chosen.wgrad is None)
    dx, gradient, dbias = _library_backward(grad, x, weight, mask, geometry, chosen, (*library, need_bias))
    if need_x and chosen.dgrad is not None:
        from prunebench_kernels.masked_conv_triton import launch_dgrad

        dx = launch_dgrad(grad, weight, mask, geometry, chosen.dgrad)
    if need_product and chosen.wgrad is not None:
        from prunebench_kernels.masked_conv_backward_triton import launch_wgrad

        gradient = launch_wgrad(grad, x, geometry, chosen.wgrad)
    made = [] if dx is None else [dx]
    if gradient is not None:
        made += weight_gradients(gradient, weight, mask, need_weight, need_mask, chosen.fused_weight)
    return made if dbias is None else [*made, dbias]


def _library_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    geometry: Geometry,
    chosen: Plan,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, G and dbias where `needed`, from the library; dbias sums dy in float32, without any convolution."""
    need_x, need_product, need_bias = needed
    if not need_x and not need_product:
        return None, None, grad.sum((0, 2, 3)) if need_bias else None
    if need_x:
        factor = product(weight, mask, x, geometry.layout, chosen.fused_weight)
    else:  # G does not read the weight's values, only its shape and layout
        factor = torch.empty_like(weight, dtype=x.dtype, memory_format=geometry.layout)
    dx, gradient, dbias = torch.ops.aten.convolution_backward(
        grad,
        x,
        factor,
        [geometry.out_channels] if need_bias else None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        (0, 0),
        geometry.groups,
        [need_x, need_product, need_bias],
    )
    return dx.contiguous(memory_format=geometry.layout) if need_x else None, gradient, dbias


def weight_gradients(
    gradient: Tensor, weight: Tensor, mask: Tensor, need_weight: bool, need_mask: bool, fused: bool
) -> list[Tensor]:
    """d weight = mask * G and d mask = weight * G, those needed; G or, if `fused`, its splits."""
    if not fused:
        made = [_scaled(gradient, mask, weight, keep=need_mask)] if need_weight else []
        return [*made, _scaled(gradient, weight, mask, keep=False)] if need_mask else made
    from prunebench_kernels.masked_conv_weight_triton import launch_gradients

    grad_weight = torch.empty_like(weight) if need_weight else None
    grad_mask = torch.empty_like(mask) if need_mask else None
    launch_gradients(gradient, weight, mask, grad_weight, grad_mask)
    return [out for out in (grad_weight, grad_mask) if out is not None]


def _scaled(gradient: Tensor, factor: Tensor, like: Tensor, *, keep: bool) -> Tensor:
    """gradient * factor with `like`'s dtype and strides; in G's own memory if it fits and need not be kept."""
    out = torch.empty_like(like, device="meta")
    if not keep and gradient.dtype == out.dtype and gradient.stride() == out.stride():
        return gradient.mul_(factor)
    return torch.mul(gradient, factor, out=torch.empty_like(like))
