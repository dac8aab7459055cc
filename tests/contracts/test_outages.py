"""Databases that fail for a moment: nothing measured is lost, and nothing is kept twice."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autotune.errors import StorageError
from autotune.plan.study import StudyPlan
from autotune.search import TrialMirror
from autotune.search.dashboard import mirror as mirror_module
from autotune.search.session import Session
from autotune.search.tune import tune
from autotune.search.writer import Writer
from autotune.store import Patience, Store, patience
from autotune.store.faults import is_passing
from tests.contracts.examples import HERE, SHAPE, finished
from tests.patience import PATIENCE_S
from tests.postgres import PostgresServer
from tests.profiles import examples
from tests.recordings import write_recording
from tests.search.cases import CountingRunner

# ------------------------------------------------------------------ what passes by itself


class Failing:
    """A database that fails at some of its commits, before them or after them."""

    def __init__(self, store: Store, mirror: TrialMirror, fates: list[str]) -> None:
        self._fates = iter(fates)
        for engine in (store.engine, mirror._storage.engine):
            self._fail_at_commits(engine)

    def _fail_at_commits(self, engine: sa.Engine) -> None:
        commit = engine.dialect.do_commit

        def do_commit(connection: object) -> None:
            fate = next(self._fates, "works")
            if fate == "fails":
                raise sqlite3.OperationalError("database is locked")
            commit(connection)  # type: ignore[arg-type]
            if fate == "answer is lost":
                raise sqlite3.OperationalError("database is locked")

        engine.dialect.do_commit = do_commit  # type: ignore[method-assign, assignment]


@pytest.mark.slow
@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    fates=st.lists(st.sampled_from(["works", "fails", "answer is lost"]), max_size=12),
    tables=st.sampled_from(["known", "unknown"]),
)
@example(fates=["answer is lost"] * 4, tables="known")
@example(fates=["works", "fails", "fails", "fails"], tables="unknown")
def test_every_measurement_and_trial_is_kept_once_however_commits_fail(
    tmp_path_factory, fates, tables
):
    if tables == "unknown":  # Optuna itself adds a trial again whose answer was lost
        fates = [fate for fate in fates if fate != "answer is lost"]
    url = f"sqlite:///{tmp_path_factory.mktemp('failing')}/autotune.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "_FIRST_PAUSE_S", 1e-4)
        patch.setattr(patience, "_LONGEST_PAUSE_S", 1e-3)
        if tables == "unknown":
            patch.setattr(mirror_module, "known_tables", lambda: None)
        waits = Patience(PATIENCE_S)
        store, mirror = Store(url, patience=waits), TrialMirror(url, patience=waits)
        writer = Writer(store, mirror)
        study = writer.open(store.study("a study", SHAPE, HERE))
        Failing(store, mirror, fates)
        items = [finished(number) for number in range(6)]
        for item in items:
            study.put(item)
        study.flush()
        assert study.kept == len(items)
        writer.close()
        mirror.close()
        store.close()
    after = Store(url)
    assert after.finished(after.study("a study", SHAPE, HERE)) == items
    trials = sqlite3.connect(url.removeprefix("sqlite:///")).execute("SELECT number FROM trials")
    assert [number for (number,) in trials] == list(range(len(items)))
    after.close()


def test_a_database_that_stays_away_is_given_up_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 1e-3)
    said: list[str] = []
    url = f"sqlite:///{tmp_path}/autotune.db"
    store = Store(url, patience=Patience(0.05, say=said.append))
    other = sqlite3.connect(tmp_path / "autotune.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr("autotune.store.engine._LOCK_TIMEOUT_S", 0)
    store.engine.dispose()
    with pytest.raises(StorageError, match=r"database is locked; another program .* --storage"):
        store.study("a study", SHAPE, HERE)
    assert len(said) == 1
    other.close()
    store.close()


def test_what_is_wrong_for_good_is_said_at_once(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/autotune.db", patience=Patience(PATIENCE_S))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE autotune_studies")
    with pytest.raises(StorageError, match="no such table") as raised:
        store.study("a study", SHAPE, HERE)
    assert "repair" not in str(raised.value)
    store.close()


# ------------------------------------------------------------------ a real server


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own."""
    with PostgresServer() as running:
        yield running


class Disturbed(CountingRunner):
    """Calls a function after some measurements, in another thread, while it measures on."""

    def __init__(self, path, disturb, *, after: int) -> None:
        super().__init__(path)
        self._after = after
        self.disturbing = threading.Thread(target=disturb)

    def measure(self, shape, pending, stop):
        if len(self.measured) == self._after:
            self.disturbing.start()
        return super().measure(shape, pending, stop)


def run_through(runner: CountingRunner, url: str, said: list[str]) -> list[object]:
    """Tune two shapes; returns what is in the database afterwards."""
    plan = StudyPlan.of_shapes(runner.shapes).override(storage=url, trials=30, sampler="random")
    with Session(plan, runner, say=said.append) as session:
        tune(session)
    store = Store(url)
    kept = [store.finished(study) for study in store.studies()]
    store.close()
    return [one.measurement.config for items in kept for one in items]


@pytest.mark.slow
@pytest.mark.postgres
def test_a_run_outlasts_a_restart_of_its_server(server, tmp_path):
    url = server.new_database()
    said: list[str] = []

    def restart() -> None:
        server.stop()
        server.start()

    runner = Disturbed(write_recording(tmp_path / "r.jsonl.gz"), restart, after=20)
    assert run_through(runner, url, said) == runner.measured
    runner.disturbing.join(PATIENCE_S)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM trials").scalar()
        ending = connection.exec_driver_sql("SELECT ending FROM autotune_runs").scalars().all()
    engine.dispose()
    assert (count, ending) == (len(runner.measured), ["done"])
    assert len(said) % 2 == 0  # each time that it was away, it came back


@pytest.mark.slow
@pytest.mark.postgres
def test_a_run_outlasts_connections_that_are_terminated(server, tmp_path):
    url = server.new_database()
    said: list[str] = []

    def terminate() -> None:
        for _ in range(5):
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname LIKE 'test_%%'"
            )

    runner = Disturbed(write_recording(tmp_path / "r.jsonl.gz"), terminate, after=5)
    assert run_through(runner, url, said) == runner.measured
    runner.disturbing.join(PATIENCE_S)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_server_that_stays_away_ends_a_run_with_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.search.session.PATIENCE_S", 0.5)
    url = server.new_database()
    said: list[str] = []

    class Stopped(CountingRunner):
        def measure(self, shape, pending, stop):
            if len(self.measured) == 10:
                server.stop()
            return super().measure(shape, pending, stop)

    runner = Stopped(write_recording(tmp_path / "r.jsonl.gz"))
    with pytest.raises(StorageError, match=r"see that its server runs .* --storage") as raised:
        run_through(runner, url, said)
    assert "\n" not in str(raised.value)
    assert "repair" not in str(raised.value)
    assert len(said) == 1
    server.start()
    again = CountingRunner(tmp_path / "r.jsonl.gz")
    kept = run_through(again, url, said)
    assert len(kept) == len(set(kept[:30])) + len(set(kept[30:])) == 60


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["nowhere", "postgres"])
def test_a_database_or_user_that_is_not_there_does_not_pass(postgres_server, database):
    user = "postgres" if database == "nowhere" else "nobody_at_all"
    url = postgres_server.url.replace("postgres@", f"{user}@") + f"/{database}"
    with pytest.raises(StorageError, match=r"does not exist; see that it is there") as raised:
        Store(url, patience=Patience(PATIENCE_S))
    assert not is_passing(raised.value.__cause__)
