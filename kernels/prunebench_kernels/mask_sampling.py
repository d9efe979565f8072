# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Masks of all layers of a network drawn from their logits, in one launch a step.

    u = ((word >> 8) | 1) / 2^24         Philox4x32-10 of (seed, draw, element), never 0 or 1
    s = sigmoid((g(pi) + log u - log(1 - u)) / temperature),  mask = [s > 1/2]
    g = sigmoid (`squash`, as DCWP's released code has it: keep-probability sigmoid(sigmoid(pi)), in
        (0.5, 0.731)), or the identity (keep-probability sigmoid(pi))
    backward: d mask / d s := 1, d s / d pi = s (1 - s) / temperature [* sigmoid'(pi)]

Both backends make the same masks, bit for bit: s > 1/2 is decided as a exp(g) > 2^24 - a (a = 2^24 u, an integer) in
operations that are exactly rounded: 32-bit integers, and float32 additions, multiplications and one division, nothing
fused, with an exponential written out in them instead of the device's. The kernel lets the hardware's exponential
decide, except where it comes within a band of the border; then the program repeats the decision as the torch path makes
it. The random numbers depend on the seed, the number of the draw and the element's place alone, so the backward pass
draws them again: only logits, weights and the draw are kept.

Bytes an element (arithmetic): float32 masks from logits 8; bfloat16 masked weights from logits and weights 10.

Source: Park et al., CVPR 2023, and its released code; Csordas et al., ICLR 2021; Salmon et al., SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prunebench_kernels.dispatch import (
    FLOATS,
    ArgumentError,
    Choice,
    check_device,
    check_finite,
    check_floating,
    check_tensor,
    constexpr,
    explains,
    is_traced,
    jit,
    on_device,
    select,
    tl,
)
from prunebench_kernels.masks import (
    MASK_DTYPES,
    SAMPLE,
    Configuration,
    Form,
    as_bytes,
    check_layers,
    check_pairs,
    check_size,
    load,
    narrowest,
    refusal_of,
)

MAX_SEED, MAX_DRAWS = 1 << 63, 1 << 32

LIMIT = 40.0
"""Logits are clamped here for the decision. Beyond 17 it is certain: u lies on a grid of 2^-24."""

LOG2_E = 1.44269504088896341
ROUND = 12582912.0
"""1.5 * 2^23: adding it rounds a float32 to an integer, in the low bits of the sum; the others shift out."""
EXP2_COEFFICIENTS = (
    0.001326472731307149,
    0.009671512991189957,
    0.05550733581185341,
    0.24022242426872253,
    0.6931470036506653,
)
"""(2^r - 1) / r on |r| <= 1/2, highest power first: least maximal relative error of 2^r, 9e-8, at this degree."""


@dataclass(frozen=True)
class Draw:
    """One draw of all masks: the key, the number of the draw, and the two settings of the formula.

    `offset` may be an int64 tensor of one element on the masks' device, of which the low 32 bits count.
    """

    seed: int
    offset: int | Tensor
    temperature: float
    squash: bool

    @property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the seed, low first."""
        return self.seed & 0xFFFFFFFF, self.seed >> 32


# --- torch ------------------------------------------------------------------------------------------------------
# Elements are worked on in pieces that stay in the cache.

PIECE = 1 << 17
"""Elements decided at a time on a CPU, a multiple of 4: the best of 2^15 to 2^18 on a 1 MB L2 cache."""

COUNTERS = 1 << 14
"""Counters that numpy draws at a time: five buffers of 128 kB."""

WORD = 0xFFFFFFFF
Words = tuple[Any, Any, Any, Any]


def philox4x32(counter: Words, key: tuple[int, int], spare: Any) -> Words:
    """Philox4x32-10 of four arrays of 32-bit counters in 64-bit integers, all overwritten like `spare`.

    torch int64 and numpy uint64 give the same low 32 bits. Words 1 and 3 keep unused high bits, which the rounds
    never look at.
    """
    shift = torch.bitwise_right_shift if isinstance(spare, Tensor) else np.right_shift
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        c0 *= 0xD2511F53
        c2 *= 0xCD9E8D57
        shift(c2, 32, out=spare)
        spare ^= c1
        spare ^= k0
        spare &= WORD
        shift(c0, 32, out=c1)
        c1 ^= c3
        c1 ^= k1
        c1 &= WORD
        c0, c1, c2, c3, spare = spare, c2, c1, c0, c3
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def fill_numerators(out: Tensor, start: int, draw: Draw) -> None:
    """Fill int32 `out` with the odd a = (word >> 8) | 1 of the elements from `start`, where u = a / 2^24.

    `start` is a multiple of 4. See `uniforms` of the oracle for the order of words. On a CPU numpy draws the
    words: 2.1 ms instead of 3.4 ms for the 0.66 million elements of `convnet` on one Zen 4 core.
    """
    counters = -(-out.numel() // 4)
    whole = out if out.numel() == 4 * counters else out.new_empty(4 * counters)
    if out.device.type == "cpu":
        _fill_by_numpy(whole.numpy().view(np.uint64).reshape(-1, 2), start // 4, draw)
    else:
        fill_by_torch(whole.view(torch.int64).view(-1, 2), start // 4, draw)
    if whole is not out:
        out.copy_(whole[: out.numel()])


def fill_by_torch(pairs: Tensor, first: int, draw: Draw) -> None:
    """All counters at once. An offset on the device is read there: a replayed graph draws by what it holds then."""
    zero = torch.zeros(len(pairs), dtype=torch.int64, device=pairs.device)
    c0 = torch.arange(first, first + len(pairs), device=pairs.device)
    words = philox4x32((c0, zero + (draw.offset & WORD), zero.clone(), zero.clone()), draw.key, zero)
    _write_pairs(pairs, words)


def _fill_by_numpy(pairs: Any, first: int, draw: Draw) -> None:
    """As many counters at a time as stay in the cache."""
    c0, c1, c2, c3, spare = (np.empty(min(COUNTERS, len(pairs)), np.uint64) for _ in range(5))
    offset = int(draw.offset) & WORD
    for start in range(0, len(pairs), COUNTERS):
        rows = pairs[start : start + COUNTERS]
        count = len(rows)
        c0[:count] = np.arange(first + start, first + start + count, dtype=np.uint64)
        c1[:], c2[:], c3[:] = offset, 0, 0
        counter = (c0[:count], c1[:count], c2[:count], c3[:count])
        _write_pairs(rows, philox4x32(counter, draw.key, spare[:count]))


def _write_pairs(pairs: Any, words: Words) -> None:
    """(word >> 8) | 1 of the four words of a row, two in one 64-bit integer."""
    w0, w1, w2, w3 = words
    for column, low, high in ((0, w0, w1), (1, w2, w3)):
        high <<= 32
        high |= low
        high >>= 8
        high &= 0x00FFFFFF_00FFFFFF
        high |= 0x00000001_00000001
        pairs[:, column] = high


def exponential_(x: Tensor, sign: int = 1) -> Tensor:
    """exp(sign * x) for float32 |x| <= LIMIT; `x` is overwritten. Relative error 2e-7 at 1, 1e-6 at 17.

    2^y = 2^n P(y - n), with y = x log2 e and n = round(y), which is added to the exponent's bits.
    """
    x *= sign * LOG2_E
    shifted = x + ROUND
    exponent = shifted.view(torch.int32) << 23
    x -= shifted.sub_(ROUND)
    series = torch.mul(x, EXP2_COEFFICIENTS[0], out=shifted)
    for coefficient in EXP2_COEFFICIENTS[1:]:
        series += coefficient
        series *= x
    series += 1.0
    series.view(torch.int32).add_(exponent)
    return series


def decide(logits: Tensor, numerators: Tensor, draw: Draw, want_slope: bool) -> tuple[Tensor, Tensor | None]:
    """The masks u > 1 - sigmoid(g(pi)), as a exp(g) > 2^24 - a (bool), and d s / d pi (float32) if wanted.

    With p = a exp(g) and q = 2^24 - a, the odds p / q are those of s at temperature 1. (To let torch.exp decide
    and to repeat only what comes near the border, as the kernel does, takes as long on a CPU.)
    """
    x = logits.to(torch.float32).clamp(-LIMIT, LIMIT)
    slope = None
    if draw.squash:
        e = exponential_(x, sign=-1)
        x = torch.add(e, 1.0).reciprocal_()
        slope = e.mul_(x).mul_(x) if want_slope else None
    p = numerators.to(torch.float32)
    q = float(1 << 24) - p
    p *= exponential_(x)
    kept = p > q
    if want_slope:
        soft = _soft_slope_(p, q, draw.temperature)
        slope = soft if slope is None else slope.mul_(soft)
    return kept, slope


def _soft_slope_(p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """s (1 - s) / temperature for odds (p / q)^(1 / temperature); both are overwritten."""
    if temperature == 1:
        total = p + q
        return p.div_(total).mul_(q).div_(total)
    e = p.div_(q).log_().div_(temperature).abs_().neg_().exp_()
    below = e + 1.0
    return e.div_(below).div_(below).div_(temperature)


def pieces(count: int, device: torch.device) -> Iterator[slice]:
    """Slices, each from a multiple of 4, that cover `count` elements; one slice off the CPU."""
    size = PIECE if device.type == "cpu" else max(count, 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def forward_in_torch(logits: Tensor, weights: Tensor | None, out: Tensor, slope: Tensor, draw: Draw) -> None:
    """Fill `out` `[P]` with masks or masked weights, and `slope` (float32 `[P]`, or empty) with d out / d pi."""
    for piece in pieces(logits.numel(), logits.device):
        kept, made = _draw_piece(logits, weights, piece, draw, slope.numel() > 0)
        out[piece] = kept if weights is None else torch.where(kept, weights[piece], 0)
        if made is not None:
            slope[piece] = made


def backward_in_torch(
    gradient: Tensor, logits: Tensor, weights: Tensor | None, slope: Tensor, to_logits: Tensor,
    to_weights: Tensor, draw: Draw,
) -> None:  # fmt: skip
    """Fill the gradients (each `[P]`, or empty where not asked for) from that of the output.

    `slope` is that of the forward pass, or empty: then it is made again.
    """
    for piece in pieces(logits.numel(), logits.device):
        if to_logits.numel():
            made = slope[piece] if slope.numel() else _draw_piece(logits, weights, piece, draw, True)[1]
            assert made is not None
            torch.mul(made, gradient[piece], out=to_logits[piece])
        if to_weights.numel():
            kept, _ = _draw_piece(logits, weights, piece, draw, False)
            to_weights[piece] = torch.where(kept, gradient[piece], 0)


def _draw_piece(
    logits: Tensor, weights: Tensor | None, piece: slice, draw: Draw, want_slope: bool
) -> tuple[Tensor, Tensor | None]:
    numerators = torch.empty(piece.stop - piece.start, dtype=torch.int32, device=logits.device)
    fill_numerators(numerators, piece.start, draw)
    kept, slope = decide(logits[piece], numerators, draw, want_slope)
    return kept, slope if slope is None or weights is None else slope.mul_(weights[piece])


# --- the kernels ----------------------------------------------------------------------------------------------

K_LIMIT, K_LOG2_E, K_ROUND = constexpr(LIMIT), constexpr(LOG2_E), constexpr(ROUND)
C0, C1, C2, C3, C4 = (constexpr(value) for value in EXP2_COEFFICIENTS)
GRID = constexpr(float(1 << 24))


@jit
def _power_of_two(y):
    """2^y for |y| <= K_LIMIT log2 e, in the torch path's order of operations."""
    shifted = y + K_ROUND
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    r = y - (shifted - K_ROUND)
    series = ((((r * C0 + C1) * r + C2) * r + C3) * r + C4) * r + 1.0
    return (series.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)


@jit
def _keep_exactly(pi, a, SQUASH: tl.constexpr):
    """The decision u > 1 - sigmoid(g(pi)), as a exp(g) > 2^24 - a, as the torch path rounds it."""
    x = tl.minimum(tl.maximum(pi, -K_LIMIT), K_LIMIT)
    if SQUASH:
        x = tl.div_rn(1.0, _power_of_two(x * -K_LOG2_E) + 1.0)
    return _power_of_two(x * K_LOG2_E) * a > GRID - a


@jit
def _keep(pi, a, SQUASH: tl.constexpr, BAND: tl.constexpr):
    """The same decision, by the hardware's exponential wherever its error cannot matter."""
    x = tl.minimum(tl.maximum(pi, -K_LIMIT), K_LIMIT)
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
    location = (
        tl.where(pi > 0, inverse, e * inverse) if SQUASH else tl.minimum(tl.maximum(pi, -K_LIMIT), K_LIMIT)
    )
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
def _sample(  # noqa: PLR0913 - the kernel's arguments
    logits, weights, out, a, bound, SQUASH: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BAND: tl.constexpr
):
    values = load(weights, bound) if HAS_WEIGHTS else 1.0
    kept = tl.where(_keep(load(logits, bound), a, SQUASH, BAND), values, 0.0)
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
    upstream = load(gradient, bound)
    pi = load(logits, bound)
    if LOGITS:
        result = upstream * _slope(pi, a, scale, SQUASH, UNIT)
        if HAS_WEIGHTS:
            result = result * load(weights, bound)
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


def _signed(word: int) -> int:
    """A 32-bit word as the int32 with the same bits, so that every seed has one kernel signature."""
    return word - (1 << 32) if word >> 31 else word


def _scalars(draw: Draw) -> tuple[int, int, int | Tensor]:
    low, high = draw.key
    offset = draw.offset
    return _signed(low), _signed(high), offset if isinstance(offset, Tensor) else _signed(offset)


def launch_sample(
    logits: Tensor, weights: Tensor | None, out: Tensor, draw: Draw, chosen: Configuration = SAMPLE
) -> None:
    """Fill `out` `[P]` with masks, or with weight * mask where weights are given; all contiguous."""
    with on_device(logits):
        sample_masks_kernel[(-(-logits.numel() // chosen.block),)](
            logits, logits if weights is None else weights, as_bytes(out), logits.numel(), *_scalars(draw),
            SQUASH=draw.squash, HAS_WEIGHTS=weights is not None, ON_DEVICE=isinstance(draw.offset, Tensor),
            BAND=chosen.band, BLOCK=chosen.block, num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


def launch_sample_backward(
    gradient: Tensor, logits: Tensor, weights: Tensor | None, to_logits: Tensor, to_weights: Tensor,
    draw: Draw, chosen: Configuration = SAMPLE,
) -> None:  # fmt: skip
    """Fill the gradients (each `[P]`, or empty where not asked for); all contiguous."""
    with on_device(logits):
        sample_masks_backward_kernel[(-(-logits.numel() // chosen.block),)](
            gradient, logits, logits if weights is None else weights, to_logits, to_weights, logits.numel(),
            *_scalars(draw), 1 / draw.temperature, SQUASH=draw.squash, UNIT=draw.temperature == 1,
            HAS_WEIGHTS=weights is not None, ON_DEVICE=isinstance(draw.offset, Tensor), LOGITS=to_logits.numel() > 0,
            WEIGHTS=to_weights.numel() > 0, BAND=chosen.band, BLOCK=chosen.block,
            num_warps=chosen.num_warps, enable_fp_fusion=False,
        )  # fmt: skip


# --- the operation --------------------------------------------------------------------------------------------

CERTAIN = "one launch, 8 to 14 bytes an element, against over 150 launches of torch over all elements"
"""Philox alone is 100 operations on 64-bit integers in torch: the kernel wins on a GPU at every size."""
_DRAW = "Tensor? counter, SymInt seed, SymInt offset, float temperature, bool squash"


def _choose_sampling(
    logits: Tensor, weights: Tensor | None, dtype: torch.dtype, backend: str | None
) -> Choice:
    """The backend for an output of `dtype`. Raises ArgumentError on an unknown name."""
    dtypes = logits.dtype, dtype, logits.dtype if weights is None else weights.dtype
    refusal, device = refusal_of(dtypes), logits.device
    return select("sample_masks", backend, device, narrowest(dtypes), refusal=refusal, certain=CERTAIN)


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
        forward_in_torch(logits, weights, out, slope, _draw_of(*draw))
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
        backward_in_torch(gradient, logits, weights, slope, *grads, _draw_of(*draw))
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
def _explain(logits, *, weights=None, mask_dtype=None, weight_dtype=None, backend=None, **draw) -> Choice:
    _checked_draw(**draw)
    return _choose_sampling(*_checked_sampling(logits, weights, mask_dtype, weight_dtype), backend)


def _checked_draw(
    seed: int, offset: int | Tensor = 0, temperature: float = 1.0, squash: bool = True
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
    logits: Form, weights: Form | None, mask_dtype: torch.dtype | None, weight_dtype: torch.dtype | None
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
    check_pairs("weights", weights, "logits", logits)
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
        check_layers(name, value)
        flat = torch.cat([tensor.reshape(-1) for tensor in value.values()])
    else:
        flat = check_tensor(name, value).reshape(-1)
    check_floating(name, flat)
    check_size(name, flat.numel())
    return flat
