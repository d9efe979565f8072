"""The presentation toolkit: written numbers, tables and plots, the same in every renderer."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace

import pytest

from prunebench.errors import UsageError
from prunebench.report import format as fmt
from prunebench.report import plot as plots
from prunebench.report.html import html_table, page_figures, script_json, switch
from prunebench.report.markdown import escape, markdown_table, page
from prunebench.report.plot import (
    Axis,
    Band,
    Bars,
    Callout,
    HeatMap,
    Mark,
    Plot,
    PlotGrid,
    Rule,
    Series,
    Style,
    small_multiples,
    spread,
)
from prunebench.report.plotly import plotly_figure
from prunebench.report.svg import clipped, svg
from prunebench.report.table import (
    Column,
    RowGroup,
    Table,
    bar_share,
    simple_table,
    terminal_table,
    text_column,
)
from prunebench.stats.intervals import Interval

HOSTILE = '</script><img src=x onerror=alert(1)>|*"&\x07'


# Written numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (fmt.number(-0.004, 2), "0.00"),
        (fmt.number(-1.25, 1), "\u22121.2"),
        (fmt.number(math.nan, 1), "\u2014"),
        (fmt.number(None, 1), "\u2014"),
        (fmt.percent(0.3794), "37.9"),
        (fmt.with_half_width(Interval(0.379, 0.012, 3)), "37.9 ± 1.2"),
        (fmt.with_half_width(Interval(0.379, math.nan, 1)), "37.9 ± \u2013"),
        (fmt.with_half_width(Interval(math.nan, math.nan, 3)), "\u2014"),
        (fmt.with_ends(0.62, 0.41, None), "0.62 [0.41, \u2013]"),
        (fmt.times(1.254), "1.25\u00d7"),
        (fmt.times(math.nan), "\u2014"),
        (fmt.times("2.0 ± 0.1"), "2.0 ± 0.1\u00d7"),
        (fmt.count(661898.4), "661,898"),
        (fmt.millions(11745792), "11.75"),
        (fmt.millions(12345), "0.012"),
        (fmt.significant(1024.2), "1,024"),
        (fmt.significant(86.13), "86.1"),
        (fmt.p_value(0.0004), "< 0.001"),
        (fmt.p_value(0.0316), "0.032"),
        (fmt.p_value(None), "\u2014"),
        (fmt.plural(1, "run"), "1 run"),
        (fmt.listed("seed", [0, 1]), "seeds 0, 1"),
        (fmt.cut("a  b\nc", 4), "a b\u2026"),
    ],
)
def test_numbers_are_written_one_way(written: str, expected: str) -> None:
    assert written == expected


def test_a_sparsity_is_written_and_placed_one_way() -> None:
    assert [fmt.sparsity(0.9), fmt.sparsity(None), fmt.sparsity(None, 0.4239)] == [
        "0.9",
        "native",
        "native, 0.424",
    ]
    assert fmt.sparsity(0.0, dense=True) == "dense"
    assert fmt.at_sparsity("dcwp", 0.95) == "dcwp at sparsity 0.95"
    assert fmt.at_sparsity("dcwp", None) == "dcwp at native sparsity"
    assert fmt.at_sparsity("dense", 0.0, dense=True) == "dense"
    assert [fmt.sparsity_place(value) for value in (0, 0.9, 0.99, 1)] == pytest.approx([0, 1, 2, 4])
    # A native sparsity has a tick only where it has room beside those that were asked for.
    ticks = fmt.sparsity_ticks([0.9, 0.5], [0.51, 0.97])
    assert [label for _, label in ticks] == ["0.5", "0.9", "0.97"]


# Tables


@dataclass(frozen=True)
class Sample:
    name: str
    accuracy: Interval | None
    steps: int = 0


COLUMNS = (
    text_column("name", "Name", "What it is called", value=lambda row: row.name, lead=True),
    Column(
        "accuracy", "Accuracy | all", "Mean, %", value=lambda row: row.accuracy, format=fmt.with_half_width,
        share=bar_share, short="Acc",
    ),
    Column("steps", "Steps"),
)  # fmt: skip
TABLE = Table(
    COLUMNS,
    (
        RowGroup((Sample("b", Interval(0.5, 0.01, 3), 10), Sample(HOSTILE, None, 2))),
        RowGroup((Sample("C", Interval(1.2, math.nan, 1), 3),), "Others"),
    ),
    "Samples",
    tag=lambda row: row.name[:1],
)


def printed(table: Table[Sample]) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(terminal_table(table))
    return stream.getvalue()


def test_a_cell_comes_from_its_column() -> None:
    name, accuracy, steps = TABLE.cells(TABLE.rows[0])
    assert (name.text, name.order) == ("b", "b")
    assert (accuracy.text, accuracy.order, accuracy.share) == ("50.0 ± 1.0", 0.5, 0.5)
    assert (steps.text, steps.order, steps.share) == ("10", 10.0, None)
    # Undefined is an em dash that sorts last and has no bar; a bar never leaves its cell.
    assert TABLE.cells(TABLE.rows[1])[1] == TABLE.cells(replace(TABLE.rows[1]))[1]
    assert (TABLE.cells(TABLE.rows[1])[1].text, TABLE.cells(TABLE.rows[1])[1].order) == ("\u2014", None)
    assert TABLE.cells(TABLE.rows[2])[1].share == 1.0
    assert TABLE.cells(TABLE.rows[2])[0].order == "c"


def test_columns_are_chosen_by_key_in_every_renderer() -> None:
    chosen = TABLE.choose("steps", "name")
    assert chosen.keys == ("steps", "name")
    assert markdown_table(chosen).splitlines()[:3] == ["| Steps | Name |", "| --: | :-- |", "| 10 | b |"]
    assert html_table(chosen).index("Steps") < html_table(chosen).index("Name")
    assert printed(chosen).index("Steps") < printed(chosen).index("Name")
    with pytest.raises(UsageError, match="did you mean accuracy"):
        TABLE.choose("accurac")


def test_a_table_says_the_same_everywhere() -> None:
    for text in (markdown_table(TABLE), html_table(TABLE), printed(TABLE)):
        assert all(words in text for words in ("50.0 ± 1.0", "120.0 ± \u2013", "\u2014", "10"))
    assert "Acc " in printed(TABLE)
    assert "| *Others* |  |  |" in markdown_table(TABLE)
    page_table = html_table(TABLE)
    assert page_table.count('<tbody class="sortable">') == 2
    assert 'data-tag="C"' in page_table
    assert 'style="--share:50.0%" data-order="0.5"' in page_table
    assert 'class="name" title="What it is called"' in page_table
    assert TABLE.where(lambda row: row.steps > 2).texts() == [
        ["b", "50.0 ± 1.0", "10"],
        ["C", "120.0 ± \u2013", "3"],
    ]
    assert simple_table(COLUMNS, [Sample("a", None)]).without_empty().keys == ("name", "steps")
    assert markdown_table(Table(COLUMNS, ())).count("\n") == 1


def test_hostile_names_are_harmless_in_every_renderer() -> None:
    line = next(line for line in markdown_table(TABLE).splitlines() if "onerror" in line)
    assert "<img" not in line
    assert line.count(" | ") == 2
    assert "\\|\\*" in line
    assert escape("a\nb [x](y)") == "a b \\[x\\](y)"
    assert "<img" not in html_table(TABLE)
    assert "onerror" in printed(TABLE)
    everything = svg(picture(HOSTILE), hints=True) + svg(heat(HOSTILE), hints=True)
    assert "<img" not in everything
    for text in (svg(picture(HOSTILE), hints=True), svg(heat(HOSTILE), hints=True)):
        ElementTree.fromstring(text)
    for figure in (plotly_figure(picture(HOSTILE)), plotly_figure(heat(HOSTILE))):
        shown = json.dumps([{k: v for k, v in trace.items() if k != "meta"} for trace in figure["data"]])
        assert "<img" not in shown
        assert "<" not in script_json(figure)
        assert json.loads(script_json(figure)) == figure
    assert "<img" not in switch(HOSTILE, Style("#000000")).sign


def test_a_page_is_paragraphs() -> None:
    assert page(["a", "", "b"]) == "a\n\nb\n"


# Plots


def picture(name: str = "first") -> Plot:
    """A plot with everything that a plot can have."""
    marks = (Mark(1, 2.0, 1.5, 2.5, "one\ntwo"), Mark(2, 3.0), Mark(3, math.nan), Mark(4, 4.0, label="end"))
    return Plot(
        name,
        Axis("Across", log=True),
        Axis("Upwards", suffix="\u00d7"),
        series=(
            Series(name, marks, Style("#0072B2", "dash", "square")),
            Series("hollow", (Mark(2, 2.5),), Style("#D55E00", "solid", "diamond"), line=False, hollow=True),
            *(
                Series(
                    symbol, (Mark(3, 3 + index),), Style("#009E73", "dot", symbol), line=False, opacity=0.5
                )
                for index, symbol in enumerate(("circle", "triangle-up", "star", "x", "ring"))
            ),
        ),
        bands=(Band(2.2, 2.8, "band"),),
        rules=(Rule(2.5, "band"), Rule(2, "second")),
        bars=(Bars("bars", ((2, 0, 1), (3, 0, 2))),),
        callouts=(Callout("7", 2, 3),),
        subtitle="words\nin two lines",
        foot=("below",),
        key="all",
    )


def heat(name: str = "row") -> HeatMap:
    values = ((1.0, -2.0, None, math.nan), (0.0, 2.0, 0.5, 1.5))
    return HeatMap(
        "Map", (name, "b"), ("x", "y", "z", "w"), values, groups=(("left", 3), (name, 1)), unit="points"
    )


def test_every_mark_is_in_both_renderers() -> None:
    text = svg(picture(), hints=True)
    tree = ElementTree.fromstring(text)
    tags = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert {"rect", "path", "polygon", "circle", "text", "title"} <= set(tags)
    assert tags.count("polygon") >= 2 + 1 + 1 + 1 + 1  # two squares and more, a diamond, a triangle, a star
    for words in (
        "first: one\ntwo",
        "bars: 1<",
        ">end</text>",
        ">7</text>",
        ">below</text>",
        ">in two lines</text>",
    ):
        assert words in text, words
    assert 'stroke-dasharray="7 4"' in text
    assert 'fill="#ffffff" stroke="#D55E00"' in text
    traces = plotly_figure(picture())["data"]
    assert [trace["type"] for trace in traces] == ["scatter", "bar", *["scatter"] * 9]
    assert [trace["meta"] for trace in traces[:5]] == ["reference", "bars", "reference", "reference", "first"]
    first = traces[4]
    assert (first["mode"], first["line"]["dash"], first["marker"]["symbol"]) == (
        "lines+markers+text",
        "dash",
        "square",
    )
    assert first["y"] == [2.0, 3.0, None, 4.0]
    assert first["error_y"]["array"] == [0.5, None, None, None]
    assert first["error_y"]["arrayminus"] == [0.5, None, None, None]
    assert first["hovertext"][0] == "one<br>two"
    symbols = {trace["name"]: trace["marker"]["symbol"] for trace in traces[5:]}
    assert symbols["hollow"] == "diamond-open"
    assert symbols["ring"] == "circle-open"
    assert plotly_figure(picture())["layout"]["annotations"][0]["text"] == "7"
    assert page_figures([picture()])["all"]["data"] == traces


def test_the_same_values_give_the_same_bytes() -> None:
    grid = PlotGrid("Grid", (picture("a"), picture("b")), foot=("words",))
    for value in (picture(), grid, heat()):
        assert svg(value) == svg(replace(value))
        assert not re.search(r"\d[eE][-+]?\d|nan|inf", re.sub(r"#\w{6}", "", svg(value)))
    assert json.dumps(plotly_figure(picture())) == json.dumps(plotly_figure(picture()))


def test_a_heat_map_crosses_what_is_undefined() -> None:
    assert heat().reach == 2.0
    assert (heat().colour(2.0), heat().colour(-9.0), heat().colour(0.0)) == ("#8c2d04", "#08306b", "#eeeeee")
    assert heat().colour(0.5) == "#f1cab8"  # half way from #eeeeee to #f4a582
    assert heat().headings == (("left", 1.0), ("row", 3.0))
    assert heat().breaks == (2.5,)
    text = svg(heat(), hints=True)
    assert text.count('stroke="#9aa4ae"') == 2
    assert "row, x: 1.000" in text
    trace = plotly_figure(heat())["data"][0]
    assert trace["z"] == [[1.0, -2.0, None, None], [0.0, 2.0, 0.5, 1.5]]
    assert (trace["zmin"], trace["zmax"]) == (-2.0, 2.0)


def test_nothing_to_draw_is_said_and_not_an_error() -> None:
    empty = Plot("Empty", Axis(), Axis(), (Series("none", (Mark(1, math.nan), Mark(2, None))),))
    assert empty.empty
    assert not picture().empty
    assert plotly_figure(empty)["data"] == []
    ElementTree.fromstring(svg(empty))
    ElementTree.fromstring(svg(PlotGrid("No plots", ())))
    hollow = HeatMap("None", ("a",), ("b",), ((None,),))
    assert plotly_figure(hollow)["data"] == []
    ElementTree.fromstring(svg(hollow))
    ElementTree.fromstring(svg(HeatMap("No rows", (), (), ())))


def test_axes_end_at_round_values_around_everything_that_fits() -> None:
    def ends(axis: Axis, *values: float, **interval: float) -> tuple[float, float]:
        marks = tuple(Mark(index, value, **interval) for index, value in enumerate(values))
        return plots.limits([Plot("", Axis(), axis, (Series("a", marks),))], "y")

    assert ends(Axis(), 31, 47) == (30, 50)
    assert ends(Axis(least=10, bounds=(0, 100)), 99, 99.5) == (90, 100)
    assert ends(Axis(), 31, 47, low=3.0) == (0, 50)
    assert ends(Axis(reach=0.5), 31, 47, low=3.0) == (20, 50)
    assert ends(Axis(log=True), 0.3, 7, -1) == (0.2, 10)
    assert ends(Axis(low=1, high=2), 31) == (1, 2)
    assert ends(Axis(), 5) == (2, 8)
    assert plots.ticks_of(Axis(suffix="\u00d7"), 0, 50)[1] == (10, "10\u00d7")
    assert [text for _, text in plots.ticks_of(Axis(), -0.2, 0.1)] == [
        "\u22120.2",
        "\u22120.15",
        "\u22120.1",
        "\u22120.05",
        "0",
        "0.05",
        "0.1",
    ]
    assert plots.log_ticks(1, 100) == [1, 2, 5, 10, 20, 50, 100]
    assert plots.log_ticks(1, 1000) == [1, 3, 10, 30, 100, 300, 1000]
    assert spread([5, 5, 9], 2, 0, 10) == [5, 7, 9]
    assert spread([9, 10, 10], 2, 0, 10) == [6, 8, 10]


def test_a_line_is_cut_where_it_leaves_the_plot() -> None:
    area = (0, 0, 10, 10)
    assert clipped([(-5, 5), (5, 5), (15, 15)], area) == [[(0, 5), (5, 5), (10, 10)]]
    assert clipped([(2, 12), (4, 14)], area) == []
    assert clipped([(5, 5), (5, 15), (7, 15), (7, 5)], area) == [[(5, 5), (5, 10)], [(7, 10), (7, 5)]]
    # A series that leaves its axis is cut too, and a mark outside is not drawn.
    steep = Series("steep", (Mark(0, 1), Mark(1, 100)))
    text = svg(Plot("", Axis(low=0, high=1), Axis(low=0, high=10), (steep,)))
    assert text.count("<circle") == 1


def test_small_multiples_show_each_series_before_the_others() -> None:
    grid = small_multiples(replace(picture(), series=(*picture().series[:2],)), ["first", "hollow"])
    assert [plot.title for plot in grid.plots] == ["first", "hollow"]
    assert [series.name for series in grid.plots[0].series] == ["others", "first"]
    assert grid.plots[0].series[0].style.colour == plots.BEHIND
    text = svg(grid)
    assert text.count(">others</text>") == 1
    assert text.count(">Upwards</text>") == 1


def test_many_styles_stay_apart() -> None:
    styles = plots.styles_of(map(str, range(28)))
    assert len(set(styles.values())) == 28
    assert not {"#000000", "#F0E442"} & {style.colour for style in styles.values()}
    shifted = plots.dodged([Series("a", (Mark(1, 1),)), Series("b", (Mark(1, 1),))], 0.2)
    assert [one.marks[0].x for one in shifted] == pytest.approx([0.95, 1.05])


def test_the_axis_of_sparsity_reaches_beyond_every_achieved_one() -> None:
    """0.46 has no room for a tick beside 0.5; the star that stands there must not be cut."""
    axis = plots.sparsity_axis([0.5, 0.9], [0.46])
    assert [label for _, label in axis.ticks] == ["0.5", "0.9"]
    assert axis.low == pytest.approx(fmt.sparsity_place(0.46) - 0.12)
    assert axis.high == pytest.approx(1 + 0.12)
