"""The colour protocol of Learning from Failure (Nam et al., 2020): a colour for every digit.

pixel = gray * clamp(mean_colour[bias] + N(0, 1) * std, 0, 1), one noise 3-vector an image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MEAN_COLOURS: NDArray[np.float64] = np.array(
    [
        (0.984, 0.313, 0.169),
        (0.991, 0.916, 0.352),
        (0.673, 0.461, 0.580),
        (0.783, 0.832, 0.601),
        (0.088, 0.778, 0.982),
        (0.321, 0.961, 0.446),
        (0.025, 0.236, 0.759),
        (0.555, 0.102, 0.762),
        (0.208, 0.393, 0.019),
        (0.834, 0.202, 0.267),
    ]
)
SEVERITY_STD = (0.05, 0.02, 0.01, 0.005, 0.002)


def assign_bias(y: NDArray[np.int64], conflicting_share: float, num_biases: int = 10) -> NDArray[np.int64]:
    """A bias for every sample, exact by class: 1 - r on the diagonal, r / (B - 1) on each other value.

    y: `[N]`. Within a class, samples in order are cut at the rounded cumulative shares, as LfF does, so the
    counts are deterministic; shuffle the samples first for another draw. `conflicting_share` =
    (B - 1) / B gives the uniform assignment.
    """
    bias = np.empty_like(y)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        shares = np.full(num_biases, conflicting_share / (num_biases - 1))
        shares[label % num_biases] = 1.0 - conflicting_share
        edges = np.rint(np.cumsum(shares) * len(members)).astype(np.int64)
        edges[-1] = len(members)
        bias[members] = np.searchsorted(edges, np.arange(len(members)), side="right")
    return bias


def colour(
    gray: NDArray[np.uint8], bias: NDArray[np.int64], generator: np.random.Generator, severity: int = 4
) -> NDArray[np.uint8]:
    """Paint grey images `[N, H, W]` in their bias colour: uint8 `[N, 3, H, W]`; severity 1 to 5."""
    noise = generator.standard_normal((len(gray), 3)) * SEVERITY_STD[severity - 1]
    tint = np.clip(MEAN_COLOURS[bias] + noise, 0.0, 1.0).astype(np.float32)
    painted = np.empty((len(gray), 3, *gray.shape[1:]), dtype=np.uint8)
    for channel in range(3):
        painted[:, channel] = np.rint(gray * tint[:, channel, None, None])
    return painted
