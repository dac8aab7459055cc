"""Copies finished trials to Optuna's own tables, where its dashboard and its users look for them.

The search itself runs on a study in memory. ``Study.add_trials`` on SQLite takes 12 ms a trial (2
cores, Optuna 5.0), more than measuring a configuration. So whole batches are inserted through
Optuna's table definitions, at 0.5 ms a trial. ``add_trials`` is used only where a later Optuna has
other tables than the ones known here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from autotune.errors import StorageError, printable
from autotune.store import Patience, StudyRecord, explained, shown
from autotune.store.engine import WatchedFile, engine_options, make_commits_cheap
from autotune.store.patience import outlasted

#: What Optuna and its dashboard call a trial's value.
_METRIC = "latency_us"

#: The columns that a batch is written to (Optuna's schema 12).
_COLUMNS = {
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
    "study_system_attributes": {"study_system_attribute_id", "study_id", "key", "value_json"},
}

#: Where Optuna Dashboard 0.21 keeps a study's note (``_note.py``): a version, which it raises with
#: every edit, and the text in pieces. A note can be kept without the dashboard installed.
_NOTE_VERSION, _NOTE_TEXT = "dashboard:note_ver", "dashboard:note_str:"
_NOTE_PIECE = 2045

#: The version of the note that autotune wrote last. If the note's version differs, a person has
#: edited the note.
_OUR_NOTE = "autotune:note_ver"


class TrialMirror:
    """Optuna's side of the database."""

    def __init__(self, url: str, *, patience: Patience | None = None) -> None:
        """Open Optuna's storage, and create its tables where they are missing.

        Args:
            url: The database.
            patience: How long to wait for a database that fails; not at all if not given.

        Raises:
            StorageError: The tables are those of another version of Optuna.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._url, self.patience = url, patience or Patience()
        self._file = WatchedFile(url)
        self._storage = self._opened()
        make_commits_cheap(self._storage.engine, tries_again=self.patience.tries_again)
        self._storage.engine.dispose()  # connections opened before lack the setting
        self._tables = _known_tables()

    @outlasted
    def _opened(self) -> RDBStorage:
        try:
            with self._explained():
                return RDBStorage(self._url, engine_kwargs=engine_options(self._url))
        except RuntimeError as error:
            raise StorageError(
                f"Optuna cannot use the database {shown(self._url)}: {error}; "
                "give another --storage"
            ) from None

    @outlasted
    def open_study(self, study: StudyRecord) -> optuna.Study:
        """Optuna's study of that name, created where it is missing.

        Raises:
            StorageError: The database cannot be used.
        """
        with self._explained():
            opened = optuna.create_study(
                storage=self._storage, study_name=study.name, load_if_exists=True
            )
            if "shape" not in opened.user_attrs:  # it is set last
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    opened.set_metric_names([_METRIC])
                opened.set_user_attr("environment", study.environment.as_dict())
                opened.set_user_attr("shape", study.shape.as_dict())
        return opened

    @property
    def study_names(self) -> list[str]:
        """The names of Optuna's studies in the database.

        Raises:
            StorageError: The database cannot be used.
        """
        with self._explained():
            return optuna.get_all_study_names(self._storage)

    @outlasted
    def count(self, study: optuna.Study) -> int:
        """How many trials the study has.

        Raises:
            StorageError: The database cannot be used.
        """
        return self._count(study)

    def _count(self, study: optuna.Study) -> int:
        with self._explained():
            if self._tables is None:
                return len(study.get_trials(deepcopy=False))
            study_id = self._storage.get_study_id_from_name(study.study_name)
            with self._storage.engine.begin() as connection:
                return _count_of(connection, self._tables, study_id)

    def add(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Append finished trials, in this order.

        Their ``datetime_start`` and ``datetime_complete`` are local times, as Optuna's are.

        Raises:
            StorageError: The trials cannot be written.
        """
        before: int | None = None

        def insert(_again: bool) -> None:
            nonlocal before
            there = self._count(study)
            before = there if before is None else before
            # After a lost answer some may be written already.
            self._add(study, trials[there - before :])

        if trials:
            self.patience.outlast(insert)

    def _add(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        if not trials:
            return
        with self._explained():
            if self._tables is None:
                study.add_trials(trials)
                return
            study_id = self._storage.get_study_id_from_name(study.study_name)
            with self._storage.engine.begin() as connection:
                _insert(connection, self._tables, study_id, trials)

    @outlasted
    def keep_note(self, study: optuna.Study, text: str) -> None:
        """Keep a study's note, replacing an earlier one unless a person has edited it.

        Raises:
            StorageError: The note cannot be written.
        """
        with self._explained():
            study_id = self._storage.get_study_id_from_name(study.study_name)
            known = self._storage.get_study_system_attrs(study_id)
            version = known.get(_NOTE_VERSION, 0)
            if version != known.get(_OUR_NOTE, 0):
                return
            pieces = [text[at : at + _NOTE_PIECE] for at in range(0, len(text), _NOTE_PIECE)]
            attributes = {f"{_NOTE_TEXT}{number}": piece for number, piece in enumerate(pieces)}
            if attributes.items() <= known.items():
                return
            stale = {key: "" for key in known if key.startswith(_NOTE_TEXT)}
            versions = {_NOTE_VERSION: version + 1, _OUR_NOTE: version + 1}
            self._set_attributes(study_id, stale | attributes | versions)

    def _set_attributes(self, study_id: int, attributes: Mapping[str, Any]) -> None:
        """Set a study's system attributes all at once; Optuna alone takes 10 ms for each."""
        if self._tables is None:
            for key, value in attributes.items():
                self._storage.set_study_system_attr(study_id, key, value)
            return
        table = self._tables["study_system_attributes"]
        rows = [{"study_id": study_id, **row} for row in _attribute_rows(attributes)]
        these = (table.c.study_id == study_id) & table.c.key.in_(list(attributes))
        with self._storage.engine.begin() as connection:
            connection.execute(sa.delete(table).where(these))
            connection.execute(sa.insert(table), rows)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """``explained``, also where Optuna has wrapped the database's error in one of its own.

        Raises:
            StorageError: The database cannot be used, or its file is not there any more.
        """
        self._file.check()
        with explained(self._url):
            try:
                yield
            except StorageInternalError as error:
                if isinstance(error.__cause__, SQLAlchemyError):
                    raise error.__cause__ from None
                raise
            # What Optuna raises where a row of its tables does not hold what it wrote.
            except (LookupError, ValueError, TypeError, AssertionError) as error:
                raise StorageError(
                    f"Optuna's tables in the database {shown(self._url)} are damaged: "
                    f"{printable(repr(error))}; go back to a copy of it, or give another --storage"
                ) from error

    def close(self) -> None:
        """Close the connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def _known_tables() -> Mapping[str, sa.Table] | None:
    """Optuna's tables; None where they are not the ones that this module writes to."""
    try:
        from optuna.storages._rdb.models import BaseModel
    except ImportError:
        return None
    tables = BaseModel.metadata.tables
    for name, columns in _COLUMNS.items():
        if name not in tables or set(tables[name].columns.keys()) != columns:
            return None
    return {name: tables[name] for name in _COLUMNS}


def _count_of(connection: sa.Connection, tables: Mapping[str, sa.Table], study_id: int) -> int:
    """How many trials a study has."""
    table = tables["trials"]
    count = sa.select(sa.func.count()).select_from(table).where(table.c.study_id == study_id)
    return int(connection.execute(count).scalar_one())


def _insert(
    connection: sa.Connection,
    tables: Mapping[str, sa.Table],
    study_id: int,
    trials: Sequence[FrozenTrial],
) -> None:
    table, first = tables["trials"], _count_of(connection, tables, study_id)
    rows = [
        {
            "number": number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        for number, trial in enumerate(trials, start=first)
    ]
    insert = sa.insert(table).returning(table.c.trial_id, sort_by_parameter_order=True)
    ids = connection.execute(insert, rows).scalars().all()
    for name, parts in _parts(zip(ids, trials, strict=True)).items():
        if parts:
            connection.execute(sa.insert(tables[name]), parts)


def _parts(trials: Iterable[tuple[int, FrozenTrial]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that belong to trials, by table."""
    parts: dict[str, list[dict[str, Any]]] = {
        name: [] for name in _COLUMNS if name.startswith("trial_")
    }
    for trial_id, trial in trials:
        for table, rows in _parts_of(trial).items():
            parts[table] += [{"trial_id": trial_id, **row} for row in rows]
    return parts


def _parts_of(trial: FrozenTrial) -> dict[str, list[dict[str, Any]]]:
    """The rows that belong to one trial, by table, without the trial's id."""
    value = {"objective": 0, "value": trial.value, "value_type": "FINITE"}
    return {
        "trial_values": [] if trial.value is None else [value],
        "trial_params": [
            {
                "param_name": name,
                "param_value": distribution.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            for name, distribution in trial.distributions.items()
        ],
        "trial_user_attributes": _attribute_rows(trial.user_attrs),
        "trial_system_attributes": _attribute_rows(trial.system_attrs),
        "trial_intermediate_values": [
            {"step": step, "intermediate_value": us, "intermediate_value_type": "FINITE"}
            for step, us in trial.intermediate_values.items()
        ],
    }


def _attribute_rows(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _utc(local: datetime | None) -> datetime | None:
    """Optuna keeps naive UTC in its tables, and naive local times in its trials."""
    return None if local is None else local.astimezone(timezone.utc).replace(tzinfo=None)
