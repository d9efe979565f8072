"""The board's site in a real browser, opened from disk: the answer first, sorting, addresses, a phone, hostile text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from board_records import failed, run
from browsing import Visit, chromium

from prunebench.leaderboard import build_board, write_board
from prunebench.leaderboard.build import board_files, write_pages
from prunebench.leaderboard.diff import diff_boards
from prunebench.results.record import RunRecord

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright import sync_api

HOSTILE = (
    "<img src=x onerror=\"document.body.innerHTML='injected'\"><script>window.injected=1</script>"
    "</script>| `code` **bold** [a](javascript:injected()) \u202eright to left\n# heading " + "long " * 2000
)
DESKTOP, TABLET, PHONE = ({"width": w, "height": h} for w, h in ((1440, 900), (820, 1100), (390, 800)))
AXE = Path(__file__).parents[2] / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
MOST_STOPS = 40
VIEWS = (
    "#/", "#/about", "#/method/method-1", "#/task/digits-2pct", "#/task/digits-2pct/curves",
    "#/task/digits-2pct/groups", "#/task/digits-2pct/speed", "#/task/digits-2pct/methods",
    "#/task/digits-2pct/hypotheses",
    "#/task/digits-2pct/provenance",
)  # fmt: skip


def made_up() -> list[RunRecord]:
    """Two sparsities, five seeds and seven methods, the later the worse; native sparsity; a failed run."""
    records = [
        run(name, 0.0, seed, 0.5 + 0.01 * seed) for name in ("dense", "dense-finetuned") for seed in range(5)
    ]
    for place in range(7):
        for sparsity in (0.5, 0.9):
            for seed in range(5):
                value = 0.62 - 0.08 * place - 0.1 * sparsity + 0.004 * ((seed * (place + 2)) % 5)
                records.append(run(f"method-{place}", sparsity, seed, value))
    records += [run("native", None, seed, 0.6 + 0.01 * seed) for seed in range(5)]
    return [*records, failed("broken", 0.9, 0, "MaskError: layer head.weight is empty")]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("board")
    write_board([*made_up(), run("method-0", 0.9, 0, cell={"task": "other"})], out)
    return out / "site" / "index.html"


@pytest.fixture
def page(browser: sync_api.Browser, site: Path) -> Iterator[sync_api.Page]:
    visit = Visit(browser, site, viewport=DESKTOP)
    show(visit.page, site, "#/task/digits-2pct")
    yield visit.page
    visit.context.close()
    assert visit.complaints == []


def show(page: sync_api.Page, site: Path, view: str) -> None:
    """Load the page anew at an address: what it showed before is not taken for what is asked for."""
    page.goto("about:blank")
    page.goto(f"{site.as_uri()}{view}")
    page.wait_for_selector("main h2, main table, main .answer")
    page.locator("main", has_text="Loading").wait_for(state="detached")


def methods_in(page: sync_api.Page) -> list[str]:
    return page.locator("table.ranking tbody tr:not(.details) th a").all_inner_texts()


def test_it_asks_for_its_own_files_alone_and_for_data_when_they_are_seen(
    browser: sync_api.Browser, site: Path
) -> None:
    visit = Visit(browser, site, viewport=DESKTOP)
    visit.page.wait_for_selector("table.matrix")
    folder = site.parent.as_uri()
    assert all(url.startswith(folder) for url in visit.requests)
    loaded = {url.removeprefix(folder) for url in visit.requests}
    assert loaded == {"/index.html", "/assets/board.css", "/assets/board.js", "/data/board.js"}
    show(visit.page, site, "#/task/digits-2pct")
    assert f"{folder}/data/digits-2pct.js" in visit.requests
    assert f"{folder}/data/digits-2pct-runs.js" not in visit.requests
    assert visit.complaints == []
    visit.context.close()


def test_the_first_screen_says_which_method_is_best_its_bias_and_its_speed(
    browser: sync_api.Browser, site: Path
) -> None:
    visit = Visit(browser, site, viewport=DESKTOP)
    row = visit.page.locator("table.answers tbody tr").filter(has_text="digits@2pct")
    assert row.locator("a").nth(1).inner_text() == "method-0"
    assert row.bounding_box()["y"] < DESKTOP["height"] / 2  # type: ignore[index]
    show(visit.page, site, "#/task/digits-2pct")
    answer = visit.page.locator(".answer")
    for words in (
        "Best at 0.9: method-0",
        "bias gap",
        "dense-finetuned has 52.0",
        "no measurable difference",
    ):
        assert words in answer.inner_text()
    first = visit.page.locator("table.ranking tbody tr").first
    assert first.bounding_box()["y"] < DESKTOP["height"]  # type: ignore[index]
    for plot in visit.page.locator(".plot svg").all():
        assert plot.bounding_box()["y"] < DESKTOP["height"] / 2  # type: ignore[index]
    visit.context.close()


def test_all_methods_of_a_task_are_seen_at_a_glance(browser: sync_api.Browser, site: Path) -> None:
    visit = Visit(browser, site, viewport=DESKTOP)
    figure, table = visit.page.locator(".opening figure"), visit.page.locator("table.answers")
    figure.locator("svg").wait_for()
    boxes = [one.bounding_box() for one in (table, figure)]
    assert boxes[1]["x"] > boxes[0]["x"] + boxes[0]["width"], "beside the answers"  # type: ignore[index]
    assert boxes[1]["x"] + boxes[1]["width"] > 1350, "to the right edge"  # type: ignore[index]
    assert figure.locator(".dot").count() == 8, "seven methods of one task, one of the other"
    assert figure.locator("text.best").all_text_contents() == ["method-0", "method-0"]
    assert figure.locator(".base").count() == 1, "the other task has no reference"
    visit.page.get_by_label("Find tasks or methods").fill("other")
    assert figure.locator(".dot").count() == 1
    visit.context.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE])
def test_no_title_of_an_axis_stands_on_its_numbers(
    browser: sync_api.Browser, site: Path, viewport: dict[str, int]
) -> None:
    visit = Visit(browser, site, viewport=viewport)
    for tab in ("", "/curves", "/speed"):
        show(visit.page, site, f"#/task/digits-2pct{tab}")
        visit.page.locator(".plot svg").first.wait_for()
        covered = visit.page.evaluate(
            """() => [...document.querySelectorAll(".plot svg")].flatMap((svg) => {
                const title = svg.querySelector("text.axis[transform]").getBoundingClientRect();
                return [...svg.querySelectorAll("text.tick[text-anchor=end]")]
                    .filter((tick) => tick.getBoundingClientRect().left <= title.right).map((tick) => tick.textContent);
            })"""
        )
        assert covered == []
    visit.context.close()


def test_a_click_on_a_heading_sorts_best_first_and_another_one_turns_it(page: sync_api.Page) -> None:
    gap = page.locator("table.ranking thead th").filter(has_text="Gap")
    assert "↕" in gap.inner_text()
    gap.locator("button").click()
    assert gap.get_attribute("aria-sort") == "ascending"
    best_first = [name for name in methods_in(page) if name.startswith("method")]
    assert best_first == [f"method-{place}" for place in range(7)]
    gap.locator("button").click()
    assert gap.get_attribute("aria-sort") == "descending"
    assert [name for name in methods_in(page) if name.startswith("method")] == best_first[::-1]


def test_the_address_holds_what_is_shown(page: sync_api.Page, site: Path) -> None:
    page.locator(".choosers select").nth(1).select_option("0.5")
    page.get_by_label("Find a method").fill("method-3")
    page.get_by_label("Show method-3 in the plots").check()
    page.locator("table.ranking thead th").filter(has_text="Training").locator("button").click()
    address = page.url
    for part in ("s=0.5", "q=method-3", "pick=method-3", "sort=training"):
        assert part in address
    other = page.context.new_page()
    other.goto(address)
    other.wait_for_selector("table.ranking")
    assert methods_in(other) == [*methods_in(other)[:2], "method-3"]
    assert other.locator(".choosers select").nth(1).input_value() == "0.5"
    assert other.get_by_label("Show method-3 in the plots").is_checked()
    assert other.locator("svg .name").filter(has_text="method-3").count() >= 1


def test_an_address_that_changes_before_the_first_paint_is_followed(
    browser: sync_api.Browser, site: Path
) -> None:
    context = browser.new_context()
    context.add_init_script(
        "addEventListener('DOMContentLoaded', () => { location.hash = '#/method/method-1' })"
    )
    page = context.new_page()
    page.goto(site.as_uri())
    page.locator("h2", has_text="method-1").wait_for()
    assert page.url.endswith("#/method/method-1")
    assert page.locator("h2").first.inner_text() == "method-1"
    context.close()


def test_pareto_and_curves_name_what_leads(page: sync_api.Page) -> None:
    pareto, curves = page.locator(".plot svg").all()
    assert pareto.locator(".spot").count() == 9, "seven methods, native, and the reference"
    assert "method-0" in pareto.locator(".name").all_text_contents()
    assert curves.locator(".curve").count() == 8
    assert curves.locator(".name").all_text_contents() == [f"method-{place}" for place in range(5)] + [
        "dense-finetuned"
    ]


def test_details_show_the_runs_and_the_command(page: sync_api.Page) -> None:
    page.get_by_label("Details of method-1").click()
    sheet = page.locator(".sheet")
    sheet.locator("table.small").wait_for()
    assert sheet.locator("tbody tr").count() == 5
    assert "prunebench reproduce" in sheet.inner_text()
    sheet.get_by_text("Card of method-1").click()
    assert page.locator("h2").first.inner_text() == "method-1"
    assert "Author of method-1, 2020" in page.locator("main").inner_text()


def test_downloads_hold_the_rows_that_are_shown(page: sync_api.Page) -> None:
    page.get_by_label("Find a method").fill("method-2")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(waiting.value.path().read_text(encoding="utf-8").splitlines()))
    assert [row["method"] for row in rows] == ["dense", "dense-finetuned", "method-2"]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSON").click()
    found = json.loads(waiting.value.path().read_text(encoding="utf-8"))
    assert float(rows[-1]["conflicting"]) == found[-1]["conflicting"] == pytest.approx(37.8)
    with page.expect_download() as waiting:
        page.get_by_label("PNG of").first.click()
    assert waiting.value.path().read_bytes().startswith(b"\x89PNG")


def test_groups_are_framed_where_they_are_aligned(page: sync_api.Page, site: Path) -> None:
    show(page, site, "#/task/digits-2pct/groups")
    tables = page.locator("table.heat")
    assert tables.count() == 2
    assert tables.first.locator("td.aligned").all_inner_texts() == ["90", "90"]


def test_what_changed_since_another_board_is_a_page(browser: sync_api.Browser, tmp_path: Path) -> None:
    old, new = build_board(made_up()[:-20]), build_board(made_up())
    write_pages(tmp_path, board_files(new, changes=diff_boards(old, new)))
    visit = Visit(browser, tmp_path / "site" / "index.html", viewport=DESKTOP)
    visit.page.get_by_role("link", name="Changes").click()
    text = visit.page.locator("main").inner_text()
    assert "rows new" in text
    assert "native" in text
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
def test_nothing_overflows_and_axe_finds_no_fault(
    browser: sync_api.Browser, site: Path, scheme: Any, size: Any
) -> None:
    visit = Visit(browser, site, viewport=size, color_scheme=scheme)
    for view in VIEWS:
        show(visit.page, site, view)
        width = visit.page.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"], view
        if AXE.is_file():
            assert faults(visit.page) == [], view
    assert visit.complaints == []
    visit.context.close()


def faults(page: sync_api.Page) -> list[str]:
    """What axe-core has against a page."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({ preload: false })")["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]
    ]


def test_a_phone_shows_three_columns_and_the_rest_on_request(browser: sync_api.Browser, site: Path) -> None:
    visit = Visit(browser, site, viewport=PHONE)
    show(visit.page, site, "#/task/digits-2pct")
    heads = visit.page.locator("table.ranking thead th:visible")
    assert heads.count() == 3
    visit.page.get_by_label("Details of method-0").click()
    assert "MACs left" in visit.page.locator(".sheet").inner_text()
    visit.context.close()


def test_few_stops_lead_to_the_table_and_a_link_skips_them(page: sync_api.Page) -> None:
    inside = "document.activeElement.closest('table.ranking') !== null"
    stops = 0
    while not page.evaluate(inside):
        page.keyboard.press("Tab")
        stops += 1
        assert stops <= MOST_STOPS
    page.reload()
    page.wait_for_selector("table.ranking")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "ranking"


def test_hostile_text_stays_text(browser: sync_api.Browser, tmp_path: Path) -> None:
    method = {"name": HOSTILE, "supervision": HOSTILE, "cite": HOSTILE}
    facts: dict[str, Any] = {"cell": {"task": HOSTILE, "model": HOSTILE}, "method": method}
    facts["environment"] = {"device": "cpu", "cpu": HOSTILE, "torch": HOSTILE, "precision": HOSTILE}
    records = [run(HOSTILE, 0.9, seed, **facts) for seed in range(5)]
    records.append(run("alpha", 0.9, 0, **facts))
    records.append(failed("beta", 0.9, 0, HOSTILE, cell=facts["cell"]))
    (track,) = write_board(records, tmp_path).tracks
    index = tmp_path / "site" / "index.html"
    visit = Visit(browser, index, viewport=DESKTOP)
    visit.page.on("dialog", lambda dialog: visit.complaints.append(dialog.message))
    visit.page.wait_for_selector("table.matrix")
    visit.page.locator("table.matrix tbody a").first.click()
    for view in VIEWS:
        show(visit.page, index, view.replace("digits-2pct", track.slug))
        assert visit.page.locator("img").count() == 0
        assert visit.page.locator("script").count() == visit.page.locator("head script").count()
        assert visit.page.evaluate("window.injected") is None
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= DESKTOP["width"]
    assert visit.complaints == []
    visit.context.close()


def test_scripts_within_the_page_are_refused(browser: sync_api.Browser, site: Path, tmp_path: Path) -> None:
    """The policy holds by itself, should a template ever let a script through."""
    text = site.read_text(encoding="utf-8")
    changed = text.replace("<body>", "<body><script>window.injected = 1</script>")
    (tmp_path / "index.html").write_text(changed, encoding="utf-8")
    visit = Visit(browser, tmp_path / "index.html")
    assert visit.page.evaluate("window.injected") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.context.close()


def test_without_scripts_there_is_the_answer(browser: sync_api.Browser, site: Path) -> None:
    visit = Visit(browser, site, java_script_enabled=False)
    assert "Best at 0.9: method-0" in visit.page.locator("body").inner_text()
    visit.context.close()


def test_an_empty_board_opens(browser: sync_api.Browser, tmp_path: Path) -> None:
    write_board([], tmp_path)
    visit = Visit(browser, tmp_path / "site" / "index.html", viewport=DESKTOP)
    visit.page.wait_for_selector("main")
    assert visit.complaints == []
    assert "There are no records yet" in visit.page.locator("body").inner_text()
    visit.context.close()
