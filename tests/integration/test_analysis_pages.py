"""Pages of analyses: a pure function of the stored numbers, with every link on disk and nothing injected."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis_values import (
    METHODS,
    NASTY,
    NOTHING,
    attribute_analysis,
    class_analysis,
    odd_analysis,
)
from board_records import full_records, run, sound_records
from browsing import Visit, chromium
from PIL import Image

from prunebench.analysis import plots, tables, words
from prunebench.analysis.card_pages import cards_excerpt, cards_html, cards_json, cards_markdown
from prunebench.analysis.cards import CLAIMS, HypothesisCards
from prunebench.analysis.exemplars import SHOWN_SAMPLES, sample_grid
from prunebench.analysis.exploratory import exploratory_lines
from prunebench.analysis.plots import PagePlot, analysis_styles, plots_of
from prunebench.analysis.preregistered import HypothesisCard
from prunebench.analysis.report import (
    analysis_files,
    build_after_run,
    build_pages,
    index_markdown,
    links_of,
    task_markdown,
)
from prunebench.analysis.values import (
    Correlation,
    Estimate,
    Measure,
    TaskAnalysis,
    read_analysis,
    stored_analyses,
    write_analysis,
)
from prunebench.cli.progress import write_leaderboard
from prunebench.errors import DataError, StoreError, UsageError
from prunebench.leaderboard import build_board, write_board
from prunebench.leaderboard.build import MANIFEST, write_pages
from prunebench.report.format import MISSING, UNKNOWN
from prunebench.report.markdown import escape
from prunebench.report.plot import HeatMap, Plot, PlotGrid, limits, styles_of
from prunebench.report.plotly import plotly_figure
from prunebench.report.svg import svg
from prunebench.report.table import Table
from prunebench.results.standing import Retired, Standing, retire
from prunebench.results.store import Store
from prunebench.tasks import resolve_task

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}
COMMITTED = Path(__file__).parents[2] / "leaderboard" / "results"
FEW = ("dcwp", "magnitude", "snip")


def few(analysis: TaskAnalysis) -> TaskAnalysis:
    """The class analysis with three methods, for what need not be drawn in full."""
    return replace(analysis, slug="few", task="few", title="few")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "samples.png"
    path.write_bytes(sample_grid(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["a\nb"] * 3))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, grid: Path) -> Path:
    """All three fake analyses as pages, beside a board."""
    out = tmp_path_factory.mktemp("out")
    analyses = [few(class_analysis(FEW)), attribute_analysis(), odd_analysis()]
    write_pages(out, analysis_files(analyses, {"few": grid, "digit-attributes": grid}, cards=made_up_cards()))
    write_board(full_records(), out, links_of(analyses))
    return out


def markdown_of(analysis: TaskAnalysis, *, grid: bool = False) -> str:
    return task_markdown(analysis, plots_of(analysis, analysis_styles([analysis])), grid=grid)


def static_plots(analysis: TaskAnalysis) -> dict[str, PagePlot]:
    return {plot.name: plot for plot in plots_of(analysis, analysis_styles([analysis])) if plot.static}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cells(table: Table[Any], sparsity: str, method: str) -> dict[str, str]:
    """The texts of the one row of a condition, by column."""
    rows = [dict(zip(table.keys, texts, strict=True)) for texts in table.texts()]
    (found,) = (row for row in rows if (row["sparsity"], row["method"]) == (sparsity, method))
    return found


def measure_of(analysis: TaskAnalysis, key: str) -> Measure:
    return next(m for m in (*analysis.attribute_measures, *analysis.measures) if m.key == key)


# Tables


def test_a_cell_shows_mean_and_half_width_in_percent() -> None:
    analysis = class_analysis(FEW)
    row = next(c for c in analysis.conditions if (c.method, c.sparsity) == ("dcwp", 0.9))
    estimate = row.values["bias_gap"]
    assert estimate.mean is not None
    assert estimate.high is not None
    shown = cells(tables.measures_table(analysis), "0.9", "dcwp")
    assert shown["bias_gap"] == f"{100 * estimate.mean:.1f} ± {100 * (estimate.high - estimate.mean):.1f}"
    assert (shown["seeds"], shown["achieved"]) == ("3", "0.9000")


def test_what_is_undefined_is_a_dash_and_never_nought() -> None:
    analysis = attribute_analysis()
    holed = next(c for c in analysis.conditions if c.values["bias_amplification"] == NOTHING)
    shown = cells(tables.measures_table(analysis), f"{holed.sparsity:g}", holed.method)
    assert shown["bias_amplification"] == MISSING
    measure = measure_of(analysis, "bias_amplification")
    assert cells(tables.outputs_table(analysis, measure), "0.9", "dcwp")["red"] == MISSING
    heat = plots.attribute_changes(analysis, measure)
    assert set(heat.values[heat.rows.index("red")]) == {None}
    assert None not in heat.values[heat.rows.index("even")]


def test_one_seed_has_no_half_width() -> None:
    shown = cells(tables.measures_table(odd_analysis()), "dense", "dense")
    assert shown["bias_gap"].endswith(f"± {UNKNOWN}")
    pictures = [plot.picture for plot in static_plots(odd_analysis()).values()]
    assert not any("bars" in grid.subtitle for grid in pictures if isinstance(grid, PlotGrid))


def test_disagreement_stands_beside_its_control_with_the_difference() -> None:
    analysis = class_analysis(FEW)
    shown = cells(tables.exemplar_table(analysis), "0.5", "dcwp")
    row = next(row for row in analysis.exemplars if (row.method, row.sparsity) == ("dcwp", 0.5))
    assert float(shown["disagreement"]) == pytest.approx(100 * (row.disagreement or 0), abs=0.06)
    assert shown["added"] == words.with_ends(row.added, 1, 100)


def test_intervals_that_are_not_symmetric_show_both_ends() -> None:
    row = replace(class_analysis(FEW).sample_predictability[0], area_under_curve=Estimate(0.8, 0.61, 0.83, 9))
    table = tables.sample_table(replace(class_analysis(FEW), sample_predictability=(row,)))
    assert cells(table, "0.5", "dcwp")["area_under_curve"] == "0.800 [0.610, 0.830]"


def test_changed_groups_are_those_of_small_corrected_p_and_unlisted_ones_are_counted() -> None:
    analysis = class_analysis()
    table, unlisted = tables.changed_groups_table(analysis)
    real = [g for g in analysis.groups if g.corrected_p is not None and g.corrected_p < tables.ALPHA]
    assert len(table.rows) == tables.MOST_GROUPS
    assert unlisted == len(real) - tables.MOST_GROUPS > 0
    assert max(row.corrected_p for row in table.rows) < tables.ALPHA
    files = analysis_files([analysis], {})
    assert f"{unlisted} more are in the JSON" in files[f"site/{analysis.slug}-analysis.html"].decode()


def test_the_largest_fall_of_a_condition_is_the_group_that_lost_most() -> None:
    analysis = class_analysis(FEW)
    groups = [g for g in analysis.groups if (g.method, g.sparsity) == ("snip", 0.99)]
    worst = min(groups, key=lambda g: g.change or 0.0)
    shown = cells(tables.group_summary_table(analysis), "0.99", "snip")
    assert shown["listed"] == str(len(groups))
    assert f"{100 * abs(worst.change or 0):.1f}" in shown["fall"]


def test_rows_are_dense_then_by_sparsity_then_native() -> None:
    table = tables.measures_table(class_analysis(("dcwp", "snip")))
    assert [group.heading for group in table.groups] == [None, None, tables.NATIVE]
    rows = [(row.sparsity, row.method) for row in table.groups[1].rows]
    assert rows == sorted(rows)
    assert {table.tag_of(row) for row in table.rows} >= {"dense", "0.5", "native"}


def test_exploratory_lines_are_listed_with_p_and_q() -> None:
    analysis = class_analysis(FEW)
    lines = exploratory_lines(analysis)
    table = tables.exploratory_table(analysis, lines)
    shown = [dict(zip(table.keys, texts, strict=True)) for texts in table.texts()]
    assert len(shown) == len(lines) > 20
    assert [row["method"] for row in shown] == [line.method for line in lines]
    change = next(k for k, line in enumerate(lines) if line.quantity == "bias_gap")
    assert shown[change]["quantity"] == "change of bias gap"
    assert shown[change]["effect"] == words.with_ends(lines[change].effect, 1, 100)
    tied = next(k for k, line in enumerate(lines) if line.given)
    assert shown[tied]["quantity"].endswith("and bias gap, given sparsity")
    assert shown[tied]["sparsity"] == MISSING


# Markdown


def made_up_cards(slug: str = "few") -> HypothesisCards:
    """One card of each outcome on a track whose name tries to be markup."""
    supported = HypothesisCard(
        "a", "supported", "magnitude against dense-finetuned: within the margin", "bias_gap", "magnitude",
        Estimate(0.004, -0.002, 0.01, 5), "seeds", 0.012, 0.62, "dense-finetuned", seeds=(5, 6, 7, 8, 9),
    )  # fmt: skip
    other = HypothesisCard(
        "b", "not supported", "the measures are not shown to go together", "rank correlation"
    )
    missing = HypothesisCard("c", "not testable", "no stored outputs were analysed")
    board = HypothesisCard("tasks", "not testable", "two tasks needed")
    return HypothesisCards({slug: (supported, other, missing)}, board, {slug: NASTY})


def test_cards_are_shown_in_markdown_html_and_json() -> None:
    cards = made_up_cards()
    text, page = cards_markdown(cards), cards_html(cards.tracks["few"], NASTY)
    for card in (*cards.tracks["few"], cards.board):
        assert CLAIMS[card.key] in text
        assert card.reason in text
    assert escape("0.004 [\u22120.002, 0.010]") in text
    assert "0.620 (dense-finetuned)" in text
    assert "| 5-9 |" in text
    assert re.findall(r'data-outcome="([a-z-]+)"', page) == ["supported", "not-supported", "not-testable"]
    assert "<script" not in text + page
    assert "0.004 [\u22120.002, 0.010], 5 seeds, p 0.012" in page
    read = json.loads(cards_json(cards))
    assert read["tracks"]["few"]["task"] == NASTY
    outcomes = [card["outcome"] for card in read["tracks"]["few"]["cards"]]
    assert outcomes == [card.outcome for card in cards.tracks["few"]]
    assert read["tracks"]["few"]["cards"][0]["effect"] == {"mean": 0.004, "low": -0.002, "high": 0.01, "n": 5}
    assert read["board"]["key"] == "tasks"


def test_the_excerpt_has_a_row_a_track_and_no_counts() -> None:
    text = cards_excerpt(made_up_cards())
    assert "| supported | not supported | not testable |" in text
    assert f"{CLAIMS['tasks']}: not testable." in text
    assert not re.search(r"\d+ (for|against|undecided)", text)
    assert cards_excerpt(HypothesisCards({}, made_up_cards().board, {})) == ""


def test_a_tasks_pages_show_its_cards() -> None:
    analysis, cards = few(class_analysis(FEW)), made_up_cards()
    files = analysis_files([analysis], {}, cards=cards)
    for name in ("analysis/README.md", "analysis/few.md", "site/few-analysis.html"):
        assert "no stored outputs were analysed" in files[name].decode(), name
    assert json.loads(files["analysis/cards.json"])["tracks"].keys() == {"few"}
    without = analysis_files([analysis], {})
    assert words.NO_CARDS in without["analysis/few.md"].decode()
    assert "analysis/cards.json" not in without


def test_every_measure_is_explained() -> None:
    analysis = class_analysis(FEW)
    text = markdown_of(analysis, grid=True)
    assert words.found_lines(exploratory_lines(analysis)) in text
    for measure in analysis.measures:
        assert measure.help.split("|")[0] in text


def test_coverage_is_stated() -> None:
    analysis = class_analysis(FEW)
    text = markdown_of(analysis)
    assert (
        f"{analysis.runs} runs of 4 pruning methods and the dense model, seeds 0, 1, 2; 540 test images"
        in text
    )
    assert "snip at 0.99, seed 2: no stored outputs" in text
    assert "one seed gives none" in text


def test_the_index_has_the_cards_and_a_line_a_task() -> None:
    analyses = [class_analysis(FEW), attribute_analysis()]
    text = index_markdown(analyses, made_up_cards())
    for analysis in analyses:
        assert f"- [{analysis.task}]({analysis.slug}.md): " in text
        assert words.found_lines(exploratory_lines(analysis)) in text
    assert cards_markdown(made_up_cards()) in text
    assert "no analyses yet" in index_markdown([])


def test_rank_correlations_over_all_runs_come_first_then_those_within_methods() -> None:
    analysis = class_analysis(FEW)
    within = Correlation(
        "within methods", None, "uncertain_share", "bias_gap", True, Estimate(0.5, 0.4, 0.6, 60), "sparsity"
    )
    analysis = replace(analysis, correlations=(*analysis.correlations, within))
    rows = tables.correlation_table(analysis).texts()
    assert [row[0] for row in rows] == ["all methods", "all methods", "within methods", "dcwp"]
    assert rows[2] == [
        "within methods", "Fraction of uncertain predictions", "Bias gap, working runs", "Sparsity",
        "0.50 [0.40, 0.60]", "60",
    ]  # fmt: skip
    assert words.rho_lines(analysis, "uncertain_share", "bias_gap") == [
        "all runs 0.62 [0.50, 0.71]", "working runs within methods 0.50 [0.40, 0.60]",
    ]  # fmt: skip


def test_other_settings_of_a_task_have_another_name() -> None:
    second = replace(class_analysis(FEW), slug="colored-digits-2pct-2")
    assert words.page_name(class_analysis(FEW)) == "colored-digits@2pct"
    assert words.page_name(second) == "colored-digits@2pct (colored-digits-2pct-2)"


def test_names_that_try_to_be_markup_stay_text() -> None:
    text = markdown_of(odd_analysis()) + index_markdown([odd_analysis()])
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\[a\]\(javascript", text)
    assert "\n# c" not in text


# Files


class Links(HTMLParser):
    """What a page refers to, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.targets += [values[name] or "" for name in ("href", "src") if name in values]
        self.anchors.add(values.get("id") or "")


def test_every_link_of_the_pages_and_the_board_leads_somewhere(written: Path) -> None:
    pages = list(written.glob("site/*.html"))
    assert len(pages) == 4
    for page in pages:
        links = Links(page.read_text())
        for target in links.targets:
            if target.startswith("#"):
                assert target[1:] in links.anchors, (page.name, target)
            elif not target.startswith("data:"):
                assert (page.parent / target).is_file(), (page.name, target)
    for page in (written / "README.md", *written.glob("analysis/*.md")):
        for target in re.findall(r"(?<!\\)\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), (page.name, target)
    assert "(analysis/digit-attributes.md)" in (written / "README.md").read_text()


def test_every_static_plot_is_referred_to_and_the_grid_beside_both(written: Path) -> None:
    text = (written / "analysis/digit-attributes.md").read_text()
    found = {path.name for path in written.glob("analysis/figures/digit-attributes-*")}
    assert found == {f"digit-attributes-{name}.svg" for name in static_plots(attribute_analysis())} | {
        "digit-attributes-samples.png"
    }
    assert len(found) == 11
    assert all(f"(figures/{name})" in text for name in found)
    assert (written / "site/digit-attributes-samples.png").read_bytes() == (
        written / "analysis/figures/digit-attributes-samples.png"
    ).read_bytes()
    assert "odd-samples.png" not in (written / "site/odd-analysis.html").read_text()


def test_the_same_numbers_give_the_same_bytes_in_any_order_and_through_json(
    written: Path, grid: Path, tmp_path: Path
) -> None:
    analyses = [odd_analysis(), attribute_analysis(), few(class_analysis(FEW))]
    again = [read_analysis(write_analysis(analysis, tmp_path)) for analysis in analyses]
    out = tmp_path / "again"
    write_pages(out, analysis_files(again, {"few": grid, "digit-attributes": grid}, cards=made_up_cards()))
    made, before = files_of(out), files_of(written)
    del made[MANIFEST]
    assert {name for name in before if "analysis" in name or "samples" in name} <= set(made)
    assert {name: made[name] == before[name] for name in made} == dict.fromkeys(made, True)


def test_a_line_has_a_gap_where_a_method_has_no_run() -> None:
    whole = class_analysis(FEW)
    kept = tuple(row for row in whole.conditions if (row.method, row.sparsity) != ("dcwp", 0.9))
    analysis = replace(whole, conditions=kept)
    found = plots_of(analysis, analysis_styles([analysis]))
    (plot,) = (
        one.picture for one in found if (one.part, one.name, one.static) == ("sparsity", "bias_gap", False)
    )
    assert isinstance(plot, Plot)
    pieces = {series.name: len(series.pieces) for series in plot.series if series.line}
    assert pieces == {name: 1 + (name == "dcwp") for name in pieces}
    assert "dcwp" in pieces


def test_the_board_after_a_run_knows_what_was_retired(tmp_path: Path) -> None:
    records = full_records()
    version = next(r.spec["method_version"] for r in records if r.spec["method"] == "alpha")
    retire(
        tmp_path, Standing(), Retired("alpha", version, "withdrawn", "2026-01-02T00:00:00Z", "wrong masks")
    )
    assert build_after_run(records, tmp_path, tmp_path / "board") is None
    text = (tmp_path / "board/methods.md").read_text()
    assert "was withdrawn: wrong masks" in text
    assert "| alpha |" not in text
    assert "| beta |" in text


def test_a_retired_version_is_on_no_card(tmp_path: Path) -> None:
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    retired = [run("magnitude", 0.9, seed, cell={"method_version": "0"}) for seed in range(5)]
    retire(
        tmp_path / "after",
        Standing(),
        Retired("magnitude", "0", "superseded", "2026-01-02T00:00:00Z", "by 1"),
    )
    before = build_pages(full_records(), [tmp_path / "before"], tmp_path / "one")
    after = build_pages([*full_records(), *retired], [tmp_path / "after"], tmp_path / "two")
    assert after.cards == before.cards


def test_a_retired_version_is_no_change_of_the_board(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    for record in sound_records():
        Store(results).write(record)
    retire(
        results, Standing(), Retired("alpha", "made up", "withdrawn", "2026-01-02T00:00:00Z", "wrong masks")
    )
    write_leaderboard([results], out, diff=results)
    assert "Nothing changed." in (out / "CHANGES.md").read_text()
    write_leaderboard([results], out)
    assert not (out / "CHANGES.md").exists()


def test_bad_places_and_equal_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="choose another folder"):
        write_pages(tmp_path / "taken", analysis_files([odd_analysis()], {}))
    with pytest.raises(UsageError, match="two analyses are named odd"):
        analysis_files([odd_analysis(), odd_analysis()], {})
    with pytest.raises(StoreError, match="analyze again"):
        analysis_files([odd_analysis()], {"odd": tmp_path / "missing.png"})


# Plots


def test_methods_look_as_on_the_board() -> None:
    board = build_board(full_records())
    analysis = class_analysis(("alpha", "zeta", "unknown"))
    styles = analysis_styles([analysis], board.labels)
    assert {name: styles[name] for name in board.labels} == styles_of(board.labels)
    assert {"zeta", "unknown"} <= set(styles)


def test_lead_plots_are_those_of_the_hypotheses() -> None:
    keys = [measure.key for measure in plots.lead_measures(class_analysis(FEW))]
    assert keys == [
        "in_distribution",
        "bias_gap",
        "uncertain_share",
        "logit_correlation",
        "calibration_error",
    ]
    keys = [measure.key for measure in plots.lead_measures(attribute_analysis())]
    assert keys[:2] == ["attribute_accuracy", "bias_amplification"]
    pairs = plots.scatter_pairs(attribute_analysis())
    assert [x.key for x, _ in pairs] == ["uncertain_share", "interdependence"]


def test_axes_hold_all_means_and_do_not_stretch_for_wide_intervals() -> None:
    wide = Estimate(0.5, -4.0, 5.0, 3)
    analysis = class_analysis(FEW)
    rows = [replace(row, values={**row.values, "bias_gap": wide}) for row in analysis.conditions]
    shown = static_plots(replace(analysis, conditions=tuple(rows)))["bias_gap"].picture
    assert isinstance(shown, PlotGrid)
    low, high = limits(shown.plots, "y")
    assert low < 50 < high
    assert 5 <= high - low < 25


def test_interactive_plots_hold_every_condition_and_no_undefined_number() -> None:
    analysis = class_analysis()
    shown = plots_of(analysis, analysis_styles([analysis]))
    pictures = {plot.name: plot.picture for plot in shown if not plot.static}
    assert isinstance(pictures["bias_gap"], Plot)
    bias = plotly_figure(pictures["bias_gap"])["data"]
    drawn = [trace for trace in bias if trace["meta"] != "reference"]
    assert len(drawn) == len(METHODS) + 1
    assert sum(len(trace["y"]) for trace in drawn) == len([c for c in analysis.conditions if not c.dense])
    assert next(trace for trace in bias if trace["meta"] == "reference")["fill"] == "toself"
    (star,) = [trace for trace in drawn if trace["marker"]["symbol"] == "star"]
    assert star["meta"] == "dcwp-native"
    row = next(c for c in analysis.conditions if (c.method, c.sparsity) == ("snip", 0.98))
    estimate = row.values["bias_gap"]
    assert estimate.mean is not None
    (snip,) = [trace for trace in drawn if trace["meta"] == "snip"]
    assert snip["y"][4] == pytest.approx(100 * estimate.mean, abs=1e-3)
    below = 100 * (estimate.mean - (estimate.low or 0))
    assert snip["error_y"]["arrayminus"][4] == pytest.approx(below, abs=1e-3)


def test_every_plot_is_drawn_in_both_ways_or_one() -> None:
    """A static file has a panel a method (but for the scatter); a page shows all measures and all maps."""
    analysis = attribute_analysis()
    static = static_plots(analysis)
    for name, plot in static.items():
        picture = plot.picture
        assert svg(picture).startswith("<svg")
        if isinstance(picture, PlotGrid) and name != "scatter":
            assert [panel.title for panel in picture.plots] == analysis.methods
    shown = [plot for plot in plots_of(analysis, analysis_styles([analysis])) if not plot.static]
    assert {m.key for m in analysis.measures} <= {plot.name for plot in shown}
    maps = [plot.picture for plot in shown if isinstance(plot.picture, HeatMap)]
    assert next(heat.title for heat in maps) == measure_of(analysis, "bias_amplification").title
    assert len(maps) == len(analysis.attribute_measures)


def test_samples_are_enlarged_without_blur() -> None:
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    with Image.open(io.BytesIO(sample_grid(images, ["one\ntwo", "three\nfour"]))) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    pure = (colours == (255, 0, 0)).all(1).sum()
    reddish = ((colours[:, 0] > 60) & (colours[:, 1:] < 30).all(1)).sum()
    assert pure > 1000
    assert reddish - pure < 0.05 * pure, "the edges of an enlarged pixel stay sharp"


def test_the_grid_takes_grey_images_and_shows_at_most_32() -> None:
    sizes = []
    for count in (SHOWN_SAMPLES, SHOWN_SAMPLES + 9):
        made = sample_grid(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), ["a\nb"] * count)
        with Image.open(io.BytesIO(made)) as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
    for images, captions in ((torch.zeros(2, 4, 4), ["a"] * 2), (torch.zeros(2, 3, 4, 4), ["a"])):
        with pytest.raises(UsageError, match="sample grid: want images"):
            sample_grid(images, captions)


# The board


def test_without_analyses_the_board_has_the_same_bytes(tmp_path: Path) -> None:
    write_board(sound_records(), tmp_path / "before")
    results = tmp_path / "results"
    for record in sound_records():
        Store(results).write(record)
    assert write_leaderboard([results], tmp_path / "after") == 0
    before, after = (files_of(tmp_path / name) for name in ("before", "after"))
    for name in (MANIFEST, "site/data/board.js"):  # the site shows the cards
        del before[name], after[name]
    assert set(after) - set(before) == {"analysis/README.md", "analysis/cards.json"}
    assert {name: after[name] for name in before} == before


def test_the_pages_of_a_task_that_left_the_board_are_removed(tmp_path: Path) -> None:
    two = [run("dense", 0.0, 0, cell={"task": task}) for task in ("digits@2pct", "other")]
    for records in (two, two[1:]):
        build_pages(records, [tmp_path], tmp_path / "out")
    left = files_of(tmp_path / "out")
    assert "tasks/other.md" in left
    assert not [name for name in left if "digits-2pct" in name]


def test_the_board_links_to_the_stored_analyses_and_writes_their_pages(tmp_path: Path, grid: Path) -> None:
    results = tmp_path / "results"
    for record in sound_records():
        Store(results).write(record)
    folder = results / "analysis"
    folder.mkdir()
    section = build_board(sound_records()).tracks[0]
    analysis = replace(class_analysis(FEW), slug=section.slug, task=section.task)
    write_analysis(analysis, folder)
    shutil.copy(grid, folder / analysis.grid_name)
    assert stored_analyses(results) == ([analysis], {analysis.slug: folder / analysis.grid_name})
    assert write_leaderboard([results], tmp_path / "out") == 0
    index = (tmp_path / "out/site/index.html").read_text()
    assert index.count(f'href="{section.slug}-analysis.html"') == 1
    assert (tmp_path / f"out/site/{section.slug}-analysis.html").is_file()
    assert (tmp_path / f"out/site/{analysis.grid_name}").is_file()
    assert f"(analysis/{section.slug}.md)" in (tmp_path / "out/README.md").read_text()


def test_a_section_links_to_the_analysis_of_its_own_task_alone(tmp_path: Path) -> None:
    other = replace(class_analysis(FEW), task="something else", slug="digits-2pct")
    write_board([run("dense", 0.0, 0)], tmp_path, links_of([other]))
    for name in ("site/index.html", "site/data/board.js", "tasks/digits-2pct.md"):
        assert "digits-2pct-analysis" not in (tmp_path / name).read_text()


# What is committed


def test_committed_analyses_have_their_images_and_name_their_reference() -> None:
    """Images of data sets that a clone does not bring are in no commit; those of bundled digits are, all of them."""
    found, grids = stored_analyses(COMMITTED)
    assert set(grids) == {analysis.slug for analysis in found if is_bundled(analysis.task)}
    for analysis in found:
        assert analysis.reference in {row.method for row in analysis.conditions}
        assert analysis.methods
        assert all(line.q_value >= line.p_value for line in exploratory_lines(analysis))


def is_bundled(task: str) -> bool:
    try:
        return bool(resolve_task(task).fingerprint(None))
    except DataError:
        return False


def test_committed_pages_are_small() -> None:
    """A page of Markdown is read in one go; the long tables stand on the interactive pages, which are built."""
    for page in (COMMITTED.parent / "analysis").glob("*.md"):
        assert page.stat().st_size < 60_000, page.name
    figures = (COMMITTED.parent / "analysis" / "figures").glob("*")
    assert sum(path.stat().st_size for path in figures) < 4e6


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as launched:
        yield launched


@pytest.mark.slow
@pytest.mark.parametrize("name", ["few", "digit-attributes", "odd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_on_a_phone_without_errors_network_or_sideways_scroll(
    browser: object, written: Path, name: str, scheme: str
) -> None:
    visit = Visit(browser, written / f"site/{name}-analysis.html", viewport=PHONE, color_scheme=scheme)
    visit.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    visit.page.wait_for_timeout(200)
    assert visit.complaints == []
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data"}
    width, screen = visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= screen == PHONE["width"]
    visit.context.close()


@pytest.mark.slow
def test_plots_are_drawn_and_the_legend_hides_a_method(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/digit-attributes-analysis.html")
    shown = visit.page.locator(".plot")
    drawn = shown.locator("svg.main-svg")
    found = plots_of(attribute_analysis(), analysis_styles([attribute_analysis()]))
    interactive = [plot for plot in found if not plot.static and isinstance(plot.picture, Plot)]
    assert shown.count() == len(interactive) + 1
    assert drawn.count() >= shown.count()
    first = shown.first.locator(".scatterlayer .trace")
    before = first.count()
    visit.page.locator(".legend [data-key='magnitude']").click()
    assert first.count() == before - 1
    visit.context.close()


@pytest.mark.slow
def test_the_map_shows_another_measure(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/digit-attributes-analysis.html")
    choice = visit.page.locator(".map-choice")
    assert choice.input_value() == "map-bias_amplification"
    values = "document.querySelector('.plot.map').data[0].z"
    before = visit.page.evaluate(values)
    choice.select_option(label="Fraction of uncertain predictions")
    assert visit.page.evaluate(values) != before
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.slow
def test_tables_can_be_narrowed_to_a_sparsity_and_sorted(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/few-analysis.html")
    visit.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    visit.page.locator(".filter [data-tag='0.9']").click()
    table = visit.page.locator("#sparsity table").first
    rows = table.locator("tbody.sortable tr:visible")
    assert rows.locator("td:nth-child(2)").all_inner_texts() == ["dense", *FEW]
    head = table.locator("thead th").filter(has_text="Bias gap")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    visit.context.close()


@pytest.mark.slow
def test_nothing_is_injected_into_a_page(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/odd-analysis.html")
    assert visit.page.locator("img").count() == 0
    assert " ".join(NASTY.split()) in visit.page.locator("h1").inner_text()
    assert visit.page.locator("script").count() == 3
    visit.context.close()


def test_a_page_without_parts_opens(browser: object, tmp_path: Path) -> None:
    bare = replace(odd_analysis(), conditions=(), left_out=(), runs=0)
    write_pages(tmp_path, analysis_files([bare], {}))
    (tmp_path / "site/index.html").touch()
    visit = Visit(browser, tmp_path / "site/odd-analysis.html", viewport=PHONE)
    assert visit.complaints == []
    assert "0 runs" in (tmp_path / "site/odd-analysis.html").read_text()
    visit.context.close()
