"""The page in a real browser: quiet, offline, by keyboard, on paper, at every width, and for everyone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmemorize.report.build import build_report
from unmemorize.report.compare import build_comparison

WIDTHS = (360, 768, 1440)


@pytest.fixture(scope="module")
def address(full_run):
    return build_report(full_run).as_uri()


@pytest.fixture
def open_page(browser):
    """Opens an address; afterwards nothing was complained of and nothing asked for but the file."""
    pages, complaints, asked = [], [], []

    def opened(uri, **options):
        page = browser.new_page(**options)
        page.set_default_timeout(120_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(uri)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:") and not url.startswith("file:")] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(pages)


def ranks(page):
    return [int(text) for text in page.locator("#ranked > tbody > tr > td.rank").all_inner_texts()]


def test_rows_are_paged_sorted_filtered_and_opened(open_page, address):
    page = open_page(address, viewport={"width": 1440, "height": 900})
    assert ranks(page) == list(range(1, 51))
    page.get_by_role("button", name="Next").click()
    assert ranks(page) == list(range(51, 101))
    assert page.locator("#page").inner_text() == "page 2 of 3"
    page.get_by_role("button", name="Score").click()
    scores = page.locator("#ranked > tbody > tr > td.score").evaluate_all(
        "all => all.map(c => parseFloat(c.innerText))"
    )
    assert scores == sorted(scores)
    assert ranks(page)[0] == 150
    page.get_by_role("button", name="p-value").click()
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("p-value")
    page.get_by_label("Show").select_option("copied")
    assert page.locator("#ranked > tbody > tr:not([data-verdict=verbatim]):not([data-verdict=template])").count() == 0
    page.get_by_label("Show").select_option("")
    page.locator("#find").fill("number 149")
    assert page.locator("#count").inner_text() == "1 of 150 prompts"
    page.locator("#find").fill("")
    row = page.locator("#ranked > tbody > tr", has=page.locator("details.row")).first
    row.get_by_text("Details").click()
    assert row.get_by_text("score per seed").is_visible()
    assert row.locator("svg.spark").is_visible()


def test_by_keyboard_alone(open_page, address):
    """Every stop is visible and has a name; a column is sorted and a row opened without a mouse."""
    page = open_page(address, viewport={"width": 1440, "height": 900})
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => e.ariaLabel || e.innerText || e.closest('label')?.innerText || '')(document.activeElement)"
        )
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'")
        stops.append(name.strip())
        assert stops[-1]
        assert outlined
        if stops[-1] == "Score":
            page.keyboard.press("Enter")
            assert ranks(page)[0] == 150
            page.keyboard.press("Enter")
            assert ranks(page)[0] == 1
        if stops[-1] == "Details":
            page.keyboard.press("Enter")
            assert page.locator("details.row[open]").count() == 1
            break
    assert stops[0] == "Skip to the prompts"
    assert "Details" in stops


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_sideways_or_is_cut_off(open_page, address, width, full_run, tmp_path):
    for uri in (address, build_comparison(full_run, full_run, tmp_path / "two.html").as_uri()):
        page = open_page(uri, viewport={"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.evaluate(
            """width => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('svg, .scroll, .svg, template, .skip'))
            .filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 100))""",
            width,
        )
        assert wide == []


def test_on_paper_every_row_with_pictures_is_there_and_open(open_page, address):
    page = open_page(address, viewport={"width": 1440, "height": 900})
    page.emulate_media(media="print")
    before = page.locator("#ranked > tbody > tr").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("#ranked > tbody > tr").count() > before
    assert not page.locator("#find").is_visible()
    assert not page.locator("nav").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#ranked > tbody > tr").count() == before
    assert page.pdf()[:5] == b"%PDF-"


def test_without_its_script_the_rows_with_pictures_are_there(open_page, address):
    page = open_page(address, java_script_enabled=False)
    assert page.locator("#ranked > tbody > tr").count() >= 60
    assert page.get_by_text("further prompts need the page's script").is_visible()


def test_ten_thousand_prompts_stay_usable(open_page, make, tmp_path):
    """The page is a few megabytes, holds fifty rows at a time, and finds one row of ten thousand."""
    run = make(tmp_path / "run", prompts=40)
    kept = {name: pq.read_table(run / "scores" / f"{name}.parquet") for name in ("prompts", "detect")}
    prompts = [row | {"id": f"q{i}-{row['id']}"} for i in range(250) for row in kept["prompts"].to_pylist()]
    scores = [row | {"id": f"q{i}-{row['id']}"} for i in range(250) for row in kept["detect"].to_pylist()]
    pq.write_table(pa.Table.from_pylist(kept["prompts"].to_pylist() + prompts), run / "scores" / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(kept["detect"].to_pylist() + scores), run / "scores" / "detect.parquet")
    built = build_report(run)
    assert built.stat().st_size < 12_000_000
    page = open_page(built.as_uri())
    assert page.locator("#ranked > tbody > tr").count() == 50
    assert page.locator("#page").inner_text() == "page 1 of 201"
    page.locator("#find").fill("q249-p0039")
    assert page.locator("#count").inner_text() == "1 of 10040 prompts"
    assert page.evaluate("document.querySelectorAll('*').length") < 12_000


def script(name):
    return (Path(__file__).parent / f"{name}.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(open_page, address, full_run, tmp_path, scheme):
    """Names, headers, headings in order, and text at a contrast of 4.5 or more, in both schemes."""
    for uri in (address, build_comparison(full_run, full_run, tmp_path / "two.html").as_uri()):
        page = open_page(uri, color_scheme=scheme, viewport={"width": 1440, "height": 900})
        assert page.evaluate(script("accessible")) == []
        assert page.evaluate(script("contrast")) == []
