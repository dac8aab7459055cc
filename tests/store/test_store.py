"""Databases that cannot be used: one clear ``StorageError`` each, and nothing harmed."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
import sqlalchemy as sa

from autotune.errors import StorageError
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.search import TrialMirror
from autotune.store import Patience, Store, engine, explained, schema
from tests.absent import without
from tests.contracts.examples import finished
from tests.patience import PATIENCE_S
from tests.recordings import ENVIRONMENT, SHRINK

SHAPE = KernelShape.from_mapping(SHRINK)
HERE = Environment.from_mapping(ENVIRONMENT)


def sqlite_url(path) -> str:
    return f"sqlite:///{path}"


def make_foreign(path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)")
    connection.execute("INSERT INTO moz_places (url) VALUES ('https://example.org')")
    connection.commit()
    connection.close()


def test_a_database_of_another_program_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "places.sqlite"
    make_foreign(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"another program \(tables moz_places\).*--storage"):
        Store(sqlite_url(path))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["places.sqlite"]  # noqa: PTH208 - names are what is asked for


@pytest.mark.parametrize("name", sorted(schema.metadata.tables))
def test_a_database_of_which_another_run_has_made_a_single_table_is_ours(tmp_path, name):
    url = sqlite_url(tmp_path / "autotune.db")
    engine = sa.create_engine(url)
    schema.metadata.tables[name].create(engine)
    engine.dispose()
    store = Store(url)
    assert set(sa.inspect(store.engine).get_table_names()) == set(schema.metadata.tables)
    store.close()


def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("shopping list\n" * 200)
    with pytest.raises(StorageError, match=r"notes\.txt: file is not a database; .*--storage"):
        Store(sqlite_url(path))
    assert path.read_text() == "shopping list\n" * 200


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere/autotune\.db: unable to open database file"):
        Store(sqlite_url(tmp_path / "nowhere" / "autotune.db"))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match="unable to open database file"):
        Store(sqlite_url(tmp_path))


@pytest.mark.parametrize(
    "url", ["nosql:///autotune.db", "sqlite+nothing:///autotune.db", "autotune.db", "", "://"]
)
def test_a_url_of_no_known_database_is_refused_with_an_example(url):
    with pytest.raises(StorageError, match=r"cannot use the storage URL: .*sqlite:///autotune\.db"):
        Store(url)


def test_a_server_that_is_not_there_is_named():
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=r"cannot use the database postgresql.*127\.0\.0\.1"):
        Store("postgresql+psycopg://someone@127.0.0.1:1/autotune")


def test_a_password_is_not_repeated_in_a_message():
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=r"someone:\*\*\*@") as raised:
        Store("postgresql+psycopg://someone:opensesame@127.0.0.1:1/autotune")
    assert "opensesame" not in str(raised.value)


def test_a_password_in_what_is_no_url_is_not_repeated_either():
    with pytest.raises(StorageError, match=r"someone:\*\*\*@") as raised:
        Store("postgresql+psycopg://someone:opensesame@127.0.0.1:port/autotune")
    assert "opensesame" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "missing", "message"),
    [
        ("postgresql+psycopg", ("psycopg",), r"package psycopg, .*; pip install '.*\[postgres\]'"),
        (
            "postgresql+psycopg2",
            ("psycopg2",),
            r"psycopg2, .*, but psycopg is: give postgresql\+psycopg://h/n",
        ),
        (
            "postgresql+psycopg2",
            ("psycopg", "psycopg2"),
            r"\[postgres\].* begins with postgresql\+psycopg://",
        ),
        ("mysql", ("MySQLdb",), r"package MySQLdb, which is not installed; install it"),
    ],
)
def test_a_missing_driver_is_named_and_only_what_is_missing(tmp_path, url, missing, message):
    if "psycopg" not in missing:
        pytest.importorskip("psycopg")
    script = f"from autotune.store import Store; Store('{url}://h/n')"
    ended = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script],
        env=without(tmp_path, *missing),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = ended.stderr.splitlines()[-1]
    assert said.startswith("autotune.errors.StorageError: ")
    assert re.search(message, said), said
    assert url == "mysql" or "sqlite" not in said


def test_an_empty_file_becomes_a_database(tmp_path):
    path = tmp_path / "autotune.db"
    path.touch()
    opened = Store(sqlite_url(path))
    opened.study("a study", SHAPE, HERE)
    opened.close()
    assert path.stat().st_size > 0


def test_a_database_that_only_optuna_has_used_is_taken(tmp_path):
    url = sqlite_url(tmp_path / "optuna.db")
    TrialMirror(url).close()
    opened = Store(url)
    assert opened.selections() == []
    opened.close()


def test_a_database_that_another_program_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_LOCK_TIMEOUT_S", 0)
    url = sqlite_url(tmp_path / "autotune.db")
    opened = Store(url)
    other = sqlite3.connect(tmp_path / "autotune.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked"):
        opened.study("a study", SHAPE, HERE)
    other.execute("ROLLBACK")
    other.close()
    assert opened.study("a study", SHAPE, HERE).name == "a study"  # nothing is lost by it
    opened.close()


def test_trials_for_a_locked_database_are_a_storage_error_too(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_LOCK_TIMEOUT_S", 0)
    url = sqlite_url(tmp_path / "autotune.db")
    opened = Store(url)
    mirror = TrialMirror(url)
    study = opened.study("a study", SHAPE, HERE)
    other = sqlite3.connect(tmp_path / "autotune.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="database is locked"):
        mirror.open_study(study)
    other.close()
    mirror.close()
    opened.close()


def test_a_database_of_another_optuna_is_refused_with_what_to_do(tmp_path):
    url = sqlite_url(tmp_path / "autotune.db")
    TrialMirror(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    engine.dispose()
    with pytest.raises(StorageError, match=r"Optuna cannot use the database .*--storage"):
        TrialMirror(url)


def test_a_sqlite_database_lets_readers_in_while_it_is_written(tmp_path):
    url = sqlite_url(tmp_path / "autotune.db")
    opened = Store(url)
    with opened.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
    opened.close()


def test_two_threads_keep_measurements_of_their_studies_at_once(tmp_path):
    opened = Store(sqlite_url(tmp_path / "autotune.db"))
    names = [f"study {number}" for number in range(8)]
    threads = [threading.Thread(target=opened.study, args=(n, SHAPE, HERE)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len({opened.study(name, SHAPE, HERE).id for name in names}) == len(names)
    opened.close()


# ------------------------------------------------------------------ a file that goes away


@pytest.mark.parametrize("fate", ["deleted", "moved", "replaced"])
def test_a_database_file_that_goes_away_is_noticed_at_the_next_write(tmp_path, fate):
    path = tmp_path / "autotune.db"
    opened = Store(sqlite_url(path), patience=Patience(PATIENCE_S))
    mirror = TrialMirror(opened.url, patience=opened.patience)
    study = opened.study("a study", SHAPE, HERE)
    if fate == "moved":
        path.rename(tmp_path / "elsewhere.db")
    else:
        path.unlink()
    if fate == "replaced":
        Store(sqlite_url(path)).close()
    said = "replaced" if fate == "replaced" else "deleted or moved away"
    expected = rf"the database .*autotune\.db was {said} while it was in use: .*; put it back"
    with pytest.raises(StorageError, match=expected):
        opened.study("another", SHAPE, HERE)
    with pytest.raises(StorageError, match=expected):
        mirror.open_study(study)
    assert path.exists() == (fate == "replaced")  # no empty file takes its place
    mirror.close()
    opened.close()


# ------------------------------------------------------------------ advice


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("database or disk is full", "free some room on its disk, or give another --storage"),
        ("disk I/O error", "see that its disk is there and has room, or give another --storage"),
        ("database disk image is malformed", "go back to a copy of it, or give another --storage"),
        ("attempt to write a readonly database", "see that it and its folder can be written, or"),
        ("no such column: rank", "no such column: rank; give another --storage"),
    ],
)
def test_what_to_do_fits_what_is_wrong(cause, advice):
    broken = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError(cause))
    with pytest.raises(StorageError) as raised, explained("sqlite:///autotune.db"):
        raise broken
    text = str(raised.value)
    assert cause in text
    assert advice in text
    assert ("go back to a copy" in text) == ("malformed" in text)


def test_a_program_that_writes_the_same_at_the_same_time_is_suspected(tmp_path):
    opened = Store(sqlite_url(tmp_path / "autotune.db"))
    study = opened.study("a study", SHAPE, HERE)
    opened.add(study, [finished(0)])
    with pytest.raises(StorageError, match=r"does another program write .*--storage"):
        opened.add(study, [finished(0)])
    opened.close()


def test_columns_that_an_earlier_autotune_did_not_know_are_added(tmp_path):
    url = sqlite_url(tmp_path / "autotune.db")
    with closing(Store(url)) as store:
        study = store.study_of(SHAPE, HERE)
        store.add(study, [finished(0)])
    with closing(sqlite3.connect(tmp_path / "autotune.db")) as connection:
        connection.execute("DROP TABLE autotune_devices")
        for column in schema.ADDED:
            connection.execute(f"ALTER TABLE {column.table.name} DROP COLUMN {column.name}")
        connection.commit()
    with closing(Store(url)) as store:
        store.add(study, [finished(1)], device="GPU 0")
        with store.transaction() as connection:
            rows = connection.execute(sa.select(schema.measurements.c.device)).scalars().all()
    assert rows == [None, "GPU 0"]
