"""The page as a file: what it shows, and that no text in it is read as markup."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autotune.errors import ExportError
from autotune.launch.op import MOE_OPS
from autotune.report.gather import of_database, of_recordings
from autotune.report.page import check_writable, html_of, write_report
from autotune.report.shape_view import as_json
from tests.choose.test_between import crossing, write
from tests.moe import moe_table
from tests.profiles import is_thorough
from tests.recordings import write_recording
from tests.report.examples import HOSTILE, large_database, odd_database

pytestmark = pytest.mark.slow


class Content(HTMLParser):
    """The elements of a page: the text of each cell, and what scripts hold."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.stores: dict[str, str] = {}
        self._open: list[str] = []
        self._store: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open.append(tag)
        given = dict(attrs)
        self.addresses += [given[name] for name in ("src", "href") if name in given]
        self._store = given.get("id") if given.get("type") == "application/json" else None
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self._store is not None:
            self.stores[self._store] = self.stores.get(self._store, "") + data
        elif self.cells and self._open and self._open[-1] in ("td", "th", "a", "b", "small"):
            self.cells[-1] += data

    def handle_endtag(self, tag):
        self._store = None
        while self._open and self._open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory) -> str:
    return html_of(of_database(odd_database(tmp_path_factory.mktemp("page") / "odd.db")))


@pytest.fixture(scope="module")
def odd(odd_page) -> Content:
    return Content(odd_page)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> str:
    path = write_recording(tmp_path_factory.mktemp("recorded") / "r.jsonl.gz")
    return html_of(of_recordings([path]))


def without_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


# ------------------------------------------------------------------ what the page shows


def test_the_table_has_a_row_for_every_shape_with_its_figures(odd):
    assert odd.cells.count("o, down") == 0
    row = odd.cells.index(f"shrink {HOSTILE}")
    _, sizes, tokens, default, tuned, ratio, share, trials = odd.cells[row : row + 8]
    assert (sizes, tokens, trials) == ("4096>16", "1", "30")
    assert re.fullmatch(r"\d+\.\d\d\d+\.\d\d to \d+\.\d\d", default)
    assert re.fullmatch(r"\d+\.\d\d\d+\.\d\d to \d+\.\d\d", tuned)
    assert re.fullmatch(r"\d\.\d\d\d\.\d\d to \d\.\d\d", ratio)
    assert re.fullmatch(r"\d+%", share)
    assert "nothing works" in odd.cells
    assert "no choice yet" in odd.cells


def test_every_shape_has_its_figures_ready_to_be_drawn(odd):
    first = json.loads(odd.stores["shape-figures-1"])
    assert set(first) == {
        *("finalists", "convergence", "importance", "slices", "parallel", "outcomes")
    }
    assert all("template" not in figure["layout"] for figure in first.values())
    assert json.loads(odd.stores["shape-figures-6"]) == {}  # nothing measured yet
    assert len(odd.stores) == 7 + 2  # shapes and devices


def test_a_cell_of_the_map_leads_to_its_shape(odd):
    speedup = json.loads(odd.stores["device-1"])["speedup"]
    assert speedup["opens"] == [[1, 2, 3]]
    assert json.loads(odd.stores["device-2"])["speedup"]["opens"] == [[7]]


def test_losses_between_rows_are_told_where_they_are_known(odd_page):
    text = " ".join(without_scripts(odd_page).split())
    assert "3 pairs of kernel and batch size were timed" in text
    assert "now: the nearest row is 4.0% slower than the fastest of them (shrink" in text
    assert "before rows were added: the nearest row does not run." in text
    assert text.count("What that costs has not been measured here.") == 1  # the other device


def test_ceilings_are_shown_or_said_to_be_missing(odd):
    assert "1,000 GB/s (copy), 1,000 TFLOP/s (bfloat16 matrix product)" in odd.cells
    assert any(cell.startswith("not measured: GB/s") for cell in odd.cells)


def test_a_recording_s_page_says_what_a_recording_does_not_know(recorded):
    text = " ".join(without_scripts(recorded).split())
    assert "A recording holds whole search spaces and no search." in text
    assert "A recording has no order of trials" in text
    assert "A recording does not say how long anything took." in text
    assert "convergence" not in json.loads(Content(recorded).stores["shape-figures-1"])


def test_a_moe_op_says_what_was_chosen_for_its_layer(tmp_path):
    rows = [moe_table(op, num_tokens=8) for op in MOE_OPS]
    page = html_of(of_recordings([write(tmp_path / "r.jsonl.gz", rows, crossing, default=64)]))
    assert page.count("All ops of the MoE layer have block_m 16.") == 4
    assert page.count("Together the 4 ops are 1.40 times as fast as the default.") == 4


# ------------------------------------------------------------------ what the page must not do


def test_names_and_reasons_are_never_read_as_markup(odd_page):
    assert "<script>alert" not in odd_page
    assert "<b>needed</b>" not in odd_page
    assert "&lt;script&gt;alert(&#39;layer&#39;)&lt;/script&gt; &amp; &lt;b&gt;more" in odd_page


def test_the_page_names_nothing_outside_of_itself(odd, odd_page):
    assert all(address.startswith("#") for address in odd.addresses)
    assert not {"link", "img", "iframe"} & set(odd.tags)
    assert "default-src 'none'" in odd_page
    assert "@import" not in without_scripts(odd_page)


def test_json_in_a_page_cannot_end_its_script_element():
    text = as_json({"a": "</script><script>alert(1)"})
    assert "<" not in text
    assert json.loads(str(text)) == {"a": "</script><script>alert(1)"}


def test_headings_go_down_one_level_at_a_time(odd):
    levels = [int(tag[1]) for tag in odd.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


# ------------------------------------------------------------------ the file


@pytest.mark.slow
def test_a_hundred_shapes_of_two_hundred_trials_stay_small(tmp_path):
    """By default a fifth of them, beyond what a page has without any, which all of them share."""
    kinds = 20 if is_thorough() else 4
    path, empty = tmp_path / "report.html", tmp_path / "empty" / "report.html"
    empty.parent.mkdir()
    write_report(of_database(large_database(tmp_path / "large.db", kinds=kinds)), path)
    write_report(of_database(large_database(tmp_path / "one.db", kinds=1, counts=1)), empty)
    shared = empty.stat().st_size
    assert shared + (path.stat().st_size - shared) * 20 / kinds < 15e6
    assert [each.name for each in tmp_path.glob("*.html")] == ["report.html"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"there is no folder .*nowhere; .*name another file"):
        check_writable(tmp_path / "nowhere" / "report.html")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ExportError, match=r"is a folder: give -o a file, such as .*report\.html"):
        check_writable(tmp_path)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / (250 * "x" + ".html")  # itself allowed, its temporary neighbour is too long
    report = of_recordings([write_recording(tmp_path / "r.jsonl.gz")])
    with pytest.raises(ExportError, match=r"cannot write .*File name too long; name another"):
        write_report(report, path)
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl.gz"]


def test_an_existing_page_is_replaced(tmp_path):
    path: Path = tmp_path / "report.html"
    path.write_text("old")
    write_report(of_recordings([write_recording(tmp_path / "r.jsonl.gz")]), path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
