"""The databases that every store is asked on: SQLite, and PostgreSQL of our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.storages import RDBStorage

from autotune.search import TrialMirror
from autotune.store import Store
from tests.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of our own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request, tmp_path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/autotune.db"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def store(url) -> Iterator[Store]:
    opened = Store(url)
    yield opened
    opened.close()


@pytest.fixture
def mirror(store) -> Iterator[TrialMirror]:
    opened = TrialMirror(store.url)
    yield opened
    opened.close()


@pytest.fixture
def storage(url) -> Iterator[RDBStorage]:
    """The database as a user opens it with Optuna alone."""
    opened = RDBStorage(url)
    yield opened
    opened.remove_session()
    opened.engine.dispose()
