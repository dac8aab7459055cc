"""A run's own entry in the database, from which other processes see how far it is."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from autotune.errors import StorageError
from autotune.launch.config import KernelConfig
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.store import schema
from autotune.store.patience import Patience, outlasted
from autotune.store.store import Store, utc_now

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a run writes again that it is there, however long it compiles or times.
BEAT_S = 5.0

#: A run that has not written for this many seconds was killed.
SILENT_S = 4 * BEAT_S


class RunLog:
    """Writes a run's row in the database, and a row for every study that it will search.

    A context manager: at its end it writes how the run ended. Until then a thread writes every few
    seconds that the run is still there.
    """

    def __init__(self, store: Store, environment: Environment) -> None:
        """Prepare the log of a run. Nothing is written before ``plan``.

        Args:
            store: The run's database.
            environment: Where the run measures.
        """
        self._store, self._environment = store, environment
        self._run: int | None = None
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
            self._write(ended_at=utc_now(), ending=ending, study_id=None)

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
                "study_id": self._study(shape),
                "number": number,
                "trials": most,
                "default": json.dumps(defaults[shape].as_dict()),
            }
            for number, (shape, most) in enumerate(trials.items(), start=1)
        ]
        self._run = self._store.patience.outlast(partial(self._plan, utc_now(), rows))

    def _plan(self, now: datetime, rows: Sequence[dict[str, Any]], again: bool) -> int:
        """Write the run's row and those of its studies; returns the run's number."""
        table = schema.runs
        values = {"host": socket.gethostname(), "process": os.getpid(), "started_at": now}
        mine = sa.select(table.c.id).where(*(table.c[name] == v for name, v in values.items()))
        with self._store.transaction() as connection:
            run: int | None = connection.execute(mine).scalar() if again else None
            if run is not None:
                return run
            insert = sa.insert(table).values(seen_at=now, **values)
            (run,) = connection.execute(insert).inserted_primary_key or (0,)
            if rows:
                connection.execute(
                    sa.insert(schema.planned), [row | {"run_id": run} for row in rows]
                )
            return run

    def begin(self, shape: KernelShape) -> None:
        """Write down that a shape is searched now."""
        self._write(seen_at=utc_now(), study_id=self._study(shape))

    @outlasted
    def finish(self, shape: KernelShape) -> None:
        """Write down that a shape is done."""
        table = schema.planned
        study_id = self._study(shape)
        mine = (table.c.run_id == self._run) & (table.c.study_id == study_id)
        with self._store.transaction() as connection:
            connection.execute(sa.update(table).where(mine).values(done_at=utc_now()))

    def _study(self, shape: KernelShape) -> int:
        return self._store.study_of(shape, self._environment).id

    @property
    def patience(self) -> Patience:
        """That of the database."""
        return self._store.patience

    @outlasted
    def _write(self, /, **values: object) -> None:
        self._write_once(**values)

    def _write_once(self, **values: object) -> None:
        if self._run is None:
            return
        with self._store.transaction() as connection:
            mine = schema.runs.c.id == self._run
            connection.execute(sa.update(schema.runs).where(mine).values(**values))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(StorageError):  # the run's next own write waits, or raises it
                self._write_once(seen_at=utc_now())
