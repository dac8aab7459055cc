"""Writes measurements to the database from a thread, so that measuring does not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

import optuna
from optuna.trial import FrozenTrial

from autotune.choose.selection import Selection
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.dashboard.note import note_text
from autotune.search.samplers.encoding import value_distributions
from autotune.search.samplers.objective import frozen_trial
from autotune.store import Finished, Store, StudyRecord


class StudyWriter:
    """Writes the measurements and Optuna's trials of one study.

    A thread takes all measurements since it last looked. It writes the measurements in one
    transaction, then their trials in another. A kill between the two loses trials, never
    measurements, and the next run adds the lost trials.
    """

    def __init__(self, store: Store, mirror: TrialMirror, record: StudyRecord) -> None:
        """Open the study, and add Optuna's trials that a kill lost.

        Args:
            store: Keeps measurements.
            mirror: Keeps Optuna's trials.
            record: The study's entry in the store.
        """
        self._store, self._mirror, self._record = store, mirror, record
        self._distributions = value_distributions(record.shape.op)
        self._study: optuna.Study = mirror.open_study(record)
        self.earlier: Sequence[Finished] = store.finished(record)
        lost = self.earlier[mirror.count(self._study) :]
        mirror.add(self._study, [self._trial(item) for item in lost])
        self._kept = 0
        self._batches = _Batches(self._write)

    def put(self, finished: Finished) -> None:
        """Hand over a measurement; returns at once, also while the database does not answer.

        Raises:
            StorageError: An earlier measurement could not be written.
        """
        self._batches.put(finished)

    @property
    def kept(self) -> int:
        """How many of the measurements that were handed over are in the database."""
        return self._kept

    def close(self) -> None:
        """Wait until everything is written; Ctrl-C makes it wait ten seconds at most.

        Raises:
            StorageError: A measurement could not be written.
        """
        try:
            self._batches.close()
        except KeyboardInterrupt:
            self._store.patience.hurry()
            self._batches.close()
            raise

    def keep_note(self, selection: Selection) -> None:
        """Keep a note about the selection, for Optuna's dashboard.

        Raises:
            StorageError: The note cannot be written.
        """
        self._mirror.keep_note(self._study, note_text(selection, self._record.environment))

    def _write(self, batch: Sequence[Finished]) -> None:
        self._store.add(self._record, batch)
        self._kept += len(batch)
        self._mirror.add(self._study, [self._trial(item) for item in batch])

    def _trial(self, item: Finished) -> FrozenTrial:
        config = item.measurement.config
        trial = frozen_trial(
            item.measurement, params=config.as_dict(), distributions=self._distributions
        )
        trial.datetime_start = _local(item.started_at)
        trial.datetime_complete = _local(item.finished_at)
        return trial


def _local(utc: datetime) -> datetime:
    """A naive local time, as Optuna's trials have it."""
    return utc.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)


class _Batches:
    """A thread that calls a function with all items that were put since its last call."""

    def __init__(self, write: Callable[[Sequence[Finished]], None]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="study-writer", daemon=True)
        self._thread.start()

    def put(self, item: Finished) -> None:
        self._raise()
        self._queue.put(item)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        more = True
        while more:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            more = None not in items
            batch = [item for item in items if item is not None]
            if batch and not self._has_failed:
                try:
                    self._write(batch)
                except Exception as error:  # noqa: BLE001 - raised again in the owner's thread
                    self._error, self._has_failed = error, True
