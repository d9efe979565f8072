"""Tables of an analysis: columns by key on the toolkit's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.analysis import words
from prunebench.analysis.values import (
    Estimate,
    Evidence,
    GroupChange,
    Hypothesis,
    LossSplit,
    Measure,
    TaskAnalysis,
)
from prunebench.report import format as fmt
from prunebench.report.table import Column, Table, grouped_rows, simple_table, text_column

ALPHA = 0.05
MOST_GROUPS = 200
"""So many changed groups are listed, those of the smallest p first; the JSON holds all."""
NATIVE_HEADING = "Native sparsity: chosen by the method"
Value = Callable[[Any], Any]
Columns = list[Column[Any]]


@dataclass(frozen=True)
class OutputsRow:
    """One measure of all outputs in a condition, by name."""

    method: str
    sparsity: float | None
    dense: bool
    values: dict[str, float | None]


@dataclass(frozen=True)
class GroupSummary:
    """The groups of a condition that lost and gained most, and how many of those listed changed significantly."""

    method: str
    sparsity: float | None
    fall: GroupChange | None
    rise: GroupChange | None
    fell: int
    rose: int
    listed: int


# Columns


def number(
    key: str, title: str, help: str = "", value: Value | None = None, decimals: int = 3, scale: float = 1
) -> Column[Any]:
    """Plain numbers, by default a row's field of the same name."""

    def written(value: float) -> str:
        return fmt.number(value, decimals, scale)

    return Column(key, title, help, value or _field(key), written)


def percent(key: str, title: str, help: str = "", value: Value | None = None) -> Column[Any]:
    """Shares in percent."""
    return number(key, title, help, value, 1, 100)


def count(key: str, title: str, help: str = "", value: Value | None = None) -> Column[Any]:
    """Whole numbers."""
    return Column(key, title, help, value or _field(key))


def text(
    key: str, title: str, help: str = "", value: Value | None = None, *, lead: bool = False
) -> Column[Any]:
    """Words."""
    return text_column(key, title, help, value=value or _field(key), lead=lead)


def p_value(key: str, title: str, help: str = "", value: Value | None = None) -> Column[Any]:
    """Of a test."""
    return Column(key, title, help, value or _field(key), fmt.p_value)


def half_width(measure: Measure, title: str, value: Value) -> Column[Any]:
    """Means with half-widths, as a measure is shown."""

    def written(estimate: Estimate) -> str:
        return words.with_half_width(estimate, measure)

    return Column(measure.key, title, measure.help, value, written, _mean)


def ends(
    key: str, title: str, help: str = "", value: Value | None = None, decimals: int = 2, scale: float = 1
) -> Column[Any]:
    """Values with the ends of their intervals."""

    def written(estimate: Estimate) -> str:
        return words.with_ends(estimate, decimals, scale)

    return Column(key, title, help, value or _field(key), written, _mean)


def sparsity(value: Value = lambda row: row) -> Column[Any]:
    """The sparsity asked for, of a row or of none."""
    return Column(
        "sparsity", "Sparsity", "Share of zeros asked for", value, sparsity_tag, lambda row: row.sparsity
    )


def _field(key: str) -> Value:
    return lambda row: getattr(row, key)


def _runs(row: Any) -> str:
    """Whose runs evidence or a correlation looks at: a method's, or those of its scope."""
    return str(row.method or row.scope)


def _entry(field: str, key: str) -> Value:
    """What stands at a key in a row's dictionary."""
    return lambda row: getattr(row, field).get(key)


def _mean(estimate: Estimate) -> float | None:
    return None if estimate.mean is None else round(estimate.mean, 6)


def sparsity_tag(row: Any) -> str:
    """How a row's sparsity is written; the page filters by it."""
    return fmt.sparsity(row.sparsity, dense=_is_dense(row))


def _is_dense(row: Any) -> bool:
    """Whether a row is of the dense model: rows without the field are of pruned ones."""
    return getattr(row, "dense", False)


def condition_table(title: str, columns: Iterable[Column[Any]], rows: Iterable[Any]) -> Table[Any]:
    """Rows by sparsity and method: dense first, those that chose their sparsity last."""
    given = sorted(rows, key=lambda row: (row.sparsity or 0.0, row.method))
    pruned = [row for row in given if not _is_dense(row)]
    groups = grouped_rows(
        [
            (None, filter(_is_dense, given)),
            (None, [row for row in pruned if row.sparsity is not None]),
            (NATIVE_HEADING, [row for row in pruned if row.sparsity is None]),
        ]
    )
    return Table((sparsity(), text("method", "Method", lead=True), *columns), groups, title, tag=sparsity_tag)


# Hypotheses


def evidence_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Any]:
    """Every line of evidence with its numbers and verdict; columns that say nothing are left out."""
    shares = {measure.key: measure.title for measure in analysis.measures}
    names = {"rho": "Spearman's rho", "area_under_curve": "AUROC"}
    columns = [
        text("subject", "Evidence", value=lambda row: words.subject(analysis, row)),
        text("place", "Method", value=_runs, lead=True),
        sparsity(lambda row: row if row.scope == "condition" else None),
        number("density", "Weights left, %", "Of those that may be pruned", words.density, 1, 100),
    ]
    for quantity in dict.fromkeys(test.quantity for row in hypothesis.evidence for test in row.tests):
        name, help = names.get(quantity), "With its 95 % interval"
        if name is not None:
            columns.append(ends(quantity, name, help, _estimate(quantity)))
        else:
            title = f"{shares[quantity]}, change, points"
            columns.append(ends(quantity, title, help, _estimate(quantity), 1, 100))
    told = "Seeds behind a rank correlation over runs; outputs behind one over outputs"
    columns += [count("n", "Number", told, _number), text("verdict", "Verdict")]
    several = len({words.subject(analysis, row) for row in hypothesis.evidence}) > 1
    title = f"Evidence for hypothesis {hypothesis.key}"
    return simple_table(columns[not several :], hypothesis.evidence, title).without_empty()


def _estimate(quantity: str) -> Value:
    """The estimate of a quantity that evidence tests."""
    return lambda row: next((test.estimate for test in row.tests if test.quantity == quantity), None)


def _number(evidence: Evidence) -> int | None:
    test = evidence.tests[0]
    return test.estimate.n if test.quantity == "rho" else None


def relation_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Any] | None:
    """Of hypothesis (b): what rises with what, over all methods and within methods; None for the others."""
    found: dict[str, dict[str, Evidence]] = {}
    for entry in hypothesis.evidence:
        if entry.scope in ("all methods", "within methods"):
            found.setdefault(words.subject(analysis, entry), {})[entry.scope] = entry

    def told(scope: str) -> Value:
        return lambda row: words.verdict_and_rho(row[1][scope]) if scope in row[1] else None

    columns = [text("relation", "Relation", value=lambda row: row[0], lead=True)]
    columns += [
        text(scope, scope.capitalize(), "", told(scope)) for scope in ("all methods", "within methods")
    ]
    title = f"Hypothesis {hypothesis.key}: what rises with what"
    return simple_table(columns, found.items(), title) if found else None


# Conditions


def measures_table(analysis: TaskAnalysis) -> Table[Any]:
    """Every measure of every condition, mean and t half-width over seeds."""
    achieved = "Share of zeros counted after fine-tuning, mean over seeds"
    columns = [number("achieved", "Achieved", achieved, decimals=4)]
    columns += [half_width(m, words.titled(m), _entry("values", m.key)) for m in analysis.measures]
    columns += [count("seeds", "Seeds", "Number of seeds behind the row", lambda row: len(row.seeds))]
    return condition_table("All measures", columns, analysis.conditions)


def changes_table(analysis: TaskAnalysis) -> Table[Any]:
    """Differences from the dense model of the same seed."""
    pruned = [row for row in analysis.conditions if not row.dense]
    measures = [m for m in analysis.measures if any(m.key in row.changes for row in pruned)]
    columns = [half_width(m, words.titled(m, change=True), _entry("changes", m.key)) for m in measures]
    return condition_table("Changes from the dense model", columns, pruned if measures else [])


def sampled_table(analysis: TaskAnalysis) -> Table[Any]:
    """Accuracies and their changes with bootstrap intervals over seeds and samples."""
    measures = [m for m in analysis.measures if any(m.key in row.sampled for row in analysis.conditions)]
    columns: Columns = []
    for m in measures:
        shown, help = (m.decimals, m.scale), f"Pruned minus dense. {m.help}"
        change = f"{m.title}, change, points"
        columns.append(ends(m.key, words.titled(m), m.help, _entry("sampled", m.key), *shown))
        columns.append(ends(f"{m.key} change", change, help, _entry("sampled_changes", m.key), *shown))
    return condition_table("Over other images too", columns, analysis.conditions if measures else [])


def outputs_table(analysis: TaskAnalysis, measure: Measure) -> Table[Any]:
    """One measure: a row a condition, a column an attribute (or class)."""
    found: dict[tuple[str, float | None, bool], dict[str, float | None]] = {}
    for row in analysis.attributes:
        found.setdefault((row.method, row.sparsity, row.dense), {})[row.name] = row.values.get(measure.key)
    shown = measure.decimals, measure.scale
    columns = [number(name, name, measure.help, _entry("values", name), *shown) for name in analysis.outputs]
    return condition_table(measure.title, columns, [OutputsRow(*key, row) for key, row in found.items()])


# Groups


def is_significant(group: GroupChange) -> bool:
    """Whether the change of a group's accuracy is."""
    return group.corrected_p is not None and group.corrected_p < ALPHA


def group_summary_table(analysis: TaskAnalysis) -> Table[Any]:
    """Of each condition the groups that lost and gained most, and how many of those listed changed."""
    found: dict[tuple[str, float | None], list[GroupChange]] = {}
    for group in analysis.groups:
        found.setdefault((group.method, group.sparsity), []).append(group)
    counted = f"Groups among those listed with corrected p < {ALPHA:g}"
    kept = "Groups of the condition that were kept: the largest losses and gains"
    columns = [*_extreme_columns("fall"), *_extreme_columns("rise")]
    columns += [
        count("fell", "Fell", counted),
        count("rose", "Rose", counted),
        count("listed", "Listed", kept),
    ]
    rows = [_summary(place, groups) for place, groups in found.items()]
    return condition_table("Largest changes, by condition", columns, rows)


def _extreme_columns(side: str) -> Columns:
    """The change of the group at one end, which one it is, and its p."""

    def of(read: Callable[[GroupChange], Any]) -> Value:
        return lambda row: None if getattr(row, side) is None else read(getattr(row, side))

    mean = "Change of accuracy, mean over seeds"
    return [
        percent(side, f"Largest {side}, points", mean, of(lambda group: group.change)),
        text(f"{side} group", "Of group", "Label / bias", of(lambda group: f"{group.label} / {group.bias}")),
        p_value(f"{side} p", "Corrected p", f"Of that {side}", of(lambda group: group.corrected_p)),
    ]


def _summary(place: tuple[str, float | None], groups: Sequence[GroupChange]) -> GroupSummary:
    order = sorted(groups, key=lambda g: (g.change or 0.0, g.label, g.bias))
    falls, rises = [g for g in order if (g.change or 0) < 0], [g for g in order if (g.change or 0) > 0]
    extremes = falls[0] if falls else None, rises[-1] if rises else None
    counts = sum(map(is_significant, falls)), sum(map(is_significant, rises)), len(groups)
    return GroupSummary(*place, *extremes, *counts)


def changed_groups_table(analysis: TaskAnalysis) -> tuple[Table[Any], int]:
    """The groups whose accuracy changed (corrected p), and how many of them are not listed."""
    columns = [
        text("label", "Label"),
        text("bias", "Bias"),
        text("kind", "Kind", "Bias-aligned or bias-conflicting",
             lambda row: "aligned" if row.aligned else "conflicting"),
        count("samples", "Samples"),
        percent("dense_accuracy", "Dense, %", "Accuracy of the dense models, mean over seeds"),
        percent("accuracy", "Pruned, %", "Accuracy of the pruned models, mean over seeds"),
        percent("change", "Change, points"),
        p_value("p_value", "p", "Welch's t-test over seeds"),
        p_value("corrected_p", "Corrected p", "Holm's correction over the groups of the condition"),
    ]  # fmt: skip
    changed = [group for group in analysis.groups if is_significant(group)]
    kept = sorted(changed, key=lambda group: group.corrected_p or 0.0)[:MOST_GROUPS]
    return condition_table("Groups whose accuracy changed", columns, kept), len(changed) - len(kept)


# Exemplars, predictability, correlations, bias and variance


def exemplar_table(analysis: TaskAnalysis) -> Table[Any]:
    """Compression-identified exemplars beside what other seeds alone would give."""
    columns = [
        percent("share", "CIE, %", "Samples whose most frequent label differs between all dense and all pruned models"),
        percent("matched_share", "Equal populations, %", "The same between as many dense as pruned models"),
        percent("control_share", "Control, %", "The same between dense models of other seeds"),
        percent("beyond", "Beyond seeds, points", "Equal populations minus control: what pruning adds",
                lambda row: _difference(row.matched_share, row.control_share)),
        number("l1_distance", "L1 distance", "Mean L1 distance of the label distributions (0-2), equal populations"),
        number("control_l1_distance", "L1 distance, control", "The same between dense models of other seeds"),
        percent("right_share", "Right when pruned, %", "Of the exemplars, those that the pruned mode gets right"),
        count("population", "Population", "Models on each side of the equal populations"),
    ]  # fmt: skip
    return condition_table("Exemplars and their control", columns, analysis.exemplars)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def split_table(analysis: TaskAnalysis) -> Table[Any]:
    """Bias and variance of the squared loss over seeds."""

    def share(row: LossSplit) -> float | None:
        return row.variance / row.loss if row.variance is not None and row.loss else None

    columns = [
        number("loss", "Squared loss", "Mean over samples and seeds"),
        number("bias_squared", "Bias squared", "Of the mean prediction over seeds"),
        number("variance", "Variance", "Of the predictions over seeds"),
        percent("share", "Variance share, %", "Of the loss", share),
    ]
    return condition_table("Bias and variance of the loss", columns, analysis.splits)


def correlation_table(analysis: TaskAnalysis) -> Table[Any]:
    """Rank correlations of pairs of measures: of all methods first."""
    columns = [
        text("method", "Method", value=_runs, lead=True),
        text("first", "First measure", value=lambda row: words.measure_title(analysis, row.first)),
        text("second", "Second measure",
             value=lambda row: words.measure_title(analysis, row.second, working=row.working)),
        ends("rho", "Spearman's rho", "With its 95 % interval"),
        count("seeds", "Seeds", value=lambda row: row.rho.n),
    ]  # fmt: skip
    scopes = ("all methods", "within methods", "method")
    rows = sorted(analysis.correlations, key=lambda row: (scopes.index(row.scope), row.method or ""))
    return simple_table(columns, rows, "Rank correlations")


def sample_table(analysis: TaskAnalysis) -> Table[Any]:
    """How the dense models' uncertainty ranks the samples that pruning changed."""
    columns = [
        text("event", "Event"),
        percent("event_rate", "Event rate, %", "Share of the samples"),
        ends("area_under_curve", "AUROC", "0.5: no better than chance; with its 95 % interval", decimals=3),
        number("average_precision", "Average precision"),
        percent("recall_at_5_percent", "Recall at 5 %", "Of the changed samples, those among the 5 % least sure; in %"),
    ]  # fmt: skip
    title = "Samples, by the dense model's uncertainty"
    return condition_table(title, columns, analysis.sample_predictability)


def criterion_table(analysis: TaskAnalysis) -> Table[Any]:
    """How criteria of the dense model rank the attributes whose bias then grew."""
    columns = [
        text("criterion", "Criterion of the dense model", value=lambda row: row.criterion.replace("_", " ")),
        ends("rho", "Spearman's rho", "With its 95 % interval"),
        count("n", "Number", "Of attributes or classes", lambda row: row.rho.n),
    ]
    title = f"{analysis.output_noun.capitalize()}, by criteria of the dense model"
    return condition_table(title, columns, analysis.attribute_predictability)


def susceptible_table(analysis: TaskAnalysis) -> Table[Any]:
    """The samples of which the dense models are least sure."""
    columns = [
        count("index", "Sample", "Index in the test split"),
        number("score", "Uncertainty"),
        text("attribute", "Attribute", "The one that the dense models are least sure of"),
        text("label", "Label"),
        text("bias", "Bias"),
        text("dense", "Dense", "What the dense models say"),
        text("sparse", "Pruned", "What the pruned models say"),
        percent("flipped_share", "Flipped, %", "Pruned runs whose label differs from the dense run of the same seed"),
    ]  # fmt: skip
    return simple_table(columns, analysis.susceptible, "The most susceptible samples").without_empty()
