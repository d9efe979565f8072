"""Plots of an analysis: static ones with a panel a method, interactive ones with all methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prunebench.analysis import words
from prunebench.analysis.values import Condition, Estimate, Measure, TaskAnalysis
from prunebench.report import format as fmt
from prunebench.report.plot import (
    PALETTE,
    Axis,
    Band,
    Bars,
    HeatMap,
    Mark,
    Plot,
    PlotGrid,
    Rule,
    Series,
    Style,
    dodged,
    small_multiples,
    sparsity_axis,
    styles_of,
)

UNCERTAINTY_KEYS, DEPENDENCE_KEYS = ("uncertain_share", "entropy"), ("interdependence", "logit_correlation")
SMALLEST_SPAN = {"percent": 10.0, "points": 5.0, "number": 0.05}
"""What an axis spans at least, so that small differences look small."""
DODGE, COLUMNS, PANEL, REACH = 0.12, 4, (200.0, 130.0), 0.4
STAR = 4.5
BACKGROUND = "Grey band: the unpruned reference with its interval. Thin grey: the other methods."
SPLIT_COLOURS = (PALETTE[0], PALETTE[5])

Styles = Mapping[str, Style]
Reading = Callable[[Condition], Estimate | None]
"""What a plot shows of a condition, in the unit of its axis."""


@dataclass(frozen=True)
class PagePlot:
    """A picture in a part of the page; `static` ones are files `<slug>-<name>.svg`, the others interactive."""

    part: str
    name: str
    picture: Plot | PlotGrid | HeatMap
    caption: str
    static: bool


def analysis_styles(analyses: Iterable[TaskAnalysis], board_methods: Sequence[str] = ()) -> dict[str, Style]:
    """The leaderboard's look of each method; methods that it does not know follow, by name."""
    found = {method for analysis in analyses for method in analysis.methods}
    return styles_of([*board_methods, *sorted(found - set(board_methods))])


def conditions_of(analysis: TaskAnalysis, method: str) -> list[Condition]:
    """A method's pruned conditions, by sparsity; native sparsity last."""
    found = (row for row in analysis.conditions if row.method == method and not row.dense)
    return sorted(found, key=lambda row: math.inf if row.sparsity is None else row.sparsity)


def lead_measures(analysis: TaskAnalysis) -> list[Measure]:
    """What the hypotheses speak of: accuracy, bias, uncertainty, dependence and calibration, where measured."""
    by_key = {measure.key: measure for measure in analysis.measures}
    choices = ((analysis.accuracy_key,), (analysis.bias_key,), UNCERTAINTY_KEYS, DEPENDENCE_KEYS)
    keys = [next((key for key in keys if key in by_key), None) for keys in (*choices, ("calibration_error",))]
    return [by_key[key] for key in dict.fromkeys(keys) if key is not None]


def heat_measures(analysis: TaskAnalysis) -> list[Measure]:
    """What maps of attributes show: the bias first, where attributes have one."""
    first = (analysis.bias_key, "bias_amplification")
    return sorted(analysis.attribute_measures, key=lambda m: first.index(m.key) if m.key in first else 2)


def scatter_pairs(analysis: TaskAnalysis) -> list[tuple[Measure, Measure]]:
    """Uncertainty and bias, dependence and bias: what hypothesis (b) ties together."""
    by_key = {m.key: m for m in lead_measures(analysis) if _has_values(analysis, m)}
    bias = by_key.get(analysis.bias_key)
    others = [m for key, m in by_key.items() if key in (*UNCERTAINTY_KEYS, *DEPENDENCE_KEYS)]
    return [] if bias is None else [(other, bias) for other in others]


def _has_values(analysis: TaskAnalysis, measure: Measure) -> bool:
    """Whether any pruned condition has a value."""
    return any(_reading_of(measure)(row) is not None for row in analysis.conditions if not row.dense)


def _reading_of(measure: Measure) -> Reading:
    def read(row: Condition) -> Estimate | None:
        value = row.values.get(measure.key)
        return None if value is None or value.mean is None else value.times(measure.scale)

    return read


def plots_of(analysis: TaskAnalysis, styles: Styles) -> list[PagePlot]:
    """All plots that have anything to show, static and interactive."""
    found = [
        *_measure_plots(analysis, styles),
        *_scatter_plots(analysis, styles),
        *_heat_maps(analysis),
        *_exemplar_plots(analysis, styles),
        *_predictability_plots(analysis, styles),
        *_split_plots(analysis, styles),
    ]
    return [plot for plot in found if not _is_empty(plot.picture)]


def _is_empty(picture: Plot | PlotGrid | HeatMap) -> bool:
    if isinstance(picture, HeatMap):
        return not any(value is not None for row in picture.values for value in row)
    return all(plot.empty for plot in (picture.plots if isinstance(picture, PlotGrid) else (picture,)))


def _name(analysis: TaskAnalysis) -> str:
    return fmt.cut(words.page_name(analysis), 60)


def _seeds_note(analysis: TaskAnalysis) -> str:
    """What a point and its bar are."""
    if len(analysis.seeds) == 1:
        return "One seed: no intervals"
    return f"Mean over {len(analysis.seeds)} seeds; bars: 95 % t-interval, cut where it leaves the panel"


def _axis(analysis: TaskAnalysis) -> Axis:
    return sparsity_axis(analysis.sparsities, [row.achieved for row in analysis.native])


def _place(row: Condition) -> float:
    """Where a condition stands on the axis of sparsity: as asked for, else as achieved."""
    return fmt.sparsity_place(row.achieved if row.sparsity is None else row.sparsity)


def _lines(
    analysis: TaskAnalysis,
    method: str,
    name: str,
    style: Style,
    read: Reading,
    decimals: int,
    note: bool = True,
) -> list[Series]:
    """A line over all sparsities that were asked for, with gaps where the method has none; a star at a native one."""
    rows = {row.sparsity: row for row in conditions_of(analysis, method)}

    def mark(row: Condition) -> Mark:
        value = read(row)
        if value is None or value.mean is None:
            return Mark(_place(row), None)
        known = value.half_width is not None
        said = words.with_ends(value, decimals) if known else fmt.number(value.mean, decimals)
        label = fmt.number(row.achieved, 2) if row.sparsity is None and note else ""
        hint = f"{words.place_hint(row)}\n{said}"
        return Mark(_place(row), value.mean, value.low, value.high, hint, label)

    native = rows.pop(None, None)
    asked = [
        mark(rows[one]) if one in rows else Mark(fmt.sparsity_place(one), None) for one in analysis.sparsities
    ]
    found = [Series(name, tuple(asked), style)] if rows else []
    if native is not None:
        star = replace(style, symbol="star")
        found.append(Series(name, (mark(native),), star, line=False, size=STAR))
    return found


def _over_sparsity(
    analysis: TaskAnalysis, styles: Styles, title: str, y: Axis, read: Reading, decimals: int
) -> Plot:
    """A reading against sparsity: a line a method, the reference as a line in its band."""
    series = [
        line
        for method in analysis.methods
        for line in _lines(analysis, method, method, styles[method], read, decimals)
    ]
    series.sort(key=lambda line: not line.line)  # stars last: they lie on top, and are no sign for lines
    name = analysis.reference
    unpruned = [value for row in analysis.reference_rows if (value := read(row)) is not None]
    rules = tuple(
        Rule(v.mean, name, hint=f"{name}\n{words.with_ends(v, decimals)}")
        for v in unpruned
        if v.mean is not None
    )
    bands = tuple(Band(v.low, v.high, name) for v in unpruned if v.low is not None and v.high is not None)
    return Plot(title, _axis(analysis), y, tuple(series), bands, rules)


def _interactive(part: str, plot: Plot, key: str, title: str, caption: str) -> PagePlot:
    """A plot with all methods, whose intervals stand side by side."""
    asked = [series for series in plot.series if series.line]
    series = (*dodged(asked, DODGE), *(series for series in plot.series if not series.line))
    picture = replace(plot, title=title, subtitle="", series=series, caption=caption, key=key)
    return PagePlot(part, key, picture, caption, static=False)


def _as_panel(analysis: TaskAnalysis, plot: Plot) -> Plot:
    """A small plot, with ticks where sparsities were asked for: stars have labels of their own."""
    asked = sparsity_axis(analysis.sparsities).ticks
    return replace(plot, x=replace(plot.x, ticks=asked), width=PANEL[0], height=PANEL[1])


def _panels(analysis: TaskAnalysis, plot: Plot, title: str, subtitle: str) -> PlotGrid:
    """A panel a method with the others behind it."""
    whole = replace(_as_panel(analysis, plot), title=f"{title}: {_name(analysis)}", subtitle=subtitle)
    return small_multiples(whole, analysis.methods, COLUMNS, "other methods")


def _measure_plots(analysis: TaskAnalysis, styles: Styles) -> Iterable[PagePlot]:
    leads = lead_measures(analysis)
    for m in analysis.measures:
        if not _has_values(analysis, m):
            continue
        bounds = (0.0, 100.0) if m.unit == "percent" else (-math.inf, math.inf)
        y = Axis(words.axis_title(m), least=SMALLEST_SPAN[m.unit], bounds=bounds, reach=REACH)
        plot = _over_sparsity(analysis, styles, m.title, y, _reading_of(m), m.decimals)
        if m in leads:
            grid = _panels(analysis, plot, f"{m.title} against sparsity", _seeds_note(analysis))
            caption = f"{m.title} against sparsity. {m.help}. {BACKGROUND}"
            yield PagePlot("sparsity", m.key, grid, caption, static=True)
        yield _interactive("sparsity", plot, m.key, m.title, f"{m.help}.")


def _scatter_plots(analysis: TaskAnalysis, styles: Styles) -> Iterable[PagePlot]:
    """Bias against uncertainty and dependence: a mark a condition."""
    said = "A mark is a method at a sparsity, mean over seeds; larger for sparser."
    plots = []
    for x, y in scatter_pairs(analysis):
        told = words.rho_lines(analysis, x.key, y.key)
        rho = f" Spearman's rho: {'; '.join(told)}." if told else ""
        title, key = f"{y.title} against {x.title.lower()}", f"{x.key}-{y.key}"
        axes = Axis(words.axis_title(x)), Axis(words.axis_title(y))
        series = tuple(_scatter_series(analysis, styles, (x, y)))
        plot = Plot(title, *axes, series, key=key, caption=said + rho)
        yield PagePlot("together", key, plot, plot.caption, static=False)
        plots.append(replace(plot, title="", subtitle="\n".join(told), width=350, height=300))
    against = " and ".join(x.title.lower() for x, _ in scatter_pairs(analysis))
    note = f"{said} Above: Spearman's rho."
    grid = PlotGrid(f"Bias against {against}: {_name(analysis)}", tuple(plots), 2, note)
    caption = "Bias against uncertainty and dependence. A mark is a condition: mean over seeds."
    yield PagePlot("together", "scatter", grid, caption, static=True)


def _scatter_series(
    analysis: TaskAnalysis, styles: Styles, pair: tuple[Measure, Measure]
) -> Iterable[Series]:
    reads = [_reading_of(measure) for measure in pair]

    def marks(rows: Iterable[Condition]) -> tuple[Mark, ...]:
        found = []
        for row in rows:
            x, y = (read(row) for read in reads)
            if x is not None and y is not None and x.mean is not None:
                said = [f"{m.title} {words.with_half_width(row.values[m.key], m)}" for m in pair[::-1]]
                hint = "\n".join([words.place_hint(row), *said])
                size = None if row.sparsity is None or row.dense else 2.4 + 1.4 * _place(row)
                found.append(Mark(x.mean, y.mean, hint=hint, size=size))
        return tuple(found)

    for method in analysis.methods:
        rows = conditions_of(analysis, method)
        native = all(row.sparsity is None for row in rows)
        style = replace(styles[method], dash="solid", symbol="star" if native else styles[method].symbol)
        yield Series(method, marks(rows), style, width=0.8, size=STAR, line=not native)
    unpruned = marks(analysis.reference_rows)
    if unpruned:
        grey = Style("#7F7F7F", "solid", "x")
        yield Series(analysis.reference, unpruned, grey, line=False, size=5.0, key="reference")


def _heat_maps(analysis: TaskAnalysis) -> Iterable[PagePlot]:
    """Changes from the reference, attributes by conditions: that of the bias as a file too."""
    maps = [attribute_changes(analysis, measure) for measure in heat_measures(analysis)]
    for index, heat in enumerate(heat for heat in maps if not _is_empty(heat)):
        if index == 0:
            title = f"Change of {heat.title.lower()} from {analysis.reference}: {_name(analysis)}"
            note = "A block is a method, its columns sparser to the right; crossed: undefined"
            caption = f"Change of {heat.title.lower()} from {analysis.reference}. {heat.caption}"
            picture = replace(heat, title=title, subtitle=note)
            yield PagePlot("attributes", "attributes", picture, caption, static=True)
        yield PagePlot("attributes", heat.key, heat, heat.caption, static=False)


def attribute_changes(analysis: TaskAnalysis, measure: Measure) -> HeatMap:
    """By attribute and condition, the change of a measure from the reference, scaled as drawn."""
    unpruned = {
        row.name: row.values.get(measure.key)
        for row in analysis.attributes
        if row.method == analysis.reference
    }
    values = {
        (row.method, row.sparsity, row.name): row.values.get(measure.key) for row in analysis.attributes
    }
    by_method = [(method, conditions_of(analysis, method)) for method in analysis.methods]
    columns = [row for _, rows in by_method for row in rows]

    def change(name: str, row: Condition) -> float | None:
        before, after = unpruned.get(name), values.get((row.method, row.sparsity, name))
        return None if before is None or after is None else measure.scale * (after - before)

    return HeatMap(
        measure.title,
        analysis.outputs,
        tuple(fmt.at_sparsity(row.method, row.sparsity) for row in columns),
        tuple(tuple(change(name, row) for row in columns) for name in analysis.outputs),
        groups=tuple((method, len(rows)) for method, rows in by_method),
        unit="" if measure.unit == "number" else "points",
        caption=f"{measure.help}.",
        key=f"map-{measure.key}",
    )


def _exemplar_plots(analysis: TaskAnalysis, styles: Styles) -> Iterable[PagePlot]:
    """How often models of other seeds disagree, with the control; and how many exemplars the pruned get right."""
    rows = {(row.method, row.sparsity): row for row in analysis.exemplars}
    controls = sorted({row.control for row in analysis.exemplars if row.control is not None})

    def plot_of(key: str, y: Axis) -> Plot:
        def read(row: Condition) -> Estimate | None:
            found = None if row.dense else rows.get((row.method, row.sparsity))
            share = None if found is None else getattr(found, key)
            return None if share is None else Estimate(100 * share, None, None, 1)

        return _over_sparsity(analysis, styles, "", y, read, 1)

    name = "control: two unpruned"
    rules = tuple(Rule(100 * c, name, hint=f"control {100 * c:.1f} %") for c in controls)
    y = Axis("Share of test samples, %", least=10.0, bounds=(0.0, 100.0))
    plot = replace(plot_of("disagreement", y), rules=rules)
    grid = _panels(analysis, plot, "Expected disagreement", "A pruned and an unpruned model of another seed")
    caption = "Expected disagreement against sparsity, and what other seeds alone would give."
    yield PagePlot("exemplars", "exemplars", grid, caption, static=True)
    said = "Share of samples that a pruned and an unpruned model of another seed label differently."
    said += " Dashed: the control, two unpruned ones." if rules else ""
    yield _interactive("exemplars", plot, "exemplars", "Expected disagreement", said)
    right = plot_of("right_share", Axis("Share of exemplars, %", least=10.0, bounds=(0.0, 100.0)))
    said = "Of the exemplars, those that the most frequent label over pruned seeds gets right."
    yield _interactive("exemplars", right, "right", "Right when pruned", said)


def _predictability_plots(analysis: TaskAnalysis, styles: Styles) -> Iterable[PagePlot]:
    """AUROC of the dense models' uncertainty against sparsity: panels with a line an event; a plot an event."""
    rows = {(r.method, r.sparsity, r.event): r.area_under_curve for r in analysis.sample_predictability}
    events = list(dict.fromkeys(row.event for row in analysis.sample_predictability))
    means = [area.mean for area in rows.values() if area.mean is not None]
    y = Axis("AUROC", low=math.floor(10 * min([0.4, *means]) + 1e-9) / 10, high=1.0)
    guess = (Rule(0.5, "guessing"),)

    def read(event: str) -> Reading:
        return lambda row: None if row.dense else rows.get((row.method, row.sparsity, event))

    signs = itertools.cycle(("circle", "square", "diamond"))
    looks = {event: replace(style, symbol=next(signs)) for event, style in styles_of(events).items()}
    panels = []
    for method in analysis.methods:
        by_event = [_lines(analysis, method, e, looks[e], read(e), 3, note=False) for e in events]
        series = [line for lines in zip(*by_event) for line in dodged(lines, 0.15)]
        panels.append(_as_panel(analysis, Plot(method, _axis(analysis), y, tuple(series), rules=guess)))
    title = f"The dense models' uncertainty and the samples that pruning changes: {_name(analysis)}"
    note = "AUROC with its 95 % interval; stars: native sparsity"
    caption = (
        "How well the dense models' uncertainty ranks the samples that pruning changed; 0.5 is guessing."
    )
    grid = PlotGrid(title, tuple(panels), COLUMNS, note, shared=True)
    yield PagePlot("predictability", "predictability", grid, caption, static=True)
    for event in events:
        plot = replace(_over_sparsity(analysis, styles, "", y, read(event), 3), rules=guess)
        said = "0.5 is guessing; bars: 95 % interval."
        yield _interactive("predictability", plot, f"auc-{event}", f"Predictability: {event}", said)


def _split_plots(analysis: TaskAnalysis, styles: Styles) -> Iterable[PagePlot]:
    """Squared loss in bias squared and variance: bars in a panel a method; a plot each."""
    rows = {(row.method, row.sparsity): row for row in analysis.splits}
    sparsities: list[float | None] = [*analysis.sparsities]
    sparsities += [None] * bool(analysis.native)
    names = ["unpruned", *(fmt.sparsity(sparsity) for sparsity in sparsities)]
    unpruned = next((row for row in analysis.splits if row.method == analysis.reference), None)
    x = Axis("Sparsity", ticks=tuple((float(i), name) for i, name in enumerate(names)))
    y = Axis("Squared loss")
    panels = []
    for method in analysis.methods:
        found = [unpruned, *(rows.get((method, sparsity)) for sparsity in sparsities)]
        known = [
            (float(i), row.bias_squared, row.variance)
            for i, row in enumerate(found)
            if row is not None and row.bias_squared is not None and row.variance is not None
        ]
        bars = (
            Bars("bias squared", tuple((i, 0.0, bias) for i, bias, _ in known), SPLIT_COLOURS[0]),
            Bars("variance", tuple((i, bias, bias + rest) for i, bias, rest in known), SPLIT_COLOURS[1]),
        )
        panels.append(Plot(method, x, y, bars=bars, width=PANEL[0], height=PANEL[1]))
    seeds = "One seed" if len(analysis.seeds) == 1 else f"Mean over {len(analysis.seeds)} seeds"
    grid = PlotGrid(
        f"Squared loss over seeds: {_name(analysis)}", tuple(panels), COLUMNS,
        f"{seeds}; native: at the sparsity that the method chose", shared=True,
    )  # fmt: skip
    caption = "Squared loss over seeds, in bias squared and variance; the unpruned reference first."
    yield PagePlot("splits", "splits", grid, caption, static=True)
    for key, title, said in (
        ("bias_squared", "Bias squared of the loss", "What the mean prediction over seeds gets wrong."),
        ("variance", "Variance of the loss", "How far the seeds scatter about their mean."),
    ):

        def read(row: Condition, key: str = key) -> Estimate | None:
            found = rows.get((row.method, row.sparsity))
            return None if found is None else Estimate(getattr(found, key), None, None, 1)

        plot = _over_sparsity(analysis, styles, title, Axis(title, least=0.05), read, 3)
        yield _interactive("splits", plot, key, title, said)
