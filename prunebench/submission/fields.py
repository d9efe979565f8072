"""Ranges and relations of a record's fields: what can be told from the record alone."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from prunebench.errors import UsageError
from prunebench.methods.api import SUPERVISION
from prunebench.methods.criteria import LONGEST_CITE, NAME, check_setting
from prunebench.metrics.registry import metric_or_plain
from prunebench.results.record import (
    REMOVED_NOTE,
    CostReport,
    Mining,
    Percentiles,
    RunRecord,
    SparsityReport,
    removal_problem,
)

KEY = re.compile(r"[A-Za-z0-9_.:+-]{1,64}")
UTC = re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\dZ")
LONGEST = {"task": 300, "model": 100, "data_fingerprint": 100, "method_version": 100}
LONGEST_VALUE = 300
LONGEST_REASON, LONGEST_TRACEBACK = 4000, 40_000
MOST_LABELS = 10_000
"""Labels and biases are below this: a table of groups is drawn."""
LARGEST = 1e6
"""No metric, note, time or latency is larger."""
DAY = 86_400


def field_problems(record: RunRecord) -> list[str]:
    """What is out of its range or contradicts another field, each beginning with the field's name."""
    problems = [*_spec(record), *_about(record)]
    if record.status == "ok" and not problems:
        assert record.sparsity is not None
        assert record.cost is not None
        problems += [*_groups(record), *_metrics(record), *_sparsity(record, record.sparsity)]
        problems += [*_cost(record, record.cost), *_mining(record.mining)]
    return problems


def _line(value: Any, most: int = LONGEST_VALUE) -> bool:
    """Whether a value is one line of text that a table can show."""
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _whole(value: Any, least: int, below: float = math.inf) -> bool:
    return type(value) is int and least <= value < below


def _short(value: Any) -> bool:
    """Whether a value is what an environment is described by."""
    if isinstance(value, str):
        return len(value) <= LONGEST_VALUE and value.isprintable()
    return value is None or (isinstance(value, bool | int | float) and math.isfinite(value))


def _spec(record: RunRecord) -> Iterator[str]:
    spec = record.spec
    if not _whole(spec["seed"], 0, 2**63):
        yield f"spec.seed: want a whole number from 0, got {spec['seed']!r:.40}"
    sparsity = spec["sparsity"]
    if sparsity is not None and (
        isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1
    ):
        yield f"spec.sparsity: want null or a share in [0, 1), got {sparsity!r:.40}"
    if not isinstance(spec["method"], str) or not NAME.fullmatch(spec["method"]):
        yield f"spec.method: want letters, digits, '-', '_', '.' and '+', got {spec['method']!a:.60}"
    for name, most in LONGEST.items():
        if not _line(spec[name], most):
            yield f"spec.{name}: want one line of at most {most} characters, got {spec[name]!a:.60}"
    if not _whole(spec["task_version"], 0, 10**6):
        yield f"spec.task_version: want a whole number, got {spec['task_version']!r:.40}"
    for key, value in spec["params"].items():
        try:
            check_setting("spec.params", key, value)
        except UsageError as error:
            yield f"spec.params: {error}"
        if not KEY.fullmatch(key):
            yield f"spec.params: {key!a:.60} is no name of a setting"


def _about(record: RunRecord) -> Iterator[str]:
    """Of any status: who made it, where and when, and what went wrong."""
    method = record.method
    if method.get("name") != record.spec["method"]:
        yield f"method.name: {method.get('name')!a:.60}, its spec says {record.spec['method']!a:.60}"
    if method.get("supervision") not in SUPERVISION:
        yield f"method.supervision: want one of {', '.join(SUPERVISION)}, got {method.get('supervision')!a:.60}"
    if not _line(method.get("cite"), LONGEST_CITE):
        yield f"method.cite: want one line of at most {LONGEST_CITE} characters"
    yield from _builtin(record)
    latest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + DAY))
    if record.started_utc and not (UTC.fullmatch(record.started_utc) and record.started_utc <= latest):
        yield f"started_utc: want a time that has been, got {record.started_utc!a:.60}"
    for part in ("environment", "code", "scored_on"):
        values: Mapping[str, Any] = getattr(record, part)
        if len(values) > 100 or not all(
            KEY.fullmatch(key) and _short(value) for key, value in values.items()
        ):
            yield f"{part}: want short names and one-line values"
    if record.status == "ok" and not all(
        record.environment.get(key) for key in ("python", "torch", "device")
    ):
        yield "environment: want at least python, torch and device"
    threads = record.environment.get("threads")
    if threads is not None and not _whole(threads, 1, 10**5):
        yield f"environment.threads: want a whole number from 1, got {threads!r:.40}"
    for part, least in (("notes", -LARGEST), ("phase_seconds", 0.0)):
        for key, value in getattr(record, part).items():
            if not KEY.fullmatch(key):
                yield f"{part}: {key!a:.60} is no name"
            elif value is not None and not least <= value <= 1e3 * LARGEST:
                yield f"{part}.{key}: {value} is out of range"
    if len(record.reason or "") > LONGEST_REASON or len(record.traceback or "") > LONGEST_TRACEBACK:
        yield f"reason, traceback: want at most {LONGEST_REASON} and {LONGEST_TRACEBACK} characters"
    if record.splits_hash is not None and not _line(record.splits_hash, 64):
        yield f"splits_hash: want a hash, got {record.splits_hash!a:.60}"
    if record.outputs_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", record.outputs_sha256):
        yield f"outputs_sha256: want 64 hexadecimal digits, got {record.outputs_sha256!a:.60}"


def _builtin(record: RunRecord) -> Iterator[str]:
    """A built-in method of the version at hand has the supervision and the source that it declares."""
    from prunebench.methods.discovery import builtin_methods

    known = builtin_methods().get(record.spec["method"])
    if known is not None and known.version == record.spec["method_version"]:
        for field in ("supervision", "cite"):
            said, declared = record.method.get(field), getattr(known, field)
            if said != declared:
                yield f"method.{field}: {said!a:.60}, {known.name} has {declared!a:.60}"
        said, declared = record.method.get("ranked"), dict(known.metadata).get("ranked")
        if said != declared:
            yield f"method.ranked: {said!a:.60}, {known.name} has {declared!a:.60}"


def _groups(record: RunRecord) -> Iterator[str]:
    rows = record.groups
    if len({(row.label, row.bias) for row in rows}) != len(rows):
        yield "groups: a group stands there twice"
    for row in rows:
        if not (0 <= row.label < MOST_LABELS and 0 <= row.bias < MOST_LABELS):
            yield f"groups: label {row.label} or bias {row.bias} is out of range"
        elif row.count < 1:
            yield f"groups: group ({row.label}, {row.bias}) has {row.count} samples; an empty group has no row"
        elif not 0 <= row.correct <= row.count:
            yield f"groups: group ({row.label}, {row.bias}) has {row.correct} correct of {row.count} samples"


def _metrics(record: RunRecord) -> Iterator[str]:
    for part in ("metrics", "validation"):
        for name, value in getattr(record, part).items():
            if not KEY.fullmatch(name):
                yield f"{part}: {name!a:.60} is no name of a metric"
            elif value is not None and not _in_range(name, value):
                yield f"{part}.{name}: {value} is out of range"
        values = getattr(record, part)
        margin, confidence = values.get("margin"), values.get("confidence")
        if margin is not None and confidence is not None and margin > confidence + 1e-6:
            yield f"{part}.margin: {margin} is above the confidence {confidence}"
    if any(not row.count > 0 or not 0 <= row.correct <= row.count for row in record.groups):
        return
    for name, value in _accuracies(record).items():
        said = record.metrics.get(name)
        if said is None or math.isnan(said):
            if not math.isnan(value):
                yield f"metric {name} is undefined, its groups give {value:.6f}"
        elif not abs(said - value) <= 1e-9:
            yield f"metric {name} is {said}, its groups give {value:.6f}"
    weighted = record.metrics.get("train_weighted")
    shares = [row.correct / row.count for row in record.groups]
    if weighted is not None and not min(shares) - 1e-9 <= weighted <= max(shares) + 1e-9:
        yield f"metrics.train_weighted: {weighted}, no mean of its groups"


def _in_range(name: str, value: float) -> bool:
    low, high = metric_or_plain(name).range
    slack = 1e-6
    return max(low - slack, -LARGEST) <= value <= min(high + slack, LARGEST)


def _accuracies(record: RunRecord) -> dict[str, float]:
    """The accuracies that follow from the groups; nan where undefined."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    shares = [(row.correct / row.count, row.aligned) for row in record.groups]
    aligned, conflicting = (
        mean([share for share, kind in shares if kind is wanted]) for wanted in (True, False)
    )
    return {
        "plain": sum(row.correct for row in record.groups) / sum(row.count for row in record.groups),
        "unbiased": mean([share for share, _ in shares]),
        "aligned": aligned,
        "conflicting": conflicting,
        "bias_gap": aligned - conflicting,
        "worst_group": min(share for share, _ in shares),
    }


def _sparsity(record: RunRecord, sparsity: SparsityReport) -> Iterator[str]:
    asked = record.spec["sparsity"]
    if sparsity.asked != asked:
        yield f"sparsity.asked: {sparsity.asked}, its spec says {asked}"
    shares = {
        "achieved": sparsity.achieved,
        **{f"by_layer.{name}": share for name, share in sparsity.by_layer.items()},
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            yield f"sparsity.{name[:100]}: {share} is out of range"
    if not sparsity.by_layer:
        yield "sparsity.by_layer: no layer"
    elif (
        not min(sparsity.by_layer.values()) - 1e-9
        <= sparsity.achieved
        <= max(sparsity.by_layer.values()) + 1e-9
    ):
        yield f"sparsity.achieved: {sparsity.achieved}, no mean of its layers"
    assert record.cost is not None
    removed = record.notes.get(REMOVED_NOTE)
    if removed is not None:
        alone = record.notes.get("deferred_share_test") is None
        if alone and abs(1 - record.cost.nonzero_macs / max(record.cost.macs, 1) - removed) > 1e-9:
            yield f"notes.{REMOVED_NOTE}: {removed}, its cost has other multiply-accumulates"
        problem = removal_problem(asked, removed)
        if problem is not None:
            yield f"sparsity.asked: {problem}"
    elif asked is not None and abs(asked - sparsity.achieved) > 1 / max(record.cost.parameters // 2, 1):
        yield f"sparsity.achieved: {sparsity.achieved:.6f} misses the asked {asked:g}"


def _cost(record: RunRecord, cost: CostReport) -> Iterator[str]:
    counts = asdict(cost)
    for name in (
        "parameters",
        "nonzero_parameters",
        "macs",
        "nonzero_macs",
        "latency_batch",
        "training_steps",
    ):
        least = 0 if name == "training_steps" and "+" in record.spec["model"] else 1  # trained outside
        if not _whole(counts[name], least, 10**15):
            yield f"cost.{name}: want a whole number from {least}, got {counts[name]}"
    networks = 1 if record.notes.get("deferred_share_test") is None else 2
    for name in ("parameters", "macs"):
        if counts[f"nonzero_{name}"] > networks * counts[name]:
            yield f"cost.nonzero_{name}: {counts[f'nonzero_{name}']} of {counts[name]}"
    if cost.dense_training_steps != record.spec["recipe"]["steps"]:
        yield f"cost.dense_training_steps: {cost.dense_training_steps}, its recipe has {record.spec['recipe']['steps']}"
    for name in ("latency_dense_ms", "latency_pruned_ms", "latency_again_ms"):
        times: Percentiles | None = getattr(cost, name)
        if times is not None and not 0 < times.p20 <= times.p50 <= times.p80 <= LARGEST:
            yield f"cost.{name}: want 0 < p20 <= p50 <= p80, got {times.p20}, {times.p50}, {times.p80}"
    if not 0 <= cost.peak_memory_mb <= 1e8:
        yield f"cost.peak_memory_mb: {cost.peak_memory_mb} is out of range"
    if cost.latency_path is not None and not _line(cost.latency_path, 1000):
        yield "cost.latency_path: want one line"
    if cost.latency_clock is not None and not _line(cost.latency_clock, 100):
        yield "cost.latency_clock: want one line"
    if cost.latency_wall_spread is not None and not 1 <= cost.latency_wall_spread <= LARGEST:
        yield f"cost.latency_wall_spread: want p80 / p20, at least 1, got {cost.latency_wall_spread}"
    if not all(KEY.fullmatch(key) and _whole(value, 0, 10**6) for key, value in cost.latency_layouts.items()):
        yield "cost.latency_layouts: want layers by the name of a layout"
    if cost.removed_channels is not None and not 0 <= cost.removed_channels <= 1:
        yield f"cost.removed_channels: {cost.removed_channels} is no share"
    if not all(KEY.fullmatch(key) and _short(value) for key, value in cost.timed_on.items()):
        yield "cost.timed_on: want short names and one-line values"


def _mining(mining: Mining | None) -> Iterator[str]:
    if mining is None:
        return
    if mining.mined < 0 or mining.conflicting < 0:
        yield f"mining: {mining.mined} mined and {mining.conflicting} conflicting samples"
    for name, of in (("precision", mining.mined), ("recall", mining.conflicting)):
        share = getattr(mining, name)
        if (share is None) != (of == 0) or (share is not None and not 0 <= share <= 1):
            yield f"mining.{name}: {share} of {of}"
            return
    hits = [
        (share or 0.0) * of
        for share, of in ((mining.precision, mining.mined), (mining.recall, mining.conflicting))
    ]
    if abs(hits[0] - hits[1]) > 1e-6 * max(1, hits[0]) or abs(hits[0] - round(hits[0])) > 1e-6 * max(
        1, hits[0]
    ):
        yield f"mining: precision gives {hits[0]:g} hits, recall {hits[1]:g}"
