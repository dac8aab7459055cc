"""``autotune report``: a page of a database or a recording, or one line that says why not."""

from __future__ import annotations

import pytest

from tests.report.examples import odd_database


@pytest.mark.slow
def test_a_run_s_database_becomes_a_page(autotune):
    odd_database(autotune.folder / "autotune.db")
    ended = autotune.in_a_process("report")
    assert (ended.code, ended.out, ended.err) == (0, "Wrote report.html\n", "")
    page = (autotune.folder / "report.html").read_text(encoding="utf-8")
    assert "NVIDIA Test-GPU, builtin kernels" in page
    assert "sqlite:///autotune.db" in page
    assert page.count("<template id=") == 7


def test_a_recording_becomes_a_page_and_no_database(autotune, recording):
    ended = autotune("report", "--replay", recording, "-o", "recorded.html")
    assert (ended.code, ended.out) == (0, "Wrote recorded.html\n")
    assert [path.name for path in autotune.folder.iterdir()] == ["recorded.html"]


def test_a_folder_that_is_not_there_is_told_before_anything_else(autotune):
    line = autotune("report", "-o", "nowhere/report.html").has_failed_in_one_line()
    assert "cannot write nowhere/report.html: there is no folder nowhere" in line


def test_a_database_that_is_not_there_is_named(autotune):
    line = autotune("report").has_failed_in_one_line()
    assert line == "autotune: there is no database autotune.db; give the --storage of a run"
    assert list(autotune.folder.iterdir()) == []


def test_a_recording_contradicts_a_database(autotune, recording):
    ended = autotune("report", "--replay", recording, "--storage", "sqlite:///own.db")
    assert "give one of them" in ended.has_refused_its_usage()
