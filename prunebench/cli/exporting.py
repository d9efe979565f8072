"""The words of `prunebench export`: networks of runs as files, and their latencies in several engines."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from prunebench.api import choose_device
from prunebench.cli.console import console, errors, sparsity_text
from prunebench.cli.showing import find_run
from prunebench.errors import UsageError
from prunebench.inference.export import check_form
from prunebench.profile.engines import (
    ENGINES,
    GRAPHS,
    EngineTimes,
    TimedNetwork,
    choose_engines,
    engine_table,
    time_engines,
)
from prunebench.report import format as fmt
from prunebench.report.markdown import bullets, escape, markdown_table, page
from prunebench.report.table import Column, Table, simple_table, terminal_table, text_column
from prunebench.results.record import RunRecord, plain
from prunebench.results.store import Store, narrowed, open_results, write_atomically
from prunebench.runner.environment import describe_code, describe_environment
from prunebench.runner.stored import Draws, ExportedNetwork, dense_of, export_runs, in_order, stored_network

NETWORKS, TIMES = "networks", "engines"
"""Names of the files that list what was exported, and what was timed."""
PLAIN_STRUCTURES = ("", "dense", "unstructured", "channels removed")
"""Those that a network's name does not tell: its sparsity or its method does."""
RUNTIMES = ("onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class RunFilter:
    """Runs that were asked for: by id, and of those all that fit the other words. Empty words fit all."""

    runs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    def choose(self, results: Path) -> tuple[Store, list[RunRecord]]:
        """The finished runs of a results folder that fit, in order. Raises UsageError where none does."""
        store = open_results(results)
        found = (
            [find_run(run, results) for run in self.runs]
            if self.runs
            else [record for record in store.records()[0] if record.status == "ok"]
        )
        chosen = [
            record
            for record in narrowed(found, self.tasks, self.methods)
            if not self.seeds or record.run_spec.seed in self.seeds
            if not self.sparsities
            or record.spec["method"] == "dense"
            or record.run_spec.sparsity in self.sparsities
        ]
        if not any(
            not self.sparsities or record.run_spec.sparsity in self.sparsities for record in chosen
        ):  # dense runs alone were asked for by nobody
            raise UsageError(
                f"no finished run of {results} is so: see `prunebench ls runs --results {results}`"
            )
        return store, in_order(chosen)


@dataclass(frozen=True)
class TimingSettings:
    """How engines are timed; without engines they are not."""

    engines: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 64)
    threads: int = 1
    repeats: int = 31
    device: str = "cpu"


def export_with_progress(
    asked: RunFilter,
    results: Path,
    out: Path,
    data_root: Path | None,
    *,
    form: str,
    images: int,
    timing: TimingSettings,
) -> int:
    """Export networks, print and write what came of it, then the engines' times; 1 if a network could not be."""
    check_form(form)
    device = choose_device(timing.device)
    engines, missing = choose_engines(timing.engines, device)
    if form != "onnx" and any(ENGINES[name].runs_onnx for name in engines):
        readers = ", ".join(name for name in engines if ENGINES[name].runs_onnx)
        raise UsageError(f"--engine {readers} runs ONNX files: leave out --to {form}")
    if images < 2:
        raise UsageError(f"--images must be 2 or more, got {images}")
    store, records = asked.choose(results)
    if engines:
        records = _with_dense(store, records)
    entries = export_runs(store, records, out, form=form, data_root=data_root, images=images)
    found = list(
        track(
            entries, "exporting", total=len(records), console=console, disable=not console.is_terminal,
            transient=True,
        )
    )  # fmt: skip
    facts = _facts(device)
    write_atomically(
        out / f"{NETWORKS}.json", _json({**facts, "networks": list(map(dataclasses.asdict, found))})
    )
    done = [entry for entry in found if entry.problem is None]
    if done:
        console.print(terminal_table(export_table(done)))
        console.print(f"files      {out}", soft_wrap=True)
    for entry in found:
        if entry.problem is not None:
            errors.print(f"not exported: {_label(entry)}: {entry.problem}", style="yellow", soft_wrap=True)
    for line in missing:
        errors.print(f"left out: {line}", style="yellow", soft_wrap=True)
    if engines and done:
        _time(store, records, done, out, data_root, timing, engines, facts)
    return int(len(done) < len(found))


def _with_dense(store: Store, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs and the dense one of each task and seed, which speed-ups are over."""
    dense = {other.run_id: other for record in records if (other := dense_of(store, record)) is not None}
    return in_order([*{**dense, **{record.run_id: record for record in records}}.values()])


def _time(  # noqa: PLR0913
    store: Store,
    records: Sequence[RunRecord],
    exported: Sequence[ExportedNetwork],
    out: Path,
    data_root: Path | None,
    timing: TimingSettings,
    engines: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """The networks of each task, model and seed in all engines: printed, and written as Markdown and JSON."""
    device = torch.device(facts["environment"]["device"])
    files, draws = {entry.run_id: entry for entry in exported}, Draws(data_root, device)
    pages, values = [], []
    there = [record for record in records if record.run_id in files]
    for place, group in itertools.groupby(there, key=_place):
        runs = list(group)
        data = draws.of(runs[0])
        networks = [
            _timed(record, files[record.run_id], store, data.task.num_outputs, data_root, out, device)
            for record in runs
        ]
        title = f"{place[0]}, {place[1]}, seed {place[2]}"
        if not any(network.is_dense for network in networks):
            errors.print(f"not timed: {title}: its dense run has no stored model here", style="yellow")
            continue
        if console.is_terminal:
            console.print(f"timing {len(networks)} networks in {len(engines)} engines: {title}")
        times = time_engines(
            networks, data.images["val"], engines,
            batches=timing.batches, threads=timing.threads, repeats=timing.repeats,
        )  # fmt: skip
        table = engine_table(networks, times)
        medians = engine_table(networks, times, f"{title}: milliseconds, medians", medians=True)
        console.print(terminal_table(medians))
        lines = [*_conditions(times, facts), *reasons(times)]
        for line in lines:
            console.print(line, soft_wrap=True)
        pages += [f"## {escape(title)}", markdown_table(table), bullets(map(escape, lines))]
        values.append({"task": place[0], "model": place[1], "seed": place[2], **dataclasses.asdict(times)})
    if values:
        write_atomically(out / f"{TIMES}.json", _json({**facts, TIMES: values}))
        write_atomically(out / f"{TIMES}.md", page(["# Engines", f"`{facts['command']}`", *pages]).encode())


def _place(record: RunRecord) -> tuple[str, str, int]:
    return record.run_spec.task, record.run_spec.model, record.run_spec.seed


def _timed(
    record: RunRecord,
    entry: ExportedNetwork,
    store: Store,
    outputs: int,
    data_root: Path | None,
    out: Path,
    device: torch.device,
) -> TimedNetwork:
    return TimedNetwork(
        name=_name(entry),
        run_id=record.run_id,
        net=stored_network(record, store, outputs, data_root).to(device),
        onnx=out / entry.file if entry.form == "onnx" else None,
        zeros=1 - entry.nonzero_weights / entry.weights,
        removed_macs=entry.removed_macs,
        is_dense=record.run_spec.method == "dense",
    )


def _name(entry: ExportedNetwork) -> str:
    """`magnitude 0.9`, with a pattern that was asked for; of a dense network the method alone."""
    if entry.sparsity == 0:
        return entry.method
    pattern = "" if entry.structure in PLAIN_STRUCTURES else f" {entry.structure}"
    return f"{entry.method} {sparsity_text(entry.sparsity)}{pattern}"


def _label(entry: ExportedNetwork) -> str:
    return f"{entry.run_id} ({entry.task}, {_name(entry)}, seed {entry.seed})"


def _conditions(times: EngineTimes, facts: dict[str, Any]) -> Iterator[str]:
    """Machine, versions and how it was measured; what other work disturbed."""
    environment, form, clock = facts["environment"], "float32", times.clock
    on_gpu = environment["device"] == "cuda"
    runtimes = {"torch": environment["torch"], **facts["runtimes"]}
    if on_gpu:
        runtimes = {name: environment[name] for name in ("torch", "cuda", "triton")}
        form += " (convolutions in TF32)" if torch.backends.cudnn.allow_tf32 else ""
        clock += " as called: each launch until torch.cuda.synchronize()"
    versions = ", ".join(f"{name} {version}" for name, version in runtimes.items() if version)
    floors = ", ".join(f"{floor:.2f} at batch {batch}" for batch, floor in times.noise_floor.items())
    yield (
        f"{environment['gpu' if on_gpu else 'cpu']}, {fmt.plural(times.threads, 'thread')}, {form}, {clock}; "
        f"{times.repeats} calls of each in turns: median [20th, 80th percentile]; {versions}"
    )
    graphs = dict.fromkeys(each.engine for each in times.entries if each.engine in GRAPHS)
    if on_gpu and graphs:
        yield f"launched as CUDA graphs: {', '.join(graphs)}"
    yield f"load average before {times.load_average}; the dense network over itself: {floors}"
    yield from times.remarks


def reasons(times: EngineTimes) -> Iterator[str]:
    """Why engines were not timed, one line a reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in times.entries:
        if entry.not_measured is not None:
            found.setdefault((entry.engine, entry.not_measured), []).append(entry.network)
    for (engine, reason), names in found.items():
        yield f"{engine}: not measured for {', '.join(dict.fromkeys(names))}: {reason}"


def export_table(entries: Sequence[ExportedNetwork]) -> Table[ExportedNetwork]:
    """One row a file: its network, what of it is left, and how far its outputs are from torch's."""

    def number(key: str, title: str, help: str, value: Callable[[ExportedNetwork], Any]) -> Column[Any]:
        return Column(key, title, help, value, lambda found: fmt.number(found, 3))

    columns = (
        text_column("run_id", "Run", lead=True),
        text_column("task", "Task"),
        text_column("name", "Network", value=_name),
        Column[ExportedNetwork]("seed", "Seed"),
        text_column("structure", "Structure"),
        number(
            "zeros", "Zeros", "share of the stored weights that are zero",
            lambda row: 1 - row.nonzero_weights / row.weights,
        ),
        number("removed_macs", "MACs removed", "went with removed channels", lambda row: row.removed_macs),
        Column[ExportedNetwork](
            "bytes", "kB", "size of the file, in 1,000 bytes", lambda row: row.bytes / 1000, fmt.count
        ),
        Column[ExportedNetwork]("opset", "Opset", "version of ONNX's operators"),
        Column[ExportedNetwork](
            "difference", "Largest difference", "of outputs from torch's", format=lambda value: f"{value:.1e}"
        ),
        Column[ExportedNetwork](
            "largest_output", "Largest output", "of torch, in the same images", format=fmt.significant
        ),
        Column[ExportedNetwork]("images", "Images", "of the validation split, compared"),
    )  # fmt: skip
    return simple_table(columns, entries).without_empty()


def _facts(device: str) -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in RUNTIMES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": " ".join(["prunebench", *sys.argv[1:]]),
        "environment": describe_environment(device, "fp32"),
        "code": describe_code(),
        "runtimes": versions,
    }


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(plain(values), indent=1) + "\n").encode()
