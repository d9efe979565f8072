"""Elementwise kernels on weights: the masked product in the compute dtype, and both gradients from one.

    product = (weight * mask) rounded to the compute dtype
    d weight = mask * G,  d mask = weight * G,  G = sum over splits of the workspace (in order: deterministic)

One launch each, where eager torch needs a float32 product and a cast, or a cast, two products and a sum.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase

BLOCK = 1024


@triton.jit
def _offset(  # noqa: PLR0913 - strides
    index, stride_k, stride_r, stride_s, stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT: tl.constexpr
):
    """Where element `index` of [K, R, S, C] lies; FLAT: there."""
    at = index
    if not FLAT:
        c = index % CHANNELS
        s = index // CHANNELS % KERNEL_W
        r = index // (CHANNELS * KERNEL_W) % KERNEL_H
        k = index // (CHANNELS * KERNEL_W * KERNEL_H)
        at = k * stride_k + r * stride_r + s * stride_s + c * stride_c
    return at


@triton.jit
def masked_weight_product_kernel(  # noqa: PLR0913 - strides of three tensors
    weight,
    mask,
    out,
    count,
    w_stride_k,
    w_stride_r,
    w_stride_s,
    w_stride_c,
    m_stride_k,
    m_stride_r,
    m_stride_s,
    m_stride_c,
    out_stride_k,
    out_stride_r,
    out_stride_s,
    out_stride_c,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = weight * mask; FLAT: all three have the same dense strides, else elements run over [K, R, S, C]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < count
    w_at = _offset(at, w_stride_k, w_stride_r, w_stride_s, w_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT)
    m_at = _offset(at, m_stride_k, m_stride_r, m_stride_s, m_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT)
    out_at = _offset(
        at, out_stride_k, out_stride_r, out_stride_s, out_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT
    )
    w = tl.load(weight + w_at, mask=valid).to(tl.float32)
    m = tl.load(mask + m_at, mask=valid).to(tl.float32)
    tl.store(out + out_at, (w * m).to(out.dtype.element_ty), mask=valid)


@triton.jit
def masked_weight_gradients_kernel(  # noqa: PLR0913 - strides of three tensors
    gradient,
    weight,
    mask,
    grad_weight,
    grad_mask,
    count,
    splits,
    g_stride_k,
    g_stride_r,
    g_stride_s,
    g_stride_c,
    w_stride_k,
    w_stride_r,
    w_stride_s,
    w_stride_c,
    m_stride_k,
    m_stride_r,
    m_stride_s,
    m_stride_c,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    CHANNELS: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    NEED_MASK: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_weight = mask * G and grad_mask = weight * G, those needed; G's splits lie `count` elements apart."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < count
    g_at = _offset(at, g_stride_k, g_stride_r, g_stride_s, g_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT)
    w_at = _offset(at, w_stride_k, w_stride_r, w_stride_s, w_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT)
    m_at = _offset(at, m_stride_k, m_stride_r, m_stride_s, m_stride_c, KERNEL_H, KERNEL_W, CHANNELS, FLAT)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(splits):
        total += tl.load(gradient + g_at, mask=valid).to(tl.float32)
        gradient += count
    if NEED_WEIGHT:
        m = tl.load(mask + m_at, mask=valid).to(tl.float32)
        tl.store(grad_weight + w_at, (m * total).to(grad_weight.dtype.element_ty), mask=valid)
    if NEED_MASK:
        w = tl.load(weight + w_at, mask=valid).to(tl.float32)
        tl.store(grad_mask + m_at, (w * total).to(grad_mask.dtype.element_ty), mask=valid)


def launch_product(weight: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Write weight * mask into `out`: same shape `[K, C, R, S]`, any strides and dtype."""
    operands = (weight, as_bytes(mask), out)
    with on_device(weight):
        masked_weight_product_kernel[(triton.cdiv(weight.numel(), BLOCK),)](
            *operands,
            weight.numel(),
            *(stride for operand in operands for stride in _strides(operand)),
            **_shape(weight),
            FLAT=_is_flat(*operands),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
        return out


def launch_gradients(
    gradient: Tensor, weight: Tensor, mask: Tensor, grad_weight: Tensor | None, grad_mask: Tensor | None
) -> None:
    """Fill those of `grad_weight` and `grad_mask` that are not None from G.

    `gradient` is G as `[K, C, R, S]` (any dense strides) or its splits, `[splits, K, R, S, C]`, contiguous.
    """
    splits = gradient.shape[0] if gradient.ndim == 5 else 1
    one = gradient[0].permute(0, 3, 1, 2) if gradient.ndim == 5 else gradient
    if grad_weight is not None:
        weight = _strided_as(weight, grad_weight)
    if grad_mask is not None:
        mask = _strided_as(mask, grad_mask)
    operands = (one, weight, as_bytes(mask))
    with on_device(weight):
        masked_weight_gradients_kernel[(triton.cdiv(weight.numel(), BLOCK),)](
            *operands,
            gradient if grad_weight is None else grad_weight,
            gradient if grad_mask is None else grad_mask,
            weight.numel(),
            splits,
            *(stride for operand in operands for stride in _strides(operand)),
            **_shape(weight),
            NEED_WEIGHT=grad_weight is not None,
            NEED_MASK=grad_mask is not None,
            FLAT=_is_flat(*operands),
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )


def as_bytes(mask: Tensor) -> Tensor:
    """A bool mask as uint8, without a copy."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def _shape(weight: Tensor) -> dict[str, int]:
    _, channels, kernel_h, kernel_w = weight.shape
    return {"KERNEL_H": kernel_h, "KERNEL_W": kernel_w, "CHANNELS": channels}


def _strides(tensor: Tensor) -> tuple[int, int, int, int]:
    """Strides of k, r, s, c; 0 where the extent is 1, so that equal layouts have equal strides."""
    k, c, r, s = (0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride()))
    return k, r, s, c


def _is_flat(*operands: Tensor) -> bool:
    first = operands[0]
    last = sum((size - 1) * step for size, step in zip(first.shape, first.stride()))
    return last == first.numel() - 1 and len({_strides(operand) for operand in operands}) == 1


def _strided_as(value: Tensor, other: Tensor) -> Tensor:
    """`value`, copied if its strides are not `other`'s (a weight that is a slice or expanded)."""
    if _strides(value) == _strides(other):
        return value
    return torch.empty_strided(other.shape, other.stride(), dtype=value.dtype, device=value.device).copy_(
        value
    )


def _cases() -> tuple[CompileCase, ...]:
    def case(kernel: triton.JITFunction, types: dict[str, str], **constexprs: object) -> CompileCase:
        integers = [name for name in kernel.arg_names if name not in types and not name.isupper()]
        shape = {"KERNEL_H": 3, "KERNEL_W": 3, "CHANNELS": 64, "BLOCK": BLOCK, **constexprs}
        flat = bool(constexprs["FLAT"])
        return CompileCase(
            name=f"{kernel.__name__}-{'-'.join(types.values()).replace('*', '')}-{'flat' if flat else 'strided'}",
            kernel=kernel,
            signature={**types, **dict.fromkeys(integers, "i32"), **dict.fromkeys(shape, "constexpr")},
            constexprs=shape,
            divisible_by_16=(*types, "count"),
            num_warps=4,
            num_stages=3,
            expects=frozenset({"vector-loads"}) if flat else frozenset(),
        )

    made = []
    for flat in (True, False):
        for weight, mask, out in (
            ("*fp32", "*fp32", "*fp32"),
            ("*fp32", "*fp32", "*bf16"),
            ("*fp32", "*u8", "*bf16"),
            ("*fp32", "*fp32", "*fp16"),
            ("*fp16", "*u8", "*fp16"),
            ("*fp16", "*fp16", "*fp16"),
            ("*bf16", "*bf16", "*bf16"),
        ):
            product = {"weight": weight, "mask": mask, "out": out}
            made.append(case(masked_weight_product_kernel, product, FLAT=flat))
            for gradient in dict.fromkeys(("*fp32", out)):
                types = {
                    "gradient": gradient,
                    "weight": weight,
                    "mask": mask,
                    "grad_weight": weight,
                    "grad_mask": weight if mask == "*u8" else mask,
                }
                needs = {"NEED_WEIGHT": True, "NEED_MASK": mask != "*u8", "FLAT": flat}
                made.append(case(masked_weight_gradients_kernel, types, **needs))
    return tuple({entry.name: entry for entry in made}.values())


COMPILE_CASES = _cases()
