"""What a profile found: plain values, written as JSON and CSV. A figure that is missing is None, with a reason."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunebench.record import Percentiles

SCHEMA_VERSION = 1
EAGER, COMPILED = "torch", "torch.compile"
"""The dense baselines: eager channels_last convolution, and the same compiled with its bias and ReLU."""
CPU_LINE = "CPU paths only: no CUDA device"
NOT_MEASURED = "not measured"
SHRUNK = "dead channels removed"

DENSE = (EAGER, COMPILED, "dense")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one implementation, hot and cold cache, or why there are none.

    `error` is the largest deviation from the dense result, over the largest dense value.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    hot_ms: Percentiles | None = None
    cold_ms: Percentiles | None = None
    error: float | None = None
    backend: str | None = None
    not_measured: str | None = None

    @property
    def is_sparse(self) -> bool:
        return self.name not in DENSE

    @property
    def family(self) -> str:
        """The layout without its settings: `block` for any size of blocks."""
        return "block" if self.name.startswith("block ") else self.name

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
    """A whole network: latency of a batch, megabytes (10^6) of weights and of activations at their peak."""

    name: str
    pattern: str | None = None
    sparsity: float | None = None
    latency_ms: Percentiles | None = None
    weights_mb: float | None = None
    peak_activations_mb: float | None = None
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
    """(Sparsity asked or stored, speed-up over eager) of a family of layouts on a layer, by sparsity."""
    found = []
    for result in results:
        best = result.fastest(cache, family)
        speed = result.speed_up(best.name, cache) if best else None
        sparsity = result.sparsity if result.sparsity is not None else result.achieved
        if (result.layer, result.pattern) == (layer, pattern) and speed and sparsity is not None:
            found.append((sparsity, speed))
    return sorted(found)


def shown_layers(profile: Profile) -> list[str]:
    """Names of the layers with any measurement, in the order of the network."""
    return list(dict.fromkeys(result.layer for result in profile.layers if result.timings))


def shown_patterns(profile: Profile) -> list[str]:
    """Patterns with any measurement, as asked for."""
    return list(dict.fromkeys(result.pattern for result in profile.layers if result.timings))


def to_json(profile: Profile) -> str:
    """Sorted keys; None and nan as null."""
    return json.dumps(_plain(dataclasses.asdict(profile)), sort_keys=True, indent=1, default=str) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def layers_csv(profile: Profile) -> str:
    """One row for each layer, pattern, sparsity, implementation and cache state; the environment in every row."""
    return _csv(_layer_rows(profile), profile)


def networks_csv(profile: Profile) -> str:
    """One row a network; the environment in every row."""
    rows = []
    for network in profile.networks:
        row = {key: value for key, value in dataclasses.asdict(network).items() if key != "latency_ms"}
        row["layouts"] = " ".join(f"{name}={layout}" for name, layout in network.layouts.items())
        rows.append(row | _marks(network.latency_ms))
    return _csv(rows, profile)


def _layer_rows(profile: Profile) -> Iterator[dict[str, Any]]:
    for result in profile.layers:
        common = {
            "layer": result.layer, "layers_of_this_shape": len(result.same_shape), "shape": result.shape,
            "pattern": result.pattern, "sparsity": result.sparsity, "achieved": result.achieved,
            "auto": result.auto,
        }  # fmt: skip
        roof = dataclasses.asdict(result.roof) if result.roof else {}
        for timing in result.timings or (Timing("", not_measured=result.not_measured),):
            for cache in ("hot", "cold"):
                yield {
                    **common, "implementation": timing.name, "cache": cache,
                    **_marks(timing.hot_ms if cache == "hot" else timing.cold_ms),
                    "speed_up": result.speed_up(timing.name, cache),
                    "speed_up_over_compiled": result.speed_up(timing.name, cache, COMPILED),
                    "error": timing.error, "backend": timing.backend,
                    "kernel_settings": json.dumps(timing.settings, sort_keys=True, default=str),
                    "not_measured": timing.not_measured, **roof,
                }  # fmt: skip


def _marks(times: Percentiles | None) -> dict[str, float | None]:
    marks = (times.p20, times.p50, times.p80) if times else (None, None, None)
    return dict(zip(("p20_ms", "p50_ms", "p80_ms"), marks))


def _csv(rows: Iterator[dict[str, Any]] | list[dict[str, Any]], profile: Profile) -> str:
    kept = ("model", "image", "batch", "seed", "precision", "repeats")
    constant = {key: profile.settings.get(key) for key in kept}
    constant |= profile.environment | {key: profile.code.get(key) for key in ("version", "commit", "dirty")}
    constant |= {"started_utc": profile.started_utc, "note": profile.note}
    full = [row | constant for row in rows]
    columns = list(dict.fromkeys(key for row in full for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(full)
    return stream.getvalue()
