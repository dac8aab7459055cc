"""Store: every measurement and selection, in one SQLAlchemy database.

Optuna's own tables are in the same database; this module knows nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from autotune.choose.selection import Selection
from autotune.errors import StorageError
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.store import schema
from autotune.store.claims import Claim
from autotune.store.engine import WatchedFile, copied, database_file, make_engine
from autotune.store.faults import explained, shown, undamaged
from autotune.store.finished import Finished, finished_of, row_of
from autotune.store.patience import Patience, outlasted, unraced
from autotune.untrusted import parse_json

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

#: A database with one of these tables is ours, or Optuna's: a run may yet create the others.
_OUR_TABLES = {*schema.metadata.tables, "version_info"}

#: How long opening a SQLite file waits for others that open it, seconds.
_OPENING_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study in the database: its number, its name, its shape and its environment."""

    id: int
    name: str
    shape: KernelShape
    environment: Environment


def study_name(environment: Environment, shape: KernelShape) -> str:
    """The name of a shape's Optuna study, such as ``{gpu}/vllm-0.33.0/{op}/{label}``."""
    return f"{environment.gpu}/{environment.title}/{shape.op.value}/{shape.label}"


def utc_now() -> datetime:
    """The time now, as naive UTC: the form in which a database keeps times."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Store:
    """Measurements and selections in a database.

    Safe to use from several threads: every call is a transaction on a connection of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        must_exist: bool = False,
        read_only: bool = False,
        patience: Patience | None = None,
    ) -> None:
        """Open a database, and create our tables where they are missing.

        Args:
            url: A SQLAlchemy URL, such as ``sqlite:///autotune.db``.
            must_exist: Whether a missing SQLite file is an error. If not, it is created.
            read_only: Whether the database is only read, so that it may be one that cannot be
                written. It must exist.
            patience: How long to wait for a database that fails after it was opened; not at all if
                not given.

        Raises:
            StorageError: The URL cannot be used, or the database belongs to another program or to
                a newer autotune.
        """
        self.url, self.patience = url, patience or Patience()
        self._copy: TemporaryDirectory[str] | None = None
        self.engine = make_engine(url, tries_again=self.patience.tries_again)
        if must_exist or read_only:
            self._refuse_missing()
        opening = Patience(_OPENING_S if database_file(url) else 0.0)
        work = self._open_to_read if read_only else self._open_to_write
        opening.outlast(lambda _again: unraced(work))
        self._file = WatchedFile(url)

    def _open_to_write(self) -> None:
        with explained(self.url):
            tables = self._known_tables()
            if self.engine.dialect.name == "sqlite":
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            self._complete(tables)

    def _open_to_read(self) -> None:
        """Open the database without writing to it, unless an older autotune's lacks tables."""
        with explained(self.url):
            try:
                self._complete(self._known_tables())
            except SQLAlchemyError as error:
                file = database_file(self.url)
                if file is None or not _is_for_want_of_writing(error):
                    raise
                self.engine.dispose()
                copy, self._copy = copied(file)
                self.engine = make_engine(copy)
                self._complete(self._known_tables())

    def _known_tables(self) -> Set[str]:
        """The names of the tables that there are, once it is sure that they are ours."""
        tables = set(sa.inspect(self.engine).get_table_names())
        self._refuse_foreign(tables)
        if schema.versions.name in tables:
            self._refuse_newer()
        return tables

    def _complete(self, tables: Set[str]) -> None:
        """Create those of our columns and tables that are missing, the columns first."""
        if set(schema.metadata.tables) <= tables:
            return
        for column in schema.ADDED:
            if column.table.name in tables:
                self._add(column)
        schema.metadata.create_all(self.engine)
        if schema.versions.name not in tables:
            with self.engine.begin() as connection:
                connection.execute(sa.insert(schema.versions).values(version=schema.VERSION))

    def _add(self, column: sa.Column[Any]) -> None:
        """Add a column to its table, unless it is there."""
        table = column.table.name
        if column.name in {each["name"] for each in sa.inspect(self.engine).get_columns(table)}:
            return
        kind = column.type.compile(self.engine.dialect)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}")

    def now(self) -> datetime:
        """The time by the clock of the database, naive UTC.

        Raises:
            StorageError: The database does not answer.
        """
        with self.transaction() as connection:
            now: datetime = connection.execute(sa.select(schema.clock())).scalar_one()
        return now

    @outlasted
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

    @outlasted
    def studies(self) -> list[StudyRecord]:
        """Every study, in the order in which the studies were begun."""
        query = sa.select(schema.studies).order_by(schema.studies.c.id)
        with self.transaction() as connection:
            return [self._study_record(row) for row in connection.execute(query)]

    def add(
        self,
        study: StudyRecord,
        finished: Sequence[Finished],
        *,
        claim: Claim | None = None,
        device: str = "",
        beside: Callable[[sa.Connection], None] = lambda _connection: None,
    ) -> None:
        """Keep measurements of a study, all in one transaction, in the order given.

        Args:
            study: The study.
            finished: The measurements.
            claim: The run's claim to the study; None where nobody else can write to it.
            device: The GPU that they were made on, as its runner has it; empty if nobody knows.
            beside: Writes in the same transaction.

        Raises:
            ClaimLost: Another run has the study now; nothing is kept.
            StorageError: The database cannot be used.
        """
        rows = [row_of(study.id, item, claim, device) for item in finished]

        def insert(again: bool) -> None:
            with self.transaction(claim) as connection:
                # An answer that was lost may have been that all of them were written.
                if not (again and _are_kept(connection, rows)):
                    connection.execute(sa.insert(schema.measurements), rows)
                    beside(connection)

        if rows:
            self.patience.outlast(insert)

    @outlasted
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

    @outlasted
    def keep_selection(
        self, study: StudyRecord, selection: Selection, *, claim: Claim | None = None
    ) -> None:
        """Keep a study's selection, replacing an earlier one; ``claim`` as for ``add``."""
        table, text = schema.selections, json.dumps(selection.as_dict())
        with self.transaction(claim) as connection:
            connection.execute(sa.delete(table).where(table.c.study_id == study.id))
            connection.execute(sa.insert(table).values(study_id=study.id, selection=text))

    @outlasted
    def selection(self, study: StudyRecord) -> Selection | None:
        """The study's selection; None where it has none."""
        table = schema.selections
        query = sa.select(table.c.selection).where(table.c.study_id == study.id)
        with self.transaction() as connection:
            text = connection.execute(query).scalar_one_or_none()
        with undamaged(self.url, f"the selection of {study.name}"):
            return None if text is None else Selection.from_json(text)

    @outlasted
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
        if self._copy is not None:
            self._copy.cleanup()

    def _refuse_missing(self) -> None:
        file = database_file(self.url)
        if file is not None and not file.exists():
            raise StorageError(f"there is no database {file}; give the --storage of a run")

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
    def transaction(self, claim: Claim | None = None) -> Iterator[sa.Connection]:
        """A connection whose changes are written together, or not at all.

        Args:
            claim: What the changes need; None where they need none.

        Raises:
            ClaimLost: Another run has it now.
            StorageError: The database cannot be used, holds what cannot be read, or its file is
                not there any more.
        """
        self._file.check()
        with (
            undamaged(self.url, "a table"),
            explained(self.url),
            self.engine.begin() as connection,
        ):
            if claim is not None:
                claim.confirm(connection)
            yield connection


def _is_for_want_of_writing(error: SQLAlchemyError) -> bool:
    """Whether SQLite cannot read because it cannot write a file, or cannot add a table."""
    texts = ("unable to open database file", "readonly database", "disk I/O error")
    return any(text in str(error) for text in texts)


def _are_kept(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows of one transaction are in the database: all of them are, or none is."""
    table, first = schema.measurements, rows[0]
    query = sa.select(table.c.id).where(
        table.c.study_id == first["study_id"], table.c.config == first["config"]
    )
    return connection.execute(query).first() is not None
