# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Given masks applied to the weights of all layers of a network, in one launch a step; layers as views of a buffer.

product = (weight * mask) in the compute dtype; d weight = mask * G, d mask = weight * G.

Bytes an element (arithmetic): bfloat16 products of float32 weights and masks 10, their gradient of weights 10, both
gradients 18.
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

from prunebench_kernels.dispatch import (
    FLOATS,
    ArgumentError,
    Choice,
    Contest,
    check_device,
    check_floating,
    check_tensor,
    explains,
    is_traced,
    jit,
    on_device,
    requested,
    select,
    shape_class,
    tl,
)

Form = TypeVar("Form", Tensor, Mapping[str, Tensor])
"""One tensor, or one a layer by its name: results come in the form of the arguments."""
MAX_ELEMENTS = 1 << 33
"""Four elements a counter of the random numbers, counted in a signed 32-bit integer."""


# --- kernels --------------------------------------------------------------------------------------------------


@jit
def load(pointers, bound):
    return tl.load(pointers, mask=bound).to(tl.float32)


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
    product = (load(weight, bound) * load(mask, bound)).to(PRODUCT)
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
        result = (upstream * load(mask, bound)).to(PRODUCT)
        tl.store(to_weight, result.to(to_weight.dtype.element_ty), mask=bound)
    if TO_MASKS:
        result = (upstream * load(weight, bound)).to(PRODUCT)
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
    """Elements of one program (a power of two), its warps, and for sampling the band of exact decisions.

    Within this relative distance of the border a mask's decision is made again, in exactly rounded operations: `inf`
    makes all of them exact. Elsewhere the hardware's exponential decides. The two differ by less than 5e-6: ex2.approx
    errs by 2^-22, its argument's rounding by 1e-6 at |x| = 17, div.full by 2 ulp, the polynomial by 1e-6. One element
    in 130,000 lies in the band.
    """

    block: int
    num_warps: int
    band: float = 2.0**-16


SAMPLE = Configuration(1024, 4)
APPLY = Configuration(2048, 4)
"""Eight and sixteen elements a thread. On an H100 both forward passes over ResNet-18 take as long as a copy of the same
bytes: 43.9 us and 41.9 us, a copy 42.5 us, L2 flushed (docs/gpu.md). Backward is not measured."""


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


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
    weights: Layers, masks: Layers, dtype: torch.dtype, chosen: Configuration = APPLY,
    plan: FlatPlan | None = None,
) -> list[Tensor]:  # fmt: skip
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
    gradients: Layers, weights: Layers | None, masks: Layers | None,
    dtypes: tuple[torch.dtype, torch.dtype], chosen: Configuration = APPLY, plan: FlatPlan | None = None,
) -> list[list[Tensor] | None]:  # fmt: skip
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


def narrowest(dtypes: tuple[torch.dtype, ...]) -> torch.dtype:
    """bfloat16 where any is: the interpreter does not take it."""
    return torch.bfloat16 if torch.bfloat16 in dtypes else torch.float32


def refusal_of(dtypes: tuple[torch.dtype, ...]) -> str | None:
    refused = [dtype for dtype in dtypes if dtype not in KERNEL_DTYPES]
    return f"the kernel does not take {', '.join(sorted(set(map(str, refused))))}" if refused else None


def _is_traced(tensor: Tensor) -> bool:
    """Whether a compiler or torch.func looks at the call: it is then made of torch's own operations."""
    return is_traced(tensor) or torch._C._are_functorch_transforms_active()


def check_layers(name: str, layers: Mapping[str, Tensor]) -> None:
    """Raise ArgumentError unless there are layers, all tensors of one dtype on one device."""
    if not layers:
        raise ArgumentError(f"{name}: no layer to mask")
    first_name, first = next(iter(layers.items()))
    for layer, tensor in layers.items():
        check_tensor(f"{name}[{layer!r}]", tensor)
        check_device(f"{name}[{layer!r}]", tensor, f"{name}[{first_name!r}]", first)
        if tensor.dtype != first.dtype:
            raise ArgumentError(f"{name}[{layer!r}]: is {tensor.dtype}, the first layer {first.dtype}")


def check_pairs(name: str, values: Form, other: str, others: Form) -> None:
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


def check_size(name: str, elements: int) -> None:
    if not 0 < elements <= MAX_ELEMENTS:
        raise ArgumentError(f"{name}: want 1 to {MAX_ELEMENTS} elements, got {elements}")


# --- application ----------------------------------------------------------------------------------------------


def _products(
    weights: Layers, masks: Layers, dtype: torch.dtype, by_kernel: bool, plan: FlatPlan | None = None
) -> Layers:
    """weight * mask in `dtype`, with the weights' strides."""
    if by_kernel:
        return launch_apply(weights, masks, dtype, plan=plan)
    return _cast(torch._foreach_mul(list(weights), list(masks)), dtype)


def _gradients(
    upstream: Layers, weights: Layers | None, masks: Layers | None, dtypes: tuple[torch.dtype, torch.dtype],
    by_kernel: bool, plan: FlatPlan | None = None,
) -> Sequence[Layers | None]:  # fmt: skip
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
        given = [gradient is not None for gradient in gradients]
        made = [
            [grad if used else None for grad, used in zip(grads, given)] if grads else (None,) * count
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


def _choose_application(
    weights: Layers, masks: Layers, dtype: torch.dtype, backend: str | None, needs: tuple[bool, bool],
    elements: int,
) -> Choice:  # fmt: skip
    dtypes = weights[0].dtype, masks[0].dtype, dtype
    return select(
        "apply_masks",
        backend,
        weights[0].device,
        narrowest(dtypes),
        refusal=refusal_of(dtypes),
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
    weights: Layers, masks: Layers, dtype: torch.dtype, by_kernel: bool, needs: tuple[bool, bool],
    plan: FlatPlan,
) -> Layers:  # fmt: skip
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
    gradient that comes in another order. Under a compiler or torch.func it is torch's products, which are fused.

    Raises ArgumentError on an empty, misshapen or misplaced argument.
    """
    of_weights, of_masks, chosen, plan = _checked_application(weights, masks, dtype)
    if plan is None:
        requested(backend)
        made = [(weight * mask).to(chosen) for weight, mask in zip(of_weights, of_masks)]
    else:
        needs = _needs(of_weights, of_masks)
        by_kernel = _choose_application(of_weights, of_masks, chosen, backend, needs, plan.elements).is_triton
        made = []
        for at in range(0, len(of_weights), MOST_LAYERS):
            part = of_weights[at : at + MOST_LAYERS], of_masks[at : at + MOST_LAYERS]
            own = plan if len(of_weights) <= MOST_LAYERS else FlatPlan.like(part[0], APPLY.block)
            made += _run(*part, chosen, by_kernel, needs, own)
    return dict(zip(weights, made)) if isinstance(weights, Mapping) else made[0]


@explains("apply_masks")
def _explain(weights, masks, *, dtype=None, backend=None) -> Choice:
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
            check_layers("weights", weights)
        else:
            check_tensor("weights", weights)
        check_pairs("masks", masks, "weights", weights)
        if isinstance(masks, Mapping):
            check_layers("masks", masks)
    check_floating("weights", of_weights[0])
    if of_masks[0].dtype not in MASK_DTYPES:
        raise ArgumentError(f"masks: want a floating dtype, uint8 or bool, got {of_masks[0].dtype}")
    chosen = of_weights[0].dtype if dtype is None else dtype
    if chosen not in FLOATS:
        raise ArgumentError(f"dtype: want a floating dtype of 16 to 64 bits, got {chosen}")
    check_size("weights", plan.elements if plan else sum([weight.numel() for weight in of_weights]))
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


def _shaped(piece: Tensor, like: Tensor) -> Tensor:
    """A contiguous `[P]` piece with the shape and the strides of `like`, by views that compilers take."""
    order = sorted(range(like.ndim), key=lambda dimension: -like.stride()[dimension])
    return piece.view([like.shape[at] for at in order]).permute([order.index(at) for at in range(like.ndim)])
