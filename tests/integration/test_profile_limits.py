"""`prunebench profile` at its limits: time box, folders, dead channels, memory orders, networks that are wrong."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import prunebench_kernels.sparse_conv as sparse_conv
import prunebench_kernels.sparsify as sparse_network
import pytest
import torch
from profile_values import layer, made_up_profile, marks
from prunebench_kernels.layouts import Geometry
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from prunebench.cli.main import app
from prunebench.errors import UsageError
from prunebench.inference.busy import MachineLoad
from prunebench.models import build_model
from prunebench.profile import layers as layer_bench
from prunebench.profile import network, report, run, stopwatch
from prunebench.profile.layers import ConvLayer, ConvShape
from prunebench.profile.plots import BREAK_EVEN, network_plot, roofline_plot, speed_up_plots, sweep_plot
from prunebench.profile.results import (
    AUTO,
    COMPILED,
    COMPILED_NETWORK,
    EAGER,
    FOLDED,
    NO_TIME,
    SHRUNK,
    ImplementationTiming,
    NetworkResult,
    Profile,
    SweepPoint,
    network_points,
    operating_points,
    pareto_front,
    speed_up_points,
)
from prunebench.profile.roofline import SLOW, CeilingMeter
from prunebench.profile.run import Profiler, ProfileSettings
from prunebench.report.format import sparsity_place
from prunebench.report.svg import svg
from prunebench.results.store import write_tensors

CPU = torch.device("cpu")
SHAPE = ConvShape(Geometry(16, 16, padding=(1, 1)), 4, 4)
TINY = ("--model", "convnet-small", "--image", "8", "--batch", "2", "--repeats", "1", "--device", "cpu")


def inputs_of(mask: Tensor) -> layer_bench.LayerInputs:
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    return layer_bench.make_inputs(ConvLayer(("tiny",), SHAPE, weight), mask, 8, CPU, torch.float32)


def timings_of(
    mask: Tensor, until: float = float("inf"), compiled: layer_bench.CompiledLayers | None = None
) -> list[ImplementationTiming]:
    watch = stopwatch.Stopwatch(CPU)
    return list(
        layer_bench.benchmark(inputs_of(mask), compiled, watch, backend="auto", repeats=1, until=until)
    )


def few() -> Tensor:
    mask = torch.zeros(16, 16, 3, 3, dtype=torch.bool)
    mask[1, 2, 0, 0] = mask[4, 2, 1, 1] = mask[9, 7, 2, 2] = True
    return mask


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["profile", *words])


def test_a_layout_is_given_its_own_memory_order(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, tuple[int, ...]] = {}
    real = sparse_conv.sparse_conv2d

    def note(x: Tensor, packed: sparse_conv.PackedWeight, *args: Tensor, **words: object) -> Tensor:
        given[packed.layout] = x.stride()
        return real(x, packed, *args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(sparse_conv, "sparse_conv2d", note)
    timings = {timing.name: timing for timing in timings_of(few())}
    assert timings["direct"].hot_ms
    assert timings["direct"].cold_ms
    assert given["dense"] == (256, 1, 64, 16)
    assert given["direct"] == (1, 128, 32, 8)  # the batch innermost: no copy is timed


def test_dead_channels_leave_a_multiple_where_the_device_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = few().float()
    monkeypatch.setitem(sparse_network.MULTIPLES, "cpu", 1)
    rows, columns = layer_bench.live_channels(weight)
    assert rows.tolist() == [1, 4, 9]
    assert columns.tolist() == [2, 7]
    monkeypatch.setitem(sparse_network.MULTIPLES, "cpu", 8)
    rows, columns = layer_bench.live_channels(weight)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert columns.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    (shrunk,) = (timing for timing in timings_of(few()) if timing.name == SHRUNK)
    assert shrunk.settings == {"outputs": 8, "inputs": 8}
    assert shrunk.error is not None
    assert shrunk.error < 1e-5
    assert layer_bench.fill_up(torch.tensor([True, False, False]), 8).tolist() == [True] * 3


def test_a_layer_without_any_weight_is_measured() -> None:
    timings = {timing.name: timing for timing in timings_of(torch.zeros(16, 16, 3, 3, dtype=torch.bool))}
    assert timings[EAGER].hot_ms
    assert SHRUNK not in timings


def test_only_the_baseline_is_timed_when_the_time_box_is_full() -> None:
    baseline, compiled, *others = timings_of(few(), until=0.0, compiled=layer_bench.CompiledLayers())
    assert baseline.hot_ms
    assert baseline.cold_ms
    assert baseline.hot_ms.calls == baseline.cold_ms.calls == 1
    assert compiled.name == COMPILED
    assert others
    for timing in (compiled, *others):
        assert timing.not_measured == NO_TIME, timing
        assert timing.hot_ms is timing.cold_ms is None


def test_a_missing_cold_time_has_a_reason_of_its_own() -> None:
    result = layer("a", "block", 0.9, block=2.0)
    half = replace(result.timings[1], cold_ms=None, not_measured=NO_TIME)
    profile = made_up_profile((replace(result, timings=(result.timings[0], half)),))
    rows = list(csv.DictReader(report.layers_csv(profile).splitlines()))
    assert [(row["p50_ms"], row["timed_calls"], row["not_measured"]) for row in rows[2:]] == [
        ("10.0", "9", ""),
        ("", "", NO_TIME),
    ]


def networks() -> network.NetworkBenchmark:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model = build_model("convnet-small", 4, seed=0).eval()
    return network.NetworkBenchmark(model, x, stopwatch.Stopwatch(CPU), backend="auto", compiled=False)


def test_networks_tell_the_zeros_that_they_have() -> None:
    entries, _ = networks().measure("2:4", 0.5, 1, until=0.0)
    first, *others = entries
    assert first.latency_ms
    assert all(entry.not_measured == NO_TIME for entry in others)
    # 2:4 leaves the first convolution dense.
    convolutions = [m for m in networks().model.modules() if isinstance(m, nn.Conv2d)]
    total = sum(m.weight.numel() for m in convolutions)
    assert first.achieved == pytest.approx(0.5 * (total - convolutions[0].weight.numel()) / total)
    table = report.networks_table(replace(made_up_profile(), networks=(first,)))
    assert table.choose("sparsity", "achieved").texts() == [["0.5", f"{first.achieved:.3f}"]]


def test_a_network_with_other_outputs_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path))
    real = sparse_network.fold_dense

    def spoil(*args: object, **words: object) -> Callable[[Tensor], Tensor]:
        folded = real(*args, **words)  # type: ignore[arg-type]
        return lambda x: folded(x) * 1.5  # type: ignore[no-any-return]

    monkeypatch.setattr(sparse_network, "fold_dense", spoil)
    entries = {entry.name: entry for entry in networks().measure("filter", 0.5, 1)[0]}
    assert entries[FOLDED].latency_ms is None
    assert entries[FOLDED].error == pytest.approx(0.5, abs=1e-4)
    assert "wrong result: off by 0.5" in (entries[FOLDED].not_measured or "")
    assert entries[AUTO].latency_ms
    assert (entries[AUTO].error or 1) < 1e-4


def test_a_compiler_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda call, **_: refuse)
    found = networks()
    found._wants_compiled = True
    for sparsity in (0.5, 0.75):
        entries = {entry.name: entry for entry in found.measure("filter", sparsity, 1)[0]}
        reason = entries[COMPILED_NETWORK].not_measured
        assert reason == "torch.compile failed: RuntimeError: no C++ compiler"
    assert len(asked) == 1


def timed_network(name: str, sparsity: float, milliseconds: float) -> NetworkResult:
    return NetworkResult(name, "filter", sparsity, marks(milliseconds), achieved=sparsity)


def networks_over_sparsity() -> Profile:
    """Filters: half as fast at 0.5, twice as fast at 0.875, so even at three quarters."""
    found = [
        timed_network(name, sparsity, milliseconds)
        for sparsity, sparse in ((0.5, 20.0), (0.875, 5.0))
        for name, milliseconds in ((FOLDED, 10.0), (AUTO, sparse))
    ]
    return replace(made_up_profile(), networks=tuple(found))


def test_the_whole_network_is_drawn_over_sparsity_with_its_break_even() -> None:
    profile = networks_over_sparsity()
    assert network_points(profile, "filter") == [(0.5, 0.5), (0.875, 2.0)]
    plot = network_plot(profile)
    assert plot is not None
    speeds, even = plot.series
    assert [mark.y for mark in speeds.marks] == [0.5, 2.0]
    assert even.marks[0].x == pytest.approx(sparsity_place(0.75))
    assert plot.foot == ("break-even: filter\u00a00.75",)
    first = next(report.break_even_rows(profile))
    assert (first["layer"], first["pattern"], first["hot"].words) == ("whole network", "filter", "0.75")
    assert network_plot(replace(profile, networks=())) is None


def swept(batch: int, threads: int, dense: float, sparse: float) -> SweepPoint:
    return SweepPoint(batch, threads, timed_network(FOLDED, 0.9, dense), timed_network(AUTO, 0.9, sparse))


def test_no_point_of_the_front_is_beaten_in_both() -> None:
    """Dense serves 1,000 images a second at batch 1 and 2,000 at 8; sparse loses at batch 1 and wins at 8."""
    profile = replace(made_up_profile(), sweep=(swept(1, 1, 1.0, 2.0), swept(8, 1, 4.0, 2.0)))
    points = operating_points(profile.sweep)
    assert [(p.network, p.batch, p.images_per_second) for p in points] == [
        ("dense", 1, 1000.0), ("filter at sparsity 0.9", 1, 500.0),
        ("dense", 8, 2000.0), ("filter at sparsity 0.9", 8, 4000.0),
    ]  # fmt: skip
    assert [(p.network, p.batch) for p in pareto_front(points)] == [
        ("dense", 1),
        ("filter at sparsity 0.9", 8),
    ]
    plot = sweep_plot(profile)
    assert plot is not None
    front, dense, sparse = plot.series
    assert [(mark.x, mark.y) for mark in front.marks] == [(1.0, 1000.0), (2.0, 4000.0)]
    assert [mark.label for series in (dense, sparse) for mark in series.marks] == ["1", "", "", "8"]
    assert report.sweep_table(profile).choose("batch", "speed_up").texts() == [
        ["1", "0.50\u00d7"],
        ["8", "2.00\u00d7"],
    ]
    line = "front of latency and throughput: dense at batch 1, 1 thread (1 ms, 1,000 images/s); filter"
    assert line in "\n".join(report.summary(profile))
    assert sweep_plot(made_up_profile()) is None


def test_dense_counts_once_where_it_was_timed_beside_several_patterns() -> None:
    twice = (swept(1, 1, 4.0, 2.0), swept(1, 1, 2.0, 2.0))
    assert [p.latency_ms for p in operating_points(twice) if p.network == "dense"] == [2.0]


def test_several_batches_and_threads_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    words = ("--batch", "4", "--threads", "2", "--threads", "1", "--pattern", "filter", "--sparsity", "0.5")
    done = call(*TINY, *words, "--layer", "body.0", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == before
    found = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    places = [(2, 2), (2, 4), (1, 2), (1, 4)]
    assert [(point["threads"], point["batch"]) for point in found["sweep"]] == places
    assert all(point[name]["latency_ms"] for point in found["sweep"] for name in ("dense", "sparse"))
    assert (found["settings"]["batch"], found["environment"]["threads"]) == (2, 2), "the first counts"
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text(encoding="utf-8").splitlines()))
    assert [(int(row["threads"]), int(row["batch"])) for row in rows[::2]] == places
    for row in rows:
        rate = 1e3 * int(row["batch"]) / float(row["p50_ms"])
        assert float(row["images_per_second"]) == pytest.approx(rate)
    assert "Batches and threads" in done.output
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.index("Latency against throughput") < page.index("Roofline")
    again = call(*TINY, "--minutes", "0.0001", "--threads", "1", "--threads", "2", "--out", str(tmp_path))
    assert again.exit_code == 0, again.output
    left = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))["left_out"]
    assert "unstructured at sparsity 0.9: batch 2, 2 threads" in left
    assert not (tmp_path / "sweep.csv").exists()


def test_the_page_shows_the_whole_network_first_and_has_a_dark_mode(tmp_path: Path) -> None:
    report.write_profile(networks_over_sparsity(), tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.index("Whole network: speed-up over sparsity") < page.index("Roofline")
    assert "prefers-color-scheme: dark) { figure svg" in page
    assert (tmp_path / "speed-up-network.svg").is_file()


def test_whole_networks_come_first_in_the_time_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network takes 2 of 10 seconds: three fit into the first 6."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    profiler = Profiler(ProfileSettings(model="convnet-small", image=8, minutes=10 / 60))
    measured: list[tuple[str, float | None]] = []

    def measure(_: object, pattern: str, sparsity: float | None) -> float:
        now[0] += 2.0
        measured.append((pattern, sparsity))
        return 0.0

    monkeypatch.setattr(profiler, "_measure_networks", measure)
    points = profiler.settings.points()
    assert profiler._early_networks(None, points) == set(points[:3])  # type: ignore[arg-type]
    assert measured == points[:3]


def test_a_busy_machine_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "machine_load", lambda: MachineLoad(9.0, 2))
    done = call(*TINY, "--minutes", "0.0001", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert done.output.index("busy machine: load average 9 on 2 cores") < done.output.index(
        "measuring the ceilings"
    )


def test_layers_and_networks_that_cannot_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 0.25)
    profiler = Profiler(ProfileSettings(model="convnet-small", image=8, minutes=1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    profiler._end = 10.0
    assert profiler._fits(9.0)
    profiler._seconds = {"a": 4.0, "b": 7.0}
    profiler._take(run.WHOLE, ("block", 0.5), lambda: pytest.fail("measured"))  # estimated at 11 seconds
    assert profiler.left_out == ["block at sparsity 0.5: whole network"]
    assert profiler.networks == []


def test_figures_stand_at_the_zeros_that_masks_have() -> None:
    found = tuple(
        replace(layer("a", "block", asked, block=speed), achieved=achieved)
        for asked, achieved, speed in ((0.5, 0.5, 0.5), (0.9, 0.875, 2.0))
    )
    assert speed_up_points(found, "block") == [(0.5, 0.5), (0.875, 2.0)]
    grid = speed_up_plots(made_up_profile(found), "block")
    assert grid
    (panel,) = grid.plots
    assert [words for _, words in panel.x.ticks or ()] == ["0.5", "0.875"]
    (even,) = (series.marks[0] for series in panel.series if series.name == BREAK_EVEN)
    assert even.x == pytest.approx(sparsity_place(0.75))


def test_numbers_of_many_layers_stand_apart_in_the_roofline() -> None:
    found = []
    for number in range(32):
        result = layer(f"layer{number}", "block", 0.5, block=2.0)
        assert result.roof
        found.append(replace(result, roof=replace(result.roof, flop_per_byte=4.0 + number)))
    plot = roofline_plot(made_up_profile(tuple(found)))
    assert plot
    number = (
        r'<text x="([0-9.]+)" y="([0-9.]+)" font-size="11.5" fill="#1f2328" font-weight="600"[^>]*>[0-9]+<'
    )
    placed = re.findall(number, svg(plot))
    assert len(placed) == 32
    for row in {y for _, y in placed}:
        places = sorted(float(x) for x, y in placed if y == row)
        assert min(after - before for before, after in itertools.pairwise(places)) > 14


def test_labels_of_tiny_speed_ups_are_not_cut() -> None:
    found = tuple(layer("a", "block", sparsity, block=0.002) for sparsity in (0.5, 0.9))
    grid = speed_up_plots(made_up_profile(found), "block")
    assert grid
    labels = re.findall(r'<text x="([0-9.]+)"[^>]* text-anchor="end">([0-9.]+\u00d7)<', svg(grid))
    assert "0.001\u00d7" in {words for _, words in labels}
    assert all(float(x) > 7.6 * len(words) for x, words in labels)  # 7.6: a digit of DejaVu Sans, the widest


def test_slow_ceilings_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    watch = stopwatch.Stopwatch(CPU)
    monkeypatch.setattr(watch, "time", lambda *_, **__: calls.append("timed") or 800.0)
    clock = itertools.count(0.0, 0.3)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert stopwatch.fastest(lambda: None, watch, 9) == 0.8
    assert len(calls) == 2
    meter = CeilingMeter.__new__(CeilingMeter)
    meter._seconds = SLOW + 1
    meter.try_again()  # would fail on what a meter that was never set up lacks


def test_a_profile_tells_that_triton_did_not_run() -> None:
    profile = made_up_profile()
    result = layer("a", "block", 0.9, block=2.0)
    ran = replace(result, timings=(result.timings[0], replace(result.timings[1], backend="torch")))
    asked = replace(profile, layers=(ran,), settings=profile.settings | {"backend": "triton"})
    line = "--backend triton: every layout ran in torch"
    assert line in "\n".join(report.summary(asked))
    assert line not in "\n".join(report.summary(replace(asked, settings=profile.settings)))


def test_tables_have_a_head_where_nothing_was_measured(tmp_path: Path) -> None:
    done = call(*TINY, "--minutes", "0.0001", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    for name, columns in (
        ("layers.csv", {"layer", "p50_ms", "gflop", "cpu"}),
        ("networks.csv", {"name", "commit"}),
    ):
        rows = csv.DictReader((tmp_path / name).read_text(encoding="utf-8").splitlines())
        assert columns <= set(rows.fieldnames or ()), name
        assert list(rows) == []


def test_figures_of_an_earlier_profile_go(tmp_path: Path) -> None:
    profile = made_up_profile()
    report.write_profile(profile, tmp_path)
    kept = tmp_path / "notes.svg"
    kept.write_text("mine")
    assert (tmp_path / "speed-up-unstructured.svg").is_file()
    blocks = tuple(result for result in profile.layers if result.pattern == "block")
    report.write_profile(replace(profile, layers=blocks), tmp_path)
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "notes.svg",
        "roofline.svg",
        "speed-up-block.svg",
    }


def test_the_same_profile_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        {path.name: path.read_bytes() for path in report.write_profile(made_up_profile(), tmp_path / name)}
        for name in ("first", "second")
    )
    assert first == second
    assert {"index.html", "roofline.svg", "speed-up-block.svg", "layers.csv", "profile.json"} <= set(first)


def test_without_jinja2_there_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("of an earlier profile")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = call(*TINY, "--minutes", "0.0001", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "not made: it needs jinja2" in done.output
    assert not (tmp_path / "index.html").exists()
    assert (tmp_path / "profile.json").is_file()


def test_a_terminal_is_told_what_was_not_measured_and_why() -> None:
    profile = made_up_profile()
    first = replace(profile.layers[0], timings=(), not_measured="3 input channels are no multiple of 4")
    profile = replace(profile, layers=(first, *profile.layers[1:]))
    assert report.reasons(profile) == [
        "not measured, 3 input channels are no multiple of 4: block at sparsity 0.5: layer0.conv"
    ]
    shown, *_ = report.tables(profile)
    assert len(shown.rows) == len(profile.layers) - 1
    assert "not_measured" not in shown.keys


def test_a_folder_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    monkeypatch.setattr(run.Profiler, "run", lambda _: pytest.fail("measured for nothing"))
    done = call(*TINY, "--out", str(taken))
    assert isinstance(done.exception, UsageError)
    assert "name another folder" in str(done.exception)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot write there"):
        run.check_folder(tmp_path)


def test_stopping_at_once_leaves_an_earlier_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profile.json").write_text("earlier")

    def stop(_: Profiler) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Profiler, "_measure", stop)
    done = call(*TINY, "--out", str(tmp_path))
    assert done.exit_code == 130
    assert "stopped before anything was measured" in done.output
    assert (tmp_path / "profile.json").read_text() == "earlier"


def test_the_record_beside_the_weights_names_the_model(tmp_path: Path) -> None:
    golden = json.loads(
        (Path(__file__).parents[1] / "golden" / "record_v2_ok.json").read_text(encoding="utf-8")
    )
    golden["spec"]["model"] = "convnet-small"
    folder = tmp_path / "runs" / "abc"
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", build_model("convnet-small", 4, seed=0).state_dict())
    (folder / "record.json").write_text(json.dumps(golden), encoding="utf-8")
    asked = ProfileSettings(run="abc", results=tmp_path)
    assert asked.resolved().model == "convnet-small"
    assert replace(asked, model="resnet18").resolved().model == "resnet18"
    (folder / "record.json").unlink()
    assert asked.resolved().model == "convnet"
