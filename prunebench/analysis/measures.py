"""Measures of the runs of one track: stored outputs and ground truth in, accuracy, bias, uncertainty and more out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from prunebench.analysis.values import Measure
from prunebench.errors import PruneBenchError, StoreError
from prunebench.inference.cascade import TEST_NOTE
from prunebench.metrics.arrays import as_finite
from prunebench.metrics.bias import bias_amplification
from prunebench.metrics.calibration import expected_calibration_error, rare_value_underprediction
from prunebench.metrics.classes import one_hot, one_vs_rest
from prunebench.metrics.registry import metric_or_plain, metrics
from prunebench.metrics.uncertainty import uncertain_share
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.results.tracks import is_dense, variant_labels, variant_of
from prunebench.runner.ground_truth import GroundTruth
from prunebench.runner.rescore import NOT_STORED, has_logits, read_logits
from prunebench.tasks import Task, resolve_task


@dataclass(frozen=True)
class StoredRun:
    """One finished run: what it is, and its logits `[N, C]` float32 of val and test.

    `deferred`: the dense model answered for some test samples, so its weights are needed too, whatever was pruned.
    """

    method: str
    sparsity: float | None
    dense: bool
    achieved: float
    seed: int
    logits: dict[str, Tensor]
    deferred: bool = False


@dataclass(frozen=True)
class Outputs:
    """What an analysis starts from. `truths` by seed; the test split is one for all seeds."""

    slug: str
    task: Task
    spec: dict[str, object]
    runs: tuple[StoredRun, ...]
    truths: dict[int, GroundTruth]
    left_out: tuple[str, ...]

    @property
    def truth(self) -> GroundTruth:
        """The labels of the first seed: those of its test split are the same for all."""
        return self.truths[min(self.truths)]

    @property
    def test_y(self) -> Tensor:
        """Labels of the test split."""
        return self.truth.y["test"]

    @property
    def conditions(self) -> dict[tuple[str, float | None], list[StoredRun]]:
        """Runs by method and sparsity, dense first, by seed."""
        found: dict[tuple[str, float | None], list[StoredRun]] = {}
        for run in sorted(
            self.runs, key=lambda run: (not run.dense, run.method, *_last_if_native(run.sparsity), run.seed)
        ):
            found.setdefault((run.method, run.sparsity), []).append(run)
        return found


def _last_if_native(sparsity: float | None) -> tuple[bool, float]:
    """Where a sparsity stands in a table: one that the method chose comes last."""
    return sparsity is None, sparsity or 0.0


def read_outputs(slug: str, records: Sequence[RunRecord], store: Store, data_root: Path | None) -> Outputs:
    """Load one track. Raises StoreError where no dense run has its logits, DataError where the data are missing.

    Runs that failed, without logits, with logits that do not match their hash, or of other data are left out with
    the reason.
    """
    task = resolve_task(records[0].spec["task"], data_root)
    labels = variant_labels(records)
    truths: dict[int, GroundTruth] = {}
    runs: list[StoredRun] = []
    left_out: list[str] = []
    for record in sorted(records, key=lambda record: (record.spec["seed"], record.run_id)):
        seed = record.spec["seed"]
        try:
            if record.status != "ok":
                raise StoreError(f"{record.status}: {record.reason or 'no reason recorded'}")
            if not has_logits(store, record):
                raise StoreError(NOT_STORED)
            if seed not in truths:
                truth = GroundTruth.of(task, task.splits(data_root, seed))
                if any(other.test_hash != truth.test_hash for other in truths.values()):
                    raise StoreError("its seed has a test split of its own: samples cannot be compared")
                truths[seed] = truth
            logits = read_logits(record, store, truths[seed])
            if not all(values.isfinite().all() for values in logits.values()):
                raise StoreError("its logits are not finite")
            if is_dense(record) and any(run.dense and run.seed == seed for run in runs):
                raise StoreError("there is another dense run of this seed")
        except PruneBenchError as error:
            left_out.append(f"{record.run_spec.label}: {error}")
            continue
        dense, asked = is_dense(record), record.spec["sparsity"]
        assert record.sparsity is not None
        name = "dense" if dense else labels[variant_of(record)]
        deferred = bool(record.notes.get(TEST_NOTE))
        runs.append(
            StoredRun(name, 0.0 if dense else asked, dense, record.sparsity.achieved, seed, logits, deferred)
        )
    if not any(run.dense for run in runs):
        why = f"; {left_out[0]}" if left_out else ""
        raise StoreError(f"{slug}: no dense run with stored logits to compare with{why}")
    return Outputs(slug, task, records[0].spec, tuple(runs), truths, tuple(left_out))


# Measures

OWN_MEASURES = (
    Measure(
        "in_distribution", "In-distribution accuracy",
        "Share of right validation images, which carry the training bias: the accuracy that pruning papers report "
        "(calibrated methods fit their thresholds on them)",
        "percent",
    ),
    Measure(
        "amplification_defined", "Amplification defined",
        "Share of the outputs (and identities) whose bias amplification is defined: nothing can be said of one that is "
        "never predicted. Changes are taken over those that are defined in both models",
        "percent",
    ),
    Measure("recall", "Recall", "Share of the class's images that are right", "percent"),
    Measure("accuracy", "Accuracy", "Share of right outputs", "percent"),
)  # fmt: skip
"""Those that are no metrics of a record."""
DEFINED = {"bias_amplification": "amplification_defined"}
"""Measures that are means over entries which may be undefined, and the measure that says how many are not."""
OF_OUTPUTS = ("bias_amplification", "uncertain_share", "calibration_error")
"""Measures of a run of classes that are means over its outputs, each class against the rest."""
CLASS_KEYS = (
    "in_distribution", "unbiased", "conflicting", "worst_group", "bias_gap", "bias_amplification",
    "amplification_defined", "uncertain_share", "entropy", "logit_correlation", "calibration_error",
)  # fmt: skip
ATTRIBUTE_KEYS = (
    "attribute_accuracy", "unbiased", "worst_group", "bias_gap", "bias_amplification", "amplification_defined",
    "calibrated_bias_amplification", "uncertain_share", "entropy", "logit_correlation", "interdependence",
    "calibration_error", "underprediction",
)  # fmt: skip
CLASS_OUTPUT_KEYS = (
    "recall",
    "bias_amplification",
    "uncertain_share",
    "calibration_error",
    "underprediction",
)
ATTRIBUTE_OUTPUT_KEYS = (
    "accuracy", "bias_amplification", "calibrated_bias_amplification", "uncertain_share", "interdependence",
    "calibration_error", "underprediction",
)  # fmt: skip


def task_measures(*, multi_label: bool) -> tuple[Measure, ...]:
    """The measures of a run; metrics of the leaderboard that are not among those named above come last."""
    keys = ATTRIBUTE_KEYS if multi_label else CLASS_KEYS
    further = (m.name for m in metrics() if m.board and (multi_label or not m.of_attributes))
    return tuple(map(measure_named, dict.fromkeys((*keys, *further))))


def output_measures(*, multi_label: bool) -> tuple[Measure, ...]:
    """The measures of a single class or attribute."""
    return tuple(map(measure_named, ATTRIBUTE_OUTPUT_KEYS if multi_label else CLASS_OUTPUT_KEYS))


def measure_named(key: str) -> Measure:
    """A measure by key: one of the analysis' own, or a metric as its registry words it."""
    own = {measure.key: measure for measure in OWN_MEASURES}
    if key in own:
        return own[key]
    found = metric_or_plain(key)
    unit = {"%": "percent", "points": "points"}.get(found.unit, "number")
    return Measure(key, found.title, found.help, unit)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MeasuredRun:
    """A run's numbers: `values` by measure, `outputs` by measure and class or attribute, float64 `[K]`.

    `entries` by measure: what a mean in `values` is taken over where it is defined, float64 `[I, K]` or `[K]`. Another
    run may have others defined: differences are taken entry by entry.

    `predicted`: class indices int64 `[N]`, or for attributes 0/1 int64 `[N K]`, sample by sample. `right` bool `[N]`:
    whether the group label is right.
    """

    run: StoredRun
    values: dict[str, float]
    outputs: dict[str, Tensor]
    predicted: Tensor
    right: Tensor
    entries: dict[str, Tensor] = field(default_factory=dict)

    def change_from(self, other: MeasuredRun, key: str) -> float:
        """The measure minus that of another run; of means over entries, over those that both have."""
        if key in self.entries:
            return float((self.entries[key] - other.entries[key]).nanmean())
        return self.values[key] - other.values[key]


def measure_run(run: StoredRun, truth: GroundTruth) -> MeasuredRun:
    """Measure one run on the test split; thresholds and in-distribution accuracy come from validation."""
    logits = as_finite("test logits", run.logits["test"], ndim=2).float()
    right = truth.task.group_prediction(logits) == truth.label("test")
    if truth.task.attributes is not None:
        values, outputs, entries = _measure_attributes(logits, run.logits["val"], truth)
        predicted = (logits > 0).long().flatten()
    else:
        values, outputs, entries = _measure_classes(logits, run.logits["val"], truth)
        predicted = logits.argmax(1)
    for key, where in DEFINED.items():
        values[where] = float((~entries[key].isnan()).double().mean())
    return MeasuredRun(run, values, outputs, predicted, right, entries)


Numbers = tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]
"""Values, outputs and entries of `MeasuredRun`."""


def _measure_classes(logits: Tensor, val_logits: Tensor, truth: GroundTruth) -> Numbers:
    """Classes are judged one against the rest: class c's logit is z_c - log sum of exp of the others."""
    _, summary = truth.summary(logits, "test", val_logits)
    classes, y = logits.shape[1], truth.y["test"]
    binary, label = one_vs_rest(logits), one_hot(y, classes)
    prediction = one_hot(logits.argmax(1), classes)
    outputs = {
        "recall": (prediction * label).sum(0).double() / label.sum(0),
        "bias_amplification": class_amplification(prediction, truth),
        "uncertain_share": uncertain_share(binary),
        "calibration_error": expected_calibration_error(binary, label),
        "underprediction": rare_value_underprediction(prediction, label, one_hot(truth.y["train"], classes)),
    }
    values = {m.key: summary[m.key] for m in task_measures(multi_label=False) if m.key in summary}
    values |= {key: float(outputs[key].nanmean()) for key in OF_OUTPUTS}
    values["in_distribution"] = float((val_logits.argmax(1) == truth.y["val"]).double().mean())
    return values, outputs, {"bias_amplification": outputs["bias_amplification"]}


def class_amplification(prediction: Tensor, truth: GroundTruth) -> Tensor:
    """Bias amplification `[C]` of every class against its own identity: the biases that are aligned with it.

    prediction: 0/1 `[N, C]`, one-hot. nan where no bias, or every one, is aligned with the class.
    """
    label, train_label = (one_hot(truth.y[name], prediction.shape[1]) for name in ("test", "train"))
    identity, train_identity = (own_identity(truth, name) for name in ("test", "train"))
    return bias_amplification(
        prediction, label, identity, train_label=train_label, train_identity=train_identity
    ).value


def own_identity(truth: GroundTruth, name: str) -> Tensor:
    """Whether each sample's bias is aligned with each class: 0/1 `[N, C]`."""
    return truth.aligned_pair.T[truth.bias[name]].long()


def _measure_attributes(logits: Tensor, val_logits: Tensor, truth: GroundTruth) -> Numbers:
    table = truth.attribute_table(logits, "test", val_logits)
    _, summary = truth.summary(logits, "test", val_logits, table)
    outputs = {
        "accuracy": table.accuracy,
        "bias_amplification": table.amplification.nanmean(0),
        "calibrated_bias_amplification": table.calibrated_amplification.nanmean(0),
        "uncertain_share": table.uncertain_share,
        "interdependence": table.interdependence,
        "calibration_error": table.calibration_error,
        "underprediction": table.underprediction,
    }
    values = {m.key: summary[m.key] for m in task_measures(multi_label=True) if m.key in summary}
    entries = {
        "bias_amplification": table.amplification,
        "calibrated_bias_amplification": table.calibrated_amplification,
    }
    return values, outputs, entries
