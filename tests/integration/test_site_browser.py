"""The page in a real browser, opened from disk: no errors, no network, charts, sorting, a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from board_records import failed, full_records, run
from browsing import Visit, chromium

from prunebench.leaderboard import write_board

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from playwright import sync_api

NASTY = "<img src=x onerror=\"document.body.innerHTML='injected'\"><script>throw 1</script>"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index page of a board with two tasks, failures, and names that try to be markup."""
    out = tmp_path_factory.mktemp("board")
    other = {"cell": {"task": f"other {NASTY}"}}
    more = [
        run("dense", 0.0, 0, **other),
        run(NASTY, 0.5, 0, **other),
        failed("beta", 0.5, 0, NASTY, **other),
    ]
    write_board([*full_records(), *more], out)
    return out / "site" / "index.html"


@pytest.fixture
def visit(browser: sync_api.Browser, site: Path) -> Iterator[Visit]:
    opened = Visit(browser, site, viewport=DESKTOP)
    yield opened
    opened.context.close()


@pytest.fixture
def page(visit: Visit) -> sync_api.Page:
    return visit.page


def methods_in(page: sync_api.Page, body: int = 1) -> list[str]:
    """The methods in the accuracy table of the first task, in the order shown."""
    rows = page.locator("section.task").first.locator("table").nth(2).locator("tbody.sortable").nth(body)
    return rows.locator("tr:visible td:nth-child(2)").all_inner_texts()


@pytest.mark.slow
def test_the_page_opens_from_disk_without_errors_or_network(visit: Visit, site: Path) -> None:
    visit.page.wait_for_timeout(300)
    assert visit.complaints == []
    assert visit.requests[0] == site.as_uri()
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data"}
    assert (site.parent / "plotly.min.js").as_uri() in visit.requests


def test_every_figure_is_drawn(page: sync_api.Page) -> None:
    plots = page.locator(".plot")
    assert plots.count() == 10
    for index in range(plots.count()):
        assert plots.nth(index).locator("svg.main-svg").count() >= 1
    first = plots.first
    assert first.locator(".scatterlayer .trace").count() == 6
    assert first.locator(".errorbar").count() > 0
    assert page.locator(".heat table").count() == 4


@pytest.mark.slow
def test_nothing_is_injected(page: sync_api.Page) -> None:
    assert page.locator("img").count() == 0
    assert "injected" not in page.locator("h1").inner_text()
    assert NASTY in page.locator("section.task").nth(1).locator(".problems").inner_text()
    page.locator("section.task").nth(1).locator(".plot").first.hover()
    assert page.locator("img").count() == 0


def test_a_click_on_a_heading_sorts_and_another_one_turns_it(page: sync_api.Page) -> None:
    head = page.locator("section.task").first.locator("table").nth(2).locator("thead th")
    column = head.filter(has_text="Unbiased").first
    before = methods_in(page)
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    descending = methods_in(page)
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    ascending = methods_in(page)
    assert sorted(before) == sorted(descending) == sorted(ascending)
    assert ascending[:6] == descending[:6][::-1]
    assert set(ascending[6:]) == set(descending[6:]) == {"gamma", "delta"}, "rows without a mean come last"
    assert methods_in(page, body=0) == ["dense"]


@pytest.mark.slow
def test_text_columns_sort_by_name(page: sync_api.Page) -> None:
    head = page.locator("section.task").first.locator("table").nth(2).locator("thead th")
    head.filter(has_text="Method").locator("button").click()
    names = methods_in(page)
    assert names == sorted(names)


@pytest.mark.slow
def test_a_chosen_sparsity_leaves_its_rows_and_dense(page: sync_api.Page) -> None:
    section = page.locator("section.task").first
    section.locator(".filter [data-tag='0.9']").click()
    assert sorted(methods_in(page)) == ["alpha", "beta", "delta", "gamma"]
    assert methods_in(page, body=0) == ["dense"]
    assert methods_in(page, body=2) == []
    section.locator(".filter [data-tag='']").click()
    assert len(methods_in(page)) == 8


@pytest.mark.slow
def test_the_legend_hides_a_method_in_all_figures_of_its_task(page: sync_api.Page) -> None:
    section = page.locator("section.task").first
    plots = section.locator(".plot")
    before = [plots.nth(i).locator(".scatterlayer .trace").count() for i in range(5)]
    section.locator(".legend [data-key='beta']").click()
    after = [plots.nth(i).locator(".scatterlayer .trace").count() for i in range(5)]
    assert after == [count - 1 for count in before]
    section.locator(".legend [data-all='true']").click()
    assert [plots.nth(i).locator(".scatterlayer .trace").count() for i in range(5)] == before


def test_intervals_can_be_switched_off(page: sync_api.Page) -> None:
    section = page.locator("section.task").first
    section.locator(".bars").uncheck()
    assert section.locator(".plot").first.locator(".errorbar").count() == 0


@pytest.mark.slow
def test_groups_of_a_chosen_model_are_shown(page: sync_api.Page) -> None:
    section = page.locator("section.task").first
    second = section.locator(".heats > div").nth(1)
    second.locator("select").select_option(label="alpha, sparsity 0.5")
    cells = second.locator("td").all_inner_texts()
    assert [cells[0], cells[3]] == ["90", "90"]
    assert cells[1] == cells[2] != "90"
    assert second.locator("td.aligned").count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scroll(browser: sync_api.Browser, site: Path, scheme: str) -> None:
    visit = Visit(browser, site, viewport=PHONE, color_scheme=scheme)
    width, screen = visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= screen == PHONE["width"]
    table = visit.page.locator(".scroll").first
    assert table.evaluate("element => element.scrollWidth > element.clientWidth"), (
        "tables scroll by themselves"
    )
    assert visit.complaints == []
    visit.context.close()


def test_an_empty_board_opens(browser: sync_api.Browser, tmp_path: Path) -> None:
    write_board([], tmp_path)
    visit = Visit(browser, tmp_path / "site" / "index.html", viewport=DESKTOP)
    assert visit.complaints == []
    assert "There are no records yet" in visit.page.locator("body").inner_text()
    visit.context.close()
