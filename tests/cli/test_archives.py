"""A database that cannot be written: what is kept in it can be read all the same."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.store import schema
from tests.cli.command import Command
from tests.store.old import write_old_database

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Command:
    """A run that is done: its database, and its folder of files."""
    command = Command(tmp_path_factory.mktemp("finished"))
    ended = command("run", "--op", "expand", "--tokens", "16", "--trials", 10)
    assert ended.code == 0, ended.err
    return command


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can search; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="archive-") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


@contextmanager
def archived(files: list[Path], place: Path) -> Iterator[str]:
    """The URL of a database in a folder in which nobody may write, for a user who is not root."""
    archive = place / "archive"
    archive.mkdir()
    for file in files:
        shutil.copyfile(file, archive / file.name)
        (archive / file.name).chmod(0o444)
    archive.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        nobody = pwd.getpwnam("nobody")
        os.setegid(nobody.pw_gid)
        os.seteuid(nobody.pw_uid)
    try:
        with pytest.raises(PermissionError):
            (archive / "new").touch()
        yield f"sqlite:///{archive / files[0].name}"
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
        archive.chmod(0o755)


def test_an_archive_is_read_by_every_command_that_reads(finished, place):
    tuned = place / "tuned"
    shutil.copytree(finished.folder / "tuned", tuned)
    everything = [
        ("status",),
        ("report", "--output", place / "report.html"),
        ("export", "--output", place / "files"),
        ("check", tuned),
    ]
    url = f"sqlite:///{finished.folder / 'autotune.db'}"
    inside = Command(place)
    expected = [inside(*command, "--storage", url) for command in everything]
    assert [ended.code for ended in expected] == [0] * 4
    (place / "report.html").unlink()
    shutil.rmtree(place / "files")
    with archived([finished.folder / "autotune.db"], place) as archive:
        got = [inside(*command, "--storage", archive) for command in everything]
        assert [(ended.code, ended.err) for ended in got] == [(0, "")] * 4
        assert got[3].out == expected[3].out
        assert (place / "report.html").stat().st_size > 0
        assert os.listdir(place / "archive") == ["autotune.db"]  # noqa: PTH208 - names are asked for
    assert inside.files("files") == finished.files()


def test_what_only_the_log_of_an_archive_holds_is_read(finished, place, tmp_path):
    source = tmp_path / "autotune.db"
    shutil.copyfile(finished.folder / "autotune.db", source)
    writer = sqlite3.connect(source)
    writer.execute("UPDATE autotune_runs SET host = 'far away'")
    writer.commit()  # into the log: the file has it when the last connection is closed
    log = source.with_name("autotune.db-wal")
    inside = Command(place)
    assert log.stat().st_size > 0
    with archived([source, log], place) as archive:
        ended = inside("status", "--storage", archive)
    writer.close()
    assert (ended.code, ended.err) == (0, "")
    assert "far away" in ended.out


def test_an_archive_of_an_older_autotune_is_read(place, tmp_path):
    write_old_database(tmp_path / "old.db")
    assert schema.facts.name not in (tmp_path / "old.db").read_bytes().decode("latin-1")
    inside = Command(place)
    with archived([tmp_path / "old.db"], place) as archive:
        ended = inside("status", "--storage", archive)
    assert (ended.code, ended.err) == (0, "")
    assert "2 studies: 0 running, 2 done, 0 to do" in ended.out


def test_a_url_that_says_itself_that_it_only_reads_is_taken(finished, autotune):
    path = finished.folder / "autotune.db"
    url = f"sqlite:///file:{path}?mode=ro&immutable=1&uri=true"
    ended = autotune("status", "--storage", url)
    assert (ended.code, ended.err) == (0, "")
    gone = autotune("status", "--storage", url.replace("autotune.db", "none.db"))
    assert "there is no database" in gone.has_failed_in_one_line()
