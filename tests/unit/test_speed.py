"""Costs: counted by hand, timed in turns."""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import run_inline, tiny_suite
from prunebench_kernels import measured
from prunebench_kernels.sparsify import WHOLE
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunebench.inference import latency as speed
from prunebench.inference.cost import count_macs, count_parameters
from prunebench.inference.latency import (
    interleaved_latency,
    peak_memory_mb,
    ready_for_inference,
    reset_peak_memory,
)
from prunebench.models import build_model
from prunebench.pruning.masks import apply_masks, make_masks, prunable
from prunebench.results.record import CostReport, Percentiles
from prunebench.results.speed import disturbance, noise_floor, speed_up

CPU = torch.device("cpu")


def tiny_net() -> nn.Sequential:
    """On 5 x 5 images: conv 4 x 3 x 3 x 3 at 25 positions, linear 2 x 100."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(100, 2)
    )


def test_macs_and_parameters_of_a_dense_net() -> None:
    net = tiny_net()
    assert count_macs(net, torch.zeros(1, 3, 5, 5)) == (25 * 108 + 200, 25 * 108 + 200)
    every = 108 + 2 * 4 + 200 + 2
    assert count_parameters(net) == (every, every)


def test_macs_and_parameters_of_a_pruned_net() -> None:
    net = tiny_net()
    conv, linear = torch.zeros(4, 3, 3, 3, dtype=torch.bool), torch.ones(2, 100, dtype=torch.bool)
    conv.view(-1)[:8] = True
    linear[0, :50] = False
    apply_masks(net, {"0.weight": conv, "3.weight": linear})
    assert count_macs(net, torch.zeros(1, 3, 5, 5)) == (2900, 25 * 8 + 150)
    assert count_parameters(net) == (318, 318 - 100 - 50)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 4, 3, stride=2, groups=2), 3 * 3 * 72),  # 8 x 8 to 3 x 3; 4 x 2 x 3 x 3 weights
        (nn.Conv2d(4, 6, 3, dilation=2), 4 * 4 * 216),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=4), 64 * 12),
    ],
    ids=["stride and groups", "dilation", "depthwise"],
)
def test_macs_of_a_convolution(layer: nn.Conv2d, expected: int) -> None:
    assert count_macs(layer, torch.zeros(1, 4, 8, 8)) == (expected, expected)


class _Attention(nn.Module):
    """Patches, a transformer layer, a linear layer over `[N, L, C]`, and a transposed convolution beside."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.up = nn.ConvTranspose2d(3, 5, 3, 2)
        self.head = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.layer(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(tokens).mean(1) + self.up(x).mean()


def test_macs_of_every_product_are_those_of_torch_s_counter() -> None:
    net, x = _Attention(), torch.randn(1, 3, 16, 16)
    with FlopCounterMode(display=False) as oracle:
        net.train()(x)
    total = oracle.get_total_flops() // 2
    assert count_macs(net, x) == (total, total)
    with torch.no_grad():
        net.layer.self_attn.in_proj_weight[:24] = 0  # half of the projections: 16 tokens x 48 x 16
        net.head.weight[:, :4] = 0  # a quarter of 16 tokens x 7 x 16
        net.up.weight[:1] = 0  # a third of 256 positions x 3 x 5 x 9
    spared = 16 * 24 * 16 + 16 * 7 * 4 + 256 * 5 * 9
    assert count_macs(net, x) == (total, total - spared)
    assert count_parameters(net)[0] - count_parameters(net)[1] == 24 * 16 + 7 * 4 + 5 * 9


def test_macs_of_convnet_small() -> None:
    """16 x 16 images: 8 x 8, 4 x 4 and 2 x 2 positions."""
    net = build_model("convnet-small", 10, seed=0)
    expected = 64 * (32 * 3 * 16) + 16 * (64 * 32 * 16) + 4 * (128 * 64 * 16) + 1280
    assert count_macs(net, torch.zeros(1, 3, 16, 16)) == (expected, expected)


def test_counting_leaves_no_hook() -> None:
    net = tiny_net()
    count_macs(net, torch.zeros(1, 3, 5, 5))
    assert not [module for module in net.modules() if module._forward_hooks]


def test_pruned_macs_follow_the_masks() -> None:
    net = build_model("convnet-small", 10, seed=0)
    masks = make_masks({name: weight.abs() for name, weight in prunable(net).items()}, 0.9)
    apply_masks(net, masks)
    positions = dict(zip(masks, (64, 16, 4, 1)))
    expected = sum(positions[name] * int(mask.sum()) for name, mask in masks.items())
    assert count_macs(net, torch.zeros(1, 3, 16, 16))[1] == expected
    total, nonzero = count_parameters(net)
    assert total - nonzero == sum(int((~mask).sum()) for mask in masks.values())


class Spy(nn.Module):
    """Notes when it is called, and in which mode."""

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, self.training))
        return x


def test_latency_takes_turns_in_evaluation_mode() -> None:
    calls: list[tuple[str, bool]] = []
    models = {name: Spy(name, calls).train() for name in ("dense", "pruned")}
    latency = interleaved_latency(models, torch.zeros(1), repeats=4, warmup=2)
    assert calls == [("dense", False), ("pruned", False)] * 6
    assert list(latency) == ["dense", "pruned"]


def test_latency_percentiles_are_positive_and_ordered() -> None:
    net = tiny_net()
    for marks in interleaved_latency({"a": net, "b": net}, torch.zeros(2, 3, 5, 5)).values():
        assert 0 < marks.p20 <= marks.p50 <= marks.p80


def test_latency_percentiles_by_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow model is ten times slower; the warm-up, slower still, does not count."""
    now = [0.0]
    durations = {"fast": iter([9.0, 5e-3, 1e-3, 4e-3, 2e-3, 3e-3]), "slow": iter([9.0, *[2e-2] * 5])}
    clock = SimpleNamespace(
        perf_counter=lambda: now[0],
        thread_time=lambda: now[0],
        get_clock_info=lambda _: SimpleNamespace(resolution=1e-9),
    )
    monkeypatch.setattr(speed, "time", clock)

    class Sleeper(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            now[0] += next(durations[self.name])
            return x

    models = {name: Sleeper(name) for name in durations}
    latency = interleaved_latency(models, torch.zeros(1), repeats=5, warmup=1)
    fast, slow = latency["fast"], latency["slow"]
    expected = np.percentile([1.0, 2.0, 3.0, 4.0, 5.0], [20, 50, 80])
    assert (fast.p20, fast.p50, fast.p80) == pytest.approx(tuple(expected))
    assert (slow.p20, slow.p50, slow.p80) == pytest.approx((20, 20, 20))


def test_latency_on_a_gpu_is_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the layouts are chosen: both networks are warm, then timed by the same timer in the same turns."""
    seen: list[tuple[str, bool]] = []

    def timer(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
        assert seen == [("dense", False), ("pruned", False)] * 2
        return {name: [float(len(name))] * repeats for name in calls}

    monkeypatch.setattr(measured, "time_in_turns", timer)
    x = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    models = {name: Spy(name, seen).train() for name in ("dense", "pruned")}
    latency = interleaved_latency(models, x, repeats=4, warmup=2)  # type: ignore[arg-type]
    assert [marks.p50 for marks in latency.values()] == [5, 6]


class Clock:
    """A wall clock and a thread's clock that a test sets forward."""

    def __init__(self) -> None:
        self.wall = self.busy = 0.0

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.busy

    def get_clock_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(resolution=1e-9)


class Worker(nn.Module):
    """Works for so many milliseconds a call, and waits for the core for those in `waits`, one a call."""

    def __init__(self, clock: Clock, work: float, waits: Iterator[float]) -> None:
        super().__init__()
        self.clock, self.work, self.waits = clock, work, waits

    def forward(self, x: Tensor) -> Tensor:
        self.clock.busy += self.work / 1e3
        self.clock.wall += (self.work + next(self.waits)) / 1e3
        return x


def timed_beside(monkeypatch: pytest.MonkeyPatch, *waits: Iterator[float]) -> speed.Latencies:
    """A network of 4 ms and one of 2 ms, timed while others take the core for so long."""
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    dense, pruned = (Worker(clock, work, wait) for work, wait in zip((4.0, 2.0), waits))
    return speed.quietest_latency(dense, pruned, torch.zeros(1))


def test_another_process_on_the_core_does_not_count_but_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = (itertools.cycle([0.0, 0.0, 9.0]) for _ in range(2))
    latency = timed_beside(monkeypatch, *waits)
    assert latency.clock == "thread CPU time"
    assert [times.p50 for times in latency.times.values()] == pytest.approx([4, 2, 4])
    assert latency.wall_spread > 2
    assert latency.disturbance > 1


def test_a_quiet_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    latency = timed_beside(monkeypatch, itertools.repeat(0.0), (0.0 * next(calls) for _ in itertools.count()))
    assert latency.disturbance == pytest.approx(0)
    assert next(calls) == 3 + 15, "three to warm up, then every turn once"


def test_of_disturbed_tries_the_quietest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try has the larger waits, the third none."""
    noisy = [0.0, 3.0] * 18 + [0.0, 30.0] * 18
    latency = timed_beside(monkeypatch, itertools.chain(noisy, itertools.repeat(0.0)), itertools.repeat(0.0))
    assert latency.wall_spread == pytest.approx(1)


def test_with_more_threads_the_clock_is_on_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    net = tiny_net()
    assert speed.time_models({"a": net}, torch.zeros(2, 3, 5, 5)).clock == "wall clock"


def test_engines_are_timed_on_the_wall_and_behind_a_call_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that works in another thread takes no CPU time of this one; what the one before leaves is not timed."""
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    order: list[str] = []

    def engine(name: str, took: float) -> None:
        clock.wall += took if order[-1:] == [name] else 2 * took
        order.append(name)

    calls = {name: functools.partial(engine, name, took) for name, took in (("a", 1e-3), ("long", 1.0))}
    latency = speed.time_calls(calls, repeats=3, warmup=0, engines=True)
    assert order == [*"aaaaa", "long", "long"] * 3
    assert latency.clock == "wall clock"
    assert [latency.times[name].p80 for name in calls] == pytest.approx([1, 1000])


FLAT = Percentiles(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"latency_again_ms": Percentiles(0.96, 0.96, 0.96)}, None),
        ({"latency_again_ms": Percentiles(0.5, 0.5, 0.5)}, "the dense network measured 2.00x as fast as itself"),
        ({"latency_pruned_ms": Percentiles(1.0, 1.1, 1.29)}, None),
        ({"latency_pruned_ms": Percentiles(1.0, 1.1, 1.5)}, "times spread 1.50-fold (p80 / p20)"),
        ({"latency_wall_spread": 3.456}, "times spread 3.46-fold (p80 / p20)"),
        ({"latency_wall_spread": 1.01}, None),
    ],
)  # fmt: skip
def test_a_disturbed_measurement_is_told_from_a_quiet_one(
    changes: dict[str, Percentiles | float], words: str | None
) -> None:
    quiet = CostReport(100, 10, 1000, 100, 64, FLAT, FLAT, 12.5, 30, 20)
    said = disturbance(replace(quiet, **changes))  # type: ignore[arg-type]
    assert said == words or (words is not None and str(said).startswith(words))


def test_the_noise_floor_is_of_the_dense_network() -> None:
    cost = CostReport(100, 10, 1000, 100, 64, FLAT, Percentiles(0.4, 0.5, 0.6), 12.5, 30, 20)
    assert (noise_floor(cost), speed_up(cost)) == (None, 2)
    assert noise_floor(replace(cost, latency_again_ms=Percentiles(0.7, 0.8, 0.9))) == pytest.approx(1.25)


def emptied_net() -> nn.Module:
    """convnet-small with every other filter of the first convolution pruned."""
    net = build_model("convnet-small", 3, seed=0).eval()
    with torch.no_grad():
        net.body[0].weight[::2] = 0
    return net


@pytest.mark.parametrize(("with_all_ms", "removed"), [(1.0, 16 / (32 + 64 + 128)), (0.51, 0.0)])
def test_networks_are_made_ready_for_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_all_ms: float, removed: float
) -> None:
    """With a timer by which the network without its dead channels takes half a millisecond."""
    monkeypatch.setattr(
        measured,
        "time_in_turns",
        lambda calls, repeats: {n: [with_all_ms if n == WHOLE else 0.5] * repeats for n in calls},
    )
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "choices"))
    dense, pruned, x = build_model("convnet-small", 3, seed=1), emptied_net(), torch.randn(4, 3, 16, 16)
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    ready = ready_for_inference(dense, pruned, x)
    assert ready.path == "sparsify: auto"
    assert sum(ready.layouts.values()) == 3
    assert ready.removed_channels == removed
    with torch.inference_mode():
        for made, plain in ((ready.dense, dense.eval()), (ready.pruned, pruned)):
            assert not [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
            torch.testing.assert_close(made(x), plain(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in pruned.state_dict().items())
    assert not (tmp_path / "choices").exists(), "the choices of one run are not kept"


def test_a_run_records_what_was_timed(tmp_path: Path) -> None:
    _, records = run_inline(tiny_suite("magnitude"), tmp_path)
    cost = records["magnitude 0.9 0"].cost
    assert cost is not None
    assert cost.latency_path == "sparsify: auto"
    assert sum(cost.latency_layouts.values()) == 3
    assert cost.removed_channels is not None
    assert 0 <= cost.removed_channels < 1


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if bool(x.sum() > -1e9) else x


def test_a_network_that_cannot_be_traced_is_timed_plain() -> None:
    dense, pruned = Untraceable(), Untraceable()
    ready = ready_for_inference(dense, pruned, torch.randn(2, 3, 4, 4))
    assert (ready.dense, ready.pruned, ready.layouts, ready.removed_channels) == (dense, pruned, {}, None)
    assert ready.path.startswith(
        "dense kernels with zeros (TracingError: model: Untraceable cannot be traced"
    )
    assert "\n" not in ready.path


def test_other_outputs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunebench_kernels import sparsify as network

    sparsify = network.sparsify

    def wrong(model: nn.Module, **settings: object) -> nn.Module:
        made = sparsify(model, **settings)
        with torch.no_grad():
            made.traced.get_submodule("head").weight.mul_(1.001)
        return made

    monkeypatch.setattr(network, "sparsify", wrong)
    dense, pruned = build_model("convnet-small", 3, seed=1), emptied_net()
    ready = ready_for_inference(dense, pruned, torch.randn(4, 3, 16, 16))
    assert (ready.dense, ready.pruned) == (dense, pruned)
    assert ready.path.startswith("dense kernels with zeros (sparsify: outputs differ by ")


def test_distance_is_a_share_of_the_largest_output() -> None:
    x = torch.tensor([[1.0, -4.0]])
    one, other = nn.Identity(), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        other.weight.copy_(torch.tensor([[1.0, 0], [0.5, 1]]))
    assert speed.distance(one, other, x) == pytest.approx(0.5 / 3.5)
    with torch.no_grad():
        other.weight[:] = torch.nan
    assert math.isnan(speed.distance(one, other, x))


def test_peak_memory_rises_with_what_is_held_and_stays() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    block = torch.ones(25_000_000)  # 100 MB, written to
    held = peak_memory_mb(CPU)
    assert before > 0
    assert held >= before
    assert held > block.numel() * 4 / 1e6
    del block
    assert peak_memory_mb(CPU) > held - 1  # the system counts pages in batches


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot reset its peak"
)
def test_peak_memory_can_be_reset() -> None:
    """With pages of the system's own: the allocator may keep what a freed tensor had."""
    with hundred_megabytes():
        held = peak_memory_mb(CPU)
    reset_peak_memory(CPU)
    freed = peak_memory_mb(CPU)
    assert freed < held - 90
    with hundred_megabytes():
        assert peak_memory_mb(CPU) > freed + 90


def hundred_megabytes() -> mmap.mmap:
    """Resident pages, given back when closed."""
    block = mmap.mmap(-1, 100_000_000)
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    return block
