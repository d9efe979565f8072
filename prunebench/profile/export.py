"""A profile as JSON and as CSV. What is missing is null, or an empty cell, with the reason beside it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from prunebench.profile.results import (
    COMPILED,
    LayerResult,
    LayerRoof,
    Machine,
    NetworkResult,
    Profile,
    Times,
    Timing,
)


def to_json(profile: Profile) -> str:
    """Sorted keys; None and nan as null."""
    return json.dumps(_plain(dataclasses.asdict(profile)), sort_keys=True, indent=1, default=str) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def layers_csv(profile: Profile) -> str:
    """One row for each layer, pattern, sparsity, implementation and cache state; the environment in every row."""
    rows = [row for result in profile.layers for row in _layer_rows(result)]
    return _csv(rows, next(_layer_rows(LayerResult("", (), "", "", None, None))), profile)


def networks_csv(profile: Profile) -> str:
    """One row a network; the environment in every row."""
    return _csv(
        [_network_row(network) for network in profile.networks], _network_row(NetworkResult("")), profile
    )


def _network_row(network: NetworkResult) -> dict[str, Any]:
    row = {key: value for key, value in dataclasses.asdict(network).items() if key != "latency_ms"}
    row["layouts"] = json.dumps(network.layouts)
    return row | _marks(network.latency_ms)


def _layer_rows(result: LayerResult) -> Iterator[dict[str, Any]]:
    common = {
        "layer": result.layer, "layers_of_this_shape": len(result.same_shape), "shape": result.shape,
        "pattern": result.pattern, "sparsity": result.sparsity, "achieved": result.achieved,
        "auto": result.auto, "auto_reason": result.auto_reason,
    }  # fmt: skip
    names = [field.name for field in dataclasses.fields(LayerRoof)]
    roof = dataclasses.asdict(result.roof) if result.roof else dict.fromkeys(names)
    for timing in result.timings or (Timing("", not_measured=result.not_measured),):
        for cache in ("hot", "cold"):
            times = timing.hot_ms if cache == "hot" else timing.cold_ms
            yield {
                **common, "implementation": timing.name, "cache": cache, **_marks(times),
                "speed_up": result.speed_up(timing.name, cache),
                "speed_up_over_compiled": result.speed_up(timing.name, cache, COMPILED),
                "error": timing.error, "backend": timing.backend,
                "kernel_settings": json.dumps(timing.settings, sort_keys=True, default=str),
                "not_measured": None if times else timing.not_measured, **roof,
            }  # fmt: skip


def _marks(times: Times | None) -> dict[str, float | int | None]:
    marks = (times.p20, times.p50, times.p80, times.calls) if times else (None,) * 4
    return dict(zip(("p20_ms", "p50_ms", "p80_ms", "timed_calls"), marks))


def _csv(rows: list[dict[str, Any]], blank: dict[str, Any], profile: Profile) -> str:
    """The rows under the names of `blank`, which stand there even where there are no rows."""
    kept = ("model", "run", "image", "batch", "seed", "precision", "repeats")
    constant = {key: profile.settings.get(key) for key in kept}
    constant |= profile.environment | {key: profile.code.get(key) for key in ("version", "commit", "dirty")}
    machine = dataclasses.asdict(profile.machine) if profile.machine else {}
    constant |= {field.name: machine.get(field.name) for field in dataclasses.fields(Machine)}
    constant |= {"started_utc": profile.started_utc, "note": profile.note}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*blank, *constant], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | constant for row in rows)
    return stream.getvalue()
