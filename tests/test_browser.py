"""The browser of the tests shows what a reader would see, and what is wrong with a page."""

from __future__ import annotations

import struct

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def page_of(browser, tmp_path):
    """Opens a page with the HTML given."""
    opened = []

    def open_page(html, **size):
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><meta charset=utf-8>{html}")
        opened.append(browser.open(path.as_uri(), **size))
        return opened[-1]

    yield open_page
    for page in opened:
        page.close()


def test_the_text_of_a_page_is_what_a_reader_sees(page_of):
    page = page_of("<p>4.4× <span hidden>not</span> faster</p>", width=400)
    assert page.text.strip() == "4.4× faster"
    assert page.evaluate("Promise.resolve([window.innerWidth, 2])") == [400, 2]
    assert (page.errors, len(page.requested), page.overflow) == ([], 1, 0)


def test_waiting_ends_when_a_script_has_drawn(page_of):
    page = page_of("<script>setTimeout(() => document.title = 'drawn', 300)</script>")
    assert page.wait_for("document.title == 'drawn' && document.title") == "drawn"


def test_errors_and_requests_of_a_page_are_recorded(page_of):
    page = page_of("<img src=none.png><script>console.error('bad', 1); nothing.here</script>")
    assert any("bad 1" in error for error in page.errors)
    assert any("nothing is not defined" in error for error in page.errors)
    assert any("none.png" in error for error in page.errors)
    assert [url.rpartition("/")[2] for url in page.requested] == ["page.html", "none.png"]


def test_a_page_that_is_wider_than_its_window_overflows(page_of, tmp_path):
    page = page_of("<div style='width: 700px'>wide</div>", width=400, height=300)
    assert page.overflow > 250
    image = page.screenshot(tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", image[16:24]) == (400, 300)
