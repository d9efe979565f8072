"""Pages of analyses: a pure function of the stored numbers, with every link on disk and nothing injected."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

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

from prunebench.analysis import claims, looks, sections, sheets
from prunebench.analysis.charts import charts_of
from prunebench.analysis.foretelling_sheets import correlation_sheet, exemplar_sheet, sample_foretelling_sheet
from prunebench.analysis.map_pictures import attribute_changes
from prunebench.analysis.markdown import index_markdown, task_markdown
from prunebench.analysis.page import task_page
from prunebench.analysis.pages import links_of, write_pages
from prunebench.analysis.panels import value_limits
from prunebench.analysis.pictures import MOST_SAMPLES, draw_pictures, sample_grid
from prunebench.analysis.stills import scatter_pairs, stills_of
from prunebench.analysis.stored import stored_analyses
from prunebench.analysis.values import (
    WITHIN,
    Correlation,
    Estimate,
    TaskAnalysis,
    read_analysis,
    write_analysis,
)
from prunebench.cli.progress import write_leaderboard
from prunebench.errors import StoreError, UsageError
from prunebench.leaderboard import build_board, write_board
from prunebench.leaderboard.figures import method_styles
from prunebench.leaderboard.layout import Sheet
from prunebench.leaderboard.words import MISSING, UNKNOWN
from prunebench.results.store import Store

PHONE = {"width": 390, "height": 844}
FEW = ("dcwp", "magnitude", "snip")


def few(analysis: TaskAnalysis) -> TaskAnalysis:
    """The class analysis with three methods, for what need not be drawn in full."""
    return replace(analysis, slug="few", task="few", title="few")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "samples.png"
    sample_grid(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["a\nb"] * 3, path)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, grid: Path) -> Path:
    """All three fake analyses as pages, beside a board."""
    out = tmp_path_factory.mktemp("out")
    analyses = [few(class_analysis(FEW)), attribute_analysis(), odd_analysis()]
    write_pages(analyses, {"few": grid, "digit-attributes": grid}, out)
    write_board(full_records(), out, links_of(analyses))
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cells(sheet: Sheet, sparsity: str, method: str) -> dict[str, str]:
    (found,) = (row for row in sheet.rows if (row[0].text, row[1].text) == (sparsity, method))
    return {column.title: cell.text for column, cell in zip(sheet.columns, found, strict=True)}


# Tables


def test_a_cell_shows_mean_and_half_width_in_percent() -> None:
    analysis = class_analysis(FEW)
    cell = next(c for c in analysis.cells if (c.method, c.sparsity) == ("dcwp", 0.9))
    estimate = cell.values["bias_gap"]
    assert estimate.mean is not None
    assert estimate.high is not None
    shown = cells(sheets.measures_sheet(analysis), "0.9", "dcwp")
    assert (
        shown["Bias gap, points"]
        == f"{100 * estimate.mean:.1f} ± {100 * (estimate.high - estimate.mean):.1f}"
    )
    assert (shown["Seeds"], shown["Achieved"]) == ("3", "0.9000")


def test_what_is_undefined_is_a_dash_and_never_nought() -> None:
    analysis = attribute_analysis()
    holed = next(c for c in analysis.cells if c.values["bias_amplification"] == NOTHING)
    shown = cells(sheets.measures_sheet(analysis), f"{holed.sparsity:g}", holed.method)
    assert shown["Bias amplification, points"] == MISSING
    measure = next(m for m in analysis.attribute_measures if m.key == "bias_amplification")
    assert cells(sheets.attribute_sheet(analysis, measure), "0.9", "dcwp")["red"] == MISSING
    names, _, table = attribute_changes(analysis, measure)
    assert set(table[names.index("red")]) == {None}
    assert None not in table[names.index("even")]


def test_one_seed_has_no_half_width() -> None:
    shown = cells(sheets.measures_sheet(odd_analysis()), "dense", "dense")
    assert shown["Bias gap, points"].endswith(f"± {UNKNOWN}")
    assert "bars" not in " ".join(still.caption for still in stills_of(odd_analysis()))


def test_exemplars_stand_beside_their_control_with_the_difference() -> None:
    shown = cells(exemplar_sheet(class_analysis(FEW)), "0.5", "dcwp")
    apart = float(shown["Equal populations, %"]) - float(shown["Control, %"])
    assert float(shown["Beyond seeds, points"]) == pytest.approx(apart, abs=0.06)


def test_intervals_that_are_not_symmetric_show_both_ends() -> None:
    row = replace(class_analysis(FEW).sample_foretelling[0], area_under_curve=Estimate(0.8, 0.61, 0.83, 9))
    sheet = sample_foretelling_sheet(replace(class_analysis(FEW), sample_foretelling=(row,)))
    assert cells(sheet, "0.5", "dcwp")["AUROC"] == "0.800 [0.610, 0.830]"


def test_changed_groups_are_those_of_small_corrected_p_and_unlisted_ones_are_counted() -> None:
    analysis = class_analysis()
    sheet, unlisted = sheets.changed_groups_sheet(analysis)
    real = [g for g in analysis.groups if g.corrected_p is not None and g.corrected_p < sheets.ALPHA]
    assert len(sheet.rows) == sheets.MOST_GROUPS
    assert unlisted == len(real) - sheets.MOST_GROUPS > 0
    column = [c.title for c in sheet.columns].index("Corrected p")
    assert max(float(row[column].order or 0) for row in sheet.rows) < sheets.ALPHA
    assert f"{unlisted} more are in the JSON" in task_markdown(analysis, grid=False)


def test_the_largest_fall_of_a_cell_is_the_group_that_lost_most() -> None:
    analysis = class_analysis(FEW)
    groups = [g for g in analysis.groups if (g.method, g.sparsity) == ("snip", 0.99)]
    worst = min(groups, key=lambda g: g.change or 0.0)
    shown = cells(sheets.group_summary_sheet(analysis), "0.99", "snip")
    assert shown["Listed"] == str(len(groups))
    assert f"{100 * abs(worst.change or 0):.1f}" in shown["Largest fall, points"]


# Markdown


def test_every_claim_is_answered_with_all_its_evidence() -> None:
    text = task_markdown(class_analysis(FEW), grid=True)
    for claim in class_analysis(FEW).claims:
        assert claim.answer.split(":")[0] in text
        assert sections.claim_title(claim) in text
        for line in claim.evidence:
            assert line.what in text
    assert text.count("| against") == 1
    for measure in class_analysis(FEW).measures:
        assert measure.help.split("|")[0] in text


def test_the_relations_of_claim_b_stand_side_by_side(tmp_path: Path) -> None:
    rho = Estimate(0.5, 0.25, 0.75, 3)
    unsure = Estimate(0.1, -0.5, 0.75, 3)
    pairs = [
        Correlation(None, "uncertain_share", "bias_gap", unsure),
        Correlation(WITHIN, "uncertain_share", "bias_gap", rho),
        Correlation("snip", "uncertain_share", "bias_gap", rho),
        Correlation(WITHIN, "sparsity", "uncertain_share", rho),
    ]
    claim = claims.claim_of_uncertainty(pairs, "bias_gap", "logit_correlation")
    assert claim.answer == (
        "Of 4 lines 3 for, 0 against and 1 undecided. All methods: 0 for, 0 against and 1 undecided; "
        "within methods: 2 for, 0 against and 0 undecided."
    )
    sheet = sheets.relations_sheet(claim)
    assert sheet is not None
    assert [[cell.text for cell in row] for row in sheet.rows] == [
        ["bias goes with uncertainty", "undecided, rho 0.10 (-0.50 to 0.75), 3 seeds",
         "for, rho 0.50 (0.25 to 0.75), 3 seeds"],
        ["uncertainty rises with sparsity", MISSING, "for, rho 0.50 (0.25 to 0.75), 3 seeds"],
    ]  # fmt: skip
    analysis = replace(few(class_analysis(FEW)), claims=(claim,))
    assert "| bias goes with uncertainty | undecided, rho 0.10" in task_markdown(analysis, grid=False)
    write_pages([analysis], {}, tmp_path)
    page = (tmp_path / f"site/{analysis.slug}-analysis.html").read_text()
    assert "undecided, rho 0.10 (-0.50 to 0.75), 3 seeds<" in page
    assert sheets.relations_sheet(replace(claim, evidence=())) is None


def test_coverage_is_stated() -> None:
    analysis = class_analysis(FEW)
    text = task_markdown(analysis, grid=False)
    assert (
        f"{analysis.runs} runs of 4 pruning methods and the dense model, seeds 0, 1, 2; 540 test images"
        in text
    )
    assert "snip at 0.99, seed 2: no stored outputs" in text
    assert "one seed gives none" in text


def test_the_index_has_a_row_a_task_and_the_answers() -> None:
    text = index_markdown([class_analysis(FEW), attribute_analysis()])
    for analysis in (class_analysis(FEW), attribute_analysis()):
        assert f"| [{analysis.task}]({analysis.slug}.md)" in text
        for claim in analysis.claims:
            assert claim.answer in text
    assert "1 for, 1 against, 1 undecided" in text
    assert "no analyses yet" in index_markdown([])


def test_rank_correlations_over_all_runs_come_first_then_those_within_methods() -> None:
    analysis = class_analysis(FEW)
    within = Correlation(claims.WITHIN, "uncertain_share", "bias_gap (working)", Estimate(0.5, 0.4, 0.6, 60))
    analysis = replace(analysis, correlations=(*analysis.correlations, within))
    rows = [[cell.text for cell in row] for row in correlation_sheet(analysis).rows]
    assert [row[0] for row in rows] == ["all methods", "all methods", "within methods", "dcwp"]
    assert rows[2] == [
        "within methods", "Uncertain outputs", "Bias gap, working runs", "0.50 [0.40, 0.60]", "60"
    ]  # fmt: skip
    told = looks.rho_words(analysis, "uncertain_share", "bias_gap")
    assert told == "all runs 0.62 [0.50, 0.71]; working runs within methods 0.50 [0.40, 0.60]"


def test_other_settings_of_a_task_have_another_name() -> None:
    second = replace(class_analysis(FEW), slug="colored-digits-2pct-2")
    assert looks.page_name(class_analysis(FEW)) == "colored-digits@2pct"
    assert looks.page_name(second) == "colored-digits@2pct (colored-digits-2pct-2)"


def test_names_that_try_to_be_markup_stay_text() -> None:
    text = task_markdown(odd_analysis(), grid=False) + index_markdown([odd_analysis()])
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
    assert '<a href="digit-attributes-analysis.html">' in (written / "site/index.html").read_text()
    assert "(analysis/digit-attributes.md)" in (written / "README.md").read_text()


def test_every_still_figure_is_referred_to_and_the_grid_beside_both(written: Path) -> None:
    text = (written / "analysis/digit-attributes.md").read_text()
    found = {path.name for path in written.glob("analysis/figures/digit-attributes-*.png")}
    assert found == {f"digit-attributes-{still.name}.png" for still in stills_of(attribute_analysis())} | {
        "digit-attributes-samples.png"
    }
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
    write_pages(again, {"few": grid, "digit-attributes": grid}, out, redraw=False)
    made, before = files_of(out), files_of(written)
    assert {name for name in before if "analysis" in name or "samples" in name} <= set(made)
    assert {name: made[name] == before[name] for name in made} == dict.fromkeys(made, True)


def test_still_figures_are_drawn_again_if_they_show_other_things_or_if_asked(tmp_path: Path) -> None:
    analysis = odd_analysis()
    names = {still.name for still in stills_of(analysis)}

    def drawn_for(shown: TaskAnalysis, *methods: str, redraw: bool = False) -> set[str]:
        for path in tmp_path.glob("analysis/figures/*"):
            os.utime(path, (0, 0))
        write_pages([shown], {}, tmp_path, board_methods=methods, redraw=redraw)
        figures = tmp_path.glob("analysis/figures/odd-*.png")
        return {path.stem.removeprefix("odd-") for path in figures if path.stat().st_mtime > 0}

    assert drawn_for(analysis) == names
    assert drawn_for(analysis) == set()
    assert drawn_for(replace(analysis, code={"commit": "another"}, claims=())) == set()
    whole = (tmp_path / "analysis/figures/odd-bias_gap.png").read_bytes()
    for damaged in (b"no figure", whole[: len(whole) // 2], whole[:11] + b"\4" + whole[12:]):
        (tmp_path / "analysis/figures/odd-bias_gap.png").write_bytes(damaged)
        assert "bias_gap" in drawn_for(analysis)
    assert (tmp_path / "analysis/figures/odd-bias_gap.png").read_bytes() == whole
    (tmp_path / "analysis/figures/odd-scatter.png").unlink(missing_ok=True)
    assert drawn_for(analysis) == {"scatter"}
    assert drawn_for(analysis, "its colour is the first method's") == names
    assert drawn_for(analysis) == names
    assert drawn_for(replace(analysis, seeds=(7, 8))) == names
    assert drawn_for(replace(analysis, seeds=(7, 8)), redraw=True) == names


def test_bad_places_and_equal_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoreError, match="choose another folder"):
        write_pages([odd_analysis()], {}, tmp_path / "taken", redraw=False)
    with pytest.raises(UsageError, match="two analyses are named odd"):
        write_pages([odd_analysis(), odd_analysis()], {}, tmp_path)
    with pytest.raises(StoreError, match="analyze again"):
        write_pages([odd_analysis()], {"odd": tmp_path / "missing.png"}, tmp_path, redraw=False)


# Figures


def test_methods_look_as_on_the_board() -> None:
    board = build_board(full_records())
    analysis = class_analysis(("alpha", "zeta", "unknown"))
    styles = looks.analysis_styles([analysis], board.labels)
    assert {name: styles[name] for name in board.labels} == method_styles(board)
    assert {"zeta", "unknown"} <= set(styles)


def test_lead_figures_are_those_of_the_claims() -> None:
    keys = [measure.key for measure in looks.lead_measures(class_analysis(FEW))]
    assert keys == [
        "in_distribution",
        "bias_gap",
        "uncertain_share",
        "logit_correlation",
        "calibration_error",
    ]
    keys = [measure.key for measure in looks.lead_measures(attribute_analysis())]
    assert keys[:2] == ["attribute_accuracy", "bias_amplification"]
    assert [x.key for x, _ in scatter_pairs(attribute_analysis())] == ["uncertain_share", "interdependence"]


def test_axes_hold_all_means_and_do_not_stretch_for_wide_intervals() -> None:
    wide = [Estimate(50, -400, 500, 3), Estimate(60, 59, 61, 3), NOTHING]
    low, high = value_limits(wide, 10, (0, 100))
    assert low < 50 < 60 < high
    assert high - low < 25
    narrow = value_limits([Estimate(50, None, None, 1)], 10, (0, 100))
    assert narrow[1] - narrow[0] >= 10


def test_interactive_figures_hold_every_cell_and_no_undefined_number() -> None:
    analysis = class_analysis()
    styles = looks.analysis_styles([analysis])
    charts = {chart.figure.key: chart.figure.plot for chart in charts_of(analysis, styles)}
    bias = charts["bias_gap"]["data"]
    drawn = [trace for trace in bias if trace["meta"] != "reference"]
    assert len(drawn) == len(METHODS) + 1
    assert sum(len(trace["y"]) for trace in drawn) == len([c for c in analysis.cells if not c.dense])
    assert next(trace for trace in bias if trace["meta"] == "reference")["fill"] == "toself"
    (star,) = [trace for trace in drawn if trace["marker"]["symbol"] == "star"]
    assert star["meta"] == "dcwp-native"
    cell = next(c for c in analysis.cells if (c.method, c.sparsity) == ("snip", 0.98))
    estimate = cell.values["bias_gap"]
    assert estimate.mean is not None
    (snip,) = [trace for trace in drawn if trace["meta"] == "snip"]
    assert snip["y"][4] == pytest.approx(100 * estimate.mean, abs=1e-3)
    assert snip["error_y"]["arrayminus"][4] == pytest.approx(
        100 * (estimate.mean - (estimate.low or 0)), abs=1e-3
    )


def test_pictures_are_plain_png_of_one_width(written: Path) -> None:
    for path in written.glob("analysis/figures/few-*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert "Software" not in image.info
            if path.name != "few-samples.png":
                assert image.width == 1300
                assert len(image.convert("RGB").getcolors(image.width * image.height)) > 5, path


def test_a_picture_drawn_twice_has_the_same_bytes() -> None:
    analysis = class_analysis(FEW)
    drawn = draw_pictures(analysis, looks.analysis_styles([analysis]), "inputs")
    assert set(drawn) == {still.name for still in stills_of(analysis)}
    for name in ("exemplars", "attributes", "foretelling", "splits"):
        assert drawn[name]() == drawn[name]()


def test_samples_are_enlarged_without_blur(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    path = tmp_path / "grid.png"
    sample_grid(images, ["one\ntwo", "three\nfour"], path)
    with Image.open(path) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    pure = (colours == (255, 0, 0)).all(1).sum()
    reddish = ((colours[:, 0] > 60) & (colours[:, 1:] < 30).all(1)).sum()
    assert pure > 1000
    assert reddish - pure < 0.05 * pure, "the edges of an enlarged pixel stay sharp"


def test_the_grid_takes_grey_images_and_shows_at_most_32(tmp_path: Path) -> None:
    sizes = []
    for count in (MOST_SAMPLES, MOST_SAMPLES + 9):
        sample_grid(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), ["a\nb"] * count, tmp_path / "g.png")
        with Image.open(tmp_path / "g.png") as image:
            sizes.append(image.size)
    assert sizes[0] == sizes[1]
    for images, captions in ((torch.zeros(2, 4, 4), ["a"] * 2), (torch.zeros(2, 3, 4, 4), ["a"])):
        with pytest.raises(UsageError, match="sample grid: want images"):
            sample_grid(images, captions, tmp_path / "bad.png")


# The board


def test_without_analyses_the_board_has_the_same_bytes(tmp_path: Path) -> None:
    write_board(sound_records(), tmp_path / "before")
    results = tmp_path / "results"
    for record in sound_records():
        Store(results).write(record)
    assert write_leaderboard([results], tmp_path / "after") == 0
    assert files_of(tmp_path / "before") == files_of(tmp_path / "after")


def test_the_board_links_to_the_stored_analyses_and_writes_their_pages(tmp_path: Path, grid: Path) -> None:
    results = tmp_path / "results"
    for record in sound_records():
        Store(results).write(record)
    folder = results / "analysis"
    folder.mkdir()
    section = build_board(sound_records()).sections[0]
    analysis = replace(class_analysis(FEW), slug=section.slug, task=section.task)
    write_analysis(analysis, folder)
    shutil.copy(grid, folder / analysis.grid_name)
    assert stored_analyses(results) == ([analysis], {analysis.slug: folder / analysis.grid_name})
    assert write_leaderboard([results], tmp_path / "out") == 0
    index = (tmp_path / "out/site/index.html").read_text()
    assert index.count(f'href="{section.slug}-analysis.html"') == 2
    assert (tmp_path / f"out/site/{section.slug}-analysis.html").is_file()
    assert (tmp_path / f"out/site/{analysis.grid_name}").is_file()
    assert f"(analysis/{section.slug}.md)" in (tmp_path / "out/README.md").read_text()


def test_a_section_links_to_the_analysis_of_its_own_task_alone(tmp_path: Path) -> None:
    other = replace(class_analysis(FEW), task="something else", slug="digits-2pct")
    write_board([run("dense", 0.0, 0)], tmp_path, links_of([other]))
    index = (tmp_path / "site/index.html").read_text()
    assert index.count('href="digits-2pct-analysis.html"') == 1


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as launched:
        yield launched


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


def test_figures_are_drawn_and_the_legend_hides_a_method(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/digit-attributes-analysis.html")
    plots = visit.page.locator(".plot")
    drawn = plots.locator("svg.main-svg")
    charts = charts_of(attribute_analysis(), looks.analysis_styles([attribute_analysis()]))
    assert plots.count() == len(charts) + 1
    assert drawn.count() >= plots.count()
    first = plots.first.locator(".scatterlayer .trace")
    before = first.count()
    visit.page.locator(".legend [data-method='magnitude']").click()
    assert first.count() == before - 1
    visit.context.close()


def test_the_map_shows_another_measure(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/digit-attributes-analysis.html")
    choice = visit.page.locator(".map-choice")
    assert choice.input_value() == "map-bias_amplification"
    values = "document.querySelector('.plot.map').data[0].z"
    before = visit.page.evaluate(values)
    choice.select_option(label="Uncertain outputs")
    assert visit.page.evaluate(values) != before
    assert visit.complaints == []
    visit.context.close()


def test_tables_can_be_narrowed_to_a_sparsity_and_sorted(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/few-analysis.html")
    visit.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    visit.page.locator(".filter [data-sparsity='0.9']").click()
    table = visit.page.locator("#sparsity table").first
    rows = table.locator("tbody.sortable tr:visible")
    assert rows.locator("td:nth-child(2)").all_inner_texts() == ["dense", *FEW]
    head = table.locator("thead th").filter(has_text="Bias gap")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    visit.context.close()


def test_nothing_is_injected_into_a_page(browser: object, written: Path) -> None:
    visit = Visit(browser, written / "site/odd-analysis.html")
    assert visit.page.locator("img").count() == 0
    assert " ".join(NASTY.split()) in visit.page.locator("h1").inner_text()
    assert visit.page.locator("script").count() == 3
    visit.context.close()


def test_a_page_without_parts_opens(browser: object, tmp_path: Path) -> None:
    bare = replace(odd_analysis(), cells=(), claims=(), left_out=(), runs=0)
    write_pages([bare], {}, tmp_path)
    visit = Visit(browser, tmp_path / "site/odd-analysis.html", viewport=PHONE)
    assert visit.complaints == []
    assert "0 runs" in task_page(bare, {}, siblings=[bare], grid=False)
    visit.context.close()
