"""The one command for a GPU machine, on a machine without one: it runs to the end and invents no GPU figure."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu
import gpu_correctness
import gpu_processes
import gpu_targets
import gpu_tuning
import pytest
import torch
from gpu_stages import NO_CUDA, SCHEMA_VERSION, Context, Deadline, Item, Result, Stage, run_stage
from gpu_subjects import random_mask
from prunebench_kernels import tuned

CPU = torch.device("cpu")
BENCH = Path(gpu.__file__).parent
FILES = {
    "benchmarks.json",
    "correctness.json",
    "environment.json",
    "log.txt",
    "profile.json",
    "targets.json",
    "tuning.json",
}


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_context(out: Path, *, seconds: float = 100.0, session: str = "one", kind: str = "cpu") -> Context:
    """A context with a fake clock."""
    return Context(torch.device(kind), out, Deadline(seconds, FakeClock()), session, {"device_type": kind})


def takes(context: Context, seconds: float, result: Result | None = None) -> Callable[[Context], Result]:
    """An item's work: the clock of `context` moves on."""

    def run(_: Context) -> Result:
        assert isinstance(context.deadline.clock, FakeClock)
        context.deadline.clock.now += seconds
        return result or {"done": True}

    return run


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def values(entry: object) -> Iterator[tuple[str, object]]:
    """Every (key, value) in nested JSON."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            yield key, value
            yield from values(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from values(value)


# --- end to end --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run on the CPU, kernels in the interpreter; its clock stands still."""
    out = tmp_path_factory.mktemp("gpu")
    code = gpu.main(
        ["--minutes", "9", "--out", str(out), "--device", "cpu", "--no-compile"], clock=FakeClock()
    )
    assert code == 0, (out / "log.txt").read_text()
    return out


def test_it_runs_to_the_end_and_leaves_few_files(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    assert len(FILES) < 8  # on a GPU tuned.json comes with them
    assert sum(path.stat().st_size for path in finished.iterdir()) < 4e6
    for stage in gpu.STAGES:
        stored = read(stage.path(finished))
        assert stored["complete"], stage.name
        assert stored["stage"] == stage.name
        assert (stored["pending"], stored["running"]) == ([], None)


def test_every_file_has_the_schema(finished: Path) -> None:
    for stage in gpu.STAGES:
        stored = read(stage.path(finished))
        assert stored.keys() == {
            *("schema_version", "stage", "fingerprint", "complete", "session", "running", "pending", "items"),
        }
        assert stored["schema_version"] == SCHEMA_VERSION
        for name, item in stored["items"].items():
            assert item.keys() == {"status", "reason", "seconds", "session", "result"}, name
            assert item["status"] in ("ok", "not measured"), name
            assert (
                (item["result"] is None) == (item["status"] == "not measured") == (item["reason"] is not None)
            )


def test_no_gpu_figure_appears(finished: Path) -> None:
    for stage in gpu.STAGES:
        stored = read(stage.path(finished))
        assert stored["fingerprint"]["device_type"] == "cpu"
        methods = {value for key, value in values(stored) if key == "method" and isinstance(value, str)}
        assert methods <= {"host-clock"}, stage.name
    assert read(finished / "environment.json")["items"]["machine"]["result"]["gpu"] is None
    targets = read(finished / "targets.json")["items"]["table"]["result"]["targets"]
    assert len(targets) == 19
    assert {(entry["measured"], entry["met"], entry["note"]) for entry in targets} == {(None, None, NO_CUDA)}


def test_it_says_what_needs_cuda(finished: Path) -> None:
    large = [item for item in read(finished / "correctness.json")["items"].values() if item["reason"]]
    assert {item["reason"] for item in large} == {NO_CUDA}
    assert len(large) == 10
    assert "no CUDA device: reduced shapes on the CPU" in (finished / "log.txt").read_text()


def test_the_kernels_ran_in_the_interpreter(finished: Path) -> None:
    stored = read(finished / "correctness.json")
    assert stored["fingerprint"]["interpreted"] == "1"
    for name in ("masked_conv2d", "uncertainty", "correlation", "cooccurrence", "sparse_conv2d"):
        for dtype in ("fp32", "fp16"):
            result = stored["items"][f"{name}, {dtype}"]["result"]
            assert result["passed"]
            assert result["checks"] >= 3


def test_each_operation_is_timed_against_eager_torch(finished: Path) -> None:
    for name, item in read(finished / "benchmarks.json")["items"].items():
        rows = item["result"]["rows"]
        assert {row["l2"] for row in rows} == {"hot", "cold"}, name
        assert {"prunebench", "eager"} <= {row["candidate"] for row in rows}, name
        assert all(0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in rows), name


def test_the_same_command_again_measures_nothing_twice(finished: Path) -> None:
    before = {path.name: read(path)["items"] for path in finished.glob("*.json")}
    log = len((finished / "log.txt").read_text().splitlines())
    arguments = ["--minutes", "9", "--out", str(finished), "--device", "cpu", "--no-compile"]
    assert gpu.main(arguments, clock=FakeClock()) == 0
    after = {path.name: read(path)["items"] for path in finished.glob("*.json")}
    for name in FILES - {"log.txt", "targets.json"}:
        assert after[name] == before[name], name
    assert (
        len((finished / "log.txt").read_text().splitlines()) == log + 3
    )  # two of greeting, one of the targets


# --- stages, deadline, resume ------------------------------------------------------------------------------


def test_what_does_not_fit_waits_for_the_next_call(tmp_path: Path) -> None:
    first = make_context(tmp_path, seconds=100)
    seen: list[str] = []

    def item(name: str, context: Context, seconds: float) -> Item:
        def run(inner: Context) -> Result:
            seen.append(name)
            return takes(context, seconds)(inner)

        return Item(name, run, seconds)

    def stage(context: Context) -> Stage:
        sizes = {"a": 60.0, "b": 50.0, "c": 30.0}
        return Stage("toy", lambda _: [item(name, context, seconds) for name, seconds in sizes.items()])

    stored = run_stage(stage(first), first)
    assert seen == ["a", "c"]
    assert first.deadline.remaining() == 10
    assert (stored["complete"], stored["pending"]) == (False, ["b"])
    second = make_context(tmp_path, session="two")
    stored = run_stage(stage(second), second)
    assert seen == ["a", "c", "b"]
    assert (stored["complete"], stored["pending"]) == (True, [])
    assert [entry["session"] for entry in stored["items"].values()] == ["one", "one", "two"]
    assert read(tmp_path / "toy.json") == stored


def test_a_failure_is_kept_with_its_traceback_and_tried_again_by_the_next_session(tmp_path: Path) -> None:
    attempts = 0

    def flaky(_: Context) -> Result:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ValueError("the first time")
        return {"value": float("nan"), "nested": [float("inf"), 1.0]}

    toy = Stage("toy", lambda _: [Item("flaky", flaky), Item("after", lambda _: {"fine": True})])
    context = make_context(tmp_path)
    for _ in range(2):  # within one session it is not tried again
        stored = run_stage(toy, context)
        assert stored["items"]["flaky"]["status"] == "failed"
        assert "ValueError: the first time" in stored["items"]["flaky"]["reason"]
        assert stored["items"]["after"]["status"] == "ok"
        assert not stored["complete"]
    stored = run_stage(toy, make_context(tmp_path, session="two"))
    assert stored["items"]["flaky"]["result"] == {"value": None, "nested": [None, 1.0]}
    assert (attempts, stored["complete"]) == (2, True)


def test_wrong_results_are_a_failure_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Stage(
        "environment", lambda _: [Item("check", lambda _: {"passed": False, "wrong": ["y is off"]})]
    )
    monkeypatch.setattr(gpu, "STAGES", (wrong, gpu.STAGES[-1]))
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu"], clock=FakeClock()) == 1
    assert "y is off" in read(tmp_path / "environment.json")["items"]["check"]["reason"]
    assert gpu.failures(tmp_path) == ["environment: check"]


def test_results_of_another_machine_or_source_are_not_continued(tmp_path: Path) -> None:
    runs: list[str] = []
    toy = Stage("toy", lambda _: [Item("a", lambda c: {"by": runs.append(c.session)})])
    run_stage(toy, make_context(tmp_path, session="one"))
    other = make_context(tmp_path, session="two")
    other.fingerprint = {"device_type": "cpu", "source": "changed"}
    run_stage(toy, other)
    assert runs == ["one", "two"]
    assert "begun anew" in (tmp_path / "log.txt").read_text()


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    toy = Stage("toy", lambda _: [Item("a", lambda _: {})])
    toy.path(tmp_path).write_text("{")
    assert run_stage(toy, make_context(tmp_path))["complete"]


def test_an_item_in_which_the_process_ended_is_recorded(tmp_path: Path) -> None:
    toy = Stage("toy", lambda _: [Item("deadly", lambda _: {}), Item("after", lambda _: {})])
    context = make_context(tmp_path)
    stored = run_stage(toy, context)
    stored["items"].clear()
    stored["running"] = "deadly"
    toy.path(tmp_path).write_text(json.dumps(stored))
    stored = run_stage(toy, context)
    assert stored["items"]["deadly"]["reason"] == "the process ended while it ran"
    assert stored["items"]["after"]["status"] == "ok"


def test_the_time_box_ends_in_the_middle_of_the_stages_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most valuable stages are whole before others begin; what is too long for the rest waits for the next call."""
    clock, begun = FakeClock(), list[str]()

    def item(name: str, seconds: float) -> Item:
        def run(_: Context) -> Result:
            begun.append(name)
            clock.now += seconds
            return {"done": True}

        return Item(name, run, seconds=seconds)

    sizes = {"environment": (10, 10), "correctness": (100, 100), "benchmarks": (200, 200, 50)}
    stages = [
        Stage(name, lambda _, name=name, sizes=sizes: [item(f"{name} {i}", s) for i, s in enumerate(sizes)])  # type: ignore[misc]
        for name, sizes in sizes.items()
    ]
    monkeypatch.setattr(gpu, "STAGES", (*stages, gpu.STAGES[-1]))
    arguments = ["--minutes", "8", "--out", str(tmp_path), "--device", "cpu"]
    assert gpu.main(arguments, clock=clock) == 0
    first = [
        "environment 0",
        "environment 1",
        "correctness 0",
        "correctness 1",
        "benchmarks 0",
        "benchmarks 2",
    ]
    assert begun == first
    assert clock.now <= 8 * 60
    assert read(tmp_path / "benchmarks.json")["pending"] == ["benchmarks 1"]
    assert gpu.main(arguments, clock=clock) == 0
    assert begun == [*first, "benchmarks 1"]
    assert read(tmp_path / "benchmarks.json")["complete"]


def test_a_killed_session_is_taken_up_by_the_same_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        *(
            sys.executable,
            str(BENCH / "gpu.py"),
            "--only",
            "environment",
            "--out",
            str(out),
            "--device",
            "cpu",
        )
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    path = out / "environment.json"
    for _ in range(2400):
        if process.poll() is not None or (path.exists() and "machine" in read(path)["items"]):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    stored = read(path)
    machine, session = stored["items"]["machine"], stored["items"]["machine"]["session"]
    assert not stored["complete"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    stored = read(path)
    assert stored["complete"]
    assert stored["items"]["machine"] == machine  # not run again
    assert {item["status"] for item in stored["items"].values()} == {"ok"}
    assert stored["items"]["matrix product"]["session"] != session


def test_an_item_that_an_earlier_session_was_killed_in_runs_again_last(tmp_path: Path) -> None:
    ran: list[str] = []

    def item(name: str) -> Item:
        return Item(name, lambda _: {"place": ran.append(name)})

    toy = Stage("toy", lambda _: [item("slow"), item("after"), item("last")])
    context = make_context(tmp_path)
    stored = run_stage(toy, context)
    stored["items"].clear()
    stored["running"] = "slow"
    toy.path(tmp_path).write_text(json.dumps(stored))
    ran.clear()
    stored = run_stage(toy, make_context(tmp_path, session="two"))
    assert ran == ["after", "last", "slow"]
    assert stored["complete"]


def test_fresh_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    toy = Stage("environment", lambda _: [Item("a", lambda _: {"run": runs.append(1)})])
    monkeypatch.setattr(gpu, "STAGES", (toy, gpu.STAGES[-1]))
    for extra in ((), (), ("--fresh",)):
        gpu.main(["--out", str(tmp_path), "--device", "cpu", *extra], clock=FakeClock())
    assert len(runs) == 2


# --- processes ---------------------------------------------------------------------------------------------

BLOCKED = """
import sys
for name in "pydantic polars plotly tabulate typer rich sklearn scipy torchvision prunebench".split():
    sys.modules[name] = None
import runpy
sys.argv = [sys.argv[1], *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_needs_no_package_that_the_gpu_machine_lacks(tmp_path: Path) -> None:
    arguments = ["--only", "environment", "--minutes", "1", "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(BENCH / "gpu.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert NO_CUDA in done.stdout
    result = read(tmp_path / "environment.json")["items"]["copy bandwidth"]["result"]
    assert result["gb_per_s"] > 0


def test_items_run_in_processes_of_their_own(tmp_path: Path) -> None:
    from gpu_environment import fingerprint

    context = Context(CPU, tmp_path, Deadline(120, time.monotonic), "apart", fingerprint(CPU))
    machine, *_ = gpu.STAGES[0].items(context)
    stage = replace(gpu.STAGES[0], items=lambda _: [machine, Item("unheard of", lambda _: {})])
    gpu_processes.run_side_by_side(stage, context, workers=2)
    stored = read(tmp_path / "environment.json")["items"]
    assert stored["machine"]["status"] == "ok"
    assert stored["machine"]["session"] == "apart"
    assert stored["unheard of"]["status"] == "failed"
    assert "its process ended with code 0" in stored["unheard of"]["reason"]


def test_a_stage_that_dies_before_its_first_item_is_not_tried_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    def dies(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        runs.append(1)
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(gpu_processes.subprocess, "run", dies)
    gpu_processes.run_stage_apart(gpu.STAGES[0], make_context(tmp_path))
    assert len(runs) == 1


def test_a_destroyed_context_goes_on_in_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([gpu_processes.BROKEN_DEVICE, gpu_processes.BROKEN_DEVICE, 0])
    monkeypatch.setattr(
        gpu_processes.subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], next(codes)),
    )
    gpu_processes.run_stage_apart(gpu.STAGES[0], make_context(tmp_path))
    assert next(codes, None) is None


# --- checks, masks, tuning, targets ------------------------------------------------------------------------


def test_a_wrong_result_is_found(tmp_path: Path) -> None:
    right = torch.arange(1.0, 5.0)
    context = make_context(tmp_path)

    def result(values: torch.Tensor) -> Result:
        check = gpu_correctness.Check(
            "toy", lambda: {"y": values}, lambda: {"y": right.double()}, lambda _: 1e-5
        )
        return gpu_correctness.run_checks(iter([check]), context)

    assert result(right)["passed"]
    assert not result(right * 1.001)["passed"]
    assert not result(right.masked_fill(right == 2, torch.nan))["passed"]  # not written
    assert not result(right[:3])["passed"]


def test_calls_that_differ_in_a_bit_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path, kind="cuda")  # no tensor lies there: only the repeats are switched on
    monkeypatch.setattr(gpu_correctness, "poison_memory", lambda _: None)
    calls = iter([1.0, 1.0, 1.0000001, 1.0, 1.0])
    check = gpu_correctness.Check(
        "racy",
        lambda: {"y": torch.tensor(next(calls), dtype=torch.float64)},
        lambda: {"y": torch.ones((), dtype=torch.float64)},
        lambda _: 1e-5,
    )
    result = gpu_correctness.run_checks(iter([check]), context)
    assert result["wrong"] == ["racy: repeated calls differ"]


@pytest.mark.parametrize(("pattern", "kept"), [("unstructured", 0.1), ("block", 2 / 18), ("filter", 0.1)])
def test_masks_keep_what_they_say(tmp_path: Path, pattern: str, kept: float) -> None:
    mask = random_mask(make_context(tmp_path), (128, 64, 3, 3), pattern, 0.9)
    assert float(mask.double().mean()) == pytest.approx(kept, abs=0.005)


def test_two_of_four_masks_keep_two_of_every_four(tmp_path: Path) -> None:
    mask = random_mask(make_context(tmp_path), (6, 8, 3, 3), "2:4", 0.5)
    assert (mask.view(6, 2, 4, 3, 3).sum(2) == 2).all()
    assert random_mask(make_context(tmp_path), (6, 3, 3, 3), "2:4", 0.5).all()


def test_the_tuned_table_is_what_the_operations_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)
    assert gpu_tuning.write_table(context) == 0
    tuning = Stage(
        "tuning", lambda c: [Item("toy", lambda c: {"tuned": [gpu_tuning.tune("toy", "key", OPTIONS, c)]})]
    )
    run_stage(tuning, context)
    monkeypatch.setattr(gpu_tuning.Context, "cuda", True)
    monkeypatch.setattr(tuned, "device_slug", lambda: "test-gpu")
    assert gpu_tuning.write_table(context) == 1
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    (tmp_path / "tuned.json").rename(tmp_path / "test-gpu.json")
    assert tuned.lookup("toy", "key", slug="test-gpu") == {"rows": 64}
    assert gpu_tuning.tune("toy", "key", OPTIONS, make_context(tmp_path))["refused"].keys() == {"broken"}


OPTIONS: dict[str, Any] = {
    "broken": ({"rows": 32}, lambda: 1 / 0),
    "sound": ({"rows": 64}, lambda: None),
}


def row(candidate: str, p50: float, l2: str = "hot", method: str = "cuda-graph") -> dict[str, Any]:
    return {"candidate": candidate, "p50_ms": p50, "l2": l2, "method": method}


def test_targets_are_read_from_the_results(tmp_path: Path) -> None:
    rows = [
        *(row("prunebench", 0.03), row("prunebench", 0.05, "cold")),
        *(row("prunebench", 0.06, method="cuda-events"), row("eager", 0.5, method="cuda-events")),
        row("prunebench", 0.039, "cold", "kernels"),
    ]
    result = {"rows": rows, "refused": {"torch.compile": "it did not compile"}}
    ok = {"status": "ok", "reason": None, "seconds": 1.0, "session": "s", "result": result}
    stored = {"fingerprint": {"device_type": "cuda"}, "items": {"sample_masks, resnet18": ok}}
    (tmp_path / "benchmarks.json").write_text(json.dumps(stored))
    found = {target.name: target for target in gpu_targets.all_targets(tmp_path)}
    sampling = found["sample_masks, all of ResNet-18 (kernels, cold L2)"]
    assert (sampling.measured, sampling.met) == (pytest.approx(39.0), True)
    eager = found["sample_masks, all of ResNet-18: speed-up over eager"]
    assert (eager.measured, eager.met) == (pytest.approx(0.5 / 0.06), False)
    assert found["inference, ResNet-18, block 0.9, batch 128"].note == "not measured yet"
    assert found["inference, ResNet-18, block 0.9, batch 128"].met is None
    assert "| at most 40 us | 39.00 us | yes |" in gpu_targets.table(tmp_path)


def test_the_targets_name_items_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "cuda", True)
    context = make_context(tmp_path)
    names = {stage.name: {item.name for item in stage.items(context)} for stage in gpu.STAGES[:-1]}
    asked: set[tuple[str, str]] = set()

    def note(_: object, stage: str, item: str) -> Result:
        asked.add((stage, item))
        raise LookupError("noted")

    stored = {"fingerprint": {"device_type": "cuda"}, "items": dict.fromkeys(names["benchmarks"])}
    (tmp_path / "benchmarks.json").write_text(json.dumps(stored))
    monkeypatch.setattr(gpu_targets.Results, "result", note)
    gpu_targets.all_targets(tmp_path)
    assert len(asked) >= 11
    assert not [key for key in asked if key[1] not in names[key[0]]]
