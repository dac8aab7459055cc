"""A PostgreSQL server of our own, which may be stopped and started again."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from typing_extensions import Self

#: A safety net only, in seconds: how long one of the server's programs may take.
_LIMIT_S = 900


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's server programs."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


class PostgresServer:
    """A server on a free port. A context manager, inside which it runs.

    Attributes:
        url: The server's URL, without a database's name.
    """

    def __init__(self) -> None:
        """Start nothing yet. The server refuses to run as root; then ``postgres`` owns it."""
        programs = postgres_programs()
        if programs is None:
            raise FileNotFoundError("no PostgreSQL server programs: install PostgreSQL")
        self._programs = programs
        # Not in a folder of pytest's, which every new pytest closes to other users.
        self._files = TemporaryDirectory(prefix="postgres-")
        self._folder = Path(self._files.name)
        self._owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._port = _free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        if self._owner is not None:
            shutil.chown(self._folder, self._owner.pw_uid, self._owner.pw_gid)
        self._call("initdb", "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._call("pg_ctl", "-m", "immediate", "-w", "-t", str(_LIMIT_S), "stop", is_checked=False)
        self._files.cleanup()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -h 127.0.0.1 -k {self._folder} -c fsync=off"
        log = str(self._folder / "log")
        self._call("pg_ctl", "-l", log, "-w", "-t", str(_LIMIT_S), "-o", options, "start")

    def stop(self) -> None:
        """Stop it, also in the middle of transactions, and wait until it is gone."""
        self._call("pg_ctl", "-m", "fast", "-w", "-t", str(_LIMIT_S), "stop")

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"

    def execute(self, statement: str) -> None:
        """Execute a statement as the server's superuser."""
        engine = sa.create_engine(f"{self.url}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _call(self, program: str, *arguments: str, is_checked: bool = True) -> None:
        owner = self._owner
        command = [str(self._programs / program), "-D", str(self._folder / "cluster"), *arguments]
        result = subprocess.run(  # noqa: S603 - the server's own programs
            command,
            cwd=self._folder,
            user=None if owner is None else owner.pw_uid,
            group=None if owner is None else owner.pw_gid,
            extra_groups=None if owner is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # pg_ctl's child would keep a pipe open
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT_S,
            check=False,
        )
        log = self._folder / "log"
        said = log.read_text() if log.exists() else ""
        assert result.returncode == 0 or not is_checked, (program, said)


def _free_port() -> int:
    """A port that no client gets while the server is away: Linux gives those from 32,768 on."""
    while True:
        port = random.randint(20_000, 32_000)  # noqa: S311 - nothing is kept secret by it
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
