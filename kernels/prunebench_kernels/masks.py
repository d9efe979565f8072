# mypy: disallow-untyped-defs=False
"""Masks of all layers of a network in one launch a step: drawn from their logits, or given and applied.

`sample_masks`: a seed in, hard 0/1 masks or masked weights out.

    u = ((word >> 8) | 1) / 2^24         Philox4x32-10 of (seed, draw, element), never 0 or 1
    s = sigmoid((g(pi) + log u - log(1 - u)) / temperature),  mask = [s > 1/2]
    g = sigmoid (`squash`, as DCWP's released code has it: keep-probability sigmoid(sigmoid(pi)), in
        (0.5, 0.731)), or the identity (keep-probability sigmoid(pi))
    backward: d mask / d s := 1, d s / d pi = s (1 - s) / temperature [* sigmoid'(pi)]

Both backends make the same masks, bit for bit: s > 1/2 is decided as a exp(g) > 2^24 - a (a = 2^24 u, an
integer) in float32 operations that are exactly rounded. The kernel lets the hardware's exponential decide, except
where it comes within BAND of the border; then the program repeats the decision in the torch path's operations. It is
launched with fused multiply-add off. The random numbers depend on the seed, the number of the draw and the element's
place alone, so the backward pass draws them again: only logits, weights and the draw are kept.

`apply_masks`: product = (weight * mask) in the compute dtype; d weight = mask * G, d mask = weight * G.

Bytes an element (arithmetic): float32 masks from logits 8; bfloat16 masked weights from logits and weights 10;
bfloat16 products of float32 weights and masks 10, their gradient of weights 10, both gradients 18.

Source: Park et al., CVPR 2023, and its released code; Csordas et al., ICLR 2021; Salmon et al., SC 2011.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prunebench_kernels import masks_torch
from prunebench_kernels.dispatch import (
    FLOATS,
    ArgumentError,
    Choice,
    Contest,
    check_device,
    check_finite,
    check_floating,
    check_tensor,
    constexpr,
    explains,
    is_traced,
    jit,
    on_device,
    requested,
    select,
    shape_class,
    tl,
)
from prunebench_kernels.masks_torch import MAX_DRAWS, MAX_ELEMENTS, MAX_SEED, Draw

Form = TypeVar("Form", Tensor, Mapping[str, Tensor])
"""One tensor, or one a layer by its name: results come in the form of the arguments."""

LIMIT = constexpr(masks_torch.LIMIT)
LOG2_E = constexpr(masks_torch.LOG2_E)
ROUND = constexpr(masks_torch.ROUND)
C0, C1, C2, C3, C4 = (constexpr(value) for value in masks_torch.EXP2_COEFFICIENTS)
GRID = constexpr(float(1 << 24))


# --- kernels: sampling ----------------------------------------------------------------------------------------


@jit
def _power_of_two(y):
    """2^y for |y| <= LIMIT log2 e, in the torch path's order of operations."""
    shifted = y + ROUND
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    r = y - (shifted - ROUND)
    series = ((((r * C0 + C1) * r + C2) * r + C3) * r + C4) * r + 1.0
    return (series.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@jit
def _keep_exactly(pi, a, SQUASH: tl.constexpr):
    """The decision u > 1 - sigmoid(g(pi)), as a exp(g) > 2^24 - a, as the torch path rounds it."""
    x = tl.minimum(tl.maximum(pi, -LIMIT), LIMIT)
    if SQUASH:
        x = tl.div_rn(1.0, _power_of_two(x * -LOG2_E) + 1.0)
    return _power_of_two(x * LOG2_E) * a > GRID - a


@jit
def _keep(pi, a, SQUASH: tl.constexpr, BAND: tl.constexpr):
    """The same decision, by the hardware's exponential wherever its error cannot matter."""
    x = tl.minimum(tl.maximum(pi, -LIMIT), LIMIT)
    if SQUASH:
        x = 1.0 / (1.0 + tl.exp(-x))
    margin = tl.exp(x) * a - (GRID - a)
    kept = margin > 0
    at_border = tl.abs(margin) < BAND * (GRID - a)
    if tl.max(at_border.to(tl.int32), 0) > 0:
        kept = _keep_exactly(pi, a, SQUASH)
    return kept


@jit
def _slope(pi, a, scale, SQUASH: tl.constexpr, UNIT: tl.constexpr):
    """d s / d pi for the temperature 1 / `scale`; UNIT: it is 1.

    sigmoid'(x) is e / (1 + e)^2 with e = exp(-|x|), or from the odds p / q: no overflow, no cancellation. Divisions
    cost most here.
    """
    e = tl.exp(-tl.abs(pi))
    inverse = 1.0 / (1.0 + e)
    location = tl.where(pi > 0, inverse, e * inverse) if SQUASH else tl.minimum(tl.maximum(pi, -LIMIT), LIMIT)
    q = GRID - a
    if UNIT:
        p = tl.exp(location) * a
        below = 1.0 / (p + q)
        slope = (p * below) * (q * below)
    else:
        soft = tl.exp(-tl.abs((location + tl.log(a / q)) * scale))
        below = 1.0 / (1.0 + soft)
        slope = soft * below * below * scale
    return slope * (e * inverse * inverse) if SQUASH else slope


@jit
def _numerators(seed_low, seed_high, offset, ON_DEVICE: tl.constexpr, BLOCK: tl.constexpr):
    """a = (word >> 8) | 1 of Philox4x32-10 for the program's BLOCK elements, float32; u = a / 2^24.

    Four elements a counter, so that words meet their elements in registers.
    """
    c0 = (tl.program_id(0) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = c0 * 0
    draw = tl.load(offset).to(tl.uint32) if ON_DEVICE else offset.to(tl.uint32, bitcast=True)
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox_impl(c0, zero + draw, zero, zero, k0, k1)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK])
    return ((words >> 8) | 1).to(tl.int32).to(tl.float32)


@jit
def _load(pointers, bound):
    return tl.load(pointers, mask=bound).to(tl.float32)


@jit
def _sample(  # noqa: PLR0913 - the kernel's arguments
    logits, weights, out, a, bound, SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BAND: tl.constexpr
):
    values = _load(weights, bound) if HAS_WEIGHTS else 1.0
    kept = tl.where(_keep(_load(logits, bound), a, SQUASH, BAND), values, 0.0)
    tl.store(out, kept.to(out.dtype.element_ty), mask=bound)


@jit(do_not_specialize=["numel", "seed_low", "seed_high", "offset"])
def sample_masks_kernel(  # noqa: PLR0913 - pointers, the draw, flags
    logits, weights, out, numel, seed_low, seed_high, offset,
    SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, ON_DEVICE: tl.constexpr, BAND: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Masks, or masked weights. Only the last program checks bounds, so all others vectorise for any `numel`."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    a = _numerators(seed_low, seed_high, offset, ON_DEVICE, BLOCK)
    if first + BLOCK <= numel:
        _sample(logits + at, weights + at, out + at, a, None, SQUASH, HAS_WEIGHTS, BAND)
    else:
        _sample(logits + at, weights + at, out + at, a, at < numel, SQUASH, HAS_WEIGHTS, BAND)


@jit
def _sample_backward(  # noqa: PLR0913 - the kernel's arguments
    gradient, logits, weights, to_logits, to_weights, a, scale, bound,
    SQUASH: tl.constexpr, UNIT: tl.constexpr, HAS_WEIGHTS: tl.constexpr, LOGITS: tl.constexpr,
    WEIGHTS: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    upstream = _load(gradient, bound)
    pi = _load(logits, bound)
    if LOGITS:
        result = upstream * _slope(pi, a, scale, SQUASH, UNIT)
        if HAS_WEIGHTS:
            result = result * _load(weights, bound)
        tl.store(to_logits, result.to(to_logits.dtype.element_ty), mask=bound)
    if WEIGHTS:
        kept = tl.where(_keep(pi, a, SQUASH, BAND), upstream, 0.0)
        tl.store(to_weights, kept.to(to_weights.dtype.element_ty), mask=bound)


@jit(do_not_specialize=["numel", "seed_low", "seed_high", "offset"])
def sample_masks_backward_kernel(  # noqa: PLR0913 - pointers, the draw, flags
    gradient, logits, weights, to_logits, to_weights, numel, seed_low, seed_high, offset, scale,
    SQUASH: tl.constexpr, UNIT: tl.constexpr, HAS_WEIGHTS: tl.constexpr, ON_DEVICE: tl.constexpr,
    LOGITS: tl.constexpr, WEIGHTS: tl.constexpr, BAND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of logits and weights, as the two flags ask."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    a = _numerators(seed_low, seed_high, offset, ON_DEVICE, BLOCK)
    if first + BLOCK <= numel:
        _sample_backward(gradient + at, logits + at, weights + at, to_logits + at, to_weights + at, a,
                         scale, None, SQUASH, UNIT, HAS_WEIGHTS, LOGITS, WEIGHTS, BAND)  # fmt: skip
    else:
        _sample_backward(gradient + at, logits + at, weights + at, to_logits + at, to_weights + at, a,
                         scale, at < numel, SQUASH, UNIT, HAS_WEIGHTS, LOGITS, WEIGHTS, BAND)  # fmt: skip


# --- kernels: application -------------------------------------------------------------------------------------


@jit
def _of_layer(values, first, ends, LAYERS: tl.constexpr):
    """The value of the layer in whose elements `first` lies."""
    found = values[0]
    for layer in tl.static_range(1, LAYERS):
        found = tl.where(first >= ends[layer - 1] >> 1, values[layer], found)
    return found


@jit
def _pointers(addresses, first, ends, at, LAYERS: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to the elements `at` of one layer, whose address counts from the first element of all layers."""
    address = _of_layer(addresses, first, ends, LAYERS).to(tl.int64)
    pointers = address.to(tl.pointer_type(TYPE)) + at
    if ALIGNED:
        pointers = tl.multiple_of(pointers, 16)
    return pointers


@jit
def _apply(weight, mask, out, bound, PRODUCT: tl.constexpr):
    product = (_load(weight, bound) * _load(mask, bound)).to(PRODUCT)
    tl.store(out, product.to(out.dtype.element_ty), mask=bound)


@jit
def apply_masks_kernel(  # noqa: PLR0913 - addresses, types
    weights, masks, ends, out, LAYERS: tl.constexpr, WEIGHT: tl.constexpr, MASK: tl.constexpr,
    PRODUCT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products of all layers, each of which begins with a program; `ends` as in `FlatPlan`."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    end = _of_layer(ends, first, ends, LAYERS) >> 1
    weight = _pointers(weights, first, ends, at, LAYERS, WEIGHT, ALIGNED)
    mask = _pointers(masks, first, ends, at, LAYERS, MASK, ALIGNED)
    if first + BLOCK <= end:
        _apply(weight, mask, out + at, None, PRODUCT)
    else:
        _apply(weight, mask, out + at, at < end, PRODUCT)


@jit
def _apply_backward(  # noqa: PLR0913 - the kernel's arguments
    gradient, weight, mask, to_weight, to_mask, bound,
    TO_WEIGHTS: tl.constexpr, TO_MASKS: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    upstream = tl.load(gradient, mask=bound).to(PRODUCT).to(tl.float32)
    if TO_WEIGHTS:
        result = (upstream * _load(mask, bound)).to(PRODUCT)
        tl.store(to_weight, result.to(to_weight.dtype.element_ty), mask=bound)
    if TO_MASKS:
        result = (upstream * _load(weight, bound)).to(PRODUCT)
        tl.store(to_mask, result.to(to_mask.dtype.element_ty), mask=bound)


@jit
def apply_masks_backward_kernel(  # noqa: PLR0913 - addresses, types
    gradients, weights, masks, ends, to_weights, to_masks,
    LAYERS: tl.constexpr, GRADIENT: tl.constexpr, WEIGHT: tl.constexpr, MASK: tl.constexpr, PRODUCT: tl.constexpr,
    TO_WEIGHTS: tl.constexpr, TO_MASKS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of weights and masks of all layers, as the two flags ask; places as in the forward kernel."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    end = _of_layer(ends, first, ends, LAYERS) >> 1
    gradient = _pointers(gradients, first, ends, at, LAYERS, GRADIENT, ALIGNED)
    weight = _pointers(weights, first, ends, at, LAYERS, WEIGHT, ALIGNED) if TO_MASKS else gradient
    mask = _pointers(masks, first, ends, at, LAYERS, MASK, ALIGNED) if TO_WEIGHTS else gradient
    if first + BLOCK <= end:
        _apply_backward(gradient, weight, mask, to_weights + at, to_masks + at, None,
                        TO_WEIGHTS, TO_MASKS, PRODUCT)  # fmt: skip
    else:
        _apply_backward(gradient, weight, mask, to_weights + at, to_masks + at, at < end,
                        TO_WEIGHTS, TO_MASKS, PRODUCT)  # fmt: skip


# --- launches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """Elements of one program (a power of two), its warps, and the band of exact decisions.

    A band of `float("inf")` makes every decision exact; applying masks decides nothing.
    """

    block: int
    num_warps: int
    band: float = masks_torch.BAND


SAMPLE = Configuration(1024, 4)
APPLY = Configuration(2048, 4)
"""Eight and sixteen elements a thread. On an H100 both forward passes over ResNet-18 take as long as a copy of the same
bytes: 43.9 us and 41.9 us, a copy 42.5 us, L2 flushed (docs/gpu.md). Backward is not measured."""


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits, so that every seed has one kernel signature."""
    return word - (1 << 32) if word >> 31 else word


def _scalars(draw: Draw) -> tuple[int, int, int | Tensor]:
    low, high = draw.key
    offset = draw.offset
    return _signed(low), _signed(high), offset if isinstance(offset, Tensor) else _signed(offset)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def launch_sample(
    logits: Tensor, weights: Tensor | None, out: Tensor, draw: Draw, chosen: Configuration = SAMPLE
) -> None:
    """Fill `out` `[P]` with masks, or with weight * mask where weights are given; all contiguous."""
    with on_device(logits):
        sample_masks_kernel[(-(-logits.numel() // chosen.block),)](
            logits, logits if weights is None else weights, _bytes(out), logits.numel(), *_scalars(draw),
            SQUASH=draw.squash, HAS_WEIGHTS=weights is not None, ON_DEVICE=isinstance(draw.offset, Tensor),
            BAND=chosen.band, BLOCK=chosen.block, num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


def launch_sample_backward(
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    to_logits: Tensor,
    to_weights: Tensor,
    draw: Draw,
    chosen: Configuration = SAMPLE,
) -> None:
    """Fill the gradients (each `[P]`, or empty where not asked for); all contiguous."""
    with on_device(logits):
        sample_masks_backward_kernel[(-(-logits.numel() // chosen.block),)](
            gradient, logits, logits if weights is None else weights, to_logits, to_weights, logits.numel(),
            *_scalars(draw), 1 / draw.temperature, SQUASH=draw.squash, UNIT=draw.temperature == 1,
            HAS_WEIGHTS=weights is not None, ON_DEVICE=isinstance(draw.offset, Tensor), LOGITS=to_logits.numel() > 0,
            WEIGHTS=to_weights.numel() > 0, BAND=chosen.band, BLOCK=chosen.block,
            num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


Layers = Sequence[Tensor]
MOST_LAYERS = 96
"""Of one launch: three addresses and an end of each must fit the 4 KB of a kernel's parameters."""


_shape, _dtype, _device, _requires_grad = map(
    operator.attrgetter, ("shape", "dtype", "device", "requires_grad")
)
try:  # what Inductor's programs call: 0.6 us, where `as_strided` takes 1 us
    _tensor_in = torch._C._dynamo.guards._reinterpret_tensor  # type: ignore[attr-defined]
except AttributeError:
    _tensor_in = torch.as_strided


@dataclass(frozen=True)
class FlatPlan:
    """Layers in one buffer, each from the beginning of a program of `block` elements.

    `ends` holds 2 * end + 1 of each layer: to Triton all odd numbers are alike, where it else compiles once for those
    that 16 divides and once for others. `order` holds the strides of the dimensions that have more than one element,
    which decide where values lie; `is_dense`: no layer leaves gaps or lies over itself.
    """

    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    block: int
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    order: tuple[tuple[int, ...], ...]
    is_dense: bool

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def of(shapes: tuple[tuple[int, ...], ...], strides: tuple[tuple[int, ...], ...], block: int) -> FlatPlan:
        places, end = [], 0
        for shape in shapes:
            start = -(-end // block) * block
            end = start + math.prod(shape)
            places.append((start, 2 * end + 1))
        starts, ends = zip(*places)
        order = tuple(map(_order, shapes, strides))
        is_dense = all(map(_is_dense, shapes, strides))
        return FlatPlan(tuple(map(tuple, shapes)), strides, block, starts, ends, order, is_dense)

    @staticmethod
    def like(layers: Layers, block: int) -> FlatPlan:
        """Every launch asks: for 21 layers the tuples take 4 us, views of a buffer 20."""
        return FlatPlan.of(tuple(map(_shape, layers)), tuple(map(Tensor.stride, layers)), block)

    def holds(self, layers: Layers) -> bool:
        """Whether these layers have the same shapes and lie in the same order."""
        shapes, strides = tuple(map(_shape, layers)), tuple(map(Tensor.stride, layers))
        return shapes == self.shapes and (
            strides == self.strides or tuple(map(_order, shapes, strides)) == self.order
        )

    def at(self, block: int) -> FlatPlan:
        return self if self.block == block else FlatPlan.of(self.shapes, self.strides, block)

    @property
    def elements(self) -> int:
        return self.ends[-1] >> 1

    @property
    def grid(self) -> tuple[int]:
        return (-(-self.elements // self.block),)

    def buffer(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(self.elements, dtype=dtype, device=device)

    def tensors(self, buffer: Tensor) -> list[Tensor]:
        """The layers in a new buffer. Autograd does not see that they share it."""
        return list(map(_tensor_in, itertools.repeat(buffer), self.shapes, self.strides, self.starts))

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The layers in a buffer that others know."""
        if not buffer.is_contiguous():
            raise ArgumentError(f"flat: want a contiguous buffer, got strides {buffer.stride()}")
        first = buffer.storage_offset()
        starts = [start + first for start in self.starts] if first else self.starts
        return list(map(buffer.as_strided, self.shapes, self.strides, starts))

    def addresses(self, layers: Layers) -> tuple[int, ...]:
        """Of each layer, counted back to where element 0 of all layers would lie."""
        size = layers[0].element_size()
        return tuple([at - start * size for at, start in zip(map(Tensor.data_ptr, layers), self.starts)])


def _order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(0 if size == 1 else step for size, step in zip(shape, strides))


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(strides, shape) if size != 1):
        if step != expected:
            return False
        expected *= size
    return True


@functools.cache
def _type(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype; booleans are read as bytes."""
    return getattr(tl, "uint8" if dtype == torch.bool else str(dtype).removeprefix("torch."))


def _are_aligned(*addresses: tuple[int, ...]) -> bool:
    """Whether vectors of 16 bytes may be loaded everywhere."""
    return not functools.reduce(operator.or_, itertools.chain(*addresses)) & 15


def launch_apply(
    weights: Layers,
    masks: Layers,
    dtype: torch.dtype,
    chosen: Configuration = APPLY,
    plan: FlatPlan | None = None,
) -> list[Tensor]:
    """Products of all layers, in one buffer. Weights are dense and of one dtype, as are masks, in the same order."""
    plan = FlatPlan.like(weights, chosen.block) if plan is None else plan.at(chosen.block)
    out = plan.buffer(dtype, weights[0].device)
    addresses = plan.addresses(weights), plan.addresses(masks)
    dtypes = weights[0].dtype, masks[0].dtype
    with on_device(out):
        apply_masks_kernel[plan.grid](
            *addresses, plan.ends, out, LAYERS=len(weights), WEIGHT=_type(dtypes[0]), MASK=_type(dtypes[1]),
            PRODUCT=_type(torch.promote_types(*dtypes)), ALIGNED=_are_aligned(*addresses),
            BLOCK=chosen.block, num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return plan.tensors(out)


def launch_apply_backward(
    gradients: Layers,
    weights: Layers | None,
    masks: Layers | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    chosen: Configuration = APPLY,
    plan: FlatPlan | None = None,
) -> list[list[Tensor] | None]:
    """Gradients of weights, where masks are given, and of masks, where weights are; each in one buffer.

    `dtypes` are those of weights and masks; gradients lie in the same order as they.
    """
    plan = FlatPlan.like(gradients, chosen.block) if plan is None else plan.at(chosen.block)
    of_gradients, device = plan.addresses(gradients), gradients[0].device
    of_weights = of_gradients if weights is None else plan.addresses(weights)
    of_masks = of_gradients if masks is None else plan.addresses(masks)
    to_weights = None if masks is None else plan.buffer(dtypes[0], device)
    to_masks = None if weights is None else plan.buffer(dtypes[1], device)
    with on_device(gradients[0]):
        apply_masks_backward_kernel[plan.grid](
            of_gradients, of_weights, of_masks, plan.ends, to_masks if to_weights is None else to_weights,
            to_weights if to_masks is None else to_masks, LAYERS=len(gradients),
            GRADIENT=_type(gradients[0].dtype), WEIGHT=_type(dtypes[0]), MASK=_type(dtypes[1]),
            PRODUCT=_type(torch.promote_types(*dtypes)), TO_WEIGHTS=to_weights is not None,
            TO_MASKS=to_masks is not None, ALIGNED=_are_aligned(of_gradients, of_weights, of_masks),
            BLOCK=chosen.block, num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return [None if buffer is None else plan.tensors(buffer) for buffer in (to_weights, to_masks)]


# --- choices and checks ---------------------------------------------------------------------------------------

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool)
MASK_DTYPES = (*FLOATS, torch.uint8, torch.bool)


def _narrowest(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """bfloat16 where any is: the interpreter does not take it."""
    return torch.bfloat16 if torch.bfloat16 in dtypes else torch.float32


def _refusal(dtypes: tuple[torch.dtype, ...]) -> str | None:
    refused = [dtype for dtype in dtypes if dtype not in KERNEL_DTYPES]
    return f"the kernel does not take {', '.join(sorted(set(map(str, refused))))}" if refused else None


def _is_traced(tensor: Tensor) -> bool:
    """Whether a compiler or torch.func looks at the call: it is then made of torch's own operations."""
    return is_traced(tensor) or torch._C._are_functorch_transforms_active()


def _check_layers(name: str, layers: Mapping[str, Tensor]) -> None:
    """Raise ArgumentError unless there are layers, all tensors of one dtype on one device."""
    if not layers:
        raise ArgumentError(f"{name}: no layer to mask")
    first_name, first = next(iter(layers.items()))
    for layer, tensor in layers.items():
        check_tensor(f"{name}[{layer!r}]", tensor)
        check_device(f"{name}[{layer!r}]", tensor, f"{name}[{first_name!r}]", first)
        if tensor.dtype != first.dtype:
            raise ArgumentError(f"{name}[{layer!r}]: is {tensor.dtype}, the first layer {first.dtype}")


def _check_pairs(name: str, values: Form, other: str, others: Form) -> None:
    """Raise ArgumentError unless `values` have the form, the shapes and the device of `others`."""
    if isinstance(others, Mapping):
        if not isinstance(values, Mapping) or list(values) != list(others):
            raise ArgumentError(f"{name}: want a mapping with the layers of {other}, in the same order")
        pairs = [(f"{name}[{layer!r}]", values[layer], others[layer]) for layer in others]
    else:
        pairs = [(name, values, others)]
    for at, value, expected in pairs:
        check_device(at, check_tensor(at, value), other, expected)
        if value.shape != expected.shape:
            raise ArgumentError(f"{at}: want shape {tuple(expected.shape)}, got {tuple(value.shape)}")


def _check_size(name: str, elements: int) -> None:
    if not 0 < elements <= MAX_ELEMENTS:
        raise ArgumentError(f"{name}: want 1 to {MAX_ELEMENTS} elements, got {elements}")


# --- sampling -------------------------------------------------------------------------------------------------

CERTAIN = "one launch, 8 to 14 bytes an element, against over 150 launches of torch over all elements"
"""Philox alone is 100 operations on 64-bit integers in torch: the kernel wins on a GPU at every size."""
_DRAW = "Tensor? counter, SymInt seed, SymInt offset, float temperature, bool squash"


def _choose_sampling(
    logits: Tensor, weights: Tensor | None, dtype: torch.dtype, backend: str | None
) -> Choice:
    """The backend for an output of `dtype`. Raises ArgumentError on an unknown name."""
    dtypes = logits.dtype, dtype, logits.dtype if weights is None else weights.dtype
    refusal, narrowest = _refusal(dtypes), _narrowest(dtypes)
    return select("sample_masks", backend, logits.device, narrowest, refusal=refusal, certain=CERTAIN)


def _draw_of(counter: Tensor | None, seed: int, offset: int, temperature: float, squash: bool) -> Draw:
    return Draw(seed, offset if counter is None else counter, temperature, squash)


def _sampled(logits: Tensor, weights: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    """Masks or masked weights `[P]`, and what the torch path keeps: d out / d pi (float32 `[P]`, else empty)."""
    *draw, dtype, backend, _ = settings
    if logits.device.type == "cpu":
        check_finite("logits", torch.stack(torch.aminmax(logits)))  # a tenth of the time of all values
    out, slope = _empty_samples(logits, weights, *settings)
    if _choose_sampling(logits, weights, dtype, backend or None).is_triton:
        launch_sample(logits.contiguous(), _contiguous(weights), out, _draw_of(*draw))
    else:
        masks_torch.forward(logits, weights, out, slope, _draw_of(*draw))
    return out, slope


def _empty_samples(logits: Tensor, weights: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, dtype, backend, keep_slope = settings
    keeps = keep_slope and not _choose_sampling(logits, weights, dtype, backend or None).is_triton
    kept = logits.numel() if keeps else 0
    return logits.new_empty(logits.shape, dtype=dtype), logits.new_empty(kept, dtype=torch.float32)


def _sampled_gradients(
    gradient: Tensor, logits: Tensor, weights: Tensor | None, slope: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and weights, each `[P]`, or empty where not asked for."""
    *draw, backend, _, _ = settings
    grads = _empty_gradients(gradient, logits, weights, slope, *settings)
    if _choose_sampling(logits, weights, gradient.dtype, backend or None).is_triton:
        tensors = gradient.contiguous(), logits.contiguous(), _contiguous(weights)
        launch_sample_backward(*tensors, *grads, _draw_of(*draw))
    else:
        masks_torch.backward(gradient, logits, weights, slope, *grads, _draw_of(*draw))
    return grads


def _empty_gradients(
    gradient: Tensor, logits: Tensor, weights: Tensor | None, slope: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    *_, to_logits, to_weights = settings
    like = logits if weights is None else weights
    sizes = logits.numel() if to_logits else 0, like.numel() if to_weights else 0
    return logits.new_empty(sizes[0]), like.new_empty(sizes[1])


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _keep_sample(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, weights, counter, *ctx.settings, dtype, ctx.backend, _ = inputs
    ctx.is_differentiable = dtype.is_floating_point
    ctx.mark_non_differentiable(*output[1 if ctx.is_differentiable else 0 :])
    ctx.save_for_backward(logits, weights, output[1], counter)


def _sample_gradients(run: Callable[..., Any], ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    needs = [bool(need) and ctx.is_differentiable for need in ctx.needs_input_grad[:2]]
    made = run(gradient, *ctx.saved_tensors, *ctx.settings, ctx.backend, *needs)
    return *(grad if need else None for grad, need in zip(made, needs)), *(None for _ in range(8))


class _Sample(torch.autograd.Function):
    """Eager torch calls the functions behind the operators at once: see `is_traced`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _sampled(*inputs)
        _keep_sample(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _sample_gradients(_sampled_gradients, ctx, gradients[0])


sample_masks_op = torch.library.custom_op(
    "prunebench::sample_masks",
    _sampled,
    mutates_args=(),
    schema=f"(Tensor logits, Tensor? weights, {_DRAW}, ScalarType dtype, str backend, bool keep_slope) "
    "-> (Tensor, Tensor)",
)
sample_masks_backward_op = torch.library.custom_op(
    "prunebench::sample_masks_backward",
    _sampled_gradients,
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor logits, Tensor? weights, Tensor slope, {_DRAW}, str backend, "
    "bool to_logits, bool to_weights) -> (Tensor, Tensor)",
)
sample_masks_op.register_fake(_empty_samples)
sample_masks_backward_op.register_fake(_empty_gradients)
sample_masks_op.register_autograd(
    lambda ctx, gradient, _: _sample_gradients(sample_masks_backward_op, ctx, gradient),
    setup_context=_keep_sample,
)


def sample_masks(  # noqa: PLR0913 - one call serves masks and masked weights
    logits: Form,
    *,
    seed: int,
    offset: int | Tensor = 0,
    temperature: float = 1.0,
    squash: bool = True,
    weights: Form | None = None,
    mask_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Form:
    """Draw number `offset` (0 ... 2^32 - 1) of hard masks under `seed` (0 ... 2^63 - 1), for all layers at once.

    logits: one tensor of any shape (numbered in row-major order; a flat `[P]` buffer that the layers view
    costs nothing), or a mapping layer -> tensor, which is copied into one buffer, layer after layer. The result
    has the same form: masks in `mask_dtype` (default: the logits'; a float dtype carries straight-through
    gradients, uint8 and bool none), or, with `weights` of the same form, weight * mask in `weight_dtype`
    (default: the weights'), differentiable in logits (weight * gradient * d s / d pi) and weights (mask *
    gradient). The decision is made in float32 whatever the dtype of the logits, and |pi| >= 17 without `squash`
    is certain.

    `offset` may be an int64 tensor of one element on the logits' device, of which the low 32 bits count. It is
    read where the masks are drawn, so that a captured CUDA graph that adds to it draws new masks at every replay.
    The backward pass reads it again: add to it after that, or give a clone.

    Raises ArgumentError on an empty, misshapen or misplaced argument, and, on a CPU, on logits that are not
    finite and an offset out of range (on a GPU that look would make every call wait).
    """
    draw = _checked_draw(seed, offset, temperature, squash)
    flat, flat_weights, dtype = _checked_sampling(logits, weights, mask_dtype, weight_dtype)
    if draw[0] is not None:
        check_device("offset", draw[0], "logits", flat)
    keeps = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (flat, flat_weights)
    )
    run = sample_masks_op if is_traced(flat) else _Sample.apply if keeps else _sampled
    made, _ = run(flat, flat_weights, *draw, dtype, backend or "", keeps)
    if not isinstance(logits, Mapping):
        return made.view(logits.shape)
    pieces = torch.split(made, [values.numel() for values in logits.values()])
    return {name: piece.view(logits[name].shape) for name, piece in zip(logits, pieces)}


@explains("sample_masks")
def _explain_sample_masks(  # noqa: PLR0913 - the operation's signature
    logits: Form,
    *,
    seed: int,
    offset: int | Tensor = 0,
    temperature: float = 1.0,
    squash: bool = True,
    weights: Form | None = None,
    mask_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Choice:
    _checked_draw(seed, offset, temperature, squash)
    return _choose_sampling(*_checked_sampling(logits, weights, mask_dtype, weight_dtype), backend)


def _checked_draw(
    seed: int, offset: int | Tensor, temperature: float, squash: bool
) -> tuple[Tensor | None, int, int, float, bool]:
    """The draw as the operator takes it."""
    if not 0 <= seed < MAX_SEED:
        raise ArgumentError(f"seed: want 0 to 2^63 - 1, got {seed}")
    if not 0 < temperature < math.inf:
        raise ArgumentError(f"temperature: must be positive and finite, got {temperature}")
    if not isinstance(offset, Tensor):
        if not 0 <= offset < MAX_DRAWS:
            raise ArgumentError(f"offset: want 0 to 2^32 - 1, got {offset}")
        return None, seed, offset, temperature, squash
    if offset.dtype != torch.int64 or offset.numel() != 1:
        raise ArgumentError(f"offset: want an int or one int64, got {tuple(offset.shape)} of {offset.dtype}")
    if offset.device.type == "cpu" and not is_traced(offset) and not 0 <= int(offset) < MAX_DRAWS:
        raise ArgumentError(f"offset: want 0 to 2^32 - 1, got {int(offset)}")
    return offset, seed, 0, temperature, squash


def _checked_sampling(
    logits: Form,
    weights: Form | None,
    mask_dtype: torch.dtype | None,
    weight_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Logits and weights as `[P]`, and the dtype of the output."""
    flat = _flattened("logits", logits)
    if weights is None:
        if weight_dtype is not None:
            raise ArgumentError("weight_dtype: is for masked weights; give weights as well")
        chosen = mask_dtype or flat.dtype
        if chosen not in MASK_DTYPES:
            raise ArgumentError(f"mask_dtype: want a floating dtype, uint8 or bool, got {chosen}")
        return flat, None, chosen
    _check_pairs("weights", weights, "logits", logits)
    flat_weights = _flattened("weights", weights)
    if mask_dtype is not None:
        raise ArgumentError("mask_dtype: is for masks; with weights the output has weight_dtype")
    chosen = weight_dtype or flat_weights.dtype
    if chosen not in FLOATS:
        raise ArgumentError(f"weight_dtype: want a floating dtype of 16 to 64 bits, got {chosen}")
    return flat, flat_weights, chosen


def _flattened(name: str, value: Form) -> Tensor:
    """All elements as `[P]`, checked."""
    if isinstance(value, Mapping):
        _check_layers(name, value)
        flat = torch.cat([tensor.reshape(-1) for tensor in value.values()])
    else:
        flat = check_tensor(name, value).reshape(-1)
    check_floating(name, flat)
    _check_size(name, flat.numel())
    return flat


# --- application ----------------------------------------------------------------------------------------------


def _products(
    weights: Layers, masks: Layers, dtype: torch.dtype, by_kernel: bool, plan: FlatPlan | None = None
) -> Layers:
    """weight * mask in `dtype`, with the weights' strides."""
    if by_kernel:
        return launch_apply(weights, masks, dtype, plan=plan)
    return _cast(torch._foreach_mul(list(weights), list(masks)), dtype)


def _gradients(
    upstream: Layers,
    weights: Layers | None,
    masks: Layers | None,
    dtypes: tuple[torch.dtype, torch.dtype],
    by_kernel: bool,
    plan: FlatPlan | None = None,
) -> Sequence[Layers | None]:
    """mask * G for the weights, where masks are given, and weight * G for the masks, where weights are."""
    if by_kernel:
        return launch_apply_backward(upstream, weights, masks, dtypes, plan=plan)
    cast = list(_cast(upstream, torch.promote_types(*dtypes)))
    return [
        None if factors is None else _cast(torch._foreach_mul(cast, list(factors)), dtype)
        for factors, dtype in zip((masks, weights), dtypes)
    ]


def _cast(tensors: Layers, dtype: torch.dtype) -> Layers:
    if tensors[0].dtype == dtype:
        return tensors
    made = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(made, list(tensors))
    return made


class _Apply(torch.autograd.Function):
    """All layers at once: one node, which waits for the gradients of all products.

    `masks` are given as a list where they want no gradient, so that autograd does not look at each of them.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: FlatPlan, dtype: torch.dtype, by_kernel: bool, masks: Layers | None, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        weights, learned = layers[: len(plan.shapes)], layers[len(plan.shapes) :]
        ctx.settings = plan, dtype, by_kernel
        ctx.needs = any(ctx.needs_input_grad[4 : 4 + len(weights)]), masks is None
        ctx.masks = None if masks is None else (masks, _versions(masks))
        masks = learned if masks is None else masks
        ctx.dtypes = weights[0].dtype, masks[0].dtype
        ctx.set_materialize_grads(False)
        if learned:
            ctx.save_for_backward(*(learned if ctx.needs[0] else ()), *weights)
        return tuple(_products(weights, masks, dtype, by_kernel, plan))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        (plan, dtype, by_kernel), kept, count = ctx.settings, ctx.saved_tensors, len(gradients)
        upstream = _in_order_of(plan, gradients, dtype)
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        if ctx.masks is not None and _versions(ctx.masks[0]) != ctx.masks[1]:
            raise RuntimeError(
                "masks were changed in place before the backward pass; give apply_masks a clone"
            )
        masks = None if not ctx.needs[0] else kept[:count] if ctx.masks is None else ctx.masks[0]
        weights = kept[-count:] if ctx.needs[1] else None
        by_kernel &= not torch.is_grad_enabled()  # asked for a graph of gradients, torch makes one
        made = [
            grads or (None,) * count
            for grads in _gradients(upstream, weights, masks, ctx.dtypes, by_kernel, plan)
        ]
        return None, None, None, None, *made[0], *(made[1] if ctx.masks is None else ())


def _versions(tensors: Layers) -> list[int]:
    return [tensor._version for tensor in tensors]


def _in_order_of(plan: FlatPlan, gradients: Sequence[Tensor | None], dtype: torch.dtype) -> Layers | None:
    """Gradients in the order in which the layers lie, copied if they lie otherwise; zeros for those missing.

    None without any gradient.
    """
    given = [gradient for gradient in gradients if gradient is not None]
    if not given:
        return None
    if len(given) < len(gradients):
        given = [
            torch.zeros(shape, dtype=dtype, device=given[0].device) if gradient is None else gradient
            for gradient, shape in zip(gradients, plan.shapes)
        ]
    return given if plan.holds(given) else list(map(_strided_as, given, plan.strides))


def _strided_as(value: Tensor, strides: tuple[int, ...]) -> Tensor:
    """`value`, copied if its elements do not lie as those of a tensor with these strides."""
    if _order(value.shape, value.stride()) == _order(value.shape, strides):
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def _apply_flat(weights: Tensor, masks: Tensor, dtype: torch.dtype) -> Tensor:
    return _products([weights], [masks], dtype, _takes_flat(weights, masks, dtype))[0]


def _apply_flat_backward(
    gradient: Tensor, weights: Tensor, masks: Tensor, to_weights: bool, to_masks: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and masks, or empty where not asked for."""
    dtypes, by_kernel = (weights.dtype, masks.dtype), _takes_flat(weights, masks, gradient.dtype)
    given = [weights] if to_masks else None, [masks] if to_weights else None
    made = _gradients([gradient.contiguous()], *given, dtypes, by_kernel)
    pairs = zip((weights, masks), made)
    first, second = (like.new_empty(0) if grads is None else grads[0] for like, grads in pairs)
    return first, second


def _takes_flat(weights: Tensor, masks: Tensor, dtype: torch.dtype) -> bool:
    dtypes = weights.dtype, masks.dtype, dtype
    refusal, narrowest = _refusal(dtypes), _narrowest(dtypes)
    return select("apply_masks", "triton", weights.device, narrowest, refusal=refusal).is_triton


apply_masks_op = torch.library.custom_op(
    "prunebench::apply_masks",
    _apply_flat,
    mutates_args=(),
    schema="(Tensor weights, Tensor masks, ScalarType dtype) -> Tensor",
)
"""Flat buffers, where a compiler looks on and the kernel was asked for; torch computes what it does not take."""
apply_masks_backward_op = torch.library.custom_op(
    "prunebench::apply_masks_backward",
    _apply_flat_backward,
    mutates_args=(),
    schema="(Tensor gradient, Tensor weights, Tensor masks, bool to_weights, bool to_masks) -> (Tensor, Tensor)",
)


@apply_masks_op.register_fake
def _(weights: Tensor, masks: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(weights, dtype=dtype)


@apply_masks_backward_op.register_fake
def _(
    gradient: Tensor, weights: Tensor, masks: Tensor, to_weights: bool, to_masks: bool
) -> tuple[Tensor, Tensor]:
    sizes = weights.numel() if to_weights else 0, masks.numel() if to_masks else 0
    return weights.new_empty(sizes[0]), masks.new_empty(sizes[1])


def _flat_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    made = apply_masks_backward_op(gradient, *ctx.saved_tensors, *needs)
    return *(grad if need else None for grad, need in zip(made, needs)), None


apply_masks_op.register_autograd(
    _flat_gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2])
)


def _choose_application(
    weights: Layers,
    masks: Layers,
    dtype: torch.dtype,
    backend: str | None,
    needs: tuple[bool, bool],
    elements: int,
) -> Choice:
    dtypes = weights[0].dtype, masks[0].dtype, dtype
    return select(
        "apply_masks",
        backend,
        weights[0].device,
        _narrowest(dtypes),
        refusal=_refusal(dtypes),
        contest=Contest(
            (*shape_class(elements, len(weights)), *dtypes, *needs),
            lambda: _candidates(weights[:MOST_LAYERS], masks[:MOST_LAYERS], dtype, needs),
        ),
    )


def _candidates(
    weights: Layers, masks: Layers, dtype: torch.dtype, needs: tuple[bool, bool]
) -> dict[str, Callable[[], object]]:
    """A step of each implementation as autograd runs it."""
    plan, gradients = (
        FlatPlan.like(weights, APPLY.block),
        [torch.ones_like(one, dtype=dtype) for one in weights],
    )
    of_weights, of_masks = (
        [tensor.detach().requires_grad_(need) for tensor in tensors]
        for tensors, need in zip((weights, masks), needs)
    )
    leaves = [*(of_weights if needs[0] else ()), *(of_masks if needs[1] else ())]

    def step(by_kernel: bool) -> object:
        with torch.enable_grad():
            made = _run(of_weights, of_masks, dtype, by_kernel, needs, plan)
            return torch.autograd.grad(made, leaves, gradients) if leaves else made

    return {"torch": lambda: step(False), "triton": lambda: step(True)}


def _run(
    weights: Layers,
    masks: Layers,
    dtype: torch.dtype,
    by_kernel: bool,
    needs: tuple[bool, bool],
    plan: FlatPlan,
) -> Layers:
    if needs[1]:
        return _Apply.apply(plan, dtype, by_kernel, None, *weights, *masks)
    if needs[0]:
        return _Apply.apply(plan, dtype, by_kernel, masks, *weights)
    return _products(weights, masks, dtype, by_kernel, plan)


def apply_masks(
    weights: Form, masks: Form, *, dtype: torch.dtype | None = None, backend: str | None = None
) -> Form:
    """weight * mask of all layers at once: to be made once a step, and used by all that computes with the weights.

    weights: one tensor (a flat `[P]` buffer that the layers view, say), or a mapping layer -> tensor. masks: of the
    same form and shapes, in a floating dtype, uint8 or bool. The result has that form too, in `dtype` (default: the
    weights'; under autocast its dtype is the caller's to give), with the shape and the memory format of each weight:
    bit for bit (weight * mask).to(dtype). Differentiable in weights (mask * gradient) and floating masks (weight *
    gradient).

    The kernel takes up to 96 layers in one launch forward and one backward, and the layers stay where they are. A
    mask that lies in another order than its weight (NCHW beside channels_last) is copied at every call, as is a
    gradient that comes in another order.

    Raises ArgumentError on an empty, misshapen or misplaced argument.
    """
    of_weights, of_masks, chosen, plan = _checked_application(weights, masks, dtype)
    if plan is None:
        made = _traced_products(of_weights, of_masks, chosen, backend)
    else:
        needs = _needs(of_weights, of_masks)
        by_kernel = _choose_application(of_weights, of_masks, chosen, backend, needs, plan.elements).is_triton
        if len(of_weights) <= MOST_LAYERS:
            made = _run(of_weights, of_masks, chosen, by_kernel, needs, plan)
        else:
            made = []
            for at in range(0, len(of_weights), MOST_LAYERS):
                part = of_weights[at : at + MOST_LAYERS], of_masks[at : at + MOST_LAYERS]
                made += _run(*part, chosen, by_kernel, needs, FlatPlan.like(part[0], APPLY.block))
    return dict(zip(weights, made)) if isinstance(weights, Mapping) else made[0]


@explains("apply_masks")
def _explain_apply_masks(
    weights: Form, masks: Form, *, dtype: torch.dtype | None = None, backend: str | None = None
) -> Choice:
    of_weights, of_masks, chosen, _ = _checked_application(weights, masks, dtype)
    elements = sum([weight.numel() for weight in of_weights])
    return _choose_application(of_weights, of_masks, chosen, backend, _needs(of_weights, of_masks), elements)


def _needs(weights: Layers, masks: Layers) -> tuple[bool, bool]:
    """Whether gradients of weights and of masks will be asked for."""
    if not torch.is_grad_enabled():
        return False, False
    return any(map(_requires_grad, weights)), any(map(_requires_grad, masks))


def _checked_application(
    weights: Form, masks: Form, dtype: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor], torch.dtype, FlatPlan | None]:
    """Weights and masks as lists, in one order and dense; the dtype of the products, and where they lie.

    No plan where a compiler looks on. What names the layers in errors would take as long as all else: it is asked
    only if something differs at first sight.
    """
    by_layer = isinstance(weights, Mapping)
    of_weights: list[Tensor] = list(weights.values()) if isinstance(weights, Mapping) else [weights]
    of_masks: list[Tensor] = list(masks.values()) if isinstance(masks, Mapping) else [masks]
    traced = any(isinstance(one, Tensor) and _is_traced(one) for one in (*of_weights[:1], *of_masks[:1]))
    same_form = by_layer == isinstance(masks, Mapping) and (not by_layer or list(weights) == list(masks))
    plan = _plan_if_alike(of_weights, of_masks) if same_form and not traced else None
    if plan is None:
        if isinstance(weights, Mapping):
            _check_layers("weights", weights)
        else:
            check_tensor("weights", weights)
        _check_pairs("masks", masks, "weights", weights)
        if isinstance(masks, Mapping):
            _check_layers("masks", masks)
    check_floating("weights", of_weights[0])
    if of_masks[0].dtype not in MASK_DTYPES:
        raise ArgumentError(f"masks: want a floating dtype, uint8 or bool, got {of_masks[0].dtype}")
    chosen = of_weights[0].dtype if dtype is None else dtype
    if chosen not in FLOATS:
        raise ArgumentError(f"dtype: want a floating dtype of 16 to 64 bits, got {chosen}")
    _check_size("weights", plan.elements if plan else sum([weight.numel() for weight in of_weights]))
    if plan is None and not traced:
        of_weights = [
            one if _is_dense(one.shape, one.stride()) else torch.empty_like(one).copy_(one)
            for one in of_weights
        ]
        plan = FlatPlan.like(of_weights, APPLY.block)
        of_masks = list(map(_strided_as, of_masks, plan.strides))
    return of_weights, of_masks, chosen, plan


def _plan_if_alike(weights: list[Any], masks: list[Any]) -> FlatPlan | None:
    """The plan, if weights are dense and of one dtype, masks too and in the same order, all on one device."""
    try:
        plan = FlatPlan.like(weights, APPLY.block)
        alike = (
            plan.is_dense
            and plan.holds(masks)
            and len(set(map(_dtype, weights))) == len(set(map(_dtype, masks))) == 1
            and len(set(map(_device, weights + masks))) == 1
        )
    except (AttributeError, TypeError, ValueError):  # no tensors, or no layers
        return None
    return plan if alike else None


def _traced_products(
    weights: Layers, masks: Layers, dtype: torch.dtype, backend: str | None
) -> Sequence[Tensor]:
    """What a compiler sees: torch's product, which it fuses, or, if asked for, the kernel on copies of all layers."""
    if requested(backend) != "triton" or torch._C._are_functorch_transforms_active():
        return [(weight * mask).to(dtype) for weight, mask in zip(weights, masks)]
    flat = [torch.cat(list(map(_values, layers, weights))) for layers in (weights, masks)]
    return layer_views(apply_masks_op(flat[0], flat[1], dtype), weights)


# --- layers in one buffer -------------------------------------------------------------------------------------


def layer_views(flat: Tensor, like: Layers) -> list[Tensor]:
    """Views of a buffer `[P]` that holds layer after layer, each with the shape and the strides of one of `like`.

    To autograd they are one node, whose backward pass is one copy of all gradients into a buffer: P elements read
    and written, where views by `split`, `view` and `permute` are up to three nodes a layer that end in the same copy.
    `like` are dense, in any order (channels_last).
    """
    if _is_traced(flat):
        return list(map(_shaped, flat.split([one.numel() for one in like]), like))
    plan = FlatPlan.like(like, 1)
    if torch.is_grad_enabled() and flat.requires_grad:
        return list(_Views.apply(plan, flat))
    return plan.views(flat)


class _Views(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: FlatPlan, flat: Tensor) -> tuple[Tensor, ...]:
        ctx.plan, ctx.dtype = plan, flat.dtype
        ctx.set_materialize_grads(False)
        return tuple(plan.views(flat))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, Tensor | None]:
        pieces = _in_order_of(ctx.plan, gradients, ctx.dtype)
        if pieces is None:
            return None, None
        return None, torch.cat([piece.as_strided((piece.numel(),), (1,)) for piece in pieces])


def _dimensions(like: Tensor) -> list[int]:
    """Dimensions from the one with the largest stride to the one that lies closest."""
    return sorted(range(like.ndim), key=lambda dimension: -like.stride()[dimension])


def _shaped(piece: Tensor, like: Tensor) -> Tensor:
    """A contiguous `[P]` piece with the shape and the strides of `like`, by views that compilers take."""
    order = _dimensions(like)
    return piece.view([like.shape[at] for at in order]).permute([order.index(at) for at in range(like.ndim)])


def _values(layer: Tensor, like: Tensor) -> Tensor:
    """The values `[P]` in the order in which those of `like` lie."""
    return layer.permute(_dimensions(like)).reshape(-1)
