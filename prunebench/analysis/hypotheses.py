"""Tests of the three hypotheses of Iofinova et al. (2023): a pure function of an analysis' stored rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunebench.analysis.values import (
    BoundTest,
    Estimate,
    Evidence,
    Hypothesis,
    Relation,
    TaskAnalysis,
    Verdict,
)

HIGH_SPARSITY = 0.9
"""From here on a tenth of the weights or fewer are left."""
DENSITY_BOUND = HIGH_SPARSITY - 1e-3
ACCURACY_TOLERANCE = 0.01
BIAS_TOLERANCE = {"bias_gap": 0.02, "bias_amplification": 0.01}
"""Rises of the bias up to this are not substantial."""
USEFUL_AREA = 0.7
"""Area under the ROC curve from which a ranking counts as a prediction."""
CRITERIA = ("uncertainty", "identity_imbalance")
"""Dense criteria that hypothesis (c) rests on: without the dense bias, from which the change of the bias is measured,
so that noise in it alone gives a negative correlation."""


def evaluate_hypotheses(analysis: TaskAnalysis) -> tuple[Hypothesis, ...]:
    """All three with their evidence, from the conditions, correlations and predictability of an analysis."""
    return (
        Hypothesis("a", tuple(_harmless_pruning(analysis))),
        Hypothesis("b", tuple(_correlations(analysis))),
        Hypothesis("c", (*_changed_samples(analysis), *_biased_outputs(analysis))),
    )


def dependence_key(multi_label: bool) -> str:
    """The measure of dependence between outputs that hypothesis (b) speaks of."""
    return "interdependence" if multi_label else "logit_correlation"


def correlated_pairs(analysis: TaskAnalysis) -> tuple[tuple[str, str], ...]:
    """The pairs of measures that hypothesis (b) expects to rise together."""
    bias, dependence = analysis.bias_key, dependence_key(analysis.multi_label)
    return (
        ("sparsity", "uncertain_share"),
        ("sparsity", dependence),
        ("uncertain_share", bias),
        (dependence, bias),
    )


def _harmless_pruning(analysis: TaskAnalysis) -> Iterator[Evidence]:
    """(a): with a tenth of the weights or fewer, accuracy and bias can stay.

    A condition that defers to the dense model is left out: no fewer weights are left than that has.
    """
    accuracy, bias = analysis.accuracy_key, analysis.bias_key
    for row in analysis.conditions:
        lost, risen = row.changes.get(accuracy), row.changes.get(bias)
        if row.dense or row.deferred or row.achieved < DENSITY_BOUND or lost is None or risen is None:
            continue
        tests = (
            bound_test(accuracy, lost, "at least", -ACCURACY_TOLERANCE),
            bound_test(bias, risen, "at most", BIAS_TOLERANCE[bias]),
        )
        place = ("condition", row.method, row.sparsity, row.achieved)
        yield Evidence("harmless pruning", (accuracy, bias), *place, False, tests, together(tests))  # type: ignore[arg-type]


def _correlations(analysis: TaskAnalysis) -> Iterator[Evidence]:
    """(b): uncertainty and dependence rise with sparsity, and the bias with them; the latter in working runs too."""
    pairs = correlated_pairs(analysis)
    for row in analysis.correlations:
        pair = (row.first, row.second)
        if pair in pairs and row.rho.mean is not None and not (row.working and row.first == "sparsity"):
            test = bound_test("rho", row.rho, "above", 0.0)
            place = (row.scope, row.method, None, None, row.working)
            yield Evidence("rank correlation", pair, *place, (test,), test.verdict)


def _changed_samples(analysis: TaskAnalysis) -> Iterator[Evidence]:
    """(c): the dense models' uncertainty tells which samples pruning will change."""
    for row in analysis.sample_predictability:
        if row.area_under_curve.mean is not None:
            test = bound_test("area_under_curve", row.area_under_curve, "at least", USEFUL_AREA)
            place = (row.method, row.sparsity, None, False)
            yield Evidence("changed samples", (row.event,), "condition", *place, (test,), test.verdict)


def _biased_outputs(analysis: TaskAnalysis) -> Iterator[Evidence]:
    """(c): criteria of the dense models tell which outputs will gain bias."""
    for row in analysis.attribute_predictability:
        if row.criterion in CRITERIA and row.rho.mean is not None:
            test = bound_test("rho", row.rho, "above", 0.0)
            place = (row.method, row.sparsity, None, False)
            yield Evidence("biased outputs", (row.criterion,), "condition", *place, (test,), test.verdict)


def bound_test(quantity: str, value: Estimate, relation: Relation, threshold: float) -> BoundTest:
    """Whether a whole interval is at least, at most or above a threshold; undecided without an interval.

    `above` is strict on either side: an interval that ends at the threshold decides nothing.
    """
    verdict: Verdict = "undecided"
    if value.low is not None and value.high is not None:
        if relation == "at most":
            supported, contradicted = value.high <= threshold, value.low > threshold
        else:
            supported = value.low > threshold or (relation == "at least" and value.low == threshold)
            contradicted = value.high < threshold
        verdict = "supported" if supported else "contradicted" if contradicted else "undecided"
    return BoundTest(quantity, value, relation, threshold, verdict)


def together(tests: Iterable[BoundTest]) -> Verdict:
    """Contradicted if one test is, supported if all are, else undecided."""
    verdicts = {test.verdict for test in tests}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "undecided"
