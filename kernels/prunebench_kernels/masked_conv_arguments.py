"""Checks of a masked convolution's arguments, and what they settle: dtype, stride, padding, dilation, groups."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prunebench_kernels.checks import check_device, check_floating, check_tensor
from prunebench_kernels.errors import ArgumentError
from prunebench_kernels.masked_conv_geometry import autocast_enabled

Pair = int | tuple[int, int]


class Facts(NamedTuple):
    """What the checks look at of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, name: str, value: object) -> Facts:
        tensor = check_tensor(name, value)
        return cls(tensor.shape, tensor.dtype, tensor.device)


class Settled(NamedTuple):
    """The convolution's numbers, and the zeros to add to x first, below and to the right."""

    numbers: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
    below: int = 0
    right: int = 0


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or any(isinstance(entry, bool) or not isinstance(entry, int) for entry in pair):
        raise ArgumentError(f"{name}: want an integer or a pair of integers, got {value!r}")
    if min(pair) < least:
        raise ArgumentError(f"{name}: want at least {least}, got {value!r}")
    return pair


def _check_tensors(x: Facts, weight: Facts, mask: Facts, bias: Facts | None, groups: int) -> None:
    tensors: dict[str, Any] = {"x": x, "weight": weight, "mask": mask}  # as far as the checks look at them
    if bias is not None:
        tensors["bias"] = bias
    for name, value in tensors.items():
        if name != "bias" and len(value.shape) != 4:
            raise ArgumentError(f"{name}: want 4 dimensions, got shape {tuple(value.shape)}")
        check_device(name, value, "x", tensors["x"])
        if name != "mask" or mask.dtype not in (torch.bool, torch.uint8):
            check_floating(name, value)
    if mask.shape != weight.shape:
        raise ArgumentError(f"mask: shape {tuple(mask.shape)} differs from weight's {tuple(weight.shape)}")
    if 0 in x.shape or 0 in weight.shape:
        name = "x" if 0 in x.shape else "weight"
        raise ArgumentError(f"{name}: is empty, shape {tuple(tensors[name].shape)}")
    if not isinstance(groups, int) or groups < 1 or x.shape[1] % groups or weight.shape[0] % groups:
        raise ArgumentError(
            f"groups: {groups} must divide x's {x.shape[1]} channels and weight's {weight.shape[0]} outputs"
        )
    if weight.shape[1] * groups != x.shape[1]:
        raise ArgumentError(
            f"weight: takes {weight.shape[1]} x {groups} channels, x has {x.shape[1]} (shape {tuple(x.shape)})"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ArgumentError(f"bias: want shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def _check_dtypes(x: Facts, weight: Facts, bias: Facts | None) -> None:
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.dtype != x.dtype:
            raise ArgumentError(
                f"{name}: is {value.dtype}, x is {x.dtype}; only under torch.autocast may they differ"
            )


def _settle(  # noqa: PLR0913 - the signature of conv2d
    x: Facts,
    weight: Facts,
    mask: Facts,
    bias: Facts | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    is_cast: bool,
) -> Settled:
    """Check the arguments; `is_cast`: autocast brings the dtypes together."""
    _check_tensors(x, weight, mask, bias, groups)
    if not is_cast:
        _check_dtypes(x, weight, bias)
    steps, gaps = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    spans = [gap * (size - 1) for gap, size in zip(gaps, weight.shape[2:])]
    if padding == "same":
        if steps != (1, 1):
            raise ArgumentError(f"padding: same needs stride 1, got {steps}")
        # As in torch, the odd zero goes below and to the right.
        return Settled((steps, (spans[0] // 2, spans[1] // 2), gaps, groups), spans[0] % 2, spans[1] % 2)
    if isinstance(padding, str) and padding != "valid":
        raise ArgumentError(f"padding: want same, valid, an integer or a pair of integers, got {padding!r}")
    pads = (0, 0) if padding == "valid" else _pair("padding", padding, 0)
    for extent, pad, span in zip(x.shape[2:], pads, spans):
        if extent + 2 * pad < span + 1:
            raise ArgumentError(
                f"weight: the dilated kernel spans {span + 1} pixels, the padded input {extent + 2 * pad}"
            )
    return Settled((steps, pads, gaps, groups))


# The checks cost 5 us, in cold caches many times that; a training loop repeats its shapes.
_settle_once = functools.lru_cache(maxsize=4096)(_settle)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def prepared(  # noqa: PLR0913 - the signature of conv2d
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> tuple[Tensor, tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]]:
    """x as the convolution takes it (cast under autocast), and stride, padding, dilation and groups."""
    facts = (Facts.of("x", x), Facts.of("weight", weight), Facts.of("mask", mask))
    shift = None if bias is None else Facts.of("bias", bias)
    is_cast = autocast_enabled(x.device) and x.dtype != torch.float64
    settings = (_hashable(stride), _hashable(padding), _hashable(dilation), groups, is_cast)
    settle = _settle if torch.compiler.is_compiling() else _settle_once
    try:
        settled = settle(*facts, shift, *settings)
    except TypeError:  # without a hash: the checks say what is wrong
        settled = _settle(*facts, shift, *settings)
    if is_cast:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if settled.below or settled.right:
        x = functional.pad(x, (0, settled.right, 0, settled.below))
    return x, settled.numbers
