"""The databases that every store is asked on: SQLite, and PostgreSQL of our own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from autotune.search import TrialMirror
from autotune.store import Store
from tests.conftest import postgres_programs
from tests.patience import PATIENCE_S


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[str]:
    """URL of a PostgreSQL server of our own, without a database's name."""
    programs = postgres_programs()
    assert programs is not None
    folder = tmp_path_factory.mktemp("postgres")
    # The server refuses to run as root.
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    if owner is not None:
        for path in (folder, *folder.parents[:3]):
            if path.stat().st_uid == 0 and path.name.startswith(("postgres", "pytest-", "popen-")):
                path.chmod(0o755)
        shutil.chown(folder, owner.pw_uid, owner.pw_gid)
    cluster, log = folder / "cluster", folder / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        result = subprocess.run(  # noqa: S603 - the server's own programs
            command,
            cwd=folder,
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # pg_ctl's child would keep a pipe open
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
        assert result.returncode == 0, (program, log.read_text() if log.exists() else "")

    call("initdb", "-D", str(cluster), "-U", "postgres", "-A", "trust", "--no-sync")
    wait_s = f"{PATIENCE_S:.0f}"
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    call("pg_ctl", "-D", str(cluster), "-l", str(log), "-w", "-t", wait_s, "-o", options, "start")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "-D", str(cluster), "-m", "immediate", "-w", "-t", wait_s, "stop")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request, tmp_path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/autotune.db"
    server = request.getfixturevalue("postgres_server")
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{server}/{name}"


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
