"""Tables of an analysis: columns by key on the toolkit's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prunebench.analysis import words
from prunebench.analysis.values import (
    VERDICTS,
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

PLACE_COLUMNS: tuple[Column[Any], ...] = (
    Column(
        "sparsity",
        "Sparsity",
        "Share of zeros asked for",
        value=lambda row: row,
        format=lambda row: sparsity_tag(row),
        order=lambda row: row.sparsity,
    ),
    text_column("method", "Method", value=lambda row: row.method, lead=True),
)


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


def sparsity_tag(row: Any) -> str:
    """How a row's sparsity is written; the page filters by it."""
    return fmt.sparsity(row.sparsity, dense=is_dense(row))


def is_dense(row: Any) -> bool:
    """Whether a row is of the dense model: rows without the field are of pruned ones."""
    return getattr(row, "dense", False)


def condition_table(title: str, columns: Iterable[Column[Any]], rows: Iterable[Any]) -> Table[Any]:
    """Rows by sparsity and method: dense first, those that chose their sparsity last."""
    given = sorted(rows, key=lambda row: (row.sparsity or 0.0, row.method))
    dense = [row for row in given if is_dense(row)]
    pruned = [row for row in given if not is_dense(row)]
    groups = grouped_rows(
        [
            (None, dense),
            (None, [row for row in pruned if row.sparsity is not None]),
            (NATIVE_HEADING, [row for row in pruned if row.sparsity is None]),
        ]
    )
    return Table((*PLACE_COLUMNS, *columns), groups, title, tag=sparsity_tag)


# Columns


def number_column(
    key: str, title: str, help: str = "", decimals: int = 3, scale: float = 1, **options: Any
) -> Column[Any]:
    """A column of plain numbers, by default a row's field of the same name."""
    options.setdefault("value", lambda row: getattr(row, key))
    return Column(key, title, help, format=lambda value: fmt.number(value, decimals, scale), **options)


def percent_column(key: str, title: str, help: str = "", **options: Any) -> Column[Any]:
    """A column of shares in percent."""
    return number_column(key, title, help, 1, 100, **options)


def count_column(key: str, title: str, help: str = "", **options: Any) -> Column[Any]:
    """A column of whole numbers."""
    options.setdefault("value", lambda row: getattr(row, key))
    return Column(key, title, help, **options)


def estimate_column(
    measure: Measure, value: Callable[[Any], Estimate | None], title: str = "", key: str = "", help: str = ""
) -> Column[Any]:
    """A column of means with half-widths, as a measure is shown."""

    def written(estimate: Estimate) -> str:
        return words.with_half_width(estimate, measure)

    return Column(
        key or measure.key,
        title or words.titled(measure),
        help or measure.help,
        value=value,
        format=written,
        order=order_of,
    )


def ends_column(
    key: str,
    title: str,
    help: str = "",
    decimals: int = 2,
    scale: float = 1,
    value: Callable[[Any], Estimate | None] | None = None,
) -> Column[Any]:
    """A column of values with the ends of their intervals."""

    def written(estimate: Estimate) -> str:
        return words.with_ends(estimate, decimals, scale)

    return Column(
        key, title, help, value=value or (lambda row: getattr(row, key)), format=written, order=order_of
    )


def order_of(estimate: Estimate) -> float | None:
    """Estimates sort by their means."""
    return None if estimate.mean is None else round(estimate.mean, 6)


# Hypotheses


def evidence_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Evidence]:
    """Every line of evidence with its numbers and verdict; columns that say nothing are left out."""
    shares = {measure.key: measure.title for measure in analysis.measures if measure.unit != "number"}
    columns: list[Column[Evidence]] = [
        text_column("subject", "Evidence", value=lambda row: words.subject(analysis, row)),
        text_column("place", "Method", value=words.place, lead=True),
        Column(
            "sparsity",
            "Sparsity",
            "Share of zeros asked for",
            value=lambda row: row if row.scope == "condition" else None,
            format=sparsity_tag,
            order=lambda row: row.sparsity,
        ),
        Column("density", "Weights left, %", value=lambda row: row, format=words.density, order=_left),
    ]
    for quantity in dict.fromkeys(test.quantity for row in hypothesis.evidence for test in row.tests):
        share = quantity in shares
        title = {"rho": "Spearman's rho", "area_under_curve": "AUROC"}.get(quantity, "")
        columns.append(
            ends_column(
                quantity,
                f"{shares[quantity]}, change, points" if share else title,
                "With its 95 % interval",
                1 if share else 2,
                100 if share else 1,
                value=lambda row, quantity=quantity: next(  # type: ignore[misc]
                    (test.estimate for test in row.tests if test.quantity == quantity), None
                ),
            )
        )
    columns += [
        count_column(
            "n",
            "Number",
            "Seeds behind a rank correlation over runs; outputs behind one over outputs",
            value=lambda row: row.tests[0].estimate.n if row.tests[0].quantity == "rho" else None,
        ),
        text_column("verdict", "Verdict", value=lambda row: row.verdict),
    ]
    title = f"Evidence for hypothesis {hypothesis.key}"
    return simple_table(columns, hypothesis.evidence, title).without_empty()


def _left(row: Evidence) -> float | None:
    return None if row.achieved is None else 1 - row.achieved


def relation_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Any] | None:
    """Of hypothesis (b): what rises with what, over all methods and within methods; None for the others."""
    found: dict[str, dict[str, Evidence]] = {}
    for entry in hypothesis.evidence:
        if entry.scope in ("all methods", "within methods"):
            found.setdefault(words.subject(analysis, entry), {})[entry.scope] = entry
    columns: list[Column[Any]] = [text_column("relation", "Relation", value=lambda row: row[0], lead=True)]
    columns += [
        text_column(
            scope,
            scope.capitalize(),
            value=lambda row, scope=scope: row[1].get(scope),
            format=_verdict_and_rho,
            order=lambda entry: entry.verdict,
        )
        for scope in ("all methods", "within methods")
    ]
    title = f"Hypothesis {hypothesis.key}: what rises with what"
    return simple_table(columns, found.items(), title) if found else None


def _verdict_and_rho(entry: Evidence) -> str:
    (test,) = entry.tests
    return f"{entry.verdict}: {words.with_ends(test.estimate)}, {test.estimate.n} seeds"


def tally_table(analysis: TaskAnalysis, hypothesis: Hypothesis) -> Table[Any]:
    """How much evidence is for and against a hypothesis, by what it looks at."""
    found: dict[str, list[str]] = {}
    for entry in hypothesis.evidence:
        found.setdefault(words.subject(analysis, entry), []).append(entry.verdict)
    columns: list[Column[Any]] = [text_column("subject", "Evidence", value=lambda row: row[0], lead=True)]
    columns += [
        count_column(kind, kind.capitalize(), value=lambda row, kind=kind: row[1].count(kind))
        for kind in VERDICTS
    ]
    return simple_table(columns, found.items(), f"Hypothesis {hypothesis.key}: verdicts")


# Conditions


def _of(field: str, measure: Measure) -> Callable[[Any], Estimate | None]:
    """A measure of a condition, in one of its fields."""
    return lambda row: getattr(row, field).get(measure.key)


def measures_table(analysis: TaskAnalysis) -> Table[Any]:
    """Every measure of every condition, mean and t half-width over seeds."""
    columns = [
        number_column("achieved", "Achieved", "Share of zeros counted after fine-tuning, mean over seeds", 4),
        *(estimate_column(m, _of("values", m)) for m in analysis.measures),
        count_column("seeds", "Seeds", "Number of seeds behind the row", value=lambda row: len(row.seeds)),
    ]
    return condition_table("All measures", columns, analysis.conditions)


def changes_table(analysis: TaskAnalysis) -> Table[Any]:
    """Differences from the dense model of the same seed."""
    measures = [m for m in analysis.measures if any(m.key in row.changes for row in analysis.conditions)]
    columns = [
        estimate_column(
            m,
            _of("changes", m),
            m.title if m.unit == "number" else f"{m.title}, points",
        )
        for m in measures
    ]
    rows = [row for row in analysis.conditions if not row.dense] if measures else []
    return condition_table("Changes from the dense model", columns, rows)


def sampled_table(analysis: TaskAnalysis) -> Table[Any]:
    """Accuracies and their changes with bootstrap intervals over seeds and samples."""
    measures = [m for m in analysis.measures if any(m.key in row.sampled for row in analysis.conditions)]
    columns: list[Column[Any]] = []
    for m in measures:
        number = words.decimals_of(m), words.scale_of(m)
        columns += [
            ends_column(m.key, words.titled(m), m.help, *number, value=_of("sampled", m)),
            ends_column(
                f"{m.key} change",
                f"{m.title}, change, points",
                f"Pruned minus dense. {m.help}",
                *number,
                value=_of("sampled_changes", m),
            ),
        ]
    return condition_table("Over other images too", columns, analysis.conditions if measures else [])


def outputs_table(analysis: TaskAnalysis, measure: Measure) -> Table[Any]:
    """One measure: a row a condition, a column an attribute (or class)."""
    found: dict[tuple[str, float | None, bool], dict[str, float | None]] = {}
    for row in analysis.attributes:
        found.setdefault((row.method, row.sparsity, row.dense), {})[row.name] = row.values.get(measure.key)
    number = words.decimals_of(measure), words.scale_of(measure)
    columns = [
        number_column(name, name, measure.help, *number, value=lambda row, name=name: row.values.get(name))
        for name in analysis.outputs
    ]
    rows = [OutputsRow(*place, values) for place, values in found.items()]
    return condition_table(measure.title, columns, rows)


# Groups


def group_name(group: GroupChange) -> str:
    """Label and bias."""
    return f"{group.label} / {group.bias}"


def is_significant(group: GroupChange) -> bool:
    """Whether the change of a group's accuracy is."""
    return group.corrected_p is not None and group.corrected_p < ALPHA


def _extreme_columns(side: str) -> list[Column[Any]]:
    """The change of the group at one end, which one it is, and its p."""

    def of(read: Callable[[GroupChange], Any]) -> Callable[[GroupSummary], Any]:
        def value(row: GroupSummary) -> Any:
            group = getattr(row, side)
            return None if group is None else read(group)

        return value

    return [
        percent_column(
            side,
            f"Largest {side}, points",
            "Change of accuracy, mean over seeds",
            value=of(lambda g: g.change),
        ),
        text_column(f"{side} group", "Of group", "Label / bias", value=of(group_name)),
        Column(
            f"{side} p",
            "Corrected p",
            f"Of that {side}",
            value=of(lambda g: g.corrected_p),
            format=fmt.p_value,
        ),
    ]


def group_summary_table(analysis: TaskAnalysis) -> Table[Any]:
    """Of each condition the groups that lost and gained most, and how many of those listed changed."""
    found: dict[tuple[str, float | None], list[GroupChange]] = {}
    for group in analysis.groups:
        found.setdefault((group.method, group.sparsity), []).append(group)
    counted = f"Groups among those listed with corrected p < {ALPHA:g}"
    columns = [
        *_extreme_columns("fall"),
        *_extreme_columns("rise"),
        count_column("fell", "Fell", counted),
        count_column("rose", "Rose", counted),
        count_column(
            "listed", "Listed", "Groups of the condition that were kept: the largest losses and gains"
        ),
    ]
    rows = [_summary(place, groups) for place, groups in found.items()]
    return condition_table("Largest changes, by condition", columns, rows)


def _summary(place: tuple[str, float | None], groups: Sequence[GroupChange]) -> GroupSummary:
    order = sorted(groups, key=lambda g: (g.change or 0.0, g.label, g.bias))
    falls, rises = [g for g in order if (g.change or 0) < 0], [g for g in order if (g.change or 0) > 0]
    ends = falls[0] if falls else None, rises[-1] if rises else None
    counts = sum(map(is_significant, falls)), sum(map(is_significant, rises)), len(groups)
    return GroupSummary(*place, *ends, *counts)


def changed_groups_table(analysis: TaskAnalysis) -> tuple[Table[Any], int]:
    """The groups whose accuracy changed (corrected p), and how many of them are not listed."""
    columns: tuple[Column[Any], ...] = (
        text_column("label", "Label", value=lambda row: row.label),
        text_column("bias", "Bias", value=lambda row: row.bias),
        text_column(
            "kind",
            "Kind",
            "Bias-aligned or bias-conflicting",
            value=lambda row: "aligned" if row.aligned else "conflicting",
        ),
        count_column("samples", "Samples"),
        percent_column("dense_accuracy", "Dense, %", "Accuracy of the dense models, mean over seeds"),
        percent_column("accuracy", "Pruned, %", "Accuracy of the pruned models, mean over seeds"),
        percent_column("change", "Change, points"),
        Column(
            "p_value", "p", "Welch's t-test over seeds", value=lambda row: row.p_value, format=fmt.p_value
        ),
        Column(
            "corrected_p",
            "Corrected p",
            "Holm's correction over the groups of the condition",
            value=lambda row: row.corrected_p,
            format=fmt.p_value,
        ),
    )
    changed = [group for group in analysis.groups if is_significant(group)]
    kept = sorted(changed, key=lambda group: group.corrected_p or 0.0)[:MOST_GROUPS]
    return condition_table("Groups whose accuracy changed", columns, kept), len(changed) - len(kept)


# Exemplars, predictability, correlations, bias and variance


def exemplar_table(analysis: TaskAnalysis) -> Table[Any]:
    """Compression-identified exemplars beside what other seeds alone would give."""
    columns = (
        percent_column(
            "share",
            "CIE, %",
            "Samples whose most frequent label differs between all dense and all pruned models",
        ),
        percent_column(
            "matched_share", "Equal populations, %", "The same between as many dense as pruned models"
        ),
        percent_column("control_share", "Control, %", "The same between dense models of other seeds"),
        percent_column(
            "beyond",
            "Beyond seeds, points",
            "Equal populations minus control: what pruning adds",
            value=lambda row: _difference(row.matched_share, row.control_share),
        ),
        number_column(
            "l1_distance",
            "L1 distance",
            "Mean L1 distance of the label distributions (0-2), equal populations",
        ),
        number_column(
            "control_l1_distance", "L1 distance, control", "The same between dense models of other seeds"
        ),
        percent_column(
            "right_share",
            "Right when pruned, %",
            "Of the exemplars, those that the pruned models' mode gets right",
        ),
        count_column("population", "Population", "Models on each side of the equal populations"),
    )
    return condition_table("Exemplars and their control", columns, analysis.exemplars)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def split_table(analysis: TaskAnalysis) -> Table[Any]:
    """Bias and variance of the squared loss over seeds."""
    columns = (
        number_column("loss", "Squared loss", "Mean over samples and seeds"),
        number_column("bias_squared", "Bias squared", "Of the mean prediction over seeds"),
        number_column("variance", "Variance", "Of the predictions over seeds"),
        percent_column("share", "Variance share, %", "Of the loss", value=_variance_share),
    )
    return condition_table("Bias and variance of the loss", columns, analysis.splits)


def _variance_share(row: LossSplit) -> float | None:
    return row.variance / row.loss if row.variance is not None and row.loss else None


def correlation_table(analysis: TaskAnalysis) -> Table[Any]:
    """Rank correlations of pairs of measures: of all methods first."""
    columns = (
        text_column("method", "Method", value=lambda row: row.method or row.scope, lead=True),
        text_column(
            "first", "First measure", value=lambda row: words.measure_title(analysis, row.first)
        ),
        text_column(
            "second",
            "Second measure",
            value=lambda row: words.measure_title(analysis, row.second, working=row.working),
        ),
        ends_column("rho", "Spearman's rho", "With its 95 % interval"),
        count_column("seeds", "Seeds", value=lambda row: row.rho.n),
    )  # fmt: skip
    scopes = ("all methods", "within methods", "method")
    rows = sorted(analysis.correlations, key=lambda row: (scopes.index(row.scope), row.method or ""))
    return simple_table(columns, rows, "Rank correlations")


def sample_table(analysis: TaskAnalysis) -> Table[Any]:
    """How the dense models' uncertainty ranks the samples that pruning changed."""
    columns = (
        text_column("event", "Event", value=lambda row: row.event),
        percent_column("event_rate", "Event rate, %", "Share of the samples"),
        ends_column("area_under_curve", "AUROC", "0.5: no better than chance; with its 95 % interval", 3),
        number_column("average_precision", "Average precision"),
        percent_column(
            "recall_at_5_percent",
            "Recall at 5 %",
            "Of the changed samples, those among the 5 % least sure; in %",
        ),
    )
    return condition_table(
        "Samples, by the dense model's uncertainty", columns, analysis.sample_predictability
    )


def criterion_table(analysis: TaskAnalysis) -> Table[Any]:
    """How criteria of the dense model rank the attributes whose bias then grew."""
    columns = (
        text_column(
            "criterion", "Criterion of the dense model", value=lambda row: row.criterion.replace("_", " ")
        ),
        ends_column("rho", "Spearman's rho", "With its 95 % interval"),
        count_column("n", "Number", "Of attributes or classes", value=lambda row: row.rho.n),
    )
    title = f"{analysis.output_noun.capitalize()}, by criteria of the dense model"
    return condition_table(title, columns, analysis.attribute_predictability)


def susceptible_table(analysis: TaskAnalysis) -> Table[Any]:
    """The samples of which the dense models are least sure."""
    columns = (
        count_column("index", "Sample", "Index in the test split"),
        number_column("score", "Uncertainty"),
        text_column("attribute", "Attribute", "The one that the dense models are least sure of",
                    value=lambda row: row.attribute),
        text_column("label", "Label", value=lambda row: row.label),
        text_column("bias", "Bias", value=lambda row: row.bias),
        text_column("dense", "Dense", "What the dense models say", value=lambda row: row.dense),
        text_column("sparse", "Pruned", "What the pruned models say", value=lambda row: row.sparse),
        percent_column("flipped_share", "Flipped, %",
                       "Pruned runs whose label differs from the dense run of the same seed"),
    )  # fmt: skip
    return simple_table(columns, analysis.susceptible, "The most susceptible samples").without_empty()
