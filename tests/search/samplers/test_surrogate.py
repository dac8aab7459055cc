from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.search.samplers.surrogate import (
    SOFT_LIMIT,
    Surrogate,
    expected_improvement,
    interpolated,
    squash,
)

GRID = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)
LOGS = 0.02 * ((GRID - 3) ** 2).sum(axis=1)


def test_squashed_logarithms_keep_their_order_and_end_at_the_limit():
    squashed = squash(np.array([1.0, 1.1, 1.3, 9.0]))
    assert squashed[0] == 0
    assert (np.diff(squashed) > 0).all()
    assert squashed[-1] == pytest.approx(SOFT_LIMIT)
    assert squash(np.array([])).shape == (0,)


def test_unmeasured_points_are_ranked_by_measured_ones(rng):
    rows = rng.permutation(64)
    mean, *_ = Surrogate(GRID).predict(rows[:30].tolist(), LOGS[rows[:30]])
    left = rows[30:]
    ranks = [np.argsort(np.argsort(each[left])) for each in (mean, LOGS)]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.9


def test_the_spread_falls_where_something_was_asked_for_even_unanswered():
    surrogate = Surrogate(GRID)
    _, before, _ = surrogate.predict([0], LOGS[[0]])
    mean, *_ = surrogate.predict([0], LOGS[[0]])
    pending, after, _ = surrogate.predict([0, 63], np.array([LOGS[0], np.nan]))
    assert after[63] < 0.3 * before[63]
    assert np.allclose(pending, mean)


def test_adding_one_at_a_time_is_the_same_as_all_at_once(rng):
    rows = rng.permutation(64)[:40].tolist()
    one_by_one = Surrogate(GRID)
    for count in range(41):
        stepwise = one_by_one.predict(rows[:count], LOGS[rows[:count]])
    at_once = Surrogate(GRID).predict(rows, LOGS[rows])
    assert np.allclose(stepwise, at_once, atol=1e-9)


def test_rows_that_are_not_those_from_before_start_afresh():
    surrogate = Surrogate(GRID)
    surrogate.predict([5, 6, 7], LOGS[[5, 6, 7]])
    again = surrogate.predict([6, 9], LOGS[[6, 9]])
    assert np.allclose(again, Surrogate(GRID).predict([6, 9], LOGS[[6, 9]]))


ASKED = st.lists(st.lists(st.integers(0, 63), unique=True, max_size=5), min_size=1, max_size=6)


@given(ASKED)
def test_whatever_was_asked_before_the_answer_is_that_of_a_new_model(asked):
    surrogate, wanted = Surrogate(GRID), np.arange(0, 64, 7)
    for rows in asked:
        new = Surrogate(GRID)
        answers = []
        for model in (surrogate, new):
            expected = model.predict(rows, LOGS[rows])
            if model is surrogate:
                model.votes(asked[0], np.ones((1, len(asked[0]))))
                expected = model.predict(rows, LOGS[rows])
            drawn = model.draws(rows, expected, wanted, 3)
            answers.append([*expected, drawn.ravel(), model.hindsight(rows, LOGS[rows])])
        for one, other in zip(*answers, strict=True):
            assert np.allclose(one, other, atol=1e-9)


@given(st.lists(st.integers(0, 63), unique=True, min_size=1, max_size=5))
def test_the_mean_alone_is_that_of_the_prediction(rows):
    belief = squash(LOGS[::-1])
    mean = Surrogate(GRID, belief).mean(np.array(rows), LOGS[rows])
    assert np.allclose(mean, Surrogate(GRID, belief).predict(rows, LOGS[rows]).mean)


@given(st.floats(-40, 40), st.floats(1e-6, 10))
def test_the_expected_improvement_is_that_of_the_formula(z, spread):
    (found,) = expected_improvement(z * spread, np.zeros(1), np.array([spread]))
    below = 0.5 * math.erfc(-z / math.sqrt(2))
    density = math.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    assert found == pytest.approx(
        spread * (z * below + density), rel=1e-4, abs=1e-9 * spread + 1e-11
    )


def test_more_is_never_expected_of_a_point_that_lies_higher():
    means = np.linspace(-9, 9, 5_001)
    assert (np.diff(expected_improvement(0.0, means, np.ones(len(means)))) < 0).all()


def test_a_model_without_observations_predicts():
    mean, spread, _ = Surrogate(GRID).predict([], np.array([]))
    assert np.isfinite(mean).all()
    assert (spread > 0).all()


def test_a_belief_is_followed_until_measurements_say_otherwise(rng):
    belief = squash(-LOGS)  # the wrong way round
    surrogate = Surrogate(GRID, belief)
    rows = rng.permutation(64)[:10].tolist()
    trusting, *_ = surrogate.predict([], np.array([]))
    outvoted, *_ = surrogate.predict(rows, LOGS[rows])
    assert np.corrcoef(trusting, LOGS)[0, 1] < -0.9
    assert np.corrcoef(outvoted, LOGS)[0, 1] > 0.5


def test_points_between_measured_ones_are_interpolated(rng):
    rows = rng.permutation(64)
    known, left = rows[:40], rows[40:]
    found = interpolated(GRID[known], LOGS[known], GRID[left])
    assert np.corrcoef(found, LOGS[left])[0, 1] > 0.95


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_very_slow_is_told_from_slow():
    """Squashed, both are alike."""
    logs = 6.0 * LOGS
    rows = np.random.default_rng(3).permutation(64)[:40]
    expected = Surrogate(GRID).predict(rows.tolist(), logs[rows])
    worst, bad = np.argsort(logs)[[-1, 32]]
    assert expected.slowness[worst] > expected.slowness[bad] + 0.5


# ------------------------------------------------------------------ what is to be gained


def test_draws_have_the_predicted_mean_and_spread_and_are_alike_where_points_are():
    surrogate = Surrogate(GRID)
    rows = [0, 7, 56]
    expected = surrogate.predict(rows, LOGS[rows])
    wanted = np.array([27, 28, 63])  # two neighbours, and one far from both
    drawn = surrogate.draws(rows, expected, wanted, 4_000)
    assert drawn.shape == (4_000, 3)
    assert np.allclose(drawn.mean(axis=0), expected.mean[wanted], atol=0.02)
    assert np.allclose(drawn.std(axis=0), expected.spread[wanted], rtol=0.1)
    together = np.corrcoef(drawn.T)
    assert together[0, 1] > together[0, 2]
    assert np.array_equal(drawn, surrogate.draws(rows, expected, wanted, 4_000))


@given(st.permutations(range(64)), st.lists(st.floats(-1.0, 3.0) | st.just(np.nan), max_size=30))
def test_hindsight_is_never_negative(order, latencies):
    surrogate, rows = Surrogate(GRID), order[: len(latencies)]
    logs = np.array(latencies)
    surrogate.predict(rows, logs)
    gained, promised = surrogate.hindsight(rows, logs)
    assert gained >= 0
    assert promised >= 0


def test_hindsight_tells_the_gain_of_the_later_half():
    surrogate, rows = Surrogate(GRID), list(range(10))
    logs = np.array([0.3, 0.2, 0.25, 0.2, 0.3, 0.1, 0.2, 0.0, 0.1, 0.2])
    surrogate.predict(rows, logs)
    gained, promised = surrogate.hindsight(rows, logs)
    squashed = squash(logs)
    assert gained == pytest.approx(squashed[:5].min() - squashed.min())
    assert promised > 0
    assert surrogate.hindsight(rows[:1], logs[:1]) == (0.0, 0.0)
