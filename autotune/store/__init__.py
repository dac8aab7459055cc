"""Measurements, selections and the state of runs, in one database."""

from autotune.store.claims import Claim, Claims, Holder, Taken
from autotune.store.engine import database_file
from autotune.store.faults import explained, shown
from autotune.store.finished import Finished
from autotune.store.load import DeviceLoad, Load
from autotune.store.overview import Overview, RunState, StudyState, Work, overview
from autotune.store.patience import Patience
from autotune.store.runs import RunLog
from autotune.store.store import (
    Store,
    StudyRecord,
    study_name,
    utc_now,
)

__all__ = [
    "Claim",
    "Claims",
    "DeviceLoad",
    "Finished",
    "Holder",
    "Load",
    "Overview",
    "Patience",
    "RunLog",
    "RunState",
    "Store",
    "StudyRecord",
    "StudyState",
    "Taken",
    "Work",
    "database_file",
    "explained",
    "overview",
    "shown",
    "study_name",
    "utc_now",
]
