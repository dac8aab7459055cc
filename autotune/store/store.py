"""Store: every measurement and selection, in one SQLAlchemy database.

Optuna's own tables are in the same database; this module knows nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autotune.choose.selection import Selection
from autotune.errors import InputError, StorageError, install_hint, printable
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement
from autotune.measure.figures import Figures
from autotune.store import schema
from autotune.untrusted import parse_json, read_row

#: A database with one of these tables is ours, or Optuna's.
_OUR_TABLES = {"autotune_studies", "version_info"}

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
        try:
            self.engine = sa.create_engine(url)
            make_commits_cheap(self.engine)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise StorageError(
                f"cannot use the storage URL: got {url!r} ({error}); "
                "give one like sqlite:///autotune.db or postgresql+psycopg://user@host/name; "
                f"PostgreSQL needs its driver: {install_hint('postgres')}"
            ) from None
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
        record = self._study_record(row)
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
            return [self._study_record(row) for row in connection.execute(query)]

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
            rows = connection.execute(query).all()
        found = []
        for row in rows:
            with undamaged(self.url, f"measurement {row.id} of {study.name}"):
                found.append(finished_of(study.shape, row))
        return found

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
        with undamaged(self.url, f"the selection of {study.name}"):
            return None if text is None else Selection.from_json(text)

    def selections(self) -> list[tuple[Environment, Selection]]:
        """Every selection with its environment, in the order of the studies' names."""
        studies = schema.studies.c
        query = (
            sa.select(studies.name, studies.environment, schema.selections.c.selection)
            .join(schema.selections)
            .order_by(studies.name)
        )
        with self.transaction() as connection:
            rows = connection.execute(query).all()
        found = []
        for row in rows:
            with undamaged(self.url, f"the selection of {row.name}"):
                environment = Environment.from_mapping(parse_json(row.environment))
                found.append((environment, Selection.from_json(row.selection)))
        return found

    def _study_record(self, row: sa.Row[Any]) -> StudyRecord:
        with undamaged(self.url, f"study {row.id}"):
            return StudyRecord(
                id=row.id,
                name=row.name,
                shape=KernelShape.from_mapping(parse_json(row.shape)),
                environment=Environment.from_mapping(parse_json(row.environment)),
            )

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _refuse_missing(self) -> None:
        path = self.engine.url.database
        is_file = self.engine.dialect.name == "sqlite" and path not in (None, "", ":memory:")
        if is_file and not Path(str(path)).exists():
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
            StorageError: The database cannot be used, or holds what cannot be read.
        """
        with (
            undamaged(self.url, "a table"),
            explained(self.url),
            self.engine.begin() as connection,
        ):
            yield connection


def shown(url: str) -> str:
    """A database's URL without its password, for messages."""
    return sa.make_url(url).render_as_string(hide_password=True)


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


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the database's own errors into a ``StorageError`` that says what to do."""
    try:
        yield
    except SQLAlchemyError as error:
        cause = printable(str(getattr(error, "orig", None) or error).splitlines()[0])
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


def finished_of(shape: KernelShape, row: sa.Row[Any]) -> Finished:
    """A row of ``schema.measurements``.

    Raises:
        InputError: A value of the row is wrong.
    """
    figures = {name: getattr(row, name) for name in Figures.model_fields}
    figures["samples_us"] = parse_json(row.samples_us)
    config = KernelConfig.from_mapping(shape.op, parse_json(row.config))
    measurement = read_row(Figures, figures).measurement(shape, config)
    return Finished(measurement=measurement, started_at=row.started_at, finished_at=row.finished_at)
