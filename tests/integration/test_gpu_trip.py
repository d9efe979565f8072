"""The trip to a GPU machine: its schedule, its archive under kills, its targets, and the cache that travels."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import pytest
import timing
import torch
from gpu import cache, items_tuning, report, schedule, targets, trip
from gpu.archive import Archive, read
from gpu.items import all_items
from gpu.schedule import TARGET, Context, Deadline, FakeClock, Item, Log, run_items
from gpu.subjects import compare, poison, precision, random_mask

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
CPU = Context(torch.device("cpu"), is_full=False)


def fixed(result: dict[str, Any]) -> Any:
    return lambda context: dict(result)


# --- the schedule ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_every_target_comes_home(factor: float) -> None:
    home = trip.rehearse(8.5, factor)
    wanted = [item.name for item in all_items() if item.part == TARGET]
    assert [name for name in wanted if name not in home] == []
    assert f"{len(wanted)} of {len(wanted)} target items" in trip.rehearsal(8.5, factor)


def test_a_slow_machine_brings_the_first_targets() -> None:
    home = trip.rehearse(8.5, 2.0)
    assert {"training step, ResNet-18, unstructured 90 %", targets.IMAGENET} <= home
    assert "tuning, correlation" not in home


def test_targets_belong_to_items() -> None:
    names = {item.name for item in all_items()}
    assert {target.item for target in targets.TARGETS} <= names
    assert len(names) == len(all_items())
    assert all(
        item.kernels is not None for item in all_items() if item.name in names and "smoke" in item.name
    )


def play(
    items: list[Item], folder: Path, minutes: float = 1.0, run_id: str = "one"
) -> tuple[Archive, list[str]]:
    clock = FakeClock()
    timed = [
        Item(
            item.name,
            lambda c, i=item: (setattr(clock, "now", clock.now + i.seconds), i.run(c))[1],
            item.seconds,
        )  # type: ignore[misc]
        for item in items
    ]
    archive = Archive(folder)
    ran = run_items(timed, CPU, archive, Log(None, Deadline(minutes * 60, clock)), run_id=run_id)
    return Archive(folder), ran


def test_what_does_not_fit_is_left_out_and_done_by_the_next_command(tmp_path: Path) -> None:
    items = [Item("long", fixed({}), 50), Item("longer", fixed({}), 40), Item("short", fixed({}), 5)]
    archive, ran = play(items, tmp_path)
    assert ran == ["long", "short"]
    assert archive.item("longer") == {}
    _, ran = play(items, tmp_path, run_id="two")
    assert ran == ["longer"]


def test_a_failure_is_recorded_and_tried_by_the_next_command(tmp_path: Path) -> None:
    def breaks(context: Context) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    items = [
        Item("broken", breaks, 1),
        Item("wrong", fixed({"failed": "off by one"}), 1),
        Item("right", fixed({}), 1),
    ]
    archive, _ = play(items, tmp_path)
    assert archive.item("broken")["status"] == archive.item("wrong")["status"] == "failed"
    assert "no such kernel" in archive.item("broken")["reason"]
    assert archive.item("right")["status"] == "ok"
    assert play(items, tmp_path)[1] == []  # the same run does not try again
    assert play(items, tmp_path, run_id="two")[1] == ["broken", "wrong"]


def test_a_time_box_ends_what_hangs() -> None:
    with pytest.raises(TimeoutError, match=r"ended after 0\.1 s"), schedule.time_box(0.1):
        time.sleep(5)
    time.sleep(0.15)  # and rings no more


# --- the archive -------------------------------------------------------------------------------------------------

WORK = """
    import random, sys
    from pathlib import Path
    import torch
    from gpu.archive import Archive
    from gpu.schedule import Context, Deadline, Item, Log, run_items

    rows = [{"candidate": "kernel", "p50_ms": number} for number in range(2000)]
    items = [Item(f"item {number}", lambda context: {"rows": rows}, 0.01) for number in range(100000)]
    archive = Archive(Path(sys.argv[1]))
    context = Context(torch.device("cpu"), is_full=False)
    log = Log(None, Deadline(600))
    run_items(items, context, archive, log, run_id=sys.argv[2],
              after=lambda item: print(item.name, flush=True) is None)
"""


@pytest.mark.slow
def test_the_archive_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    paths = os.pathsep.join(str(path) for path in (ROOT / "bench", ROOT / "kernels", ROOT))
    generator = random.Random(0)
    done: list[str] = []
    for number in range(6):
        command = [sys.executable, "-c", textwrap.dedent(WORK), str(tmp_path), str(number)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        ) as process:
            assert process.stdout is not None
            done.append(process.stdout.readline().strip())
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            done += [line for line in process.stdout.read().split("\n") if line.startswith("item ")]
        items = read(tmp_path / "results.tar.gz")["items"]
        # A line cut short by the kill names another item: all but the last line are whole.
        assert all(items[name]["status"] == "ok" for name in done[:-1])
        assert sum(item["status"] == "running" for item in items.values()) <= 1
    assert len(done) > 6


def test_an_archive_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="is of format 0"):
        read(tmp_path / "results.json")


# --- the program -------------------------------------------------------------------------------------------------


def run_trip(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "bench" / "gpu" / "trip.py"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    return subprocess.run(
        [*command, "--no-compile", *options], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.slow
def test_a_trip_on_a_cpu_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """A worker of its own, results as one archive; a second command measures what is asked for anew."""
    first = run_trip(tmp_path, "--only", "masks*", "smoke, masks")
    assert first.returncode == 0, first.stdout + first.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"results.tar.gz", "log.txt", "table.md"}
    results = read(tmp_path / "results.tar.gz")
    assert len(results["runs"]) == 1
    assert all(item["status"] == "ok" for item in results["items"].values())
    assert "| not measured: no GPU |" in (tmp_path / "table.md").read_text()
    (run,) = results["runs"].values()
    assert run["machine"]["source"]
    assert run["ceilings"]["copy_gb_per_s"] > 0
    other = tmp_path / "other"
    second = run_trip(
        other, "--resume", str(tmp_path / "results.tar.gz"), "--only", "masks*", "--again", "*applied"
    )
    assert second.returncode == 0, second.stdout + second.stderr
    again = read(other / "results.tar.gz")["items"]
    assert [name for name in again if again[name]["run"] not in results["runs"]] == [
        "masks, ResNet-18, applied"
    ]
    with tarfile.open(other / "results.tar.gz") as archive:
        assert {"results.json", "log.txt"} <= set(archive.getnames())


@pytest.mark.slow
def test_a_trip_on_a_cpu_measures_every_item(tmp_path: Path) -> None:
    done = run_trip(tmp_path, "--minutes", "9")
    items = read(tmp_path / "results.tar.gz")["items"]
    broken = {name: item["reason"] for name, item in items.items() if item["status"] != "ok"}
    assert not broken
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert set(items) == {item.name for item in all_items() if not item.needs_gpu}
    assert "## Targets" in report.page(read(tmp_path / "results.tar.gz"))


# --- targets and page --------------------------------------------------------------------------------------------


def results_of(
    item: str, times: dict[tuple[str, str], float], *, gpu: bool = True, **facts: Any
) -> dict[str, Any]:
    rows = [
        {"candidate": name, "how": how, "p20_ms": ms, "p50_ms": ms, "p80_ms": ms}
        for (how, name), ms in times.items()
    ]
    machine: dict[str, Any] = {
        "device": "card", "torch": "2", "triton": "3", "cuda": "13", "cudnn": 9, "python": "3.12",
        "commit": "abc", "changed_files": [], "source": "def",
    }  # fmt: skip
    if gpu:
        machine["gpu"] = {"multiprocessors": 132, "nvidia_smi": {}}
    ceilings = {
        "copy_gb_per_s": 3000.0,
        "bf16_tflop_per_s": 800.0,
        "tf32_tflop_per_s": 400.0,
        "fp32_tflop_per_s": 50.0,
    }
    record = {
        "status": "ok",
        "reason": "",
        "run": "r",
        "part": "target",
        "result": {"rows": rows, "refused": {}, **facts},
    }
    return {"format": 1, "runs": {"r": {"machine": machine, "ceilings": ceilings}}, "items": {item: record}}


def lines(results: dict[str, Any]) -> dict[str, targets.Line]:
    return {target.name: targets.line(target, results) for target in targets.TARGETS}


def test_nothing_unmeasured_is_met() -> None:
    assert all(
        line.met is None and line.why for line in lines({"format": 1, "runs": {}, "items": {}}).values()
    )
    times = {("kernels", "kernel"): 0.1, ("kernels", targets.COPY): 0.2}
    found = lines(results_of(targets.IMAGENET, times, gpu=False))
    assert all(line.met is None for line in found.values())
    assert found[f"{targets.IMAGENET} (kernels)"].why == "not measured: no GPU"


def test_targets_are_ratios_of_one_item() -> None:
    times = {
        ("kernels", "kernel"): 0.25,
        ("kernels", targets.COPY): 0.20,
        ("called", "kernel"): 0.3,
        ("called", "auto"): 0.1,
        ("called", "eager torch"): 4.5,
        ("called", "torch.compile"): 0.5,
    }
    found = lines(results_of(targets.IMAGENET, times, bytes=600_000_000))
    share = found[f"{targets.IMAGENET} (kernels)"]
    assert (share.measured, share.met) == (pytest.approx(0.8), False)
    assert share.of_limit == pytest.approx(0.8)  # 600 MB at 3,000 GB/s
    assert share.over_best == {"called": pytest.approx(0.5 / 0.3)}
    eager = found[f"{targets.IMAGENET}: over eager torch (called)"]
    assert (eager.measured, eager.met) == (pytest.approx(15), True)
    compiled = found[f"{targets.IMAGENET}: over torch.compile (called)"]
    assert (compiled.measured, compiled.met) == (pytest.approx(1.67, abs=0.01), False)


def test_the_best_alternative_does_the_same_work() -> None:
    times = {
        "kernel": 1.0,
        "kernel, graphed": 0.5,
        "auto": 0.6,
        targets.COPY: 0.1,
        "dense, no masks": 0.2,
        "MaskHold": 0.9,
    }
    assert targets.best_alternative(times) == 0.9
    assert targets.best_alternative({"kernel": 1.0}) is None


def test_the_page_says_where_and_what_failed() -> None:
    results = results_of("masks, ResNet-18, sampled", {("kernels", "kernel"): 0.03}, bytes=10)
    results["items"]["smoke, masks"] = {
        "status": "failed", "reason": "Traceback\nValueError: off", "run": "r", "part": "target",
        "result": {"checks": 3, "largest_relative_error": {"y": 1e-7}, "wrong": ["masks differ"]},
    }  # fmt: skip
    text = report.page(results)
    for part in (
        "Run r: card",
        "source abc",
        "| at most 40 us | 30.00 us | yes |",
        "2 of 3 checks",
        "masks differ",
        "ValueError: off",
    ):
        assert part in text


# --- what travels ------------------------------------------------------------------------------------------------


def test_the_tree_that_travels_is_small() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    packed = trip.CACHE.stat().st_size if trip.CACHE.is_file() else 6 * MIB
    assert packed <= 6 * MIB
    assert sum(path.stat().st_size for path in paths if path.is_file()) + packed < 64 * MIB
    ignored = subprocess.run(["git", "check-ignore", "-q", str(trip.CACHE)], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def packed_cache(folder: Path, triton: str) -> Path:
    """A cache of one kernel whose group names paths of the machine where it was made."""
    key = folder / "made" / "KEY"
    key.mkdir(parents=True)
    for name in ("k.cubin", "k.json", "k.ttir"):
        (key / name).write_text(name)
    (folder / "made" / "STALE").mkdir()
    (folder / "made" / "STALE" / "__grp__k.json").write_text("{}")
    paths = {path.name: str(path) for path in key.iterdir()}
    (key / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    (folder / "cache.tar.xz").write_bytes(cache.pack(folder / "made", {"triton": triton}, {"KEY"}))
    return folder / "cache.tar.xz"


def test_an_unpacked_cache_names_its_own_files(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    packed, folder = packed_cache(tmp_path, triton.__version__), tmp_path / "here"
    assert cache.unpack(packed, folder) == (1, "")
    group = json.loads((folder / "KEY" / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(folder / "KEY" / name) for name in ("k.cubin", "k.json")}
    assert all(Path(path).is_file() for path in group.values())


def test_a_cache_of_another_triton_is_refused(tmp_path: Path) -> None:
    count, reason = cache.unpack(packed_cache(tmp_path, "0.1"), tmp_path / "here")
    assert count == 0
    assert "of Triton 0.1" in reason


@pytest.mark.slow
def test_a_cache_made_without_a_gpu_is_complete(tmp_path: Path) -> None:
    """Made in one process and folder, found in another: nothing is compiled again, launchers included."""
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    out, only = str(tmp_path / "cache.tar.xz"), ["--only", "correlation, 2*"]
    command = [sys.executable, "-W", "ignore", str(ROOT / "bench" / "gpu" / "cache.py"), "--out", out, *only]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "1 kernels from" in checked.stdout
    with tarfile.open(out) as archive:
        names = [Path(name).name for name in archive.getnames()]
    assert sum(name.startswith("__triton_launcher") for name in names) == hasattr(driver, "make_launcher")
    assert sum(name.startswith("cuda_utils") for name in names) == 1


# --- comparing ---------------------------------------------------------------------------------------------------


class WithGpu(Context):
    """What runs on a GPU, on a CPU: its timers are stood in for."""

    on_gpu = True  # type: ignore[assignment]


@pytest.mark.slow
def test_a_gpu_is_timed_in_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def timing_of(ms: float, method: str) -> timing.CallTiming:
        return timing.CallTiming(ms, 2 * ms, 3 * ms, 9, method, "hot")

    def time_calls(
        calls: Any, device: Any, *, graph: bool = True, **options: Any
    ) -> dict[str, timing.CallTiming]:
        for call in calls.values():
            call()
        return {
            name: timing_of(10.0, "cuda-graph" if graph and name != "waits" else "cuda-events")
            for name in calls
        }

    monkeypatch.setattr(timing, "time_calls", time_calls)
    monkeypatch.setattr(timing, "time_kernels", lambda call, device: timing_of(1.0, "kernels"))
    made = dict.fromkeys(("kernel", "waits"), 0)

    def call(name: str) -> None:
        made[name] += 1

    def breaks() -> None:
        raise RuntimeError("does not compile")

    context = WithGpu(torch.device("cpu"), is_full=False)
    calls = {"kernel": lambda: call("kernel"), "waits": lambda: call("waits"), "torch.compile": breaks}
    result = compare(context, calls, moved=64, repeats=5, parts={"waits": 2})
    rows = {(row["how"], row["candidate"]): row["p50_ms"] for row in result["rows"]}
    assert rows[("called", "kernel")] == pytest.approx(20 / 5)
    assert rows[("called", "waits")] == pytest.approx(20 / 5 / 2)
    assert ("graph", "kernel") in rows
    assert ("graph", "waits") not in rows  # what cannot be captured has no such row
    assert rows[("kernels", targets.COPY)] == pytest.approx(2)
    assert result["refused"] == {"torch.compile": "RuntimeError: does not compile"}
    assert "failed" not in result
    assert made["kernel"] == 1 + 5 + 1  # once alone, five in a row, once as a graph
    assert "kernel: RuntimeError" in compare(context, {"kernel": breaks, "waits": calls["waits"]})["failed"]
    with pytest.raises(RuntimeError, match="no candidate runs"):
        compare(context, {"kernel": breaks})


def test_a_better_tile_runs_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is replaced for the arguments that were tuned, and for no others."""
    home = types.ModuleType("prunebench_kernels.toy")
    home.rule = lambda size: "slow"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "prunebench_kernels.toy", home)
    speeds = {"slow": 2.0, "fast": 1.0}
    rows = [{"candidate": name, "how": "kernels", "p50_ms": ms} for name, ms in speeds.items()]
    monkeypatch.setattr(items_tuning, "compare", lambda *given, **options: {"rows": rows})
    knob = items_tuning.Knob(
        "toy", "rule", lambda size: ["slow", "fast"], lambda context: ((8,), lambda tile: None)
    )
    result = items_tuning.tune([knob], lambda context: {"tile": home.rule(8)}, CPU)
    assert result["tuned"] == {"tile": "fast"}
    assert (result["0: toy"]["rule"], result["0: toy"]["best"]) == ("slow", "fast")
    assert home.rule(9) == "slow"


# --- subjects ----------------------------------------------------------------------------------------------------


def test_masks_have_their_pattern_and_number() -> None:
    shape = (128, 64, 3, 3)
    assert int(random_mask(shape, "unstructured", 0.9).sum()) == round(0.1 * 128 * 64 * 9)
    block = random_mask(shape, "block", 0.5).view(2, 64, 1, 64, 9)
    assert torch.equal(block.any(3).any(1), block.all(3).all(1))
    assert int(block.any(3).any(1).sum()) == 9
    pairs = random_mask(shape, "2:4", 0.5).view(128, 16, 4, 9).sum(2)
    assert bool((pairs == 2).all())
    assert int(random_mask(shape, "filter", 0.5).any(3).any(2).any(1).sum()) == 64
    with pytest.raises(ValueError, match="want unstructured, block"):
        random_mask(shape, "stripes", 0.5)


def test_precision_is_set_and_given_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with precision(tf32=True):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_poison_needs_a_gpu() -> None:
    poison(CPU)
    assert not torch.cuda.is_initialized()
