"""When a search stops, and how what is left of a budget is shared."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.plan.effort import EFFORTS
from autotune.search.budget import (
    FEWEST_TRIALS,
    Budget,
    TimeShares,
    expected_gain,
    extra_trials,
)


def falling(*steps: tuple[int, float]) -> list[float]:
    """A lowest latency that stays at each value for a number of trials."""
    return [us for trials, us in steps for _ in range(trials)]


# ------------------------------------------------------------------ what is to be gained


def test_a_search_that_found_something_lately_is_expected_to_go_on_so():
    assert expected_gain(falling((60, 10.0), (40, 8.0))) == pytest.approx(0.2, abs=0.005)


def test_what_was_found_in_the_first_half_promises_nothing_more():
    assert expected_gain(falling((10, 10.0), (390, 8.0))) < 0.001


def test_a_short_search_may_still_gain_though_it_found_nothing_lately():
    gains = [expected_gain([10.0] * trials) for trials in (1, 10, 50, 100)]
    assert gains == sorted(gains, reverse=True)
    assert gains[1] > 0.02
    assert gains[3] < 0.005


def test_the_expected_gain_is_infinite_where_nothing_has_worked_yet():
    assert math.isinf(expected_gain([]))
    assert math.isinf(expected_gain([math.inf] * 50))
    assert expected_gain([math.inf] * 10 + [5.0] * 5) > 0.9


@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=60), st.integers(1, 60))
def test_trials_that_find_nothing_lower_what_is_expected(latencies, more):
    best = [min(latencies[: n + 1]) for n in range(len(latencies))]
    on = best + [best[-1]] * (len(best) + more)
    assert expected_gain(on) < max(expected_gain(best), 0.35 / len(best))


# ------------------------------------------------------------------ when a search stops


def test_a_search_ends_where_less_than_asked_for_is_expected():
    budget = Budget(trials=200, least_gain=0.005)
    assert budget.is_enough(0.004, 90)
    assert not budget.is_enough(0.02, 90)
    assert not Budget(trials=200, least_gain=0.001).is_enough(0.004, 90)


def test_no_search_ends_before_the_fewest_trials_of_its_effort():
    budget = Budget.of(EFFORTS["normal"], 200)
    assert not budget.is_enough(0.0, budget.fewest - 1)
    assert budget.is_enough(0.0, budget.fewest)


def test_more_effort_means_more_trials_and_a_smaller_gain_that_counts():
    efforts = list(EFFORTS.values())
    assert list(EFFORTS) == ["instant", "quick", "normal", "thorough"]
    assert [each.trials for each in efforts] == sorted(each.trials for each in efforts)
    assert [each.fewest for each in efforts] == sorted(each.fewest for each in efforts)
    gains = [each.least_gain for each in efforts]
    assert gains == sorted(gains, reverse=True)
    assert all(each.fewest <= each.trials for each in efforts)


def test_without_a_least_gain_no_search_ends_before_its_trials():
    assert not Budget(trials=200).is_enough(0.0, 199)
    assert Budget.of(None, 200) == Budget(trials=200)


def test_a_deadline_leaves_the_fewest_trials(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    late = Budget(trials=50, deadline=99.0)
    assert not late.is_spent(FEWEST_TRIALS - 1)
    assert late.is_spent(FEWEST_TRIALS)


# ------------------------------------------------------------------ trials that are left


def test_trials_that_are_left_go_by_worth_and_not_beyond_the_most():
    assert extra_trials(100, {"a": 3.0, "b": 1.0}, most=60) == {"a": 60, "b": 25}


def test_what_is_worth_less_than_a_trial_gets_none():
    assert extra_trials(3, {"a": 10.0, "b": 1.0}, most=60) == {"a": 2}
    assert extra_trials(0, {"a": 1.0}, most=60) == {}
    assert extra_trials(50, {}, most=60) == {}


# ------------------------------------------------------------------ time


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def test_what_a_shape_does_not_need_is_not_given_to_the_next_in_the_first_round(clock):
    shares = TimeShares(40.0, shapes=4)
    assert shares.even_share(shapes_left=4) == 1010.0
    clock.now = 1001.0  # done at once
    assert shares.even_share(shapes_left=3) == 1011.0
    assert shares.left_s == 39.0


def test_shapes_that_are_searched_side_by_side_get_as_many_times_the_share(clock):
    shares = TimeShares(40.0, shapes=8)
    assert [shares.even_share(shapes_left=left, lanes=4) for left in (8, 7, 6, 5)] == [1020.0] * 4
    clock.now = 1020.0
    assert shares.even_share(shapes_left=4, lanes=4) == 1040.0
    clock.now = 1030.0  # and no share goes beyond the end
    assert shares.even_share(shapes_left=1, lanes=4) == 1040.0
    assert shares.share_by_worth(1.0, total=4.0, lanes=2) == 1035.0
    assert shares.share_by_worth(3.0, total=4.0, lanes=2) == 1040.0


def test_one_shape_that_overran_does_not_starve_the_next(clock):
    """The first shape of a run waits for processes to start."""
    shares = TimeShares(40.0, shapes=4)
    deadline = shares.even_share(shapes_left=4)
    clock.now = deadline + 9.0
    shares.ended(deadline)
    # 21 seconds are left for three, of which at least half is searched.
    assert shares.even_share(shapes_left=3) == clock.now + 3.5


def test_shares_allow_for_what_usually_follows_a_search(clock):
    shares = TimeShares(100.0, shapes=10)
    for late_s in (6.0, 1.0, 1.0):
        deadline = shares.even_share(shapes_left=10)
        clock.now = deadline + late_s
        shares.ended(deadline)
    assert shares.even_share(shapes_left=5) == clock.now + 10.0 - 1.0


def test_time_that_is_left_goes_by_worth(clock):
    shares = TimeShares(100.0, shapes=10)
    clock.now = 1080.0
    assert shares.share_by_worth(3.0, total=4.0) == 1095.0
    clock.now = 1095.0
    assert shares.share_by_worth(1.0, total=1.0) == 1100.0


def test_no_shape_is_begun_with_less_time_than_its_finalists_need(clock):
    shares = TimeShares(100.0, shapes=10)
    deadline = shares.even_share(shapes_left=10)
    clock.now = deadline + 2.0
    shares.ended(deadline)
    clock.now = 1093.0
    assert shares.share_by_worth(0.1, total=9.0) == clock.now + 6.0 - 2.0
    clock.now = 1095.0
    assert shares.share_by_worth(9.0, total=9.0) is None


def test_the_last_moments_are_left_alone(clock):
    shares = TimeShares(100.0, shapes=10)
    clock.now = 1098.5
    assert shares.share_by_worth(1.0, total=1.0) is None
