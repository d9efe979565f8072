"""Mask sampling as an operator of torch: its schema, fake tensors, and the straight-through backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunebench_kernels import mask_sampling_torch
from prunebench_kernels.backend import Choice, select
from prunebench_kernels.checks import check_finite
from prunebench_kernels.mask_sampling_rule import Draw

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool)


def choose(logits: Tensor, weights: Tensor | None, dtype: torch.dtype, backend: str | None) -> Choice:
    """The backend for an output of `dtype`. Raises ArgumentError on an unknown name."""
    dtypes = {logits.dtype, dtype} | ({weights.dtype} if weights is not None else set())
    refused = [str(one) for one in dtypes if one not in KERNEL_DTYPES]
    refusal = f"the kernel does not take {', '.join(sorted(refused))}" if refused else None
    narrow = torch.bfloat16 if torch.bfloat16 in dtypes else logits.dtype
    return select(backend, logits.device, narrow, refusal)


_SETTINGS = "SymInt seed, SymInt offset, float temperature, bool squash"


@torch.library.custom_op(
    "prunebench::sample_masks",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor? weights, {_SETTINGS}, ScalarType dtype, str backend, bool keep_slope) "
    "-> (Tensor, Tensor)",
)
def sample_masks_op(  # noqa: PLR0913 - the operation's signature
    logits: Tensor,
    weights: Tensor | None,
    seed: int,
    offset: int,
    temperature: float,
    squash: bool,
    dtype: torch.dtype,
    backend: str,
    keep_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Masks or masked weights `[P]`, and what the torch path keeps: d out / d pi (float32 `[P]`, else empty)."""
    draw = Draw(seed, offset, temperature, squash)
    if logits.device.type == "cpu":
        check_finite("logits", torch.stack(torch.aminmax(logits)))  # a tenth of the time of all values
    out = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    if choose(logits, weights, dtype, backend or None).is_triton:
        from prunebench_kernels import mask_sampling_triton

        filled = out.view(torch.uint8) if dtype == torch.bool else out
        mask_sampling_triton.forward(logits.contiguous(), _contiguous(weights), filled, draw)
        return out, logits.new_empty(0, dtype=torch.float32)
    slope = logits.new_empty(logits.numel() if keep_slope else 0, dtype=torch.float32)
    mask_sampling_torch.forward(logits, weights, out, slope, draw)
    return out, slope


@sample_masks_op.register_fake
def _(  # noqa: PLR0913
    logits: Tensor,
    weights: Tensor | None,
    seed: int,
    offset: int,
    temperature: float,
    squash: bool,
    dtype: torch.dtype,
    backend: str,
    keep_slope: bool,
) -> tuple[Tensor, Tensor]:
    keeps = keep_slope and not choose(logits, weights, dtype, backend or None).is_triton
    kept = logits.numel() if keeps else 0
    return logits.new_empty(logits.shape, dtype=dtype), logits.new_empty(kept, dtype=torch.float32)


@torch.library.custom_op(
    "prunebench::sample_masks_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor logits, Tensor? weights, Tensor slope, {_SETTINGS}, str backend, "
    "bool to_logits, bool to_weights) -> (Tensor, Tensor)",
)
def sample_masks_backward_op(  # noqa: PLR0913 - the operation's signature
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    slope: Tensor,
    seed: int,
    offset: int,
    temperature: float,
    squash: bool,
    backend: str,
    to_logits: bool,
    to_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and weights, each `[P]`, or empty where not asked for."""
    draw = Draw(seed, offset, temperature, squash)
    grads = _empty_gradients(logits, weights, to_logits, to_weights)
    if choose(logits, weights, gradient.dtype, backend or None).is_triton:
        from prunebench_kernels import mask_sampling_triton

        tensors = (gradient.contiguous(), logits.contiguous(), _contiguous(weights))
        mask_sampling_triton.backward(*tensors, *grads, draw)
    else:
        mask_sampling_torch.backward(gradient, logits, weights, slope, *grads, draw)
    return grads


@sample_masks_backward_op.register_fake
def _(  # noqa: PLR0913
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    slope: Tensor,
    seed: int,
    offset: int,
    temperature: float,
    squash: bool,
    backend: str,
    to_logits: bool,
    to_weights: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(logits, weights, to_logits, to_weights)


def _empty_gradients(
    logits: Tensor, weights: Tensor | None, to_logits: bool, to_weights: bool
) -> tuple[Tensor, Tensor]:
    like = logits if weights is None else weights
    return (
        logits.new_empty(logits.numel() if to_logits else 0),
        like.new_empty(like.numel() if to_weights else 0),
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, weights, *ctx.settings, dtype, ctx.backend, _ = inputs
    ctx.is_differentiable = dtype.is_floating_point
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, weights, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, weights, slope = ctx.saved_tensors
    needs = [bool(need) and ctx.is_differentiable for need in ctx.needs_input_grad[:2]]
    made = sample_masks_backward_op(gradient, logits, weights, slope, *ctx.settings, ctx.backend, *needs)
    grads = [grad if need else None for grad, need in zip(made, needs)]
    return *grads, *(None for _ in range(7))


sample_masks_op.register_autograd(_backward, setup_context=_setup_context)
