"""What a database says of its runs while they write it, asked of SQLite and of PostgreSQL."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from autotune.errors import InputError
from autotune.launch.shape import KernelShape
from autotune.measure import Outcome
from autotune.store import Claims, DeviceLoad, Load, Overview, RunLog, Store, overview
from autotune.store.overview import DONE, RUNNING, TO_DO
from autotune.store.runs import SILENT_S
from tests.contracts.examples import HERE, SHAPE, config, finished, selection
from tests.patience import PATIENCE_S

OTHER = replace(SHAPE, num_tokens=32)
LAST = replace(SHAPE, num_tokens=64)
DEFAULT = config(split_k=1)


def log_of(store: Store) -> RunLog:
    return RunLog(store, HERE)


def plan(log: RunLog, *shapes: KernelShape) -> None:
    log.plan(dict.fromkeys(shapes, 20), dict.fromkeys(shapes, DEFAULT))


def study_of(store: Store, shape: KernelShape):
    return store.study_of(shape, HERE)


def states(seen: Overview) -> list[str]:
    return [study.state for study in seen.studies]


@pytest.fixture
def other_store(url, store) -> Iterator[Store]:  # noqa: ARG001 - which has made it
    """The same database, as another process has it."""
    opened_again = Store(url, must_exist=True)
    yield opened_again
    opened_again.close()


def test_an_empty_database_has_no_runs_and_no_studies(store):
    seen = overview(store)
    assert (seen.runs, seen.studies, seen.trials, seen.last_at) == ((), (), 0, None)


def test_a_run_is_followed_from_its_plan_to_its_end(store, other_store):
    with log_of(store) as log:
        assert overview(other_store).runs == ()
        plan(log, SHAPE, OTHER, LAST)
        assert states(overview(other_store)) == [TO_DO] * 3
        log.begin(SHAPE)
        assert states(overview(other_store)) == [RUNNING, TO_DO, TO_DO]
        log.finish(SHAPE)
        log.begin(OTHER)
        seen = overview(other_store)
        assert states(seen) == [DONE, RUNNING, TO_DO]
        assert [study.shape for study in seen.studies] == [SHAPE, OTHER, LAST]
        assert [study.most for study in seen.studies] == [20] * 3
        assert [run.state for run in seen.runs] == ["running"]
    seen = overview(other_store)
    assert states(seen) == [DONE, TO_DO, TO_DO]
    assert [run.state for run in seen.runs] == ["done"]


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt, "interrupted"), (InputError, "failed")]
)
def test_a_run_that_does_not_end_well_says_how_it_ended(store, error, state):
    with pytest.raises(error, match="here"), log_of(store) as log:
        plan(log, SHAPE)
        log.begin(SHAPE)
        raise error("here")
    seen = overview(store)
    assert [run.state for run in seen.runs] == [state]
    assert states(seen) == [TO_DO]


def test_a_run_that_was_killed_is_gone_when_it_has_not_been_seen_for_a_while(store):
    log = log_of(store)
    plan(log, SHAPE)
    log.begin(SHAPE)  # and never a word again
    seen_at = overview(store).runs[0].seen_at
    soon, late = (seen_at + timedelta(seconds=SILENT_S + seconds) for seconds in (-1, 1))
    assert states(overview(store, now=soon)) == [RUNNING]
    seen = overview(store, now=late)
    assert states(seen) == [TO_DO]
    assert [run.state for run in seen.runs] == ["gone"]


def test_a_run_says_again_and_again_that_it_is_there(store, other_store, monkeypatch):
    monkeypatch.setattr("autotune.store.runs.BEAT_S", 0.01)
    with log_of(store) as log:
        plan(log, SHAPE)
        first = overview(other_store).runs[0].seen_at
        for _ in range(500):
            if overview(other_store).runs[0].seen_at > first:
                break
        else:
            pytest.fail("it was never seen again")


def test_two_runs_under_way_are_both_shown_and_ended_runs_are_not(store):
    for _ in range(2):
        with log_of(store) as log:
            plan(log, LAST)
            log.finish(LAST)
    with log_of(store) as first, log_of(store) as second:
        plan(first, SHAPE)
        plan(second, OTHER)
        first.begin(SHAPE)
        second.begin(OTHER)
        seen = overview(store)
    assert [run.state for run in seen.runs] == ["running", "running"]
    assert [(study.shape, study.state) for study in seen.studies] == [
        (OTHER, RUNNING),
        (SHAPE, RUNNING),
        (LAST, DONE),
    ]


def test_it_is_told_which_run_has_a_study_and_which_have_measured_it(store):
    with log_of(store) as first, log_of(store) as second:
        runs = [(log, Claims(store, log, budget="the same")) for log in (first, second)]
        for number, (log, claims) in enumerate(runs):
            plan(log, SHAPE)
            assert claims.take([SHAPE]) is not None
            study = study_of(store, SHAPE)
            store.add(study, [finished(number)], claim=claims.of(study))
            (seen,) = overview(store).studies
            assert (seen.state, seen.holder) == (RUNNING, seen.works[-1])
            assert [work.trials for work in seen.works] == [1] * (number + 1)
            claims.give_back(SHAPE, has_grown=True)
        (seen,) = overview(store).studies
    assert (seen.state, seen.holder) == (TO_DO, None)
    assert {work.process for work in seen.works} == {os.getpid()}


def test_a_study_is_done_if_a_run_has_done_it_while_another_was_under_way(store):
    with log_of(store) as first, log_of(store) as second:
        plan(first, SHAPE)
        plan(second, SHAPE)
        first.finish(SHAPE)
        assert states(overview(store)) == [DONE]
    with log_of(store) as third:
        plan(third, SHAPE)
        assert states(overview(store)) == [TO_DO]


def test_a_study_that_is_not_finished_has_the_best_ratio_so_far(store):
    with log_of(store) as log:
        plan(log, SHAPE)
        study = study_of(store, SHAPE)
        slow, fast = (12.0, 12.0, 13.0), (6.0, 6.0, 5.0)
        failed = {"outcome": Outcome.LAUNCH_FAILED, "samples_us": (), "reason": "no"}
        store.add(study, [finished(1, samples_us=fast), finished(2, **failed)])
        (seen,) = overview(store).studies
        assert (seen.trials, seen.best_us, seen.default_us, seen.ratio) == (2, 6.0, None, None)
        store.add(study, [finished(0, samples_us=slow)])  # the default
        (seen,) = overview(store).studies
    assert (seen.trials, seen.best_us, seen.default_us, seen.ratio) == (3, 6.0, 12.0, 2.0)
    assert seen.last_at == finished(2).finished_at


def test_a_finished_study_has_the_ratio_that_was_chosen_by(store):
    store.keep_selection(study_of(store, SHAPE), selection())
    (seen,) = overview(store).studies
    assert (seen.state, seen.most, seen.ratio) == (DONE, None, 2.0)
    assert (seen.default_us, seen.best_us) == (10.15, 5.05)


def test_a_study_of_which_nothing_works_is_done_without_a_ratio(store):
    with log_of(store) as log:
        plan(log, SHAPE)
        failed = {"outcome": Outcome.COMPILE_FAILED, "samples_us": (), "reason": "no"}
        store.add(study_of(store, SHAPE), [finished(0, **failed)])
        log.finish(SHAPE)
    (seen,) = overview(store).studies
    assert (seen.state, seen.best_us, seen.ratio) == (DONE, None, None)


def test_a_database_is_looked_at_while_it_is_written(store, other_store):
    ended = threading.Event()
    counts = []

    def look() -> None:
        while not ended.is_set():
            counts.append(overview(other_store).trials)

    thread = threading.Thread(target=look)
    with log_of(store) as log:
        plan(log, SHAPE)
        thread.start()
        for batch in range(20):
            store.add(study_of(store, SHAPE), [finished(5 * batch + n) for n in range(5)])
        ended.set()
        thread.join(PATIENCE_S)
    assert counts
    assert counts == sorted(counts)
    assert overview(other_store).trials == 100


def test_it_is_told_how_busy_the_gpus_of_a_run_were_and_which_one_was_lost(store):
    busy = [0.0, 0.0]

    def load() -> Load:
        devices = [
            DeviceLoad(device=f"GPU {n}", busy_s=each, is_lost=n == 1 and each > 0)
            for n, each in enumerate(busy)
        ]
        return Load(devices=devices, compilers=2, compiled_s=sum(busy), writing_s=0.0)

    with RunLog(store, HERE, load=load) as log:
        plan(log, SHAPE)
        (run,) = overview(store).runs
        assert [one.device for one in run.load.devices] == ["GPU 0", "GPU 1"]
        assert sum(run.load.shares.values()) == 0
        busy[:] = [1e6, 1e-9]
        assert Claims(store, log, budget="").take([SHAPE]) is not None
    (run,) = overview(store).runs
    assert run.load.shares["GPU 0"] == run.load.shares["compilers"] == 1.0
    assert [one.is_lost for one in run.load.devices] == [False, True]
    assert str(run.load) == "GPU 0 100 %, GPU 1 0 % (lost), compilers 100 %, writer 0 %"


def test_a_study_that_two_gpus_of_a_run_have_measured_says_so(store):
    with log_of(store) as log:
        claims = Claims(store, log, budget="")
        plan(log, SHAPE)
        assert claims.take([SHAPE]) is not None
        study = study_of(store, SHAPE)
        for number, count in ((0, 3), (1, 2)):
            those = [finished(5 * number + n) for n in range(count)]
            store.add(study, those, claim=claims.of(study), device=f"GPU {number}")
        (seen,) = overview(store).studies
    assert [(work.device, work.trials) for work in seen.works] == [("GPU 0", 3), ("GPU 1", 2)]
    assert seen.holder == seen.works[-1]
