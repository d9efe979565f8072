"""What a profile found: plain values, written as JSON and CSV. A figure that is missing is None, with a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
EAGER, COMPILED = "torch", "torch.compile"
"""The dense baselines: eager channels_last convolution, and the same compiled with its bias and ReLU."""
CPU_LINE = "CPU paths only: no CUDA device"
NOT_MEASURED = "not measured"
NO_TIME = "the time box was full (--minutes)"
SHRUNK = "dead channels removed"

DENSE = (EAGER, COMPILED, "dense")
SPARSE_FAMILIES = ("block", "direct", "semi_structured")


@dataclass(frozen=True)
class Times:
    """Milliseconds of a call: the 20th, 50th and 80th percentile of so many timed calls."""

    p20: float
    p50: float
    p80: float
    calls: int


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one implementation, hot and cold cache, or why these or those are missing.

    `error` is the largest deviation from the dense result, over the largest dense value.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    hot_ms: Times | None = None
    cold_ms: Times | None = None
    error: float | None = None
    backend: str | None = None
    not_measured: str | None = None

    @property
    def is_sparse(self) -> bool:
        return self.name not in DENSE

    @property
    def family(self) -> str:
        """The layout without its settings: `block` for any size of blocks, in any memory format."""
        first = re.split("[ ,]", self.name)[0]
        return first if first in SPARSE_FAMILIES else self.name

    def p50(self, cache: str) -> float | None:
        times = self.hot_ms if cache == "hot" else self.cold_ms
        return None if times is None else times.p50


@dataclass(frozen=True)
class LayerRoof:
    """Where a layer stands beneath the machine's ceilings.

    Densities are shares of weights: `block_density` those in 64 x 64 blocks with any non-zero. `block_ms` bounds
    kernels that skip zero blocks, `free_ms` those for which every zero is free; the ceilings are dense_ms over these.
    """

    gflop: float
    megabytes: float
    flop_per_byte: float
    bound_by: str
    dense_ms: float
    memory_bound_below_density: float
    block_density: float
    block_ms: float
    block_ceiling: float
    free_ms: float
    free_ceiling: float


@dataclass(frozen=True)
class LayerResult:
    """One layer at one pattern and sparsity: every implementation, and what `auto` takes."""

    layer: str
    same_shape: tuple[str, ...]
    shape: str
    pattern: str
    sparsity: float | None
    achieved: float | None
    roof: LayerRoof | None = None
    timings: tuple[Timing, ...] = ()
    auto: str | None = None
    auto_reason: str | None = None
    not_measured: str | None = None

    def timing(self, name: str) -> Timing | None:
        return next((timing for timing in self.timings if timing.name == name), None)

    def speed_up(self, name: str, cache: str = "hot", over: str = EAGER) -> float | None:
        """Median time of the dense baseline over that of an implementation."""
        base, other = self.timing(over), self.timing(name)
        times = (entry.p50(cache) if entry else None for entry in (base, other))
        dense, sparse = times
        return dense / sparse if dense and sparse else None

    def fastest(self, cache: str = "hot", family: str | None = None) -> Timing | None:
        """The sparse layout (of a family) with the least median; of equals the first."""
        found = [
            (time, index)
            for index, timing in enumerate(self.timings)
            if timing.is_sparse
            and family in (None, timing.family)
            and (time := timing.p50(cache)) is not None
        ]
        return self.timings[min(found)[1]] if found else None

    def families(self) -> list[str]:
        """The families of sparse layouts that were measured."""
        return list(dict.fromkeys(t.family for t in self.timings if t.is_sparse and t.p50("hot") is not None))


@dataclass(frozen=True)
class NetworkResult:
    """A whole network: latency of a batch, megabytes (10^6) of weights and of activations at their peak.

    `achieved` is the share of zeros among the weights of all its convolutions; those that cannot have the pattern
    are dense. `error` is the largest deviation of the outputs from the plain network's, over the largest output.
    """

    name: str
    pattern: str | None = None
    sparsity: float | None = None
    latency_ms: Times | None = None
    weights_mb: float | None = None
    peak_activations_mb: float | None = None
    achieved: float | None = None
    error: float | None = None
    layouts: dict[str, str] = field(default_factory=dict)
    not_measured: str | None = None


@dataclass(frozen=True)
class Machine:
    """Measured ceilings and what was flushed for cold times."""

    copy_gb_per_s: float
    matmul_gflop_per_s: float
    convolution_gflop_per_s: float
    cache_mb: float
    flushed_mb: float

    @property
    def gflop_per_s(self) -> float:
        """The bound of arithmetic: the better of product and convolution."""
        return max(self.matmul_gflop_per_s, self.convolution_gflop_per_s)


@dataclass(frozen=True)
class Profile:
    """Everything that a profile found, and where and how."""

    schema_version: int
    started_utc: str
    seconds: float
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    code: dict[str, Any]
    machine: Machine | None
    layers: tuple[LayerResult, ...]
    networks: tuple[NetworkResult, ...]
    left_out: tuple[str, ...]
    interrupted: bool
    note: str | None


@dataclass(frozen=True)
class BreakEven:
    """From which sparsity on an implementation is at least as fast as dense.

    `sparsity` is None if it is not within what was measured; `at_most` says that it already was at the least one.
    """

    sparsity: float | None
    at_most: bool = False

    @property
    def words(self) -> str:
        if self.sparsity is None:
            return "none measured"
        return f"{'at most ' if self.at_most else ''}{self.sparsity:.3g}"


def break_even(points: Sequence[tuple[float, float]]) -> BreakEven:
    """The break-even of (sparsity, speed-up) points: from there on no measured speed-up is below 1.

    Between two points the logarithm of the speed-up is taken as linear in that of the density.
    """
    ordered = sorted(points)
    start = len(ordered)
    while start and ordered[start - 1][1] >= 1:
        start -= 1
    if start == len(ordered):
        return BreakEven(None)
    sparsity, speed = ordered[start]
    if start == 0:
        return BreakEven(sparsity, at_most=True)
    before, slower = ordered[start - 1]
    share = -math.log(slower) / (math.log(speed) - math.log(slower))
    density = (1 - before) ** (1 - share) * (1 - sparsity) ** share
    return BreakEven(1 - density)


def series(
    results: Sequence[LayerResult], layer: str, pattern: str, family: str, cache: str = "hot"
) -> list[tuple[float, float]]:
    """(Share of zeros, speed-up over eager) of a family of layouts on a layer, by sparsity."""
    found = []
    for result in results:
        best = result.fastest(cache, family)
        speed = result.speed_up(best.name, cache) if best else None
        if (result.layer, result.pattern) == (layer, pattern) and speed and result.achieved is not None:
            found.append((result.achieved, speed))
    return sorted(found)


def shown_layers(profile: Profile) -> list[str]:
    """Names of the layers with any measurement, in the order of the network."""
    return list(dict.fromkeys(result.layer for result in profile.layers if result.timings))


def shown_patterns(profile: Profile) -> list[str]:
    """Patterns with any measurement, as asked for."""
    return list(dict.fromkeys(result.pattern for result in profile.layers if result.timings))
