"""The tables of an analysis as plain text cells, for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prunebench.analysis import looks
from prunebench.analysis.looks import with_half_width, with_interval, written
from prunebench.analysis.values import (
    ALL_METHODS,
    WITHIN,
    Claim,
    Estimate,
    GroupChange,
    Measure,
    TaskAnalysis,
)
from prunebench.leaderboard.layout import Block, Cell, Column, Sheet
from prunebench.leaderboard.words import MISSING, sparsity_words

ALPHA = 0.05
MOST_GROUPS = 200
"""So many changed groups are listed, those of the smallest p first; the JSON holds all."""
NATIVE_HEADING = "Native sparsity: chosen by the method"
PLACE_COLUMNS = (Column("Sparsity", "Share of zeros asked for"), Column("Method", numeric=False))


@dataclass(frozen=True)
class Line:
    """What stands in the row of a method and sparsity."""

    method: str
    sparsity: float | None
    dense: bool
    cells: tuple[Cell, ...]


def place_sheet(columns: Iterable[Column], lines: Iterable[Line]) -> Sheet:
    """Rows by sparsity and method: dense first, those that chose their sparsity last."""
    given = list(lines)
    blocks = []
    for heading, chosen in (
        (None, [line for line in given if line.dense]),
        (None, [line for line in given if not line.dense and line.sparsity is not None]),
        (NATIVE_HEADING, [line for line in given if not line.dense and line.sparsity is None]),
    ):
        ordered = sorted(chosen, key=lambda line: (line.sparsity or 0.0, line.method))
        if ordered:
            rows = tuple((*_place_cells(line), *line.cells) for line in ordered)
            blocks.append(Block(heading, rows, tuple(map(_sparsity_text, ordered))))
    return Sheet((*PLACE_COLUMNS, *columns), tuple(blocks))


def _sparsity_text(line: Line) -> str:
    return "dense" if line.dense else sparsity_words(line.sparsity)


def _place_cells(line: Line) -> tuple[Cell, Cell]:
    return Cell(_sparsity_text(line), line.sparsity), text_cell(line.method)


def text_cell(text: str) -> Cell:
    return Cell(text, text.lower())


def number_cell(value: float | None, scale: float = 1, decimals: int = 3) -> Cell:
    return Cell(written(value, scale, decimals), None if value is None else round(value, 6))


def percent_cell(value: float | None) -> Cell:
    return number_cell(value, 100, 1)


def estimate_cell(estimate: Estimate | None, measure: Measure) -> Cell:
    text = with_half_width(estimate, looks.scale_of(measure), looks.decimals_of(measure))
    return Cell(text, _order(estimate))


def interval_cell(estimate: Estimate | None, scale: float = 1, decimals: int = 2) -> Cell:
    return Cell(with_interval(estimate, scale, decimals), _order(estimate))


def _order(estimate: Estimate | None) -> float | None:
    return None if estimate is None or estimate.mean is None else round(estimate.mean, 6)


def _column(measure: Measure) -> Column:
    unit = {"percent": ", %", "points": ", points", "number": ""}[measure.unit]
    return Column(f"{measure.title}{unit}", measure.help)


def claim_sheet(claim: Claim) -> Sheet:
    """Every line of evidence with its verdict."""
    columns = tuple(Column(title, numeric=False) for title in ("Evidence", "Numbers", "Verdict"))
    rows = tuple(
        (text_cell(line.what), text_cell(line.numbers), text_cell(line.verdict)) for line in claim.evidence
    )
    return Sheet(columns, (Block(None, rows),))


def relations_sheet(claim: Claim) -> Sheet | None:
    """Of claim (b): what goes with what, over all methods and within methods; None for the other claims."""
    found: dict[str, dict[str, str]] = {}
    for line in claim.evidence:
        relation, _, who = line.what.rpartition(": ")
        if who in (ALL_METHODS, WITHIN):
            found.setdefault(relation, {})[who] = f"{line.verdict}, {line.numbers}"
    if not found:
        return None
    columns = tuple(
        Column(title.capitalize(), numeric=False) for title in ("what goes with what", ALL_METHODS, WITHIN)
    )
    rows = tuple(
        (text_cell(relation), *(text_cell(told.get(who, MISSING)) for who in (ALL_METHODS, WITHIN)))
        for relation, told in found.items()
    )
    return Sheet(columns, (Block(None, rows),))


def measures_sheet(analysis: TaskAnalysis) -> Sheet:
    """Every measure of every cell, mean and t half-width over seeds."""
    columns = [Column("Achieved", "Share of zeros counted after fine-tuning, mean over seeds")]
    columns += [*map(_column, analysis.measures), Column("Seeds", "Number of seeds behind the row")]
    lines = [
        Line(
            cell.method, cell.sparsity, cell.dense,
            (
                number_cell(cell.achieved, 1, 4),
                *(estimate_cell(cell.values.get(measure.key), measure) for measure in analysis.measures),
                Cell(str(len(cell.seeds)), len(cell.seeds)),
            ),
        )
        for cell in analysis.cells
    ]  # fmt: skip
    return place_sheet(columns, lines)


def changes_sheet(analysis: TaskAnalysis) -> Sheet:
    """Differences from the dense model of the same seed."""
    measures = [m for m in analysis.measures if any(m.key in cell.changes for cell in analysis.cells)]
    lines = [
        Line(
            cell.method, cell.sparsity, cell.dense,
            tuple(estimate_cell(cell.changes.get(measure.key), measure) for measure in measures),
        )
        for cell in analysis.cells if not cell.dense
    ]  # fmt: skip
    columns = [
        Column(column.title.replace(", %", ", points"), column.help) for column in map(_column, measures)
    ]
    return place_sheet(columns, lines if measures else [])


def sampled_sheet(analysis: TaskAnalysis) -> Sheet:
    """Accuracies and their changes with bootstrap intervals over seeds and samples."""
    measures = [m for m in analysis.measures if any(m.key in cell.sampled for cell in analysis.cells)]
    columns = []
    for measure in measures:
        change = Column(f"{measure.title}, change, points", f"Pruned minus dense. {measure.help}")
        columns += [_column(measure), change]

    def cells(level: Estimate | None, change: Estimate | None, measure: Measure) -> list[Cell]:
        scale, decimals = looks.scale_of(measure), looks.decimals_of(measure)
        return [interval_cell(level, scale, decimals), interval_cell(change, scale, decimals)]

    lines = [
        Line(
            cell.method, cell.sparsity, cell.dense,
            tuple(
                entry for measure in measures
                for entry in cells(cell.sampled.get(measure.key), cell.sampled_changes.get(measure.key), measure)
            ),
        )
        for cell in analysis.cells
    ]  # fmt: skip
    return place_sheet(columns, lines if measures else [])


def attribute_sheet(analysis: TaskAnalysis, measure: Measure) -> Sheet:
    """One measure: a row a cell, a column an attribute (or class)."""
    found: dict[tuple[str, float | None, bool], dict[str, float | None]] = {}
    for row in analysis.attributes:
        place = (row.method, row.sparsity, row.dense)
        found.setdefault(place, {})[row.name] = row.values.get(measure.key)
    scale, decimals = looks.scale_of(measure), looks.decimals_of(measure)
    lines = [
        Line(
            method, sparsity, dense,
            tuple(number_cell(values.get(name), scale, decimals) for name in analysis.outputs),
        )
        for (method, sparsity, dense), values in found.items()
    ]  # fmt: skip
    return place_sheet([Column(name, measure.help) for name in analysis.outputs], lines)


def group_summary_sheet(analysis: TaskAnalysis) -> Sheet:
    """Of each cell the groups that lost and gained most, and how many of those listed really changed."""
    columns = (
        Column("Largest fall, points", "Change of accuracy, mean over seeds"),
        Column("Of group", "Label / bias", numeric=False),
        Column("Corrected p", "Of that fall"),
        Column("Largest rise, points", "Change of accuracy, mean over seeds"),
        Column("Of group", "Label / bias", numeric=False),
        Column("Corrected p", "Of that rise"),
        Column("Fell", f"Groups among those listed with corrected p < {ALPHA:g}"),
        Column("Rose", f"Groups among those listed with corrected p < {ALPHA:g}"),
        Column("Listed", "Groups of the cell that were kept: the largest losses and gains"),
    )
    found: dict[tuple[str, float | None], list[GroupChange]] = {}
    for group in analysis.groups:
        found.setdefault((group.method, group.sparsity), []).append(group)
    lines = []
    for (method, sparsity), groups in found.items():
        changed = [g for g in groups if g.change is not None]
        order = sorted(changed, key=lambda g: (g.change or 0.0, g.label, g.bias))
        falls, rises = [g for g in order if (g.change or 0) < 0], [g for g in order if (g.change or 0) > 0]
        counts = (sum(map(_is_real, falls)), sum(map(_is_real, rises)), len(groups))
        extremes = (*_extreme(falls[0] if falls else None), *_extreme(rises[-1] if rises else None))
        cells = (*extremes, *(Cell(str(value), value) for value in counts))
        lines.append(Line(method, sparsity, False, cells))
    return place_sheet(columns, lines)


def _extreme(group: GroupChange | None) -> tuple[Cell, ...]:
    if group is None:
        return (Cell(MISSING),) * 3
    name = text_cell(f"{group.label} / {group.bias}")
    return percent_cell(group.change), name, Cell(looks.p_value(group.corrected_p), group.corrected_p)


def _is_real(group: GroupChange) -> bool:
    return group.corrected_p is not None and group.corrected_p < ALPHA


def changed_groups_sheet(analysis: TaskAnalysis) -> tuple[Sheet, int]:
    """The groups whose accuracy changed (corrected p), and how many of them are not listed."""
    columns = (
        Column("Label", numeric=False),
        Column("Bias", numeric=False),
        Column("Kind", "Bias-aligned or conflicting", numeric=False),
        Column("Samples"),
        Column("Dense, %", "Accuracy of the dense models, mean over seeds"),
        Column("Pruned, %", "Accuracy of the pruned models, mean over seeds"),
        Column("Change, points"),
        Column("p", "Welch's t-test over seeds"),
        Column("Corrected p", "Holm's correction over the groups of the cell"),
    )
    changed = [g for g in analysis.groups if _is_real(g)]
    kept = sorted(changed, key=lambda g: g.corrected_p or 0.0)[:MOST_GROUPS]
    lines = [
        Line(
            g.method, g.sparsity, False,
            (
                text_cell(g.label), text_cell(g.bias), text_cell("aligned" if g.aligned else "conflicting"),
                Cell(str(g.samples), g.samples), percent_cell(g.dense_accuracy), percent_cell(g.accuracy),
                percent_cell(g.change), Cell(looks.p_value(g.p_value), g.p_value),
                Cell(looks.p_value(g.corrected_p), g.corrected_p),
            ),
        )
        for g in kept
    ]  # fmt: skip
    return place_sheet(columns, lines), len(changed) - len(kept)


def measure_words(measures: Sequence[Measure]) -> list[tuple[str, str]]:
    """Each measure's title and what it means."""
    return [(measure.title, measure.help) for measure in measures]
