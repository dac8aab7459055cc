"""Our tables, beside Optuna's in the same database."""

from __future__ import annotations

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
    UniqueConstraint("study_id", "config"),
)

#: The latest selection of a study.
selections = Table(
    "autotune_selections",
    metadata,
    Column("study_id", ForeignKey("autotune_studies.id"), primary_key=True),
    Column("selection", Text, nullable=False),  # JSON
)

#: One row for each run, from its beginning; times are UTC.
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
    Column("study_id", ForeignKey("autotune_studies.id")),  # the study that is searched now
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
