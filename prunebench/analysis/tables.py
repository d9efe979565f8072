"""Tables of an analysis: columns by key on the toolkit's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from prunebench.analysis import words
from prunebench.analysis.exploratory import RANK_CORRELATION, ExploratoryLine
from prunebench.analysis.values import GroupChange, LossSplit, Measure, TaskAnalysis
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


# Exploratory lines


def exploratory_table(analysis: TaskAnalysis, lines: Sequence[ExploratoryLine]) -> Table[Any]:
    """Every tested effect with p and q, the smallest p first."""
    columns = [
        text_column("quantity", "Effect", "Its distance from 0", value=partial(words.effect_name, analysis), lead=True),
        text_column("method", "Method", "Or over which runs"),
        sparsity(lambda row: None if row.quantity == RANK_CORRELATION else row),
        text_column("effect", "Estimate", "With its 95 % t-interval over seeds", value=partial(words.effect, analysis)),
        Column("n", "n", "Seeds; of a correlation over outputs, outputs", attrgetter("effect.n")),
        p_value("p_value", "p", "Two-sided t-test, paired where it is a difference"),
        p_value("q_value", "q", "Benjamini and Hochberg, over all lines of this table"),
    ]  # fmt: skip
    return simple_table(columns, lines, "Exploratory lines")


# Conditions


def measures_table(analysis: TaskAnalysis) -> Table[Any]:
    """Every measure of every condition, mean and t half-width over seeds."""
    achieved = "Share of zeros counted after fine-tuning, mean over seeds"
    columns = [number("achieved", "Achieved", achieved, decimals=4)]
    columns += [half_width(m, words.titled(m), _entry("values", m.key)) for m in analysis.measures]
    columns += [Column("seeds", "Seeds", "Number of seeds behind the row", lambda row: len(row.seeds))]
    return condition_table("All measures", columns, analysis.conditions)


def changes_table(analysis: TaskAnalysis) -> Table[Any]:
    """Differences from the reference of the same seed."""
    pruned = [row for row in analysis.conditions if not row.dense]
    measures = [m for m in analysis.measures if any(m.key in row.changes for row in pruned)]
    columns = [half_width(m, words.titled(m, change=True), _entry("changes", m.key)) for m in measures]
    return condition_table(f"Changes from {analysis.reference}", columns, pruned if measures else [])


def sampled_table(analysis: TaskAnalysis) -> Table[Any]:
    """Accuracies and their changes with bootstrap intervals over seeds and samples."""
    measures = [m for m in analysis.measures if any(m.key in row.sampled for row in analysis.conditions)]
    columns: Columns = []
    for m in measures:
        change, help = f"{m.title}, change, points", f"Minus {analysis.reference}. {m.help}"
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
        percent("dense_accuracy", "Reference, %", f"Accuracy of {analysis.reference}, mean over seeds"),
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
    """How often models of other seeds disagree, pruned and unpruned; and compression-identified exemplars."""
    columns = [
        percent("disagreement", "Disagreement, %", f"Of a pruned model and {analysis.reference} of another seed"),
        percent("control", "Control, %", f"Of {analysis.reference} of two seeds"),
        Column("added", "Added by pruning, points", "The difference, with its 95 % jackknife interval over seeds",
               format=partial(words.with_ends, decimals=1, scale=100)),
        percent("share", "CIE, %", "Samples whose most frequent label over all seeds differs"),
        percent("right_share", "Right when pruned, %", "Of the exemplars, those that the pruned mode gets right"),
        Column("seeds", "Seeds", value=attrgetter("added.n")),
    ]  # fmt: skip
    return condition_table("Disagreement and exemplars", columns, analysis.exemplars)


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
        text_column("given", "Given", "What is held: a partial correlation",
                    value=lambda row: None if row.given is None else words.measure_title(analysis, row.given)),
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
        ends("beyond_control", "Minus control", "Of what the reference changed, paired by seed; with its 95 % interval",
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
