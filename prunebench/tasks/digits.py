"""What can be said of a digit with yes or no, and how a second attribute is tied to it in exact counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DIGIT_ATTRIBUTES: dict[str, tuple[int, ...]] = {
    "large": (5, 6, 7, 8, 9),
    "even": (0, 2, 4, 6, 8),
    "loop": (0, 6, 8, 9),
    "straight": (1, 4, 7),
    "seven": (7,),
}
"""The digits that have each attribute: five or more; even; a closed loop; straight strokes only; a seven."""


def has_attribute(digit: NDArray[np.int64], name: str) -> NDArray[np.bool_]:
    """Which of the digits `[N]` have the attribute `name`: bool `[N]`."""
    return np.isin(digit, DIGIT_ATTRIBUTES[name])


def choose_shares(
    stratum: NDArray[np.int64], shares: Sequence[float], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose exactly round(shares[s] * n_s) of the n_s samples of every stratum s, at random: bool `[N]`.

    stratum: indices `[N]` into shares.
    """
    chosen = np.zeros(len(stratum), dtype=np.bool_)
    for value, share in enumerate(shares):
        members = generator.permutation(np.flatnonzero(stratum == value))
        chosen[members[: round(share * len(members))]] = True
    return chosen
