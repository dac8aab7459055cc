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

#: Of these tables and of what their JSON holds: 1 more for each change that an earlier autotune
#: would misread. It reads what is merely added.
VERSION = 1

#: The versions that made or changed the tables; a database that has none is of version 1. The
#: column is no key: two processes may note the same version at once.
versions = Table("autotune_version", metadata, Column("version", Integer, nullable=False))

#: One row a kernel shape and environment; ``name`` is the Optuna study's.
studies = Table(
    "autotune_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("shape", Text, nullable=False),  # JSON
    Column("environment", Text, nullable=False),  # JSON
)

#: One row a distinct configuration of a study, in the order in which they were finished.
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

#: What a run knew beside its measurements, and a report wants: one row a kind, environment and
#: shape, the latest.
facts = Table(
    "autotune_facts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("environment", Text, nullable=False),  # JSON
    Column("shape", Text, nullable=False),  # JSON; of no shape in particular: null
    Column("fact", Text, nullable=False),  # JSON
)
