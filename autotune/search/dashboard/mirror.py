"""Copies finished trials to Optuna's own tables, where its dashboard and its users look for them.

The search itself runs on a study in memory. ``Study.add_trials`` on SQLite takes 12 ms a trial (2
cores, Optuna 5.0), more than measuring a configuration. So whole batches are inserted through
Optuna's table definitions, at 0.5 ms a trial. ``add_trials`` is used only where a later Optuna has
other tables than the ones known here.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from autotune.errors import StorageError, printable
from autotune.search.dashboard.optuna_tables import complete, known_tables
from autotune.search.dashboard.trial_tables import TrialTables
from autotune.store import Patience, StudyRecord, explained, shown
from autotune.store.engine import WatchedFile, engine_options, make_engine, set_up
from autotune.store.patience import outlasted

#: What Optuna and its dashboard call a trial's value.
_METRIC = "latency_us"

#: The table that Optuna makes last, with the version of all others.
_LAST_TABLE = "alembic_version"

#: Where Optuna Dashboard 0.21 keeps a study's note (``_note.py``): a version, which it raises with
#: every edit, and the text in pieces. A note can be kept without the dashboard installed.
_NOTE_VERSION, _NOTE_TEXT = "dashboard:note_ver", "dashboard:note_str:"
_NOTE_PIECE = 2045

#: The version of the note that autotune wrote last. If the note's version differs, a person has
#: edited the note.
_OUR_NOTE = "autotune:note_ver"


class TrialMirror:
    """Optuna's side of the database.

    Attributes:
        tables: Optuna's tables, to be written to in transactions of the store; None where they are
            not known.
    """

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
        self._lock = threading.Lock()  # warnings are caught for all threads
        self._file = WatchedFile(url)
        known = known_tables()
        self._storage = self._opened(known)
        set_up(self._storage.engine, tries_again=self.patience.tries_again)
        self._storage.engine.dispose()  # connections opened before lack the setting
        self.tables = None if known is None else TrialTables(known)

    @outlasted
    def _opened(self, known: sa.MetaData | None) -> RDBStorage:
        options, engine = engine_options(self._url), make_engine(self._url)
        try:
            with self._explained():
                if known is not None:
                    complete(engine, known)
                if not _has_version(engine):
                    # It closes its connections also where another run makes the tables meanwhile.
                    RDBStorage(self._url, engine_kwargs=options | {"poolclass": NullPool})
                return RDBStorage(self._url, engine_kwargs=options)
        except RuntimeError as error:
            raise StorageError(
                f"Optuna cannot use the database {shown(self._url)}: {error}; "
                "give another --storage"
            ) from None
        finally:
            engine.dispose()

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
                with self._lock, warnings.catch_warnings():
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
            if self.tables is None:
                return len(study.get_trials(deepcopy=False))
            with self._storage.engine.begin() as connection:
                return self.tables.count(connection, study.study_name)

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
            if self.tables is None:
                study.add_trials(trials)
                return
            with self._storage.engine.begin() as connection:
                self.tables.insert(connection, study.study_name, trials)

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
            self._set_attributes(study, stale | attributes | versions)

    def _set_attributes(self, study: optuna.Study, attributes: Mapping[str, Any]) -> None:
        """Set a study's system attributes all at once; Optuna alone takes 10 ms for each."""
        if self.tables is None:
            study_id = self._storage.get_study_id_from_name(study.study_name)
            for key, value in attributes.items():
                self._storage.set_study_system_attr(study_id, key, value)
            return
        with self._storage.engine.begin() as connection:
            self.tables.set_attributes(connection, study.study_name, attributes)

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


def _has_version(engine: sa.Engine) -> bool:
    """Whether Optuna has noted the version of its tables, which it does last."""
    if not sa.inspect(engine).has_table(_LAST_TABLE):
        return False
    row = sa.select(sa.literal(1)).select_from(sa.table(_LAST_TABLE))
    with engine.connect() as connection:
        return connection.execute(row).first() is not None
