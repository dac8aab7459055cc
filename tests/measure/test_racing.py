from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.racing import ROUND_SAMPLES, ROUNDS, chunks, is_plainly_slow, race

samples = st.lists(st.floats(1, 1000), max_size=40)


def test_a_configuration_that_is_never_stopped_gets_every_round():
    taken, cut = race(chunks([1.0] * 100), lambda so_far: False)
    assert (len(taken), cut) == (ROUNDS * ROUND_SAMPLES, False)


def test_a_configuration_stopped_after_its_first_round_keeps_that_round():
    taken, cut = race(chunks([1.0] * 100), lambda so_far: True)
    assert (len(taken), cut) == (ROUND_SAMPLES, True)


def test_the_rule_is_not_asked_once_nothing_is_left_to_save():
    asked: list[int] = []
    race(chunks([1.0] * 100), lambda so_far: asked.append(len(so_far)) or False)
    assert asked == [ROUND_SAMPLES * round_ for round_ in range(1, ROUNDS)]


@given(samples)
def test_samples_taken_earlier_are_dealt_out_once_and_in_order(earlier):
    taken, cut = race(chunks(earlier), lambda so_far: False)
    assert list(taken) == earlier[: ROUNDS * ROUND_SAMPLES]
    assert not cut


@pytest.mark.parametrize(("median", "slow"), [(9.0, False), (10.9, False), (11.1, True)])
def test_plainly_slow_is_a_tenth_above_the_best(median, slow):
    assert is_plainly_slow(median, best_us=10.0) is slow
