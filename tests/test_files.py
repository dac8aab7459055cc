"""Files that appear under their names only when they are whole."""

import os

import pytest

from autotune.errors import ExportError, RecordingError
from autotune.files import replace_files, write_errors

ADVICE = "name another file"


def test_every_file_has_its_new_text_and_nothing_else_stays_behind(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "below" / "new.json"
    old.write_text("old")
    replace_files({old: "1µ\n", new: "2"}, advice=ADVICE)
    assert old.read_bytes() == "1µ\n".encode()
    assert new.read_text() == "2"
    assert sorted(tmp_path.rglob("*.*")) == sorted([old, new])


def test_no_file_changes_where_one_cannot_be_written(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / (250 * "x" + ".json")
    first.write_text("old")
    with pytest.raises(ExportError, match=r"cannot write .*x\.json: File name too long; name anot"):
        replace_files({first: "new", second: "new"}, advice=ADVICE)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_in_place_of_a_file_is_named_and_no_temporary_file_stays_behind(tmp_path):
    (tmp_path / "name.json").mkdir()
    with pytest.raises(
        ExportError, match=r"cannot write .*name\.json: Is a directory; name another"
    ):
        replace_files({tmp_path / "name.json": "text"}, advice=ADVICE)
    assert [path.name for path in tmp_path.iterdir()] == ["name.json"]


def test_an_error_of_the_system_becomes_one_of_ours_that_names_the_path_and_what_to_do(tmp_path):
    path = tmp_path / "absent" / "r.jsonl.gz"
    with (
        pytest.raises(
            RecordingError, match=r"cannot write .*r\.jsonl\.gz: No such file .*; free it"
        ),
        write_errors(path, RecordingError, advice="free it"),
    ):
        path.touch()


def test_a_pipe_in_place_of_a_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "name.json")
    with pytest.raises(ExportError, match=r"cannot write .*: it is no file but a pipe or a device"):
        replace_files({tmp_path / "name.json": "text"}, advice=ADVICE)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_links_that_lead_in_a_circle_are_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ExportError, match="Too many levels of symbolic links; name another"):
        replace_files({tmp_path / "a": "text"}, advice=ADVICE)
