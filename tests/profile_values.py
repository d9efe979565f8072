"""A profile with made-up times, to test tables and figures without measuring."""

from __future__ import annotations

from prunebench.profile.results import (
    CPU_LINE,
    EAGER,
    SHRUNK,
    Ceilings,
    ImplementationTiming,
    LatencyPercentiles,
    LayerResult,
    LayerRoof,
    Profile,
)
from prunebench.profile.run import ProfileSettings


def marks(p50: float) -> LatencyPercentiles:
    return LatencyPercentiles(0.9 * p50, p50, 1.2 * p50, 9)


def roof(sparsity: float) -> LayerRoof:
    """A compute-bound layer of 10 GFLOP at 1 TFLOP/s: 10 ms dense, at best 5 times faster."""
    density = max(1 - sparsity, 0.2)
    return LayerRoof(10.0, 100.0, 100.0, "compute", 10.0, 0.2, density, 10 * density, 1 / density, 10 * density,
                     1 / density)  # fmt: skip


def layer(name: str, pattern: str, sparsity: float, **speeds: float) -> LayerResult:
    """A layer whose dense time is 20 ms hot and 25 ms cold, and layouts so many times as fast."""
    timings = [ImplementationTiming(EAGER, hot_ms=marks(20.0), cold_ms=marks(25.0), error=0.0)]
    for family, speed in speeds.items():
        label = {"block": "block 64x64", "shrunk": SHRUNK}.get(family, family)
        timings.append(
            ImplementationTiming(label, hot_ms=marks(20 / speed), cold_ms=marks(25 / speed), error=1e-7)
        )
    return LayerResult(
        name, (name, f"{name}.twin"), "3x3 64->64 @32", pattern, sparsity, sparsity, roof(sparsity), tuple(timings),
        auto="dense", auto_reason="dense was the fastest",
    )  # fmt: skip


def made_up_profile(layers: tuple[LayerResult, ...] | None = None, count: int = 2) -> Profile:
    """Unstructured and block zeros at three sparsities, 2:4 without a layout; break-even of block at 0.75."""
    found = layers or tuple(
        result
        for number in range(count)
        for name in [f"layer{number}.conv"]
        for result in (
            layer(name, "block", 0.5, block=0.5),
            layer(name, "block", 0.875, block=2.0),
            layer(name, "block", 0.95, block=3.0, shrunk=1.2),
            layer(name, "unstructured", 0.5),
            layer(name, "unstructured", 0.95, direct=0.4),
            layer(name, "unstructured", 0.99, direct=1.6, compact=0.7),
            layer(name, "2:4", 0.5),
        )
    )
    settings = vars(ProfileSettings().resolved()) | {"command": None}
    return Profile(
        schema_version=1, started_utc="2026-01-02T03:04:05Z", seconds=1.0, command="prunebench profile",
        settings=settings, environment={"cpu": "a <CPU>", "gpu": None, "threads": 2, "torch": "2", "device": "cpu"},
        code={"version": "0", "commit": None, "dirty": None}, machine=Ceilings(50.0, 1000.0, 900.0, 32.0, 64.0),
        layers=found, networks=(), left_out=(), interrupted=False, note=CPU_LINE,
    )  # fmt: skip
