"""Measured speed of a run: dense over pruned, its noise floor, and whether the machine was too busy to say."""

from __future__ import annotations

import math

from prunebench.results.record import CostReport, Percentiles

MOST_SPREAD = 1.3
"""The largest p80 / p20 of a quiet machine: beside busy neighbours it flagged 39 of 40 ratios that were off by 10 %."""
MOST_OFF = 0.05
"""How far the dense network timed against itself may be from 1."""


def spread_of(times: Percentiles) -> float:
    """p80 / p20."""
    return times.p80 / times.p20 if times.p20 else float("inf")


def speed_up(cost: CostReport) -> float:
    """Ratio of the medians, dense / pruned; nan where the pruned one was not measured."""
    pruned = cost.latency_pruned_ms.p50
    return cost.latency_dense_ms.p50 / pruned if pruned else math.nan


def noise_floor(cost: CostReport) -> float | None:
    """The same of the dense network against itself; None for runs that did not time it twice (before schema 5)."""
    again = cost.latency_again_ms
    return None if again is None else cost.latency_dense_ms.p50 / again.p50


def disturbance(cost: CostReport) -> str | None:
    """Why the latencies of a run say little, in words; None if they were taken on a quiet machine.

    Such runs stay in the record and on the board, but in no headline; `prunebench retime` measures them again.
    """
    times = (cost.latency_dense_ms, cost.latency_pruned_ms)
    spread = max(cost.latency_wall_spread or 1.0, *map(spread_of, times))
    if spread > MOST_SPREAD:
        return f"times spread {spread:.2f}-fold (p80 / p20) while it was measured"
    floor = noise_floor(cost)
    if floor is not None and abs(floor - 1) > MOST_OFF:
        return f"the dense network measured {floor:.2f}x as fast as itself"
    return None
