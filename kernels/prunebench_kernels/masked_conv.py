"""Convolution with a masked weight, for training: y = conv2d(x, weight * mask), skipping blocks known to be empty.

Straight-through gradients: with G the gradient of the product weight * mask,
    d weight = mask * G,    d mask = weight * G (the dense gradient, also where the mask is zero).

Without more, this is the formula in torch: nothing costs less on the host, and the product is kept for the backward
pass. Given a `BlockPattern`, which lists the blocks (output channels x tap x input channels) that hold a weight, Triton
kernels may run each of the three parts and visit only those: forward y, dgrad dx, wgrad G. They are implicit matrix
products in channels_last on tensor cores: one program of forward and dgrad takes a block of channels x a tile of
pixels and walks its list of blocks; one of wgrad takes a block x a share of the pixels, and the shares are added in
order, without atomics. dgrad of stride (sh, sw) splits dx into sh * sw classes by row and column: each reads dy
without gaps, through its own taps.
"""

# mypy: disable-error-code="no-untyped-def, no-redef"
from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prunebench_kernels.dispatch import (
    ArgumentError,
    Choice,
    Contest,
    Launch,
    LayoutError,
    check_device,
    check_floating,
    check_tensor,
    explains,
    is_traced,
    jit,
    limits,
    requested,
    select,
    shape_class,
    tl,
)
from prunebench_kernels.layouts import LARGEST_KERNEL, Pair, pairs

PARTS = ("forward", "dgrad", "wgrad")
SPARSE_ENOUGH = 0.8
"""`MaskedConv2d.set_mask` makes a pattern if at most this share of the blocks holds a weight.

Arithmetic, not measured: beyond it a kernel would have to reach the library's rate.
"""


# --- the operation -------------------------------------------------------------------------------------------


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
    pattern: BlockPattern | None = None,
    backend: str | None = None,
) -> Tensor:
    """conv2d(x, weight * mask) + bias: x `[N, C, H, W]`, weight and mask `[K, C / groups, R, S]`, bias `[K]`.

    The mask is bool, uint8 or float (any values). y has x's dtype, and the memory format that torch gives it. float32
    multiplies in TF32 where torch lets convolutions do so (`torch.backends.cudnn.allow_tf32`): a layer keeps its
    precision and its speed when it gets a mask. Under autocast x is cast and weight, mask and bias may stay
    float32; elsewhere the dtypes of x, weight and bias must agree. Values are not checked for being finite (it would
    synchronise).

    `pattern` is the mask's: `BlockPattern.of(mask, stride, padding, dilation)`. Blocks that it calls empty must be
    zero in the mask: where kernels run they are skipped unseen. d mask, if asked for, is dense all the same. With a
    pattern, second derivatives and the transforms of torch.func (grad, vmap) raise RuntimeError.

    Raises ArgumentError for a mask or a pattern that does not fit and for dtypes that differ; what else does not make
    a convolution, torch itself refuses.
    """
    x = _prepared(x, weight, mask)
    if backend is not None:
        requested(backend)
    if pattern is None or groups != 1:
        return functional.conv2d(x, _product(weight, mask, x), bias, stride, padding, dilation, groups)
    _check_pattern(pattern, x, weight, mask, bias, stride, padding, dilation)
    if is_traced(x):
        return _operator(x, weight, mask, bias, pattern.handle, backend or "")
    return _Masked.apply(x, weight, mask, bias, pattern, backend)


class _Masked(torch.autograd.Function):
    """A convolution with a pattern: the registered operator without its dispatch, which costs more than launches."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y, product = _run_forward(*inputs)
        _setup_context(ctx, inputs, y)
        ctx.save_for_backward(*inputs[:3], product)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = _run_backward(grad, *ctx.saved_tensors, *ctx.settings, ctx.needs_input_grad)  # type: ignore[call-arg]
        return _spread(ctx, made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, bias, pattern, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings, ctx.bias_dtype = (pattern, backend), None if bias is None else bias.dtype


def _spread(ctx: Any, made: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients of all inputs."""
    *others, dbias = made
    return *others, dbias if dbias is None else dbias.to(ctx.bias_dtype), None, None


def _run_forward(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, pattern: BlockPattern, backend: str | None
) -> tuple[Tensor, Tensor]:
    """y, and the product that it was made with: dense, or packed by blocks."""
    if _choose("forward", x, weight, mask, pattern, backend).is_triton:
        product = launch_pack(weight, mask, pattern, x.dtype)
        return launch_forward(x, product, pattern, bias), product
    product = _product(weight, mask, x)
    shift = None if bias is None else bias.to(x.dtype)
    return functional.conv2d(x, product, shift, *pattern.numbers), product


def _run_backward(  # noqa: PLR0913 - the tensors of a convolution
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, product: Tensor | None, pattern: BlockPattern,
    backend: str | None, needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of x, weight, mask and bias, None for those not needed; that of bias in grad's dtype.

    The product, dense or packed, is made anew where it was not kept.
    """
    need_x, need_weight, need_mask, need_bias = needed[:4]
    dx = dweight = dmask = None
    if need_x and _choose("dgrad", x, weight, mask, pattern, backend).is_triton:
        if product is None:
            product = launch_pack(weight, mask, pattern, x.dtype)
        dx = launch_dgrad(grad, product, pattern, x.shape)
    # The gradient of the mask is dense.
    if need_weight and not need_mask and _choose("wgrad", x, weight, mask, pattern, backend).is_triton:
        dweight = launch_wgrad(grad, x, mask, pattern, weight)
    wanted = [need_x and dx is None, need_mask or (need_weight and dweight is None), need_bias]
    if not any(wanted[:2]):
        return dx, dweight, None, grad.sum((0, 2, 3)) if need_bias else None
    if product is None or product.dim() == 3:
        product = _product(weight, mask, x)
    from_library, gradient, dbias = _library_backward(grad, x, product, pattern, wanted)
    if wanted[1] and need_weight:
        dweight = _scaled(gradient, mask, weight)
    if need_mask:
        dmask = _scaled(gradient, weight, mask)
    return from_library if wanted[0] else dx, dweight, dmask, dbias


def _library_backward(
    grad: Tensor, x: Tensor, product: Tensor, pattern: BlockPattern, wanted: list[bool]
) -> tuple[Any, Any, Any]:
    """dx, G and dbias, those that are wanted."""
    shift = [product.shape[0]] if wanted[2] else None
    *pairs, groups = pattern.numbers
    return torch.ops.aten.convolution_backward(grad, x, product, shift, *pairs, False, (0, 0), groups, wanted)


def _product(weight: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """weight * mask in x's dtype, channels_last where x is: the library would copy it otherwise."""
    product = weight * mask
    if is_channels_last(x) and not product.is_contiguous(memory_format=torch.channels_last):
        return product.to(x.dtype, memory_format=torch.channels_last)
    return product if product.dtype == x.dtype else product.to(x.dtype)


def _scaled(gradient: Tensor, factor: Tensor, like: Tensor) -> Tensor:
    """gradient * factor with `like`'s dtype and strides."""
    return torch.mul(gradient, factor, out=torch.empty_like(like))


def is_channels_last(x: Tensor) -> bool:
    """Whether torch takes x for channels_last: by the order of its strides, which a slice of channels keeps."""
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    least, sizes, strides = 0, x.shape, x.stride()
    for axis in (1, 3, 2, 0):  # c10/core/MemoryFormat.h, is_channels_last_strides_2d_s4
        if strides[axis] < least or (axis == 0 and least == strides[1]) or strides[1] == 0:
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return True


# --- the choice ----------------------------------------------------------------------------------------------


def _choose(
    part: str, x: Tensor, weight: Tensor, mask: Tensor, pattern: BlockPattern, backend: str | None
) -> Choice:
    """What runs `part` of a call with a pattern. Remembered with the pattern: choosing costs more than launching."""
    asked = requested(backend)
    at = (part, asked, x.shape, x.stride(), x.dtype, weight.dtype, mask.dtype)
    known = pattern.cache.get(at)
    if known is None:
        key = (
            *shape_class(x.shape[0]), *x.shape[1:], *pattern.shape, *itertools.chain(*pattern.numbers[:3]),
            str(x.dtype), str(weight.dtype), str(mask.dtype), *pattern.block,
            -(-10 * pattern.alive // pattern.slots.numel()),
        )  # fmt: skip
        known = select(
            f"masked_conv2d.{part}",
            asked,
            x.device,
            x.dtype,
            refusal=_refusal(x, weight, mask, pattern),
            contest=Contest(key, functools.partial(_contenders, part, x, weight, mask, pattern)),
        )
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):  # there it may not be measured yet
            pattern.cache[at] = known
    return known


def _contenders(
    part: str, x: Tensor, weight: Tensor, mask: Tensor, pattern: BlockPattern
) -> Mapping[str, Callable[[], object]]:
    """Both implementations of a part, as it calls them."""
    if part == "forward":
        return {
            "torch": lambda: functional.conv2d(x, _product(weight, mask, x), None, *pattern.numbers),
            "triton": lambda: launch_forward(x, launch_pack(weight, mask, pattern, x.dtype), pattern),
        }
    grad = _last(torch.zeros(pattern.output(x.shape), dtype=x.dtype, device=x.device))
    dense, packed = _product(weight, mask, x), launch_pack(weight, mask, pattern, x.dtype)
    if part == "dgrad":
        return {
            "torch": lambda: _library_backward(grad, x, dense, pattern, [True, False, False])[0],
            "triton": lambda: launch_dgrad(grad, packed, pattern, x.shape),
        }
    only_weight = [False, True, False]
    return {
        "torch": lambda: _scaled(_library_backward(grad, x, dense, pattern, only_weight)[1], mask, weight),
        "triton": lambda: launch_wgrad(grad, x, mask, pattern, weight),
    }


def _refusal(x: Tensor, weight: Tensor, mask: Tensor, pattern: BlockPattern) -> str | None:
    """Why the block kernels do not take the call, or None."""
    if torch.float64 in (x.dtype, weight.dtype, mask.dtype):
        return "the kernels accumulate in float32; float64 runs in torch"
    if not x.is_contiguous(memory_format=torch.channels_last) and not is_channels_last(x):
        return "the block kernels need x in channels_last"
    if max(pattern.shape[2:]) > LARGEST_KERNEL or max(pattern.blocks) > 0xFFFF:
        return f"the block kernels number {LARGEST_KERNEL} taps an axis and 65535 blocks of channels"
    if pattern.stride[0] * pattern.stride[1] > 0xFFFF:
        return "the classes of a stride are a grid dimension of the kernels, at most 65535"
    y_shape = pattern.output(x.shape)
    pixels = max(x.shape[2] * x.shape[3], y_shape[2] * y_shape[3])
    if max(x.shape[0] * pixels, weight.numel(), pixels * max(pattern.shape[:2])) >= 2**31 - 2**16:
        return "the block kernels number pixels, weights and the elements of an image in 32 bits"
    return None


@explains("masked_conv2d")
def _explain(  # noqa: PLR0913 - the signature of conv2d
    x, weight, mask, bias=None, stride=1, padding=0, dilation=1, groups=1, *, pattern=None, backend=None
) -> Choice:
    x = _prepared(x, weight, mask)
    requested(backend)
    if pattern is None:
        return Choice(
            "torch", "no pattern of empty blocks is given: the library convolves with weight * mask"
        )
    if groups != 1:
        return Choice("torch", f"the block kernels take one group, this convolution has {groups}")
    _check_pattern(pattern, x, weight, mask, bias, stride, padding, dilation)
    made = {part: _choose(part, x, weight, mask, pattern, backend) for part in PARTS}
    if len(set(made.values())) == 1:
        return made["forward"]
    reason = "; ".join(f"{part} {choice.backend}: {choice.reason}" for part, choice in made.items())
    return Choice("triton" if any(choice.is_triton for choice in made.values()) else "torch", reason)


# --- arguments -----------------------------------------------------------------------------------------------


def _prepared(x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """x as the convolution takes it, cast under autocast; checks what the product would broadcast or cast silently."""
    for name, tensor in (("x", x), ("weight", weight), ("mask", mask)):
        check_tensor(name, tensor)
    if mask.shape != weight.shape:
        raise ArgumentError(f"mask: shape {tuple(mask.shape)} differs from weight's {tuple(weight.shape)}")
    if mask.dtype not in (torch.bool, torch.uint8):
        check_floating("mask", mask)
    # torch refuses the question for meta tensors.
    if not x.is_meta and x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    if x.dtype != weight.dtype:
        raise ArgumentError(
            f"weight: is {weight.dtype}, x is {x.dtype}; only under torch.autocast may they differ"
        )
    return x


def _check_pattern(
    pattern: BlockPattern, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *numbers: Any
) -> None:
    """Raise ArgumentError unless the pattern is of such a weight and convolution, and x and bias fit it.

    `numbers` are stride, padding and dilation. What fitted is remembered: a training loop repeats it.
    """
    of_bias = None if bias is None else (bias.shape, bias.dtype, bias.device)
    at = ("fits", x.shape, x.device, weight.shape, weight.device, mask.device, of_bias, repr(numbers))
    is_eager = not torch.compiler.is_compiling()
    if is_eager and at in pattern.cache:
        return
    if pattern.shape != tuple(weight.shape):
        raise ArgumentError(f"pattern: is of a mask {pattern.shape}, weight has shape {tuple(weight.shape)}")
    given = pairs(pattern.shape[2:], *numbers)
    if (pattern.stride, pattern.padding, pattern.dilation) != given:
        raise ArgumentError(
            f"pattern: is of stride {pattern.stride}, padding {pattern.padding}, dilation {pattern.dilation}; the "
            f"convolution has {', '.join(map(str, given))}: make it with BlockPattern.of(mask, stride, "
            "padding, dilation)"
        )
    if x.dim() != 4 or x.shape[1] != pattern.shape[1] or min(pattern.output(x.shape)) < 1:
        raise ArgumentError(
            f"x: a pattern of a mask {pattern.shape} does not take the shape {tuple(x.shape)}"
        )
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ArgumentError(f"bias: want shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, tensor in (("x", x), ("mask", mask), ("bias", bias), ("pattern", pattern.codes)):
        if tensor is not None:
            check_device(name, tensor, "weight", weight)
    if is_eager:
        pattern.cache[at] = True


# --- the pattern ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BlockPattern:
    """The blocks of a masked weight `[K, C, R, S]` that hold a weight, in the orders in which kernels walk them.

    A block is `block[0]` output channels x `block[1]` input channels of one tap. Slots number the `alive` blocks by
    output block, tap and input block. A code packs a block's input block (16 bits), tap row and column (8 bits each)
    and output block (from bit 32); a back code its output block, taps, and slot.
    """

    shape: tuple[int, int, int, int]
    block: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    alive: int
    slots: Tensor
    """int32 `[output blocks, R, S, input blocks]`: the slot, -1 for an empty block."""
    starts: Tensor
    """int32 `[output blocks + 1]`: where each output block's codes start."""
    codes: Tensor
    """int64 `[alive]`, in the order of the slots."""
    back_starts: Tensor
    """int32 `[classes * input blocks + 1]`: where the back codes of each class and input block start."""
    back_codes: Tensor
    """int64 `[alive]`."""
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """Choices and launches, by what decides them."""
    handle: int = field(default=0, init=False, repr=False)
    """The pattern's number in this process: what a traced call names it by."""

    @classmethod
    def of(
        cls,
        mask: Tensor,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        *,
        block: tuple[int, int] = (64, 64),
    ) -> BlockPattern:
        """The pattern of the mask's non-zeros, on its device, for convolutions of these numbers. Synchronises a GPU.

        Raises ArgumentError unless the mask has four dimensions and the block's sides are 16, 32, 64 or 128, and for a
        padding `same` that is not symmetric.
        """
        if check_tensor("mask", mask).dim() != 4 or 0 in mask.shape:
            raise ArgumentError(f"mask: want shape [K, C, R, S], none zero, got {tuple(mask.shape)}")
        if len(block) != 2 or not {16, 32, 64, 128}.issuperset(block):
            raise ArgumentError(f"block: want two of 16, 32, 64 and 128, got {block!r}")
        steps, pads, gaps = pairs(mask.shape[2:], stride, padding, dilation)
        if min(steps + gaps) < 1 or min(pads) < 0:
            raise ArgumentError(
                f"stride, padding, dilation: want at least 1, 0, 1, got {steps}, {pads}, {gaps}"
            )
        outputs, inputs, height, width = mask.shape
        blocks = -(-outputs // block[0]), -(-inputs // block[1])
        extra = (0, blocks[1] * block[1] - inputs, 0, blocks[0] * block[0] - outputs)
        padded = functional.pad((mask.detach() != 0).permute(2, 3, 0, 1), extra)
        tiles = padded.reshape(height, width, blocks[0], block[0], blocks[1], block[1]).any(5).any(3)
        found = tiles.permute(2, 0, 1, 3).contiguous()
        k, r, s, c = found.nonzero(as_tuple=True)
        slot = torch.arange(len(k), device=mask.device)
        slots = torch.full(found.shape, -1, dtype=torch.int32, device=mask.device)
        slots[k, r, s, c] = slot.int()
        # A row of dx, i * stride + phase, is read through the taps that hit it.
        phase_h, phase_w = (
            (tap * gap - pad) % step for tap, gap, pad, step in zip((r, s), gaps, pads, steps)
        )
        group = (phase_h * steps[1] + phase_w) * blocks[1] + c
        order = group.sort(stable=True).indices
        taps = r << 16 | s << 24
        shape = outputs, inputs, height, width
        places = slots, _starts(k, blocks[0]), k << 32 | taps | c
        back = _starts(group, steps[0] * steps[1] * blocks[1]), (slot << 32 | taps | k)[order]
        return cls(shape, (block[0], block[1]), steps, pads, gaps, len(k), *places, *back)

    def __post_init__(self) -> None:
        object.__setattr__(self, "handle", next(_handles))
        _by_handle[self.handle] = self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("cache", "handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, cache={})
        self.__post_init__()

    @property
    def blocks(self) -> tuple[int, int]:
        """Numbers of output and of input blocks."""
        return self.slots.shape[0], self.slots.shape[3]

    @property
    def numbers(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """Stride, padding, dilation, and the one group."""
        return self.stride, self.padding, self.dilation, 1

    @property
    def density(self) -> float:
        """The share of blocks that hold a weight."""
        return self.alive / self.slots.numel()

    def output(self, x_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """The shape of y, of x's."""
        numbers = zip(x_shape[2:], self.shape[2:], self.stride, self.padding, self.dilation)
        height, width = (
            (extent + 2 * pad - gap * (size - 1) - 1) // step + 1 for extent, size, step, pad, gap in numbers
        )
        return x_shape[0], self.shape[0], height, width


_handles = itertools.count(1)
_by_handle: weakref.WeakValueDictionary[int, BlockPattern] = weakref.WeakValueDictionary()


def _starts(groups: Tensor, number: int) -> Tensor:
    """Where each group starts among groups in order, and the end of the last."""
    return functional.pad(torch.bincount(groups, minlength=number).cumsum(0), (1, 0)).int()


# --- the module ----------------------------------------------------------------------------------------------


class MaskedConv2d(nn.Conv2d):
    """A convolution whose weight is multiplied by the buffer `mask`, ones at first.

    The mask may be any tensor of the weight's shape, also one that requires a gradient, e.g.
    `torch.func.functional_call(net, {"conv1.mask": mask}, (x,))`. Where it stays as it is, set it with `set_mask`:
    empty blocks are then skipped. `backend` is that of `masked_conv2d`.
    """

    mask: Tensor

    def __init__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_mode != "zeros":
            raise ArgumentError(f"padding_mode: want zeros, got {self.padding_mode!r}")
        self.backend = backend
        self.register_buffer("mask", torch.ones_like(self.weight))
        self._pattern: tuple[Tensor, int, BlockPattern] | None = None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, backend: str | None = None) -> MaskedConv2d:
        """A masked layer that shares `conv`'s parameters. Draws no random numbers."""
        numbers = (
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
        )
        sizes = conv.in_channels, conv.out_channels, conv.kernel_size
        made = cls(*sizes, *numbers, device="meta", backend=backend)
        made.weight, made.bias, made.mask = conv.weight, conv.bias, torch.ones_like(conv.weight.detach())
        return made.train(conv.training)

    def set_mask(self, mask: Tensor, *, block: tuple[int, int] = (64, 64)) -> BlockPattern | None:
        """Set the mask, and make its pattern if enough blocks are empty, which is returned. Synchronises a GPU.

        A mask that is changed later, in place or by a state that is loaded, goes without: set it again. Code that
        torch.compile made does not see a change in place.
        """
        if check_tensor("mask", mask).shape != self.weight.shape:
            raise ArgumentError(
                f"mask: shape {tuple(mask.shape)} differs from weight's {tuple(self.weight.shape)}"
            )
        self.mask, self._pattern = mask.detach(), None
        with contextlib.suppress(LayoutError):  # a padding that is not symmetric goes without
            made = BlockPattern.of(mask, self.stride, self.padding, self.dilation, block=block)  # type: ignore[arg-type]
            if self.groups == 1 and made.density <= SPARSE_ENOUGH:
                self._pattern = (self.mask, self.mask._version, made)
        return self.pattern

    @property
    def pattern(self) -> BlockPattern | None:
        """The pattern of the mask as it is, if `set_mask` made one."""
        if self._pattern is None:
            return None
        mask, version, made = self._pattern
        is_unchanged = torch.compiler.is_compiling() or mask._version == version
        return made if mask is self.mask and is_unchanged else None

    def _load_from_state_dict(self, *args: Any) -> None:
        self._pattern = None
        super()._load_from_state_dict(*args)

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.stride, self.padding, self.dilation, self.groups
        product = self.weight, self.mask, self.bias
        return masked_conv2d(x, *product, *numbers, pattern=self.pattern, backend=self.backend)  # type: ignore[arg-type]


# --- kernels -------------------------------------------------------------------------------------------------


@jit
def _shift(
    tap, phase, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BACK: tl.constexpr
):
    """Where tap `tap` reads along one axis, relative to the output pixel's place in its class."""
    if BACK:
        return (phase + PADDING - tap * DILATION) // STRIDE  # exact for the taps of the class
    else:
        return tap * DILATION - PADDING


@jit
def _taps_outside(  # noqa: PLR0913 - constants of the call
    place, phase,
    EXTENT: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """One integer a pixel: bit t is set where tap t of this axis leaves the image."""
    bits = place * 0
    for tap in tl.static_range(KERNEL):
        at = place + _shift(tap, phase, STRIDE, PADDING, DILATION, BACK)
        bits |= ((at < 0) | (at >= EXTENT)).to(tl.int32) << tap
    return bits


@jit(do_not_specialize=["batch"])
def block_conv_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    x, product, starts, codes, bias, y, batch,
    ROW_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, X_SIZE: tl.constexpr, Y_SIZE: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BACK: tl.constexpr,
    PACKED: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, PIXELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y `[N, H, W, ROW_CHANNELS]` of x `[N, H, W, CHANNELS]`; BACK: dx of dy.

    product is dense, `[K, R, S, C]`, or PACKED, `[slots, out, in]`. ROWS and DEPTH: the block's sides of y and x.
    """
    row_blocks: tl.constexpr = (ROW_CHANNELS + ROWS - 1) // ROWS
    X_HEIGHT: tl.constexpr = X_SIZE[0]
    X_WIDTH: tl.constexpr = X_SIZE[1]
    Y_HEIGHT: tl.constexpr = Y_SIZE[0]
    Y_WIDTH: tl.constexpr = Y_SIZE[1]
    KERNEL_H: tl.constexpr = KERNEL[0]
    KERNEL_W: tl.constexpr = KERNEL[1]
    STRIDE_H: tl.constexpr = STRIDE[0]
    STRIDE_W: tl.constexpr = STRIDE[1]
    # Programs of one tile of pixels stand side by side: they read the same input.
    block = tl.program_id(0) % row_blocks
    pixel = tl.program_id(0) // row_blocks * PIXELS + tl.arange(0, PIXELS)
    # Rows i * STRIDE + phase of y form a class, back; forward all are one, of x's rows i * STRIDE.
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    if not BACK:
        height: tl.constexpr = Y_HEIGHT
    elif Y_HEIGHT % STRIDE_H == 0:
        height: tl.constexpr = Y_HEIGHT // STRIDE_H
    else:
        height = (Y_HEIGHT - phase_h + STRIDE_H - 1) // STRIDE_H
    if not BACK:
        width: tl.constexpr = Y_WIDTH
    elif Y_WIDTH % STRIDE_W == 0:
        width: tl.constexpr = Y_WIDTH // STRIDE_W
    else:
        width = (Y_WIDTH - phase_w + STRIDE_W - 1) // STRIDE_W
    inside = pixel < batch * height * width
    image = pixel // (height * width)
    i = pixel // width % height
    j = pixel % width
    if WIDE:
        image = image.to(tl.int64)
    if BACK:
        x_i, x_j = i, j
        y_at = (image * Y_HEIGHT + i * STRIDE_H + phase_h) * Y_WIDTH + j * STRIDE_W + phase_w
    else:
        x_i, x_j = i * STRIDE_H, j * STRIDE_W
        y_at = (image * Y_HEIGHT + i) * Y_WIDTH + j
    high = _taps_outside(x_i, phase_h, X_HEIGHT, KERNEL_H, STRIDE_H, PADDING[0], DILATION[0], BACK)
    wide = _taps_outside(x_j, phase_w, X_WIDTH, KERNEL_W, STRIDE_W, PADDING[1], DILATION[1], BACK)
    outside = tl.where(inside, high | wide << 15, (1 << 30) - 1)
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, DEPTH)
    x_at = x + (((image * X_HEIGHT + x_i) * X_WIDTH + x_j) * CHANNELS)[None, :] + channel[:, None]
    # A block as it lies in memory: its rows are output channels, back the reduced ones.
    if PACKED:
        w_at = product + tl.arange(0, DEPTH if BACK else ROWS)[:, None] * (ROWS if BACK else DEPTH)
    elif BACK:
        w_at = product + channel[:, None] * (KERNEL_H * KERNEL_W * ROW_CHANNELS) + block * ROWS
    else:
        w_at = product + (block * ROWS + row)[:, None] * (KERNEL_H * KERNEL_W * CHANNELS)
    w_at += tl.arange(0, ROWS if BACK else DEPTH)[None, :]
    row_inside = block * ROWS + row < ROW_CHANNELS

    total = tl.zeros((ROWS, PIXELS), dtype=tl.float32)
    if ROWS < 64:  # fewer than WGMMA has: pixels are its rows
        total = tl.trans(total)
    place = tl.program_id(1) * row_blocks + block
    start = tl.load(starts + place)
    end = tl.load(starts + place + 1)
    code = tl.load(codes + start, mask=start < end, other=0)
    for position in tl.range(start, end, num_stages=STAGES):
        # The next step's code: loaded in the step that needs it, it would eat stages of the pipeline.
        following = tl.load(codes + position + 1, mask=position + 1 < end, other=0)
        low = code.to(tl.int32)
        first = (low & 0xFFFF) * DEPTH
        r = low >> 16 & 0xFF
        s = low >> 24 & 0xFF
        down = _shift(r, phase_h, STRIDE_H, PADDING[0], DILATION[0], BACK)
        right = _shift(s, phase_w, STRIDE_W, PADDING[1], DILATION[1], BACK)
        wanted = (outside & ((1 << r) | (32768 << s)) == 0)[None, :]
        if CHANNELS % DEPTH != 0:
            wanted = wanted & (first + channel < CHANNELS)[:, None]
        b = tl.load(x_at + ((down * X_WIDTH + right) * CHANNELS + first), mask=wanted, other=0.0)
        if PACKED:
            slot = (code >> 32).to(tl.int32) if BACK else position
            w = tl.load(w_at + slot * (ROWS * DEPTH))
        else:
            tap = r * KERNEL_W + s
            if BACK:
                w_from = w_at + (first * (KERNEL_H * KERNEL_W) + tap) * ROW_CHANNELS
                w_inside = (first + channel < CHANNELS)[:, None] & row_inside[None, :]
            else:
                w_from = w_at + (tap * CHANNELS + first)
                w_inside = row_inside[:, None] & (first + channel < CHANNELS)[None, :]
            if ROW_CHANNELS % ROWS != 0 or CHANNELS % DEPTH != 0:
                w = tl.load(w_from, mask=w_inside, other=0.0)
            else:
                w = tl.load(w_from)
        if BACK:
            w = tl.trans(w)
        if ROWS < 64:
            total = tl.dot(tl.trans(b), tl.trans(w), total, input_precision=PRECISION)
        else:
            total = tl.dot(w, b, total, input_precision=PRECISION)
        code = following

    if ROWS < 64:
        total = tl.trans(total)
    if HAS_BIAS:
        total += tl.load(bias + block * ROWS + row, mask=row_inside, other=0.0).to(tl.float32)[:, None]
    at = (y_at * ROW_CHANNELS)[None, :] + (block * ROWS + row)[:, None]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=row_inside[:, None] & inside[None, :])


@jit(do_not_specialize=["batch", "share"])
def block_wgrad_kernel(  # noqa: PLR0913 - pointers, and constants of the call
    grad, x, codes, workspace, batch, share,
    ROW_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, X_SIZE: tl.constexpr, Y_SIZE: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PIXELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One block's sum over a `share` of the steps of PIXELS: workspace `[splits, alive, ROWS, DEPTH]`, float32."""
    Y_WIDTH: tl.constexpr = Y_SIZE[1]
    y_pixels: tl.constexpr = Y_SIZE[0] * Y_SIZE[1]
    # Blocks of one split stand side by side: they read the same pixels.
    block = tl.program_id(0)
    split = tl.program_id(1)
    code = tl.load(codes + block)
    low = code.to(tl.int32)
    row = (code >> 32).to(tl.int32) * ROWS + tl.arange(0, ROWS)
    channel = (low & 0xFFFF) * DEPTH + tl.arange(0, DEPTH)
    down = (low >> 16 & 0xFF) * DILATION[0] - PADDING[0]
    right = (low >> 24 & 0xFF) * DILATION[1] - PADDING[1]
    pixels = batch * y_pixels
    steps = (pixels + PIXELS - 1) // PIXELS
    total = tl.zeros((ROWS, DEPTH), dtype=tl.float32)
    for step in tl.range(split * share, tl.minimum((split + 1) * share, steps), num_stages=STAGES):
        pixel = step * PIXELS + tl.arange(0, PIXELS)
        valid = pixel < pixels
        natural = pixel.to(tl.uint32)  # division of signed numbers takes more instructions
        image = (natural // y_pixels).to(tl.int32)
        i = (natural // Y_WIDTH % Y_SIZE[0]).to(tl.int32) * STRIDE[0] + down
        j = (natural % Y_WIDTH).to(tl.int32) * STRIDE[1] + right
        if WIDE:
            image = image.to(tl.int64)
            pixel = pixel.to(tl.int64)
        a_wanted = valid[:, None]
        b_wanted = a_wanted
        if BORDER:
            b_wanted = (valid & (i >= 0) & (i < X_SIZE[0]) & (j >= 0) & (j < X_SIZE[1]))[:, None]
        if ROW_CHANNELS % ROWS != 0:
            a_wanted = a_wanted & (row < ROW_CHANNELS)[None, :]
        if CHANNELS % DEPTH != 0:
            b_wanted = b_wanted & (channel < CHANNELS)[None, :]
        a_at = (pixel * ROW_CHANNELS)[:, None] + row[None, :]
        b_at = (((image * X_SIZE[0] + i) * X_SIZE[1] + j) * CHANNELS)[:, None] + channel[None, :]
        a = tl.load(grad + a_at, mask=a_wanted, other=0.0)
        b = tl.load(x + b_at, mask=b_wanted, other=0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
    place = (split * tl.num_programs(0) + block).to(tl.int64) * (ROWS * DEPTH)
    at = tl.arange(0, ROWS)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
    tl.store(workspace + place + at, total)


@jit
def block_pack_kernel(  # noqa: PLR0913 - pointers, strides, and constants of the call
    weight, mask, codes, packed, weight_k, weight_c, weight_r, weight_s, mask_k, mask_c, mask_r, mask_s,
    ROW_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """packed `[alive, ROWS, DEPTH]` = weight * mask, of the blocks that hold a weight; SLICE rows a program."""
    slices: tl.constexpr = ROWS // SLICE
    slot = tl.program_id(0) // slices
    within = tl.program_id(0) % slices * SLICE + tl.arange(0, SLICE)
    code = tl.load(codes + slot)
    low = code.to(tl.int32)
    row = (code >> 32).to(tl.int32) * ROWS + within
    column = tl.arange(0, DEPTH)
    channel = (low & 0xFFFF) * DEPTH + column
    r = low >> 16 & 0xFF
    s = low >> 24 & 0xFF
    wanted = (row < ROW_CHANNELS)[:, None] & (channel < CHANNELS)[None, :]
    w_at = (row * weight_k)[:, None] + (channel * weight_c)[None, :] + (r * weight_r + s * weight_s)
    m_at = (row * mask_k)[:, None] + (channel * mask_c)[None, :] + (r * mask_r + s * mask_s)
    w = tl.load(weight + w_at, mask=wanted, other=0.0).to(tl.float32)
    m = tl.load(mask + m_at, mask=wanted, other=0).to(tl.float32)
    at = slot * (ROWS * DEPTH) + (within * DEPTH)[:, None] + column[None, :]
    tl.store(packed + at, (w * m).to(packed.dtype.element_ty))


@jit(do_not_specialize=["splits", "alive"])
def block_gradient_kernel(  # noqa: PLR0913 - pointers, strides, and constants of the call
    workspace, slots, mask, gradient, splits, alive, mask_k, mask_c, mask_r, mask_s, gradient_k, gradient_c,
    gradient_r, gradient_s,
    ROW_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, KERNEL: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, SLICE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """gradient = mask * (sum over the splits, in order), zero in empty blocks; SLICE rows a program."""
    slices: tl.constexpr = ROWS // SLICE
    in_blocks: tl.constexpr = (CHANNELS + DEPTH - 1) // DEPTH
    part = tl.program_id(0) % slices
    place = tl.program_id(0) // slices
    slot = tl.load(slots + place)
    tap = place // in_blocks % (KERNEL[0] * KERNEL[1])
    r = tap // KERNEL[1]
    s = tap % KERNEL[1]
    row = place // (in_blocks * KERNEL[0] * KERNEL[1]) * ROWS + part * SLICE + tl.arange(0, SLICE)
    channel = place % in_blocks * DEPTH + tl.arange(0, DEPTH)
    wanted = (row < ROW_CHANNELS)[:, None] & (channel < CHANNELS)[None, :]
    total = tl.zeros((SLICE, DEPTH), dtype=tl.float32)
    if slot >= 0:
        within = part * (SLICE * DEPTH) + tl.arange(0, SLICE * DEPTH)
        split = tl.arange(0, AT_ONCE)
        flat = tl.zeros((SLICE * DEPTH,), dtype=tl.float32)
        for first in range(0, splits, AT_ONCE):
            at = ((first + split).to(tl.int64) * alive + slot)[:, None] * (ROWS * DEPTH) + within[None, :]
            flat += tl.sum(tl.load(workspace + at, mask=(first + split < splits)[:, None], other=0.0), axis=0)
        m_at = (row * mask_k)[:, None] + (channel * mask_c)[None, :] + (r * mask_r + s * mask_s)
        total = tl.reshape(flat, (SLICE, DEPTH)) * tl.load(mask + m_at, mask=wanted, other=0).to(tl.float32)
    at = (row * gradient_k)[:, None] + (channel * gradient_c)[None, :] + (r * gradient_r + s * gradient_s)
    tl.store(gradient + at, total.to(gradient.dtype.element_ty), mask=wanted)


# --- tiles ---------------------------------------------------------------------------------------------------


class PixelTile(NamedTuple):
    """Pixels a program takes (forward, dgrad) or a step does (wgrad), warps, stages, and splits of a wgrad's sum."""

    pixels: int
    warps: int = 4
    stages: int = 4
    splits: int = 1


def tiles(
    part: str, pattern: BlockPattern, x_shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> list[PixelTile]:
    """Tiles worth measuring for `part`, the rule's first."""
    if part not in PARTS:
        raise ArgumentError(f"part: want one of {', '.join(PARTS)}, got {part!r}")
    processors, memory = limits(device)
    rows, depth = pattern.block[::-1] if part == "dgrad" else pattern.block
    y_shape = pattern.output(x_shape)
    if part == "wgrad":
        made, rest, width = _wgrad_tiles(pattern, y_shape, processors), 0, rows + depth
    else:
        shape, blocks = (y_shape, pattern.blocks[0]) if part == "forward" else (x_shape, pattern.blocks[1])
        # On an H100 128 pixels and 3 stages were the fastest wherever every multiprocessor gets a program, 4 stages
        # up to 25 % slower: a program has a few steps, and more programs fit beside each other.
        best = 128 if 128 * processors <= shape[0] * shape[2] * shape[3] * blocks else 64
        sizes = [(best, 3), (128, 3), (64, 3), (128, 2), (64, 2), (128, 4), (64, 4), (256, 3)]
        made = [PixelTile(pixels, 8 if pixels * rows > 8192 else 4, stages) for pixels, stages in sizes]
        rest, width = rows * depth, depth
    fitting = [
        tile for tile in made if tile.stages * (tile.pixels * width + rest) * dtype.itemsize <= memory - 2048
    ]
    return list(dict.fromkeys(fitting)) or [PixelTile(32, 4, 2, made[0].splits)]


def _wgrad_tiles(pattern: BlockPattern, y_shape: Sequence[int], processors: int) -> list[PixelTile]:
    """Splits fill the multiprocessors once: on an H100 twice took up to 40 % longer, for the sum over splits.

    A split has two steps at least, and none is empty.
    """
    pixels = y_shape[0] * y_shape[2] * y_shape[3]
    warps = 8 if pattern.block[0] * pattern.block[1] > 64 * 64 else 4
    best = 128 if pixels // 256 * pattern.alive >= processors // 2 else 64
    sizes = [
        (best, 3, 1), (128, 3, 1), (64, 4, 1), (64, 3, 1), (128, 2, 1), (128, 3, 0.5), (64, 4, 0.5), (128, 3, 2),
    ]  # fmt: skip
    made = []
    for size, stages, waves in sizes:
        steps = -(-pixels // size)
        wanted = max(1, min(int(waves * processors) // max(pattern.alive, 1), steps // 2))
        made.append(PixelTile(size, warps, stages, -(-steps // -(-steps // wanted))))
    return made


# --- launches ------------------------------------------------------------------------------------------------


def _numbers_of(
    pattern: BlockPattern, x: Sequence[int], y: Sequence[int], dtype: torch.dtype
) -> dict[str, Any]:
    """Constants that the kernels share, of the shapes of a pass's input and output."""
    sizes = {"X_SIZE": tuple(x[2:]), "Y_SIZE": tuple(y[2:]), "KERNEL": pattern.shape[2:]}
    numbers = {"STRIDE": pattern.stride, "PADDING": pattern.padding, "DILATION": pattern.dilation}
    wide = max(torch.Size(x).numel(), torch.Size(y).numel()) >= 2**31 - 2**20
    return {**sizes, **numbers, "WIDE": wide, "PRECISION": _precision(dtype)}


def _precision(dtype: torch.dtype) -> str:
    """TF32 where torch lets convolutions of float32 multiply so."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _bytes(mask: Tensor) -> Tensor:
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def launch_pack(
    weight: Tensor, mask: Tensor, pattern: BlockPattern, dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor:
    """weight * mask in `dtype`, of the pattern's blocks alone: `[alive, *block]`."""
    packed = weight.new_empty((pattern.alive, *pattern.block), dtype=dtype) if out is None else out
    if not pattern.alive:
        return packed
    at = ("pack", weight.stride(), weight.dtype, mask.stride(), mask.dtype, dtype)
    launch = pattern.cache.get(at)
    if launch is None:
        rows, depth = pattern.block
        constants = {"ROW_CHANNELS": pattern.shape[0], "CHANNELS": pattern.shape[1]}
        constants |= {"ROWS": rows, "DEPTH": depth, "SLICE": 16}
        grid, numbers = (pattern.alive * rows // 16, 1), (*weight.stride(), *mask.stride())
        launch = pattern.cache[at] = Launch(block_pack_kernel, grid, constants, numbers, num_warps=4)
    launch(weight, _bytes(mask), pattern.codes, packed)
    return packed


def launch_forward(
    x: Tensor, product: Tensor, pattern: BlockPattern, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """y in channels_last; the product packed, or dense `[K, C, R, S]` in x's dtype. Options: `tile`, `out`."""
    return _convolve("forward", x, product, bias, pattern, pattern.output(x.shape), **options)


def launch_dgrad(
    grad: Tensor, product: Tensor, pattern: BlockPattern, x_shape: Sequence[int], **options: Any
) -> Tensor:
    """dx in channels_last; the product packed, or dense `[K, C, R, S]` in grad's dtype. Options: `tile`, `out`."""
    return _convolve("dgrad", grad, product, None, pattern, tuple(x_shape), **options)


def _convolve(  # noqa: PLR0913 - both passes' arguments
    part: str, x: Tensor, product: Tensor, bias: Tensor | None, pattern: BlockPattern, shape: Sequence[int], *,
    tile: PixelTile | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Both passes: `shape` is the output's."""
    back, packed = part == "dgrad", product.dim() == 3
    at = (part, x.shape, shape, x.dtype, packed, bias is not None and bias.dtype, tile, _precision(x.dtype))
    launch = pattern.cache.get(at)
    if launch is None:
        tile = tile or tiles(part, pattern, shape if back else x.shape, x.dtype, x.device)[0]
        rows, depth = pattern.block[::-1] if back else pattern.block
        steps = pattern.stride if back else (1, 1)
        pixels = shape[0] * -(-shape[2] // steps[0]) * -(-shape[3] // steps[1])
        constants = _numbers_of(pattern, x.shape, shape, x.dtype) | {
            "ROW_CHANNELS": shape[1], "CHANNELS": x.shape[1], "BACK": back, "PACKED": packed,
            "HAS_BIAS": bias is not None, "ROWS": rows, "DEPTH": depth, "PIXELS": tile.pixels, "STAGES": tile.stages,
        }  # fmt: skip
        grid = (-(-pixels // tile.pixels) * -(-shape[1] // rows), steps[0] * steps[1])
        launch = pattern.cache[at] = Launch(
            block_conv_kernel, grid, constants, (x.shape[0],), num_warps=tile.warps, num_stages=tile.stages
        )
    if out is None:
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    starts, codes = (pattern.back_starts, pattern.back_codes) if back else (pattern.starts, pattern.codes)
    shift = None if bias is None else bias.contiguous()
    launch(_last(x), product if packed else _last(product), starts, codes, shift, out)
    return out


def launch_wgrad(  # noqa: PLR0913 - the tensors of the pass
    grad: Tensor, x: Tensor, mask: Tensor, pattern: BlockPattern, weight: Tensor, *,
    tile: PixelTile | None = None, workspace: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """d weight = mask * G with weight's dtype and strides, zero in empty blocks, into `out` if given."""
    out = torch.empty_like(weight) if out is None else out
    layouts = (mask.stride(), mask.dtype, out.stride(), out.dtype)
    at = ("wgrad", x.shape, x.dtype, *layouts, tile, _precision(x.dtype))
    found = pattern.cache.get(at)
    if found is None:
        found = pattern.cache[at] = _wgrad_launches(grad, x, mask, pattern, out, tile)
    tile, launch, gather = found
    if workspace is None:
        shape = (tile.splits, pattern.alive, *pattern.block)
        workspace = torch.empty(shape, dtype=torch.float32, device=x.device)
    if pattern.alive:
        launch(_last(grad), _last(x), pattern.codes, workspace)
    gather(workspace, pattern.slots, _bytes(mask), out)
    return out


def _wgrad_launches(
    grad: Tensor, x: Tensor, mask: Tensor, pattern: BlockPattern, out: Tensor, tile: PixelTile | None
) -> tuple[PixelTile, Launch, Launch]:
    tile = tile or tiles("wgrad", pattern, x.shape, x.dtype, x.device)[0]
    rows, depth = pattern.block
    steps = -(-grad.shape[0] * grad.shape[2] * grad.shape[3] // tile.pixels)
    at_once = min(64, 1 << (tile.splits - 1).bit_length())
    # Rows a program of the sum over splits takes: 32 terms a thread at once.
    part = max(1, min(16, 4096 // (at_once * depth)))
    constants = _numbers_of(pattern, x.shape, grad.shape, x.dtype) | {
        "ROW_CHANNELS": grad.shape[1], "CHANNELS": x.shape[1], "BORDER": pattern.padding != (0, 0), "ROWS": rows,
        "DEPTH": depth, "PIXELS": tile.pixels, "STAGES": tile.stages, "SLICE": part, "AT_ONCE": at_once,
    }  # fmt: skip
    grid, shares = (pattern.alive, tile.splits), (x.shape[0], -(-steps // tile.splits))
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    launch = Launch(block_wgrad_kernel, grid, constants, shares, **options)  # type: ignore[arg-type]
    grid = (pattern.slots.numel() * (rows // part), 1)
    numbers = (tile.splits, pattern.alive, *mask.stride(), *out.stride())
    gather = Launch(block_gradient_kernel, grid, constants, numbers, num_warps=4)
    return tile, launch, gather


# --- the registered operators, for calls with a pattern under compilers and tracers ---------------------------


@torch.library.custom_op(
    "prunebench::block_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor mask, Tensor? bias, int pattern, str backend) -> Tensor",
)
def _operator(*arguments: Any) -> Tensor:
    """y in x's memory format; arguments already checked, x in the dtype to compute in."""
    *tensors, handle, backend = arguments
    y, _ = _run_forward(*tensors, _by_handle[handle], backend)  # type: ignore[call-arg]
    return y.contiguous(memory_format=_layout(tensors[0]))


@_operator.register_fake
def _(*arguments: Any) -> Tensor:
    x, *_, handle, _ = arguments
    return torch.empty(
        _by_handle[handle].output(x.shape), dtype=x.dtype, device=x.device, memory_format=_layout(x)
    )


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


@torch.library.custom_op(
    "prunebench::block_conv2d_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor mask, int pattern, str backend, bool[] needed) -> Tensor[]",
)
def _backward_operator(*arguments: Any) -> list[Tensor]:
    """Gradients of those of x, weight, mask and bias that are `needed`, in that order."""
    *tensors, handle, backend, needed = arguments
    dx, *others = _run_backward(*tensors, None, _by_handle[handle], backend, needed)  # type: ignore[call-arg]
    made = [dx if dx is None else dx.contiguous(memory_format=_layout(tensors[1])), *others]
    return [tensor for tensor in made if tensor is not None]


@_backward_operator.register_fake
def _(*arguments: Any) -> list[Tensor]:
    grad, x, weight, mask, *_, needed = arguments
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))
    made = (dx, torch.empty_like(weight), torch.empty_like(mask), grad.new_empty(weight.shape[:1]))
    return [tensor for tensor, is_needed in zip(made, needed) if is_needed]


def _traced_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [bool(need) for need in ctx.needs_input_grad[:4]]
    each = iter(_backward_operator(grad, *ctx.saved_tensors, *ctx.settings, needed))
    return _spread(ctx, [next(each) if need else None for need in needed])


_operator.register_autograd(_traced_backward, setup_context=_setup_context)
