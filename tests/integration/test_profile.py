"""`prunebench profile`: roofline arithmetic, break-even, measuring, files, figures and the command on a CPU."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from profile_values import layer, made_up_profile
from prunebench_kernels import sparsify as sparse_network
from prunebench_kernels.layouts import Geometry
from pydantic import TypeAdapter
from torch import nn
from typer.testing import CliRunner, Result

from prunebench.cli.main import app
from prunebench.errors import DataError, PruneBenchError, UsageError
from prunebench.models import build_model
from prunebench.profile import layers as layer_bench
from prunebench.profile import network, report, run, stopwatch
from prunebench.profile.layers import ConvLayer, ConvShape, conv_layers
from prunebench.profile.plots import BREAK_EVEN, roofline_plot, speed_up_plots
from prunebench.profile.report import layers_csv, page, to_json
from prunebench.profile.results import (
    AUTO,
    COMPILED,
    COMPILED_NETWORK,
    EAGER,
    FOLDED,
    NOT_COMPILED,
    SHRUNK,
    BreakEven,
    Ceilings,
    ImplementationTiming,
    LatencyPercentiles,
    NetworkResult,
    Profile,
    break_even,
    speed_up_points,
)
from prunebench.profile.roofline import block_density, bound, ceiling, layer_roof, memory_bound_below, work_of
from prunebench.profile.run import ProfileSettings, find_weights, load_network
from prunebench.report.format import MISSING, sparsity_place
from prunebench.report.svg import legend_of, svg
from prunebench.results.store import write_tensors

PEAKS = Ceilings(4.3e3, 790e3)
"""An H200's bandwidth and bf16 products, as the table of layers below was reckoned with."""
CPU = torch.device("cpu")

# Channels in, out, kernel, stride, rows; GFLOP, MiB of activations, FLOP per byte, microseconds of compute and of
# memory, speed-up ceiling at block density 0.5, 0.25, 0.1 and 0: ResNet-18, batch 128, 32 x 32, bf16.
LAYERS = [
    ((3, 64, 3, 1, 32), 0.45, 16.8, 26, 0.6, 4.1, (1.00, 1.00, 1.00, 1.00)),
    ((64, 64, 3, 1, 32), 9.66, 32.0, 287, 12.2, 7.8, (1.57, 1.57, 1.57, 1.57)),
    ((64, 128, 3, 2, 32), 4.83, 24.0, 191, 6.1, 5.9, (1.04, 1.04, 1.04, 1.05)),
    ((64, 128, 1, 2, 32), 0.54, 12.0, 43, 0.7, 2.9, (1.00, 1.00, 1.00, 1.00)),
    ((128, 128, 3, 1, 16), 9.66, 16.0, 566, 12.2, 4.0, (2.00, 3.12, 3.13, 3.14)),
    ((256, 512, 1, 2, 8), 0.54, 3.0, 158, 0.7, 0.8, (1.04, 1.06, 1.07, 1.08)),
    ((512, 512, 3, 1, 4), 9.66, 4.0, 1084, 12.2, 2.1, (2.00, 4.00, 10.00, 12.54)),
]


def square(inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1) -> ConvShape:
    pad = kernel // 2
    geometry = Geometry(inputs, outputs, (kernel,) * 2, (stride,) * 2, (pad,) * 2, (1, 1), groups)
    return ConvShape(geometry, size, size)


@pytest.mark.parametrize(("shape", "gflop", "mib", "intensity", "compute", "memory", "ceilings"), LAYERS)
def test_roofline_of_resnet_layers(
    shape: tuple[int, ...],
    gflop: float,
    mib: float,
    intensity: float,
    compute: float,
    memory: float,
    ceilings: tuple[float, ...],
) -> None:
    work = work_of(square(*shape), 128, 2)
    time = bound(work, PEAKS)
    assert work.flop / 1e9 == pytest.approx(gflop, abs=0.005)
    assert work.activation_bytes / 2**20 == pytest.approx(mib, abs=0.051)
    assert work.intensity == pytest.approx(intensity, abs=0.5)
    free_copy, free_arithmetic = replace(PEAKS, copy_gb_per_s=1e9), replace(PEAKS, matmul_gflop_per_s=1e15)
    assert bound(work, free_copy) * 1e3 == pytest.approx(compute, abs=0.05)
    assert bound(work, free_arithmetic) * 1e3 == pytest.approx(memory, abs=0.05)
    assert time * 1e3 == pytest.approx(max(compute, memory), abs=0.05)
    assert layer_roof(work, PEAKS, 1, 1).bound_by == ("compute" if compute > memory else "memory")
    assert [ceiling(work, PEAKS, density) for density in (0.5, 0.25, 0.1, 0)] == pytest.approx(
        list(ceilings), abs=0.006
    )


def test_memory_bound_density() -> None:
    work = work_of(square(64, 64, 3, 1, 32), 128, 2)
    edge = memory_bound_below(work, PEAKS)
    assert edge == pytest.approx(0.64, abs=0.005)
    assert bound(work, replace(PEAKS, copy_gb_per_s=1e9), edge) == pytest.approx(bound(work, PEAKS, edge))
    assert memory_bound_below(work_of(square(3, 64, 3, 1, 32), 128, 2), PEAKS) == 1
    assert Ceilings(1, 2, 3).gflop_per_s == 3


def test_depthwise_work_counts_one_input_channel_an_output() -> None:
    work = work_of(square(32, 32, 3, 1, 8, groups=32), 2, 4)
    assert work.flop == 2 * 2 * 8 * 8 * 32 * 9
    assert work.weight_bytes == 4 * 32 * 9


def test_block_density_counts_blocks_with_any_weight() -> None:
    mask = torch.zeros(4, 6, 1, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[3, 5, 0, 1] = True
    assert block_density(mask, (2, 4)) == pytest.approx((2 * 4 + 2 * 2) / 48)
    assert block_density(mask, (1, 1)) == pytest.approx(2 / 48)


def test_break_even_between_points() -> None:
    # Densities 0.5 and 0.125, speed-ups 1/2 and 2: half way in both logarithms, density 0.25.
    found = break_even([(0.875, 2.0), (0.5, 0.5), (0.99, 3.0)])
    assert found.sparsity == pytest.approx(0.75)
    assert not found.at_most
    assert found.words == "0.75"


def test_break_even_needs_all_that_follows() -> None:
    assert break_even([(0.5, 1.2), (0.9, 0.8), (0.99, 1.0)]).sparsity == pytest.approx(0.99)
    assert break_even([(0.5, 1.2), (0.9, 0.8)]) == BreakEven(None)
    assert break_even([]).words == "none"
    assert break_even([(0.5, 1.0), (0.9, 2.0)]) == BreakEven(0.5, at_most=True)
    assert break_even([(0.5, 1.0), (0.9, 2.0)]).words == "\u2264 0.5"


def test_speed_ups_take_the_fastest_of_a_family() -> None:
    result = layer("a", "block", 0.9, block=2.0)
    wide = replace(result.timings[1], name="block 128x64", hot_ms=stopwatch.percentiles([5.0]))
    results = [replace(result, timings=(*result.timings, wide))]
    assert speed_up_points(results, "block") == [(0.9, 4.0)]
    assert speed_up_points(results, "direct") == []


def test_layers_of_resnet_are_found_once() -> None:
    model = build_model("resnet18", 10, seed=0)
    found = conv_layers(model, 32)
    assert len(found) == 11
    by_name = {entry.name: entry for entry in found}
    assert by_name["conv1"].shape == square(3, 64, 3, 1, 32)
    assert len(by_name["layer1.0.conv1"].names) == 4
    assert by_name["layer2.0.downsample.0"].shape == square(64, 128, 1, 2, 32)
    assert by_name["layer2.0.downsample.0"].shape.words == "1x1 64->128 /2 @32"
    assert [entry.name for entry in conv_layers(model, 32, ("layer4.1",))] == ["layer4.1.conv1"]
    with pytest.raises(UsageError, match="no such convolution; there are"):
        conv_layers(build_model("convnet-small", 10, seed=0), 16, ("layer4",))


def test_cache_size_is_read_from_the_system(tmp_path: Path) -> None:
    for index, (level, size) in enumerate((("1", "48K"), ("3", "32M"), ("2", "1024K"), ("4", "odd"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(level)
        (folder / "size").write_text(size + "\n")
    assert stopwatch.cache_bytes(CPU, tmp_path) == 32 << 20
    assert stopwatch.cache_bytes(CPU, tmp_path / "none") == stopwatch.FALLBACK_CACHE


def test_calls_are_timed_in_turns_hot_and_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, order = stopwatch.Stopwatch(CPU), []
    monkeypatch.setattr(watch, "flush", lambda: order.append("flush"))
    calls: dict[str, Callable[[], object]] = {name: lambda name=name: order.append(name) for name in "ab"}
    hot = stopwatch.interleaved(calls, watch, repeats=2, cold=False)
    assert order == ["a", "a", "b", "b"] * 2
    order.clear()
    stopwatch.interleaved(calls, watch, repeats=2, cold=True)
    assert order == ["flush", "a", "flush", "b"] * 2
    assert 0 < hot["a"].p20 <= hot["a"].p50 <= hot["a"].p80
    assert hot["a"].calls == 2


def test_percentiles_of_known_times() -> None:
    assert stopwatch.percentiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == LatencyPercentiles(2.0, 3.5, 5.0, 6)
    assert stopwatch.percentiles([7.0]) == LatencyPercentiles(7.0, 7.0, 7.0, 1)


def test_slow_calls_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": 400.0, "fast": 1.0}
    counts = dict.fromkeys(times, 0)
    watch = stopwatch.Stopwatch(CPU)

    def time(call: Callable[[], str], *, cold: bool, launches: bool) -> float:
        counts[call()] += 1
        return times[call()]

    monkeypatch.setattr(watch, "time", time)
    stopwatch.interleaved({name: lambda name=name: name for name in times}, watch, repeats=9, cold=False)
    assert counts == {"slow": 3, "fast": 9}


def test_at_the_end_of_the_time_box_only_the_first_call_is_timed() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {name: lambda name=name: order.append(name) for name in "ab"}
    times = stopwatch.interleaved(calls, stopwatch.Stopwatch(CPU), repeats=5, cold=False, until=0.0)
    assert list(times) == ["a"]
    assert times["a"].calls == 1
    assert order == ["a", "a"]


def test_gpu_times_come_from_events_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, _: Event) -> float:
            return 1.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: log.append("sleep"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("all done"))
    watch = stopwatch.Stopwatch(CPU)
    monkeypatch.setattr(watch, "flush", lambda: log.append("flush"))
    timed = ["sleep", "record", "call", "record", "wait"]
    assert watch._time_gpu(lambda: log.append("call"), cold=True, launches=False) == 1.25
    assert log == ["call", "flush", *timed]
    log.clear()
    watch._time_gpu(lambda: log.append("call"), cold=False, launches=False)
    assert log == ["call", *timed]
    log.clear()
    watch._time_gpu(lambda: log.append("call"), cold=False, launches=True)
    assert log == ["call", "all done", *timed[1:]]


def test_a_gpu_waits_longer_than_the_host_launches() -> None:
    assert stopwatch.spin_cycles(1e-5) == 400_000
    assert stopwatch.spin_cycles(1e-3) == pytest.approx(1.5e-3 * 2e9)
    assert stopwatch.spin_cycles(3.0) == pytest.approx(0.05 * 2e9)


def tiny_layer(seed: int = 0) -> ConvLayer:
    shape = square(8, 6, 3, 1, 5)
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(seed))
    return ConvLayer(("tiny",), shape, weight)


def tiny_timings(mask: torch.Tensor, backend: str = "auto") -> dict[str, ImplementationTiming]:
    inputs = layer_bench.make_inputs(tiny_layer(), mask, 2, CPU, torch.float32)
    timings = layer_bench.benchmark(inputs, None, stopwatch.Stopwatch(CPU), backend=backend, repeats=1)
    return {timing.name: timing for timing in timings}


def sparse_mask() -> torch.Tensor:
    mask = torch.zeros(6, 8, 3, 3, dtype=torch.bool)
    mask[0, 1, 1, 1] = mask[2, 3, 0, 2] = mask[2, 5, 2, 0] = True
    return mask


def test_a_benchmark_measures_every_candidate_and_checks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sparse_network.MULTIPLES, "cpu", 1)
    timings = tiny_timings(sparse_mask())
    assert list(timings)[:3] == [EAGER, COMPILED, "dense"]
    assert timings[COMPILED].not_measured == NOT_COMPILED
    assert timings[COMPILED].hot_ms is None
    assert {"direct", SHRUNK} <= set(timings)
    assert timings[SHRUNK].settings == {"outputs": 2, "inputs": 3}
    for name, timing in timings.items():
        if name != COMPILED:
            assert timing.not_measured is None, name
            assert timing.error is not None
            assert timing.error < 1e-5
            assert timing.hot_ms is not None
            assert timing.cold_ms is not None
    assert timings["direct"].backend == "torch"


def test_a_benchmark_runs_every_layout_s_kernel_in_the_interpreter() -> None:
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(16, 16, 3, 3, dtype=torch.bool)
    mask[:5, ::4, 0, 2] = True
    entry = ConvLayer(("tiny",), square(16, 16, 3, 1, 4), weight)
    inputs = layer_bench.make_inputs(entry, mask, 1, CPU, torch.float32)
    timings = layer_bench.benchmark(inputs, None, stopwatch.Stopwatch(CPU), backend="triton", repeats=1)
    layouts = {timing.family: timing for timing in timings if timing.is_sparse and timing.name != SHRUNK}
    assert set(layouts) == {"block", "direct"}
    for timing in layouts.values():
        assert timing.not_measured is None, timing
        assert timing.backend == "triton"
        assert timing.hot_ms is not None


def test_compiled_layers_and_networks_take_the_masked_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **words: real(call, backend="eager", **words))
    inputs = layer_bench.make_inputs(tiny_layer(), sparse_mask(), 2, CPU, torch.float32)
    timings = layer_bench.benchmark(
        inputs, layer_bench.CompiledLayers(), stopwatch.Stopwatch(CPU), backend="auto", repeats=1
    )
    assert timings[1].name == COMPILED
    assert timings[1].hot_ms is not None
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model = build_model("convnet-small", 4, seed=0).eval()
    networks = network.NetworkBenchmark(model, x, stopwatch.Stopwatch(CPU), backend="auto", compiled=True)
    for sparsity in (0.5, 0.75):
        entries, _ = networks.measure("filter", sparsity, 1)
        assert all(entry.latency_ms for entry in entries), entries
        masked = build_model("convnet-small", 4, seed=0).eval()
        for name, mask in network.convolution_masks(masked, "filter", sparsity).items():
            masked.get_parameter(name).data.mul_(mask)
        with torch.inference_mode():
            torch.testing.assert_close(networks._compiled(x), masked(x))


def test_a_compiler_that_fails_leaves_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda call, **_: refuse)
    inputs = layer_bench.make_inputs(tiny_layer(), sparse_mask(), 2, CPU, torch.float32)
    timings = layer_bench.benchmark(
        inputs, layer_bench.CompiledLayers(), stopwatch.Stopwatch(CPU), backend="auto", repeats=1
    )
    assert timings[1].not_measured == "torch.compile failed: RuntimeError: no C++ compiler"


def test_a_wrong_or_failing_layout_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import prunebench_kernels.sparse_conv as conv

    real = conv.sparse_conv2d
    monkeypatch.setattr(conv, "sparse_conv2d", lambda *args, **words: real(*args, **words) + 1)
    wrong = tiny_timings(sparse_mask())["direct"]
    assert wrong.not_measured is not None
    assert wrong.not_measured.startswith("wrong result: off by")
    assert wrong.hot_ms is None

    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr(conv, "sparse_conv2d", fail)
    timings = tiny_timings(sparse_mask())
    assert timings["direct"].not_measured == "RuntimeError: no such kernel"
    assert timings[EAGER].hot_ms is not None


def test_peak_activations_are_what_a_pass_allocates() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())
    assert network.peak_activations(lambda: model(x), CPU) == 2 * x.nbytes
    assert network.weight_bytes(nn.Linear(3, 4)) == 4 * (12 + 4)


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["profile", *words])


TINY = ("--model", "convnet-small", "--image", "8", "--batch", "2", "--repeats", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A profile of a tiny network through the command line: its folder and what it printed."""
    out = tmp_path_factory.mktemp("profile") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        done = call(*TINY, "--sparsity", "0.5", "--sparsity", "0.95", "--no-compile", "--out", str(out))
    assert done.exit_code == 0, done.output
    return out, done.output


def read_profile(out: Path) -> Profile:
    return TypeAdapter(Profile).validate_json((out / "profile.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_command_says_what_it_measured_on_a_cpu(profiled: tuple[Path, str]) -> None:
    out, printed = profiled
    line = "CPU paths only: no CUDA device"
    assert line in printed
    for name in ("index.html", "profile.json", "layers.csv", "networks.csv"):
        assert line in (out / name).read_text(encoding="utf-8"), name
    assert "torch.compile: not measured" in printed
    assert "Break-even" in printed


@pytest.mark.slow
def test_json_is_complete_and_reads_back(profiled: tuple[Path, str]) -> None:
    out, _ = profiled
    profile = read_profile(out)
    assert json.loads(to_json(profile)) == json.loads((out / "profile.json").read_text(encoding="utf-8"))
    assert profile.settings["model"] == "convnet-small"
    assert profile.settings["seed"] == 0
    assert profile.environment["cpu"]
    assert profile.environment["cores"] >= 1
    assert profile.environment["torch"] == torch.__version__
    assert profile.machine is not None
    assert profile.machine.copy_gb_per_s > 0
    assert profile.machine.flushed_mb == pytest.approx(2 * profile.machine.cache_mb)
    assert not profile.interrupted
    assert profile.left_out == ()
    points = {(result.pattern, result.sparsity) for result in profile.layers}
    assert points == {("2:4", 0.5)} | {
        (pattern, sparsity) for pattern in ("unstructured", "block", "filter") for sparsity in (0.5, 0.95)
    }
    assert len(profile.layers) == 3 * 7


def test_layers_have_times_roofs_and_the_choice_of_auto(profiled: tuple[Path, str]) -> None:
    for result in read_profile(profiled[0]).layers:
        if result.not_measured:
            assert result.not_measured
            assert result.timings == ()
            continue
        dense = result.timing(EAGER)
        assert dense is not None
        assert dense.hot_ms is not None
        assert dense.cold_ms is not None
        assert result.roof is not None
        assert result.roof.free_ceiling >= result.roof.block_ceiling >= 1
        assert result.auto in {"dense", *(timing.name for timing in result.timings)}


def test_a_first_layer_has_no_two_of_four(profiled: tuple[Path, str]) -> None:
    (first,) = [r for r in read_profile(profiled[0]).layers if (r.layer, r.pattern) == ("body.0", "2:4")]
    assert first.not_measured == "3 input channels are no multiple of 4: 2:4 leaves this layer dense"


def test_networks_are_measured_at_every_point(profiled: tuple[Path, str]) -> None:
    networks = read_profile(profiled[0]).networks
    assert len(networks) == 4 * 7
    for entry in networks:
        if entry.name == COMPILED_NETWORK:
            assert entry.not_measured == NOT_COMPILED
            assert entry.latency_ms is None
            continue
        assert entry.not_measured is None, entry
        assert entry.latency_ms is not None
        assert entry.weights_mb is not None
        assert entry.weights_mb > 0
        assert entry.peak_activations_mb is not None
        assert entry.peak_activations_mb > 0
        assert bool(entry.layouts) == (entry.name == AUTO)


def test_csv_has_a_row_an_implementation_and_cache(profiled: tuple[Path, str]) -> None:
    rows = list(csv.DictReader(io.StringIO((profiled[0] / "layers.csv").read_text(encoding="utf-8"))))
    profile = read_profile(profiled[0])
    assert len(rows) == sum(2 * max(1, len(result.timings)) for result in profile.layers)
    for row in rows:
        assert row["cpu"] == profile.environment["cpu"]
        assert row["batch"] == "2"
        assert bool(row["p50_ms"]) != bool(row["not_measured"])
        assert row["p50_ms"] != "0"
    dense = [row for row in rows if row["implementation"] == EAGER]
    assert {float(row["speed_up"]) for row in dense} == {1.0}
    networks = list(csv.DictReader(io.StringIO((profiled[0] / "networks.csv").read_text(encoding="utf-8"))))
    assert len(networks) == len(profile.networks)


def test_csv_of_made_up_times() -> None:
    rows = list(csv.DictReader(io.StringIO(layers_csv(made_up_profile(count=1)))))
    (row,) = [
        r for r in rows
        if (r["pattern"], r["sparsity"], r["implementation"], r["cache"]) == ("block", "0.875", "block 64x64", "cold")
    ]  # fmt: skip
    assert float(row["p50_ms"]) == 12.5
    assert float(row["speed_up"]) == 2.0
    assert row["speed_up_over_compiled"] == ""


def centres(text: str) -> list[tuple[float, float]]:
    """Centres of the hollow diamonds of a picture."""
    found = re.findall(r'<polygon points="([^"]+)" fill="#ffffff"', text)
    corners = [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]
    return [(sum(c[0] for c in four) / 4, sum(c[1] for c in four) / 4) for four in corners]


def hot_spots(text: str) -> list[tuple[float, float]]:
    """Centres of the circles that say what they stand for."""
    found = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"[^>]*><title>block', text)
    return [(float(x), float(y)) for x, y in found]


def test_speed_up_plot_has_points_break_even_and_legend() -> None:
    grid = speed_up_plots(made_up_profile(count=1), "block")
    assert grid is not None
    text = svg(grid, hints=True)
    assert text == svg(grid, hints=True)
    ElementTree.fromstring(text)
    hints = re.findall(r"<title>([^<]+)</title>", text)
    assert [hint for hint in hints if hint.startswith(("block: ", "break-even"))] == [
        "block: 0.50\u00d7, hot cache", "block: 2.00\u00d7, hot cache", "block: 3.00\u00d7, hot cache",
        "break-even, hot cache: block 0.75",
    ]  # fmt: skip
    (panel,) = grid.plots
    (even,) = (series.marks[0] for series in panel.series if series.name == BREAK_EVEN)
    assert even.x == pytest.approx(sparsity_place(0.75))
    assert [words for _, words in panel.x.ticks or ()] == ["0.5", "0.875", "0.95"]
    assert [line.replace("\u00a0", " ") for line in panel.foot] == [
        "break-even: block 0.75 \u00b7", "dead channels removed \u2264 0.95",
    ]  # fmt: skip
    # One diamond stands in the legend; the other half way between the first two ticks, at the level of 1.
    _, (x, y) = centres(text)
    first, second = (place for place, _ in hot_spots(text)[:2])
    assert x == pytest.approx((first + second) / 2, abs=0.2)
    assert hot_spots(text)[1][1] < y < hot_spots(text)[0][1]
    assert {"block", SHRUNK, BREAK_EVEN} <= {key.name for key in legend_of(grid.plots)}


def test_a_single_sparsity_is_drawn_over_layers() -> None:
    results = tuple(layer(f"layer{i}", "filter", 0.5, shrunk=1.5 + i) for i in range(3))
    grid = speed_up_plots(made_up_profile(results), "filter")
    assert grid is not None
    (panel,) = grid.plots
    assert panel.title == "filter at sparsity 0.5"
    assert [words for _, words in panel.x.ticks or ()] == ["1", "2", "3"]
    (hot,) = (series for series in panel.series if series.name == SHRUNK)
    assert not hot.line
    assert [round(mark.y or 0, 2) for mark in hot.marks] == [1.5, 2.5, 3.5]
    assert panel.foot == ()
    ElementTree.fromstring(svg(grid))


def test_roofline_has_every_layer() -> None:
    plot = roofline_plot(made_up_profile(count=11))
    assert plot is not None
    text = svg(plot, hints=True)
    ElementTree.fromstring(text)
    # 10 GFLOP in 20 ms hot and 25 ms cold.
    for cache, rate in (("hot", 500), ("cold", 400)):
        assert len(re.findall(f"<title>{cache} cache: layer.*: {rate} GFLOP/s</title>", text)) == 11
    assert "layer10.conv" in text
    assert "50 GB/s, 1,000 GFLOP/s" in text
    assert roofline_plot(replace(made_up_profile(), machine=None)) is None


def test_page_loads_nothing_and_escapes() -> None:
    text = page(made_up_profile())
    assert "a &lt;CPU&gt;" in text
    assert "<CPU>" not in text
    assert not re.findall(r"""(?:src|href)="(?!data:,")|url\(|<script""", text)
    assert "No sparse layout was a candidate" in text
    assert text.count("<svg") > 5


def test_networks_are_compared_with_the_fastest_dense_one_of_their_turns() -> None:
    times = {EAGER: 8.0, FOLDED: 4.0, COMPILED_NETWORK: 5.0, AUTO: 2.0}
    entries = [
        NetworkResult(name, "block", 0.9, stopwatch.percentiles([time])) for name, time in times.items()
    ]
    other = NetworkResult(EAGER, "block", 0.5, stopwatch.percentiles([1.0]))
    missing = NetworkResult(FOLDED, "block", 0.5, not_measured="out of memory")
    profile = replace(made_up_profile(), networks=(*entries, other, missing))
    profile = replace(profile, settings=profile.settings | {"compiled": True})
    assert report.networks_table(profile).choose("speed_up", "not_measured").texts() == [
        ["0.50\u00d7", MISSING], ["baseline", MISSING], ["0.80\u00d7", MISSING], ["2.00\u00d7", MISSING],
        ["baseline", MISSING], [MISSING, "out of memory"],
    ]  # fmt: skip


def test_summary_names_what_is_missing() -> None:
    profile = replace(made_up_profile(), left_out=("block 0.9: conv1",), interrupted=True)
    text = "\n".join(report.summary(profile))
    assert "left out, the time box was full (--minutes): 1 measurement: block 0.9: conv1" in text
    assert "stopped early" in text
    assert "busy machine" not in text
    busy = replace(profile, environment=profile.environment | {"load_average": 7.5, "cores": 2})
    assert "busy machine: load average 7.5 on 2 cores" in "\n".join(report.summary(busy))
    assert "faster than the roof" not in text
    slow_roof = tuple(replace(r, roof=replace(r.roof, dense_ms=21.0)) for r in profile.layers if r.roof)
    assert "faster than the roof: layer0.conv" in "\n".join(
        report.summary(replace(profile, layers=slow_roof))
    )


def test_an_interrupted_profile_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    real, calls = run.benchmark, []

    def interrupt(*args: object, **words: object) -> tuple[ImplementationTiming, ...]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "benchmark", interrupt)
    done = call(*TINY, "--sparsity", "0.5", "--pattern", "filter", "--out", str(tmp_path / "out"))
    assert done.exit_code == 130
    assert "stopped early" in done.output
    profile = read_profile(tmp_path / "out")
    assert profile.interrupted
    assert [result.layer for result in profile.layers] == ["body.0", "body.3"]
    assert (tmp_path / "out" / "speed-up-filter.svg").is_file()


def test_a_full_time_box_leaves_the_rest_out(tmp_path: Path) -> None:
    done = call(*TINY, "--minutes", "0.0001", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    profile = read_profile(tmp_path / "out")
    assert profile.layers == ()
    assert "unstructured at sparsity 0.9: body.0" in profile.left_out
    assert len(profile.left_out) == 10 * 4


def test_stored_zeros_of_a_run_are_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    model = build_model("convnet-small", 7, seed=3)
    with torch.no_grad():
        model.get_parameter("body.3.weight")[:16] = 0
    run_folder = tmp_path / "results" / "runs" / "abc"
    run_folder.mkdir(parents=True)
    write_tensors(run_folder / "model.safetensors", model.state_dict())
    done = call(
        *TINY, "--run", "abc", "--results", str(tmp_path / "results"), "--layer", "body.3", "--out", str(tmp_path / "o")
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (result,) = read_profile(tmp_path / "o").layers
    assert (result.pattern, result.sparsity) == ("stored", None)
    assert result.achieved == pytest.approx(0.25)
    assert result.timing(SHRUNK) is not None
    settings = ProfileSettings(run=str(run_folder), model="resnet18").resolved()
    with pytest.raises(DataError, match="not the weights of resnet18"):
        load_network(settings)
    with pytest.raises(UsageError, match="no such file"):
        find_weights("nothing", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pattern", "blok"), "unknown pattern 'blok': did you mean block"),
        (("--sparsity", "1"), "--sparsity must be in"),
        (("--batch", "0"), "--batch must be positive"),
        (("--batch", "1", "--batch", "-2"), "--batch must be positive, got -2"),
        (("--threads", "0"), "--threads must be positive"),
        (("--precision", "int8"), "unknown precision 'int8'"),
        (("--pattern", "stored"), "give --run"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--minutes", "nan"), "--minutes must be positive"),
        (("--model", "resnet81"), "unknown model 'resnet81'"),
        (("--device", "cuda"), "torch sees no GPU here"),
        (("--image", "1"), "--image 1: the model cannot take it"),
    ],
)
def test_wrong_options_name_the_fix(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = call("--device", "cpu", *words, "--out", str(tmp_path))
    assert isinstance(done.exception, PruneBenchError)
    assert message in str(done.exception)
    assert not any(tmp_path.iterdir())


def test_defaults_follow_the_device() -> None:
    gpu = ProfileSettings(device="cuda").resolved()
    assert (gpu.model, gpu.batch, gpu.precision, gpu.compiled) == ("resnet18", 128, "bf16", True)
    cpu = ProfileSettings().resolved()
    assert (cpu.model, cpu.batch, cpu.precision, cpu.compiled) == ("convnet", 64, "fp32", False)
    assert cpu.points()[:4] == [("unstructured", 0.9), ("block", 0.9), ("filter", 0.9), ("2:4", 0.5)]
