"""Measured choices: the guard, what is timed, CUDA graphs, and what is kept on disk."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from prunebench_kernels import measured
from prunebench_kernels.dispatch import ArgumentError
from prunebench_kernels.measured import (
    MAX_ENTRIES,
    CacheWarning,
    Choices,
    Decision,
    Effort,
    Samples,
    Timing,
    cache_folder,
    choices_of,
    choose,
    decide_operation,
    device_name,
    key_of,
    precision,
    time_as_called,
    time_in_turns,
    versions,
)

EFFORT = Effort(screen=3, confirm=5)


class Clock:
    """A timer that answers from a script, one list of samples a phase, and notes what it was asked."""

    def __init__(self, **phases: list[list[float]]) -> None:
        self.phases = {name: list(values) for name, values in phases.items()}
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, calls: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        self.asked.append((list(calls), repeats))
        return {name: self.phases[name].pop(0) for name in calls}


def nothing() -> None:
    """A candidate."""


def steady(ms: float) -> list[list[float]]:
    return [[ms], [ms] * 3, [ms] * 5]


@pytest.mark.parametrize(
    ("ms", "winner"),
    [(0.5, "other"), (0.96, "other"), (0.975, "dense"), (1.0, "dense"), (2.0, "dense"), (50.0, "dense")],
)
def test_the_guard(ms: float, winner: str) -> None:
    clock = Clock(dense=steady(1), other=steady(ms))
    decision = choose({"dense": nothing, "other": nothing}, timer=clock, effort=EFFORT)
    assert decision.winner == winner
    assert decision.timings["other"].p50 == ms


def test_all_are_screened_and_the_best_is_timed_again_with_dense() -> None:
    clock = Clock(dense=steady(1), slow=steady(1.5), best=steady(0.5), hopeless=[[1.6]])
    calls = dict.fromkeys(["dense", "slow", "best", "hopeless"], nothing)
    decision = choose(calls, timer=clock, effort=EFFORT)
    assert clock.asked == [
        (["dense", "slow", "best", "hopeless"], 1),
        (["dense", "slow", "best"], 3),
        (["dense", "best"], 5),
    ]
    assert (decision.winner, decision.reason) == ("best", "2.00x as fast as dense")
    assert set(decision.timings) == set(calls)


def test_a_lucky_screening_does_not_decide() -> None:
    clock = Clock(dense=[[1], [1, 1, 1], [1] * 5], lucky=[[0.5], [0.5, 0.5, 0.5], [1.1] * 5])
    decision = choose({"dense": nothing, "lucky": nothing}, timer=clock, effort=EFFORT)
    assert decision.winner == "dense"
    assert decision.timings["lucky"].p50 == 1.1


def test_a_noisy_gain_is_none() -> None:
    """The median is 0.8, but two runs of five were slower than dense."""
    clock = Clock(dense=steady(1), noisy=[[0.8], [0.8] * 3, [0.7, 0.8, 0.8, 1.3, 1.4]])
    decision = choose({"dense": nothing, "noisy": nothing}, timer=clock, effort=EFFORT)
    assert decision.winner == "dense"
    assert "within the noise of dense" in decision.reason


def test_candidates_that_fail_are_refused_and_dense_is_not() -> None:
    def fail() -> None:
        raise RuntimeError("out of resources\nshared memory")

    decision = choose({"dense": nothing, "other": fail}, timer=Clock(), effort=EFFORT)
    assert (decision.winner, decision.timings) == ("dense", {})
    assert decision.refused == {"other": "RuntimeError: out of resources"}
    with pytest.raises(RuntimeError, match="out of resources"):
        choose({"dense": fail, "other": nothing})
    with pytest.raises(ArgumentError, match="calls: want at least one"):
        choose({})


def test_every_candidate_runs_once_before_any_is_timed() -> None:
    seen: list[str] = []
    clock = Clock(dense=steady(1), other=steady(2))

    def timer(calls: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        assert seen == ["dense", "other"]
        return clock(calls, repeats)

    choose(
        {name: lambda name=name: seen.append(name) for name in ("dense", "other")}, timer=timer, effort=EFFORT
    )


def test_turns_alternate() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) for name in ("a", "b")}
    samples = time_in_turns(calls, 3)
    assert seen[-6:] == ["a", "b"] * 3
    assert [len(values) for values in samples.values()] == [3, 3]
    assert all(value >= 0 for values in samples.values() for value in values)


class FakeGpu:
    """Stands in for torch.cuda: events read a counter, graphs run their calls when replayed."""

    def __init__(self, *, refuse: bool) -> None:
        self.now, self.refuse, self.captured, self.capturing = 0.0, refuse, 0, False
        self.sync_mode: int | str = 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0.0

            def record(self) -> None:
                self.at = gpu.now

            def synchronize(self) -> None:
                """Nothing is asynchronous here."""

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        class Graph:
            cost = 0.0

            def replay(self) -> None:
                gpu.now += self.cost

        @contextlib.contextmanager
        def graph(target: Graph) -> Iterator[None]:
            start, gpu.capturing = gpu.now, True
            yield
            gpu.capturing = False
            if gpu.refuse:
                raise RuntimeError("operation not permitted when stream is capturing")
            target.cost, gpu.now, gpu.captured = gpu.now - start, start, gpu.captured + 1

        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.Event, self.CUDAGraph, self.graph = Event, Graph, graph
        self.Stream = self.current_stream = lambda: stream
        self.stream = lambda entered: contextlib.nullcontext()
        self.synchronize = lambda: None
        self.states = ["first"]
        """Of the generator; a capture that fails leaves the last one broken."""
        generator = SimpleNamespace(
            clone_state=lambda: f"clone of {self.states[-1]}", graphsafe_set_state=self.states.append
        )
        self.default_generators, self.current_device = (generator,), lambda: 0
        self.get_sync_debug_mode = lambda: self.sync_mode
        self.set_sync_debug_mode = lambda mode: setattr(self, "sync_mode", mode)

    def item(self) -> None:
        """An operation that waits for the GPU."""
        assert not self.capturing, "a capture that waits breaks the random numbers of the process"
        if self.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.mark.parametrize("refuse", [False, True])
def test_a_gpu_is_timed_by_events_around_graphs_of_ten_calls(
    monkeypatch: pytest.MonkeyPatch, refuse: bool
) -> None:
    """What cannot be captured is timed all the same, call by call."""
    gpu = FakeGpu(refuse=refuse)
    monkeypatch.setattr(measured, "torch", SimpleNamespace(cuda=gpu))

    def work(ms: float) -> None:
        gpu.now += ms

    calls = {"a": lambda: work(2.0), "b": lambda: work(0.5)}
    samples = measured._time_on_gpu(calls, 3)
    assert samples == {"a": pytest.approx([2.0] * 3), "b": pytest.approx([0.5] * 3)}
    assert gpu.captured == (0 if refuse else 2)
    assert (gpu.states[-1] == "first") != refuse


def test_a_choice_captures_each_candidate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture waits for the GPU and empties its allocator; a choice has three rounds."""
    gpu = FakeGpu(refuse=False)

    def work(ms: float) -> None:
        gpu.now += ms

    calls = {"a": lambda: work(2.0), "b": lambda: work(0.5), "c": lambda: work(0.6)}
    with monkeypatch.context() as patched:
        patched.setattr(
            measured, "torch", SimpleNamespace(cuda=gpu, tensor=torch.tensor, float64=torch.float64)
        )
        for made in (3, 6):
            assert choose(calls, timer=measured._time_on_gpu, effort=EFFORT).winner == "b"
            assert gpu.captured == made


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (1, y), lambda y: {"logits": [y]}])
@pytest.mark.parametrize("is_cuda", [False, True])
def test_outputs_tell_where_a_call_ran(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[object], object], is_cuda: bool
) -> None:
    """A clock does not see what a GPU still has to do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measured, "_time_on_gpu", lambda calls, repeats: {"a": [-1.0]})
    samples = time_in_turns({"a": lambda: wrap(SimpleNamespace(is_cuda=is_cuda))}, 1)
    assert (samples["a"] == [-1.0]) == is_cuda


def test_what_waits_for_the_gpu_is_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(refuse=False)
    monkeypatch.setattr(measured, "torch", SimpleNamespace(cuda=gpu))

    def waits() -> None:
        gpu.item()
        gpu.now += 2.0

    def works() -> None:
        gpu.now += 0.5

    samples = measured._time_on_gpu({"a": waits, "b": works}, 2)
    assert samples == {"a": pytest.approx([2.0] * 2), "b": pytest.approx([0.5] * 2)}
    assert (gpu.captured, gpu.sync_mode) == (1, 0)


def test_percentiles_by_hand() -> None:
    assert Timing.of([5, 1, 4, 2, 3]) == Timing(pytest.approx(1.8), 3, pytest.approx(4.2))


# The file


def decision(winner: str = "direct", ms: float = 1.0) -> Decision:
    return Decision(winner, "faster", {winner: Timing(ms, ms, ms)}, {"block": "because"})


def test_a_choice_survives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "choices.json"
    assert Choices(path).get("key") is None
    Choices(path).put("key", decision())
    found = Choices(path).get("key")
    assert found is not None
    assert found.cached
    assert found == Decision(
        "direct", "faster", {"direct": Timing(1, 1, 1)}, {"block": "because"}, cached=True
    )
    assert Choices(path).get("other key") is None
    assert [entry.name for entry in path.parent.iterdir()] == ["choices.json"], "no temporary file is left"


def test_two_objects_see_each_others_choices(tmp_path: Path) -> None:
    first, second = Choices(tmp_path / "c.json"), Choices(tmp_path / "c.json")
    assert second.get("a") is None
    first.put("a", decision("a"))
    found = second.get("a")
    assert found is not None
    second.put("b", decision("b"))
    first.put("c", decision("c"))
    kept = Choices(tmp_path / "c.json")
    assert [entry.winner for entry in map(kept.get, "abc") if entry] == ["a", "b", "c"]


def test_a_choice_is_replaced(tmp_path: Path) -> None:
    Choices(tmp_path / "c.json").put("key", decision("direct"))
    Choices(tmp_path / "c.json").put("key", decision("block"))
    found = Choices(tmp_path / "c.json").get("key")
    assert found is not None
    assert found.winner == "block"


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"format": 1}',
    b'{"format": 1, "choices": {"key": {"winner": "x"}}}',
    b'{"format": 1, "choices": {"key": {"winner": 3, "reason": "", "timings": {}, "refused": {}}}}',
    b'{"format": 1, "choices": {"key": {"winner": "x", "reason": "", "refused": {},'
    b' "timings": {"x": {"p20": "1", "p50": 1, "p80": 1}}}}}',
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_ignored_and_rewritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(content)
    choices = Choices(path)
    with pytest.warns(CacheWarning, match="is damaged"):
        assert choices.get("key") is None
    with pytest.warns(CacheWarning, match="will be rewritten"):
        choices.put("key", decision())
    found = Choices(path).get("key")
    assert found is not None
    assert found.winner == "direct"


def test_another_format_is_forgotten_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_text('{"format": 0, "choices": "whatever"}')
    assert Choices(path).get("key") is None


def test_a_folder_that_cannot_be_written_only_warns(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    choices = Choices(tmp_path / "file" / "choices.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choices.put("key", decision())
    assert any("cannot write" in str(entry.message) for entry in caught)
    assert choices.get("key") is not None, "it is remembered in this process"


def test_old_choices_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENTRIES >= 500
    monkeypatch.setattr(measured, "MAX_ENTRIES", 3)
    for name in "abcde":
        Choices(tmp_path / "c.json").put(name, decision(name))
    assert list(json.loads((tmp_path / "c.json").read_text())["choices"]) == ["c", "d", "e"]


def write_many(path: Path, worker: int, ready: Barrier) -> None:
    choices = Choices(path)
    ready.wait()
    for index in range(20):
        choices.put(f"{worker} {index}", decision(f"{worker}"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_concurrent_writers_do_not_damage_the_file(tmp_path: Path) -> None:
    """Every state that a reader can see is whole, every process's last choice follows its own rules."""
    path = tmp_path / "choices.json"
    context = multiprocessing.get_context("fork")  # importing torch anew would take seconds
    ready = context.Barrier(4)
    workers = [context.Process(target=write_many, args=(path, worker, ready)) for worker in range(4)]
    for worker in workers:
        worker.start()
    seen = 0
    while any(worker.is_alive() for worker in workers):
        if path.exists():
            content = json.loads(path.read_text())
            assert {name.split()[0] for name in content["choices"]} <= set("0123")
            seen += 1
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert seen
    entries = json.loads(path.read_text())["choices"]
    assert len(entries) >= 20, "the last writer keeps all of its own"
    assert all(entry["winner"] == name.split()[0] for name, entry in entries.items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["choices.json"]


# What decides a choice


def test_the_folder_of_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PRUNEBENCH_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "prunebench"
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    path = choices_of(torch.device("cpu")).path
    assert path is not None
    assert path.parent == tmp_path / "mine"
    assert "threads" in path.name


def test_threads_are_part_of_a_cpus_name() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = device_name(torch.device("cpu"))
        torch.set_num_threads(2)
        two = device_name(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert one != two
    assert one.endswith("1 threads")


def test_versions_and_source_are_part_of_a_key() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert {"triton", "source"} <= set(found)
    assert key_of(versions=found, x=(1, 2)) != key_of(versions=found | {"triton": "0"}, x=(1, 2))
    assert key_of(a=1, b=(2, 3)) == key_of(b=[2, 3], a=1)


def test_precision_and_source_are_part_of_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = precision()
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    assert precision() != before
    monkeypatch.setattr(measured, "__file__", str(tmp_path / "measured.py"))
    (tmp_path / "kernel.py").write_text("x = 1")
    source = measured._source_hash()
    (tmp_path / "kernel.py").write_text("x = 2")
    assert measured._source_hash() != source


# Operations


def test_an_operation_is_decided_once_for_a_shape_class_as_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it was asked in this process or another does not matter: the choice is in the cache."""
    asked: list[tuple[list[str], int]] = []

    def timer(calls: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
        asked.append((list(calls), repeats))
        return {name: [1.0 if name == "torch" else 0.5] * repeats for name in calls}

    monkeypatch.setattr(measured, "time_as_called", timer)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    choices, here = Choices.in_memory(), torch.device("cpu")
    calls = lambda: {"torch": nothing, "triton": nothing}  # noqa: E731
    assert decide_operation("uncertainty", (7, 4), None, here, choices) is None, "nothing may be measured"
    assert not asked
    first = decide_operation("uncertainty", (7, 4), calls, here, choices)
    assert first is not None
    assert (first.winner, first.cached) == ("triton", False)
    made = len(asked)
    for again in (calls, None):
        known = decide_operation("uncertainty", (7, 4), again, here, choices)
        assert known is not None
        assert (known.winner, known.cached, len(asked)) == ("triton", True, made)
    decide_operation("uncertainty", (8, 4), calls, here, choices)
    decide_operation("correlation", (7, 4), calls, here, choices)
    assert len(asked) == 3 * made


@pytest.mark.parametrize(
    ("seconds", "together"), [(20e-6, 10), (250e-6, 4), (2.0, 1)], ids=["short", "a quarter of a ms", "long"]
)
def test_time_as_called_is_the_hosts_over_calls_of_two_ms(
    monkeypatch: pytest.MonkeyPatch, seconds: float, together: int
) -> None:
    """At most ten calls, of 2 ms in all, between two waits, which are shared out; the first alone tells how many."""
    now, called = [0.0], [0]

    def call() -> None:
        now[0] += seconds
        called[0] += 1

    def wait() -> None:
        now[0] += seconds  # the GPU's work on the last call

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(measured.time, "perf_counter", lambda: now[0])
    share = seconds * (together + 1) / together * 1e3
    assert time_as_called({"a": call}, 2) == {"a": pytest.approx([share, share])}
    assert called[0] == 1 + 2 * together
