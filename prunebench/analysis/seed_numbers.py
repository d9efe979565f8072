"""Numbers of stored outputs, by seed, that the preregistered hypotheses need and that no record holds.

For (c), how well a dense model's uncertainty ranks the outputs whose label another model changed: of the named methods,
of their controls, and of another seed's dense model. For (b) on tasks of attributes, both measures of each attribute.
Only seeds that count are looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunebench.analysis.measures import Outputs, StoredRun, measure_run
from prunebench.analysis.preregistered import FrozenHypotheses, frozen_hypotheses
from prunebench.errors import StoreError
from prunebench.metrics.predictability import evaluate_predictability, margin_uncertainty
from prunebench.results.record import plain
from prunebench.results.store import write_atomically

FOLDER = "by-seed"
"""Within the folder of analyses."""


@dataclass(frozen=True)
class SeedRow:
    """One run: the area under the curve of the labels that it changed; of attributes, two measures of each, `[K]`."""

    method: str
    sparsity: float | None
    seed: int
    flip_area: float | None
    uncertain_share: tuple[float | None, ...] = ()
    bias_amplification: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class SeedNumbers:
    """Of one track. `other_seeds`: by seed, the area of the labels that the next seed's dense model changes.

    After the last seed comes the first, so that each dense model is another seed once. A mean over all others would
    lean on the same few models in every seed: the differences would rise and fall together, and a t-test of them
    supported a false hypothesis twice as often as it should.
    """

    slug: str
    rows: tuple[SeedRow, ...]
    other_seeds: dict[int, float | None]


def seed_numbers(outputs: Outputs, rules: FrozenHypotheses | None = None) -> SeedNumbers:
    """The numbers of one track's runs of seeds that count; a run whose seed has no dense model has no area."""
    rules = rules or frozen_hypotheses()
    runs = [run for run in outputs.runs if rules.counts(outputs.task.name, run.seed)]
    dense = {run.seed: run for run in runs if run.dense}
    unsure = {seed: _uncertainty(run, outputs) for seed, run in dense.items()}
    labels = {seed: _predicted(run, outputs) for seed, run in dense.items()}
    areas_of = {(method, rules.prediction.sparsity) for method in rules.prediction.methods}
    areas_of |= {(name, 0.0) for name in rules.prediction.controls}
    rows = []
    for run in sorted(runs, key=lambda run: (run.method, run.sparsity or 0.0, run.seed)):
        area = None
        uncertain: tuple[float | None, ...] = ()
        bias: tuple[float | None, ...] = ()
        if (run.method, run.sparsity) in areas_of and run.seed in dense:
            area = _area(unsure[run.seed], _predicted(run, outputs) != labels[run.seed])
        if outputs.task.attributes is not None and _associated(run, rules):
            measured = measure_run(run, outputs.truths[run.seed]).outputs
            uncertain, bias = (_numbers(measured[name]) for name in rules.association.attributes)
        if area is not None or uncertain:
            rows.append(SeedRow(run.method, run.sparsity, run.seed, area, uncertain, bias))
    seeds = sorted(labels)
    others = {
        seed: _area(unsure[seed], labels[other] != labels[seed])
        for seed, other in zip(seeds, seeds[1:] + seeds[:1])
        if other != seed
    }
    return SeedNumbers(outputs.slug, tuple(rows), others)


def _associated(run: StoredRun, rules: FrozenHypotheses) -> bool:
    return run.method in rules.association.methods and run.sparsity in rules.association.sparsities


def _uncertainty(run: StoredRun, outputs: Outputs) -> Tensor:
    """By output: `[N]`, or `[N K]` of attributes."""
    logits = run.logits["test"].float()
    return margin_uncertainty(logits if outputs.task.attributes is None else logits.flatten())


def _predicted(run: StoredRun, outputs: Outputs) -> Tensor:
    logits = run.logits["test"]
    return logits.argmax(1) if outputs.task.attributes is None else (logits > 0).flatten()


def _area(score: Tensor, changed: Tensor) -> float | None:
    """None where no label changed, or all did."""
    found = evaluate_predictability(score, changed).area_under_curve
    return found if math.isfinite(found) else None


def _numbers(values: Tensor) -> tuple[float | None, ...]:
    return tuple(value if math.isfinite(value) else None for value in values.to(torch.float64).tolist())


# Storage


def write_seed_numbers(numbers: SeedNumbers, folder: Path) -> Path:
    """Write `by-seed/<slug>.json` into the folder of analyses, a row a line; returns its path. Raises StoreError."""
    values = plain(numbers)
    rows = ",\n".join(json.dumps(row, sort_keys=True) for row in values.pop("rows"))
    head = json.dumps(values, sort_keys=True)[:-1]
    path = folder / FOLDER / f"{numbers.slug}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path.parent}: {error.strerror or error}") from error
    write_atomically(path, f'{head}, "rows": [\n{rows}\n]}}\n'.encode())
    return path


def read_seed_numbers(folders: Sequence[Path]) -> dict[str, SeedNumbers]:
    """By slug, what was written into folders of analyses. Raises StoreError with path and reason."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    adapter: Any = TypeAdapter(with_config(ConfigDict(extra="forbid"))(SeedNumbers))
    found = {}
    for path in sorted(path for folder in folders for path in (folder / FOLDER).glob("*.json")):
        try:
            numbers = adapter.validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise StoreError(f"{path}: {where}: {first['msg']}; analyze again") from error
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error}; analyze again") from error
        found[numbers.slug] = numbers
    return found
