"""A run's own entry in the database, from which other processes see how far it is."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from autotune.errors import StorageError
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.store import schema
from autotune.store.alive import birth, is_dead
from autotune.store.load import Load, begin_load, keep_load
from autotune.store.patience import PATIENCE_S, Patience, outlasted
from autotune.store.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a run writes again that it is there, however long it compiles or times.
BEAT_S = 5.0

#: A run that has not written for this many seconds was killed.
SILENT_S = 4 * BEAT_S

#: The longest silence of a run that is still there, seconds: it gives up a database that does not
#: answer.
_LONGEST_S = PATIENCE_S + SILENT_S


class RunLog:
    """Writes a run's row in the database, and a row for every study that it will search.

    A context manager: at its end it writes how the run ended. Until then a thread writes every few
    seconds that the run is still there.
    """

    def __init__(
        self, store: Store, environment: Environment, *, load: Callable[[], Load] = Load
    ) -> None:
        """Prepare the log of a run. Nothing is written before ``plan``.

        Args:
            store: The run's database.
            environment: Where the run measures.
            load: Returns how busy the run has been; called from other threads, too.
        """
        self._store, self._environment, self._load = store, environment, load
        self._run: int | None = None
        self._ids: dict[KernelShape, int] = {}
        #: Since when the database has answered without a gap, and when it did last.
        self._began_at = self._steady_since = self._answered_at = datetime.min  # noqa: DTZ901 - naive UTC
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if kind is not None:
            self.patience.hurry()
        try:
            self._end(kind)
        except KeyboardInterrupt as stop:
            self.patience.hurry()
            self._end(type(stop))
            raise

    def _end(self, kind: type[BaseException] | None) -> None:
        """Write how the run ended, if an exception of that kind ended it."""
        self._thread.join()
        ending = "done" if kind is None else "failed"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            ending = "interrupted"
        # The error that ended the run says more than a StorageError from here would.
        with suppress(*(() if kind is None else (StorageError,))):
            self._write(ended_at=schema.clock(), ending=ending, study_id=None, is_load_due=True)
            self._give_back_all()

    def plan(
        self, trials: Mapping[KernelShape, int], defaults: Mapping[KernelShape, KernelConfig]
    ) -> None:
        """Write down what the run is going to search.

        Args:
            trials: For every shape, in the order of the search, how many configurations are
                measured at most.
            defaults: For every shape vLLM's configuration.

        Raises:
            StorageError: The database cannot be written. The other methods raise it too.
        """
        rows = [
            {
                "study_id": self.study_id(shape),
                "number": number,
                "trials": most,
                "default": json.dumps(defaults[shape].as_dict()),
            }
            for number, (shape, most) in enumerate(trials.items(), start=1)
        ]
        now = self._store.now()
        self._began_at = self._steady_since = self._answered_at = now
        self._run = self.patience.outlast(lambda again: self._plan(now, rows, again))

    def _plan(self, now: datetime, rows: Sequence[dict[str, Any]], again: bool) -> int:
        """Write the run's row and those of its studies; returns the run's number."""
        table = schema.runs
        process = os.getpid()
        values = {"host": socket.gethostname(), "process": process, "started_at": now}
        mine = sa.select(table.c.id).where(*(table.c[name] == v for name, v in values.items()))
        with self._store.transaction() as connection:
            run: int | None = connection.execute(mine).scalar() if again else None
            if run is not None:
                return run
            insert = sa.insert(table).values(seen_at=now, birth=birth(process), **values)
            (run,) = connection.execute(insert).inserted_primary_key or (0,)
            if rows:
                connection.execute(
                    sa.insert(schema.planned), [row | {"run_id": run} for row in rows]
                )
            begin_load(connection, run, self._load())
            return run

    def begin(self, shape: KernelShape) -> None:
        """Write down that a shape is searched now."""
        self._write(seen_at=schema.clock(), study_id=self.study_id(shape))

    @outlasted
    def finish(self, shape: KernelShape) -> None:
        """Write down that a shape is done."""
        table = schema.planned
        study_id = self.study_id(shape)
        mine = (table.c.run_id == self._run) & (table.c.study_id == study_id)
        with self._store.transaction() as connection:
            connection.execute(sa.update(table).where(mine).values(done_at=schema.clock()))

    @property
    def run_id(self) -> int:
        """The run's number in the database; 0 before ``plan``."""
        return self._run or 0

    def study_id(self, shape: KernelShape) -> int:
        """The number of a shape's study, which is made where it is missing."""
        if shape not in self._ids:
            self._ids[shape] = self._store.study_of(shape, self._environment).id
        return self._ids[shape]

    def is_gone(self, row: sa.Row[Any], now: datetime) -> bool:
        """Whether another run was killed, or its host has lost the database.

        Nothing is said of another run's silence while this run could not write either.

        Args:
            row: Of ``schema.runs``: ``process``, ``birth`` and ``seen_at`` at least.
            now: The time by the clock of the database, naive UTC.
        """
        if is_dead(row.process, row.birth):
            return True
        if row.seen_at < self._began_at - timedelta(seconds=_LONGEST_S):
            return True
        least = timedelta(seconds=SILENT_S)
        return now - row.seen_at > least and now - self._steady_since > least

    @property
    def patience(self) -> Patience:
        """That of the database."""
        return self._store.patience

    @outlasted
    def _write(self, /, *, is_load_due: bool = False, **values: object) -> None:
        self._write_once(is_load_due=is_load_due, **values)

    def _write_once(self, *, is_load_due: bool = False, **values: object) -> None:
        if self._run is None:
            return
        with self._store.transaction() as connection:
            mine = schema.runs.c.id == self._run
            connection.execute(sa.update(schema.runs).where(mine).values(**values))
            if is_load_due:
                keep_load(connection, self._run, self._load())

    @outlasted
    def _give_back_all(self) -> None:
        """Let other runs have what this one still holds."""
        claims = schema.claims
        with self._store.transaction() as connection:
            mine = claims.c.run_id == self._run
            connection.execute(sa.update(claims).where(mine).values(run_id=None))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(StorageError):  # the run's next own write waits, or raises it
                self._write_once(seen_at=schema.clock(), is_load_due=True)
                self._answered(self._store.now())

    def _answered(self, now: datetime) -> None:
        if now - self._answered_at > timedelta(seconds=2 * BEAT_S):
            self._steady_since = now
        self._answered_at = now
