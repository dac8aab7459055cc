"""Store: every measurement and selection, in one SQLAlchemy database.

Optuna's own tables are in the same database; this module knows nothing of them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autotune.choose.selection import Selection
from autotune.errors import StorageError, install_hint
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.store import schema

#: A database with one of these tables is ours, or Optuna's.
_OUR_TABLES = {"autotune_studies", "version_info"}

#: What a storage URL looks like, for messages.
_EXAMPLES = "sqlite:///autotune.db or postgresql+psycopg://user@host/name"

#: What SQLite's URL has in place of a file for a database in memory.
_IN_MEMORY = (None, "", ":memory:")

#: A password in a text that is no URL.
_PASSWORD = re.compile(r":[^:/@]*@")

#: The driver for PostgreSQL that ``autotune[postgres]`` installs.
_POSTGRES_DRIVER = "psycopg"

#: How long a writer waits for another writer to finish, in seconds.
_LOCK_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A measurement and when it was made, as naive UTC times."""

    measurement: Measurement
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study in the database: its number, its name, its shape and its environment."""

    id: int
    name: str
    shape: KernelShape
    environment: Environment


def study_name(environment: Environment, shape: KernelShape) -> str:
    """The name of a shape's Optuna study, such as ``{gpu}/vllm-0.33.0/{op}/{label}``."""
    return f"{environment.gpu}/{environment.kernels}/{shape.op.value}/{shape.label}"


def utc_now() -> datetime:
    """The time now, as naive UTC: the form in which a database keeps times."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Store:
    """Measurements and selections in a database.

    Safe to use from several threads: every call is a transaction on a connection of its own.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        """Open a database, and create our tables where they are missing.

        Args:
            url: A SQLAlchemy URL, such as ``sqlite:///autotune.db``.
            must_exist: Whether a missing SQLite file is an error. If not, it is created.

        Raises:
            StorageError: The URL cannot be used, or the database belongs to another program or to
                a newer autotune.
        """
        self.url = url
        self.engine = _engine(url)
        make_commits_cheap(self.engine)
        if must_exist:
            self._refuse_missing()
        with explained(self.url):
            tables = set(sa.inspect(self.engine).get_table_names())
            self._refuse_foreign(tables)
            if self.engine.dialect.name == "sqlite":
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if schema.versions.name in tables:
                self._refuse_newer()
            schema.metadata.create_all(self.engine)
            if schema.versions.name not in tables:
                with self.engine.begin() as connection:
                    connection.execute(sa.insert(schema.versions).values(version=schema.VERSION))

    def study(self, name: str, shape: KernelShape, environment: Environment) -> StudyRecord:
        """The study of that name, created where it is missing.

        Raises:
            StorageError: The study was measured in another environment.
        """
        with self.transaction() as connection:
            query = sa.select(schema.studies).where(schema.studies.c.name == name)
            row = connection.execute(query).one_or_none()
            if row is None:
                values = {
                    "name": name,
                    "shape": json.dumps(shape.as_dict()),
                    "environment": json.dumps(environment.as_dict()),
                }
                result = connection.execute(sa.insert(schema.studies).values(values))
                (study_id,) = result.inserted_primary_key or (0,)
                return StudyRecord(id=study_id, name=name, shape=shape, environment=environment)
        record = _study_record(row)
        difference = record.environment.difference(environment)
        if difference:
            raise StorageError(
                f"{shown(self.url)} holds {name} measured elsewhere ({difference}); "
                "give another --storage"
            )
        return record

    def study_of(self, shape: KernelShape, environment: Environment) -> StudyRecord:
        """The study of a shape, named by ``study_name`` and created where it is missing.

        Raises:
            StorageError: The study was measured in another environment.
        """
        return self.study(study_name(environment, shape), shape, environment)

    def studies(self) -> list[StudyRecord]:
        """Every study, in the order in which the studies were begun."""
        query = sa.select(schema.studies).order_by(schema.studies.c.id)
        with self.transaction() as connection:
            return [_study_record(row) for row in connection.execute(query)]

    def add(self, study: StudyRecord, finished: Sequence[Finished]) -> None:
        """Keep measurements of a study, all in one transaction, in the order given."""
        if not finished:
            return
        with self.transaction() as connection:
            rows = [_row(study, item) for item in finished]
            connection.execute(sa.insert(schema.measurements), rows)

    def finished(self, study: StudyRecord) -> list[Finished]:
        """Every measurement of a study, in the order in which they were kept."""
        table = schema.measurements
        query = sa.select(table).where(table.c.study_id == study.id).order_by(table.c.id)
        with self.transaction() as connection:
            return [_finished(study.shape, row) for row in connection.execute(query)]

    def keep_selection(self, study: StudyRecord, selection: Selection) -> None:
        """Keep a study's selection, replacing an earlier one."""
        table = schema.selections
        text = json.dumps(selection.as_dict())
        with self.transaction() as connection:
            connection.execute(sa.delete(table).where(table.c.study_id == study.id))
            connection.execute(sa.insert(table).values(study_id=study.id, selection=text))

    def selection(self, study: StudyRecord) -> Selection | None:
        """The study's selection; None where it has none."""
        table = schema.selections
        query = sa.select(table.c.selection).where(table.c.study_id == study.id)
        with self.transaction() as connection:
            text = connection.execute(query).scalar_one_or_none()
        return None if text is None else Selection.from_mapping(json.loads(text))

    def selections(self) -> list[tuple[Environment, Selection]]:
        """Every selection with its environment, in the order of the studies' names."""
        query = (
            sa.select(schema.studies.c.environment, schema.selections.c.selection)
            .join(schema.selections)
            .order_by(schema.studies.c.name)
        )
        with self.transaction() as connection:
            return [
                (
                    Environment.from_mapping(json.loads(row.environment)),
                    Selection.from_mapping(json.loads(row.selection)),
                )
                for row in connection.execute(query)
            ]

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _refuse_missing(self) -> None:
        path = database_file(self.url)
        if path is not None and not path.exists():
            raise StorageError(f"there is no database {path}; give the --storage of a run")

    def _refuse_foreign(self, tables: Set[str]) -> None:
        if tables and not tables & _OUR_TABLES:
            raise StorageError(
                f"{shown(self.url)} is a database of another program "
                f"(tables {', '.join(sorted(tables))}); give another --storage"
            )

    def _refuse_newer(self) -> None:
        query = sa.select(sa.func.max(schema.versions.c.version))
        with self.engine.connect() as connection:
            newest = connection.execute(query).scalar() or schema.VERSION
        if newest > schema.VERSION:
            self.close()
            raise StorageError(
                f"{shown(self.url)} was written by a newer autotune: its tables are of version "
                f"{newest}, this autotune knows {schema.VERSION}; upgrade autotune, or give "
                "another --storage"
            )

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A connection whose changes are written together, or not at all.

        Raises:
            StorageError: The database cannot be used.
        """
        with explained(self.url), self.engine.begin() as connection:
            yield connection


def _engine(url: str) -> sa.Engine:
    """SQLAlchemy's engine of a URL; nothing is connected yet.

    Raises:
        StorageError: The text is no URL, or the driver of its database is not installed.
    """
    try:
        return sa.create_engine(url)
    except ModuleNotFoundError as error:
        raise StorageError(_missing_driver(url, error.name or str(error))) from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StorageError(
            f"cannot use the storage URL: got {_PASSWORD.sub(':***@', url)!r} ({error}); "
            f"give one like {_EXAMPLES}"
        ) from None


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


def database_file(url: str) -> Path | None:
    """The file of a SQLite database; None of a server's database, or of one in memory.

    Raises:
        StorageError: The text is no URL, or the driver of its database is not installed.
    """
    parsed = _engine(url).url
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in _IN_MEMORY
    return Path(str(parsed.database)) if is_file else None


def shown(url: str) -> str:
    """A database's URL without its password, for messages."""
    return sa.make_url(url).render_as_string(hide_password=True)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the database's own errors into a ``StorageError`` that says what to do."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StorageError(
            f"cannot use the database {shown(url)}: {cause}; repair it or give another --storage"
        ) from error


def make_commits_cheap(engine: sa.Engine) -> None:
    """Make SQLite's commits not wait for the disk, on connections opened from now on.

    With a write-ahead log and ``synchronous = NORMAL`` a power cut may lose the last commits, but
    never harms the file (https://www.sqlite.org/wal.html). Other databases are left as they are.
    """
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _make_sqlite_quick)


def _make_sqlite_quick(connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection has no common type
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA busy_timeout={_LOCK_TIMEOUT_S * 1000}")


def _row(study: StudyRecord, item: Finished) -> dict[str, Any]:
    measurement = item.measurement
    return {
        "study_id": study.id,
        "config": json.dumps(measurement.config.as_dict()),
        "outcome": measurement.outcome.value,
        "reason": measurement.reason,
        "samples_us": json.dumps(measurement.samples_us),
        "relative_error": measurement.relative_error,
        "shared_memory_bytes": measurement.shared_memory_bytes,
        "registers": measurement.registers,
        "spills": measurement.spills,
        "started_at": item.started_at,
        "finished_at": item.finished_at,
    }


def _finished(shape: KernelShape, row: sa.Row[Any]) -> Finished:
    measurement = Measurement(
        shape=shape,
        config=KernelConfig.from_mapping(shape.op, json.loads(row.config)),
        outcome=Outcome(row.outcome),
        reason=row.reason,
        samples_us=tuple(json.loads(row.samples_us)),
        relative_error=row.relative_error,
        shared_memory_bytes=row.shared_memory_bytes,
        registers=row.registers,
        spills=row.spills,
    )
    return Finished(measurement=measurement, started_at=row.started_at, finished_at=row.finished_at)


def _study_record(row: sa.Row[Any]) -> StudyRecord:
    return StudyRecord(
        id=row.id,
        name=row.name,
        shape=KernelShape.from_mapping(json.loads(row.shape)),
        environment=Environment.from_mapping(json.loads(row.environment)),
    )
