"""What both paths of mask sampling share, so that their masks are the same bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEED, MAX_DRAWS = 1 << 63, 1 << 32
MAX_ELEMENTS = 1 << 33
"""Four elements a counter, counted in a signed 32-bit integer."""

LIMIT = 40.0
"""Logits are clamped here for the decision. Beyond 17 it is certain: u lies on a grid of 2^-24."""

LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts; n * LN2_HIGH is exact for |n| < 2^14."""
ROUND = 12582912.0
"""1.5 * 2^23: adding it rounds a float32 to an integer, in the low bits of the sum."""
EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
"""(exp r - 1 - r) / r^2 on |r| <= ln 2 / 2, highest power first (Cephes' expf, Moshier)."""


@dataclass(frozen=True)
class Draw:
    """One draw of all masks: the key, the number of the draw, and the two settings of the formula."""

    seed: int
    offset: int
    temperature: float
    squash: bool

    @property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the seed, low first."""
        return self.seed & 0xFFFFFFFF, self.seed >> 32
