# mypy: disallow-untyped-defs=False
"""Mask sampling in Triton: one launch forward, one backward, each over one flat buffer of all layers.

A program draws BLOCK counters of four words: 4 * BLOCK consecutive elements, each thread four at a time, so that
words meet their elements in registers. The masks equal the torch path's bit for bit: the hardware's exponential
decides, except where it comes within BAND of the border; then the program repeats the decision in the torch
path's exactly rounded operations. It is launched with fused multiply-add off. The backward pass draws the noise
again: only logits, weights and the seed are kept.

Bytes an element: logits 4 and masks 4 (uint8: 1), or logits 4, weights 4 and bfloat16 products 2. For the 11.2
million of ResNet-18: float32 masks 90 MB, 21 us at 4.3 TB/s; masked bfloat16 weights 112 MB, 26 us (arithmetic).
One Philox serves four elements: 18 wide multiplications and 36 XORs in PTX, as two in a three-input instruction.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from prunebench_kernels import mask_sampling_rule as rule
from prunebench_kernels import tuned
from prunebench_kernels.backend import on_device
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.mask_sampling_rule import Draw

LIMIT = tl.constexpr(rule.LIMIT)
LOG2_E = tl.constexpr(rule.LOG2_E)
ROUND = tl.constexpr(rule.ROUND)
C0, C1, C2, C3, C4 = (tl.constexpr(value) for value in rule.EXP2_COEFFICIENTS)
GRID = tl.constexpr(float(1 << 24))


@triton.jit
def _power_of_two(y):
    """2^y for |y| <= LIMIT log2 e, in the torch path's order of operations."""
    shifted = y + ROUND
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    r = y - (shifted - ROUND)
    series = ((((r * C0 + C1) * r + C2) * r + C3) * r + C4) * r + 1.0
    return (series.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@triton.jit
def _keep_exactly(pi, a, SQUASH: tl.constexpr):
    """The decision u > 1 - sigmoid(g(pi)), as a exp(g) > 2^24 - a, as the torch path rounds it."""
    x = tl.minimum(tl.maximum(pi, -LIMIT), LIMIT)
    if SQUASH:
        x = tl.div_rn(1.0, _power_of_two(x * -LOG2_E) + 1.0)
    return _power_of_two(x * LOG2_E) * a > GRID - a


@triton.jit
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


@triton.jit
def _slope(pi, a, temperature, SQUASH: tl.constexpr):
    """d s / d pi, by sigmoid'(x) = e / (1 + e)^2 with e = exp(-|x|): no overflow, no cancellation."""
    e = tl.exp(-tl.abs(pi))
    location = tl.where(pi > 0, 1.0, e) / (1.0 + e) if SQUASH else pi
    soft = tl.exp(-tl.abs((location + tl.log(a / (GRID - a))) / temperature))
    slope = soft / ((1.0 + soft) * (1.0 + soft) * temperature)
    return slope * (e / ((1.0 + e) * (1.0 + e))) if SQUASH else slope


@triton.jit
def _numerators(seed_low, seed_high, offset, BLOCK: tl.constexpr):
    """a = (word >> 8) | 1 of Philox4x32-10 for the program's 4 * BLOCK elements, float32; u = a / 2^24."""
    c0 = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32)
    zero = c0 * 0
    c1 = zero + offset.to(tl.uint32, bitcast=True)
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, zero, zero, k0, k1)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [4 * BLOCK])
    return ((words >> 8) | 1).to(tl.int32).to(tl.float32)


@triton.jit
def _load(pointer, elements, numel, TAIL: tl.constexpr):
    bound = elements < numel if TAIL else None
    return tl.load(pointer + elements, mask=bound).to(tl.float32)


@triton.jit
def _store(pointer, elements, values, numel, TAIL: tl.constexpr):
    bound = elements < numel if TAIL else None
    tl.store(pointer + elements, values.to(pointer.dtype.element_ty), mask=bound)


@triton.jit
def _sample(  # noqa: PLR0913 - the kernel's arguments
    logits, weights, out, elements, a, numel,
    SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BAND: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    pi = _load(logits, elements, numel, TAIL)
    values = _load(weights, elements, numel, TAIL) if HAS_WEIGHTS else 1.0
    _store(out, elements, tl.where(_keep(pi, a, SQUASH, BAND), values, 0.0), numel, TAIL)


@triton.jit(do_not_specialize=["numel", "seed_low", "seed_high", "offset"])
def sample_masks_kernel(  # noqa: PLR0913 - pointers, the draw, flags
    logits, weights, out, numel, seed_low, seed_high, offset,
    SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BAND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Masks, or masked weights. Only the last program checks bounds, so all others vectorise for any `numel`."""
    first = tl.program_id(0).to(tl.int64) * (4 * BLOCK)
    elements = first + tl.arange(0, 4 * BLOCK)
    a = _numerators(seed_low, seed_high, offset, BLOCK)
    if first + 4 * BLOCK <= numel:
        _sample(logits, weights, out, elements, a, numel, SQUASH, HAS_WEIGHTS, BAND, False)
    else:
        _sample(logits, weights, out, elements, a, numel, SQUASH, HAS_WEIGHTS, BAND, True)


@triton.jit
def _backward(  # noqa: PLR0913 - the kernel's arguments
    gradient, logits, weights, to_logits, to_weights, elements, a, numel, temperature,
    SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, LOGITS: tl.constexpr, WEIGHTS: tl.constexpr,
    BAND: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    upstream = _load(gradient, elements, numel, TAIL)
    pi = _load(logits, elements, numel, TAIL)
    if LOGITS:
        result = upstream * _slope(pi, a, temperature, SQUASH)
        if HAS_WEIGHTS:
            result = result * _load(weights, elements, numel, TAIL)
        _store(to_logits, elements, result, numel, TAIL)
    if WEIGHTS:
        _store(to_weights, elements, tl.where(_keep(pi, a, SQUASH, BAND), upstream, 0.0), numel, TAIL)


@triton.jit(do_not_specialize=["numel", "seed_low", "seed_high", "offset"])
def sample_masks_backward_kernel(  # noqa: PLR0913 - pointers, the draw, flags
    gradient, logits, weights, to_logits, to_weights, numel, seed_low, seed_high, offset, temperature,
    SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, LOGITS: tl.constexpr, WEIGHTS: tl.constexpr,
    BAND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of logits and weights, as the two flags ask."""
    first = tl.program_id(0).to(tl.int64) * (4 * BLOCK)
    elements = first + tl.arange(0, 4 * BLOCK)
    a = _numerators(seed_low, seed_high, offset, BLOCK)
    if first + 4 * BLOCK <= numel:
        _backward(gradient, logits, weights, to_logits, to_weights, elements, a, numel, temperature,
                  SQUASH, HAS_WEIGHTS, LOGITS, WEIGHTS, BAND, False)  # fmt: skip
    else:
        _backward(gradient, logits, weights, to_logits, to_weights, elements, a, numel, temperature,
                  SQUASH, HAS_WEIGHTS, LOGITS, WEIGHTS, BAND, True)  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """Counters of one program (4 * block elements), its warps, and the band of exact decisions.

    A band of `float("inf")` makes every decision exact.
    """

    block: int
    num_warps: int
    band: float = rule.BAND


TUNING_CANDIDATES = tuple(
    Configuration(block, num_warps) for block in (128, 256, 512, 1024) for num_warps in (2, 4, 8)
)


def key(numel: int) -> str:
    """What the tables of tuned choices call a buffer: the power of two that holds it."""
    return f"up to 2^{(numel - 1).bit_length()}"


def default_configuration(*, narrow: bool = False) -> Configuration:
    """The configuration of a GPU on which nothing was measured.

    `narrow`: a gradient of weights in half precision. There Triton 3.6 spills 4 warps on sm_80, not 2 of half a block.
    """
    return Configuration(block=128, num_warps=2) if narrow else Configuration(block=256, num_warps=4)


def configuration(numel: int, *, narrow: bool = False) -> Configuration:
    """What runs unless it is forced: as measured on this GPU, else eight elements a thread."""
    entry = tuned.lookup("sample_masks", key(numel))
    return default_configuration(narrow=narrow) if entry is None else Configuration(**entry)


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits, so that every seed has one kernel signature."""
    return word - (1 << 32) if word >> 31 else word


def _scalars(draw: Draw) -> tuple[int, int, int]:
    low, high = draw.key
    return _signed(low), _signed(high), _signed(draw.offset)


def _grid(numel: int, chosen: Configuration) -> tuple[int]:
    return (triton.cdiv(numel, 4 * chosen.block),)


def forward(
    logits: Tensor, weights: Tensor | None, out: Tensor, draw: Draw, forced: Configuration | None = None
) -> None:
    """Fill `out` `[P]` with masks, or with weight * mask where weights are given; all contiguous."""
    chosen = forced or configuration(logits.numel())
    with on_device(logits):
        sample_masks_kernel[_grid(logits.numel(), chosen)](
            logits, logits if weights is None else weights, out, logits.numel(), *_scalars(draw),
            SQUASH=draw.squash, HAS_WEIGHTS=weights is not None, BAND=chosen.band, BLOCK=chosen.block,
            num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


def backward(
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    to_logits: Tensor,
    to_weights: Tensor,
    draw: Draw,
    forced: Configuration | None = None,
) -> None:
    """Fill the gradients (each `[P]`, or empty where not asked for); all contiguous."""
    narrow = to_weights.numel() > 0 and to_weights.element_size() == 2
    chosen = forced or configuration(logits.numel(), narrow=narrow)
    with on_device(logits):
        sample_masks_backward_kernel[_grid(logits.numel(), chosen)](
            gradient, logits, logits if weights is None else weights, to_logits, to_weights, logits.numel(),
            *_scalars(draw), draw.temperature, SQUASH=draw.squash, HAS_WEIGHTS=weights is not None,
            LOGITS=to_logits.numel() > 0, WEIGHTS=to_weights.numel() > 0, BAND=chosen.band,
            BLOCK=chosen.block, num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


_SCALARS = {"numel": "i32", "seed_low": "i32", "seed_high": "i32", "offset": "i32"}


def _forward_case(out: str, weights: str | None, logits: str, squash: bool) -> CompileCase:
    chosen = default_configuration()
    flags = {"SQUASH": squash, "HAS_WEIGHTS": weights is not None, "BAND": chosen.band, "BLOCK": chosen.block}
    return CompileCase(
        name=f"sample_masks {logits} -> {out}"
        f"{f', weights {weights}' if weights else ''}{', squash' if squash else ''}",
        kernel=sample_masks_kernel,
        signature={
            "logits": f"*{logits}",
            "weights": f"*{weights or logits}",
            "out": f"*{out}",
            **_SCALARS,
            **dict.fromkeys(flags, "constexpr"),
        },
        constexprs=flags,
        divisible_by_16=("logits", "weights", "out"),
        num_warps=chosen.num_warps,
        expects=frozenset({"vector-loads"}),
        fp_fusion=False,
    )


def _backward_case(gradient: str, weights: str | None, both: bool, squash: bool) -> CompileCase:
    chosen = default_configuration(narrow=both and weights in ("fp16", "bf16"))
    flags = {
        "SQUASH": squash,
        "HAS_WEIGHTS": weights is not None,
        "LOGITS": True,
        "WEIGHTS": both,
        "BAND": chosen.band,
        "BLOCK": chosen.block,
    }
    return CompileCase(
        name=f"sample_masks backward {gradient}{f', weights {weights}' if weights else ''}"
        f"{' and their gradient' if both else ''}{', squash' if squash else ''}",
        kernel=sample_masks_backward_kernel,
        signature={
            "gradient": f"*{gradient}",
            "logits": "*fp32",
            "weights": f"*{weights or 'fp32'}",
            "to_logits": "*fp32",
            "to_weights": f"*{weights or 'fp32'}",
            **_SCALARS,
            "temperature": "fp32",
            **dict.fromkeys(flags, "constexpr"),
        },
        constexprs=flags,
        divisible_by_16=("gradient", "logits", "weights", "to_logits", "to_weights"),
        num_warps=chosen.num_warps,
        expects=frozenset({"vector-loads"}),
        fp_fusion=False,
    )


COMPILE_CASES: tuple[CompileCase, ...] = (
    *(_forward_case(out, None, "fp32", squash) for out in ("fp32", "u8") for squash in (True, False)),
    *(
        _forward_case(out, "fp32", "fp32", squash)
        for out in ("fp32", "fp16", "bf16")
        for squash in (True, False)
    ),
    *(_forward_case(dtype, dtype, dtype, True) for dtype in ("fp16", "bf16")),
    *(_backward_case("fp32", None, False, squash) for squash in (True, False)),
    *(_backward_case("bf16", "fp32", both, squash) for both in (False, True) for squash in (True, False)),
    *(_backward_case(dtype, dtype, True, True) for dtype in ("fp32", "fp16", "bf16")),
)
