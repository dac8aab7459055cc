"""One thread writes the measurements and trials of all studies of a run."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import StorageError
from autotune.launch.shape import KernelShape
from autotune.measure import Measurement, Outcome
from autotune.search import TrialMirror
from autotune.search import writer as writer_module
from autotune.search.writer import Writer
from autotune.store import Finished, Store, StudyRecord
from autotune.testing.landscape import ENVIRONMENT, configs, shrink
from tests.patience import PATIENCE_S

NOON = datetime(2025, 6, 1, 12)  # noqa: DTZ001 - the store's times are naive UTC
SHAPES = [shrink(num_tokens=count) for count in (1, 2, 4)]


class WatchedStore(Store):
    """Notes which threads write."""

    threads: set[str]

    def add(self, study: StudyRecord, finished: Sequence[Finished], **rest: Any) -> None:
        self.threads = {*getattr(self, "threads", ()), threading.current_thread().name}
        super().add(study, finished, **rest)


def finished(shape: KernelShape, number: int) -> Finished:
    start = NOON + timedelta(seconds=number)
    measurement = Measurement(
        shape=shape, config=configs()[number], outcome=Outcome.OK, samples_us=(10.0 + number,)
    )
    return Finished(measurement=measurement, started_at=start, finished_at=start)


class CountedStore(WatchedStore):
    """Notes how many measurements each transaction has."""

    batches: list[int]

    def add(self, study: StudyRecord, finished: Sequence[Finished], **rest: Any) -> None:
        self.batches = [*getattr(self, "batches", ()), len(finished)]
        super().add(study, finished, **rest)


@pytest.fixture
def path(tmp_path) -> Path:
    return Path(tmp_path / "autotune.db")


def test_measurements_of_a_moment_are_written_together(path, monkeypatch):
    monkeypatch.setattr(writer_module, "_GATHERED_S", PATIENCE_S)
    with (
        closing(CountedStore(f"sqlite:///{path}")) as store,
        closing(TrialMirror(f"sqlite:///{path}")) as mirror,
        closing(Writer(store, mirror)) as writer,
    ):
        study, other = (writer.open(store.study_of(shape, ENVIRONMENT)) for shape in SHAPES[:2])
        for number in range(5):
            study.put(finished(SHAPES[0], number))
            other.put(finished(SHAPES[1], number))
        assert study.kept == 0
        study.flush()  # waits for no more, and not for the others
        assert (study.kept, other.kept) == (5, 0)
    assert store.batches == [5, 5]
    assert other.kept == 5


@pytest.fixture
def store(path) -> Iterator[WatchedStore]:
    with closing(WatchedStore(f"sqlite:///{path}")) as store:
        yield store


@pytest.fixture
def writer(path, store) -> Iterator[Writer]:
    with (
        closing(TrialMirror(f"sqlite:///{path}")) as mirror,
        closing(Writer(store, mirror)) as writer,
    ):
        yield writer


@pytest.mark.slow
def test_several_studies_are_written_by_one_thread_each_in_its_order(writer, store):
    records = [store.study_of(shape, ENVIRONMENT) for shape in SHAPES]
    studies = [writer.open(record) for record in records]
    for number in range(20):
        for shape, study in zip(SHAPES, studies, strict=True):
            study.put(finished(shape, number))
    for shape, record, study in zip(SHAPES, records, studies, strict=True):
        study.flush()
        assert study.kept == 20
        assert store.finished(record) == [finished(shape, number) for number in range(20)]
    assert store.threads == {"writer"}


def test_studies_that_are_opened_in_other_threads_meanwhile_lose_nothing(writer, store):
    records = [store.study_of(shape, ENVIRONMENT) for shape in SHAPES]

    def search(record: StudyRecord) -> None:
        study = writer.open(record)
        for number in range(10):
            study.put(finished(record.shape, number))
        study.flush()

    threads = [threading.Thread(target=search, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store.finished(record)) for record in records] == [10] * len(records)
    assert [len(writer.open(record).earlier) for record in records] == [10] * len(records)


def test_what_is_left_is_written_at_the_end(path, store):
    record = store.study_of(SHAPES[0], ENVIRONMENT)
    with closing(TrialMirror(f"sqlite:///{path}")) as mirror:
        with closing(Writer(store, mirror)) as writer:
            study = writer.open(record)
            for number in range(5):
                study.put(finished(SHAPES[0], number))
        assert len(store.finished(record)) == study.kept == 5


@pytest.mark.parametrize("asks", ["put", "flush"])
def test_what_cannot_be_written_is_an_error_where_the_owner_looks_next(path, writer, store, asks):
    studies = [writer.open(store.study_of(shape, ENVIRONMENT)) for shape in SHAPES[:2]]
    with closing(sqlite3.connect(path, timeout=PATIENCE_S)) as connection:
        connection.execute("DROP TABLE autotune_measurements")
        connection.commit()
    studies[0].put(finished(SHAPES[0], 0))
    if asks == "put":
        while writer._error is None:
            pass
    with pytest.raises(StorageError, match="no such table: autotune_measurements"):
        if asks == "put":
            studies[1].put(finished(SHAPES[1], 0))
        else:
            studies[0].flush()
    assert studies[0].kept == 0
