"""What a database must do for a run: SQLAlchemy's URL of a new kind of database is the subject."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import optuna
import pytest
from optuna.storages import RDBStorage

from autotune.choose.selection import Ratio, Selection
from autotune.errors import ClaimLost, StorageError
from autotune.launch.config import KernelConfig
from autotune.measure import Measurement, Outcome
from autotune.search.dashboard.mirror import TrialMirror
from autotune.search.writer import Writer
from autotune.store import Claims, Finished, RunLog, Store
from autotune.testing.landscape import ENVIRONMENT, configs, shrink

_SHAPE = shrink()
_CONFIGS = configs()
_NOON = datetime(2025, 6, 1, 12, 0, 0, 250_000)  # noqa: DTZ001 - the store's times are naive UTC

#: How long a thread may need on a busy machine, seconds.
_LIMIT_S = 300


class StoreSuite(ABC):
    """The tests of a database. A subclass gives the fixture ``url``."""

    @pytest.fixture
    @abstractmethod
    def url(self) -> str:
        """The SQLAlchemy URL of an empty database."""

    @pytest.fixture
    def store(self, url: str) -> Iterator[Store]:
        """The database, open."""
        opened = Store(url)
        yield opened
        opened.close()

    def test_a_study_is_made_once(self, store: Store, url: str) -> None:
        """Whoever opens a study first makes it; everybody after that gets the same one."""
        made = store.study("a study", _SHAPE, ENVIRONMENT)
        assert store.study("a study", _SHAPE, ENVIRONMENT) == made
        again = Store(url)
        assert again.study("a study", _SHAPE, ENVIRONMENT) == made
        again.close()
        assert store.study("another", _SHAPE, ENVIRONMENT).id != made.id

    def test_a_study_that_was_measured_elsewhere_is_refused_with_what_differs(
        self, store: Store
    ) -> None:
        """Figures of two environments are never mixed."""
        store.study("a study", _SHAPE, ENVIRONMENT)
        elsewhere = replace(ENVIRONMENT, triton="3.7.0", driver="590")
        with pytest.raises(StorageError, match=r"triton 3\.6\.0, here 3\.7\.0; driver 580"):
            store.study("a study", _SHAPE, elsewhere)

    def test_measurements_keep_the_order_in_which_they_were_finished(self, store: Store) -> None:
        """Two studies are written in turn, and neither mixes with the other."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        other = store.study("another", _SHAPE, ENVIRONMENT)
        items = [_finished(number) for number in (5, 3, 9, 1, 7)]
        store.add(study, items[:2])
        store.add(other, [_finished(4)])
        store.add(study, items[2:])
        assert store.finished(study) == items

    def test_a_failed_measurement_is_read_back_as_it_was_kept(self, store: Store) -> None:
        """Text that is not ASCII, and figures that are not known, survive."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        item = _finished(0)
        failed = replace(
            item.measurement, outcome=Outcome.WRONG_RESULT, reason="‖out − ref‖", samples_us=()
        )
        store.add(study, [replace(item, measurement=failed)])
        assert store.finished(study) == [replace(item, measurement=failed)]

    def test_of_a_batch_that_cannot_be_kept_nothing_is_kept(self, store: Store) -> None:
        """A configuration is kept once; a batch that repeats one is refused whole."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        store.add(study, [_finished(0)])
        with pytest.raises(StorageError, match="cannot use the database"):
            store.add(study, [_finished(1), _finished(0)])
        assert store.finished(study) == [_finished(0)]

    def test_keeping_no_measurements_changes_nothing(self, store: Store) -> None:
        """An empty batch is no error."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        store.add(study, [])
        assert store.finished(study) == []

    def test_a_selection_replaces_the_one_before(self, store: Store) -> None:
        """A study has one selection, the latest."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        assert store.selection(study) is None
        store.keep_selection(study, _selection(trials=20))
        store.keep_selection(study, _selection(trials=40))
        assert store.selection(study) == _selection(trials=40)

    def test_all_selections_come_with_their_environments_by_study_name(self, store: Store) -> None:
        """A study without a selection is left out."""
        elsewhere = replace(ENVIRONMENT, gpu="NVIDIA Other-GPU")
        for name, where, trials in (("b", ENVIRONMENT, 2), ("a", elsewhere, 1)):
            store.keep_selection(store.study(name, _SHAPE, where), _selection(trials=trials))
        store.study("without one", _SHAPE, ENVIRONMENT)
        found = [(environment, one.trials) for environment, one in store.selections()]
        assert found == [(elsewhere, 1), (ENVIRONMENT, 2)]

    def test_readers_see_whole_batches_while_a_writer_writes(self, store: Store, url: str) -> None:
        """Two readers look again and again; each sees every batch whole, and none goes away."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        done = threading.Event()
        seen: list[list[int]] = [[], []]

        def read(counts: list[int]) -> None:
            reader = Store(url)
            while not done.is_set():
                counts.append(len(reader.finished(study)))
            counts.append(len(reader.finished(study)))
            reader.close()

        readers = [threading.Thread(target=read, args=(counts,)) for counts in seen]
        for thread in readers:
            thread.start()
        for batch in range(20):
            store.add(study, [_finished(5 * batch + number) for number in range(5)])
        done.set()
        for thread in readers:
            thread.join(timeout=_LIMIT_S)
        for counts in seen:
            assert counts[-1] == 100
            assert all(count % 5 == 0 for count in counts)
            assert all(before <= after for before, after in pairwise(counts))

    def test_a_shape_is_searched_by_one_run_at_a_time(self, store: Store, url: str) -> None:
        """What a run keeps after another has the shape is refused whole."""
        study, other = store.study_of(_SHAPE, ENVIRONMENT), Store(url)
        both = [self._claims(each) for each in (store, other)]
        with both[0][0], both[1][0]:
            (_, first), (_, second) = both
            assert first.take([_SHAPE]) is not None
            assert second.take([_SHAPE]) is None
            store.add(study, [_finished(0)], claim=first.of(study))
            lost = first.of(study)
            first.give_back(_SHAPE, has_grown=True)
            assert second.take([_SHAPE]) is not None
            with pytest.raises(ClaimLost, match="another run"):
                store.add(study, [_finished(1)], claim=lost)
            other.add(study, [_finished(2)], claim=second.of(study))
        assert store.finished(study) == [_finished(0), _finished(2)]
        other.close()

    def _claims(self, store: Store) -> tuple[RunLog, Claims]:
        log = RunLog(store, ENVIRONMENT)
        log.plan({_SHAPE: 3}, {_SHAPE: _CONFIGS[0]})
        return log, Claims(store, log, budget="three trials")

    def test_what_a_search_writes_is_what_optuna_reads(self, store: Store, url: str) -> None:
        """Measurements are trials of an Optuna study of the same name, in the same order."""
        study = store.study("a study", _SHAPE, ENVIRONMENT)
        mirror = TrialMirror(url)
        writer = Writer(store, mirror)
        opened = writer.open(study)
        for number in range(3):
            opened.put(_finished(number))
        opened.flush()
        assert opened.kept == 3
        writer.close()
        mirror.close()
        storage = RDBStorage(url)
        loaded = optuna.load_study(storage=storage, study_name="a study")
        assert [trial.value for trial in loaded.trials] == [10.5, 11.5, 12.5]
        assert loaded.best_params == _CONFIGS[0].as_dict()
        storage.remove_session()
        storage.engine.dispose()


def _finished(number: int) -> Finished:
    """The ``number``-th measurement of a study, a second after the one before."""
    started = _NOON + timedelta(seconds=number)
    measurement = Measurement(
        shape=_SHAPE,
        config=_CONFIGS[number],
        outcome=Outcome.OK,
        samples_us=(10.0 + number, 11.0 + number),
    )
    return Finished(
        measurement=measurement,
        started_at=started,
        finished_at=started + timedelta(milliseconds=10),
    )


def _selection(*, trials: int) -> Selection:
    chosen: KernelConfig
    chosen, default, *_ = _CONFIGS
    return Selection(
        shape=_SHAPE,
        config=chosen,
        default=default,
        samples_us={chosen: (5.0, 5.1), default: (10.0, 10.3)},
        ratio=Ratio(value=2.0, low=1.9, high=2.1),
        trials=trials,
        outcomes={"ok": trials},
    )
