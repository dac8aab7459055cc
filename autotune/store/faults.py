"""What a database's errors mean: which ones pass by themselves, and what helps against others."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from autotune.errors import InputError, StorageError, printable

_ELSEWHERE = "give another --storage"

#: What SQLite says, and what to do about it. The first ones pass by themselves.
_SQLITE_PASSING = {
    "database is locked": "another program is using it: wait until that ends",
    "database table is locked": "another program is using it: wait until that ends",
    "database or disk is full": "free some room on its disk",
}
_SQLITE_ADVICE = _SQLITE_PASSING | {
    "unable to open database file": "see that its folder is there and can be written",
    "readonly database": "see that it and its folder can be written",
    "disk I/O error": "see that its disk is there and has room",
    "malformed": "go back to a copy of it",
    "Could not decode": "go back to a copy of it",
}

#: SQLSTATEs, or their first two letters, of a server that stops, starts or is too busy, and of
#: transactions that stood in one another's way
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_PASSING_STATES = ("08", "40", "53", "57014", "57P01", "57P02", "57P03", "57P05", "55P03")

#: SQLSTATEs of what a user may not do, and what a server says of that before it has one.
_DENIED_STATES = ("28", "42501", "3D000")
_DENIED = ("authentication", "does not exist", "no pg_hba.conf entry", "password", "not permitted")

#: SQLSTATEs, and what SQLite says, where another process was faster: what is to be made is there.
_RACE_STATES = ("23505", "42P07", "42701", "42710")
_RACE = ("already exists", "duplicate column name")

#: Errors of MySQL's clients and servers like those of ``_PASSING_STATES``.
_PASSING_NUMBERS = {1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013}


def shown(url: str) -> str:
    """A database's URL without its password, for messages."""
    return sa.make_url(url).render_as_string(hide_password=True)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the database's own errors into a ``StorageError`` that says what to do."""
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = (str(getattr(error, "orig", None) or error).splitlines() or ["no reason given"])[0]
        raise StorageError(
            f"cannot use the database {shown(url)}: {printable(cause)}; {_advice(error)}"
        ) from error


@contextmanager
def undamaged(url: str, what: str) -> Iterator[None]:
    """Name the database, and what in it is wrong, in errors of reading what a row holds."""
    try:
        yield
    except StorageError:
        raise
    except (InputError, ValueError, TypeError) as error:  # SQLAlchemy's own, of a time, say
        raise StorageError(
            f"the database {shown(url)} is damaged: {what}: {error}; go back to a copy of it, or "
            "give another --storage"
        ) from error


def is_passing(error: BaseException | None) -> bool:
    """Whether the same may work a little later, with nothing done about it."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeout)
    if isinstance(error.orig, sqlite3.Error):
        return any(text in str(error.orig) for text in _SQLITE_PASSING)
    if error.connection_invalidated:
        return True
    if state := _state(error):
        return state.startswith(_PASSING_STATES)
    if (number := _number(error)) is not None:
        return number in _PASSING_NUMBERS
    # A server that cannot be reached has no code to give.
    return isinstance(error, OperationalError | InterfaceError) and not _is_denied(error)


def is_race(error: BaseException | None) -> bool:
    """Whether another process has just written or made the same, so that a look shows it."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return any(text in str(error.orig) for text in _RACE)
    return _state(error).startswith(_RACE_STATES)


def _advice(error: sa.exc.SQLAlchemyError) -> str:
    """What to do about an error, as the end of a message."""
    if isinstance(error, IntegrityError):
        return f"does another program write to its tables? Wait until that ends, or {_ELSEWHERE}"
    if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error):
        known = (advice for text, advice in _SQLITE_ADVICE.items() if text in str(error.orig))
        return ", or ".join([*list(known)[:1], _ELSEWHERE])
    if is_passing(error):
        return f"see that its server runs and can be reached, or {_ELSEWHERE}"
    if isinstance(error, DBAPIError) and _is_denied(error):
        return f"see that it is there and that its user may use it, or {_ELSEWHERE}"
    return _ELSEWHERE


def _is_denied(error: DBAPIError) -> bool:
    if state := _state(error):
        return state.startswith(_DENIED_STATES)
    return any(text in str(error.orig) for text in _DENIED)


def _state(error: DBAPIError) -> str:
    """The SQLSTATE, as psycopg 3 and psycopg 2 give it; empty where there is none."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or ""


def _number(error: DBAPIError) -> int | None:
    """The error's number, as MySQL's drivers give it."""
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
