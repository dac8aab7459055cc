"""Our tables, beside Optuna's in the same database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData()

#: The version of the tables and of their JSON. It grows with every change that an earlier autotune
#: would misread; an addition, which an earlier autotune passes over, leaves it as it is.
VERSION = 1

#: The versions that made or changed the tables; a database without any is of version 1. The column
#: is not a key, because two processes may write the same version at once.
versions = Table("autotune_version", metadata, Column("version", Integer, nullable=False))

#: One row for each kernel shape and environment; ``name`` is that of the Optuna study.
studies = Table(
    "autotune_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("shape", Text, nullable=False),  # JSON
    Column("environment", Text, nullable=False),  # JSON
)

#: One row for each distinct configuration of a study, in the order in which they were finished.
measurements = Table(
    "autotune_measurements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("autotune_studies.id"), nullable=False),
    Column("config", String(512), nullable=False),  # JSON
    Column("outcome", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("samples_us", Text, nullable=False),  # JSON
    Column("relative_error", Float(53)),
    Column("shared_memory_bytes", Integer),
    Column("registers", Integer),
    Column("spills", Integer),
    Column("started_at", DateTime, nullable=False),  # UTC
    Column("finished_at", DateTime, nullable=False),  # UTC
    Column("run_id", Integer),  # the run that measured it
    Column("device", String(255)),  # the GPU of that run's host
    UniqueConstraint("study_id", "config"),
)

#: The latest selection of a study.
selections = Table(
    "autotune_selections",
    metadata,
    Column("study_id", ForeignKey("autotune_studies.id"), primary_key=True),
    Column("selection", Text, nullable=False),  # JSON
)

#: One row for each run, from its beginning; times are UTC, by the clock of the database.
runs = Table(
    "autotune_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("process", Integer, nullable=False),
    Column("started_at", DateTime, nullable=False),
    Column("seen_at", DateTime, nullable=False),  # written again every few seconds
    Column("ended_at", DateTime),
    Column("ending", String(32)),  # done, interrupted or failed
    Column("study_id", ForeignKey("autotune_studies.id")),  # the study that was begun last
    Column("birth", String(128)),  # tells the process from others of its number
    Column("compilers", Float(53)),  # processes that compile for it
    Column("compiled_s", Float(53)),  # of all of them together
    Column("writing_s", Float(53)),  # in which it wrote to the database
)

#: One row for each study that a run has ever searched. Only the run that it names may write to the
#: study, and every transaction that does so makes sure of it.
claims = Table(
    "autotune_claims",
    metadata,
    Column("study_id", ForeignKey("autotune_studies.id"), primary_key=True),
    Column("run_id", ForeignKey("autotune_runs.id")),  # null where no run searches it
    Column("since", DateTime, nullable=False),  # UTC, by the clock of the database
    Column("ends", Integer, nullable=False),  # how often a search has ended with new trials
    Column("budget", String(255), nullable=False),  # that of the search that ended last
)

#: One row for each study that a run searches.
planned = Table(
    "autotune_planned",
    metadata,
    Column("run_id", ForeignKey("autotune_runs.id"), primary_key=True),
    Column("study_id", ForeignKey("autotune_studies.id"), primary_key=True),
    Column("number", Integer, nullable=False),  # from 1, in the order in which they are searched
    Column("trials", Integer, nullable=False),  # configurations measured at most
    Column("default", String(512), nullable=False),  # JSON: vLLM's configuration
    Column("done_at", DateTime),  # UTC
)

#: One row for each GPU that a run measures with, or has measured with.
devices = Table(
    "autotune_devices",
    metadata,
    Column("run_id", ForeignKey("autotune_runs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 0, in the order in which they were given
    Column("device", String(255), nullable=False),  # as ``measurements`` has it
    Column("busy_s", Float(53), nullable=False),  # in which it has measured
    Column("lost_at", DateTime),  # UTC; null unless it was lost
)

#: Facts that a run knows and a report needs: the latest for each kind, environment and shape.
facts = Table(
    "autotune_facts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("environment", Text, nullable=False),  # JSON
    Column("shape", Text, nullable=False),  # JSON; null for the environment as a whole
    Column("fact", Text, nullable=False),  # JSON
)

#: Columns that tables of an earlier autotune lack; all of them may be null.
ADDED = (
    measurements.c.run_id,
    measurements.c.device,
    runs.c.birth,
    runs.c.compilers,
    runs.c.compiled_s,
    runs.c.writing_s,
)


class clock(FunctionElement[Any]):  # noqa: N801 - a function of SQL
    """The time now by the clock of the database, which hosts share; naive UTC."""

    type = DateTime()
    inherit_cache = True


@compiles(clock)
def _standard(_element: clock, _compiler: object, **_options: object) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(clock, "sqlite")
def _sqlite(_element: clock, _compiler: object, **_options: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(clock, "postgresql")
def _postgresql(_element: clock, _compiler: object, **_options: object) -> str:
    return "(clock_timestamp() AT TIME ZONE 'UTC')"


@compiles(clock, "mysql", "mariadb")
def _mysql(_element: clock, _compiler: object, **_options: object) -> str:
    return "UTC_TIMESTAMP(6)"
