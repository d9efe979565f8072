"""What a profile leaves: tables on the terminal, and CSV, JSON, SVG and a page in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunebench.profile.drawing import short
from prunebench.profile.export import layers_csv, networks_csv, to_json
from prunebench.profile.network import COMPILED_NETWORK, FOLDED
from prunebench.profile.results import (
    COMPILED,
    EAGER,
    NOT_MEASURED,
    LayerResult,
    NetworkResult,
    Profile,
    Times,
    break_even,
    series,
    shown_layers,
    shown_patterns,
)
from prunebench.profile.roofline_figure import roofline_svg
from prunebench.profile.settings import PATTERNS
from prunebench.profile.speed_figure import has_sparse, speed_up_svg
from prunebench.results.store import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

DENSE_NETWORKS = (COMPILED_NETWORK, FOLDED, EAGER)


def figure_of(pattern: str) -> str:
    """The file of a pattern's figure."""
    return f"speed-up-{pattern.replace(':', '-')}.svg"


ROOFLINE = "roofline.svg"
FIGURES = (ROOFLINE, *map(figure_of, PATTERNS))


def write_profile(profile: Profile, out: Path) -> list[Path]:
    """Write profile.json, layers.csv, networks.csv, the figures and index.html; gives the paths."""
    from prunebench.profile.page import page

    out.mkdir(parents=True, exist_ok=True)
    files = {
        "index.html": page(profile),
        "profile.json": to_json(profile),
        "layers.csv": layers_csv(profile),
        "networks.csv": networks_csv(profile),
    }
    roof = roofline_svg(profile)
    if roof is not None:
        files[ROOFLINE] = roof
    for pattern in shown_patterns(profile):
        if has_sparse(profile, pattern):
            files[figure_of(pattern)] = speed_up_svg(profile, pattern)
    for name in FIGURES:  # of an earlier profile, which may have had other patterns
        (out / name).unlink(missing_ok=True)
    for name, text in files.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in files]


Rows = list[list[str]]
LAYER_HEAD = ["layer", "shape", "pattern", "sparsity", "torch ms (p20-p80)", f"{COMPILED} ms", "fastest sparse", "ms",
              "hot", "cold", "auto takes", "roof ms", "ceiling"]  # fmt: skip
NETWORK_HEAD = ["network", "pattern", "sparsity", "p20 / p50 / p80 ms", "speed-up", "weights MB", "peak activations MB",
                "layouts"]  # fmt: skip
BREAK_EVEN_HEAD = ["layer", "pattern", "layout", "break-even hot", "break-even cold"]


def layer_rows(profile: Profile) -> Rows:
    """One row a layer, pattern and sparsity. Speed-ups are over eager torch, hot and cold cache."""
    return [_layer_row(result) for result in profile.layers]


def _layer_row(result: LayerResult) -> list[str]:
    count = f" ({len(result.same_shape)} alike)" if len(result.same_shape) > 1 else ""
    head = [
        result.layer + count,
        result.shape,
        result.pattern,
        sparsity_words(result.sparsity, result.achieved),
    ]
    if not result.timings:
        return [*head, f"{NOT_MEASURED}: {result.not_measured}", *[""] * 8]
    best, dense, compiled = result.fastest(), result.timing(EAGER), result.timing(COMPILED)
    cold = result.fastest("cold")
    assert dense is not None
    return [
        *head,
        span(dense.hot_ms),
        milliseconds(compiled.hot_ms if compiled else None),
        best.name if best else "no candidate",
        milliseconds(best.hot_ms) if best else "",
        times(result.speed_up(best.name)) if best else "",
        times(result.speed_up(cold.name, "cold")) if cold else "",
        result.auto or NOT_MEASURED,
        f"{result.roof.dense_ms:.3g}" if result.roof else NOT_MEASURED,
        f"{times(result.roof.block_ceiling)} / {times(result.roof.free_ceiling)}" if result.roof else "",
    ]


def network_rows(profile: Profile) -> Rows:
    """One row a network that was asked for. Speed-up: over the fastest dense one timed in the same turns."""
    shown = profile.networks
    if not profile.settings.get("compiled"):
        shown = tuple(network for network in shown if network.name != COMPILED_NETWORK)
    return [_network_row(network, profile) for network in shown]


def _network_row(network: NetworkResult, profile: Profile) -> list[str]:
    head = [network.name, network.pattern or "", sparsity_words(network.sparsity, network.achieved)]
    if network.latency_ms is None:
        return [*head, f"{NOT_MEASURED}: {network.not_measured}", *[""] * 4]
    marks = network.latency_ms
    return [
        *head,
        " / ".join(short(value) for value in (marks.p20, marks.p50, marks.p80)),
        network_speed_up(network, profile),
        NOT_MEASURED if network.weights_mb is None else short(network.weights_mb),
        NOT_MEASURED if network.peak_activations_mb is None else short(network.peak_activations_mb),
        layout_counts(network),
    ]


def network_speed_up(network: NetworkResult, profile: Profile) -> str:
    """Over the fastest dense network that was timed in the same turns."""
    point = (network.pattern, network.sparsity)
    dense = {
        other.name: other.latency_ms.p50
        for other in profile.networks
        if (other.pattern, other.sparsity) == point and other.name in DENSE_NETWORKS and other.latency_ms
    }
    if not dense or network.latency_ms is None:
        return NOT_MEASURED
    base = min(dense, key=lambda name: dense[name])
    return "baseline" if base == network.name else times(dense[base] / network.latency_ms.p50)


def layout_counts(network: NetworkResult) -> str:
    """`dense 12, block 64x64 8`: how many layers took each layout."""
    taken = list(network.layouts.values())
    return ", ".join(f"{layout} {taken.count(layout)}" for layout in dict.fromkeys(taken))


def break_even_rows(profile: Profile) -> Rows:
    """Break-even sparsity of every family of layouts on every layer, where several sparsities were measured."""
    rows = []
    for pattern in shown_patterns(profile):
        for layer in shown_layers(profile):
            mine = [r for r in profile.layers if (r.layer, r.pattern) == (layer, pattern) and r.timings]
            if len(mine) < 2:
                continue
            for family in dict.fromkeys(family for result in mine for family in result.families()):
                evens = [
                    break_even(series(mine, layer, pattern, family, cache)).words for cache in ("hot", "cold")
                ]
                rows.append([layer, pattern, family, *evens])
    return rows


def without_empty(head: list[str], rows: Rows) -> tuple[list[str], Rows]:
    """A table without the columns that no row has measured."""
    kept = [i for i in range(len(head)) if any(row[i] not in ("", NOT_MEASURED) for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def sparsity_words(asked: float | None, achieved: float | None) -> str:
    """The sparsity asked for, with the achieved one where they differ visibly."""
    if asked is None:
        return "as stored" if achieved is None else f"{achieved:.3f}"
    return f"{asked:g}" if achieved is None or abs(asked - achieved) < 5e-4 else f"{asked:g} ({achieved:.3f})"


def milliseconds(marks: Times | None) -> str:
    return NOT_MEASURED if marks is None else short(marks.p50)


def span(marks: Times | None) -> str:
    """Median with the 20th and 80th percentile."""
    return NOT_MEASURED if marks is None else f"{short(marks.p50)} ({short(marks.p20)}-{short(marks.p80)})"


def times(factor: float | None) -> str:
    return NOT_MEASURED if factor is None else f"{factor:.2f}x"


def summary(profile: Profile) -> list[str]:
    """What was profiled, on what, under which ceilings, and what is missing."""
    values = profile.settings
    where = profile.environment.get("gpu") or profile.environment.get("cpu")
    threads = profile.environment["threads"]
    lines = [
        f"{values['model']}, batch {values['batch']}, {values['image']} x {values['image']}, {values['precision']}, "
        f"on {where} ({threads} thread{'s' * (threads != 1)}, torch {profile.environment['torch']})"
    ]
    if profile.note:
        lines.append(profile.note)
    load, cores = (profile.environment.get(name) for name in ("load_average", "cores"))
    if load is not None and cores is not None and load >= cores:
        hint = " (OMP_NUM_THREADS=1 suffers less)" if threads > 1 else ""
        lines.append(
            f"busy machine: load average {load:g} on {cores} cores at the start; times say little{hint}"
        )
    if profile.machine:
        machine = profile.machine
        lines.append(
            f"ceilings, the best seen: copy {machine.copy_gb_per_s:,.3g} GB/s, "
            f"matmul {machine.matmul_gflop_per_s:,.4g} GFLOP/s, "
            f"3x3 convolution {machine.convolution_gflop_per_s:,.4g} GFLOP/s; "
            f"cold: {machine.flushed_mb:,.0f} MB written before each call, "
            f"twice the last-level cache of {machine.cache_mb:,.0f} MB"
        )
    faster = [r.layer for r in profile.layers if _beats_the_roof(r)]
    if faster:
        lines.append(
            f"faster than the roof: {', '.join(dict.fromkeys(faster))}. Operands in a hot cache need no copy, or "
            "the machine was busy whenever its ceilings were measured"
        )
    ran = {timing.backend for result in profile.layers for timing in result.timings} - {None}
    if values["backend"] == "triton" and ran and "triton" not in ran:
        lines.append("--backend triton: every layout ran in torch; Triton's kernels need a CUDA device")
    if not values["compiled"]:
        lines.append(f"{COMPILED}: {NOT_MEASURED} (--no-compile; --compile takes some seconds more a layer)")
    if profile.left_out:
        some = "; ".join(profile.left_out[:4]) + ("; ..." if len(profile.left_out) > 4 else "")
        lines.append(
            f"left out, the time box was full (--minutes): {len(profile.left_out)} measurement"
            f"{'s' * (len(profile.left_out) > 1)}: {some}"
        )
    if profile.interrupted:
        lines.append("stopped early: what had been measured is kept")
    return lines


def _beats_the_roof(result: LayerResult) -> bool:
    dense = result.timing(EAGER)
    fastest = dense.p50("hot") if dense else None
    return bool(result.roof and fastest and fastest < result.roof.dense_ms)


def terminal_tables(profile: Profile) -> list[Table]:
    """Layers, whole networks and break-evens for the terminal."""
    from rich.table import Table

    found = []
    for title, head, rows in (
        ("Layers: convolution + bias + ReLU, medians; speed-up of the fastest sparse layout over torch", LAYER_HEAD,
         layer_rows(profile)),
        ("Whole network; speed-up over the fastest dense one timed in the same turns", NETWORK_HEAD,
         network_rows(profile)),
        ("Break-even: the sparsity from which a layout is no slower than dense torch", BREAK_EVEN_HEAD,
         break_even_rows(profile)),
    ):  # fmt: skip
        if rows:
            head, rows = without_empty(head, rows)
            table = Table(title=title)
            for name in head:
                table.add_column(name, overflow="fold")
            for row in rows:
                table.add_row(*row)
            found.append(table)
    return found
