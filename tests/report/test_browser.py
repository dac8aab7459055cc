"""The report in a real browser: drawn, offline, without errors, and readable on a phone."""

from __future__ import annotations

import pytest

from autotune.report.gather import of_database, of_recordings
from autotune.report.page import write_report
from tests.recordings import write_recording
from tests.report.examples import odd_database

pytestmark = pytest.mark.browser

#: Whether every figure in the page is drawn.
_ALL_DRAWN = """
[...document.querySelectorAll("div.plot")].every((plot) => plot.querySelector(".main-svg"))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The URL of a report on the odd database."""
    folder = tmp_path_factory.mktemp("report")
    write_report(of_database(odd_database(folder / "odd.db")), folder / "report.html")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module", params=[1280, 400])
def page(request, browser, report):
    """The report in a window of that width, high enough for all figures to be in view."""
    opened = browser.open(report, width=request.param, height=14_000)
    opened.wait_for(_ALL_DRAWN)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def touched(browser, report):
    """The report at its second shape, for tests that click; they share the page."""
    opened = browser.open(f"{report}#shape-2")
    yield opened
    opened.close()


def test_every_figure_is_drawn_without_errors_and_without_fetching(page, report):
    drawn = page.evaluate(
        "[...document.querySelectorAll('#panel .plot')].map((plot) => plot.dataset.figure)"
    )
    assert set(drawn) == {
        *("finalists", "convergence", "importance", "slices", "parallel", "outcomes")
    }
    assert page.evaluate("document.querySelectorAll('#answer .heatmaplayer image').length") == 2
    assert page.evaluate("document.querySelector('[data-figure=parallel] canvas') !== null")
    assert page.errors == []
    assert page.requested == [report]


def test_nothing_is_wider_than_the_window(page):
    assert page.overflow == 0
    assert page.evaluate("document.querySelector('.sortable').getBoundingClientRect().left") >= 0


def test_numbers_stand_below_each_other(page):
    aligned = page.evaluate(
        "[...document.querySelectorAll('.sortable td.number, .compared td')]"
        ".map((cell) => getComputedStyle(cell).textAlign)"
    )
    assert set(aligned) == {"right"}


def test_a_shape_is_opened_from_the_address_the_table_and_the_list(touched):
    heading = "document.querySelector('#panel h3').textContent"
    assert touched.evaluate(heading).endswith("16 tokens")
    touched.evaluate("document.querySelector('a[href=\"#shape-3\"]').click()")
    touched.wait_for(f"{heading}.endsWith('256 tokens')")
    touched.evaluate("document.getElementById('next').click()")
    touched.wait_for(f"{heading} === 'expand o, down, 16 tokens'")
    assert touched.evaluate("document.getElementById('choice').value") == "4"
    assert touched.evaluate("document.querySelector('tr.chosen a').hash") == "#shape-4"
    touched.evaluate(
        "document.getElementById('choice').value = '6';"
        "document.getElementById('choice').dispatchEvent(new Event('change'))"
    )
    touched.wait_for(f"{heading} === 'shrink 8192>16, 16 tokens'")
    assert "Nothing has been measured yet." in touched.text
    assert touched.errors == []


def test_the_table_sorts_by_its_numbers(touched):
    rows = "[...document.querySelector('.sortable tbody').rows]"
    column = f"{rows}.map((row) => row.cells[5].dataset.value)"
    click = "document.querySelector('.sortable thead').rows[0].cells[5].firstChild.click()"
    touched.evaluate(click)
    rising = touched.evaluate(column)
    assert rising[:3] == ["", "", ""]  # shapes without a ratio
    assert [float(value) for value in rising[3:]] == sorted(map(float, rising[3:]))
    touched.evaluate(click)
    assert touched.evaluate(column) == rising[::-1]


def test_the_page_follows_a_dark_scheme(touched):
    touched.evaluate("scrollTo(0, 0)")
    background = "document.querySelector('#answer .main-svg').style.background"
    light = touched.wait_for(f"document.querySelector('#answer .main-svg') && {background}")
    scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
    touched.call("Emulation.setEmulatedMedia", features=scheme)
    touched.wait_for(f"{background} !== {light!r}")
    assert touched.errors == []


def test_the_report_of_a_recording_is_drawn_too(browser, tmp_path):
    report = of_recordings([write_recording(tmp_path / "r.jsonl.gz")])
    write_report(report, tmp_path / "report.html")
    page = browser.open((tmp_path / "report.html").as_uri(), height=14_000)
    page.wait_for(_ALL_DRAWN)
    errors = page.errors
    page.close()
    assert errors == []
