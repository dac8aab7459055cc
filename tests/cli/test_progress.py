"""What a run has done and has still to do, from its events."""

from __future__ import annotations

import pytest

from autotune.cli.progress import RunProgress, Search, trial_text
from autotune.measure import Outcome
from autotune.report.words import duration_text
from autotune.search.events import Choosing, Event, Looked, Opened
from tests.cli.run_events import SHAPES, done, planned, tried


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def told(progress: RunProgress, *events: Event) -> RunProgress:
    for event in events:
        progress.watch(event)
    return progress


def present(progress: RunProgress) -> Search:
    """The search that something was last heard of."""
    assert progress.search is not None
    return progress.search


def searched(progress: RunProgress, clock: Clock, number: int, trials: int) -> None:
    """A shape from its first trial to its last, a second each."""
    progress.watch(Opened(shape=SHAPES[number - 1], tried=0, most=20))
    for trial in range(1, trials + 1):
        clock.now_s += 1
        progress.watch(tried(trial, SHAPES[number - 1]))


def test_the_shapes_that_are_done_and_the_trials_of_the_present_one_make_its_share():
    progress, clock = RunProgress(), Clock()
    assert progress.share == 0.0
    told(progress, planned())
    searched(progress, clock, 1, 20)
    assert progress.share == pytest.approx(0.25)
    told(progress, Choosing(shape=SHAPES[0], finalists=5))
    assert present(progress).finalists == 5
    told(progress, done(1, 20))
    assert (progress.shape, progress.search, progress.share) == (None, None, 0.25)
    searched(progress, clock, 2, 5)
    assert progress.share == pytest.approx((1 + 5 / 20) / 4)
    search = present(progress)
    assert (search.tried, search.most, progress.measured) == (5, 20, 25)
    assert (search.best_us, search.default_us) == (6.02, 12.04)


def test_shapes_that_are_searched_side_by_side_are_told_apart():
    progress = told(RunProgress(), planned())
    for shape in SHAPES[:2]:
        progress.watch(Opened(shape=shape, tried=0, most=20))
    told(progress, tried(1, SHAPES[0]), tried(1, SHAPES[1]), tried(2, SHAPES[1]))
    assert (progress.shape, present(progress).tried) == (SHAPES[1], 2)
    assert progress.searches[SHAPES[0]].tried == 1
    assert progress.share == pytest.approx(3 / 20 / 4)
    told(progress, done(2, 2))
    assert (progress.shape, present(progress).tried) == (SHAPES[0], 1)


def test_a_search_between_tuned_rows_is_over_once_another_row_is_looked_at():
    progress = told(RunProgress(), planned(), Opened(shape=SHAPES[0], tried=0, most=20))
    told(progress, Looked(shape=SHAPES[1]))
    assert (progress.searches, progress.search) == ({}, None)


def test_what_is_left_takes_as_long_as_what_was_done():
    clock = Clock()
    progress = told(RunProgress(clock=clock), planned())
    searched(progress, clock, 1, 9)
    assert progress.left_s is None  # too little to judge by
    searched(progress, clock, 1, 20)
    told(progress, done(1, 20))
    assert progress.left_s == pytest.approx(60, rel=0.5)
    searched(progress, clock, 2, 10)
    assert progress.left_s == pytest.approx(50, rel=0.5)


def test_shapes_that_ended_early_make_the_estimate_for_the_others_shorter():
    clock = Clock()
    progress = told(RunProgress(clock=clock), planned())
    searched(progress, clock, 1, 10)
    told(progress, done(1, 10))
    assert progress.left_s == pytest.approx(30)


def test_shapes_that_an_earlier_run_measured_took_no_time_of_this_one():
    clock = Clock()
    progress = told(RunProgress(clock=clock), planned())
    for number in (1, 2):
        progress.watch(Opened(shape=SHAPES[number - 1], tried=20, most=20))
        clock.now_s += 500
        progress.watch(done(number, 20))
    searched(progress, clock, 3, 20)
    assert progress.left_s == pytest.approx(20)


def test_a_time_budget_is_never_exceeded_by_what_is_left():
    clock = Clock()
    progress = told(RunProgress(time_budget_s=30, clock=clock), planned())
    assert progress.left_s == 30
    searched(progress, clock, 1, 20)
    assert progress.left_s == 10
    clock.now_s += 50
    assert progress.left_s == 0


def test_a_run_whose_shapes_are_all_done_goes_on_with_some_of_them():
    clock = Clock()
    progress = told(RunProgress(clock=clock), planned())
    for number in range(1, 5):
        searched(progress, clock, number, 20)
        progress.watch(done(number, 20))
    assert (progress.share, progress.is_going_on, progress.left_s) == (1.0, True, None)
    progress.watch(Opened(shape=SHAPES[0], tried=20, most=30, best_us=6.0))
    assert (progress.share, present(progress).tried, present(progress).best_us) == (1.0, 20, 6.0)


def test_the_last_trials_are_those_of_the_present_shape():
    progress = told(RunProgress(), planned())
    searched(progress, Clock(), 1, 20)
    assert len(present(progress).last) == 8
    progress.watch(Opened(shape=SHAPES[1], tried=0, most=20))
    assert not present(progress).last


def test_batch_sizes_between_rows_are_counted():
    progress = told(RunProgress(), planned(), Looked(shape=SHAPES[0]), Looked(shape=SHAPES[1]))
    assert (progress.looked, progress.shape) == (2, None)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "ok 6.02 µs"),
        ({"outcome": Outcome.TOO_SLOW, "reason": "slower than the best"}, "too slow"),
        (
            {"outcome": Outcome.LAUNCH_FAILED, "samples_us": (), "reason": "OutOfResources: …"},
            "launch failed (OutOfResources: …)",
        ),
        ({"outcome": Outcome.WORKER_DIED, "samples_us": (), "reason": ""}, "worker died"),
    ],
)
def test_a_trial_is_told_by_how_it_ended(values, text):
    assert trial_text(tried(1, **values).measurement) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_a_duration_is_told_in_minutes_and_hours(seconds, text):
    assert duration_text(seconds) == text
