"""Measurements, selections and the state of runs, in one database."""

from autotune.store.overview import Overview, RunState, StudyState, overview
from autotune.store.runs import RunLog
from autotune.store.store import (
    Finished,
    Store,
    StudyRecord,
    database_file,
    explained,
    make_commits_cheap,
    shown,
    study_name,
    utc_now,
)

__all__ = [
    "Finished",
    "Overview",
    "RunLog",
    "RunState",
    "Store",
    "StudyRecord",
    "StudyState",
    "database_file",
    "explained",
    "make_commits_cheap",
    "overview",
    "shown",
    "study_name",
    "utc_now",
]
