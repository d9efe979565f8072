"""Schema of an analysis: plain values, stored as JSON beside the records, from which everything is rendered."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prunebench.errors import StoreError
from prunebench.results.record import plain
from prunebench.results.store import write_atomically

SCHEMA_VERSION = 3
FOLDER = "analysis"
"""In a results folder: `<slug>.json` and `<slug>-samples.png` of every analysed track."""

Scope = Literal["all methods", "within methods", "method"]
"""Over the runs of all methods; over their ranks among those of their own method; of one method."""
WORKING_SHARE = 0.9
"""A run works if it has at least this share of its dense model's accuracy on data as in training."""


def defined(value: float) -> float | None:
    """The number, or None for nan."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; `n` values stand behind it. None where undefined."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, mean: float, low: float, high: float, n: int) -> Estimate:
        """Of numbers, of which those that are nan are undefined."""
        return cls(defined(mean), defined(low), defined(high), n)

    @property
    def half_width(self) -> float | None:
        """Of a symmetric interval; None without one."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def times(self, scale: float) -> Estimate:
        """The same in another unit."""
        mean, low, high = (None if v is None else scale * v for v in (self.mean, self.low, self.high))
        return Estimate(mean, low, high, self.n)


@dataclass(frozen=True)
class Measure:
    """A quantity of a run. `unit`: `percent` (a 0-1 share), `points` (a difference of shares) or `number`."""

    key: str
    title: str
    help: str
    unit: Literal["percent", "points", "number"]

    @property
    def scale(self) -> float:
        """Shares and their differences are shown in percent."""
        return 1.0 if self.unit == "number" else 100.0

    @property
    def decimals(self) -> int:
        """Of a shown value."""
        return 3 if self.unit == "number" else 1


@dataclass(frozen=True)
class Condition:
    """One method at one sparsity (None: the method's own choice; the dense model: 0), over its seeds.

    Args:
        achieved: share of zeros counted, mean over seeds.
        values: by measure, mean and t interval over seeds.
        changes: the same of the differences from the reference of the same seed.
        sampled, sampled_changes: bootstrap intervals over seeds and samples, of the accuracies.
        deferred: in some run the dense model answered for some samples, so that its weights are needed too.
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
    deferred: bool = False


@dataclass(frozen=True)
class AttributeRow:
    """One attribute (or class, one against the rest) in one condition: means over seeds by measure."""

    name: str
    method: str
    sparsity: float | None
    dense: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class GroupChange:
    """Accuracy of one (label, bias) group in the reference and in the models of a condition, and whether it changed.

    `change` is a difference of shares; `p_value` Welch's, `corrected_p` Holm's over the groups of the condition.
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
    """Compression-identified exemplars (CIE) of a condition, and how often models of other seeds disagree.

    `share`: samples whose most frequent label over all seeds differs from the reference's; `right_share`: of these,
    those that the sparse mode gets right. `disagreement`, `control` and their difference `added` are of
    `metrics.populations.Disagreement`, over the seeds that the condition shares with the reference.
    """

    method: str
    sparsity: float | None
    share: float | None
    right_share: float | None
    disagreement: float | None
    control: float | None
    added: Estimate


@dataclass(frozen=True)
class SamplePredictability:
    """How well the dense models' uncertainty ranks the samples that pruning changes.

    `event`: `modal exemplar`, `flip` (a seed's label changed) or `new error`; `event_rate`: its share of the samples.
    `beyond_control`: of flips and new errors, the area minus that of the control of the same seed: what the reference
    changed, or, where a track has none, the next seed's dense model.
    """

    method: str
    sparsity: float | None
    event: str
    event_rate: float | None
    area_under_curve: Estimate
    average_precision: float | None
    recall_at_5_percent: float | None
    beyond_control: Estimate | None = None


@dataclass(frozen=True)
class AttributePredictability:
    """Spearman's rho, over attributes, of a criterion of the dense model with the change of the bias.

    With a bootstrap interval over attributes; none with few of them.
    """

    method: str
    sparsity: float | None
    criterion: str
    rho: Estimate


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho of two measures over runs: one a seed; mean, t interval and two-sided p over seeds.

    `method` is given where the scope is one method; `working`: over the runs that keep most of the dense accuracy;
    `given`: the measure that is held (a partial correlation), so that what both owe to it is left out.
    """

    scope: Scope
    method: str | None
    first: str
    second: str
    working: bool
    rho: Estimate
    given: str | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class LossSplit:
    """Bias and variance of the squared loss over seeds, in a condition."""

    method: str
    sparsity: float | None
    dense: bool
    loss: float | None
    bias_squared: float | None
    variance: float | None


@dataclass(frozen=True)
class SusceptibleSample:
    """A test sample of which the dense models are least sure: what it is, and what they and pruned ones say.

    `label`, `dense` and `sparse` are classes, or yes or no of the `attribute` that they are least sure of.
    `flipped_share`: of the pruned runs, those whose label differs from that of the dense run of the same seed.
    """

    index: int
    score: float
    attribute: str | None
    label: str
    bias: str
    dense: str
    sparse: str
    flipped_share: float | None


@dataclass(frozen=True)
class TaskAnalysis:
    """Everything that the page of one task (with one model and recipe) shows.

    Args:
        outputs: names of the classes or attributes.
        accuracy_key: accuracy on data distributed as in training.
        reference: what changes are measured from: `dense-finetuned`, or `dense` where the track has no run of it.
        left_out: runs that could not be analysed, and why.
        code: package version and commit that computed this.
    """

    schema_version: int
    slug: str
    task: str
    title: str
    source: str
    model: str
    recipe: dict[str, Any]
    multi_label: bool
    outputs: tuple[str, ...]
    identities: tuple[str, ...]
    bias_name: str
    accuracy_key: str
    bias_key: str
    reference: str
    seeds: tuple[int, ...]
    samples: int
    runs: int
    left_out: tuple[str, ...]
    measures: tuple[Measure, ...]
    attribute_measures: tuple[Measure, ...]
    conditions: tuple[Condition, ...]
    attributes: tuple[AttributeRow, ...]
    groups: tuple[GroupChange, ...]
    exemplars: tuple[ExemplarRow, ...]
    splits: tuple[LossSplit, ...]
    correlations: tuple[Correlation, ...]
    sample_predictability: tuple[SamplePredictability, ...]
    attribute_predictability: tuple[AttributePredictability, ...]
    susceptible: tuple[SusceptibleSample, ...]
    code: dict[str, str | bool | None]

    @property
    def methods(self) -> list[str]:
        """The methods that prune, each once, by name: those with nothing but unpruned runs are references."""
        return sorted({row.method for row in self.conditions if not row.dense and row.sparsity != 0})

    @property
    def reference_rows(self) -> list[Condition]:
        """The condition that the others are compared with; none where nothing was run."""
        return [row for row in self.conditions if row.method == self.reference]

    @property
    def native(self) -> list[Condition]:
        """The pruned conditions of which the method chose the sparsity."""
        return [row for row in self.conditions if not row.dense and row.sparsity is None]

    @property
    def sparsities(self) -> list[float]:
        """The sparsities that were asked for of methods that prune."""
        methods = self.methods
        return sorted(
            {row.sparsity for row in self.conditions if row.method in methods and row.sparsity is not None}
        )

    @property
    def grid_name(self) -> str:
        """The file, beside the JSON, that shows the susceptible samples."""
        return f"{self.slug}-samples.png"

    @property
    def output_noun(self) -> str:
        """What its outputs are."""
        return "attributes" if self.multi_label else "classes"


# Storage


def write_analysis(analysis: TaskAnalysis, folder: Path) -> Path:
    """Write `<slug>.json` into a folder that exists; returns its path."""
    path = folder / f"{analysis.slug}.json"
    write_atomically(path, to_json(analysis).encode())
    return path


def to_json(analysis: TaskAnalysis) -> str:
    """Its text at rest, a row a line; undefined numbers are null."""
    values = plain(analysis)
    return "{\n" + ",\n".join(f'"{key}": {_field(values[key])}' for key in sorted(values)) + "\n}\n"


def _field(value: Any) -> str:
    """One line, or a line a row of a list of rows."""
    compact = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"))
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(compact, value)) + "\n]"
    return compact(value)


def read_analysis(path: Path) -> TaskAnalysis:
    """Read and validate one analysis. Raises StoreError with path and reason."""
    from pydantic import ValidationError

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.get("schema_version") if isinstance(values, dict) else None
        if found != SCHEMA_VERSION:
            raise StoreError(f"{path}: analysis schema {found}, want {SCHEMA_VERSION}: analyze again")
        analysis: TaskAnalysis = _adapter().validate_json(json.dumps(values), strict=True)
        if analysis.slug != path.stem or not re.fullmatch(r"[a-z0-9-]+", analysis.slug):
            raise StoreError(f"{path}: is of {analysis.slug!r}: files are named by it; analyze again")
        return analysis
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


def stored_analyses(results: Path) -> tuple[list[TaskAnalysis], dict[str, Path]]:
    """The analyses of a results folder, by slug, and the images of their samples that are there."""
    found = [read_analysis(path) for path in sorted((results / FOLDER).glob("*.json"))]
    grids = {analysis.slug: results / FOLDER / analysis.grid_name for analysis in found}
    return found, {slug: path for slug, path in grids.items() if path.is_file()}
