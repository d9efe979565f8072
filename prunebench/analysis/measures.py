"""Measures of one run, from its logits: accuracy, bias, uncertainty, dependence and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from prunebench.analysis.load import StoredRun
from prunebench.analysis.values import Measure
from prunebench.metrics.arrays import as_finite
from prunebench.metrics.bias import bias_amplification
from prunebench.metrics.calibration import expected_calibration_error, rare_value_underprediction
from prunebench.metrics.classes import one_hot, one_vs_rest
from prunebench.metrics.uncertainty import uncertain_share
from prunebench.runner.ground_truth import GroundTruth

ACCURACY = {
    "in_distribution": Measure(
        "in_distribution",
        "In-distribution accuracy",
        "Share of right validation images, which carry the training bias: the accuracy that pruning papers report "
        "(calibrated methods fit their thresholds on them)",
        "percent",
    ),
    "attribute_accuracy": Measure(
        "attribute_accuracy",
        "Attribute accuracy",
        "Share of right test outputs, mean over attributes; the test split is distributed as training",
        "percent",
    ),
    "unbiased": Measure(
        "unbiased", "Unbiased accuracy", "Mean accuracy over (label, bias) groups", "percent"
    ),
    "conflicting": Measure(
        "conflicting", "Bias-conflicting accuracy", "Mean accuracy over bias-conflicting groups", "percent"
    ),
    "worst_group": Measure("worst_group", "Worst-group accuracy", "Lowest accuracy of a group", "percent"),
}
BIAS = {
    "bias_gap": Measure(
        "bias_gap",
        "Bias gap",
        "Aligned minus conflicting accuracy: what it costs an image to break the pattern of the training set",
        "points",
    ),
    "bias_amplification": Measure(
        "bias_amplification",
        "Bias amplification",
        "Of the images predicted to have an attribute, the share in the identity group that has it more often in "
        "training, minus that share among images that have it; mean over attributes. Above 0: amplified",
        "points",
    ),
    "amplification_defined": Measure(
        "amplification_defined",
        "Amplification defined",
        "Share of the outputs (and identities) whose bias amplification is defined: nothing can be said of one that is "
        "never predicted. Changes are taken over those that are defined in both models",
        "percent",
    ),
    "calibrated_bias_amplification": Measure(
        "calibrated_bias_amplification",
        "Threshold-calibrated bias amplification",
        "The same with thresholds that predict as many positives on validation as there are",
        "points",
    ),
}
DEFINED = {"bias_amplification": "amplification_defined"}
"""Measures that are means over entries which may be undefined, and the measure that says how many are not."""
UNCERTAINTY = {
    "uncertain_share": Measure(
        "uncertain_share",
        "Uncertain predictions",
        "Share of probabilities strictly between 0.1 and 0.9, mean over outputs",
        "percent",
    ),
    "entropy": Measure("entropy", "Entropy", "Of the predicted distribution, 1 for uniform", "number"),
    "logit_correlation": Measure(
        "logit_correlation", "Logit correlation", "Mean |Pearson r| between the outputs' logits", "number"
    ),
    "interdependence": Measure(
        "interdependence",
        "Interdependence",
        "R2 of predicting one attribute's prediction from the others', mean over attributes",
        "number",
    ),
    "calibration_error": Measure(
        "calibration_error",
        "Calibration error",
        "Expected calibration error in 10 bins of the positive class, mean over outputs",
        "points",
    ),
    "underprediction": Measure(
        "underprediction",
        "Rare values predicted",
        "How often the rarer value is predicted over how often it is true, mean over outputs; below 1: too rarely",
        "number",
    ),
}
CLASS_MEASURES = (
    *(ACCURACY[key] for key in ("in_distribution", "unbiased", "conflicting", "worst_group")),
    *(BIAS[key] for key in ("bias_gap", "bias_amplification", "amplification_defined")),
    *(UNCERTAINTY[key] for key in ("uncertain_share", "entropy", "logit_correlation", "calibration_error")),
)
ATTRIBUTE_TASK_MEASURES = (
    *(ACCURACY[key] for key in ("attribute_accuracy", "unbiased", "worst_group")),
    *BIAS.values(),
    *UNCERTAINTY.values(),
)
RECALL = Measure("recall", "Recall", "Share of the class's images that are right", "percent")
OUTPUT_ACCURACY = Measure("accuracy", "Accuracy", "Share of right outputs", "percent")
CLASS_ROW_MEASURES = (
    RECALL,
    BIAS["bias_amplification"],
    UNCERTAINTY["uncertain_share"],
    UNCERTAINTY["calibration_error"],
    UNCERTAINTY["underprediction"],
)
ATTRIBUTE_ROW_MEASURES = (
    OUTPUT_ACCURACY,
    BIAS["bias_amplification"],
    BIAS["calibrated_bias_amplification"],
    *(
        UNCERTAINTY[key]
        for key in ("uncertain_share", "interdependence", "calibration_error", "underprediction")
    ),
)


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
    values = {key: summary[key] for key in ("unbiased", "conflicting", "worst_group", "bias_gap")}
    values |= {key: summary[key] for key in ("entropy", "logit_correlation")}
    values["in_distribution"] = float((val_logits.argmax(1) == truth.y["val"]).double().mean())
    for key in ("bias_amplification", "uncertain_share", "calibration_error"):
        values[key] = float(outputs[key].nanmean())
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
    values = {
        measure.key: summary[measure.key]
        for measure in ATTRIBUTE_TASK_MEASURES
        if measure.key not in DEFINED.values()
    }
    entries = {
        "bias_amplification": table.amplification,
        "calibrated_bias_amplification": table.calibrated_amplification,
    }
    return values, outputs, entries
