"""Report of a profile: tables and summary on the terminal; CSV, JSON, SVG and a page in a folder."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from prunebench.inference.busy import MachineLoad
from prunebench.profile.plots import INTERVALS, network_plot, roofline_plot, speed_up_plots, sweep_plot
from prunebench.profile.results import (
    AUTO,
    COMPILED,
    COMPILED_NETWORK,
    EAGER,
    NOT_COMPILED,
    NOT_MEASURED,
    PATTERNS,
    Ceilings,
    ImplementationTiming,
    LatencyPercentiles,
    LayerResult,
    LayerRoof,
    NetworkResult,
    Profile,
    SweepPoint,
    break_even,
    network_points,
    operating_points,
    pareto_front,
    speed_up_points,
)
from prunebench.report import format as fmt
from prunebench.report.plot import Plot, PlotGrid
from prunebench.report.svg import alone, key_svg, legend_of, svg
from prunebench.report.table import Column, Table, simple_table, text_column
from prunebench.results.record import plain
from prunebench.results.store import write_atomically

TEMPLATES = Path(__file__).parent / "templates"
NETWORK, ROOFLINE, PAGE = "speed-up-network.svg", "roofline.svg", "index.html"
SWEEP, SWEEP_ROWS = "sweep.svg", "sweep.csv"
MOST_NAMED = 4


def plot_file(pattern: str) -> str:
    """The name of a pattern's plot."""
    return f"speed-up-{pattern.replace(':', '-')}.svg"


def write_profile(profile: Profile, out: Path) -> list[Path]:
    """Write index.html, profile.json, layers.csv, networks.csv and the plots, sweep.csv of a sweep; gives the paths.

    Without jinja2 there is no page. Plots and sweep of an earlier profile, which may have had others, go.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    with contextlib.suppress(ModuleNotFoundError):
        files[PAGE] = page(profile)
    files |= {
        "profile.json": to_json(profile),
        "layers.csv": layers_csv(profile),
        "networks.csv": networks_csv(profile),
    }
    if profile.sweep:
        files[SWEEP_ROWS] = sweep_csv(profile)
    plots: dict[str, Plot | PlotGrid | None] = {
        SWEEP: sweep_plot(profile),
        NETWORK: network_plot(profile),
        ROOFLINE: roofline_plot(profile),
    }
    plots |= {plot_file(pattern): speed_up_plots(profile, pattern) for pattern in profile.patterns}
    files |= {name: svg(plot, hints=True) for name, plot in plots.items() if plot is not None}
    for name in (SWEEP, SWEEP_ROWS, NETWORK, ROOFLINE, *map(plot_file, PATTERNS), PAGE):
        if name not in files:
            (out / name).unlink(missing_ok=True)
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in files]


def milliseconds(latency: LatencyPercentiles) -> str:
    """`1.25 [1.2, 1.31]`: the median with the 20th and 80th percentile."""
    low, median, high = map(fmt.significant, (latency.p20, latency.p50, latency.p80))
    return f"{median} [{low}, {high}]"


HOT_MS = "milliseconds with a hot cache: median [20th, 80th percentile]"
ZEROS = Column[Any](
    "achieved", "Zeros", "share of zeros that the masks have", format=lambda value: fmt.number(value, 3)
)
ASKED = Column[Any](
    "sparsity", "Sparsity", "sparsity asked for", lambda row: row, lambda row: fmt.sparsity(row.sparsity),
    attrgetter("sparsity"),
)  # fmt: skip
PATTERN = text_column("pattern", "Pattern")
REASON = text_column("not_measured", "Not measured because", short="Reason")
figure = partial(Column[Any], format=fmt.significant)
speed = partial(Column[Any], format=fmt.times)
latency = partial(Column[Any], format=milliseconds, order=attrgetter("p50"))


def layers_table(profile: Profile) -> Table[LayerResult]:
    """One row a layer, pattern and sparsity. Speed-ups are over eager torch."""

    def roof(field: str) -> Callable[[LayerResult], Any]:
        return lambda row: row.roof and getattr(row.roof, field)

    columns = (
        text_column("layer", "Layer", value=_layer_name, lead=True),
        text_column("shape", "Shape", "kernel, channels, stride, input size"),
        PATTERN,
        ASKED,
        ZEROS,
        latency("dense", "torch ms", HOT_MS, lambda row: row.latency(EAGER)),
        figure("compiled", f"{COMPILED} ms", "median", lambda row: _median(row.timing(COMPILED)), short="compiled"),
        text_column("layout", "Fastest sparse", "sparse layout with the least median, hot cache", value=_fastest_name),
        figure("sparse", "ms", "its median, hot cache", lambda row: _median(row.fastest())),
        speed("hot", "Hot", "speed-up over torch, hot cache", LayerResult.best_speed_up),
        speed("cold", "Cold", "speed-up over torch of the fastest layout, cold cache",
              lambda row: row.best_speed_up("cold")),
        text_column("auto", "auto takes", "what automatic layout selection takes in the whole network"),
        figure("roof", "Roof ms", "bound of the dense layer beneath the roofline", roof("dense_ms")),
        speed("blocks", "Ceiling, blocks", "largest speed-up by skipping zero blocks", roof("block_ceiling"),
              short="blocks"),
        speed("free", "Ceiling, zeros", "largest speed-up if every zero is free", roof("free_ceiling"), short="zeros"),
        REASON,
    )  # fmt: skip
    title = "Layers: convolution + bias + ReLU; speed-up of the fastest sparse layout over torch"
    return simple_table(columns, profile.layers, title)


def _layer_name(result: LayerResult) -> str:
    count = len(result.same_shape)
    return f"{result.layer} ({count} alike)" if count > 1 else result.layer


def _median(timing: ImplementationTiming | None) -> float | None:
    return timing.p50("hot") if timing else None


def _fastest_name(result: LayerResult) -> str | None:
    best = result.fastest()
    return best.name if best else "no candidate" if result.timings else None


def networks_table(profile: Profile) -> Table[NetworkResult]:
    """One row a network that was asked for. Speed-up: over the fastest dense one timed in the same turns."""

    def speed_up(network: NetworkResult) -> str | None:
        factor = profile.network_speed_up(network)
        if profile.dense_baseline(network) is network:
            return "baseline"
        return None if factor is None else fmt.times(factor)

    columns = (
        text_column("name", "Network", lead=True),
        PATTERN,
        ASKED,
        ZEROS,
        latency("latency_ms", "ms", HOT_MS),
        Column("speed_up", "Speed-up", "over the fastest dense network", speed_up),
        figure("weights_mb", "Weights MB", "with indices, 10^6 bytes", short="MB"),
        figure("peak_activations_mb", "Peak activations MB", "with workspaces, 10^6 bytes", short="Peak"),
        text_column("layouts", "Layouts", "how many layers took each layout", value=layout_counts),
        REASON,
    )
    compiled = profile.settings.get("compiled")
    rows = [network for network in profile.networks if compiled or network.name != COMPILED_NETWORK]
    title = "Whole network; speed-up over the fastest dense one timed in the same turns"
    return simple_table(columns, rows, title)


def layout_counts(network: NetworkResult) -> str | None:
    """`dense 12, block 64x64 8`: how many layers took each layout."""
    taken = list(network.layouts.values())
    return ", ".join(f"{layout} {taken.count(layout)}" for layout in dict.fromkeys(taken)) or None


def sweep_table(profile: Profile) -> Table[SweepPoint]:
    """One row a pattern, number of threads and batch: dense and sparse network, in milliseconds and images a second."""
    columns = (
        text_column("pattern", "Pattern", value=attrgetter("sparse.pattern"), lead=True),
        Column[Any]("sparsity", "Sparsity", "sparsity asked for", attrgetter("sparse"),
                    lambda network: fmt.sparsity(network.sparsity), attrgetter("sparsity")),
        Column[Any]("threads", "Threads"),
        Column[Any]("batch", "Batch", "images"),
        latency("dense", "Dense ms", HOT_MS, attrgetter("dense.latency_ms")),
        latency("sparse", "Sparse ms", HOT_MS, attrgetter("sparse.latency_ms")),
        figure("dense_rate", "Dense images/s", "batch over median", lambda row: row.images_per_second(row.dense)),
        figure("sparse_rate", "Sparse images/s", "batch over median", lambda row: row.images_per_second(row.sparse)),
        speed("speed_up", "Speed-up", "dense over sparse median"),
        text_column("not_measured", "Not measured because", value=attrgetter("sparse.not_measured"), short="Reason"),
    )  # fmt: skip
    return simple_table(
        columns, profile.sweep, "Batches and threads: the fastest dense network and the sparse one"
    )


def front_line(profile: Profile) -> str | None:
    """The front of a sweep in words, from the least latency to the most images a second; None without a sweep."""
    front = [
        f"{point.network} at batch {point.batch}, {fmt.plural(point.threads, 'thread')} "
        f"({fmt.significant(point.latency_ms)} ms, {fmt.significant(point.images_per_second)} images/s)"
        for point in pareto_front(operating_points(profile.sweep))
    ]
    return f"front of latency and throughput: {'; '.join(front)}" if front else None


def break_even_rows(profile: Profile) -> Iterator[dict[str, Any]]:
    """Break-even of the whole network, then hot and cold of every family of layouts on every layer."""
    for pattern in dict.fromkeys(network.pattern or "" for network in profile.networks):
        points = network_points(profile, pattern)
        if len(points) > 1:
            even = break_even(points)
            yield {"layer": "whole network", "pattern": pattern, "layout": AUTO, "hot": even, "cold": None}
    for pattern in profile.patterns:
        for layer in profile.layer_names:
            found = [r for r in profile.layers if (r.layer, r.pattern) == (layer, pattern) and r.timings]
            for family in dict.fromkeys(family for result in found for family in result.families()):
                if len(found) > 1:
                    yield {
                        "layer": layer, "pattern": pattern, "layout": family,
                        **{cache: break_even(speed_up_points(found, family, cache)) for cache in ("hot", "cold")},
                    }  # fmt: skip


def break_even_table(profile: Profile) -> Table[dict[str, Any]]:
    """Break-even sparsities; `none` where no measured sparsity reached it."""
    names = ("layer", "pattern", "layout")
    columns = [text_column(name, name.capitalize(), value=itemgetter(name)) for name in names]
    columns += [
        Column(cache, f"Break-even {cache}", value=itemgetter(cache), format=attrgetter("words"),
               order=attrgetter("sparsity"))
        for cache in ("hot", "cold")
    ]  # fmt: skip
    title = "Break-even: the sparsity from which a layout is no slower than dense torch"
    return simple_table(columns, break_even_rows(profile), title)


def tables(profile: Profile) -> list[Table[Any]]:
    """What was measured of layers, whole networks and break-evens, in columns that fit a terminal."""
    every: tuple[Table[Any], ...] = (
        layers_table(profile).choose(
            "layer", "pattern", "sparsity", "dense", "compiled", "layout", "hot", "cold", "auto"
        ),
        networks_table(profile).choose(
            "name",
            "pattern",
            "sparsity",
            "latency_ms",
            "speed_up",
            "weights_mb",
            "peak_activations_mb",
            "layouts",
        ),
        break_even_table(profile),
        sweep_table(profile),
    )
    shown = (
        table.where(lambda row: not getattr(row, "not_measured", None)).without_empty() for table in every
    )
    return [table for table in shown if table.rows]


def reasons(profile: Profile) -> list[str]:
    """What has no times at all, a line a reason; what was not compiled is told by the summary."""
    every = [(result.not_measured, result.point, result.layer) for result in profile.layers]
    every += [(result.not_measured, result.point, result.name) for result in profile.networks]
    found: dict[str, list[str]] = {}
    for reason, point, name in every:
        if reason is not None and reason != NOT_COMPILED:
            found.setdefault(reason, []).append(f"{point}: {name}")
    return [f"{NOT_MEASURED}, {reason}: {_some(names)}" for reason, names in found.items()]


def _some(names: Sequence[str]) -> str:
    return "; ".join((*names[:MOST_NAMED], *["..."][: len(names) > MOST_NAMED]))


def summary(profile: Profile) -> list[str]:
    """What was profiled, on what, under which ceilings, and what is missing."""
    values, environment = profile.settings, profile.environment
    where, threads = environment.get("gpu") or environment.get("cpu"), environment["threads"]
    lines = [
        f"{values['model']}, batch {values['batch']}, {values['image']} x {values['image']}, {values['precision']}, "
        f"on {where} ({fmt.plural(threads, 'thread')}, torch {environment['torch']})"
    ]
    if profile.note:
        lines.append(profile.note)
    problem = MachineLoad(environment.get("load_average"), environment.get("cores") or 1).problem(threads)
    if problem is not None:
        lines.append(f"{problem} (load at the start)")
    if machine := profile.machine:
        lines.append(
            f"ceilings, the best seen: copy {machine.copy_gb_per_s:,.3g} GB/s, "
            f"matmul {machine.matmul_gflop_per_s:,.4g} GFLOP/s, "
            f"3x3 convolution {machine.convolution_gflop_per_s:,.4g} GFLOP/s; "
            f"cold: {machine.flushed_mb:,.0f} MB written before each call, "
            f"twice the last-level cache of {machine.cache_mb:,.0f} MB"
        )
    if (front := front_line(profile)) is not None:
        lines.append(front)
    faster = dict.fromkeys(result.layer for result in profile.layers if _beats_the_roof(result))
    if faster:
        lines.append(
            f"faster than the roof: {', '.join(faster)}. Operands in a hot cache need no copy, or "
            "the machine was busy whenever its ceilings were measured"
        )
    ran = {timing.backend for result in profile.layers for timing in result.timings} - {None}
    if values["backend"] == "triton" and ran and "triton" not in ran:
        lines.append("--backend triton: every layout ran in torch; Triton's kernels need a CUDA device")
    if not values["compiled"]:
        lines.append(f"{COMPILED}: {NOT_MEASURED} (--no-compile; --compile takes some seconds more a layer)")
    if profile.left_out:
        number = fmt.plural(len(profile.left_out), "measurement")
        lines.append(f"left out, the time box was full (--minutes): {number}: {_some(profile.left_out)}")
    if profile.interrupted:
        lines.append("stopped early: what had been measured is kept")
    return lines


def _beats_the_roof(result: LayerResult) -> bool:
    dense = result.latency(EAGER)
    return bool(result.roof and dense and dense.p50 < result.roof.dense_ms)


NOTES: dict[Callable[[Profile], Table[Any]], tuple[str, str]] = {
    break_even_table: (
        "Break-even",
        "The sparsity from which a layout is no slower than dense torch.",
    ),
    networks_table: (
        "Whole network",
        "Dense and sparse timed in turns, on a GPU with the host's launches. Zeros are those of all convolutions; "
        "activations at their peak, with workspaces.",
    ),
    sweep_table: (
        "Batches and threads",
        "The fastest dense network and the one that is sparse in its fastest layouts, timed in turns; images a second "
        "are the batch over the median.",
    ),
    layers_table: (
        "Layers",
        "Convolution, bias (a folded BatchNorm) and ReLU; the input in the memory format that each layout prefers. On "
        "a GPU without the host's launches. Ceilings: the dense bound beneath the roofline over that of skipping zero "
        "blocks, and over that of free zeros; a layer that runs dense below the roof can gain more, and one without "
        "dead channels neither reads nor writes them.",
    ),
}
"""Headings and words of the page's tables, in their order."""


def page(profile: Profile) -> str:
    """The profile as one HTML page, without scripts and without anything to load; everything is escaped."""
    from prunebench.report.html import render

    values = profile.settings
    plots = {
        "Whole network": network_plot(profile),
        "Latency against throughput": sweep_plot(profile),
        "Roofline": roofline_plot(profile),
    }
    where, *notes = summary(profile)
    facts = profile.environment | profile.code | {
        "started": profile.started_utc, "seconds": profile.seconds, "command": profile.command,
        "settings": json.dumps(values, default=str),
    }  # fmt: skip
    return render(
        "profile.html.j2",
        TEMPLATES,
        data=None,
        title=f"{values['model']}, batch {values['batch']}, {values['image']} x {values['image']}",
        where=where,
        notes=notes,
        plots=[(heading, svg(plot, hints=True) if plot else None) for heading, plot in plots.items()],
        patterns=[(pattern, *_panels(speed_up_plots(profile, pattern))) for pattern in profile.patterns],
        tables=[(heading, words, make(profile).without_empty()) for make, (heading, words) in NOTES.items()],
        facts=[(key, fmt.MISSING if value is None else value) for key, value in facts.items()],
        intervals=INTERVALS,
    )  # fmt: skip


def _panels(grid: PlotGrid | None) -> tuple[list[tuple[str, str]], list[str]]:
    """The legend of a grid as (sign, name), and its panels, each a picture that finds its own place on a page."""
    if grid is None:
        return [], []
    pictures = [svg(dataclasses.replace(alone(plot), legend=False), hints=True) for plot in grid.plots]
    return [(key_svg(key), key.name) for key in legend_of(grid.plots)], pictures


def to_json(profile: Profile) -> str:
    """Sorted keys; None and nan as null."""
    return json.dumps(plain(profile), sort_keys=True, indent=1, default=str) + "\n"


def layers_csv(profile: Profile) -> str:
    """One row for each layer, pattern, sparsity, implementation and cache state; the environment in every row."""
    rows = [row for result in profile.layers for row in _layer_rows(result)]
    return _csv(rows, next(_layer_rows(LayerResult("", (), "", "", None, None))), profile)


def networks_csv(profile: Profile) -> str:
    """One row a network; the environment in every row."""
    rows = [_network_row(network) for network in profile.networks]
    return _csv(rows, _network_row(NetworkResult("")), profile)


def sweep_csv(profile: Profile) -> str:
    """One row a network of the sweep, batch and number of threads; the environment in every row."""
    rows = [
        {
            "batch": point.batch,
            "threads": point.threads,
            "images_per_second": point.images_per_second(network),
        }
        | _network_row(network)
        for point in profile.sweep
        for network in (point.dense, point.sparse)
    ]
    return _csv(rows, rows[0], profile)


def _network_row(network: NetworkResult) -> dict[str, Any]:
    row = {key: value for key, value in dataclasses.asdict(network).items() if key != "latency_ms"}
    return row | {"layouts": json.dumps(network.layouts)} | _latency_fields(network.latency_ms)


def _layer_rows(result: LayerResult) -> Iterator[dict[str, Any]]:
    common = {
        "layer": result.layer, "layers_of_this_shape": len(result.same_shape), "shape": result.shape,
        "pattern": result.pattern, "sparsity": result.sparsity, "achieved": result.achieved,
        "auto": result.auto, "auto_reason": result.auto_reason,
    }  # fmt: skip
    names = [field.name for field in dataclasses.fields(LayerRoof)]
    roof = dataclasses.asdict(result.roof) if result.roof else dict.fromkeys(names)
    for timing in result.timings or (ImplementationTiming("", not_measured=result.not_measured),):
        for cache in ("hot", "cold"):
            latency = timing.latency(cache)
            yield {
                **common, "implementation": timing.name, "cache": cache, **_latency_fields(latency),
                "speed_up": result.speed_up(timing.name, cache),
                "speed_up_over_compiled": result.speed_up(timing.name, cache, COMPILED),
                "error": timing.error, "backend": timing.backend,
                "kernel_settings": json.dumps(timing.settings, sort_keys=True, default=str),
                "not_measured": None if latency else timing.not_measured, **roof,
            }  # fmt: skip


def _latency_fields(latency: LatencyPercentiles | None) -> dict[str, float | int | None]:
    values = (latency.p20, latency.p50, latency.p80, latency.calls) if latency else (None,) * 4
    return dict(zip(("p20_ms", "p50_ms", "p80_ms", "timed_calls"), values))


def _csv(rows: list[dict[str, Any]], blank: dict[str, Any], profile: Profile) -> str:
    """The rows under the names of `blank`, which stand there even where there are no rows."""
    kept = ("model", "run", "image", "batch", "seed", "precision", "repeats")
    constant = {key: profile.settings.get(key) for key in kept}
    constant |= profile.environment | {key: profile.code.get(key) for key in ("version", "commit", "dirty")}
    machine = dataclasses.asdict(profile.machine) if profile.machine else {}
    constant |= {field.name: machine.get(field.name) for field in dataclasses.fields(Ceilings)}
    constant |= {"started_utc": profile.started_utc, "note": profile.note}
    constant = {key: value for key, value in constant.items() if key not in blank}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*blank, *constant], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | constant for row in rows)
    return stream.getvalue()
