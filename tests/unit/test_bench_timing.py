"""The timing helper of the benchmarks: turns, cold caches, percentiles, a clock that can be replaced."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from timing import (
    MOST_ROUNDS,
    compiled,
    flusher,
    kernel_sums,
    quantile,
    synchronised,
    time_calls,
)

CPU = torch.device("cpu")


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float) -> Callable[[], None]:
        """A call that takes the given seconds in turn, over and over."""
        turns = 0

        def call() -> None:
            nonlocal turns
            self.now += seconds[turns % len(seconds)]
            turns += 1

        return call


def test_percentiles_of_known_durations() -> None:
    clock = FakeClock()
    # The two warm-up calls take the first two durations of the five.
    call = clock.work(0.004, 0.005, 0.001, 0.002, 0.003)
    timing = time_calls({"a": call}, CPU, rounds=5, clock=clock)["a"]
    assert (timing.p20_ms, timing.p50_ms, timing.p80_ms) == pytest.approx((1.8, 3.0, 4.2))
    assert (timing.rounds, timing.method, timing.l2) == (5, "host-clock", "hot")


def test_candidates_are_timed_in_turns() -> None:
    order: list[str] = []
    time_calls({name: lambda name=name: order.append(name) for name in "ab"}, CPU, rounds=3)  # type: ignore[misc]
    assert "".join(order) == "aabb" + "ababab"


def test_it_stops_after_the_seconds_it_was_given() -> None:
    clock = FakeClock()
    timings = time_calls({"a": clock.work(0.125), "b": clock.work(0.375)}, CPU, seconds=4.0, clock=clock)
    assert timings["a"].rounds == timings["b"].rounds == 8
    assert timings["b"].p50_ms == pytest.approx(375)


def test_slow_calls_get_five_rounds_and_fast_ones_not_endless_ones() -> None:
    clock = FakeClock()
    assert time_calls({"slow": clock.work(9.0)}, CPU, seconds=1.0, clock=clock)["slow"].rounds == 5
    assert time_calls({"free": clock.work(0.0)}, CPU, seconds=1.0, clock=clock)["free"].rounds == MOST_ROUNDS


def test_a_cold_cache_is_flushed_before_every_sample_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    flushes: list[float] = []

    def flush() -> None:
        flushes.append(clock.now)
        clock.now += 10.0

    monkeypatch.setattr("timing.flusher", lambda device: flush)
    timing = time_calls({"a": clock.work(0.002)}, CPU, rounds=4, cold=True, clock=clock)["a"]
    assert len(flushes) == 4
    assert timing.p80_ms == pytest.approx(2.0)
    assert timing.l2 == "cold"


def test_the_flush_writes_as_much_as_it_says() -> None:
    written = flusher(CPU, size=4096)()
    assert isinstance(written, torch.Tensor)
    assert written.nbytes == 4096
    assert (written == -1).all()


def test_kernels_are_summed_between_flushes() -> None:
    flush = "void elementwise_kernel<bitwise_not_kernel>"
    events = [
        (30.0, 7.0, "late"),
        (0.0, 99.0, "before the first flush"),
        (1.0, 50.0, flush),
        (2.0, 1.5, "gemm"),
        (3.0, 0.5, "Memcpy DtoH"),
        (20.0, 50.0, flush),
    ]
    assert kernel_sums(events) == pytest.approx([2e-3, 7e-3])
    assert kernel_sums([]) == []


def test_quantiles() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0], 0.2) == pytest.approx(1.2)
    assert math.isnan(quantile([], 0.5))


def test_synchronised_returns_the_result() -> None:
    assert synchronised(lambda: 7, CPU)() == 7


def test_a_failing_call_leaves_the_collector_on() -> None:
    import gc

    calls = 0

    def fail_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        time_calls({"a": fail_later}, CPU, rounds=2)
    assert gc.isenabled()


def test_the_compiled_baseline_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.update(options) or function)
    assert compiled(lambda x: x + 1)(1) == 2
    assert seen == {"dynamic": False, "mode": None}
