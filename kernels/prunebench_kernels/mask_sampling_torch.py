"""Mask sampling in torch: Philox in 64-bit integers, the decision in the kernel's own order of operations.

The masks equal the Triton kernel's bit for bit. All that decides them is exactly rounded: 32-bit integers, and
float32 additions, multiplications and one division, each an operation of its own (nothing fused), with an
exponential written out in them instead of the device's. Elements are worked on in pieces that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunebench_kernels.mask_sampling_rule import (
    EXP_COEFFICIENTS,
    LIMIT,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ROUND,
    Draw,
)

PIECE = 1 << 18
"""Elements worked on at a time (six buffers of 512 kB while the words are drawn), a multiple of 4."""

WORD = 0xFFFFFFFF


def philox4x32(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 of four int64 tensors of 32-bit counters, which are overwritten; four words in int64.

    Words 1 and 3 keep unused high bits, which the rounds never look at.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    p0, p2 = torch.empty_like(c0), torch.empty_like(c0)
    for _ in range(10):
        torch.mul(c0, 0xD2511F53, out=p0)
        torch.mul(c2, 0xCD9E8D57, out=p2)
        torch.bitwise_right_shift(p2, 32, out=c0)
        c0.bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(WORD)
        torch.bitwise_right_shift(p0, 32, out=c2)
        c2.bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, p2, c3, p0 = p2, c1, p0, c3
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def fill_numerators(out: Tensor, start: int, draw: Draw) -> None:
    """Fill int32 `out` with the odd a = (word >> 8) | 1 of the elements from `start`, where u = a / 2^24.

    `start` is a multiple of 4. See `reference.sampling.uniforms` for the order of words.
    """
    counters = -(-out.numel() // 4)
    c0 = torch.arange(start // 4, start // 4 + counters, device=out.device)
    counter = [c0, torch.full_like(c0, draw.offset), torch.zeros_like(c0), torch.zeros_like(c0)]
    whole = out if out.numel() == 4 * counters else out.new_empty(4 * counters)
    w0, w1, w2, w3 = philox4x32(counter, draw.key)
    pairs = whole.view(torch.int64).view(counters, 2)  # two words in one integer: half as many strided copies
    pairs[:, 0] = w1.bitwise_left_shift_(32).bitwise_or_(w0)
    pairs[:, 1] = w3.bitwise_left_shift_(32).bitwise_or_(w2)
    whole.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).bitwise_or_(1)
    if whole is not out:
        out.copy_(whole[: out.numel()])


def exponential_(x: Tensor) -> Tensor:
    """exp(x) for float32 |x| <= LIMIT, relative error under 3e-7; `x` is overwritten.

    n = round(x log2 e), r = x - n ln 2, exp x = 2^n P(r). Polynomial and split of ln 2: Cephes' expf.
    """
    shifted = x * LOG2_E
    shifted += ROUND  # the low bits of the float now hold n
    scale = shifted.view(torch.int32).bitwise_left_shift(23).add_(127 << 23).view(torch.float32)
    shifted -= ROUND
    x -= shifted * LN2_HIGH
    x -= shifted.mul_(LN2_LOW)
    series = x * EXP_COEFFICIENTS[0]
    for coefficient in EXP_COEFFICIENTS[1:]:
        series += coefficient
        series *= x
    series *= x
    series += x
    series += 1.0
    return series.mul_(scale)


def odds(logits: Tensor, squash: bool) -> Tensor:
    """exp(g(pi)) as the kernel computes it; float32, a new tensor."""
    x = logits.to(torch.float32, copy=True).clamp_(-LIMIT, LIMIT)
    if squash:
        x = exponential_(x.neg_()).add_(1.0).reciprocal_()
    return exponential_(x)


def keep(logits: Tensor, numerators: Tensor, squash: bool) -> Tensor:
    """The decision u > 1 - sigmoid(g(pi)), as a exp(g) > 2^24 - a: bool."""
    a = numerators.to(torch.float32)
    chance = odds(logits, squash).mul_(a)
    return chance > a.neg_().add_(float(1 << 24))


def slope(logits: Tensor, numerators: Tensor, draw: Draw) -> Tensor:
    """d s / d pi = s (1 - s) / temperature [* sigmoid'(pi)], in at least float32."""
    pi = logits.to(torch.promote_types(logits.dtype, torch.float32))
    a = numerators.to(pi.dtype)
    noise = a.div_((1 << 24) - a).log_()
    soft = noise.add_(torch.sigmoid(pi) if draw.squash else pi)
    result = _bell(soft.div_(draw.temperature)).div_(draw.temperature)
    if draw.squash:
        result *= _bell(pi.clone() if pi is logits else pi)
    return result


def _bell(x: Tensor) -> Tensor:
    """sigmoid(x) (1 - sigmoid(x)) = e / (1 + e)^2 with e = exp(-|x|): no overflow, no cancellation."""
    e = x.abs_().neg_().exp_()
    below = e + 1.0
    return e.div_(below).div_(below)


def pieces(count: int, device: torch.device) -> Iterator[slice]:
    """Slices, each from a multiple of 4, that cover `count` elements; one slice off the CPU."""
    size = PIECE if device.type == "cpu" else max(count, 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def forward(logits: Tensor, weights: Tensor | None, out: Tensor, noise: Tensor, draw: Draw) -> None:
    """Fill `out` `[P]` with masks or masked weights, and `noise` (int32 `[P]` or empty) with the numerators."""
    for piece in pieces(logits.numel(), logits.device):
        numerators = noise[piece] if noise.numel() else noise.new_empty(piece.stop - piece.start)
        fill_numerators(numerators, piece.start, draw)
        kept = keep(logits[piece], numerators, draw.squash)
        out[piece] = kept if weights is None else torch.where(kept, weights[piece], 0)


def backward(
    gradient: Tensor,
    logits: Tensor,
    weights: Tensor | None,
    noise: Tensor,
    to_logits: Tensor,
    to_weights: Tensor,
    draw: Draw,
) -> None:
    """Fill the gradients (each `[P]`, or empty where not asked for) from that of the output.

    `noise` holds the numerators, or is empty: then they are drawn again.
    """
    for piece in pieces(logits.numel(), logits.device):
        numerators = noise[piece] if noise.numel() else noise.new_empty(piece.stop - piece.start)
        if not noise.numel():
            fill_numerators(numerators, piece.start, draw)
        if to_logits.numel():
            result = slope(logits[piece], numerators, draw).mul_(gradient[piece])
            to_logits[piece] = result if weights is None else result.mul_(weights[piece])
        if to_weights.numel():
            to_weights[piece] = torch.where(keep(logits[piece], numerators, draw.squash), gradient[piece], 0)
