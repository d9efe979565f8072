"""Profiler: settings, the measuring within a time box, and one `prunebench profile` from start to end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from prunebench_kernels.dispatch import requested
from prunebench_kernels.measured import torch_threads
from torch import Tensor, nn

from prunebench.errors import DataError, MaskError, StoreError, UsageError, unknown
from prunebench.inference.busy import machine_load
from prunebench.models import build_model, narrowed
from prunebench.profile import results
from prunebench.profile.layers import (
    CompiledLayers,
    ConvLayer,
    benchmark,
    conv_layers,
    make_inputs,
    make_mask,
    one_line,
)
from prunebench.profile.network import LayoutChoice, NetworkBenchmark
from prunebench.profile.report import PAGE, reasons, summary, tables, write_profile
from prunebench.profile.results import (
    AUTO,
    EAGER,
    FIXED_SPARSITY,
    PATTERNS,
    SHRUNK,
    STORED,
    LayerResult,
    NetworkResult,
    Profile,
    SweepPoint,
    fastest_dense,
    point_name,
)
from prunebench.profile.roofline import CeilingMeter, block_density, layer_roof, work_of
from prunebench.profile.stopwatch import Stopwatch
from prunebench.pruning.structure import STRUCTURE_NAMES
from prunebench.report.format import plural
from prunebench.report.table import terminal_table
from prunebench.results.store import open_results, read_record, read_tensors
from prunebench.runner.environment import describe_code, describe_environment

if TYPE_CHECKING:
    from rich.console import Console

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)
DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "triton", "torch")
FIRST_SPARSITY = 0.9
CPU_SPARSITIES = (0.5, 0.9, 0.99)
GPU_SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
CLASSES = 10
"""Outputs of a model that is built only to be timed."""
WHOLE = "whole network"
NETWORKS_SHARE = 0.6
"""The part of the time box in which whole networks come first."""
INTERRUPTED = 130
"""Exit status after Ctrl-C."""


@dataclass(frozen=True)
class ProfileSettings:
    """What was asked for. None or empty: chosen by the device, see `resolved`.

    Of several `batches` or `threads` the first counts, and whole networks are measured at each of their pairs too.
    `run` is a run's folder, its model.safetensors, or a run id; the record beside it names the model. `layers` are
    parts of layer names; `minutes` is a time box: what no longer fits is listed as left out.
    """

    model: str | None = None
    image: int | None = None
    batch: int | None = None
    batches: tuple[int, ...] = ()
    threads: tuple[int, ...] = ()
    sparsities: tuple[float, ...] = ()
    patterns: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    minutes: float | None = None
    device: str = "cpu"
    precision: str = "auto"
    backend: str = "auto"
    compiled: bool | None = None
    repeats: int | None = None
    seed: int = 0
    run: str | None = None
    results: Path = Path("leaderboard/results")
    out: Path = Path("profile")
    command: str = ""

    def resolved(self) -> ProfileSettings:
        """The same with defaults filled in for the device. Raises UsageError on what makes no sense."""
        gpu = self.device == "cuda"
        _check(self)
        recorded = recorded_model(self.run, self.results) if self.run else None
        batches = tuple(dict.fromkeys(self.batches)) or (self.batch or (128 if gpu else 64),)
        patterns = self.patterns or ((STORED,) if self.run else STRUCTURE_NAMES)
        return replace(
            self,
            model=self.model or recorded or ("resnet18" if gpu else "convnet"),
            image=self.image or 32,
            batch=batches[0],
            batches=batches,
            threads=tuple(dict.fromkeys(self.threads)) or (torch.get_num_threads(),),
            sparsities=tuple(sorted(set(self.sparsities))) or (GPU_SPARSITIES if gpu else CPU_SPARSITIES),
            patterns=tuple(dict.fromkeys(patterns)),
            minutes=self.minutes or (9.0 if gpu else 3.0),
            precision=(("bf16" if gpu else "fp32") if self.precision == "auto" else self.precision),
            compiled=gpu if self.compiled is None else self.compiled,
            repeats=self.repeats or (50 if gpu else 9),
        )

    @property
    def swept(self) -> list[tuple[int, int]]:
        """The pairs of threads and batch to sweep over; none where only one was asked for."""
        pairs = [(threads, batch) for threads in self.threads for batch in self.batches]
        return pairs if len(pairs) > 1 else []

    def points(self) -> list[tuple[str, float | None]]:
        """Pattern and sparsity of every measurement; None: the zeros as they are stored.

        In the order of the run: all patterns at the sparsity nearest to 0.9, then at the next, so that a full time
        box leaves out the extremes.
        """
        sparsities = sorted(self.sparsities, key=lambda value: abs(value - FIRST_SPARSITY))
        return [
            (pattern, FIXED_SPARSITY.get(pattern, sparsity))
            for index, sparsity in enumerate(sparsities)
            for pattern in self.patterns
            if pattern not in FIXED_SPARSITY or index == 0
        ]


def _check(settings: ProfileSettings) -> None:
    """Raise UsageError for a value that is unknown or out of range."""
    for pattern in settings.patterns:
        if pattern not in PATTERNS:
            raise unknown("pattern", pattern, PATTERNS)
    for kind, value, known in (
        ("precision", settings.precision, PRECISIONS),
        ("backend", settings.backend, BACKENDS),
        ("device", settings.device, DEVICES),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    for sparsity in settings.sparsities:
        if not 0 <= sparsity < 1:
            raise UsageError(
                f"--sparsity must be in [0, 1), got {sparsity:g} (0.9: nine weights of ten are zero)"
            )
    counts = [(name, getattr(settings, name)) for name in ("image", "minutes", "repeats")]
    counts += [("batch", value) for value in (settings.batch, *settings.batches)]
    counts += [("threads", value) for value in settings.threads]
    for name, value in counts:
        if value is not None and not value > 0:
            raise UsageError(f"--{name} must be positive, got {value:g}")
    if STORED in settings.patterns and not settings.run:
        raise UsageError("the pattern `stored` needs weights with zeros: give --run")


def find_weights(run: str, results: Path) -> Path:
    """The weights that `--run` means: a safetensors file, a run's folder, or a run id in `results`."""
    given = Path(run)
    for path in (given, given / "model.safetensors", _stored(run, results)):
        if path is not None and path.is_file():
            return path
    raise UsageError(
        f"--run {run}: no such file, no model.safetensors in it, and no run of that id with stored weights "
        f"in {results} (`prunebench run` stores them unless told --no-keep-models)"
    )


def _stored(run: str, results: Path) -> Path | None:
    try:
        store = open_results(results)
        folder = store.folder(run) / "model.safetensors"
        return folder if folder.is_file() else store.find_tensors(store.read(run), "model")
    except StoreError:
        return None


def recorded_model(run: str, results: Path) -> str | None:
    """The model that the record beside the weights names; None without a readable record."""
    try:
        beside = find_weights(run, results).with_name("record.json")
        record = read_record(beside) if beside.is_file() else open_results(results).read(run)
    except StoreError:
        return None
    model = record.spec.get("model")
    return model if isinstance(model, str) else None


def load_network(settings: ProfileSettings) -> nn.Module:
    """The model with random weights of the seed, or with those of `settings.run`, in eval mode on the CPU.

    Raises DataError where the weights do not fit the model.
    """
    assert settings.model is not None
    if settings.run is None:
        return build_model(settings.model, CLASSES, seed=settings.seed).eval()
    path = find_weights(settings.run, settings.results)
    state = read_tensors(path)
    classes = len(state["head.weight"]) if "head.weight" in state else CLASSES
    model = build_model(settings.model, classes, seed=settings.seed)
    try:
        narrowed(model, state).load_state_dict(state)
    except (MaskError, RuntimeError) as error:
        raise DataError(f"{path}: not the weights of {settings.model}; give the run's --model") from error
    return model.eval()


class Profiler:
    """Measures what the settings ask for until the time box is full; what was measured can be had at any time."""

    def __init__(self, settings: ProfileSettings, tell: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings.resolved()
        self.tell = tell
        self.device, self.dtype = torch.device(self.settings.device), DTYPES[self.settings.precision]
        self.layers: list[LayerResult] = []
        self.networks: list[NetworkResult] = []
        self.sweep: list[SweepPoint] = []
        self.left_out: list[str] = []
        self.interrupted = False
        self._seconds: dict[str, float] = {}
        self._meter: CeilingMeter | None = None
        self._choices: dict[tuple[str, float | None], dict[str, LayoutChoice]] = {}
        self._masks: dict[int, tuple[ConvLayer, float, float]] = {}
        self._begun, self._started = time.monotonic(), datetime.now(UTC)
        self._end = self._begun + 60 * (self.settings.minutes or 0)
        self._load = dataclasses.asdict(machine_load())
        self._stopwatch = Stopwatch(self.device)
        self._compiled = CompiledLayers() if self.settings.compiled else None

    def run(self) -> Profile:
        """Measure everything that fits. Ctrl-C ends it and keeps what there is."""
        with torch_threads(self.settings.threads[0]):
            try:
                self._measure()
            except KeyboardInterrupt:
                self.interrupted = True
            return self.profile()

    def _measure(self) -> None:
        settings = self.settings
        assert settings.image is not None
        model = load_network(settings)
        convolutions = conv_layers(model, settings.image, settings.layers)
        model = model.to(self.device, self.dtype)
        self.tell("measuring the ceilings: copy and matmul")
        self._meter = CeilingMeter(self.device, self.dtype)
        points = settings.points()
        self._sweep(model, points[: len(settings.patterns)])
        networks = self._networks(model, settings.batch or 1)
        early = self._early_networks(networks, points)
        for point in points:
            if self._fits(0.0):
                self._meter.try_again()
            for layer in convolutions:
                self._take(layer.name, point, partial(self._measure_layer, layer, *point))
            if point not in early:
                self._take(WHOLE, point, partial(self._measure_networks, networks, *point))

    def _networks(self, model: nn.Module, batch: int) -> NetworkBenchmark:
        settings = self.settings
        return NetworkBenchmark(
            model, self._example(batch), self._stopwatch,
            backend=settings.backend, compiled=bool(settings.compiled),
        )  # fmt: skip

    def _sweep(self, model: nn.Module, points: list[tuple[str, float | None]]) -> None:
        """Whole networks at each number of threads and batch size; first of all, for it was asked for."""
        benchmark = functools.cache(partial(self._networks, model))
        for point in points:
            for threads, batch in self.settings.swept:
                measure = partial(self._measure_swept, benchmark, threads, batch, *point)
                self._take(f"batch {batch}, {plural(threads, 'thread')}", point, measure)
        self._seconds.clear()  # they say nothing of layers, nor of networks at another batch

    def _measure_swept(
        self,
        benchmark: Callable[[int], NetworkBenchmark],
        threads: int,
        batch: int,
        pattern: str,
        sparsity: float | None,
    ) -> float:
        """Dense and sparse networks; gives the seconds of compiling, which is done once a batch."""
        with torch_threads(threads):
            networks = benchmark(batch)
            before = networks.compile_seconds
            measured, _ = networks.measure(pattern, sparsity, self.settings.repeats or 1, self._end)
        by_name = {network.name: network for network in measured}
        dense = fastest_dense(measured) or by_name[EAGER]
        self.sweep.append(SweepPoint(batch, threads, dense, by_name[AUTO]))
        return networks.compile_seconds - before

    def _early_networks(
        self, networks: NetworkBenchmark, points: list[tuple[str, float | None]]
    ) -> set[tuple[str, float | None]]:
        """Whole networks in the first part of the time box, before any layer: they say what a user gains.

        Else a box that holds layers at one sparsity would have no speed-up over sparsity. Gives the points measured.
        """
        until = self._begun + NETWORKS_SHARE * (self._end - self._begun)
        early = set()
        for point in points:
            if time.monotonic() + self._seconds.get(WHOLE, 0.0) > until:
                break
            self._take(WHOLE, point, partial(self._measure_networks, networks, *point))
            early.add(point)
        return early

    def _take(self, name: str, point: tuple[str, float | None], measure: Callable[[], float | None]) -> None:
        """Measure one thing if it should fit by the time that it took last; `measure` gives what to take off that.

        Networks that were not measured yet are expected to take as long as all layers did.
        """
        label = f"{point_name(*point)}: {name}"
        if not self._fits(self._seconds.get(name, sum(self._seconds.values()) if name == WHOLE else 0.0)):
            self.left_out.append(label)
            return
        self.tell(label)
        begun = time.monotonic()
        once = measure() or 0.0
        self._seconds[name] = time.monotonic() - begun - once

    def _measure_networks(self, networks: NetworkBenchmark, pattern: str, sparsity: float | None) -> float:
        """All variants of the network; gives the seconds of compiling, which is done once."""
        before = networks.compile_seconds
        measured, self._choices[pattern, sparsity] = networks.measure(
            pattern, sparsity, self.settings.repeats or 1, self._end
        )
        self.networks += measured
        return networks.compile_seconds - before

    def _measure_layer(self, layer: ConvLayer, pattern: str, sparsity: float | None) -> None:
        """All implementations of a layer."""
        settings = self.settings
        entry = LayerResult(layer.name, layer.names, layer.shape.words, pattern, sparsity, None)
        mask = make_mask(layer.weight, pattern, sparsity)
        if isinstance(mask, str):
            self.layers.append(replace(entry, not_measured=mask))
            return
        density = float(mask.double().mean())
        entry = replace(entry, achieved=1 - density)
        try:
            inputs = make_inputs(layer, mask, settings.batch or 1, self.device, self.dtype)
            timings = benchmark(
                inputs, self._compiled, self._stopwatch,
                backend=settings.backend, repeats=settings.repeats or 1, until=self._end,
            )  # fmt: skip
            entry = replace(entry, timings=timings)
        except (RuntimeError, MemoryError) as error:  # e.g. out of memory: the other layers go on
            entry = replace(entry, not_measured=one_line(error))
        self._masks[len(self.layers)] = layer, block_density(mask), density
        self.layers.append(entry)

    def _completed(self) -> list[LayerResult]:
        """The layers with their roofs and what `auto` takes in the whole network."""
        return [
            self._complete(entry, *self._masks[index]) if index in self._masks else entry
            for index, entry in enumerate(self.layers)
        ]

    def _complete(self, entry: LayerResult, layer: ConvLayer, blocks: float, free: float) -> LayerResult:
        choice = self._choices.get((entry.pattern, entry.sparsity), {}).get(entry.layer)
        auto, reason = (
            (choice.layout, choice.reason) if choice else (None, "the whole network was not measured")
        )
        if auto == SHRUNK and entry.timing(SHRUNK) is None and free > 0:
            auto = "dense"  # only a neighbour's channels died
        assert self._meter is not None
        work = work_of(layer.shape, self.settings.batch or 1, self.dtype.itemsize)
        roof = layer_roof(work, self._meter.ceilings, blocks, free)
        return replace(entry, roof=roof, auto=auto, auto_reason=reason)

    def _place(self, result: LayerResult | NetworkResult) -> tuple[int, float]:
        """Order of the tables: pattern, sparsity; layers stay in the order of the network."""
        return self.settings.patterns.index(result.pattern or ""), result.sparsity or 0.0

    def _example(self, batch: int) -> Tensor:
        size = self.settings.image or 1
        generator = torch.Generator().manual_seed(self.settings.seed)
        x = torch.randn(batch, 3, size, size, generator=generator)
        return x.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)

    def _fits(self, seconds: float) -> bool:
        """Whether something that takes so long still fits into the time box."""
        return time.monotonic() + seconds < self._end

    def profile(self) -> Profile:
        """What was measured so far, with machine, versions and settings."""
        settings = dataclasses.asdict(self.settings)
        command = settings.pop("command")
        machine = self._meter.ceilings if self._meter else None
        return Profile(
            schema_version=results.SCHEMA_VERSION,
            started_utc=self._started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=round(time.monotonic() - self._begun, 1),
            command=command,
            settings={
                key: str(value) if key in ("out", "results") else value for key, value in settings.items()
            },
            environment=self._environment(),
            code=describe_code(),
            machine=machine if machine and machine.copy_gb_per_s else None,
            layers=tuple(sorted(self._completed(), key=self._place)),
            networks=tuple(sorted(self.networks, key=self._place)),
            left_out=tuple(self.left_out),
            interrupted=self.interrupted,
            note=results.CPU_LINE if self.device.type != "cuda" else None,
            sweep=tuple(self.sweep),
        )

    def _environment(self) -> dict[str, Any]:
        """Machine and versions, the load before, and the kernels' backend as it was asked for here."""
        asked = None if self.settings.backend == "auto" else self.settings.backend
        facts = describe_environment(self.device.type, self.settings.precision)
        return {**facts, "kernels": requested(asked), **self._load}


def profile_machine(settings: ProfileSettings, console: Console) -> int:
    """Profile, write the files and print the tables. Gives the exit status; 130 if it was stopped early."""
    if settings.device == "auto":
        settings = replace(settings, device="cuda" if torch.cuda.is_available() else "cpu")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch sees no GPU here; leave the option out to profile the CPU paths"
        )
    profiler = Profiler(settings)
    check_folder(settings.out)
    threads = max(settings.threads, default=torch.get_num_threads())
    problem = machine_load().problem(threads) if settings.device == "cpu" else None
    if problem is not None:
        console.print(
            f"{problem}. Ctrl-C stops; what was measured is kept and marked", style="yellow", soft_wrap=True
        )
    with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

        def tell(text: str) -> None:
            if status is not None:
                status.update(text)
            else:
                console.print(text, soft_wrap=True)

        profiler.tell = tell
        profile = profiler.run()
    if profile.interrupted and not (profile.layers or profile.networks or profile.sweep):
        console.print(
            f"stopped before anything was measured; {settings.out} is left as it was", soft_wrap=True
        )
        return INTERRUPTED
    paths = write_profile(profile, settings.out)
    for table in tables(profile):
        console.print(terminal_table(table))
    for line in (*reasons(profile), *summary(profile)):
        console.print(line, soft_wrap=True)
    page = (
        paths[0].resolve().as_uri()
        if paths[0].name == PAGE
        else "not made: it needs jinja2 (pip install jinja2)"
    )
    console.print(f"page     {page}\nfiles    {settings.out}", soft_wrap=True)
    return INTERRUPTED if profile.interrupted else 0


def check_folder(out: Path) -> None:
    """Make the folder and try a write, before minutes are spent on measuring. Raises UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot write there ({error.strerror or error}); name another folder"
        ) from error
