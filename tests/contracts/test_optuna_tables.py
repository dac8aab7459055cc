"""Optuna's tables are whole, whatever happened to those who made them."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from autotune.search import TrialMirror
from autotune.search.dashboard.optuna_tables import complete, known_tables
from autotune.search.writer import Writer
from autotune.store import Store
from tests.contracts.examples import HERE, SHAPE, finished, trials
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def tables() -> sa.MetaData:
    """Those of the Optuna that is installed."""
    known = known_tables()
    assert known is not None
    return known


def indexes(url: str) -> set[tuple[str, bool]]:
    """The indexes of Optuna's tables, and whether each is unique."""
    engine = sa.create_engine(url)
    try:
        found = sa.inspect(engine)
        names = ("studies", "trials")
        listed = [each for name in names for each in found.get_indexes(name)]
        return {(str(each["name"]), bool(each["unique"])) for each in listed}
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def optunas(tmp_path_factory) -> set[tuple[str, bool]]:
    """The indexes that Optuna alone makes."""
    url = f"sqlite:///{tmp_path_factory.mktemp('optunas')}/optuna.db"
    storage = RDBStorage(url)
    storage.engine.dispose()
    return indexes(url)


def test_a_process_killed_at_any_statement_leaves_what_the_next_one_completes(tmp_path, optunas):
    command = [sys.executable, "-m", "tests.contracts.killed", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S)  # noqa: S603 - our own
    left = sorted(tmp_path.glob("*.db"))
    assert len(left) > len(tables().tables)
    for path in left:
        url = f"sqlite:///{path}"
        with closing(Store(url)) as store, closing(TrialMirror(url)) as mirror:
            mirror.add(mirror.open_study(store.study("a study", SHAPE, HERE)), trials())
        assert indexes(url) == optunas, path.name


def break_tables(url: str) -> list[int]:
    """A database whose tables lack their indexes, with a study three times; their numbers."""
    engine, optunas = sa.create_engine(url), tables().tables
    with engine.begin() as connection:
        for name in ("ix_studies_study_name", "ix_trials_study_id"):
            connection.exec_driver_sql(f"DROP INDEX {name}")
        study = sa.insert(optunas["studies"]).values(study_name="a study")
        for _ in range(2):
            connection.execute(study)
        query = sa.select(optunas["studies"].c.study_id).order_by("study_id")
        _first, *numbers = connection.execute(query).scalars().all()
        for number in numbers:
            values = {"study_id": number, "key": "environment", "value_json": "{}"}
            connection.execute(sa.insert(optunas["study_user_attributes"]).values(values))
            direction = {"study_id": number, "direction": "MINIMIZE", "objective": 0}
            connection.execute(sa.insert(optunas["study_directions"]).values(direction))
    engine.dispose()
    return numbers


def test_studies_of_one_name_become_one_with_the_trials_of_all(store, url, optunas):
    study = store.study("a study", SHAPE, HERE)
    store.add(study, [finished(number) for number in range(5)])
    with closing(TrialMirror(url)) as mirror:
        mirror.add(mirror.open_study(study), trials()[:3])
        kept = mirror.open_study(study)._study_id
    second, third = break_tables(url)
    with store.engine.begin() as connection:
        table = tables().tables["trials"]
        moved = sa.update(table).where(table.c.number == 1).values(study_id=second)
        connection.execute(moved)
    with closing(TrialMirror(url)) as mirror, closing(Writer(store, mirror)) as writer:
        assert mirror.study_names == ["a study"]
        assert writer.open(study).twice == 0
        opened = mirror.open_study(study)
        assert opened._study_id == kept not in (second, third)
        assert [trial.number for trial in opened.trials] == list(range(5))
    assert indexes(url) == optunas


def test_many_make_the_tables_at_once(url, optunas):
    start, failed = threading.Barrier(6), []

    def make() -> None:
        engine = sa.create_engine(url)
        try:
            start.wait(PATIENCE_S)
            TrialMirror(url).close()
        except Exception as error:  # noqa: BLE001 - the main thread tells
            failed.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failed == []
    assert indexes(url) == optunas


@pytest.mark.usefixtures("mirror")
def test_tables_that_are_whole_are_only_looked_at(store):
    statements: list[str] = []
    listened = (store.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    sa.event.listen(*listened)
    complete(store.engine, tables())
    assert not [one for one in statements if one.lstrip().startswith(("CREATE", "BEGIN"))]


def test_a_study_that_optuna_began_itself_keeps_its_trials(url):
    storage = RDBStorage(url)
    study = optuna.create_study(storage=storage, study_name="mine")
    study.add_trials(trials())
    with closing(TrialMirror(url)) as mirror:
        assert mirror.study_names == ["mine"]
    assert len(study.get_trials()) == len(trials())
    storage.remove_session()
    storage.engine.dispose()
