"""Tables of an analysis: columns by key on the toolkit's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from prunebench.analysis import words
from prunebench.analysis.values import Evidence, GroupChange, Hypothesis, LossSplit, Measure, TaskAnalysis
from prunebench.leaderboard.columns import NATIVE
from prunebench.report import format as fmt
from prunebench.report.table import Column, Table, grouped_rows, simple_table, text_column

ALPHA = 0.05
MOST_GROUPS = 200
"""So many changed groups are listed, those of the smallest p first; the JSON holds all."""
Value = Callable[[Any], Any]
Columns = list[Column[Any]]


@dataclass(frozen=True)
class ConditionRow:
    """Values of a condition by the column's key."""

    method: str
    sparsity: float | None
    dense: bool
    values: Mapping[str, Any]


# Columns

percent = partial(Column[Any], format=fmt.percent)
p_value = partial(Column[Any], format=fmt.p_value)
ends = partial(Column[Any], format=words.with_ends)


def number(
    key: str, title: str, help: str = "", value: Value | None = None, decimals: int = 3, scale: float = 1
) -> Column[Any]:
    """Plain numbers."""
    return Column(key, title, help, value, partial(fmt.number, decimals=decimals, scale=scale))


def half_width(measure: Measure, title: str, value: Value) -> Column[Any]:
    """Means with half-widths, as a measure is shown."""
    return Column(measure.key, title, measure.help, value, partial(words.with_half_width, measure=measure))


def scaled_ends(key: str, title: str, help: str, value: Value, measure: Measure) -> Column[Any]:
    """Values with the ends of their intervals, as a measure is shown."""
    written = partial(words.with_ends, decimals=measure.decimals, scale=measure.scale)
    return Column(key, title, help, value, written)


def sparsity(value: Value = lambda row: row) -> Column[Any]:
    """The sparsity asked for, of a row or of none."""
    title = "Share of zeros asked for"
    return Column("sparsity", "Sparsity", title, value, sparsity_tag, attrgetter("sparsity"))


METHOD = text_column("method", "Method", lead=True)
RUNS = text_column("method", "Method", value=lambda row: str(row.method or row.scope), lead=True)
"""Whose runs evidence or a correlation looks at: a method's, or those of its scope."""


def _entry(field: str, key: str) -> Value:
    """What stands at a key in a row's dictionary."""
    return lambda row: getattr(row, field).get(key)


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
    groups = (
        (None, filter(_is_dense, given)),
        (None, [row for row in pruned if row.sparsity is not None]),
        (NATIVE, [row for row in pruned if row.sparsity is None]),
    )
    return Table((sparsity(), METHOD, *columns), grouped_rows(groups), title, tag=sparsity_tag)


# Hypotheses


def evidence_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Any]:
    """Every line of evidence with its numbers and verdict; columns that say nothing are left out."""
    measures = {measure.key: measure for measure in analysis.measures}
    names = {"rho": "Spearman's rho", "area_under_curve": "AUROC"}
    columns = [
        text_column("subject", "Evidence", value=partial(words.subject, analysis)),
        RUNS,
        sparsity(lambda row: row if row.scope == "condition" else None),
        number("density", "Weights left, %", "Of those that may be pruned", words.density, 1, 100),
    ]
    for quantity in dict.fromkeys(test.quantity for row in hypothesis.evidence for test in row.tests):
        value, help = _estimate(quantity), "With its 95 % interval"
        if quantity in names:
            columns.append(ends(quantity, names[quantity], help, value))
        else:
            measure = measures[quantity]
            columns.append(scaled_ends(quantity, f"{measure.title}, change, points", help, value, measure))
    told = "Seeds behind a rank correlation over runs; outputs behind one over outputs"
    columns += [Column("n", "Number", told, _number), text_column("verdict", "Verdict")]
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
    scopes = ("all methods", "within methods")
    found: dict[str, dict[str, Evidence]] = {}
    for entry in hypothesis.evidence:
        if entry.scope in scopes:
            found.setdefault(words.subject(analysis, entry), {})[entry.scope] = entry

    def told(scope: str) -> Value:
        return lambda row: words.verdict_and_rho(row[1][scope]) if scope in row[1] else None

    columns = [text_column("relation", "Relation", value=lambda row: row[0], lead=True)]
    columns += [text_column(scope, scope.capitalize(), value=told(scope)) for scope in scopes]
    title = f"Hypothesis {hypothesis.key}: what rises with what"
    return simple_table(columns, found.items(), title) if found else None


# Conditions


def measures_table(analysis: TaskAnalysis) -> Table[Any]:
    """Every measure of every condition, mean and t half-width over seeds."""
    achieved = "Share of zeros counted after fine-tuning, mean over seeds"
    columns = [number("achieved", "Achieved", achieved, decimals=4)]
    columns += [half_width(m, words.titled(m), _entry("values", m.key)) for m in analysis.measures]
    columns += [Column("seeds", "Seeds", "Number of seeds behind the row", lambda row: len(row.seeds))]
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
        change, help = f"{m.title}, change, points", f"Pruned minus dense. {m.help}"
        columns.append(scaled_ends(m.key, words.titled(m), m.help, _entry("sampled", m.key), m))
        columns.append(scaled_ends(f"{m.key} change", change, help, _entry("sampled_changes", m.key), m))
    return condition_table("Over other images too", columns, analysis.conditions if measures else [])


def outputs_table(analysis: TaskAnalysis, measure: Measure) -> Table[Any]:
    """One measure: a row a condition, a column an attribute (or class)."""
    found: dict[tuple[str, float | None, bool], dict[str, float | None]] = {}
    for row in analysis.attributes:
        found.setdefault((row.method, row.sparsity, row.dense), {})[row.name] = row.values.get(measure.key)
    shown = measure.decimals, measure.scale
    columns = [number(name, name, measure.help, _entry("values", name), *shown) for name in analysis.outputs]
    return condition_table(measure.title, columns, [ConditionRow(*key, row) for key, row in found.items()])


# Groups


def is_significant(group: GroupChange) -> bool:
    """Whether the change of a group's accuracy is."""
    return group.corrected_p is not None and group.corrected_p < ALPHA


def group_summary_table(analysis: TaskAnalysis) -> Table[Any]:
    """Of each condition the groups that lost and gained most, and how many of those listed changed."""
    found: dict[tuple[str, float | None], list[GroupChange]] = {}
    for group in sorted(analysis.groups, key=lambda g: (g.change or 0.0, g.label, g.bias)):
        found.setdefault((group.method, group.sparsity), []).append(group)
    rows = []
    for place, groups in found.items():
        falls, rises = [g for g in groups if (g.change or 0) < 0], [g for g in groups if (g.change or 0) > 0]
        extremes = {"fall": falls[0] if falls else None, "rise": rises[-1] if rises else None}
        counts = {"fell": sum(map(is_significant, falls)), "rose": sum(map(is_significant, rises))}
        rows.append(ConditionRow(*place, False, {**extremes, **counts, "listed": len(groups)}))
    counted = f"Groups among those listed with corrected p < {ALPHA:g}"
    kept = "Groups of the condition that were kept: the largest losses and gains"
    counters = (("fell", "Fell", counted), ("rose", "Rose", counted), ("listed", "Listed", kept))
    columns = [*_extreme_columns("fall"), *_extreme_columns("rise")]
    columns += [Column(key, title, help, _entry("values", key)) for key, title, help in counters]
    return condition_table("Largest changes, by condition", columns, rows)


def _extreme_columns(side: str) -> Columns:
    """The change of the group at one end, which one it is, and its p."""

    def of(read: Callable[[GroupChange], Any]) -> Value:
        return lambda row: None if row.values[side] is None else read(row.values[side])

    where = of(lambda group: f"{group.label} / {group.bias}")
    mean = "Change of accuracy, mean over seeds"
    return [
        percent(side, f"Largest {side}, points", mean, of(attrgetter("change"))),
        text_column(f"{side} group", "Of group", "Label / bias", value=where),
        p_value(f"{side} p", "Corrected p", f"Of that {side}", of(attrgetter("corrected_p"))),
    ]


def changed_groups_table(analysis: TaskAnalysis) -> tuple[Table[Any], int]:
    """The groups whose accuracy changed (corrected p), and how many of them are not listed."""
    columns = [
        text_column("label", "Label"),
        text_column("bias", "Bias"),
        text_column("kind", "Kind", "Bias-aligned or bias-conflicting",
                    value=lambda row: "aligned" if row.aligned else "conflicting"),
        Column("samples", "Samples"),
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
        Column("population", "Population", "Models on each side of the equal populations"),
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
        RUNS,
        text_column("first", "First measure", value=lambda row: words.measure_title(analysis, row.first)),
        text_column("second", "Second measure",
                    value=lambda row: words.measure_title(analysis, row.second, working=row.working)),
        ends("rho", "Spearman's rho", "With its 95 % interval"),
        Column("seeds", "Seeds", value=attrgetter("rho.n")),
    ]  # fmt: skip
    scopes = ("all methods", "within methods", "method")
    rows = sorted(analysis.correlations, key=lambda row: (scopes.index(row.scope), row.method or ""))
    return simple_table(columns, rows, "Rank correlations")


def sample_table(analysis: TaskAnalysis) -> Table[Any]:
    """How the dense models' uncertainty ranks the samples that pruning changed."""
    columns = [
        text_column("event", "Event"),
        percent("event_rate", "Event rate, %", "Share of the samples"),
        ends("area_under_curve", "AUROC", "0.5: no better than chance; with its 95 % interval",
             format=partial(words.with_ends, decimals=3)),
        number("average_precision", "Average precision"),
        percent("recall_at_5_percent", "Recall at 5 %", "Of the changed samples, those among the 5 % least sure; in %"),
    ]  # fmt: skip
    title = "Samples, by the dense model's uncertainty"
    return condition_table(title, columns, analysis.sample_predictability)


def criterion_table(analysis: TaskAnalysis) -> Table[Any]:
    """How criteria of the dense model rank the attributes whose bias then grew."""
    criterion = "Criterion of the dense model"
    columns = [
        text_column("criterion", criterion, value=lambda row: row.criterion.replace("_", " ")),
        ends("rho", "Spearman's rho", "With its 95 % interval"),
        Column("n", "Number", "Of attributes or classes", attrgetter("rho.n")),
    ]
    title = f"{analysis.output_noun.capitalize()}, by criteria of the dense model"
    return condition_table(title, columns, analysis.attribute_predictability)


def susceptible_table(analysis: TaskAnalysis) -> Table[Any]:
    """The samples of which the dense models are least sure."""
    columns = [
        Column("index", "Sample", "Index in the test split"),
        number("score", "Uncertainty"),
        text_column("attribute", "Attribute", "The one that the dense models are least sure of"),
        text_column("label", "Label"),
        text_column("bias", "Bias"),
        text_column("dense", "Dense", "What the dense models say"),
        text_column("sparse", "Pruned", "What the pruned models say"),
        percent("flipped_share", "Flipped, %", "Pruned runs whose label differs from the dense run of the same seed"),
    ]  # fmt: skip
    return simple_table(columns, analysis.susceptible, "The most susceptible samples").without_empty()
