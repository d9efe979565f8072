"""Mask sampling in torch: Philox in 64-bit integers, the decision in the kernel's own order of operations.

The masks equal the Triton kernel's bit for bit. All that decides them is exactly rounded: 32-bit integers, and
float32 additions, multiplications and one division, each an operation of its own (nothing fused), with an
exponential written out in them instead of the device's. Elements are worked on in pieces that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_SEED, MAX_DRAWS = 1 << 63, 1 << 32
MAX_ELEMENTS = 1 << 33
"""Four elements a counter, counted in a signed 32-bit integer."""

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
BAND = 2.0**-16
"""Within this relative distance of the border the kernel decides again, in exactly rounded operations.

Elsewhere the hardware's exponential decides. The two differ by less than 5e-6: ex2.approx errs by 2^-22, its
argument's rounding by 1e-6 at |x| = 17, div.full by 2 ulp, the polynomial by 1e-6. One element in 130,000 lies in
the band.
"""


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


PIECE = 1 << 17
"""Elements decided at a time on a CPU, a multiple of 4: the best of 2^15 to 2^18 on a 1 MB L2 cache."""

BLOCK = 1 << 14
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
    c0, c1, c2, c3, spare = (np.empty(min(BLOCK, len(pairs)), np.uint64) for _ in range(5))
    offset = int(draw.offset) & WORD
    for start in range(0, len(pairs), BLOCK):
        rows = pairs[start : start + BLOCK]
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


def forward(logits: Tensor, weights: Tensor | None, out: Tensor, slope: Tensor, draw: Draw) -> None:
    """Fill `out` `[P]` with masks or masked weights, and `slope` (float32 `[P]`, or empty) with d out / d pi."""
    for piece in pieces(logits.numel(), logits.device):
        kept, made = _draw_piece(logits, weights, piece, draw, slope.numel() > 0)
        out[piece] = kept if weights is None else torch.where(kept, weights[piece], 0)
        if made is not None:
            slope[piece] = made


def backward(
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    slope: Tensor,
    to_logits: Tensor,
    to_weights: Tensor,
    draw: Draw,
) -> None:
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
