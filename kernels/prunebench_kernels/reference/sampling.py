"""The oracle of mask sampling: Philox word by word in Python integers, the mask's formula with autograd."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a counter of four and a key of two.

    Source: Salmon et al., SC 2011 (Parallel random numbers: as easy as 1, 2, 3), and its library Random123.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high % 2**32, (low >> 32) ^ c3 ^ k1, low % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def uniforms(count: int, *, seed: int, offset: int = 0) -> Tensor:
    """The uniform numbers `[count]` (float64, exact) of draw `offset`: u = ((word >> 8) | 1) / 2^24.

    Element e takes word e % 4 of the counter (e // 4, offset, 0, 0) under the key (seed % 2^32, seed // 2^32):
    what Triton's `tl.randint4x(seed, offset * 2^32 + e // 4)` gives.
    """
    key = (seed % 2**32, seed >> 32)
    words = [philox4x32((counter, offset, 0, 0), key) for counter in range(-(-count // 4))]
    return torch.from_numpy(((np.array(words, dtype=np.int64).ravel()[:count] >> 8) | 1) / 2**24)


class _StraightThrough(torch.autograd.Function):
    """hard(s) = [s > 1/2] forward, the identity backward (Bengio et al., 2013)."""

    @staticmethod
    def forward(context: object, soft: Tensor) -> Tensor:
        return (soft > 0.5).to(soft.dtype)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def sample_masks(logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, squash: bool = True) -> Tensor:
    """Hard 0/1 masks from Gumbel-sigmoid logits and given uniform numbers, with straight-through gradients.

    s = sigmoid((g(pi) + L) / temperature), mask = [s > 1/2], d mask / d s := 1, where L = log u - log(1 - u)
    is logistic noise (the difference of two Gumbel variables). With `squash`, g is the sigmoid, as DCWP's
    released code has it: the keep-probability then lies in (0.5, 0.731) whatever the logit. Without it, g is
    the identity, as in Csordas et al. (2021). Logits and uniform numbers have one shape.
    Source: Park et al., CVPR 2023, and its released code.
    """
    noise = torch.log(uniform) - torch.log1p(-uniform)
    location = torch.sigmoid(logits) if squash else logits
    return _StraightThrough.apply(torch.sigmoid((location + noise) / temperature))
