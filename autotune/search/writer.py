"""Writes measurements to the database from a thread, so that measuring does not wait."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import NamedTuple

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial

from autotune.choose.selection import Selection
from autotune.errors import ClaimLost
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.dashboard.note import note_text
from autotune.search.samplers.encoding import value_distributions
from autotune.search.samplers.objective import frozen_trial
from autotune.store import Claim, Claims, Finished, Store, StudyRecord

#: Seconds in which measurements are gathered before they are written. A transaction of many takes
#: the searching process little more time than one of a single measurement.
_GATHERED_S = 1.0


class Writer:
    """Writes the measurements and Optuna's trials of all studies of a run, from one thread.

    The thread gathers measurements for a moment, or until somebody waits for those of their study.
    It writes what it has of a study, measurements and their trials, in one transaction, if no other
    run has taken the study over.

    Attributes:
        store: Keeps measurements.
        mended: How many of Optuna's trials were there twice, by the name of their study.
        busy_s: Seconds in which it has written.
    """

    def __init__(self, store: Store, mirror: TrialMirror, claims: Claims | None = None) -> None:
        """Start the thread.

        Args:
            store: Keeps measurements.
            mirror: Keeps Optuna's trials.
            claims: The studies that the run has taken; None where no other run uses the database.
        """
        self.store, self._mirror, self._claims = store, mirror, claims
        self.mended: Counter[str] = Counter()
        self.busy_s = 0.0
        self._queue: queue.SimpleQueue[_Item | _Wanted | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def open(self, record: StudyRecord, *, device: str = "") -> StudyWriter:
        """Open a study, and mend Optuna's trials of it.

        Args:
            record: The study's entry in the store.
            device: The GPU that measures it, as its runner has it.

        Raises:
            ClaimLost: Another run has taken the study over.
            StorageError: The database cannot be used.
        """
        claim = None if self._claims is None else self._claims.of(record)
        study = StudyWriter(self, self._mirror, record, claim, device=device)
        if study.twice:
            self.mended[record.name] += study.twice
        return study

    def put(self, study: StudyWriter, finished: Finished) -> None:
        """Hand over a measurement; returns at once, also while the database does not answer.

        Raises:
            StorageError: An earlier measurement could not be written.
        """
        self._raise()
        self._queue.put(_Item(study, finished))

    def flush(self, study: StudyWriter) -> None:
        """Wait until all of a study is written; Ctrl-C makes it wait ten seconds at most.

        Raises:
            StorageError: A measurement could not be written.
        """
        written = threading.Event()
        self._queue.put(_Wanted(study, written))
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
        if self._error is not None:  # also for the others, where several measure
            raise self._error

    def _run(self) -> None:
        gathered: dict[StudyWriter, list[Finished]] = {}
        due_s = math.inf
        while True:
            try:
                each = self._queue.get(timeout=_until(due_s))
            except queue.Empty:
                self._write_all(gathered)
                due_s = math.inf
                continue
            if each is None:
                self._write_all(gathered)
                return
            if isinstance(each, _Wanted):
                self._write(each.study, gathered.pop(each.study, []))
                each.written.set()
            else:
                gathered.setdefault(each.study, []).append(each.finished)
                due_s = min(due_s, time.monotonic() + _GATHERED_S)

    def _write_all(self, gathered: dict[StudyWriter, list[Finished]]) -> None:
        for study, batch in gathered.items():
            self._write(study, batch)
        gathered.clear()

    def _write(self, study: StudyWriter, batch: Sequence[Finished]) -> None:
        if self._has_failed or not batch:
            return
        began_s = time.monotonic()
        try:
            study.write(batch)
        except ClaimLost as error:
            study.lost = error
        except Exception as error:  # noqa: BLE001 - raised again in the owner's thread
            self._error, self._has_failed = error, True
        finally:
            self.busy_s += time.monotonic() - began_s


class StudyWriter:
    """Writes the measurements and Optuna's trials of one study.

    Attributes:
        earlier: The measurements that the database had.
        twice: How many of Optuna's trials were there twice.
        lost: Set where another run has taken the study over: nothing more is written.
    """

    def __init__(
        self,
        writer: Writer,
        mirror: TrialMirror,
        record: StudyRecord,
        claim: Claim | None,
        *,
        device: str = "",
    ) -> None:
        """Open the study, and mend Optuna's trials of it.

        Args:
            writer: Calls ``write`` from its thread.
            mirror: Keeps Optuna's trials.
            record: The study's entry in the store.
            claim: The run's claim to the study; None where no other run uses the database.
            device: The GPU that measures it, as its runner has it.
        """
        self._device = device
        self._writer, self._store, self._mirror, self._record = writer, writer.store, mirror, record
        self._claim = claim
        self._distributions = value_distributions(record.shape.op)
        self._study: optuna.Study = mirror.open_study(record)
        self.earlier: Sequence[Finished] = self._store.finished(record)
        self.twice = self._store.patience.outlast(lambda _again: self._mend())
        self._put = self._kept = 0
        self.lost: ClaimLost | None = None

    def put(self, finished: Finished) -> None:
        """Hand over a measurement; returns at once, also while the database does not answer.

        Raises:
            StorageError: An earlier measurement could not be written.
        """
        self._raise_lost()
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
            self._writer.flush(self)
        self._raise_lost()

    def keep_selection(self, selection: Selection) -> None:
        """Keep the selection, and a note about it for Optuna's dashboard.

        Raises:
            ClaimLost: Another run has taken the study over.
            StorageError: They cannot be written.
        """
        self._store.keep_selection(self._record, selection, claim=self._claim)
        self._mirror.keep_note(self._study, note_text(selection, self._record.environment))

    def write(self, batch: Sequence[Finished]) -> None:
        """Write measurements and their trials; called in the Writer's thread.

        Raises:
            ClaimLost: Another run has taken the study over; nothing is written.
            StorageError: They cannot be written.
        """
        if self.lost is not None:
            return
        trials = [self._trial(item) for item in batch]
        self._store.add(
            self._record,
            batch,
            claim=self._claim,
            device=self._device,
            beside=lambda connection: self._add(connection, trials),
        )
        self._kept += len(batch)
        if self._mirror.tables is None:
            self._mirror.add(self._study, trials)

    def _add(self, connection: sa.Connection, trials: Sequence[FrozenTrial]) -> None:
        if self._mirror.tables is not None:
            self._mirror.tables.insert(connection, self._record.name, trials)

    def _mend(self) -> int:
        trials = [self._trial(item) for item in self.earlier]
        if self._mirror.tables is None:
            self._mirror.add(self._study, trials[self._mirror.count(self._study) :])
            return 0
        with self._store.transaction(self._claim) as connection:
            return self._mirror.tables.mend(connection, self._record.name, trials)

    def _raise_lost(self) -> None:
        if self.lost is not None:
            raise self.lost

    def _trial(self, item: Finished) -> FrozenTrial:
        config = item.measurement.config
        trial = frozen_trial(
            item.measurement, params=config.as_dict(), distributions=self._distributions
        )
        trial.datetime_start = _local(item.started_at)
        trial.datetime_complete = _local(item.finished_at)
        return trial


class _Item(NamedTuple):
    """A measurement of a study."""

    study: StudyWriter
    finished: Finished


class _Wanted(NamedTuple):
    """Somebody waits until a study is written."""

    study: StudyWriter
    written: threading.Event


def _until(due_s: float) -> float | None:
    """Seconds until a moment of ``time.monotonic()``; None if it never comes."""
    return None if math.isinf(due_s) else max(0.0, due_s - time.monotonic())


def _local(utc: datetime) -> datetime:
    """A naive local time, as Optuna's trials have it."""
    return utc.replace(tzinfo=timezone.utc).astimezone().replace(tzinfo=None)
