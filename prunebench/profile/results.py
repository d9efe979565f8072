"""Results of a profile as plain values: what is missing is None, with a reason beside it; break-even."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.pruning.structure import STRUCTURE_NAMES, TWO_FOUR, TWO_FOUR_SPARSITY
from prunebench.report import format as fmt

SCHEMA_VERSION = 1
EAGER, COMPILED, DENSE_LAYOUT = "torch", "torch.compile", "dense"
"""The dense baselines: eager channels_last convolution, the same compiled with bias and ReLU, and the kernels' own."""
FOLDED, AUTO = "torch, BatchNorm folded", "sparse, auto"
COMPILED_NETWORK = f"{COMPILED}, BatchNorm folded"
DENSE_NETWORKS = (COMPILED_NETWORK, FOLDED, EAGER)
SHRUNK = "dead channels removed"
SPARSE_FAMILIES = ("block", "direct", "semi_structured")
NOT_MEASURED, NO_TIME, NOT_COMPILED = (
    "not measured",
    "the time box was full (--minutes)",
    "left out (--no-compile)",
)
STORED = "stored"
"""Pattern: the zeros that the weights already have."""
PATTERNS = (*STRUCTURE_NAMES, STORED)
FIXED_SPARSITY = {STORED: None, TWO_FOUR: TWO_FOUR_SPARSITY}
"""Patterns that have one sparsity, whatever is asked for; None: that of the weights."""
CPU_LINE = "CPU paths only: no CUDA device"


def point_name(pattern: str, sparsity: float | None) -> str:
    """`block at sparsity 0.9`; `2:4` and `stored` have no sparsity to tell."""
    return pattern if pattern in FIXED_SPARSITY else fmt.at_sparsity(pattern, sparsity)


@dataclass(frozen=True)
class LatencyPercentiles:
    """Milliseconds of a call: the 20th, 50th and 80th percentile of so many timed calls."""

    p20: float
    p50: float
    p80: float
    calls: int


@dataclass(frozen=True)
class ImplementationTiming:
    """Milliseconds of one implementation of a layer, hot and cold cache, or why these or those are missing.

    `error` is the largest deviation from the dense result, over the largest dense value.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    hot_ms: LatencyPercentiles | None = None
    cold_ms: LatencyPercentiles | None = None
    error: float | None = None
    backend: str | None = None
    not_measured: str | None = None

    @property
    def is_sparse(self) -> bool:
        return self.name not in (EAGER, COMPILED, DENSE_LAYOUT)

    @property
    def family(self) -> str:
        """The layout without its settings: `block` for any size of blocks, in any memory format."""
        first = re.split("[ ,]", self.name)[0]
        return first if first in SPARSE_FAMILIES else self.name

    def latency(self, cache: str) -> LatencyPercentiles | None:
        """The times with a "hot" or "cold" cache."""
        return self.hot_ms if cache == "hot" else self.cold_ms

    def p50(self, cache: str) -> float | None:
        latency = self.latency(cache)
        return None if latency is None else latency.p50


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
    timings: tuple[ImplementationTiming, ...] = ()
    auto: str | None = None
    auto_reason: str | None = None
    not_measured: str | None = None

    @property
    def point(self) -> str:
        return point_name(self.pattern, self.sparsity)

    def timing(self, name: str) -> ImplementationTiming | None:
        return next((timing for timing in self.timings if timing.name == name), None)

    def latency(self, name: str, cache: str = "hot") -> LatencyPercentiles | None:
        """The times of an implementation, where it was measured."""
        timing = self.timing(name)
        return timing.latency(cache) if timing else None

    def speed_up(self, name: str, cache: str = "hot", over: str = EAGER) -> float | None:
        """Median time of the dense baseline over that of an implementation."""
        dense, other = self.latency(over, cache), self.latency(name, cache)
        return dense.p50 / other.p50 if dense and other and dense.p50 and other.p50 else None

    def fastest(self, cache: str = "hot", family: str | None = None) -> ImplementationTiming | None:
        """The sparse layout (of a family) with the least median; of equals the first."""
        found = [
            (time, index)
            for index, timing in enumerate(self.timings)
            if timing.is_sparse
            and family in (None, timing.family)
            and (time := timing.p50(cache)) is not None
        ]
        return self.timings[min(found)[1]] if found else None

    def best_speed_up(self, cache: str = "hot", family: str | None = None) -> float | None:
        """That of the fastest sparse layout (of a family)."""
        best = self.fastest(cache, family)
        return self.speed_up(best.name, cache) if best else None

    def families(self) -> list[str]:
        """The families of sparse layouts that were measured."""
        return list(dict.fromkeys(t.family for t in self.timings if t.is_sparse and t.hot_ms is not None))


@dataclass(frozen=True)
class NetworkResult:
    """A whole network: latency of a batch, megabytes (10^6) of weights and of activations at their peak.

    `achieved` is the share of zeros among the weights of all its convolutions; those that cannot have the pattern
    are dense. `error` is the largest deviation of the outputs from the plain network's, over the largest output.
    """

    name: str
    pattern: str | None = None
    sparsity: float | None = None
    latency_ms: LatencyPercentiles | None = None
    weights_mb: float | None = None
    peak_activations_mb: float | None = None
    achieved: float | None = None
    error: float | None = None
    layouts: dict[str, str] = field(default_factory=dict)
    not_measured: str | None = None

    @property
    def point(self) -> str:
        return point_name(self.pattern or "", self.sparsity)


def fastest_dense(networks: Iterable[NetworkResult]) -> NetworkResult | None:
    """The dense network with the least median, of equals the first; None if none was timed."""
    timed = [network for network in networks if network.name in DENSE_NETWORKS and network.latency_ms]
    return min(timed, key=lambda network: network.latency_ms.p50 if network.latency_ms else 0.0, default=None)


@dataclass(frozen=True)
class SweepPoint:
    """The fastest dense network and the sparse one, timed in turns, at a batch size and a number of threads."""

    batch: int
    threads: int
    dense: NetworkResult
    sparse: NetworkResult

    @property
    def speed_up(self) -> float | None:
        """Median time of the dense network over that of the sparse one."""
        dense, sparse = self.dense.latency_ms, self.sparse.latency_ms
        return dense.p50 / sparse.p50 if dense and sparse else None

    def images_per_second(self, network: NetworkResult) -> float | None:
        """The batch over the median time of one of the two."""
        return 1e3 * self.batch / network.latency_ms.p50 if network.latency_ms else None


@dataclass(frozen=True)
class OperatingPoint:
    """What a network takes for a batch, and how many images it serves in a second."""

    network: str
    batch: int
    threads: int
    latency_ms: float
    images_per_second: float


def operating_points(sweep: Iterable[SweepPoint]) -> list[OperatingPoint]:
    """All networks of a sweep; the dense one, timed beside each pattern, where it was fastest."""
    found: dict[tuple[str, int, int], OperatingPoint] = {}
    for point in sweep:
        for name, network in (("dense", point.dense), (point.sparse.point, point.sparse)):
            speed, place = point.images_per_second(network), (name, point.threads, point.batch)
            if speed is None or network.latency_ms is None:
                continue
            if place not in found or speed > found[place].images_per_second:
                found[place] = OperatingPoint(name, point.batch, point.threads, network.latency_ms.p50, speed)
    return list(found.values())


def pareto_front(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """The points that no other beats in both latency and throughput, by latency."""
    front: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.latency_ms, -point.images_per_second)):
        if not front or point.images_per_second > front[-1].images_per_second:
            front.append(point)
    return front


@dataclass(frozen=True)
class Ceilings:
    """Measured bounds of a machine, and what is flushed for cold times.

    Copied bytes are read and written. The bound of arithmetic is the better of a square product and a large 3 x 3
    convolution: on some processors the library multiplies matrices slower than it convolves.
    """

    copy_gb_per_s: float
    matmul_gflop_per_s: float
    convolution_gflop_per_s: float = 0.0
    cache_mb: float = 0.0
    flushed_mb: float = 0.0

    @property
    def gflop_per_s(self) -> float:
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
    machine: Ceilings | None
    layers: tuple[LayerResult, ...]
    networks: tuple[NetworkResult, ...]
    left_out: tuple[str, ...]
    interrupted: bool
    note: str | None
    sweep: tuple[SweepPoint, ...] = ()

    @property
    def layer_names(self) -> list[str]:
        """The layers with any measurement, in the order of the network."""
        return list(dict.fromkeys(result.layer for result in self.layers if result.timings))

    @property
    def patterns(self) -> list[str]:
        """The patterns with any measurement, as asked for."""
        return list(dict.fromkeys(result.pattern for result in self.layers if result.timings))

    def dense_baseline(self, network: NetworkResult) -> NetworkResult | None:
        """The fastest dense network that was timed in the same turns; None if none was."""
        return fastest_dense(
            other
            for other in self.networks
            if (other.pattern, other.sparsity) == (network.pattern, network.sparsity)
        )

    def network_speed_up(self, network: NetworkResult) -> float | None:
        """Median time of the dense baseline over that of a network."""
        dense = self.dense_baseline(network)
        if dense is None or dense.latency_ms is None or network.latency_ms is None:
            return None
        return dense.latency_ms.p50 / network.latency_ms.p50


def network_points(profile: Profile, pattern: str) -> list[tuple[float, float]]:
    """(Share of zeros, speed-up over the fastest dense network) of the sparse network at a pattern, by sparsity."""
    return sorted(
        (network.achieved, speed)
        for network in profile.networks
        if network.name == AUTO and network.pattern == pattern and network.achieved is not None
        and (speed := profile.network_speed_up(network)) is not None
    )  # fmt: skip


@dataclass(frozen=True)
class BreakEven:
    """From which sparsity on an implementation is at least as fast as dense.

    `sparsity` is None if it is not within what was measured; `at_most` says that it already was at the least one.
    """

    sparsity: float | None
    at_most: bool = False

    @property
    def words(self) -> str:
        """`0.75`, `≤ 0.5` or `none`."""
        if self.sparsity is None:
            return "none"
        return f"{'≤ ' if self.at_most else ''}{self.sparsity:.3g}"


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


def speed_up_points(
    results: Sequence[LayerResult], family: str, cache: str = "hot"
) -> list[tuple[float, float]]:
    """(Share of zeros, speed-up over eager) of a family of layouts in results of one layer, by sparsity."""
    return sorted(
        (result.achieved, speed)
        for result in results
        if result.achieved is not None and (speed := result.best_speed_up(cache, family))
    )
