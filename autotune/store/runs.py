"""What runs are under way: written by the run itself, for whoever asks from elsewhere."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING

import sqlalchemy as sa

from autotune.errors import StorageError
from autotune.launch.environment import Environment
from autotune.launch.shape import KernelShape
from autotune.store import schema
from autotune.store.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self

#: How often a run says that it is there, seconds; between, it may compile or time for long.
BEAT_S = 5.0

#: A run that has not said so for this long has ended without a word: it was killed.
SILENT_S = 4 * BEAT_S


class RunLog:
    """One run's row in the database, and those of the studies that it is to search.

    A context manager: it notes how the run ended. Meanwhile a thread says that the run is there.
    """

    def __init__(
        self, store: Store, environment: Environment, name_of: Callable[[KernelShape], str]
    ) -> None:
        """Nothing is written before the run's first event.

        Args:
            store: Of the run.
            environment: Where it measures.
            name_of: The name of a shape's study.
        """
        self._store, self._environment, self._name_of = store, environment, name_of
        self._run: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run-log", daemon=True)

    def resume(self) -> None:
        """Go on with the latest run of this process, if it has one."""
        table = schema.runs
        mine = (table.c.host == socket.gethostname()) & (table.c.process == os.getpid())
        with self._store.transaction() as connection:
            self._run = connection.execute(sa.select(sa.func.max(table.c.id)).where(mine)).scalar()
        if self._run is not None:
            self._write(seen_at=_now(), ended_at=None, ending=None)

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
        self._thread.join()
        ending = "done" if kind is None else "failed"
        ending = "interrupted" if kind is KeyboardInterrupt else ending
        # What ended the run says more than that this could not be written.
        with suppress(*(() if kind is None else (StorageError,))):
            self._write(ended_at=_now(), ending=ending, study_id=None)

    def watch(self, event: Event) -> None:
        """Write down what others ask for.

        Raises:
            StorageError: It cannot be written.
        """
        from autotune.search.events import Opened, Planned, ShapeDone
        match event:
            case Planned():
                self._plan(event)
            case Opened():
                self._write(seen_at=_now(), study_id=self._study(event.shape))
            case ShapeDone():
                self._finish(event.tuned.shape)

    def _plan(self, plan: Planned) -> None:
        now = _now()
        rows = [
            {
                "study_id": self._study(shape),
                "number": number,
                "trials": trials,
                "default": json.dumps(plan.defaults[shape].as_dict()),
            }
            for number, (shape, trials) in enumerate(plan.trials.items(), start=1)
        ]
        values = {"host": socket.gethostname(), "process": os.getpid()}
        with self._store.transaction() as connection:
            insert = sa.insert(schema.runs).values(started_at=now, seen_at=now, **values)
            (self._run,) = connection.execute(insert).inserted_primary_key or (None,)
            if rows:
                rows = [row | {"run_id": self._run} for row in rows]
                connection.execute(sa.insert(schema.planned), rows)

    def _finish(self, shape: KernelShape) -> None:
        table = schema.planned
        study_id = self._study(shape)
        mine = (table.c.run_id == self._run) & (table.c.study_id == study_id)
        with self._store.transaction() as connection:
            connection.execute(sa.update(table).where(mine).values(done_at=_now()))

    def _study(self, shape: KernelShape) -> int:
        return self._store.study(self._name_of(shape), shape, self._environment).id

    def _write(self, **values: object) -> None:
        if self._run is None:
            return
        with self._store.transaction() as connection:
            mine = schema.runs.c.id == self._run
            connection.execute(sa.update(schema.runs).where(mine).values(**values))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(StorageError):  # the run itself will find that out, and say so
                self._write(seen_at=_now())


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
