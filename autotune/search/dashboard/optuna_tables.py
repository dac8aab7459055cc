"""Knows Optuna's tables, and makes them: all or none.

Optuna makes each with a statement of its own, and SQLite keeps each statement at once. A process
that is killed in between leaves the table of studies without its unique index, and nothing adds the
index later: from then on two processes that begin a study at the same moment make it twice, and
Optuna refuses to open it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

#: The columns that are written (Optuna's schema 12), and those that say which study is meant.
_COLUMNS = {
    "studies": {"study_id", "study_name"},
    "trials": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "trial_values": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    "trial_params": {"param_id", "trial_id", "param_name", "param_value", "distribution_json"},
    "trial_user_attributes": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "trial_system_attributes": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
    "trial_intermediate_values": {
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    },
    "trial_heartbeats": {"trial_heartbeat_id", "trial_id", "heartbeat"},
    "study_system_attributes": {"study_system_attribute_id", "study_id", "key", "value_json"},
}


def known_tables() -> sa.MetaData | None:
    """The tables of the installed Optuna; None where they are not those known here."""
    try:
        from optuna.storages._rdb.models import BaseModel
    except ImportError:
        return None
    tables: sa.MetaData = BaseModel.metadata
    for name, columns in _COLUMNS.items():
        if name not in tables.tables or set(tables.tables[name].columns.keys()) != columns:
            return None
    return tables


def complete(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Make the tables and the indexes that are missing; several processes may do so at once.

    Studies of one name become one: the first, which gets the trials of the others. Their numbers
    stay as they are, and may come twice.

    Args:
        engine: The database.
        tables: Optuna's definitions.
    """
    if _is_complete(engine, tables):
        return
    with _at_once(engine) as connection:
        tables.create_all(connection)
        missing = _missing(connection, tables)
        if tables.tables["studies"].indexes & set(missing):
            _unite(connection, tables)
        for index in missing:
            index.create(connection, checkfirst=True)


def _is_complete(engine: sa.Engine, tables: sa.MetaData) -> bool:
    with engine.connect() as connection:
        there = set(sa.inspect(connection).get_table_names())
        return set(tables.tables) <= there and not _missing(connection, tables)


def _missing(connection: sa.Connection, tables: sa.MetaData) -> list[sa.Index]:
    """The indexes that tables lack."""
    there = sa.inspect(connection)
    return [
        index
        for table in tables.sorted_tables
        if table.indexes
        for names in [{each["name"] for each in there.get_indexes(table.name)}]
        for index in table.indexes
        if index.name not in names
    ]


@contextmanager
def _at_once(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that tables are made in, and in which nobody else writes to SQLite."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python begins none for CREATE
        yield connection


def _unite(connection: sa.Connection, tables: sa.MetaData) -> None:
    """Give the trials of all studies of a name to the first one, and delete the others."""
    studies, trials = tables.tables["studies"], tables.tables["trials"]
    query = sa.select(studies.c.study_id, studies.c.study_name).order_by(studies.c.study_id)
    first: dict[str, int] = {}
    for study_id, name in connection.execute(query).all():
        kept = first.setdefault(name, study_id)
        if kept == study_id:
            continue
        mine = sa.update(trials).where(trials.c.study_id == study_id)
        connection.execute(mine.values(study_id=kept))
        for table in reversed(tables.sorted_tables):
            if table is not trials and "study_id" in table.c:
                connection.execute(sa.delete(table).where(table.c.study_id == study_id))
