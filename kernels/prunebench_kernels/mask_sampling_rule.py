"""What both paths of mask sampling share, so that their masks are the same bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

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
    """One draw of all masks: the key, the number of the draw, and the two settings of the formula."""

    seed: int
    offset: int
    temperature: float
    squash: bool

    @property
    def key(self) -> tuple[int, int]:
        """The two 32-bit words of the seed, low first."""
        return self.seed & 0xFFFFFFFF, self.seed >> 32
