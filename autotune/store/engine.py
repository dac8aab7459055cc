"""Opens databases, and knows a SQLite database's file."""

from __future__ import annotations

import importlib.util
import re
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from autotune.errors import StorageError, install_hint
from autotune.store.faults import shown

#: What a storage URL looks like, for messages.
_EXAMPLES = "sqlite:///autotune.db or postgresql+psycopg://user@host/name"

#: A password in a text that is no URL.
_PASSWORD = re.compile(r":[^:/@]*@")

#: The driver for PostgreSQL that ``autotune[postgres]`` installs.
_POSTGRES_DRIVER = "psycopg"

#: How long a writer waits for another writer to finish, in seconds.
_LOCK_TIMEOUT_S = 30

#: The same for one that tries again: while SQLite waits, Python heeds no signal.
_LOCK_TIMEOUT_OF_PATIENT_S = 2

#: A server that is gone without a word is noticed within half a minute, not after the quarter of an
#: hour that TCP takes (https://www.postgresql.org/docs/current/libpq-connect.html).
_POSTGRES_LIMITS = {
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}

#: How long a transaction on PostgreSQL may wait for its own process, seconds. All of ours are over
#: in milliseconds.
_MOST_IDLE_S = 60

#: The files of a SQLite database that may hold its content: its own, and its journals.
_PARTS = ("", "-wal", "-journal")


def engine_options(url: str) -> dict[str, Any]:
    """The arguments of ``create_engine``: a connection that the server has closed is not used."""
    parts = sa.make_url(url)
    if parts.get_backend_name() == "sqlite":
        return {}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parts.drivername in {"postgresql+psycopg", "postgresql+psycopg2", "postgresql"}:
        limits = {name: n for name, n in _POSTGRES_LIMITS.items() if name not in parts.query}
        options["connect_args"] = limits
    return options


def make_engine(url: str, *, tries_again: bool = False) -> sa.Engine:
    """SQLAlchemy's engine of a URL; nothing is connected yet.

    Args:
        url: The database.
        tries_again: As for ``set_up``.

    Raises:
        StorageError: The text is no URL, or the driver of its database is not installed.
    """
    _parsed(url)
    try:
        engine = sa.create_engine(url, **engine_options(url))
    except ModuleNotFoundError as error:
        raise StorageError(_missing_driver(url, error.name or str(error))) from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StorageError(_unusable(url, error)) from None
    set_up(engine, tries_again=tries_again)
    return engine


def _parsed(url: str) -> sa.URL:
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise StorageError(_unusable(url, error)) from None


def _unusable(url: str, error: Exception) -> str:
    got = _PASSWORD.sub(":***@", url)
    return f"cannot use the storage URL: got {got!r} ({error}); give one like {_EXAMPLES}"


def _missing_driver(url: str, module: str) -> str:
    """What is missing to use a URL whose driver is not installed."""
    parsed = sa.make_url(url)
    text = f"{shown(url)} needs the Python package {module}, which is not installed"
    if parsed.get_backend_name() != "postgresql":
        return f"{text}; install it, or give a URL like {_EXAMPLES}"
    if module != _POSTGRES_DRIVER and importlib.util.find_spec(_POSTGRES_DRIVER) is not None:
        ours = parsed.set(drivername=f"postgresql+{_POSTGRES_DRIVER}")
        return f"{text}, but {_POSTGRES_DRIVER} is: give {ours.render_as_string()}"
    begins = f", and give a URL that begins with postgresql+{_POSTGRES_DRIVER}://"
    return f"{text}; {install_hint('postgres')}{'' if module == _POSTGRES_DRIVER else begins}"


def set_up(engine: sa.Engine, *, tries_again: bool = False) -> None:
    """Set up the connections that are opened from now on.

    SQLite's commits do not wait for the disk. They wait for other writers: a moment if the caller
    tries again, and else for half a minute. With a write-ahead log and ``synchronous = NORMAL`` a
    power cut may lose the last commits, but never harms the file
    (https://www.sqlite.org/wal.html).

    PostgreSQL ends the connection of a process that stops in the middle of a transaction, as what
    it has locked would stay locked.
    """
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", partial(_make_sqlite_quick, tries_again))
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "connect", _limit_idle_transactions)


def _make_sqlite_quick(tries_again: bool, connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection has no common type
    timeout_s = min(_LOCK_TIMEOUT_S, _LOCK_TIMEOUT_OF_PATIENT_S if tries_again else _LOCK_TIMEOUT_S)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA busy_timeout={timeout_s * 1000}")


def _limit_idle_transactions(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection has no common type
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_MOST_IDLE_S}s'")
    connection.commit()


def database_file(url: str) -> Path | None:
    """The file of a SQLite database; None of one in memory, and of other databases.

    Raises:
        StorageError: The text is no URL.
    """
    parts = _parsed(url)
    name = parts.database
    if parts.get_backend_name() != "sqlite" or name in (None, "", ":memory:"):
        return None
    if "uri" not in parts.query or not str(name).startswith("file:"):
        return Path(str(name))
    if parts.query.get("mode") == "memory":
        return None
    return Path(unquote(str(name).removeprefix("file:")))


class WatchedFile:
    """Notices that a SQLite database's file was deleted, moved or replaced.

    SQLite itself would go on writing to a file that nobody can open any more.
    """

    def __init__(self, url: str) -> None:
        """Remember the file as it is now. Other databases than SQLite's are never missed."""
        self._path = database_file(url)
        self._identity = self._seen()

    def check(self) -> None:
        """Look at the file again.

        Raises:
            StorageError: It is not the same file any more.
        """
        if self._path is not None and self._identity not in (None, self._seen()):
            what = "replaced" if self._path.exists() else "deleted or moved away"
            raise StorageError(
                f"the database {self._path} was {what} while it was in use: what was measured "
                "after that cannot be kept; put it back, or run the same command again without it"
            )

    def _seen(self) -> tuple[int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)


def copied(file: Path) -> tuple[str, TemporaryDirectory[str]]:
    """The URL of a copy of a SQLite database, and the folder of the copy.

    SQLite reads a database in WAL mode only where it may make files beside it, so an archive is
    read from a copy. What its write-ahead log holds is in the copy, too.

    Raises:
        StorageError: There is no room for the copy, or the file cannot be read.
    """
    folder = TemporaryDirectory(prefix="autotune-")
    copy = Path(folder.name) / "copy.db"
    try:
        for part in _PARTS:
            source = file.with_name(file.name + part)
            if source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + part))
    except OSError as error:
        folder.cleanup()
        raise StorageError(
            f"cannot copy the read-only database {file} to {copy.parent}, to read it: "
            f"{error.strerror}; make it readable, or give another folder for copies with TMPDIR"
        ) from None
    return f"sqlite:///{copy}", folder
