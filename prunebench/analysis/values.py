"""The numbers of an analysis: plain values that are stored as JSON beside the records and rendered from there."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prunebench.errors import StoreError
from prunebench.results.record import without_nan
from prunebench.results.store import write_atomically

ALL_METHODS, WITHIN = "all methods", "within methods"
"""In a method's place: all runs, and their ranks among the runs of their own method."""
WORKING = " (working)"
"""Marks a measure of the runs that keep most of the dense accuracy."""

SCHEMA_VERSION = 1

Verdict = Literal["for", "against", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; `n` values stand behind it. None where undefined."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Measure:
    """What a curve shows. `unit`: `percent` (a 0-1 share), `points` (a difference of shares) or `number`."""

    key: str
    title: str
    help: str
    unit: Literal["percent", "points", "number"]


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity (None: the method's own choice; the dense model: 0), over its seeds.

    `values` by measure: mean and t interval over seeds. `changes`: the same of the differences from the dense model
    of the same seed. `sampled` and `sampled_changes`: bootstrap intervals over seeds and samples, of the accuracies.
    """

    method: str
    sparsity: float | None
    dense: bool
    achieved: float
    seeds: tuple[int, ...]
    values: dict[str, Estimate]
    changes: dict[str, Estimate] = field(default_factory=dict)
    sampled: dict[str, Estimate] = field(default_factory=dict)
    sampled_changes: dict[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class AttributeRow:
    """One attribute (or class, one against the rest) in one cell: means over seeds by measure."""

    name: str
    method: str
    sparsity: float | None
    dense: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class GroupChange:
    """Accuracy of one (label, bias) group in the dense models and in those of a cell, and whether it changed.

    `change` is a difference of shares; `p_value` Welch's, `corrected_p` Holm's over the groups of the cell.
    """

    label: str
    bias: str
    aligned: bool
    samples: int
    method: str
    sparsity: float | None
    dense_accuracy: float | None
    accuracy: float | None
    change: float | None
    p_value: float | None
    corrected_p: float | None


@dataclass(frozen=True)
class ExemplarRow:
    """Compression-identified exemplars of a cell: see `metrics.flips.Exemplars`.

    `share` compares all dense with all sparse seeds; `matched_share` with `taxicab`, and `control_share` with
    `control_taxicab`, populations of equal size, sparse and dense. `right_share`: of the exemplars, those that the
    sparse mode gets right.
    """

    method: str
    sparsity: float | None
    share: float | None
    matched_share: float | None
    control_share: float | None
    taxicab: float | None
    control_taxicab: float | None
    right_share: float | None
    population: int


@dataclass(frozen=True)
class SampleForetelling:
    """How well the dense models' uncertainty ranks the samples that pruning changes.

    `event`: `modal exemplar`, `flip` (a seed's label changed) or `new error`. `happened`: share of the samples.
    """

    method: str
    sparsity: float | None
    event: str
    happened: float | None
    area_under_curve: Estimate
    average_precision: float | None
    recall_at_5_percent: float | None


@dataclass(frozen=True)
class AttributeForetelling:
    """Spearman's rank correlation, over attributes, of a criterion of the dense model with the change of the bias.

    With a bootstrap interval over attributes; none with few of them.
    """

    method: str
    sparsity: float | None
    criterion: str
    rho: Estimate


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two measures over the runs of a method.

    None: over the runs of all methods; `within methods`: over their ranks among the runs of the same method. One rho
    a seed; mean and t interval over seeds.
    """

    method: str | None
    first: str
    second: str
    rho: Estimate


@dataclass(frozen=True)
class LossSplit:
    """Bias and variance of the squared loss over seeds, in a cell."""

    method: str
    sparsity: float | None
    dense: bool
    loss: float | None
    bias_squared: float | None
    variance: float | None


@dataclass(frozen=True)
class Evidence:
    """One line of a claim: what was looked at, the numbers in words, and what they say."""

    what: str
    numbers: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A claim of Iofinova et al. (2023), what the data say of it, and every line of evidence."""

    key: str
    statement: str
    answer: str
    evidence: tuple[Evidence, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(line.verdict == verdict for line in self.evidence)


@dataclass(frozen=True)
class SusceptibleSample:
    """A test sample of which the dense models are least sure: what it is, and what they and pruned ones say."""

    index: int
    score: float
    label: str
    bias: str
    dense: str
    sparse: str
    flipped_share: float | None
    """Share of the pruned runs whose label differs from that of the dense run of the same seed."""


@dataclass(frozen=True)
class TaskAnalysis:
    """Everything that the page of one task (with one model and recipe) shows."""

    schema_version: int
    slug: str
    task: str
    title: str
    source: str
    model: str
    recipe: dict[str, Any]
    multi_label: bool
    outputs: tuple[str, ...]
    """Names of the classes or attributes."""
    identities: tuple[str, ...]
    bias_name: str
    accuracy_key: str
    """The measure that claim (a) takes as accuracy: on data distributed as in training."""
    bias_key: str
    seeds: tuple[int, ...]
    samples: int
    runs: int
    left_out: tuple[str, ...]
    """Runs that could not be analysed, and why."""
    measures: tuple[Measure, ...]
    attribute_measures: tuple[Measure, ...]
    cells: tuple[Cell, ...]
    attributes: tuple[AttributeRow, ...]
    groups: tuple[GroupChange, ...]
    exemplars: tuple[ExemplarRow, ...]
    splits: tuple[LossSplit, ...]
    correlations: tuple[Correlation, ...]
    sample_foretelling: tuple[SampleForetelling, ...]
    attribute_foretelling: tuple[AttributeForetelling, ...]
    susceptible: tuple[SusceptibleSample, ...]
    claims: tuple[Claim, ...]
    code: dict[str, str | bool | None]
    """Package version and commit that computed this."""

    @property
    def grid_name(self) -> str:
        """The file, beside the JSON, that shows the susceptible samples."""
        return f"{self.slug}-samples.png"


def write_analysis(analysis: TaskAnalysis, folder: Path) -> Path:
    """Write `<slug>.json` into a folder that exists; returns its path."""
    path = folder / f"{analysis.slug}.json"
    write_atomically(path, to_json(analysis).encode())
    return path


def to_json(analysis: TaskAnalysis) -> str:
    """Its text at rest; undefined numbers are null."""
    return json.dumps(without_nan(dataclasses.asdict(analysis)), sort_keys=True, indent=1) + "\n"


def read_analysis(path: Path) -> TaskAnalysis:
    """Read and validate one analysis. Raises StoreError with the path and the reason."""
    from pydantic import ValidationError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("schema_version") if isinstance(values, dict) else None
        if found != SCHEMA_VERSION:
            raise StoreError(f"{path}: analysis schema {found}, want {SCHEMA_VERSION}: analyze again")
        return _adapter().validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: invalid analysis: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}; analyze again") from error


@functools.cache
def _adapter() -> Any:
    from pydantic import ConfigDict, TypeAdapter, with_config

    return TypeAdapter(with_config(ConfigDict(extra="forbid"))(TaskAnalysis))
