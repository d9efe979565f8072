"""Engines side by side: the same networks in torch, ONNX Runtime and OpenVINO, timed in turns in one process.

On a GPU those of torch, launched from Python and as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prunebench_kernels.measured import torch_threads
from torch import Tensor, nn

from prunebench.data.images import Images
from prunebench.errors import UsageError, unknown
from prunebench.inference.busy import machine_load
from prunebench.inference.export import INPUT, check_packages, onnx_session
from prunebench.inference.latency import (
    AGAIN,
    PARITY,
    Latencies,
    distance_of,
    quietest,
    time_calls,
)
from prunebench.profile.layers import compiled_call, one_line
from prunebench.profile.results import AUTO, COMPILED_NETWORK, EAGER, FOLDED
from prunebench.report import format as fmt
from prunebench.report.table import Column, Table, simple_table, text_column
from prunebench.results.record import Percentiles
from prunebench.results.speed import MOST_OFF, MOST_SPREAD, spread_of

REPEATS = 31
BATCHES = (1, 64)
ALL = "all"
BUSY = "busy"
"""Marks a time that other work disturbed: its p80 / p20 is above `speed.MOST_SPREAD`."""


@dataclass(frozen=True)
class TimedNetwork:
    """A network to be timed: as it was stored, and exported to ONNX where an engine runs that."""

    name: str
    run_id: str
    net: nn.Module
    onnx: Path | None = None
    zeros: float = 0.0
    removed_macs: float | None = None
    is_dense: bool = False


Prepare = Callable[[TimedNetwork, Tensor, int], Callable[[], Tensor]]


@dataclass(frozen=True)
class Engine:
    """A way to run a network: `prepare` gives a call of it on a batch, with so many threads of the CPU.

    One that runs ONNX files names the packages that this takes, and their extra.
    """

    title: str
    prepare: Prepare
    extra: str = ""
    modules: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def runs_onnx(self) -> bool:
        """Whether it takes an exported file, not the network."""
        return bool(self.modules)

    def check(self) -> None:
        """Raise UsageError with the command that installs what it lacks here."""
        if self.modules:
            check_packages(self.extra, self.title, *self.modules)


def _eager(network: TimedNetwork, x: Tensor, _: int) -> Callable[[], Tensor]:
    return partial(network.net, x)


def _folded(network: TimedNetwork, x: Tensor, _: int) -> Callable[[], Tensor]:
    from prunebench_kernels.sparsify import fold_dense

    return partial(fold_dense(network.net, x), x)


def _compiled(network: TimedNetwork, x: Tensor, _: int) -> Callable[[], Tensor]:
    from prunebench_kernels.sparsify import fold_dense

    # The traced module has code of its own: of one code for all networks, a call would try the guards of each in turn.
    compiled = compiled_call(fold_dense(network.net, x, fuse=False).traced, x)
    if isinstance(compiled, str):
        raise UsageError(compiled)
    return partial(compiled, x)


def _graph(network: TimedNetwork, x: Tensor, _: int) -> Callable[[], Tensor]:
    from prunebench_kernels.sparsify import fold_dense

    return partial(fold_dense(network.net, x).graphed(x), x)


def _sparse(network: TimedNetwork, x: Tensor, _: int) -> Callable[[], Tensor]:
    """In the layouts that are fastest for this batch, measured now; on a GPU as a CUDA graph, as they were measured."""
    from prunebench_kernels.measured import QUICK, Choices, Measuring
    from prunebench_kernels.sparsify import sparsify

    sparse = sparsify(network.net, example=x, measuring=Measuring(QUICK, Choices.in_memory()))
    return partial(sparse.graphed(x), x)


def _onnx_runtime(network: TimedNetwork, x: Tensor, threads: int) -> Callable[[], Tensor]:
    assert network.onnx is not None
    session, images = onnx_session(network.onnx, threads), {INPUT: x.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, images)[0])


def _openvino(network: TimedNetwork, x: Tensor, threads: int) -> Callable[[], Tensor]:
    """For exactly this batch. In float32: on processors with bfloat16 its own choice would be that.

    Not pinned to a core: beside busy neighbours a pinned ConvNet took 4.0 ms a batch, a free one 0.86 ms.
    """
    import openvino

    assert network.onnx is not None
    core, images = openvino.Core(), x.contiguous().numpy()
    model = core.read_model(str(network.onnx))
    model.reshape(list(x.shape))
    settings = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: torch.from_numpy(request.infer([images], share_inputs=True, share_outputs=True)[0])


ENGINES: Mapping[str, Engine] = {
    "torch": Engine(EAGER, _eager),
    "folded": Engine(FOLDED, _folded),
    "compile": Engine(COMPILED_NETWORK, _compiled),
    "graph": Engine(f"{FOLDED}, as a CUDA graph", _graph, devices=("cuda",)),
    "sparse": Engine(AUTO, _sparse),
    "onnxruntime": Engine(
        "ONNX Runtime", _onnx_runtime, "onnx", ("onnx", "onnxscript", "onnxruntime"), ("cpu",)
    ),
    "openvino": Engine(
        "OpenVINO", _openvino, "openvino", ("onnx", "onnxscript", "onnxruntime", "openvino"), ("cpu",)
    ),
}
GRAPHS = ("graph", "sparse")
"""Those that are CUDA graphs on a GPU."""


def choose_engines(names: Sequence[str], device: str = "cpu") -> tuple[tuple[str, ...], list[str]]:
    """The engines of these names, in the order of the table, and which of `all` are not installed.

    `all` are those of the device. Raises UsageError for an unknown one, and for one asked for by name that is of
    another device or not installed.
    """
    for name in names:
        if name not in (*ENGINES, ALL):
            raise unknown("engine", name, (*ENGINES, ALL))
    chosen, missing = [], []
    for name, engine in ENGINES.items():
        if name in names and device not in engine.devices:
            fitting = ", ".join(other for other in ENGINES if device in ENGINES[other].devices)
            raise UsageError(
                f"--engine {name} runs with --device {engine.devices[0]} only; with --device {device}: {fitting}"
            )
        if name in names or (ALL in names and device in engine.devices):
            try:
                engine.check()
                chosen.append(name)
            except UsageError as error:
                if name in names:
                    raise
                missing.append(str(error))
    return tuple(chosen), missing


@dataclass(frozen=True)
class EngineLatency:
    """A network in an engine at a batch size: milliseconds, or why there are none.

    `difference` is the largest |difference| of outputs from torch's, over the largest output.
    """

    network: str
    run_id: str
    batch: int
    engine: str
    latency_ms: Percentiles | None = None
    difference: float | None = None
    not_measured: str | None = None


@dataclass(frozen=True)
class EngineTimes:
    """All networks in all engines, one batch size after the other; the times of one batch were taken in turns.

    `noise_floor`: by batch size, the dense network in eager torch over itself.
    """

    threads: int
    repeats: int
    clock: str
    entries: tuple[EngineLatency, ...]
    noise_floor: Mapping[int, float]
    load_average: float | None
    remarks: tuple[str, ...] = ()

    def of(self, run_id: str, batch: int) -> dict[str, EngineLatency]:
        """The times of a run's network, by engine."""
        return {each.engine: each for each in self.entries if (each.run_id, each.batch) == (run_id, batch)}

    def fastest(self, run_id: str, batch: int) -> EngineLatency | None:
        """The engine with the least median."""
        timed = [each for each in self.of(run_id, batch).values() if each.latency_ms is not None]
        return min(timed, key=lambda each: each.latency_ms.p50 if each.latency_ms else 0.0, default=None)


def time_engines(
    networks: Sequence[TimedNetwork],
    images: Images,
    engines: Sequence[str],
    *,
    batches: Sequence[int] = BATCHES,
    threads: int = 1,
    repeats: int = REPEATS,
) -> EngineTimes:
    """Time every network in every engine on the first images of a split, on the device where networks and images are.

    Outputs are compared with eager torch's first; an engine that differs by more than rounding (`latency.PARITY`) or
    fails is not timed, and the entry says why. See `latency.time_calls` for engines in turns; on a GPU each call is
    timed from its launch until `torch.cuda.synchronize()` has seen its result.

    Raises UsageError without a dense network, and for a batch that there are not images enough for.
    """
    dense = next((network for network in networks if network.is_dense), None)
    if dense is None:
        raise UsageError("engines: want a dense network to compare with")
    for name, values in (("batch", batches), ("threads", (threads,)), ("repeats", (repeats,))):
        if not values or min(values) < 1:
            raise UsageError(f"--{name} must be 1 or more, got {', '.join(map(str, values)) or 'none'}")
    if max(batches) > len(images):
        raise UsageError(f"--batch {max(batches)}: the split has {len(images)} images")
    load, entries, floors, remarks, clock = machine_load(), [], {}, [], ""
    problem = load.problem(threads)
    remarks += [problem] if problem else []
    with torch_threads(threads):
        for batch in batches:
            x = images.batch(slice(0, batch))
            calls, found = _prepared(networks, engines, x, threads)
            calls |= {"dense": partial(dense.net, x), AGAIN: partial(dense.net, x)}
            if images.device.type == "cuda":
                calls = {name: partial(_finished, call) for name, call in calls.items()}
            times = quietest(partial(time_calls, calls, repeats=repeats, engines=True))
            floors[batch], clock = times.times["dense"].p50 / times.times[AGAIN].p50, times.clock
            entries += [_with_times(each, times) for each in found]
    remarks += [
        f"batch {batch}: the dense network measured {floor:.2f}x as fast as itself: other work disturbed it"
        for batch, floor in floors.items()
        if abs(floor - 1) > MOST_OFF
    ]
    spread = [each for each in entries if each.latency_ms and spread_of(each.latency_ms) > MOST_SPREAD]
    if spread:
        remarks.append(
            f"{len(spread)} of {len(entries)} times spread more than {MOST_SPREAD}-fold: marked {BUSY}"
        )
    return EngineTimes(threads, repeats, clock, tuple(entries), floors, load.load_average, tuple(remarks))


def _key(entry: EngineLatency) -> str:
    return f"{entry.run_id} {entry.engine}"


def _prepared(
    networks: Sequence[TimedNetwork], engines: Sequence[str], x: Tensor, threads: int
) -> tuple[dict[str, Callable[[], object]], list[EngineLatency]]:
    """The calls to be timed, and an entry of each engine and network with its difference or what went wrong."""
    calls: dict[str, Callable[[], object]] = {}
    entries, limit = [], PARITY[x.device.type]
    for network in networks:
        wanted = _outputs(partial(network.net.eval(), x))
        for name in engines:
            facts: dict[str, Any] = {"not_measured": None}
            try:
                call = ENGINES[name].prepare(network, x, threads)
                facts["difference"] = apart = distance_of(_outputs(call), wanted)
                if not apart <= limit:
                    facts["not_measured"] = f"outputs differ by {apart:.1e} of the largest"
            except Exception as error:  # one engine's trouble must not hide the others
                facts["not_measured"] = str(error) if isinstance(error, UsageError) else one_line(error)
            entry = EngineLatency(network.name, network.run_id, len(x), name, **facts)
            entries.append(entry)
            if entry.not_measured is None:
                calls[_key(entry)] = call
    return calls, entries


def _finished(call: Callable[[], object]) -> object:
    """The call's result, when the GPU has it: a launch alone would be timed otherwise."""
    result = call()
    torch.cuda.synchronize()
    return result


@torch.inference_mode()
def _outputs(call: Callable[[], Tensor]) -> Tensor:
    return call()


def _with_times(entry: EngineLatency, times: Latencies) -> EngineLatency:
    return replace(entry, latency_ms=times.times.get(_key(entry)))


# --- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineRow:
    """A network at a batch size, with all its times."""

    network: TimedNetwork
    batch: int
    times: Mapping[str, EngineLatency]
    fastest: EngineLatency | None
    speed_up: float | None


def engine_table(
    networks: Sequence[TimedNetwork], times: EngineTimes, title: str = "", *, medians: bool = False
) -> Table[EngineRow]:
    """Milliseconds of every network (rows, by batch) in every engine (columns), the fastest engine of each, and its
    speed-up over the fastest engine of the dense network. With `medians` alone it fits a terminal."""
    batches = list(dict.fromkeys(each.batch for each in times.entries))
    columns = (
        Column[EngineRow]("batch", "Batch", "images of a batch", format=str),
        text_column("network", "Network", value=lambda row: row.network.name, lead=True),
        Column[EngineRow](
            "zeros", "Zeros", "share of zeros among the weights that are left",
            lambda row: row.network.zeros, lambda value: fmt.number(value, 3),
        ),
        Column[EngineRow](
            "removed", "MACs removed", "share of multiply-accumulates that went with removed channels",
            lambda row: row.network.removed_macs, lambda value: fmt.number(value, 3),
        ),
        *(_time_column(name, medians) for name in dict.fromkeys(each.engine for each in times.entries)),
        text_column("fastest", "Fastest", value=lambda row: row.fastest and row.fastest.engine),
        Column[EngineRow](
            "speed_up", "Over the fastest dense", "ratio of medians", format=fmt.times, short="Speed-up"
        ),
    )  # fmt: skip
    rows = [_row(network, times, batch, networks) for batch in batches for network in networks]
    return simple_table(columns, rows, title, tag=lambda row: str(row.batch)).without_empty()


def _row(
    network: TimedNetwork, times: EngineTimes, batch: int, networks: Sequence[TimedNetwork]
) -> EngineRow:
    dense = next(each for each in networks if each.is_dense)
    base, fastest = times.fastest(dense.run_id, batch), times.fastest(network.run_id, batch)
    speed = None
    if base and base.latency_ms and fastest and fastest.latency_ms and fastest.latency_ms.p50:
        speed = base.latency_ms.p50 / fastest.latency_ms.p50
    return EngineRow(network, batch, times.of(network.run_id, batch), fastest, speed)


def _time_column(engine: str, medians: bool) -> Column[EngineRow]:
    def latency(row: EngineRow) -> Percentiles | None:
        entry = row.times.get(engine)
        return None if entry is None else entry.latency_ms

    help = f"{ENGINES[engine].title}, milliseconds: median{'' if medians else ' [20th, 80th percentile]'}"
    format = _median if medians else _milliseconds
    return Column(engine, engine, help, latency, format, lambda value: value.p50)


def _milliseconds(latency: Percentiles) -> str:
    """`1.25 [1.2, 1.31]`, and `busy` behind it where other work disturbed it."""
    low, high = map(fmt.significant, (latency.p20, latency.p80))
    return f"{fmt.significant(latency.p50)} [{low}, {high}]{_remark(latency)}"


def _median(latency: Percentiles) -> str:
    return f"{fmt.significant(latency.p50)}{_remark(latency)}"


def _remark(latency: Percentiles) -> str:
    return f" {BUSY}" if spread_of(latency) > MOST_SPREAD else ""
