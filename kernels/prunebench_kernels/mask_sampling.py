"""Masks of all layers from their logits in one call: a seed in, hard 0/1 masks or masked weights out.

    u = ((word >> 8) | 1) / 2^24         Philox4x32-10 of (seed, draw, element), never 0 or 1
    s = sigmoid((g(pi) + log u - log(1 - u)) / temperature),  mask = [s > 1/2]
    g = sigmoid (`squash`, as DCWP's released code has it: keep-probability sigmoid(sigmoid(pi)), in
        (0.5, 0.731)), or the identity (keep-probability sigmoid(pi))
    backward: d mask / d s := 1, d s / d pi = s (1 - s) / temperature [* sigmoid'(pi)]

Both backends make the same masks, bit for bit: s > 1/2 is decided as a exp(g) > 2^24 - a (a = 2^24 u, an
integer) in float32 operations that are exactly rounded. The random numbers depend on the seed, the number of
the draw and the element's place alone, so the backward pass draws them again.

Source: Park et al., CVPR 2023, and its released code; Csordas et al., ICLR 2021; Salmon et al., SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import overload

import torch
from torch import Tensor

from prunebench_kernels.backend import Choice, explains
from prunebench_kernels.checks import check_device, check_floating, check_tensor
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.mask_sampling_operator import choose, sample_masks_op
from prunebench_kernels.mask_sampling_rule import MAX_DRAWS, MAX_ELEMENTS, MAX_SEED, Draw

MASK_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool)


@overload
def sample_masks(
    logits: Tensor,
    *,
    seed: int,
    offset: int = ...,
    temperature: float = ...,
    squash: bool = ...,
    weights: Tensor | None = ...,
    mask_dtype: torch.dtype | None = ...,
    weight_dtype: torch.dtype | None = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def sample_masks(
    logits: Mapping[str, Tensor],
    *,
    seed: int,
    offset: int = ...,
    temperature: float = ...,
    squash: bool = ...,
    weights: Mapping[str, Tensor] | None = ...,
    mask_dtype: torch.dtype | None = ...,
    weight_dtype: torch.dtype | None = ...,
    backend: str | None = ...,
) -> dict[str, Tensor]: ...


def sample_masks(  # noqa: PLR0913 - one call serves masks and masked weights
    logits: Tensor | Mapping[str, Tensor],
    *,
    seed: int,
    offset: int = 0,
    temperature: float = 1.0,
    squash: bool = True,
    weights: Tensor | Mapping[str, Tensor] | None = None,
    mask_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor | dict[str, Tensor]:
    """Draw number `offset` (0 ... 2^32 - 1) of hard masks under `seed` (0 ... 2^63 - 1), for all layers at once.

    logits: one tensor of any shape (numbered in row-major order; a flat `[P]` buffer that the layers view
    costs nothing), or a mapping layer -> tensor, which is copied into one buffer, layer after layer. The result
    has the same form: masks in `mask_dtype` (default: the logits'; a float dtype carries straight-through
    gradients, uint8 and bool none), or, with `weights` of the same form, weight * mask in `weight_dtype`
    (default: the weights'), differentiable in logits (weight * gradient * d s / d pi) and weights (mask *
    gradient). The decision is made in float32 whatever the dtype of the logits, and |pi| >= 17 without `squash`
    is certain.

    Raises ArgumentError on an empty, misshapen or misplaced argument, and, on a CPU, on logits that are not
    finite (on a GPU that look would make every call wait).
    """
    layers = logits if isinstance(logits, Mapping) else None
    flat, flat_weights = _flattened("logits", logits), _flattened_weights(weights, logits)
    draw = _checked_draw(seed, offset, temperature, squash)
    dtype = _output_dtype(flat, flat_weights, mask_dtype, weight_dtype)
    keeps = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (flat, flat_weights)
    )
    made, _ = sample_masks_op(
        flat,
        flat_weights,
        draw.seed,
        draw.offset,
        draw.temperature,
        draw.squash,
        dtype,
        backend or "",
        keeps,
    )
    if layers is None:
        return made.view(logits.shape)  # type: ignore[union-attr]
    split = torch.split(made, [values.numel() for values in layers.values()])
    return {name: piece.view(layers[name].shape) for name, piece in zip(layers, split)}


@explains("sample_masks")
def _explain_sample_masks(  # noqa: PLR0913 - the operation's signature
    logits: Tensor | Mapping[str, Tensor],
    *,
    seed: int,
    offset: int = 0,
    temperature: float = 1.0,
    squash: bool = True,
    weights: Tensor | Mapping[str, Tensor] | None = None,
    mask_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Choice:
    flat, flat_weights = _flattened("logits", logits), _flattened_weights(weights, logits)
    _checked_draw(seed, offset, temperature, squash)
    dtype = _output_dtype(flat, flat_weights, mask_dtype, weight_dtype)
    return choose(flat, flat_weights, dtype, backend)


def _flattened(name: str, value: Tensor | Mapping[str, Tensor]) -> Tensor:
    """All elements as `[P]`, checked."""
    if isinstance(value, Mapping):
        if not value:
            raise ArgumentError(f"{name}: no layer to sample masks for")
        first_name, first = next(iter(value.items()))
        for layer, tensor in value.items():
            check_tensor(f"{name}[{layer!r}]", tensor)
            check_device(f"{name}[{layer!r}]", tensor, f"{name}[{first_name!r}]", first)
            if tensor.dtype != first.dtype:
                raise ArgumentError(f"{name}[{layer!r}]: is {tensor.dtype}, the first layer {first.dtype}")
        flat = torch.cat([tensor.reshape(-1) for tensor in value.values()])
    else:
        flat = check_tensor(name, value).reshape(-1)
    check_floating(name, flat)
    if not 0 < flat.numel() <= MAX_ELEMENTS:
        raise ArgumentError(f"{name}: want 1 to {MAX_ELEMENTS} elements, got {flat.numel()}")
    return flat


def _flattened_weights(
    weights: Tensor | Mapping[str, Tensor] | None, logits: Tensor | Mapping[str, Tensor]
) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(logits, Mapping):
        if not isinstance(weights, Mapping) or list(weights) != list(logits):
            raise ArgumentError("weights: want a mapping with the layers of logits, in the same order")
        pairs = [(f"weights[{name!r}]", weights[name], logits[name]) for name in logits]
    else:
        pairs = [("weights", weights, logits)]  # type: ignore[list-item]
    for name, weight, values in pairs:
        check_device(name, check_tensor(name, weight), "logits", values)
        if weight.shape != values.shape:
            raise ArgumentError(f"{name}: want shape {tuple(values.shape)}, got {tuple(weight.shape)}")
    return _flattened("weights", weights)


def _checked_draw(seed: int, offset: int, temperature: float, squash: bool) -> Draw:
    if not 0 <= seed < MAX_SEED:
        raise ArgumentError(f"seed: want 0 to 2^63 - 1, got {seed}")
    if not 0 <= offset < MAX_DRAWS:
        raise ArgumentError(f"offset: want 0 to 2^32 - 1, got {offset}")
    if not 0 < temperature < math.inf:
        raise ArgumentError(f"temperature: must be positive and finite, got {temperature}")
    return Draw(seed, offset, temperature, squash)


def _output_dtype(
    logits: Tensor, weights: Tensor | None, mask_dtype: torch.dtype | None, weight_dtype: torch.dtype | None
) -> torch.dtype:
    if weights is None:
        if weight_dtype is not None:
            raise ArgumentError("weight_dtype: is for masked weights; give weights as well")
        chosen = mask_dtype or logits.dtype
        if chosen not in MASK_DTYPES:
            raise ArgumentError(f"mask_dtype: want a floating dtype, uint8 or bool, got {chosen}")
        return chosen
    if mask_dtype is not None:
        raise ArgumentError("mask_dtype: is for masks; with weights the output has weight_dtype")
    chosen = weight_dtype or weights.dtype
    if not chosen.is_floating_point or chosen not in MASK_DTYPES:
        raise ArgumentError(f"weight_dtype: want a floating dtype of 16 to 64 bits, got {chosen}")
    return chosen
