"""The tables of exemplars, of bias and variance, of rank correlations and of what the dense model foretold."""

from __future__ import annotations

from prunebench.analysis import looks
from prunebench.analysis.looks import in_percent
from prunebench.analysis.sheets import Line, interval_cell, number_cell, percent_cell, place_sheet, text_cell
from prunebench.analysis.values import ALL_METHODS, WITHIN, TaskAnalysis
from prunebench.leaderboard.layout import Block, Cell, Column, Sheet


def exemplar_sheet(analysis: TaskAnalysis) -> Sheet:
    """Compression-identified exemplars beside what other seeds alone would give."""
    columns = (
        Column("Exemplars, %", "Samples whose most frequent label differs between all dense and all pruned"),
        Column("Equal populations, %", "The same between as many dense as pruned models"),
        Column("Control, %", "The same between dense models of other seeds"),
        Column("Beyond seeds, points", "Equal populations minus control: what pruning adds"),
        Column("Taxicab", "Mean L1 distance of the label distributions (0-2), equal populations"),
        Column("Taxicab control", "The same between dense models of other seeds"),
        Column("Right when pruned, %", "Of the exemplars, those that the pruned models' mode gets right"),
        Column("Population", "Models on each side of the equal populations"),
    )
    lines = [
        Line(
            row.method, row.sparsity, False,
            (
                percent_cell(row.share), percent_cell(row.matched_share), percent_cell(row.control_share),
                percent_cell(_difference(row.matched_share, row.control_share)),
                number_cell(row.taxicab), number_cell(row.control_taxicab), percent_cell(row.right_share),
                Cell(str(row.population), row.population),
            ),
        )
        for row in analysis.exemplars
    ]  # fmt: skip
    return place_sheet(columns, lines)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def split_sheet(analysis: TaskAnalysis) -> Sheet:
    """Bias and variance of the squared loss over seeds."""
    columns = (
        Column("Squared loss", "Mean over samples and seeds"),
        Column("Bias squared", "Of the mean prediction over seeds"),
        Column("Variance", "Of the predictions over seeds"),
        Column("Variance share, %", "Of the loss"),
    )
    lines = []
    for row in analysis.splits:
        share = row.variance / row.loss if row.variance is not None and row.loss else None
        values = (*map(number_cell, (row.loss, row.bias_squared, row.variance)), percent_cell(share))
        lines.append(Line(row.method, row.sparsity, row.dense, values))
    return place_sheet(columns, lines)


def correlation_sheet(analysis: TaskAnalysis) -> Sheet:
    """Rank correlations of pairs of measures: of all methods first."""
    columns = (
        Column("Method", numeric=False), Column("First measure", numeric=False),
        Column("Second measure", numeric=False), Column("Spearman's rho", "With its 95 % interval"),
        Column("Seeds"),
    )  # fmt: skip
    ordered = sorted(
        analysis.correlations, key=lambda c: (c.method is not None, c.method != WITHIN, c.method or "")
    )
    rows = tuple(
        (
            text_cell(ALL_METHODS if entry.method is None else entry.method),
            text_cell(looks.measure_title(analysis, entry.first)),
            text_cell(looks.measure_title(analysis, entry.second)),
            interval_cell(entry.rho),
            Cell(str(entry.rho.n), entry.rho.n),
        )
        for entry in ordered
    )
    return Sheet(columns, (Block(None, rows),) if rows else ())


def sample_foretelling_sheet(analysis: TaskAnalysis) -> Sheet:
    """How the dense models' uncertainty ranks the samples that pruning changed."""
    columns = (
        Column("Event", numeric=False),
        Column("Happened, %", "Share of the samples"),
        Column("AUROC", "0.5: no better than chance; with its 95 % interval"),
        Column("Average precision"),
        Column("Recall at 5 %", "Of the changed samples, those among the 5 % least sure; in %"),
    )
    lines = [
        Line(
            row.method, row.sparsity, False,
            (
                text_cell(row.event), percent_cell(row.happened), interval_cell(row.area_under_curve, 1, 3),
                number_cell(row.average_precision), percent_cell(row.recall_at_5_percent),
            ),
        )
        for row in analysis.sample_foretelling
    ]  # fmt: skip
    return place_sheet(columns, lines)


def attribute_foretelling_sheet(analysis: TaskAnalysis) -> Sheet:
    """How criteria of the dense model rank the attributes whose bias then grew."""
    columns = (
        Column("Criterion of the dense model", numeric=False),
        Column("Spearman's rho", "With its 95 % interval"),
        Column("Number", "Of attributes or classes"),
    )
    lines = [
        Line(
            row.method, row.sparsity, False,
            (text_cell(row.criterion), interval_cell(row.rho), Cell(str(row.rho.n), row.rho.n)),
        )
        for row in analysis.attribute_foretelling
    ]  # fmt: skip
    return place_sheet(columns, lines)


def susceptible_sheet(analysis: TaskAnalysis) -> Sheet:
    """The samples of which the dense models are least sure."""
    columns = (
        Column("Sample", "Index in the test split"), Column("Uncertainty"),
        Column("Label", numeric=False), Column("Bias", numeric=False),
        Column("Dense", "What the dense models say", numeric=False),
        Column("Pruned", "What the pruned models say", numeric=False),
        Column("Flipped, %", "Pruned runs whose label differs from the dense run of the same seed"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(str(s.index), s.index), number_cell(s.score), text_cell(s.label), text_cell(s.bias),
            text_cell(s.dense), text_cell(s.sparse), Cell(in_percent(s.flipped_share), s.flipped_share),
        )
        for s in analysis.susceptible
    )  # fmt: skip
    return Sheet(columns, (Block(None, rows),) if rows else ())
