"""The record of a run: schema-versioned, validated when it is read.

Plain frozen dataclasses, so that writing needs nothing but the standard library; pydantic validates on read.
Fractions are 0-1 numbers; undefined is nan in Python and null in JSON; units stand in the names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prunebench.errors import NewerSchemaError, StoreError
from prunebench.results.spec import RunSpec

SCHEMA_VERSION = 5

PLAIN_PATH = "dense kernels with zeros"
"""The latency path of a pruned network as it was trained: the library's kernels multiply its zeros."""

PREDICTIONS_NOTE = "predictions_only"
"""Is noted with 1 by a run that was handed in as logits: its sparsity and cost are those of a dense network."""

OVERSPENT_NOTE = "cpu_over_steps"
"""The note of a run whose processor time is that of so many times its counted steps."""
FITTED_NOTE = "fitted_conflicting"
"""The note of every run that tells whether training came to an end: the share of the conflicting training images that
the network as measured labels right (of a multi-label task, their target attribute)."""

REMOVED_NOTE = "removed_macs"
"""The note that marks a structured result: the share of the dense network's multiply-accumulates that is gone.

The sparsity asked of such a run means this share; the achieved one is, as of any run, the share of weights.
"""
CHANNEL_SLACK = 1 / 3
"""How far the multiply-accumulates that are left may be from those asked for, as a share: channels are whole."""


def removal_problem(asked: float | None, removed: float) -> str | None:
    """Why a structured result misses what was asked of it, if it does."""
    if asked is None or abs(asked - removed) <= CHANNEL_SLACK * (1 - asked):
        return None
    return (
        f"asked to remove {asked:g} of the multiply-accumulates, the network's channels remove {removed:.4f}: "
        f"what is left may be {CHANNEL_SLACK:.0%} more or less than asked"
    )


@dataclass(frozen=True)
class GroupRow:
    """Test samples of one (label, bias) group: how many, and how many the model got right."""

    label: int
    bias: int
    aligned: bool
    count: int
    correct: int


@dataclass(frozen=True)
class Percentiles:
    """Latency of one forward pass of the batch, milliseconds."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class CostReport:
    """What the model weighs, how fast it is on this machine, and what training it took.

    `macs` are multiply-accumulates of one image through convolutions and linear layers; `nonzero_macs` counts
    non-zero weights only (what sparsity could save at best). Latencies are of a batch of `latency_batch`,
    dense and pruned interleaved. `training_steps` counts steps of one network.

    `latency_path` says what was timed as pruned: sparse inference with the layout of every convolution measured
    (`latency_layouts`: how many have each), and `removed_channels`, the share of the convolutions' output channels
    that pruning emptied and that were removed (null where the network was not packed); or the plain network.
    `timed_on` is empty where the latencies were taken within the run; else it is the environment of the later
    measurement, with its commit, time and load average.

    `latency_again_ms` is the dense network timed a second time in the same turns: the noise floor. `latency_clock`
    names the clock of all three, and `latency_wall_spread` is the largest p80 / p20 of them by the clock on the wall,
    which a busy machine drives up (`results.speed.disturbance`); all null before schema 5.
    """

    parameters: int
    nonzero_parameters: int
    macs: int
    nonzero_macs: int
    latency_batch: int
    latency_dense_ms: Percentiles
    latency_pruned_ms: Percentiles
    peak_memory_mb: float
    training_steps: int
    dense_training_steps: int
    latency_path: str | None = None
    latency_layouts: dict[str, int] = field(default_factory=dict)
    removed_channels: float | None = None
    timed_on: dict[str, str | float | bool | None] = field(default_factory=dict)
    latency_again_ms: Percentiles | None = None
    latency_clock: str | None = None
    latency_wall_spread: float | None = None


@dataclass(frozen=True)
class SparsityReport:
    """Asked (null: the method chose) and achieved share of zeros, overall and by layer."""

    asked: float | None
    achieved: float
    by_layer: dict[str, float]


@dataclass(frozen=True)
class Mining:
    """How well the method found the bias-conflicting training samples, against the withheld truth."""

    mined: int
    conflicting: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class RunRecord:
    """One run. `metrics` are of the test split, `validation` of the validation split.

    `scored_on` is empty where groups and metrics are those that the run itself computed; else it is the commit, package
    version and time of the later computation from its stored logits. `outputs_sha256` and `model_sha256` are of the
    safetensors files of its logits and weights; null where none were stored (or before schema 4, of weights).
    """

    schema_version: int
    run_id: str
    status: Literal["ok", "failed", "skipped"]
    spec: dict[str, Any]
    method: dict[str, str]
    reason: str | None = None
    traceback: str | None = None
    started_utc: str = ""
    phase_seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str | int | None] = field(default_factory=dict)
    code: dict[str, str | bool | None] = field(default_factory=dict)
    splits_hash: str | None = None
    sparsity: SparsityReport | None = None
    groups: list[GroupRow] = field(default_factory=list)
    metrics: dict[str, float | None] = field(default_factory=dict)
    validation: dict[str, float | None] = field(default_factory=dict)
    mining: Mining | None = None
    cost: CostReport | None = None
    notes: dict[str, float | None] = field(default_factory=dict)
    outputs_sha256: str | None = None
    scored_on: dict[str, str | bool | None] = field(default_factory=dict)
    model_sha256: str | None = None

    @property
    def run_spec(self) -> RunSpec:
        return RunSpec.from_dict(self.spec)


def to_json(record: RunRecord) -> str:
    """Canonical JSON text of a record: sorted keys, nan as null, a newline at the end."""
    return json_text(plain(record))


def json_text(values: Mapping[str, Any]) -> str:
    """The canonical text of a record's values."""
    return json.dumps(values, sort_keys=True, indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The JSON values of dataclasses, mappings and sequences; every nan or infinite number is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | None):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def from_json(text: str, source: str) -> RunRecord:
    """Validate a record. Raises StoreError naming `source` and what is wrong with it.

    Older schemas are migrated; a newer one is refused.
    """
    return from_values(values_of(text, source), source, text)


def values_of(text: str, source: str) -> Any:
    """What a record's text holds, not validated. Raises StoreError where it is no JSON."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{source}: not valid JSON ({error}); delete it and run again") from error


def from_values(values: Any, source: str, text: str | None = None) -> RunRecord:
    """`from_json` of what the JSON text holds; `text` is that text where it is at hand."""
    from pydantic import ValidationError

    if not isinstance(values, dict) or type(values.get("schema_version")) is not int:
        raise StoreError(f"{source}: not a PruneBench record (no schema_version)")
    version = values["schema_version"]
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{source}: written with record schema {version}; this PruneBench reads up to "
            f"{SCHEMA_VERSION}: upgrade it"
        )
    text = text if version == SCHEMA_VERSION else None
    for step in range(version, SCHEMA_VERSION):
        if step not in MIGRATIONS:
            raise StoreError(f"{source}: record schema {version} is no longer readable; run it again")
        values = MIGRATIONS[step](values)
    try:
        record = _adapter().validate_json(text or json.dumps(values), strict=True)
        actual = record.run_spec.run_id
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{source}: invalid record: {where}: {first['msg']}") from error
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise StoreError(f"{source}: invalid record: spec: {error}") from error
    if actual != record.run_id:
        raise StoreError(f"{source}: run_id {record.run_id} does not match its spec ({actual})")
    if record.status == "ok" and (record.cost is None or record.sparsity is None or not record.groups):
        raise StoreError(f"{source}: an ok record needs groups, sparsity and cost")
    return record


def parse_json(text: str) -> Any:
    """The values of a JSON text. Raises ValueError for nan, infinities, integers beyond 64 bits and double names."""
    return _strict().decode(text)


def parse_again(text: str) -> Any:
    """The values of a text that `parse_json` has read before: a third of its time, none of its checks."""
    from pydantic_core import from_json

    return from_json(text)


@functools.cache
def _strict() -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
    )


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON; null stands for an undefined number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is larger than any number; null stands for an undefined one")
    return value


def _whole(text: str) -> int:
    """A whole number that a table can hold."""
    if len(text) > LONGEST_WHOLE or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text:.40} is beyond 64 bits")
    return int(text)


LONGEST_WHOLE = len(str(-(2**63)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names occur once: a second value would hide the first."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has one name twice")
    return values


def _migrate_0(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 0 (before release) called `notes` `log` and had no `splits_hash`."""
    values = dict(values)
    values["notes"] = values.pop("log", {})
    values.setdefault("splits_hash", None)
    return values | {"schema_version": 1}


def _migrate_1(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 timed the pruned weights in the plain network."""
    cost = values.get("cost")
    if isinstance(cost, dict):
        values = values | {"cost": cost | {"latency_path": PLAIN_PATH}}
    return values | {"schema_version": 2}


def _migrate_2(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 knew no metrics but those of the run itself."""
    return {"scored_on": {}} | values | {"schema_version": 3}


def _migrate_3(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 did not name the weights by their hash."""
    return {"model_sha256": None} | values | {"schema_version": 4}


def _migrate_4(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 4 timed the dense network once, by the clock on the wall."""
    return values | {"schema_version": 5}


MIGRATIONS = {0: _migrate_0, 1: _migrate_1, 2: _migrate_2, 3: _migrate_3, 4: _migrate_4}


@functools.cache
def _adapter() -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(RunRecord))
