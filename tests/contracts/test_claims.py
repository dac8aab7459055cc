"""Runs that share a database: each shape is searched by one of them at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage

from autotune.errors import ClaimLost
from autotune.launch.shape import KernelShape
from autotune.search import TrialMirror
from autotune.search.writer import Writer
from autotune.store import Claims, Holder, Patience, RunLog, Store, overview, schema, study_name
from autotune.store.alive import birth, is_dead
from tests.contracts.examples import HERE, SHAPE, config, finished, selection
from tests.patience import PATIENCE_S
from tests.profiles import examples

SHAPES = [replace(SHAPE, num_tokens=count) for count in (16, 32, 64)]

#: A program that does nothing for as long as it is told to.
SLEEP = shutil.which("sleep") or "sleep"

#: Of another host.
ELSEWHERE = "another-boot pid:[1] 1"


@dataclass
class Run:
    """A run that searches ``SHAPES``: its entry in the database, and what it has taken."""

    store: Store
    log: RunLog
    claims: Claims

    def take(self, *shapes: KernelShape) -> KernelShape | None:
        taken = self.claims.take(shapes or SHAPES)
        return None if taken is None else taken.shape

    def is_elsewhere(self) -> None:
        """Have it look as if it were on another host, where nobody sees whether it is there."""
        with self.store.engine.begin() as connection:
            mine = schema.runs.c.id == self.log.run_id
            connection.execute(sa.update(schema.runs).where(mine).values(birth=ELSEWHERE))


@pytest.fixture
def begin(url) -> Iterator[Callable[..., Run]]:
    """Begins another run."""
    with ExitStack() as opened:

        def begin(budget: str = "the same", *, beats: bool = True) -> Run:
            store = opened.enter_context(closing(Store(url, patience=Patience(PATIENCE_S))))
            log = RunLog(store, HERE)
            if beats:
                opened.enter_context(log)
            log.plan(dict.fromkeys(SHAPES, 20), dict.fromkeys(SHAPES, config(split_k=1)))
            claims = Claims(store, log, budget=budget)
            return Run(store=store, log=log, claims=claims)

        yield begin


@pytest.fixture
def _silence_is_death(monkeypatch) -> None:
    monkeypatch.setattr("autotune.store.runs.SILENT_S", 0.0)


# ------------------------------------------------------------------ taking


def test_a_shape_is_taken_by_one_run_and_then_by_none_until_it_is_given_back(begin):
    first, second = begin(), begin()
    assert first.take() == SHAPES[0]
    assert second.take() == SHAPES[1]
    assert first.take(*SHAPES[1:]) == SHAPES[2]
    assert second.take(SHAPES[0], SHAPES[2]) is None
    first.claims.give_back(SHAPES[0], has_grown=False)
    assert second.take() == SHAPES[0]


def test_a_run_says_who_has_what_it_wants(begin):
    first = begin()
    first.take(SHAPES[0])
    first.take(SHAPES[1])
    second = begin()
    assert second.take() == SHAPES[2]
    me = Holder(run=first.log.run_id, host=os.uname().nodename, process=os.getpid())
    assert second.claims.others == {me: 2}


def test_a_run_takes_no_more_than_its_share_while_others_are_under_way(begin):
    first = begin()
    assert first.take() == SHAPES[0]
    with ExitStack() as stack:
        second = begin(beats=False)
        stack.enter_context(second.log)
        assert first.take(*SHAPES[1:]) == SHAPES[1]  # two of three
        assert first.take(*SHAPES[2:]) is None
        assert second.take() == SHAPES[2]
        second.claims.give_back(SHAPES[2], has_grown=True)
        assert first.take(*SHAPES[2:]) == SHAPES[2]  # it is done
        first.claims.give_back(SHAPES[2], has_grown=False)
        assert first.take(*SHAPES[2:]) is None
    assert first.take(*SHAPES[2:]) == SHAPES[2]


def test_threads_that_take_at_the_same_moment_take_every_shape_once(begin):
    runs = [begin() for _ in range(4)]
    taken: list[KernelShape | None] = []
    at_once = threading.Barrier(len(runs))

    def take(run: Run) -> None:
        at_once.wait(PATIENCE_S)
        taken.append(run.take())

    threads = [threading.Thread(target=take, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(one.num_tokens for one in taken if one) == [16, 32, 64]
    assert taken.count(None) == 1


@pytest.mark.slow
def test_databases_that_many_open_at_the_same_moment_are_made_once(url):
    at_once = threading.Barrier(6)
    errors: list[BaseException] = []

    def use() -> None:
        try:
            at_once.wait(PATIENCE_S)
            with closing(Store(url)) as store:
                mirror = TrialMirror(url, patience=Patience(PATIENCE_S))
                for shape in SHAPES:
                    mirror.open_study(store.study_of(shape, HERE))
                store.keep_selection(store.study_of(SHAPE, HERE), selection())
                mirror.close()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(at_once.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == []
    with closing(Store(url)) as store:
        assert len(store.studies()) == len(SHAPES)
        assert len(store.selections()) == 1


def test_what_another_run_has_finished_meanwhile_comes_first(begin):
    first, second = begin(), begin()
    assert first.take() == SHAPES[0]
    assert second.take(SHAPES[2]) == SHAPES[2]
    second.claims.give_back(SHAPES[2], has_grown=True)
    assert first.take(*SHAPES[1:]) == SHAPES[2]
    assert begin().take(*SHAPES[1:]) == SHAPES[1]  # for a run that begins later it is no news


@pytest.mark.parametrize(
    ("budget", "has_grown", "is_done"),
    [("the same", True, True), ("another", True, False), ("the same", False, False)],
)
def test_a_shape_is_done_if_another_run_searched_it_meanwhile_with_the_same_budget(
    begin, budget, has_grown, is_done
):
    first, second = begin(), begin(budget)
    first.take(SHAPES[1])
    second.take(SHAPES[0])
    assert first.take(SHAPES[0]) is None  # it was not done when it was first asked for
    second.claims.give_back(SHAPES[0], has_grown=has_grown)
    taken = first.claims.take(SHAPES)
    assert taken is not None
    assert (taken.shape, taken.is_done) == (SHAPES[0], is_done)
    assert first.claims.has_company


# ------------------------------------------------------------------ runs that are gone


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_run_that_ends_gives_back_what_it_has(begin, error):
    run, other = begin(beats=False), begin()
    run.take()
    with ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(error, match="here"))
        with run.log:
            if error is not None:
                raise error("here")
    assert other.take() == SHAPES[0]


def test_a_process_that_was_killed_is_seen_at_once():
    process = subprocess.Popen([SLEEP, "1000"])  # noqa: S603 - a program of the system
    born = birth(process.pid)
    assert born is not None
    assert not is_dead(process.pid, born)
    process.send_signal(signal.SIGSTOP)
    assert not is_dead(process.pid, born)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(process.pid, born)  # a zombie, which nobody has waited for
    process.wait(PATIENCE_S)
    assert is_dead(process.pid, born)
    assert is_dead(os.getpid(), f"{born.rpartition(' ')[0]} 1")  # its number was given again


@pytest.mark.parametrize("born", [None, ELSEWHERE])
def test_of_a_process_on_another_host_nothing_is_known(born):
    assert not is_dead(2**22 + 1, born)


def test_what_a_killed_run_had_is_taken_over_at_once(begin):
    killed, other = begin(beats=False), begin()
    process = subprocess.Popen([SLEEP, "1000"])  # noqa: S603 - a program of the system
    with killed.store.engine.begin() as connection:
        mine = schema.runs.c.id == killed.log.run_id
        values = {"process": process.pid, "birth": birth(process.pid)}
        connection.execute(sa.update(schema.runs).where(mine).values(values))
    assert killed.take() == SHAPES[0]
    assert other.take() == SHAPES[1]
    process.kill()
    process.wait(PATIENCE_S)
    assert [run.state for run in overview(other.store).runs] == ["running"]  # and one is gone
    assert other.take() == SHAPES[0]


def test_a_run_elsewhere_has_what_it_took_until_it_is_silent_for_long(begin, monkeypatch):
    silent, other = begin(beats=False), begin()
    silent.is_elsewhere()
    silent.take()
    assert other.take(SHAPES[0]) is None
    monkeypatch.setattr("autotune.store.runs.SILENT_S", 0.0)
    assert other.take(SHAPES[0]) == SHAPES[0]


@pytest.mark.usefixtures("_silence_is_death")
def test_nobody_is_taken_for_dead_by_a_run_that_could_not_write_either(begin):
    silent, other = begin(beats=False), begin(beats=False)
    silent.is_elsewhere()
    silent.take()
    other.log._answered(other.store.now() + timedelta(days=1))  # the database was away till then
    assert other.take(SHAPES[0]) is None


def test_who_was_silent_long_before_this_run_began_is_gone(begin):
    silent = begin(beats=False)
    silent.is_elsewhere()
    silent.take()
    with silent.store.engine.begin() as connection:
        yesterday = silent.store.now() - timedelta(days=1)
        connection.execute(sa.update(schema.runs).values(seen_at=yesterday))
    assert begin().take() == SHAPES[0]


# ------------------------------------------------------------------ a run that comes back


def kept(store: Store, shape: KernelShape = SHAPE) -> list[int]:
    found = store.finished(store.study_of(shape, HERE))
    return [one.measurement.config.as_dict()["split_k"] - 1 for one in found]


def mirrored(storage: RDBStorage) -> list[tuple[int, int]]:
    """The number and the configuration of every trial of ``SHAPE``, as Optuna reads them."""
    study_id = storage.get_study_id_from_name(study_name(HERE, SHAPE))
    trials = storage.get_all_trials(study_id)
    return [(trial.number, trial.params["split_k"] - 1) for trial in trials]


@pytest.mark.usefixtures("_silence_is_death")
def test_a_run_that_comes_back_keeps_nothing_of_what_was_taken_over(begin, url, storage):
    paused, other = begin(beats=False), begin(beats=False)
    paused.is_elsewhere()
    with ExitStack() as opened:

        def open_study(run: Run):
            mirror = opened.enter_context(closing(TrialMirror(url)))
            writer = opened.enter_context(closing(Writer(run.store, mirror, run.claims)))
            return writer.open(run.store.study_of(SHAPE, HERE))

        assert paused.take(SHAPE) == SHAPE
        theirs = open_study(paused)
        theirs.put(finished(0))
        theirs.flush()
        assert other.take(SHAPE) == SHAPE
        ours = open_study(other)
        assert list(ours.earlier) == [finished(0)]
        ours.put(finished(1))
        ours.flush()
        theirs.put(finished(1))
        with pytest.raises(ClaimLost, match="another run has taken over"):
            theirs.flush()
        with pytest.raises(ClaimLost, match="another run has taken over"):
            theirs.put(finished(2))
        with pytest.raises(ClaimLost, match="another run has taken over"):
            theirs.keep_selection(selection())
        ours.put(finished(2))
        ours.flush()
        ours.keep_selection(selection())
    assert kept(other.store) == [0, 1, 2]
    assert mirrored(storage) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("_silence_is_death")
def test_a_run_that_stops_in_the_middle_of_a_transaction_holds_nobody_up(begin, url, monkeypatch):
    if url.startswith("sqlite"):
        pytest.skip("nobody can write to a SQLite file that a stopped process has locked")
    monkeypatch.setattr("autotune.store.engine._MOST_IDLE_S", 1)
    stopped, other = begin(beats=False), begin(beats=False)
    stopped.is_elsewhere()
    stopped.take(SHAPE)
    study = stopped.store.study_of(SHAPE, HERE)
    over = threading.Event()

    def hold(_connection: sa.Connection) -> None:
        if not over.is_set():
            assert other.take(SHAPE) == SHAPE  # waits until the server ends this connection
            over.set()

    with pytest.raises(ClaimLost, match="another run has taken over"):
        stopped.store.add(study, [finished(0)], claim=stopped.claims.of(study), beside=hold)
    assert kept(other.store) == []


# ------------------------------------------------------------------ Optuna's tables


@settings(
    max_examples=examples(10),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(again=st.lists(st.integers(0, 4), max_size=6), lost=st.sets(st.integers(0, 4)))
@example(again=[4, 4], lost={0})
def test_trials_that_older_runs_wrote_twice_or_lost_are_mended(store, storage, url, again, lost):
    study = store.study(f"study {uuid.uuid4()}", SHAPE, HERE)
    items = [finished(number) for number in range(5)]
    store.add(study, items)
    with closing(TrialMirror(url)) as mirror, closing(Writer(store, mirror)) as writer:
        assert writer.open(study).twice == 0
        optunas = mirror.open_study(study)
        trials = optunas.get_trials(deepcopy=False)
        optunas.ask({"mine": FloatDistribution(0, 1)})  # a user's own
        mirror.add(optunas, [trials[number] for number in again])
        with store.engine.begin() as connection:
            assert mirror.tables is not None
            mirror.tables._delete(connection, [trials[number]._trial_id for number in lost])
        there = Counter([*range(5), *again]) - Counter(lost)
        assert writer.open(study).twice == there.total() - len(there)
        after = sorted(storage.get_all_trials(optunas._study_id), key=lambda one: one.number)
        assert [trial.number for trial in after] == list(range(len(items) + 1))
        ours = [trial.params["split_k"] - 1 for trial in after if "mine" not in trial.params]
        assert ours == list(range(5))
        assert writer.open(study).twice == 0
