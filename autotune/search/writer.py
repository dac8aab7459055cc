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


class Writer:
    """Writes the measurements and Optuna's trials of all studies of a run, from one thread.

    The thread takes all measurements since it last looked. For each study it writes the
    measurements in one transaction, then their trials in another. A kill between the two loses
    trials, never measurements, and the next run adds the lost trials.

    Attributes:
        store: Keeps measurements.
    """

    def __init__(self, store: Store, mirror: TrialMirror) -> None:
        """Start the thread.

        Args:
            store: Keeps measurements.
            mirror: Keeps Optuna's trials.
        """
        self.store, self._mirror = store, mirror
        self._queue: queue.SimpleQueue[_Item | threading.Event | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def open(self, record: StudyRecord) -> StudyWriter:
        """Open a study, and add Optuna's trials that a kill lost.

        Raises:
            StorageError: The database cannot be used.
        """
        return StudyWriter(self, self.store, self._mirror, record)

    def put(self, study: StudyWriter, finished: Finished) -> None:
        """Hand over a measurement; returns at once, also while the database does not answer.

        Raises:
            StorageError: An earlier measurement could not be written.
        """
        self._raise()
        self._queue.put((study, finished))

    def flush(self) -> None:
        """Wait until everything is written; Ctrl-C makes it wait ten seconds at most.

        Raises:
            StorageError: A measurement could not be written.
        """
        written = threading.Event()
        self._queue.put(written)
        self._wait(written.wait)
        self._raise()

    def close(self) -> None:
        """Write what is left, and end the thread; what cannot be written was said before."""
        self._queue.put(None)
        self._wait(self._thread.join)

    def _wait(self, wait: Callable[[], object]) -> None:
        try:
            wait()
        except KeyboardInterrupt:
            self.store.patience.hurry()
            wait()
            raise

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        more = True
        while more:
            taken = [self._queue.get()]
            while not self._queue.empty():
                taken.append(self._queue.get())
            more = None not in taken
            batches: dict[StudyWriter, list[Finished]] = {}
            for each in taken:
                if isinstance(each, tuple):
                    batches.setdefault(each[0], []).append(each[1])
            for study, batch in batches.items():
                self._write(study, batch)
            for each in taken:
                if isinstance(each, threading.Event):
                    each.set()

    def _write(self, study: StudyWriter, batch: Sequence[Finished]) -> None:
        if self._has_failed:
            return
        try:
            study.write(batch)
        except Exception as error:  # noqa: BLE001 - raised again in the owner's thread
            self._error, self._has_failed = error, True


class StudyWriter:
    """Writes the measurements and Optuna's trials of one study."""

    def __init__(
        self, writer: Writer, store: Store, mirror: TrialMirror, record: StudyRecord
    ) -> None:
        """Open the study, and add Optuna's trials that a kill lost.

        Args:
            writer: Calls ``write`` from its thread.
            store: Keeps measurements.
            mirror: Keeps Optuna's trials.
            record: The study's entry in the store.
        """
        self._writer, self._store, self._mirror, self._record = writer, store, mirror, record
        self._distributions = value_distributions(record.shape.op)
        self._study: optuna.Study = mirror.open_study(record)
        self.earlier: Sequence[Finished] = store.finished(record)
        lost = self.earlier[mirror.count(self._study) :]
        mirror.add(self._study, [self._trial(item) for item in lost])
        self._put = self._kept = 0

    def put(self, finished: Finished) -> None:
        """Hand over a measurement; returns at once, also while the database does not answer.

        Raises:
            StorageError: An earlier measurement could not be written.
        """
        self._writer.put(self, finished)
        self._put += 1

    @property
    def kept(self) -> int:
        """How many of the measurements that were handed over are in the database."""
        return self._kept

    def flush(self) -> None:
        """Wait until everything is written; Ctrl-C makes it wait ten seconds at most.

        Raises:
            StorageError: A measurement could not be written.
        """
        if self._kept < self._put:
            self._writer.flush()

    def keep_note(self, selection: Selection) -> None:
        """Keep a note about the selection, for Optuna's dashboard.

        Raises:
            StorageError: The note cannot be written.
        """
        self._mirror.keep_note(self._study, note_text(selection, self._record.environment))

    def write(self, batch: Sequence[Finished]) -> None:
        """Write measurements and their trials; called in the Writer's thread.

        Raises:
            StorageError: They cannot be written.
        """
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


#: A measurement and the study that it belongs to.
_Item = tuple[StudyWriter, Finished]


def _local(utc: datetime) -> datetime:
    """A naive local time, as Optuna's trials have it."""
    return utc.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)
