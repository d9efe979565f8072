"""What stands in which column: tables as plain text cells, for Markdown, HTML and terminal alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunebench.leaderboard import words
from prunebench.leaderboard.board import Board, Section
from prunebench.leaderboard.rows import Cost, Row, Speed
from prunebench.leaderboard.words import MISSING, TIMES, in_percent, number, sparsity_words
from prunebench.stats.intervals import Interval
from prunebench.stats.tests import Rank


@dataclass(frozen=True)
class Cell:
    """Text, what it sorts by (None: last), and a 0-1 share for a bar behind it."""

    text: str
    order: float | str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Block:
    """Rows under one heading, sorted among themselves. `sparsities` names each row's (`dense`, `native`)."""

    heading: str | None
    rows: tuple[tuple[Cell, ...], ...]
    sparsities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """Heading, explanation, and whether it holds numbers."""

    title: str
    help: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Sheet:
    """A table."""

    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return [row for block in self.blocks for row in block.rows]


ACCURACY_COLUMNS = (
    Column("Sparsity", "Share of zeros asked for"),
    Column("Method", numeric=False),
    Column("Supervision", "Bias labels that the method may see", numeric=False),
    Column("Achieved", "Share of zeros counted after fine-tuning, mean over seeds"),
    Column("Unbiased", "Mean accuracy over all groups, %"),
    Column("Rank (unbiased)", "Within this sparsity; = marks a tie"),
    Column("Aligned", "Mean accuracy over bias-aligned groups, %"),
    Column("Conflicting", "Mean accuracy over bias-conflicting groups, %"),
    Column("Rank (conflicting)", "Within this sparsity; = marks a tie"),
    Column("Worst group", "Lowest accuracy of a group, %"),
    Column("Bias gap", "Aligned minus conflicting accuracy, percentage points"),
    Column("Seeds", "Finished / planned"),
)
COST_COLUMNS = (
    Column("Sparsity", "Share of zeros asked for"),
    Column("Method", numeric=False),
    Column("Non-zero parameters", "All parameters of the network that are not zero"),
    Column("Share", "Of all parameters, %"),
    Column("MACs dense, M", "Multiply-accumulates of one image, millions"),
    Column("MACs non-zero, M", "Those with a non-zero weight, millions"),
    Column("Theoretical speed-up", "MACs dense / non-zero: if every zero were skipped"),
    Column("Measured speed-up", "Latency dense / pruned, within one run"),
    Column("Latency dense, ms", "Median over runs of the median"),
    Column("Latency pruned, ms", "Median over runs of the median"),
    Column("Training", "Steps as a multiple of those of the dense model"),
    Column("Seeds", "Finished / planned"),
)
ATTRIBUTE_METRICS = {
    "attribute_accuracy": Column("Accuracy", "Over all attributes, %"),
    "bias_amplification": Column("Bias amplification", "Percentage points; positive: amplified"),
    "calibrated_bias_amplification": Column("Amplification, calibrated", "At the calibrated thresholds"),
    "underprediction": Column("Rare values predicted", "Predicted / true share of the rarer value, %"),
    "uncertain_share": Column("Uncertain", "Outputs strictly between 0.1 and 0.9, %"),
    "calibration_error": Column("Calibration error", "Expected calibration error, percentage points"),
    "interdependence": Column("Interdependence", "R\u00b2 of an attribute's predictions on all others, %"),
}
"""By metric: its column among the attributes; all are means over attributes, and identities where it has them."""
MACHINE_COLUMN = Column("Machine (runs)", "Where these latencies were taken, in how many runs", numeric=False)


def accuracy_sheet(section: Section) -> Sheet:
    """Accuracies and ranks of a section, by sparsity and method."""
    return Sheet(ACCURACY_COLUMNS, _blocks(section, lambda row: [_accuracy_cells(row)]))


def cost_sheet(section: Section) -> Sheet:
    """Sizes, latencies and training costs of a section; a row a machine where there are several."""
    if len(section.machines) <= 1:
        return Sheet(COST_COLUMNS, _blocks(section, lambda row: [_cost_cells(row, _only_speed(row))]))

    def rows(row: Row) -> list[tuple[Cell, ...]]:
        speeds: Sequence[Speed | None] = row.cost.speeds if row.cost is not None else (None,)
        return [(*_cost_cells(row, speed), _machine_cell(speed)) for speed in speeds]

    return Sheet((*COST_COLUMNS, MACHINE_COLUMN), _blocks(section, rows))


def mining_sheet(section: Section) -> Sheet | None:
    """Precision and recall of the mined training images; None where no method mines."""
    columns = (Column("Sparsity"), Column("Method", numeric=False), Column("Precision"), Column("Recall"))
    rows, sparsities = [], []
    for row in section.rows:
        if row.mining_precision is not None and row.mining_recall is not None:
            found = (_percent_cell(row.mining_precision), _percent_cell(row.mining_recall))
            rows.append((*_name_cells(row), *found))
            sparsities.append(_group_of(row))
    return Sheet(columns, (Block(None, tuple(rows), tuple(sparsities)),)) if rows else None


def attributes_sheet(section: Section) -> Sheet | None:
    """Means over the attributes of a multi-label task; None for a task of classes."""
    if not any(math.isfinite(row.metric("attribute_accuracy").mean) for row in section.rows):
        return None
    columns = (*ACCURACY_COLUMNS[:2], *ATTRIBUTE_METRICS.values(), ACCURACY_COLUMNS[-1])

    def cells(row: Row) -> tuple[Cell, ...]:
        found = [row.metric(name) for name in ATTRIBUTE_METRICS]
        values = [Cell(words.with_half_width(value, 100, 2), _order(value.mean)) for value in found]
        return (*_name_cells(row), *values, _seeds_cell(row))

    return Sheet(columns, _blocks(section, lambda row: [cells(row)]))


def methods_sheet(board: Board) -> Sheet:
    """Methods with their supervision and source."""
    columns = tuple(Column(title, numeric=False) for title in ("Method", "Supervision", "Source"))
    return Sheet(columns, (Block(None, tuple(tuple(map(_text_cell, facts)) for facts in board.methods)),))


def origin_sheets(board: Board) -> tuple[Sheet, Sheet]:
    """Machines with versions, and commits, each with the number of finished runs."""

    def sheet(title: str, entries: Sequence[tuple[str, int]]) -> Sheet:
        rows = tuple((_text_cell(name), Cell(str(runs), runs)) for name, runs in entries)
        return Sheet((Column(title, numeric=False), Column("Finished runs")), (Block(None, rows),))

    return sheet("Machine and versions", board.environments), sheet("Code", board.commits)


def speed_summary(section: Section) -> str | None:
    """One sentence on what zeros could have saved and what they did; None without finished pruned rows."""
    costs = [row.cost for row in (*section.pruned, *section.native) if row.cost is not None]
    ratios = [speed.speed_up.mean for cost in costs for speed in cost.speeds]
    ideal = [cost.theoretical_speed_up for cost in costs]
    if not ratios or not all(map(math.isfinite, [*ratios, *ideal])):
        return None
    return (
        f"Over {len(costs)} pruned row{'s' * (len(costs) != 1)}, skipping every zero would make the network "
        f"{_span(ideal, 1)} as fast; measured, it is {_span(ratios, 2)} as fast."
    )


def _span(values: Sequence[float], decimals: int) -> str:
    low, high = number(min(values), decimals), number(max(values), decimals)
    return f"{low}{TIMES}" if low == high else f"{low}{TIMES} to {high}{TIMES}"


def _blocks(section: Section, cells_of: Callable[[Row], list[tuple[Cell, ...]]]) -> tuple[Block, ...]:
    blocks = []
    for heading, rows in (
        (None, section.dense),
        (None, section.pruned),
        ("Native sparsity: chosen by the method", section.native),
    ):
        pairs = [(cells, _group_of(row)) for row in rows for cells in cells_of(row)]
        if pairs:
            blocks.append(Block(heading, *(tuple(part) for part in zip(*pairs, strict=True))))
    return tuple(blocks)


def _group_of(row: Row) -> str:
    return "dense" if row.dense else sparsity_words(row.sparsity)


def _name_cells(row: Row) -> tuple[Cell, Cell]:
    asked = Cell("dense" if row.dense else sparsity_words(row.sparsity), row.sparsity)
    return asked, _text_cell(row.method)


def _accuracy_cells(row: Row) -> tuple[Cell, ...]:
    return (
        *_name_cells(row),
        _text_cell(row.supervision),
        Cell(number(row.achieved.mean, 4), _order(row.achieved.mean)),
        _percent_cell(row.metric("unbiased"), bar=True),
        _rank_cell(row.ranks.get("unbiased")),
        _percent_cell(row.metric("aligned"), bar=True),
        _percent_cell(row.metric("conflicting"), bar=True),
        _rank_cell(row.ranks.get("conflicting")),
        _percent_cell(row.metric("worst_group"), bar=True),
        _percent_cell(row.metric("bias_gap")),
        _seeds_cell(row),
    )


def _cost_cells(row: Row, speed: Speed | None) -> tuple[Cell, ...]:
    cost = row.cost
    if cost is None:
        return (*_name_cells(row), *[Cell(MISSING)] * 9, _seeds_cell(row))
    return (
        *_name_cells(row),
        *_size_cells(cost),
        *_speed_cells(speed),
        _training_cell(cost),
        _seeds_cell(row),
    )


def _size_cells(cost: Cost) -> tuple[Cell, ...]:
    share = cost.nonzero_parameters / cost.parameters if cost.parameters else math.nan
    ideal = cost.theoretical_speed_up
    return (
        Cell(words.count(cost.nonzero_parameters), _order(cost.nonzero_parameters)),
        Cell(number(100 * share, 1), _order(share)),
        Cell(words.millions(cost.macs), _order(cost.macs)),
        Cell(words.millions(cost.nonzero_macs), _order(cost.nonzero_macs)),
        Cell(_multiple(number(ideal, 2)), _order(ideal)),
    )


def _speed_cells(speed: Speed | None) -> tuple[Cell, ...]:
    if speed is None:
        return (Cell(MISSING),) * 3
    ratio = words.with_half_width(speed.speed_up, 1, 2)
    return (
        Cell(_multiple(ratio), _order(speed.speed_up.mean)),
        Cell(number(speed.dense_ms, 2), _order(speed.dense_ms)),
        Cell(number(speed.pruned_ms, 2), _order(speed.pruned_ms)),
    )


def _training_cell(cost: Cost) -> Cell:
    return Cell(_multiple(number(cost.training, 2)), _order(cost.training))


def _only_speed(row: Row) -> Speed | None:
    return row.cost.speeds[0] if row.cost is not None else None


def _machine_cell(speed: Speed | None) -> Cell:
    if speed is None:
        return Cell(MISSING)
    return _text_cell(f"{speed.machine.label} ({speed.runs})")


def _seeds_cell(row: Row) -> Cell:
    return Cell(f"{len(row.seeds)}/{len(row.planned)}", len(row.seeds))


def _percent_cell(interval: Interval, *, bar: bool = False) -> Cell:
    share = min(1.0, max(0.0, interval.mean)) if bar and math.isfinite(interval.mean) else None
    return Cell(in_percent(interval), _order(interval.mean), share)


def _rank_cell(rank: Rank | None) -> Cell:
    return Cell(MISSING) if rank is None else Cell(str(rank), rank.place)


def _text_cell(text: str) -> Cell:
    return Cell(text, text.lower())


def _multiple(text: str) -> str:
    return text if text == MISSING else f"{text}{TIMES}"


def _order(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
