"""The sweep for a GPU machine, on a machine without one: its time box, its order, and what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_sweep
import pack
import pytest
import torch
from cifar_folder import make_images, write_python
from gpu_sweep import Chapter, Tally, run_chapters, watch

from prunebench.cells import Cell, Workplace
from prunebench.launch import Event, InlineLauncher
from prunebench.record import PLAIN_PATH
from prunebench.store import Store
from prunebench.suite import load_suite

SHORT: dict[str, Any] = {"steps": 4, "finetune_steps": 2, "batch_size": 16}
DIGITS = Chapter("smoke", 2, methods=("dense", "magnitude"), recipe=SHORT)
MNIST = Chapter("colored-mnist-full", 2, ("colored-mnist@1pct",), ("dense",), (0.9,), (0,), recipe=SHORT)


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Launcher(InlineLauncher):
    """Runs cells here; each takes 40 seconds of the fake clock."""

    def __init__(self, clock: FakeClock, started: list[str]) -> None:
        self.clock, self.started = clock, started

    def map(self, cells: Sequence[Cell], place: Workplace) -> Iterator[Event]:
        for event in super().map(cells, place):
            if event.kind == "started":
                self.started.append(event.cell.spec.label)
            if event.kind == "done":
                self.clock.now += 40
            yield event


def sweep(
    out: Path, root: Path, chapters: Sequence[Chapter], seconds: float
) -> tuple[list[str], dict[str, Any]]:
    """Run chapters in a box of fake seconds: the labels of the cells that were begun, and the summary."""
    out.mkdir(exist_ok=True)
    clock, started = FakeClock(), list[str]()
    place = Workplace(out, root, "cpu", keep_models=False, crowded=gpu_sweep.CROWDED)
    tally = Tally(out, seconds, clock)
    run_chapters(chapters, place, tally, lambda _: Launcher(clock, started))  # type: ignore[arg-type, return-value]
    return started, json.loads((out / "sweep.json").read_text())


def test_the_box_ends_in_the_middle_and_the_next_call_goes_on(tmp_path: Path) -> None:
    chapters = (DIGITS, Chapter("smoke", 2, methods=("dense", "magnitude"), seeds=(1,), recipe=SHORT))
    began, summary = sweep(tmp_path / "out", tmp_path, chapters, 100)
    task = "colored-digits@2pct"
    assert began == [f"{task} dense 0 seed 0", f"{task} magnitude 0.9 seed 0", f"{task} dense 0 seed 1"]
    assert (summary["done"], summary["finished"]) == ({"ok": 3}, False)
    assert "the same command goes on" in (tmp_path / "out" / "log.txt").read_text()
    began, summary = sweep(tmp_path / "out", tmp_path, chapters, 100)
    assert began == [f"{task} magnitude 0.9 seed 1"]
    assert (summary["done"], summary["finished"]) == ({"ok": 1}, True)
    assert sweep(tmp_path / "out", tmp_path, chapters, 100)[0] == []
    records, damaged = Store(tmp_path / "out").records()
    assert (len(records), damaged) == (4, [])
    paths = {record.cost.latency_path for record in records if record.cost is not None}
    assert paths == {f"{PLAIN_PATH} (timed beside other runs)"}


def test_a_chapter_without_its_data_is_put_off_until_they_are_there(tmp_path: Path) -> None:
    began, summary = sweep(tmp_path / "out", tmp_path, (MNIST, DIGITS), 1000)
    assert [label.split("@")[0] for label in began] == ["colored-digits"] * 2
    assert summary["put_off"] == ["colored-mnist-full colored-mnist@1pct"]
    assert not summary["finished"]
    write_mnist(tmp_path)
    began, summary = sweep(tmp_path / "out", tmp_path, (MNIST, DIGITS), 1000)
    assert [label.split("@")[0] for label in began] == ["colored-mnist"]
    assert summary["finished"]


def test_no_time_begins_nothing(tmp_path: Path) -> None:
    assert sweep(tmp_path / "out", tmp_path, (DIGITS,), 0)[0] == []


def test_the_plan_is_the_whole_of_both_suites_most_valuable_first() -> None:
    from prunebench.methods.catalog import builtin_methods

    first, second, *_, last = gpu_sweep.PLAN
    assert (first.tasks, second.tasks) == (("colored-mnist@1pct",), ("corrupted-cifar10@1pct",))
    assert {"dense", "magnitude", "gmp-pt", "lff", "jtt", "dcwp"} <= set(first.methods)
    for name in (gpu_sweep.MNIST, gpu_sweep.CIFAR):
        suite = load_suite(name)
        assert any(
            chapter.suite == name
            and not (chapter.tasks or chapter.methods or chapter.sparsities or chapter.seeds)
            for chapter in gpu_sweep.PLAN
        )
        assert [task.split("@")[1] for task in suite.tasks] == ["0.5pct", "1pct", "2pct", "5pct"]
        assert (min(suite.sparsities), max(suite.sparsities), len(suite.seeds)) == (0.5, 0.995, 3)
        postprocessing = ("-calibrated", "-deferred")
        assert {name for name in builtin_methods() if not name.endswith(postprocessing)} == set(suite.methods)
    assert not last.methods
    assert set(gpu_sweep.CHEAP) <= set(builtin_methods())


# --- the time box ------------------------------------------------------------------------------------------


class FakeProcess:
    """A process that ends at a time of the fake clock, or never."""

    def __init__(self, clock: FakeClock, ends: float, code: int = 0) -> None:
        self.clock, self.ends, self.code, self.killed = clock, ends, code, False

    def poll(self) -> int | None:
        return self.code if self.clock.now >= self.ends else None

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> int:
        return -9


@pytest.mark.parametrize(
    ("ends", "code", "killed", "packed", "want"), [(float("inf"), 0, True, 4, 0), (70, 3, False, 2, 3)]
)
def test_a_process_is_ended_after_its_time_and_packed_every_minute(
    ends: float, code: int, killed: bool, packed: int, want: int
) -> None:
    clock = FakeClock()
    times: list[float] = []
    process = FakeProcess(clock, ends, code)
    assert watch(process, 180, lambda: times.append(clock.now), clock, clock.sleep) == want
    assert process.killed == killed
    assert len(times) == packed
    assert clock.now <= 180 + gpu_sweep.GRACE_SECONDS + 0.5


# --- end to end --------------------------------------------------------------------------------------------

LACKING = (
    *("polars", "plotly", "tabulate", "typer", "rich", "sklearn", "jinja2", "matplotlib"),
    *("fairlearn", "hypothesis"),
)


def write_mnist(root: Path) -> None:
    """A hundred random digits a class in MNIST's format."""
    generator = torch.Generator().manual_seed(0)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 6000), ("t10k", 1000)):
        pixels = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.numpy().tobytes())
        labels = bytes(number % 10 for number in range(count))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + labels
        )


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked parcel, and a folder for PYTHONPATH that hides what the other machine lacks."""
    home = tmp_path_factory.mktemp("home")
    trip = tmp_path_factory.mktemp("trip")
    write_mnist(home / "data")
    write_python(home / "data", *make_images(100))
    for path in (home / "data" / "MNIST" / "raw").iterdir():  # packed as downloaded
        packed = path.with_name(path.name + ".gz")
        import gzip

        packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert (
        pack.main(["inputs", "--data", str(home / "data"), "--out", str(home / "parcels"), "--no-wheels"])
        == 0
    )
    parcels = map(str, (home / "parcels").glob("parcel-*.tar"))
    assert pack.main(["unpack", *parcels, "--into", str(trip)]) == 0
    hidden = trip / "hidden"
    hidden.mkdir()
    lines = [f"sys.modules[{name!r}] = None" for name in LACKING]
    (hidden / "sitecustomize.py").write_text("\n".join(["import sys", *lines]) + "\n")
    return trip


def rehearse(trip: Path, minutes: float) -> subprocess.Popen[bytes]:
    """The one command, run from the unpacked source, in an empty folder; it prints to `printed`."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PRUNEBENCH", "TRITON"))
    }
    (trip / "empty").mkdir(exist_ok=True)
    command = [
        *(sys.executable, str(trip / "source" / "bench" / "gpu_sweep.py"), "--rehearse", "--device", "cpu"),
        *("--minutes", str(minutes), "--workers", "1", "--data-root", str(trip / "data")),
        *("--results", str(trip / "results"), "--back", str(trip / "back")),
    ]
    environment["PYTHONPATH"] = str(trip / "hidden")
    with (trip / "printed").open("wb") as printed:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=trip / "empty",
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )


def records_in(trip: Path) -> list[Path]:
    return sorted((trip / "results" / "runs").glob("*/record.json"))


def test_the_trip_killed_in_the_middle_and_taken_up_again(trip: Path, tmp_path: Path) -> None:
    process = rehearse(trip, 10)
    for _ in range(1200):
        if records_in(trip) or process.poll() is not None:
            break
        time.sleep(0.25)
    os.killpg(process.pid, 9)
    process.wait()
    first = {path: path.read_bytes() for path in records_in(trip)}
    assert 1 <= len(first) < 6
    process = rehearse(trip, 10)
    code, printed = process.wait(timeout=600), (trip / "printed").read_text()
    assert code == 0, printed
    assert all(path.read_bytes() == content for path, content in first.items()), (
        "a finished cell was run again"
    )
    assert json.loads((trip / "back" / "sweep.json").read_text())["finished"], printed
    assert pack.main(["collect", str(trip / "back"), "--into", str(tmp_path / "collected")]) == 0
    records, damaged = Store(tmp_path / "collected").records()
    assert (len(records), damaged) == (6, [])
    assert {record.status for record in records} == {"ok"}
    packed = json.loads((trip / "source" / "commit.json").read_text())
    assert {record.code["commit"] for record in records} == {packed["commit"]}
    assert {record.spec["task"] for record in records} == {"colored-mnist@1pct", "corrupted-cifar10@1pct"}
    assert len(list((trip / "back").iterdir())) <= 8
