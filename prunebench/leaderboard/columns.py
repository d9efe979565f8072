"""Columns of the leaderboard, each defined once; tables, README and terminal choose among them by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from prunebench.leaderboard.aggregate import RANKED
from prunebench.leaderboard.values import Difference, Leaderboard, MeasuredSpeed, MethodRow, RowCost, Track
from prunebench.metrics.registry import Metric, metric_named, metrics
from prunebench.report import format as fmt
from prunebench.report.table import (
    Column,
    Table,
    bar_share,
    grouped_rows,
    natural_order,
    simple_table,
    terminal_table,
    text_column,
)
from prunebench.results.ranking import FEWEST_SEEDS
from prunebench.results.tracks import REFERENCE
from prunebench.stats.intervals import Interval, share_bounds

if TYPE_CHECKING:
    from rich.table import Table as RichTable

CUT = 1e-12
"""By how much an interval must be cut at what is possible to be written with its ends."""
VERIFIED_HELP = (
    "Of submitted rows: consistent, re-evaluated (zeros counted and logits computed here from the stored weights), "
    "re-trained (some runs, drawn by a public seed, trained here), or unverified weights (predictions alone)"
)
IN_DISTRIBUTION_METRIC = "plain"
"""The metric of the validation split that says how good a network is on data like those of training."""
SEEN, UNSEEN = "conflicting_seen", "conflicting_unseen"
MASK_WORDS = {True: "beats its shuffled mask", False: "not shown to beat its shuffled mask"}
NATIVE = "Native sparsity: chosen by the method"
TERMINAL = (
    "sparsity", "method", "conflicting", "conflicting_rank", "conflicting_change", "worst_tenth",
    "training", "nonzero_macs_share", "speed_up", "seeds",
)  # fmt: skip
TERMINAL_CAPTION = (
    "Zeros: sparsity asked for. Bias-conflicting accuracy in %, mean over seeds ± half-width of its 95 % t-interval. "
    f"Rank: places that the data allow, from {FEWEST_SEEDS} seeds. Change: from {REFERENCE}, paired; *: different at a "
    "false discovery rate of 5 %. Worst tenth of groups: mean. Training: of the steps of the reference. MACs: non-zero "
    f"share, %. Speed: dense / pruned latency; n.s.: no measurable difference. {fmt.MISSING}: no such number."
)


@dataclass(frozen=True)
class BoardLine:
    """A line of a table: a row with the speeds that it shows, all of its setups' or one's."""

    row: MethodRow
    speeds: tuple[MeasuredSpeed, ...]


def of_cost(value: Callable[[RowCost], float]) -> Callable[[BoardLine], float | None]:
    """A value of a row's cost; None where it has none or it is undefined."""

    def found(line: BoardLine) -> float | None:
        number = value(line.row.cost) if line.row.cost is not None else math.nan
        return number if math.isfinite(number) else None

    return found


def of_speeds(value: Callable[[MeasuredSpeed], Any]) -> Callable[[BoardLine], Any]:
    """The values of a line's speeds; None without any."""
    return lambda line: tuple(map(value, line.speeds)) or None


def joined(write: Callable[[Any], str]) -> Callable[[Sequence[Any]], str]:
    """How several values are written: with commas."""
    return lambda values: ", ".join(map(write, values))


def metric_column(metric: Metric) -> Column[BoardLine]:
    """The column of a metric: its mean with the half-width over seeds, in its unit, within what is possible."""
    words = {"points": "percentage points"}.get(metric.unit, metric.unit)
    bar = metric.unit == "%" and metric.better == "higher"

    return Column(
        metric.name,
        metric.short,
        f"{metric.title}{words and f', {words}'}: {lowered(metric.help)}",
        value=lambda line: fmt.FOLDED if metric.name in line.row.folded else line.row.metric(metric.name),
        format=lambda value: value if isinstance(value, str) else interval_text(value, metric),
        order=lambda value: None if isinstance(value, str) else natural_order(value),
        share=(lambda value: None if isinstance(value, str) else bar_share(value)) if bar else None,
    )


def interval_text(interval: Interval, metric: Metric) -> str:
    """`61.2 ± 3.4` in a metric's unit, with its ends instead where it is cut at what is possible."""
    bounds = cut_bounds(interval, metric)
    if bounds is None:
        return fmt.with_half_width(interval, metric.decimals, metric.scale)
    return fmt.with_ends(interval.mean, *bounds, metric.decimals, metric.scale)


def cut_bounds(interval: Interval, metric: Metric) -> tuple[float, float] | None:
    """The ends of an interval that is cut at what a metric can be; None where it is not, or is not known."""
    lowest, highest = metric.range
    if lowest <= interval.mean - interval.half_width and interval.mean + interval.half_width <= highest:
        return None
    low, high = share_bounds(interval, lowest, highest)
    if high - low >= 2 * interval.half_width - CUT or not math.isfinite(high - low):
        return None
    return low, high


def rank_column(metric: Metric) -> Column[BoardLine]:
    """The rank interval of a method by a metric."""
    return Column(
        f"{metric.name}_rank",
        f"Rank ({metric.short.lower()})",
        "Places within this sparsity that the tests allow: 2-4 is second to fourth",
        value=lambda line: fmt.FOLDED if metric.name in line.row.folded else line.row.ranks.get(metric.name),
        order=lambda rank: None if isinstance(rank, str) else rank.best,
        short="Rank",
    )


def change_column(metric: Metric) -> Column[BoardLine]:
    """How far a row is above the reference by a metric, paired by seed; a star where the tests tell them apart."""
    return Column(
        f"{metric.name}_change",
        f"Change from {REFERENCE}",
        f"{metric.title}, percentage points, paired by seed; *: apart at a false discovery rate of 5 %",
        value=lambda line: line.row.changes.get(metric.name),
        format=difference_text,
        order=lambda difference: natural_order(difference.interval),
        short="Change",
    )


def difference_text(difference: Difference) -> str:
    """`+3.2 ± 1.1 *` in percentage points, the star where it is decided."""
    return f"{fmt.signed(difference.interval)}{' *' * difference.decided}"


def board_metrics() -> list[Metric]:
    """The metrics that the board shows, in the registry's order."""
    return [metric for metric in metrics() if metric.board]


def lowered(text: str) -> str:
    """A sentence as it goes on after a colon; what is no word in lower case (R2) stays."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def metric_words(*, attributes: bool) -> str:
    """What the columns of metrics mean, a sentence each."""
    shown = (metric for metric in board_metrics() if metric.of_attributes == attributes)
    return " ".join(f"{metric.short}: {lowered(metric.help).rstrip('.')}." for metric in shown)


def first(values: Sequence[float | Interval]) -> float | str | None:
    """What a line sorts by: the first of its values."""
    return natural_order(values[0])


milliseconds = joined(partial(fmt.number, decimals=2))


def speed_text(speed: MeasuredSpeed) -> str:
    """`1.16× ± 0.02`, with `n.s.` where no difference was measurable and `busy` where the machine was."""
    return f"{fmt.times(fmt.with_half_width(speed.speed_up, 2, 1))} {speed.remark}".rstrip()


LEADING = (
    Column("sparsity", "Sparsity", "Share of zeros asked for", value=attrgetter("row.tag"),
           order=lambda tag: float(tag) if tag[0].isdigit() else {"dense": 0.0}.get(tag), short="Zeros"),
    text_column("method", "Method", value=attrgetter("row.label"), lead=True),
    text_column("supervision", "Supervision", "Bias labels that the method may see",
                value=attrgetter("row.supervision")),
    Column("achieved", "Achieved", "Share of zeros counted after fine-tuning, mean over seeds",
           value=attrgetter("row.achieved.mean"), format=lambda value: fmt.number(value, 4)),
)  # fmt: skip
COSTS = (
    Column("nonzero_parameters", "Non-zero parameters", "All parameters of the network that are not zero",
           value=of_cost(attrgetter("nonzero_parameters")), format=fmt.count),
    Column("nonzero_share", "Share", "Of all parameters, %", format=fmt.percent,
           value=of_cost(lambda cost: cost.nonzero_parameters / cost.parameters if cost.parameters else math.nan)),
    Column("macs", "MACs dense, M", "Multiply-accumulates of one image, millions",
           value=of_cost(attrgetter("macs")), format=fmt.millions),
    Column("nonzero_macs", "MACs non-zero, M", "Those with a non-zero weight, millions",
           value=of_cost(attrgetter("nonzero_macs")), format=fmt.millions),
    Column("nonzero_macs_share", "MACs non-zero, %", "Of all multiply-accumulates", short="MACs",
           value=of_cost(lambda cost: 1 / cost.theoretical_speed_up), format=fmt.percent),
    Column("theoretical_speed_up", "Theoretical speed-up", "MACs dense / non-zero: if every zero were skipped",
           value=of_cost(attrgetter("theoretical_speed_up")), format=fmt.times),
    Column("speed_up", "Measured speed-up",
           "Latency dense / pruned, within one run; n.s.: no measurable difference; busy: the machine was",
           short="Speed", value=of_speeds(lambda speed: speed), format=joined(speed_text),
           order=lambda speeds: natural_order(speeds[0].speed_up)),
    Column("dense_ms", "Latency dense, ms", "Median over runs of the median",
           value=of_speeds(attrgetter("dense_ms")), format=milliseconds, order=first),
    Column("pruned_ms", "Latency pruned, ms", "Median over runs of the median",
           value=of_speeds(attrgetter("pruned_ms")), format=milliseconds, order=first),
    Column("training", "Training", f"Training steps in all, as a multiple of those of {REFERENCE}",
           value=of_cost(attrgetter("training")), format=fmt.times, short="Train"),
    text_column("machine", "Machine (runs)", "Where these latencies were taken, in how many runs",
                value=of_speeds(lambda speed: f"{speed.machine.label} ({speed.runs})"), format=", ".join,
                order=lambda names: names[0].lower()),
)  # fmt: skip
MINING = (
    Column("mining_precision", "Precision", "Of the mined images, those that conflict, %",
           value=attrgetter("row.mining_precision"), format=fmt.with_half_width),
    Column("mining_recall", "Recall", "Of the conflicting images, those that were mined, %",
           value=attrgetter("row.mining_recall"), format=fmt.with_half_width),
)  # fmt: skip
MASKS: tuple[Column[BoardLine], ...] = (
    Column("over_shuffled", "Over its shuffled mask",
           "Bias-conflicting accuracy minus that with the mask shuffled within layers, percentage points",
           value=lambda line: line.row.mask and line.row.mask.shuffled, format=difference_text,
           order=lambda difference: natural_order(difference.interval)),
    Column("over_unpruned", "Over itself unpruned",
           "Bias-conflicting accuracy minus that of the method without pruning, percentage points",
           value=lambda line: line.row.mask and line.row.mask.unpruned, format=difference_text,
           order=lambda difference: natural_order(difference.interval)),
    text_column("unpruned_form", "Unpruned form", "The row that stands for the method without pruning",
                value=lambda line: line.row.mask and line.row.mask.unpruned and line.row.mask.unpruned.against),
    text_column("mask_verdict", "The mask",
                "Whether it is better than a shuffled one, at a false discovery rate of 5 % within the sparsity",
                value=lambda line: line.row.mask and MASK_WORDS.get(line.row.mask.beats_shuffled)),
)  # fmt: skip
UNRANKED = text_column(
    "unranked", "No rank because", "Why a row has no rank", value=lambda line: line.row.unranked or None
)
SEEDS = Column(
    "seeds", "Seeds", "Finished / planned", value=attrgetter("row"),
    format=lambda row: f"{len(row.seeds)}/{len(row.planned)}", order=lambda row: float(len(row.seeds)),
)  # fmt: skip
IN_DISTRIBUTION: Column[BoardLine] = Column(
    "in_distribution", "In-distribution", "Average accuracy, %, on validation images, which are biased like training's",
    value=lambda line: line.row.in_distribution if math.isfinite(line.row.in_distribution.mean) else None,
    format=lambda interval: interval_text(interval, metric_named(IN_DISTRIBUTION_METRIC)),
)  # fmt: skip
VERIFIED = text_column("verified", "Verified", VERIFIED_HELP, value=lambda line: line.row.verified or None)


def board_table(track: Track, *, by_setup: bool = False) -> Table[BoardLine]:
    """All columns of a track, and a line a row; `by_setup`: a line for each setup that a row was timed in."""
    found = []
    for metric in board_metrics():
        more = (rank_column(metric), change_column(metric)) if metric.name in RANKED else ()
        found += [metric_column(metric), *more]

    def lines(rows: Sequence[MethodRow]) -> list[BoardLine]:
        speeds = [(row, row.cost.speeds if row.cost is not None else ()) for row in rows]
        if not by_setup:
            return [BoardLine(row, own) for row, own in speeds]
        return [BoardLine(row, own[i : i + 1]) for row, own in speeds for i in range(max(len(own), 1))]

    groups = ((None, lines(track.dense)), (None, lines(track.pruned)), (NATIVE, lines(track.native)))
    columns = (*LEADING, *found, IN_DISTRIBUTION, *COSTS, *MINING, *MASKS, VERIFIED, UNRANKED, SEEDS)
    return Table(columns, grouped_rows(groups), track.title, tag=lambda line: line.row.tag)


def shown_metrics(track: Track, *, attributes: bool) -> list[str]:
    """The keys of a track's metrics: those of its groups, or those over several attributes.

    Metrics that no row has are left out, those that are folded in every row, and the two parts of the conflicting
    groups where training saw all of them.
    """
    done = [row for row in track.rows if row.has_means]
    parted = any(math.isfinite(row.metric(UNSEEN).mean) for row in done)
    return [
        metric.name
        for metric in board_metrics()
        if metric.of_attributes == attributes
        and (metric.name in track.metrics or not track.finished)
        and not (done and all(metric.name in row.folded for row in done))
        and (parted or metric.name not in (SEEN, UNSEEN))
    ]


def with_ranks(keys: Sequence[str], *, head_alone: bool = False) -> list[str]:
    """Keys of metrics, each with its rank (or the head's alone), and the head with its change.

    The head is the first of the ranked metrics that is among them.
    """
    head = next((key for key in RANKED if key in keys), None)
    found = []
    for key in keys:
        rank = [f"{key}_rank"] if key == head or (key in RANKED and not head_alone) else []
        found += [key, *rank, *([f"{key}_change"] if key == head else [])]
    return found


def accuracy_table(track: Track) -> Table[BoardLine]:
    """Accuracies, ranks, changes and training costs of a track; how far rows were verified, where any was."""
    keys = with_ranks(shown_metrics(track, attributes=False))
    keys += ["in_distribution"] if any(math.isfinite(row.in_distribution.mean) for row in track.rows) else []
    keys += ["training", *(["verified"] if track.verified else []), "unranked"]
    return board_table(track).choose(*(column.key for column in LEADING), *keys, "seeds")


def masks_table(track: Track) -> Table[BoardLine] | None:
    """What masks add: over shuffled ones, and over the method without pruning; None without any control."""
    keys = [column.key for column in MASKS]
    table = board_table(track).choose("sparsity", "method", "conflicting", *keys)
    table = table.where(lambda line: line.row.mask is not None)
    return table if table.rows else None


def attributes_table(track: Track) -> Table[BoardLine] | None:
    """Means over the attributes of a multi-label task; None for a task of classes."""
    keys = shown_metrics(track, attributes=True)
    known = any(math.isfinite(row.metric(key).mean) for row in track.rows for key in keys)
    return board_table(track).choose("sparsity", "method", *keys, "seeds") if known else None


def cost_table(track: Track) -> Table[BoardLine]:
    """Sizes, latencies and training costs of a track; a line a setup where there are several."""
    several = len(track.machines) > 1
    keys = [column.key for column in COSTS if column.key not in ("nonzero_macs_share", "machine")]
    table = board_table(track, by_setup=several)
    return table.choose("sparsity", "method", *keys, "seeds", *(["machine"] if several else []))


def mining_table(track: Track) -> Table[BoardLine] | None:
    """Precision and recall of the mined training images; None where no method mines."""
    table = board_table(track).choose("sparsity", "method", "mining_precision", "mining_recall")
    table = table.where(lambda line: line.row.mining_precision is not None)
    return table if table.rows else None


def summary_table(track: Track, rows: Sequence[MethodRow]) -> Table[BoardLine]:
    """What stands in the project's README: some rows with the registry's metrics for it, speed-ups and training."""
    shown = shown_metrics(track, attributes=False)
    names = [metric.name for metric in board_metrics() if metric.readme and metric.name in shown]
    names = [name for name in names if any(row.has_means and name not in row.folded for row in rows)]
    keys = with_ranks(names, head_alone=True)
    table = board_table(track).choose(
        "method", "sparsity", "supervision", *keys, "training", "theoretical_speed_up", "speed_up", "seeds"
    )
    lines = [line for line in table.rows if line.row in rows]
    return replace(table, groups=grouped_rows([(None, lines)]))


def methods_table(board: Leaderboard) -> Table[tuple[str, str, str]]:
    """Methods with their supervision and source."""
    titles = ("Method", "Supervision", "Source")
    columns = [
        text_column(title.lower(), title, value=lambda facts, place=place: facts[place])
        for place, title in enumerate(titles)
    ]
    return simple_table(columns, board.methods, "Methods")


def origin_tables(board: Leaderboard) -> tuple[Table[tuple[str, int]], Table[tuple[str, int]]]:
    """Machines with versions, and commits, each with the number of finished runs."""

    def table(title: str, entries: Sequence[tuple[str, int]]) -> Table[tuple[str, int]]:
        runs: Column[tuple[str, int]] = Column("runs", "Finished runs", value=lambda entry: entry[1])
        return simple_table((text_column("name", title, value=lambda entry: entry[0]), runs), entries, title)

    return table("Machine and versions", board.environments), table("Code", board.commits)


def speed_summary(track: Track) -> str | None:
    """One sentence on what zeros could have saved and what they did; None without finished pruned rows."""
    costs = [row.cost for row in (*track.pruned, *track.native) if row.cost is not None]
    speeds = [speed for cost in costs for speed in cost.speeds]
    ideal = [cost.theoretical_speed_up for cost in costs]
    quiet = [speed.ratio for speed in speeds if not speed.disturbed]
    if not speeds or not all(map(math.isfinite, [*(speed.ratio.mean for speed in speeds), *ideal])):
        return None
    rows = fmt.plural(len(costs), "pruned row")
    text = f"Over {rows}, skipping every zero would make the network {_span(ideal, 1)} as fast."
    if not quiet:
        return f"{text} Every speed was measured on a busy machine, which says little."
    faster = [ratio.mean for ratio in quiet if ratio.differs and ratio.mean > 1]
    slower = sum(ratio.differs and ratio.mean < 1 for ratio in quiet)
    same, busy = len(quiet) - len(faster) - slower, len(speeds) - len(quiet)
    span = f" ({_span(faster, 2)})" if faster else ""
    parts = [f"{len(faster) or 'none'} {'are' if len(faster) > 1 else 'is'} faster than dense{span}"]
    parts += [f"{slower} {'are' if slower > 1 else 'is'} slower"] if slower else []
    parts += [f"{same} {'show' if same > 1 else 'shows'} no measurable difference"] if same else []
    text += f" Measured, {listed_words(parts)}"
    return (
        f"{text}; {busy} more on a busy machine {'say' if busy > 1 else 'says'} little."
        if busy
        else f"{text}."
    )


def listed_words(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _span(values: Sequence[float], decimals: int) -> str:
    low, high = (fmt.times(end, decimals) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def board_terminal(board: Leaderboard) -> list[RichTable]:
    """One narrow table a track, for rich to print; of some numbers the means alone."""
    found = []
    for track in board.tracks:
        table = board_table(track).choose(*TERMINAL)
        columns = tuple(_narrow(column) for column in table.columns)
        found.append(terminal_table(replace(table, columns=columns), TERMINAL_CAPTION))
    return found


def _narrow(column: Column[BoardLine]) -> Column[BoardLine]:
    if column.key == "worst_tenth":
        return replace(column, title="Worst tenth", format=lambda interval: fmt.percent(interval.mean))
    return column
